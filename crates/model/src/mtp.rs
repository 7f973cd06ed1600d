//! The prediction layer in serving: what the token after next may be, for speculative decoding.
//!
//! u_t = W_fc [norm_e(E[ids_{t+1}]) ; norm_h(h_t)]   u'_t = block(u_t)   g_t = norm_m(u'_t)   logits_t = W_head g_t
//!
//! Row t stands at position t and guesses token t+2. h_t is the normed output of the main model
//! ([`Transformer::hidden`]). Applied again, the layer takes its own g_t in the place of h_{t+1}, at position
//! t+1 and with the token that was guessed: one guess further each time. Keys and values of such rows are of
//! the same slots as those of the true rows, which overwrite them when they come.
//!
//! The ops are those of training ([`crate::transformer`]), so on true rows the logits are the same bits.
//!
//! Sources: DeepSeek-V3, arXiv 2412.19437, section 2.2; EAGLE, arXiv 2401.15077, for the repeated use.
//! Tested in `tests/it/mtp.rs`.

use crate::block::{BlockKept, CachedRows};
use crate::decode::{BlockGroup, HeadState, KvCache};
use crate::transformer::Transformer;
use tensor::ops::gemm::Store;
use tensor::ops::{elementwise, rms_norm};
use tensor::{Device, Tensor};

/// Rows of the prediction layer.
pub struct MtpBatch<'a> {
    /// (T, D), normed outputs of the main model, or of the layer itself.
    pub hidden: &'a [f32],
    /// (T), the token after each of them.
    pub next_ids: &'a [u32],
    /// (T), of `hidden`.
    pub positions: &'a [u32],
    /// (R) rows whose logits are wanted.
    pub logit_rows: &'a [u32],
    /// The slots and tables of the layer's own cache.
    pub group: &'a BlockGroup<'a>,
}

/// Memory of the layer, and what the last pass gave.
pub struct MtpState {
    next_ids: Tensor<u32>,  // (T)
    positions: Tensor<u32>, // (T)
    slots: Tensor<u32>,     // (T)
    hidden: Tensor,         // (T, D)
    e: Tensor,              // (T, D), embedding of the next token
    e_normed: Tensor,       // (T, D)
    h_normed: Tensor,       // (T, D)
    rstd: Tensor,           // (T)
    concat: Tensor,         // (T, 2D)
    u: Tensor,              // (T, D)
    u_out: Tensor,          // (T, D)
    kept: Option<BlockKept>,
    head: HeadState,
}

impl MtpState {
    /// For `t` rows, and none whose logits are wanted.
    fn new(device: &Device, t: usize, d: usize, v: usize) -> MtpState {
        let zeros = |width: usize| Tensor::zeros(device, &[t, width]);
        MtpState {
            next_ids: Tensor::zeros(device, &[t]),
            positions: Tensor::zeros(device, &[t]),
            slots: Tensor::zeros(device, &[t]),
            hidden: zeros(d),
            e: zeros(d),
            e_normed: zeros(d),
            h_normed: zeros(d),
            rstd: zeros(1),
            concat: zeros(2 * d),
            u: zeros(d),
            u_out: zeros(d),
            kept: None,
            head: HeadState::new(device, 0, d, v),
        }
    }

    /// The logits (R, V) of the last pass.
    pub fn logits(&self) -> &[f32] {
        self.head.logits()
    }

    /// What the logits were made of (R, D): the `hidden` of the next guess.
    pub fn hidden(&self) -> &[f32] {
        self.head.h()
    }
}

impl Transformer {
    /// Memory for the prediction layer: none yet, it grows with the passes.
    pub fn mtp_state(&self, device: &Device) -> MtpState {
        let (d, v) = (self.config.hidden_size, self.config.vocab_size);
        MtpState::new(device, 0, d, v)
    }

    /// Runs the prediction layer: its keys and values are added to `cache`, its logits are left in `state`.
    ///
    /// # Panics
    /// When the model has no such layer or the cache no room for it, when the parts of the batch do not fit
    /// together, or an id is not in the vocabulary.
    pub fn forward_mtp_cached(
        &mut self,
        device: &Device,
        state: &mut MtpState,
        cache: &mut KvCache,
        batch: &MtpBatch,
    ) {
        let (d, v) = (self.config.hidden_size, self.config.vocab_size);
        let (t, eps) = (batch.next_ids.len(), self.config.rms_norm_eps);
        assert_eq!(batch.hidden.len(), t * d, "a hidden state for each row");
        assert_eq!(batch.positions.len(), t, "one position for each row");
        assert_eq!(batch.group.slots.len(), t, "one slot for each row");
        assert!(
            batch.next_ids.iter().all(|&id| (id as usize) < v),
            "ids are in the vocabulary"
        );
        self.rope
            .grow(batch.positions.iter().max().map_or(0, |&p| p as usize + 1));
        let mtp = self.mtp.as_ref().expect("the model has the layer");
        let old = state.next_ids.len();
        if t > old {
            *state = MtpState::new(device, t.max(2 * old), d, v);
        }
        let rows = state.next_ids.len();
        let kept = state
            .kept
            .get_or_insert_with(|| mtp.block.kept(device, &self.config, rows));
        state.head.reserve(device, batch.logit_rows.len(), d, v);
        state.next_ids.write(batch.next_ids);
        state.positions.write(batch.positions);
        state.slots.write(batch.group.slots);
        state.hidden.write(batch.hidden);

        let param = |span: crate::weights::Span| self.params.range(span.range());
        let e = state.e.rows_mut(t);
        self.embedding
            .forward(device, &self.params, e, &state.next_ids, t, d);
        rms_norm::forward(
            device,
            state.e_normed.rows_mut(t),
            state.rstd.rows_mut(t),
            state.e.rows(t),
            param(mtp.spans.pre_fc_norm_embedding),
            eps,
        );
        rms_norm::forward(
            device,
            state.h_normed.rows_mut(t),
            state.rstd.rows_mut(t),
            state.hidden.rows(t),
            param(mtp.spans.pre_fc_norm_hidden),
            eps,
        );
        elementwise::concat2(
            device,
            state.concat.rows_mut(t),
            state.e_normed.rows(t),
            state.h_normed.rows(t),
            d,
        );
        let (u, concat) = (state.u.rows_mut(t), state.concat.rows(t));
        mtp.fc.forward(device, u, concat, Store::Overwrite);
        let rows = CachedRows {
            num_rows: t,
            positions: &state.positions,
            slots: &state.slots,
            sequences: batch.group.sequences,
            rope: &self.rope,
        };
        let layer = cache
            .layers
            .get_mut(self.config.num_hidden_layers)
            .expect("the cache has room for the layer");
        mtp.block.forward_cached(
            device,
            &self.params,
            &mut state.u_out,
            &state.u,
            &rows,
            layer,
            kept,
        );
        state.head.run(
            device,
            state.u_out.rows(t),
            batch.logit_rows,
            param(mtp.spans.norm),
            eps,
            &self.lm_head,
        );
    }
}
