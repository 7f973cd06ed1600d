//! One decoder layer, pre-norm:
//!
//! x1 = x0 + Wo attention(qk_norm_rope(Wqkv norm(x0)))
//! x2 = x1 + mlp(norm(x1))
//!
//! The block owns every activation kept for the backward pass, in [`BlockKept`]; what is not there is
//! working memory in [`BlockScratch`], shared by all layers. Parameter gradients add; activation
//! gradients overwrite, except dx, the gradient of the residual stream, which each half adds to.

use crate::config::ModelConfig;
use crate::linear::Linear;
use crate::mlp::{Mlp, MlpKept, MlpScratch};
use crate::moe::{Moe, MoeKept, MoeScratch};
use crate::weights::{BlockSpans, MlpSpans};
use tensor::ops::attention::{CachedSequence, KvLayer};
use tensor::ops::gemm::Store;
use tensor::ops::qk_norm_rope::{HeadShape, RopeTable};
use tensor::ops::router::RouterShape;
use tensor::ops::{attention, qk_norm_rope, rms_norm};
use tensor::{Compute, Device, Tensor};

/// The packed sequences of a step, as every layer sees them.
pub struct Sequences<'a> {
    /// (T), from 0 in each sequence.
    pub positions: &'a Tensor<u32>,
    /// (B+1), first row of each sequence and the end.
    pub cu_seqlens: &'a Tensor<u32>,
    /// Rotary angles for at least the longest sequence.
    pub rope: &'a RopeTable,
}

/// The new rows of a step against a cache, as the layers of one window see them.
pub struct CachedRows<'a> {
    /// T; the tensors below may be longer.
    pub num_rows: usize,
    /// (T), from 0 in each sequence.
    pub positions: &'a Tensor<u32>,
    /// (T), where the key and value of each row go.
    pub slots: &'a Tensor<u32>,
    /// (B), each with its rows and its blocks.
    pub sequences: &'a [CachedSequence<'a>],
    /// Rotary angles for at least the largest position.
    pub rope: &'a RopeTable,
}

/// A decoder layer.
pub struct Block {
    spans: BlockSpans,
    heads: HeadShape,
    window: Option<usize>,
    has_rope: bool,
    eps: f32,
    qkv: Linear,
    o: Linear,
    feed_forward: FeedForward,
}

enum FeedForward {
    Dense(Box<Mlp>),
    Sparse(Box<Moe>),
}

/// Every activation of a layer that its backward pass needs.
pub struct BlockKept {
    rstd_attn: Tensor, // (T)
    h_attn: Tensor,    // (T, D), normed input of attention
    qkv: Tensor,       // (T, (H+2G)*K)
    rstd_qk: Tensor,   // (T, H+G)
    q: Tensor,         // (T, H, K), normed and rotated
    k: Tensor,         // (T, G, K)
    o: Tensor,         // (T, H, K)
    lse: Tensor,       // (T, H)
    x_mid: Tensor,     // (T, D), the stream after attention
    rstd_mlp: Tensor,  // (T)
    h_mlp: Tensor,     // (T, D), normed input of the feed-forward part
    pub(crate) feed_forward: FeedForwardKept,
}

pub(crate) enum FeedForwardKept {
    Dense(MlpKept),
    Sparse(Box<MoeKept>),
}

/// Working memory of the backward pass.
pub struct BlockScratch {
    dh: Tensor,   // (T, D)
    d_o: Tensor,  // (T, H, K)
    dq: Tensor,   // (T, H, K)
    dk: Tensor,   // (T, G, K)
    dqkv: Tensor, // (T, (H+2G)*K)
    mlp: Option<MlpScratch>,
    moe: Option<MoeScratch>,
}

/// The head sizes of a configuration.
pub fn head_shape(config: &ModelConfig) -> HeadShape {
    HeadShape {
        num_heads: config.num_attention_heads,
        num_kv_heads: config.num_key_value_heads,
        head_dim: config.head_dim,
    }
}

/// How the ops are told what to multiply in.
pub fn compute(config: &ModelConfig) -> Compute {
    match config.compute {
        crate::config::Compute::F32 => Compute::F32,
        crate::config::Compute::Bf16 => Compute::Bf16,
    }
}

