//! The whole model in serving: new rows of several sequences against a cache of keys and values.
//!
//! A step takes T rows, a few of each sequence: one where a token is decoded, many where a prompt is read.
//! Every layer appends their keys and values to its [`KvLayer`] and attends through the block tables. The
//! ops are those of training ([`crate::block`]), whose rows do not depend on their company, so the logits of
//! a token are the same bits in training, in a prompt read in chunks, and decoded one by one.
//!
//! Who owns which block is not known here: a step brings slots and block tables, one set for all layers
//! that share them (a [`BlockGroup`]). Memory is kept between steps and grows with the largest.
//!
//! The prediction layer is no part of a step: it runs after one, on [`Transformer::hidden`] ([`crate::mtp`]).
//! Tested in `tests/it/decode.rs`.

use crate::block::{Block, BlockKept, CachedRows, kv_layer};
use crate::config::ModelConfig;
use crate::linear::Linear;
use crate::transformer::Transformer;
use tensor::ops::attention::{CachedSequence, KvLayer};
use tensor::ops::gemm::Store;
use tensor::ops::{cross_entropy, embedding, rms_norm};
use tensor::{Device, Tensor, View};

/// Keys and values of all layers.
pub struct KvCache {
    pub(crate) layers: Vec<KvLayer>, // L, and one more where the prediction layer takes part
    group_of_layer: Vec<usize>,      // the same
}

impl KvCache {
    /// For each layer the group whose slots and tables it follows, and its number of blocks. One entry more
    /// is the prediction layer's; without it that layer is not run.
    pub fn new(device: &Device, config: &ModelConfig, layers: &[(usize, usize)]) -> KvCache {
        let num_layers = config.num_hidden_layers;
        let most = num_layers + config.num_nextn_predict_layers;
        assert!(
            (num_layers..=most).contains(&layers.len()),
            "one entry a layer"
        );
        KvCache {
            layers: layers
                .iter()
                .map(|&(_, num_blocks)| kv_layer(device, config, num_blocks))
                .collect(),
            group_of_layer: layers.iter().map(|&(group, _)| group).collect(),
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.layers.iter().map(KvLayer::bytes).sum()
    }
}

/// Where the rows of a step lie in the cache, for the layers of one group.
pub struct BlockGroup<'a> {
    /// (T), block * KV_BLOCK + offset.
    pub slots: &'a [u32],
    /// (B), which together cover the T rows.
    pub sequences: &'a [CachedSequence<'a>],
}

/// Bytes of packed matrices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WeightBytes {
    /// What every step reads, but for the head.
    pub dense: usize,
    /// All experts of all layers.
    pub experts: usize,
    /// The head.
    pub head: usize,
    /// The prediction layer, which has the same head.
    pub mtp: usize,
}

/// One step.
pub struct CachedBatch<'a> {
    /// (T)
    pub ids: &'a [u32],
    /// (T)
    pub positions: &'a [u32],
    /// (R) rows whose logits are wanted.
    pub logit_rows: &'a [u32],
    /// As numbered in [`KvCache::new`].
    pub groups: &'a [BlockGroup<'a>],
}

/// Memory of steps, and the logits of the last one.
pub struct DecodeState {
    ids: Tensor<u32>,        // (T)
    positions: Tensor<u32>,  // (T)
    slots: Vec<Tensor<u32>>, // for each group (T)
    x: Tensor,               // (T, D), the stream
    x_out: Tensor,           // (T, D)
    rstd: Tensor,            // (T)
    num_rows: usize,         // T of the last step
    dense: Option<BlockKept>,
    sparse: Option<BlockKept>,
    head: HeadState,
}

/// Of the rows whose logits are wanted.
pub(crate) struct HeadState {
    num_rows: usize,      // R
    rows: Tensor<u32>,    // (R)
    x: Tensor,            // (R, D), their stream
    h: Tensor,            // (R, D), normed
    rstd: Tensor,         // (R)
    logits: Tensor,       // (R, V)
    targets: Tensor<u32>, // (R)
    losses: Tensor,       // (R)
}

