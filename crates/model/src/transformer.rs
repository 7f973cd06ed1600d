//! The whole model in training: forward, losses, and the hand-written backward pass.
//!
//! x_0 = E[ids]   x_{l+1} = block_l(x_l)   h = norm(x_L)   logits = W_head h
//!
//! Multi-token prediction, at row t with the next token n_t = ids[t+1] of the same sequence:
//! u = W_fc [norm_e(E[n_t]) ; norm_h(h_t)]   u' = block(u)   mtp logits = W_head norm_m(u')
//!
//! loss = next-token cross-entropy + mtp_weight * that of the token after next + balance losses,
//! each cross-entropy a mean over the rows that have a target. Logits are made a chunk of rows at a
//! time and turn into their gradient in place, so those of a whole batch never exist.
//!
//! Source: K-EXAONE technical report, arXiv 2601.01739, sections 2 and 3.1; the prediction layer as its
//! serving implementations compute it (h is taken after the final norm).

pub use crate::batch::Batch;
use crate::block::{Block, BlockKept, BlockScratch, Sequences, compute};
use crate::config::ModelConfig;
use crate::embedding::Embedding;
use crate::experts::{ExpertCache, ExpertCacheStats, SharedCache, lock};
use crate::linear::Linear;
use crate::names::Part;
use crate::weights::{Layout, Matrices, MtpSpans, Read, Source, TensorSpec};
use std::sync::{Arc, Mutex};
use tensor::ops::cross_entropy;
use tensor::ops::gemm::Store;
use tensor::ops::qk_norm_rope::RopeTable;
use tensor::ops::{elementwise, embedding, rms_norm};
use tensor::{Activations, Device, Tensor};

/// Rows whose logits exist at a time.
const LOGIT_ROWS: usize = 256;

/// What is minimised.
#[derive(Clone, Copy, Debug)]
pub struct Objective {
    /// Weight of the multi-token-prediction loss; 0 leaves the layer out.
    pub mtp_loss_weight: f32,
    /// Weight of the sequence-level balance loss.
    pub balance_alpha: f32,
    /// Rows with a target in the whole step (all micro-steps).
    pub num_targets: usize,
    /// The same for the prediction layer.
    pub num_mtp_targets: usize,
    /// Batches that the step's gradient is made of; divides the balance loss.
    pub micro_steps: usize,
}

/// Parts of the loss, each already divided as [`Objective`] says; micro-steps add up.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Losses {
    /// Mean cross-entropy of the next token, in nats; where targets have weights, of each times its weight.
    pub next_token: f64,
    /// Mean cross-entropy of the token after next, in nats, before its weight.
    pub mtp: f64,
    /// Balance loss, its weight included.
    pub balance: f64,
}

/// A model whose weights can be multiplied with, and trained.
pub struct Transformer {
    /// The architecture.
    pub config: ModelConfig,
    /// Where tensors lie in `params`.
    pub layout: Layout,
    /// In f32: all parameters, or of a model that is served what is not packed.
    pub params: Tensor,
    pub(crate) blocks: Vec<Block>,
    pub(crate) lm_head: Linear,
    pub(crate) mtp: Option<Mtp>,
    pub(crate) rope: RopeTable,
    experts: Option<SharedCache>,
    pub(crate) embedding: Embedding,
}

/// The prediction layer.
pub(crate) struct Mtp {
    pub(crate) spans: MtpSpans,
    pub(crate) fc: Linear,
    pub(crate) block: Block,
}

/// Memory of training steps of one size: gradients, kept activations, working memory.
pub struct TrainState {
    /// In the layout of the parameters.
    pub grads: Tensor,
    ids: Tensor<u32>,
    positions: Tensor<u32>,
    cu_seqlens: Tensor<u32>,
    x: Vec<Tensor>, // L+1 of (T, D): the stream before each layer, and at the end
    kept: Vec<BlockKept>,
    h: Tensor,    // (T, D), normed output
    rstd: Tensor, // (T)
    dx: Tensor,   // (T, D)
    dh: Tensor,   // (T, D)
    scratch: BlockScratch,
    logits: Tensor, // (LOGIT_ROWS, V)
    losses: Tensor, // (LOGIT_ROWS)
    mtp: Option<MtpState>,
}