impl Block {
    /// A layer of the main model, or with `window: None` and dense spans the prediction layer.
    pub fn new(
        device: &Device,
        config: &ModelConfig,
        spans: BlockSpans,
        window: Option<usize>,
        trains: bool,
    ) -> Block {
        let (d, compute) = (config.hidden_size, compute(config));
        let qkv_rows = config.q_size() + 2 * config.kv_size();
        let feed_forward = match spans.mlp {
            MlpSpans::Dense(spans) => {
                let f = config.intermediate_size;
                FeedForward::Dense(Box::new(Mlp::new(device, compute, spans, f, d, trains)))
            }
            MlpSpans::Sparse {
                router,
                router_bias,
                experts,
                shared,
            } => {
                let shape = RouterShape {
                    num_experts: config.num_experts,
                    num_experts_per_tok: config.num_experts_per_tok,
                    norm_topk_prob: config.norm_topk_prob,
                    routed_scaling_factor: config.routed_scaling_factor,
                };
                let shared = Mlp::new(device, compute, shared, config.shared_size(), d, trains);
                let width = config.moe_intermediate_size;
                FeedForward::Sparse(Box::new(Moe::new(
                    device,
                    compute,
                    shape,
                    router,
                    router_bias,
                    experts,
                    shared,
                    width,
                    d,
                    trains,
                )))
            }
        };
        Block {
            spans,
            heads: head_shape(config),
            window,
            has_rope: window.is_some(),
            eps: config.rms_norm_eps,
            qkv: Linear::new(device, compute, spans.attention.qkv_proj, qkv_rows, trains),
            o: Linear::new(device, compute, spans.attention.o_proj, d, trains),
            feed_forward,
        }
    }

    /// Packs the present weights.
    pub fn refresh(&mut self, device: &Device, params: &Tensor) {
        self.qkv.refresh(device, params);
        self.o.refresh(device, params);
        match &mut self.feed_forward {
            FeedForward::Dense(mlp) => mlp.refresh(device, params),
            FeedForward::Sparse(moe) => moe.refresh(device, params),
        }
    }

    /// Whether the feed-forward part has experts.
    pub fn is_sparse(&self) -> bool {
        matches!(self.feed_forward, FeedForward::Sparse(_))
    }

    /// Memory for up to `t` tokens.
    pub fn kept(&self, device: &Device, config: &ModelConfig, t: usize) -> BlockKept {
        let zeros = |width: usize| Tensor::zeros(device, &[t, width]);
        let (d, q_size, kv_size) = (config.hidden_size, config.q_size(), config.kv_size());
        let (h, g) = (self.heads.num_heads, self.heads.num_kv_heads);
        BlockKept {
            rstd_attn: zeros(1),
            h_attn: zeros(d),
            qkv: zeros(q_size + 2 * kv_size),
            rstd_qk: zeros(h + g),
            q: zeros(q_size),
            k: zeros(kv_size),
            o: zeros(q_size),
            lse: zeros(h),
            x_mid: zeros(d),
            rstd_mlp: zeros(1),
            h_mlp: zeros(d),
            feed_forward: match &self.feed_forward {
                FeedForward::Dense(mlp) => {
                    FeedForwardKept::Dense(MlpKept::new(device, t, mlp.width()))
                }
                FeedForward::Sparse(moe) => {
                    FeedForwardKept::Sparse(Box::new(MoeKept::new(device, t, moe)))
                }
            },
        }
    }

    /// Adds to `scratch` what this layer's kind needs and no earlier layer has added.
    pub fn extend_scratch(&self, device: &Device, scratch: &mut BlockScratch, t: usize) {
        match &self.feed_forward {
            FeedForward::Dense(mlp) if scratch.mlp.is_none() => {
                scratch.mlp = Some(MlpScratch::new(device, t, mlp.width()));
            }
            FeedForward::Sparse(moe) if scratch.moe.is_none() => {
                scratch.moe = Some(MoeScratch::new(device, t, moe));
            }
            _ => {}
        }
    }

    /// x (T, D) -> x_out (T, D). Returns the layer's balance loss.
    pub fn forward(
        &self,
        device: &Device,
        params: &Tensor,
        x_out: &mut Tensor,
        x: &Tensor,
        seqs: &Sequences,
        balance_alpha: f32,
        kept: &mut BlockKept,
    ) -> f32 {
        let t = x.shape()[0];
        self.project(device, params, x, t, seqs.positions, seqs.rope, kept);
        attention::forward(
            device,
            kept.o.view_mut(),
            kept.lse.view_mut(),
            kept.q.view(),
            kept.k.view(),
            kept.qkv.view(),
            seqs.cu_seqlens.view(),
            self.window,
            self.heads,
        );
        self.finish(device, params, x_out, x, t, kept);
        match (&self.feed_forward, &mut kept.feed_forward) {
            (FeedForward::Sparse(moe), FeedForwardKept::Sparse(kept)) => {
                moe.balance_loss(device, seqs.cu_seqlens, balance_alpha, kept)
            }
            _ => 0.0,
        }
    }