impl DecodeState {
    /// The logits (R, V) of the last step, a row for each of its `logit_rows`.
    pub fn logits(&self) -> &[f32] {
        self.head.logits()
    }

    /// -ln p(target) of each row of [`DecodeState::logits`], as training computes it.
    ///
    /// # Panics
    /// When there are not R targets.
    pub fn losses(&mut self, device: &Device, targets: &[u32]) -> &[f32] {
        let head = &mut self.head;
        let r = head.num_rows;
        assert_eq!(targets.len(), r, "one target for each row of logits");
        head.targets.write(targets);
        cross_entropy::forward(
            device,
            head.losses.rows_mut(r),
            head.logits.rows(r),
            head.targets.rows(r),
        );
        &head.losses.host()[..r]
    }
}

impl Transformer {
    /// What steps and passes of the prediction layer read.
    pub fn weight_bytes(&self) -> WeightBytes {
        let blocks = self.blocks.iter().map(Block::bytes);
        let (dense, experts) = blocks.fold((0, 0), |sum, part| (sum.0 + part.0, sum.1 + part.1));
        WeightBytes {
            dense,
            experts,
            head: self.lm_head.bytes(),
            mtp: self
                .mtp
                .as_ref()
                .map_or(0, |mtp| mtp.fc.bytes() + mtp.block.bytes().0),
        }
    }

    /// Memory for steps: none yet, it grows with them.
    pub fn decode_state(&self, device: &Device) -> DecodeState {
        let (d, v) = (self.config.hidden_size, self.config.vocab_size);
        DecodeState {
            ids: Tensor::zeros(device, &[0]),
            positions: Tensor::zeros(device, &[0]),
            slots: Vec::new(),
            x: Tensor::zeros(device, &[0, d]),
            x_out: Tensor::zeros(device, &[0, d]),
            rstd: Tensor::zeros(device, &[0]),
            num_rows: 0,
            dense: None,
            sparse: None,
            head: HeadState::new(device, 0, d, v),
        }
    }

    /// Runs a step: its keys and values are added to `cache`, its logits are left in `state`.
    ///
    /// # Panics
    /// When the parts of the batch do not fit together, or an id is not in the vocabulary.
    pub fn forward_cached(
        &mut self,
        device: &Device,
        state: &mut DecodeState,
        cache: &mut KvCache,
        batch: &CachedBatch,
    ) {
        let (t, r, d) = (
            batch.ids.len(),
            batch.logit_rows.len(),
            self.config.hidden_size,
        );
        assert_eq!(batch.positions.len(), t, "one position for each row");
        for group in batch.groups {
            assert_eq!(group.slots.len(), t, "one slot for each row");
        }
        let vocab_size = self.config.vocab_size;
        assert!(
            batch.ids.iter().all(|&id| (id as usize) < vocab_size),
            "ids are in the vocabulary"
        );
        self.reserve(device, state, t, r, batch.groups.len());
        self.rope
            .grow(batch.positions.iter().max().map_or(0, |&p| p as usize + 1));
        state.ids.write(batch.ids);
        state.positions.write(batch.positions);
        for (slots, group) in state.slots.iter_mut().zip(batch.groups) {
            slots.write(group.slots);
        }

        let x = state.x.rows_mut(t);
        self.embedding
            .forward(device, &self.params, x, &state.ids, t, d);
        for (l, block) in self.blocks.iter().enumerate() {
            let group = cache.group_of_layer[l];
            let rows = CachedRows {
                num_rows: t,
                positions: &state.positions,
                slots: &state.slots[group],
                sequences: batch.groups[group].sequences,
                rope: &self.rope,
            };
            let kept = if block.is_sparse() {
                &mut state.sparse
            } else {
                &mut state.dense
            };
            let kept = kept.as_mut().expect("reserved for the kinds there are");
            let layer = &mut cache.layers[l];
            block.forward_cached(
                device,
                &self.params,
                &mut state.x_out,
                &state.x,
                &rows,
                layer,
                kept,
            );
            std::mem::swap(&mut state.x, &mut state.x_out);
        }

        state.num_rows = t;
        state.head.run(
            device,
            state.x.rows(t),
            batch.logit_rows,
            self.params.range(self.layout.norm.range()),
            self.config.rms_norm_eps,
            &self.lm_head,
        );
    }