struct MtpState {
    next_ids: Tensor<u32>,
    e: Tensor,        // (T, D), embedding of the next token
    e_normed: Tensor, // (T, D)
    e_rstd: Tensor,   // (T)
    g_normed: Tensor, // (T, D), normed h
    g_rstd: Tensor,   // (T)
    concat: Tensor,   // (T, 2D)
    u: Tensor,        // (T, D)
    kept: BlockKept,
    u_out: Tensor,   // (T, D)
    h: Tensor,       // (T, D), normed output of the layer
    rstd: Tensor,    // (T)
    du: Tensor,      // (T, D)
    dh: Tensor,      // (T, D)
    dconcat: Tensor, // (T, 2D)
}

/// Chosen experts (T, A), best first, of each sparse layer, with the layer's index.
pub type Routing = Vec<(usize, Vec<u32>)>;

/// Logits (T, V), those of the prediction layer (T, V) where there is one, and the routing.
pub type Outputs = (Tensor, Option<Tensor>, Routing);

impl Transformer {
    /// The model of a configuration with the given parameters, in the order of its layout.
    ///
    /// # Panics
    /// When `params` has another length than the layout.
    pub fn new(device: &Device, config: ModelConfig, params: &[f32], trains: bool) -> Transformer {
        let layout = Layout::new(&config);
        assert_eq!(
            params.len(),
            layout.len,
            "as many parameters as the layout says"
        );
        let mut all = Tensor::zeros(device, &[layout.len]);
        all.write(params);
        let mut model = Transformer::pack(device, config, layout, trains, &mut &all);
        model.params = all;
        model
    }

    /// A model to serve, whose weights are read tensor by tensor. What is stored in blocks of integers stays
    /// so, and is multiplied with rows rounded as `activations` says; only gains and biases are kept in f32.
    /// With a bound in `expert_cache_bytes`, experts are read when they are needed ([`crate::experts`]).
    ///
    /// # Errors
    /// The first of `source`.
    pub fn load<S>(
        device: &Device,
        config: ModelConfig,
        activations: Activations,
        source: &Arc<S>,
        expert_cache_bytes: Option<usize>,
    ) -> Result<Transformer, S::Error>
    where
        S: Source<Error: Send> + Send + Sync + 'static,
    {
        let layout = Arc::new(Layout::for_serving(&config));
        let mut kept = Tensor::zeros(device, &[layout.kept_len]);
        for spec in &layout.tensors {
            if spec.span.start < layout.kept_len {
                source.read(spec, 0, &mut kept.host_mut()[spec.span.range()])?;
                source.release(spec);
            }
        }
        let read = |experts| Read::new(layout.clone(), source.clone(), activations, experts);
        let experts = expert_cache_bytes
            .map(|bytes| Arc::new(Mutex::new(ExpertCache::new(Box::new(read(None)), bytes))));
        let mut weights = read(experts.clone());
        let layout = Layout::clone(&layout);
        let mut model = Transformer::pack(device, config, layout, false, &mut weights);
        weights.finish()?;
        model.params = kept;
        model.experts = experts;
        let is_table = |spec: &&TensorSpec| spec.part == Part::EmbedTokens;
        if let Some(spec) = model.layout.tensors.iter().find(is_table) {
            model.embedding = Embedding::of(source.clone(), spec.clone());
        }
        Ok(model)
    }

    /// Changes the bound of the cache of experts, where there is one.
    pub fn set_expert_cache_bytes(&self, bytes: usize) {
        if let Some(cache) = &self.experts {
            lock(cache).set_max_bytes(bytes);
        }
    }

    /// What the cache of experts has done, where there is one.
    pub fn expert_cache_stats(&self) -> Option<ExpertCacheStats> {
        self.experts.as_ref().map(|cache| lock(cache).stats())
    }

    /// A model with its matrices packed, and without what is not.
    fn pack(
        device: &Device,
        config: ModelConfig,
        layout: Layout,
        trains: bool,
        weights: &mut dyn Matrices,
    ) -> Transformer {
        let compute = compute(&config);
        let (v, d) = (config.vocab_size, config.hidden_size);
        let lm_head = Linear::new(device, compute, layout.lm_head, v, trains, weights);
        let mut blocks = Vec::new();
        for (l, &spans) in layout.layers.iter().enumerate() {
            let (window, limit) = (config.window(l), config.swiglu_limit(l));
            let block = Block::new(device, &config, spans, window, limit, trains, weights);
            blocks.push(block);
        }
        let mtp = layout.mtp.map(|spans| {
            let window = config.mtp_sliding_window;
            let limit = config.swiglu_limit(config.num_hidden_layers);
            Mtp {
                spans,
                fc: Linear::new(device, compute, spans.fc, d, trains, weights),
                block: Block::new(device, &config, spans.block, window, limit, trains, weights),
            }
        });
        Transformer {
            lm_head,
            rope: RopeTable::new(&config.inv_freq(), 0),
            params: Tensor::zeros(device, &[0]),
            experts: None,
            embedding: Embedding::Kept(layout.embed_tokens),
            blocks,
            mtp,
            layout,
            config,
        }
    }