    /// As [`Block::forward`], for `rows.num_rows` new rows of sequences whose earlier keys and values are in
    /// `cache`; theirs are added to it. The same ops on the same numbers: the same bits.
    pub fn forward_cached(
        &self,
        device: &Device,
        params: &Tensor,
        x_out: &mut Tensor,
        x: &Tensor,
        rows: &CachedRows,
        cache: &mut KvLayer,
        kept: &mut BlockKept,
    ) {
        let t = rows.num_rows;
        self.project(device, params, x, t, rows.positions, rows.rope, kept);
        attention::append_kv(
            device,
            cache,
            kept.k.rows(t),
            kept.qkv.rows(t),
            rows.slots.rows(t),
        );
        attention::forward_cached(
            device,
            kept.o.rows_mut(t),
            kept.q.rows(t),
            cache,
            rows.sequences,
            self.window,
        );
        self.finish(device, params, x_out, x, t, kept);
    }

    /// The part before attention: q, k and v of the first `t` rows of x.
    fn project(
        &self,
        device: &Device,
        params: &Tensor,
        x: &Tensor,
        t: usize,
        positions: &Tensor<u32>,
        rope: &RopeTable,
        kept: &mut BlockKept,
    ) {
        let spans = self.spans;
        rms_norm::forward(
            device,
            kept.h_attn.rows_mut(t),
            kept.rstd_attn.rows_mut(t),
            x.rows(t),
            params.range(spans.input_layernorm.range()),
            self.eps,
        );
        self.qkv.forward(
            device,
            kept.qkv.rows_mut(t),
            kept.h_attn.rows(t),
            Store::Overwrite,
        );
        qk_norm_rope::forward(
            device,
            kept.q.rows_mut(t),
            kept.k.rows_mut(t),
            kept.rstd_qk.rows_mut(t),
            kept.qkv.rows(t),
            params.range(spans.attention.q_norm.range()),
            params.range(spans.attention.k_norm.range()),
            positions.rows(t),
            self.has_rope.then_some(rope),
            self.heads,
            self.eps,
        );
    }

    /// The part after attention: from `kept.o` to the first `t` rows of x_out.
    fn finish(
        &self,
        device: &Device,
        params: &Tensor,
        x_out: &mut Tensor,
        x: &Tensor,
        t: usize,
        kept: &mut BlockKept,
    ) {
        kept.x_mid.copy_rows(x, t);
        self.o
            .forward(device, kept.x_mid.rows_mut(t), kept.o.rows(t), Store::Add);
        rms_norm::forward(
            device,
            kept.h_mlp.rows_mut(t),
            kept.rstd_mlp.rows_mut(t),
            kept.x_mid.rows(t),
            params.range(self.spans.post_attention_layernorm.range()),
            self.eps,
        );
        x_out.copy_rows(&kept.x_mid, t);
        match (&self.feed_forward, &mut kept.feed_forward) {
            (FeedForward::Dense(mlp), FeedForwardKept::Dense(kept_mlp)) => {
                mlp.forward(device, x_out, &kept.h_mlp, t, kept_mlp);
            }
            (FeedForward::Sparse(moe), FeedForwardKept::Sparse(kept_moe)) => {
                moe.forward(device, params, x_out, &kept.h_mlp, t, kept_moe);
            }
            _ => unreachable!("kept by `Block::kept` of this block"),
        }
    }