    /// The normed outputs h (T, D) of all rows of the last step: what the prediction layer reads.
    pub fn hidden<'a>(&self, device: &Device, state: &'a mut DecodeState) -> &'a [f32] {
        let t = state.num_rows;
        rms_norm::forward(
            device,
            state.x_out.rows_mut(t),
            state.rstd.rows_mut(t),
            state.x.rows(t),
            self.params.range(self.layout.norm.range()),
            self.config.rms_norm_eps,
        );
        &state.x_out.host()[..t * self.config.hidden_size]
    }

    /// Room for `t` rows, `r` rows of logits and `groups` groups. What grows at least doubles, so that a
    /// batch that gains a row at a time seldom allocates.
    fn reserve(&self, device: &Device, state: &mut DecodeState, t: usize, r: usize, groups: usize) {
        let config = &self.config;
        let (d, v) = (config.hidden_size, config.vocab_size);
        let old_t = state.ids.len();
        if t > old_t {
            let t = t.max(2 * old_t);
            state.ids = Tensor::zeros(device, &[t]);
            state.positions = Tensor::zeros(device, &[t]);
            state.slots.clear();
            state.x = Tensor::zeros(device, &[t, d]);
            state.x_out = Tensor::zeros(device, &[t, d]);
            state.rstd = Tensor::zeros(device, &[t]);
            let kept = |is_sparse: bool| {
                let block = self.blocks.iter().find(|b| b.is_sparse() == is_sparse);
                block.map(|block: &Block| block.kept(device, config, t))
            };
            (state.dense, state.sparse) = (kept(false), kept(true));
        }
        let t = state.ids.len();
        while state.slots.len() < groups {
            state.slots.push(Tensor::zeros(device, &[t]));
        }
        state.head.reserve(device, r, d, v);
    }
}

impl HeadState {
    pub(crate) fn new(device: &Device, r: usize, d: usize, v: usize) -> HeadState {
        HeadState {
            num_rows: 0,
            rows: Tensor::zeros(device, &[r]),
            x: Tensor::zeros(device, &[r, d]),
            h: Tensor::zeros(device, &[r, d]),
            rstd: Tensor::zeros(device, &[r]),
            logits: Tensor::zeros(device, &[r, v]),
            targets: Tensor::zeros(device, &[r]),
            losses: Tensor::zeros(device, &[r]),
        }
    }
    /// Room for `r` rows; what grows at least doubles.
    pub(crate) fn reserve(&mut self, device: &Device, r: usize, d: usize, v: usize) {
        let old = self.rows.len();
        if r > old {
            *self = HeadState::new(device, r.max(2 * old), d, v);
        }
    }

    /// Logits of the given rows of a stream (T, D).
    pub(crate) fn run(
        &mut self,
        device: &Device,
        stream: View,
        rows: &[u32],
        gain: View,
        eps: f32,
        lm_head: &Linear,
    ) {
        let r = rows.len();
        self.num_rows = r;
        if r == 0 {
            return;
        }
        self.rows.write(rows);
        let (rows, d) = (self.rows.rows(r), self.x.shape()[1]);
        // Rows of the stream are looked up like rows of a table.
        embedding::forward(device, self.x.rows_mut(r), stream, rows, d);
        let (h, rstd, x) = (self.h.rows_mut(r), self.rstd.rows_mut(r), self.x.rows(r));
        rms_norm::forward(device, h, rstd, x, gain, eps);
        let (logits, h) = (self.logits.rows_mut(r), self.h.rows(r));
        lm_head.forward(device, logits, h, Store::Overwrite);
    }

    /// The logits (R, V) of the last run.
    pub(crate) fn logits(&self) -> &[f32] {
        let width = self.logits.shape()[1];
        &self.logits.host()[..self.num_rows * width]
    }

    /// What they were made of, h (R, D).
    pub(crate) fn h(&self) -> &[f32] {
        let width = self.h.shape()[1];
        &self.h.host()[..self.num_rows * width]
    }
}