    /// Packs the weights again: after every change of `params`.
    ///
    /// # Panics
    /// When the model was made by [`Transformer::load`], which keeps no weights to pack.
    pub fn refresh(&mut self, device: &Device) {
        assert_eq!(
            self.layout.kept_len, self.layout.len,
            "a model that is served has its weights packed alone"
        );
        let params = &self.params;
        self.lm_head.refresh(device, params);
        for block in &mut self.blocks {
            block.refresh(device, params);
        }
        if let Some(mtp) = &mut self.mtp {
            mtp.fc.refresh(device, params);
            mtp.block.refresh(device, params);
        }
    }

    /// Memory for steps of `tokens` tokens.
    pub fn train_state(&self, device: &Device, tokens: usize) -> TrainState {
        let (t, d, config) = (tokens, self.config.hidden_size, &self.config);
        let zeros = |width: usize| Tensor::zeros(device, &[t, width]);
        let mut scratch = BlockScratch::new(device, config, t);
        for block in self
            .blocks
            .iter()
            .chain(self.mtp.as_ref().map(|m| &m.block))
        {
            block.extend_scratch(device, &mut scratch, t);
        }
        TrainState {
            grads: Tensor::zeros(device, &[self.layout.len]),
            ids: Tensor::zeros(device, &[t]),
            positions: Tensor::zeros(device, &[t]),
            cu_seqlens: Tensor::zeros(device, &[1]),
            x: (0..=self.blocks.len()).map(|_| zeros(d)).collect(),
            kept: self
                .blocks
                .iter()
                .map(|b| b.kept(device, config, t))
                .collect(),
            h: zeros(d),
            rstd: zeros(1),
            dx: zeros(d),
            dh: zeros(d),
            scratch,
            logits: Tensor::zeros(device, &[LOGIT_ROWS.min(t), config.vocab_size]),
            losses: Tensor::zeros(device, &[LOGIT_ROWS.min(t)]),
            mtp: self.mtp.as_ref().map(|mtp| MtpState {
                next_ids: Tensor::zeros(device, &[t]),
                e: zeros(d),
                e_normed: zeros(d),
                e_rstd: zeros(1),
                g_normed: zeros(d),
                g_rstd: zeros(1),
                concat: zeros(2 * d),
                u: zeros(d),
                kept: mtp.block.kept(device, config, t),
                u_out: zeros(d),
                h: zeros(d),
                rstd: zeros(1),
                du: zeros(d),
                dh: zeros(d),
                dconcat: zeros(2 * d),
            }),
        }
    }

    /// Runs the layers; afterwards `state.h` holds the normed output. Returns the balance loss.
    ///
    /// # Panics
    /// When the batch has another size than the state, or an id is not in the vocabulary.
    fn forward(
        &mut self,
        device: &Device,
        state: &mut TrainState,
        batch: &Batch,
        alpha: f32,
    ) -> f64 {
        let (d, eps) = (self.config.hidden_size, self.config.rms_norm_eps);
        assert_eq!(
            batch.ids.len(),
            state.ids.len(),
            "the batch has the size of the state"
        );
        let vocab_size = self.config.vocab_size;
        assert!(
            batch.ids.iter().all(|&id| (id as usize) < vocab_size),
            "ids are in the vocabulary"
        );
        let positions = batch.positions();
        self.rope
            .grow(positions.iter().max().map_or(0, |&p| p as usize + 1));
        state.ids.write(&batch.ids);
        state.positions.write(&positions);
        if state.cu_seqlens.len() != batch.cu_seqlens.len() {
            state.cu_seqlens = Tensor::zeros(device, &[batch.cu_seqlens.len()]);
        }
        state.cu_seqlens.write(&batch.cu_seqlens);

        let (x, ids) = (state.x[0].view_mut(), &state.ids);
        self.embedding
            .forward(device, &self.params, x, ids, ids.len(), d);
        let seqs = Sequences {
            positions: &state.positions,
            cu_seqlens: &state.cu_seqlens,
            rope: &self.rope,
        };
        let mut balance = 0.0;
        for (l, block) in self.blocks.iter().enumerate() {
            let (before, after) = state.x.split_at_mut(l + 1);
            let (x, x_out) = (&before[l], &mut after[0]);
            let kept = &mut state.kept[l];
            balance += f64::from(block.forward(device, &self.params, x_out, x, &seqs, alpha, kept));
        }
        rms_norm::forward(
            device,
            state.h.view_mut(),
            state.rstd.view_mut(),
            state.x[self.blocks.len()].view(),
            self.params.range(self.layout.norm.range()),
            eps,
        );
        balance
    }