    /// dx (T, D): in, the gradient of x_out; out, the gradient of x.
    pub fn backward(
        &self,
        device: &Device,
        params: &Tensor,
        grads: &mut Tensor,
        dx: &mut Tensor,
        x: &Tensor,
        seqs: &Sequences,
        kept: &BlockKept,
        scratch: &mut BlockScratch,
    ) {
        let spans = self.spans;
        let BlockScratch {
            dh,
            d_o,
            dq,
            dk,
            dqkv,
            mlp: mlp_scratch,
            moe: moe_scratch,
        } = scratch;
        let extended = "scratch was extended for every block";
        match (&self.feed_forward, &kept.feed_forward) {
            (FeedForward::Dense(mlp), FeedForwardKept::Dense(kept_mlp)) => {
                let scratch = mlp_scratch.as_mut().expect(extended);
                mlp.backward(device, grads, dh, dx.view(), &kept.h_mlp, kept_mlp, scratch);
            }
            (FeedForward::Sparse(moe), FeedForwardKept::Sparse(kept_moe)) => {
                let scratch = moe_scratch.as_mut().expect(extended);
                let h = &kept.h_mlp;
                moe.backward(
                    device,
                    grads,
                    dh,
                    dx.view(),
                    h,
                    seqs.cu_seqlens,
                    kept_moe,
                    scratch,
                );
            }
            _ => unreachable!("kept by `Block::kept` of this block"),
        }
        rms_norm::backward(
            device,
            dx.view_mut(),
            grads.range_mut(spans.post_attention_layernorm.range()),
            dh.view(),
            kept.x_mid.view(),
            kept.rstd_mlp.view(),
            params.range(spans.post_attention_layernorm.range()),
            Store::Add,
        );

        self.o
            .backward_input(device, d_o.view_mut(), dx.view(), Store::Overwrite);
        self.o
            .backward_weight(device, grads, dx.view(), kept.o.view());
        attention::backward(
            device,
            dq.view_mut(),
            dk.view_mut(),
            dqkv.view_mut(),
            d_o.view(),
            kept.o.view(),
            kept.lse.view(),
            kept.q.view(),
            kept.k.view(),
            kept.qkv.view(),
            seqs.cu_seqlens.view(),
            self.window,
            self.heads,
        );
        let (mut dq_gain, mut dk_gain) = (
            Tensor::zeros(device, &[self.heads.head_dim]),
            Tensor::zeros(device, &[self.heads.head_dim]),
        );
        qk_norm_rope::backward(
            device,
            dqkv.view_mut(),
            dq_gain.view_mut(),
            dk_gain.view_mut(),
            dq.view(),
            dk.view(),
            kept.qkv.view(),
            kept.rstd_qk.view(),
            params.range(spans.attention.q_norm.range()),
            params.range(spans.attention.k_norm.range()),
            seqs.positions.view(),
            self.has_rope.then_some(seqs.rope),
            self.heads,
        );
        for (span, gain) in [
            (spans.attention.q_norm, &dq_gain),
            (spans.attention.k_norm, &dk_gain),
        ] {
            tensor::ops::elementwise::add(device, grads.range_mut(span.range()), gain.view());
        }
        self.qkv
            .backward_input(device, dh.view_mut(), dqkv.view(), Store::Overwrite);
        self.qkv
            .backward_weight(device, grads, dqkv.view(), kept.h_attn.view());
        rms_norm::backward(
            device,
            dx.view_mut(),
            grads.range_mut(spans.input_layernorm.range()),
            dh.view(),
            x.view(),
            kept.rstd_attn.view(),
            params.range(spans.input_layernorm.range()),
            Store::Add,
        );
    }
}

impl BlockScratch {
    /// For `t` tokens; [`Block::extend_scratch`] adds what each kind of layer needs.
    pub fn new(device: &Device, config: &ModelConfig, t: usize) -> BlockScratch {
        let zeros = |width: usize| Tensor::zeros(device, &[t, width]);
        let (q_size, kv_size) = (config.q_size(), config.kv_size());
        BlockScratch {
            dh: zeros(config.hidden_size),
            d_o: zeros(q_size),
            dq: zeros(q_size),
            dk: zeros(kv_size),
            dqkv: zeros(q_size + 2 * kv_size),
            mlp: None,
            moe: None,
        }
    }
}

impl BlockKept {
    /// Every activation of the last forward pass by name, to be compared with another implementation's:
    /// (T, width), of experts (N, width) sorted by expert.
    pub fn activations(&self) -> Vec<(&'static str, &Tensor)> {
        let mut all = vec![
            ("h_attn", &self.h_attn),
            ("qkv", &self.qkv),
            ("q", &self.q),
            ("k", &self.k),
            ("o", &self.o),
            ("x_mid", &self.x_mid),
            ("h_mlp", &self.h_mlp),
        ];
        all.extend(match &self.feed_forward {
            FeedForwardKept::Dense(mlp) => mlp.activations(),
            FeedForwardKept::Sparse(moe) => moe.activations(),
        });
        all
    }

    /// Chosen experts (T, A), best first, and rows per expert as offsets (E+1); `None` in dense layers.
    pub fn routing(&self) -> Option<(&Tensor<u32>, &Tensor<u32>)> {
        match &self.feed_forward {
            FeedForwardKept::Dense(_) => None,
            FeedForwardKept::Sparse(moe) => Some((&moe.topk_ids, &moe.offsets)),
        }
    }
}