    /// Runs the prediction layer on `state.h`; afterwards its state holds the normed output.
    fn forward_mtp(&self, device: &Device, state: &mut TrainState, batch: &Batch) {
        let (Some(mtp), Some(s)) = (&self.mtp, &mut state.mtp) else {
            return;
        };
        let (d, eps) = (self.config.hidden_size, self.config.rms_norm_eps);
        let param = |span: crate::weights::Span| self.params.range(span.range());
        s.next_ids.write(&batch.next_ids);
        let (e, ids) = (s.e.view_mut(), &s.next_ids);
        self.embedding
            .forward(device, &self.params, e, ids, ids.len(), d);
        rms_norm::forward(
            device,
            s.e_normed.view_mut(),
            s.e_rstd.view_mut(),
            s.e.view(),
            param(mtp.spans.pre_fc_norm_embedding),
            eps,
        );
        rms_norm::forward(
            device,
            s.g_normed.view_mut(),
            s.g_rstd.view_mut(),
            state.h.view(),
            param(mtp.spans.pre_fc_norm_hidden),
            eps,
        );
        elementwise::concat2(
            device,
            s.concat.view_mut(),
            s.e_normed.view(),
            s.g_normed.view(),
            d,
        );
        mtp.fc
            .forward(device, s.u.view_mut(), s.concat.view(), Store::Overwrite);
        let seqs = Sequences {
            positions: &state.positions,
            cu_seqlens: &state.cu_seqlens,
            rope: &self.rope,
        };
        mtp.block.forward(
            device,
            &self.params,
            &mut s.u_out,
            &s.u,
            &seqs,
            0.0,
            &mut s.kept,
        );
        rms_norm::forward(
            device,
            s.h.view_mut(),
            s.rstd.view_mut(),
            s.u_out.view(),
            param(mtp.spans.norm),
            eps,
        );
    }

    /// One micro-step: adds the gradient of the objective to `state.grads`, returns the losses.
    pub fn forward_backward(
        &mut self,
        device: &Device,
        state: &mut TrainState,
        batch: &Batch,
        objective: &Objective,
    ) -> Losses {
        let alpha = objective.balance_alpha / objective.micro_steps as f32;
        let balance = self.forward(device, state, batch, alpha);
        let mut losses = Losses {
            balance,
            ..Losses::default()
        };
        let count = objective.num_targets.max(1) as f64;
        let TrainState {
            grads,
            h,
            dh,
            logits,
            losses: row_losses,
            ..
        } = state;
        losses.next_token = head_loss(
            device,
            &self.lm_head,
            grads,
            h,
            dh,
            &batch.targets,
            &batch.weights,
            1.0 / count,
            logits,
            row_losses,
        ) / count;
        if self.mtp.is_some() && objective.mtp_loss_weight > 0.0 {
            self.forward_mtp(device, state, batch);
            let count = objective.num_mtp_targets.max(1) as f64;
            let scale = f64::from(objective.mtp_loss_weight) / count;
            losses.mtp = self.backward_mtp(device, state, batch, scale) / count;
        }
        self.backward(device, state);
        losses
    }

    /// From `state.dh`, the gradient of the normed output, to the embedding.
    fn backward(&self, device: &Device, state: &mut TrainState) {
        let TrainState {
            grads,
            x,
            kept,
            dx,
            dh,
            scratch,
            rstd,
            ids,
            ..
        } = state;
        let seqs = Sequences {
            positions: &state.positions,
            cu_seqlens: &state.cu_seqlens,
            rope: &self.rope,
        };
        rms_norm::backward(
            device,
            dx.view_mut(),
            grads.range_mut(self.layout.norm.range()),
            dh.view(),
            x[self.blocks.len()].view(),
            rstd.view(),
            self.params.range(self.layout.norm.range()),
            Store::Overwrite,
        );
        for (l, block) in self.blocks.iter().enumerate().rev() {
            block.backward(
                device,
                &self.params,
                grads,
                dx,
                &x[l],
                &seqs,
                &kept[l],
                scratch,
            );
        }
        let table = grads.range_mut(self.layout.embed_tokens.range());
        embedding::backward(
            device,
            table,
            dx.view(),
            ids.view(),
            self.config.hidden_size,
        );
    }

    /// Loss and gradients of the prediction layer; adds to `state.dh`. Returns the summed loss.
    fn backward_mtp(
        &self,
        device: &Device,
        state: &mut TrainState,
        batch: &Batch,
        scale: f64,
    ) -> f64 {
        let (Some(mtp), Some(s)) = (&self.mtp, &mut state.mtp) else {
            return 0.0;
        };
        let d = self.config.hidden_size;
        let param = |span: crate::weights::Span| self.params.range(span.range());
        let TrainState {
            grads,
            h,
            dh,
            scratch,
            logits,
            losses,
            ..
        } = state;
        let targets = &batch.mtp_targets;
        let loss = head_loss(
            device,
            &self.lm_head,
            grads,
            &s.h,
            &mut s.dh,
            targets,
            &[],
            scale,
            logits,
            losses,
        );
        rms_norm::backward(
            device,
            s.du.view_mut(),
            grads.range_mut(mtp.spans.norm.range()),
            s.dh.view(),
            s.u_out.view(),
            s.rstd.view(),
            param(mtp.spans.norm),
            Store::Overwrite,
        );
        let seqs = Sequences {
            positions: &state.positions,
            cu_seqlens: &state.cu_seqlens,
            rope: &self.rope,
        };
        mtp.block.backward(
            device,
            &self.params,
            grads,
            &mut s.du,
            &s.u,
            &seqs,
            &s.kept,
            scratch,
        );
        mtp.fc
            .backward_input(device, s.dconcat.view_mut(), s.du.view(), Store::Overwrite);
        mtp.fc
            .backward_weight(device, grads, s.du.view(), s.concat.view());
        // The two halves: the embedding of the next token, and the output of the main model.
        let (de, dg) = (&mut s.u_out, &mut s.u);
        elementwise::split2(device, de.view_mut(), dg.view_mut(), s.dconcat.view(), d);
        rms_norm::backward(
            device,
            dh.view_mut(),
            grads.range_mut(mtp.spans.pre_fc_norm_hidden.range()),
            dg.view(),
            h.view(),
            s.g_rstd.view(),
            param(mtp.spans.pre_fc_norm_hidden),
            Store::Add,
        );
        rms_norm::backward(
            device,
            s.du.view_mut(),
            grads.range_mut(mtp.spans.pre_fc_norm_embedding.range()),
            de.view(),
            s.e.view(),
            s.e_rstd.view(),
            param(mtp.spans.pre_fc_norm_embedding),
            Store::Overwrite,
        );
        let table = grads.range_mut(self.layout.embed_tokens.range());
        embedding::backward(device, table, s.du.view(), s.next_ids.view(), d);
        loss
    }

    /// Summed cross-entropy, in nats, of the batch's next tokens. Nothing is learnt.
    pub fn evaluate(&mut self, device: &Device, state: &mut TrainState, batch: &Batch) -> f64 {
        self.forward(device, state, batch, 0.0);
        let TrainState {
            h, logits, losses, ..
        } = state;
        let (rows_at_once, v, d) = (logits.shape()[0], logits.shape()[1], h.shape()[1]);
        let mut targets = Tensor::zeros(device, &[rows_at_once]);
        let mut total = 0.0f64;
        for start in (0..batch.ids.len()).step_by(rows_at_once) {
            let rows = rows_at_once.min(batch.ids.len() - start);
            targets.write(&batch.targets[start..start + rows]);
            let h = h.range(start * d..(start + rows) * d);
            self.lm_head
                .forward(device, logits.range_mut(0..rows * v), h, Store::Overwrite);
            let (z, wanted) = (logits.range(0..rows * v), targets.range(0..rows));
            cross_entropy::forward(device, losses.range_mut(0..rows), z, wanted);
            let losses = &losses.host()[..rows];
            total += losses.iter().map(|&l| f64::from(l)).sum::<f64>();
        }
        total
    }

    /// All logits (T, V) of a batch, those of the prediction layer (T, V) where there is one, and the
    /// chosen experts (T, A) of each sparse layer with its index. For evaluation on small batches.
    pub fn logits(&mut self, device: &Device, state: &mut TrainState, batch: &Batch) -> Outputs {
        let shape = [batch.ids.len(), self.config.vocab_size];
        self.forward(device, state, batch, 0.0);
        let mut logits = Tensor::zeros(device, &shape);
        self.lm_head
            .forward(device, logits.view_mut(), state.h.view(), Store::Overwrite);
        let routing = self.routing(state);
        self.forward_mtp(device, state, batch);
        let mtp_logits = state.mtp.as_ref().map(|s| {
            let mut logits = Tensor::zeros(device, &shape);
            self.lm_head
                .forward(device, logits.view_mut(), s.h.view(), Store::Overwrite);
            logits
        });
        (logits, mtp_logits, routing)
    }

    /// Chosen experts (T, A), best first, of each sparse layer in the last forward pass.
    fn routing(&self, state: &TrainState) -> Routing {
        let layers = state.kept.iter().enumerate();
        layers
            .filter_map(|(l, kept)| Some((l, kept.routing()?.0.host().to_vec())))
            .collect()
    }

    /// Rows per expert (E) of each sparse layer in the last forward pass.
    pub fn tokens_per_expert(&self, state: &TrainState) -> Vec<Vec<u32>> {
        let offsets = state
            .kept
            .iter()
            .filter_map(|kept| Some(kept.routing()?.1.host()));
        offsets
            .map(|o| o.windows(2).map(|w| w[1] - w[0]).collect())
            .collect()
    }
}

impl TrainState {
    /// The activations kept by the last forward pass, layer by layer (the prediction layer last), and the
    /// normed output. Each is as in [`BlockKept::activations`].
    pub fn activations(&self) -> (Vec<Vec<(&'static str, &Tensor)>>, &Tensor) {
        let layers = self.kept.iter().chain(self.mtp.as_ref().map(|s| &s.kept));
        (layers.map(BlockKept::activations).collect(), &self.h)
    }
}

/// Cross-entropy of the head on h (T, D), each row's times its weight (all one where there are none): adds the head's
/// gradient, writes dh, returns the sum.
fn head_loss(
    device: &Device,
    lm_head: &Linear,
    grads: &mut Tensor,
    h: &Tensor,
    dh: &mut Tensor,
    targets: &[u32],
    weights: &[f32],
    scale: f64,
    logits: &mut Tensor,
    losses: &mut Tensor,
) -> f64 {
    let (rows_at_once, v) = (logits.shape()[0], logits.shape()[1]);
    let (t, d) = (h.shape()[0], h.shape()[1]);
    let mut total = 0.0f64;
    let mut chunk_targets = Tensor::zeros(device, &[rows_at_once]);
    let mut scales = Tensor::zeros(device, &[rows_at_once]);
    scales.host_mut().fill(scale as f32);
    for start in (0..t).step_by(rows_at_once) {
        let rows = rows_at_once.min(t - start);
        let span = start * d..(start + rows) * d;
        chunk_targets.write(&targets[start..start + rows]);
        let weights = weights.get(start..start + rows).unwrap_or_default();
        for (scale_of, weight) in scales.host_mut().iter_mut().zip(weights) {
            *scale_of = (scale * f64::from(*weight)) as f32;
        }
        let z = 0..rows * v;
        lm_head.forward(
            device,
            logits.range_mut(z.clone()),
            h.range(span.clone()),
            Store::Overwrite,
        );
        cross_entropy::forward_backward(
            device,
            logits.range_mut(z.clone()),
            losses.range_mut(0..rows),
            chunk_targets.range(0..rows),
            scales.range(0..rows),
        );
        let weight = |row: usize| weights.get(row).map_or(1.0, |w| f64::from(*w));
        let losses = losses.host()[..rows].iter().enumerate();
        total += losses
            .map(|(row, &l)| weight(row) * f64::from(l))
            .sum::<f64>();
        let dz = logits.range(z);
        lm_head.backward_input(device, dh.range_mut(span.clone()), dz, Store::Overwrite);
        lm_head.backward_weight(device, grads, dz, h.range(span));
    }
    total
}
