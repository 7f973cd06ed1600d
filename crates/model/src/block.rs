//! One decoder layer, with its norms before or after its halves:
//!
//! x1 = x0 + Wo attention(qk_norm_rope(Wqkv norm(x0)))      x1 = x0 + norm(Wo attention(.. Wqkv x0))
//! x2 = x1 + mlp(norm(x1))                                  x2 = x1 + norm(mlp(x1))
//!
//! The block owns every activation kept for the backward pass, in [`BlockKept`]; what is not there is
//! working memory in [`BlockScratch`], shared by all layers. Parameter gradients add; activation
//! gradients overwrite, except dx, the gradient of the residual stream, which each half adds to.

use crate::config::{ModelConfig, NormPlacement};
use crate::linear::Linear;
use crate::mlp::{Mlp, MlpKept, MlpScratch};
use crate::moe::{Moe, MoeKept, MoeScratch};
use crate::weights::{AttentionSpans, BlockSpans, Matrices, MlpSpans, Span};
use tensor::ops::attention::{CachedSequence, KvLayer};
use tensor::ops::gemm::Store;
use tensor::ops::qk_norm_rope::{Gains, HeadShape, RopeTable};
use tensor::ops::router::RouterShape;
use tensor::ops::{attention, elementwise, qk_norm_rope, rms_norm};
use tensor::{Compute, Device, Tensor, View};

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
    compute: Compute,
    heads: HeadShape,
    window: Option<usize>,
    has_rope: bool,
    norm_placement: NormPlacement,
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
    h_attn: Tensor,    // (T, D), normed input of attention, or its normed output
    qkv: Tensor,       // (T, (H+2G)*K)
    rstd_qk: Tensor,   // (T, H+G)
    q: Tensor,         // (T, H, K), normed and rotated
    k: Tensor,         // (T, G, K)
    o: Tensor,         // (T, H, K)
    lse: Tensor,       // (T, H)
    x_mid: Tensor,     // (T, D), the stream after attention
    rstd_mlp: Tensor,  // (T)
    h_mlp: Tensor,     // (T, D), normed input of the feed-forward part, or its normed output
    out: Option<HalvesKept>,
    pub(crate) feed_forward: FeedForwardKept,
}

/// What the halves give before it is normed; absent where it is not.
struct HalvesKept {
    attn: Tensor, // (T, D)
    mlp: Tensor,  // (T, D)
}

pub(crate) enum FeedForwardKept {
    Dense(MlpKept),
    Sparse(Box<MoeKept>),
}

/// Working memory of the backward pass.
pub struct BlockScratch {
    dh: Tensor,         // (T, D)
    d_o: Tensor,        // (T, H, K)
    dq: Tensor,         // (T, H, K)
    dk: Tensor,         // (T, G, K)
    dqkv: Tensor,       // (T, (H+2G)*K)
    dy: Option<Tensor>, // (T, D), gradient of a half's output before its norm
    mlp: Option<MlpScratch>,
    moe: Option<MoeScratch>,
}

/// The head sizes of a configuration.
fn head_shape(config: &ModelConfig) -> HeadShape {
    HeadShape {
        num_heads: config.num_attention_heads,
        num_kv_heads: config.num_key_value_heads,
        head_dim: config.head_dim,
    }
}

/// How the ops are told what to multiply in.
pub(crate) fn compute(config: &ModelConfig) -> Compute {
    match config.compute {
        crate::config::Compute::F32 => Compute::F32,
        crate::config::Compute::Bf16 => Compute::Bf16,
    }
}

/// Room for the keys and values of `num_blocks` blocks of a layer.
pub fn kv_layer(device: &Device, config: &ModelConfig, num_blocks: usize) -> KvLayer {
    KvLayer::new(device, compute(config), num_blocks, head_shape(config))
}

impl Block {
    /// A layer of the main model, or with dense spans the prediction layer; all its SwiGLUs are cut at
    /// `swiglu_limit`.
    pub(crate) fn new(
        device: &Device,
        config: &ModelConfig,
        spans: BlockSpans,
        window: Option<usize>,
        swiglu_limit: Option<f32>,
        trains: bool,
        weights: &mut dyn Matrices,
    ) -> Block {
        let (d, compute) = (config.hidden_size, compute(config));
        let qkv_rows = config.q_size() + 2 * config.kv_size();
        let AttentionSpans {
            qkv_proj, o_proj, ..
        } = spans.attention;
        let qkv = Linear::new(device, compute, qkv_proj, qkv_rows, trains, weights);
        let o = Linear::new(device, compute, o_proj, d, trains, weights);
        let feed_forward = match spans.mlp {
            MlpSpans::Dense(spans) => {
                let f = config.intermediate_size;
                let mlp = Mlp::new(device, compute, spans, f, swiglu_limit, d, trains, weights);
                FeedForward::Dense(Box::new(mlp))
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
                let f = config.shared_size();
                let shared = Mlp::new(device, compute, shared, f, swiglu_limit, d, trains, weights);
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
                    swiglu_limit,
                    d,
                    trains,
                    weights,
                )))
            }
        };
        Block {
            spans,
            compute,
            heads: head_shape(config),
            window,
            has_rope: config.has_rope(window),
            norm_placement: config.architecture.norm_placement(),
            eps: config.rms_norm_eps,
            qkv,
            o,
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

    /// Bytes of its matrices: those that every row meets, and those of all experts.
    pub(crate) fn bytes(&self) -> (usize, usize) {
        let attention = self.qkv.bytes() + self.o.bytes();
        match &self.feed_forward {
            FeedForward::Dense(mlp) => (attention + mlp.bytes(), 0),
            FeedForward::Sparse(moe) => {
                let (shared, experts) = moe.bytes();
                (attention + shared, experts)
            }
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
            out: (self.norm_placement == NormPlacement::After).then(|| HalvesKept {
                attn: zeros(d),
                mlp: zeros(d),
            }),
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
            self.compute,
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
        let input = match self.norm_placement {
            NormPlacement::Before => {
                self.norm(
                    device,
                    params,
                    self.spans.attention_norm,
                    &mut kept.h_attn,
                    &mut kept.rstd_attn,
                    x,
                    t,
                );
                &kept.h_attn
            }
            NormPlacement::After => x,
        };
        self.qkv.forward(
            device,
            kept.qkv.rows_mut(t),
            input.rows(t),
            Store::Overwrite,
        );
        qk_norm_rope::forward(
            device,
            kept.q.rows_mut(t),
            kept.k.rows_mut(t),
            kept.rstd_qk.rows_mut(t),
            kept.qkv.rows(t),
            self.gains(params),
            positions.rows(t),
            self.has_rope.then_some(rope),
            self.heads,
            self.eps,
        );
    }

    fn gains<'a>(&self, params: &'a Tensor) -> Option<Gains<'a>> {
        let [q, k] = self.spans.attention.qk_norm?;
        Some(Gains {
            q: params.range(q.range()),
            k: params.range(k.range()),
        })
    }

    /// h = norm(x), for the first `t` rows.
    fn norm(
        &self,
        device: &Device,
        params: &Tensor,
        gain: Span,
        h: &mut Tensor,
        rstd: &mut Tensor,
        x: &Tensor,
        t: usize,
    ) {
        rms_norm::forward(
            device,
            h.rows_mut(t),
            rstd.rows_mut(t),
            x.rows(t),
            params.range(gain.range()),
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
        let BlockKept {
            rstd_attn,
            h_attn,
            o,
            x_mid,
            rstd_mlp,
            h_mlp,
            out,
            feed_forward,
            ..
        } = kept;
        let (attention_norm, mlp_norm) = (self.spans.attention_norm, self.spans.mlp_norm);
        x_mid.copy_rows(x, t);
        match out {
            None => {
                self.o
                    .forward(device, x_mid.rows_mut(t), o.rows(t), Store::Add);
                self.norm(device, params, mlp_norm, h_mlp, rstd_mlp, x_mid, t);
                x_out.copy_rows(x_mid, t);
                self.feed_forward(device, params, x_out, h_mlp, t, Store::Add, feed_forward);
            }
            Some(HalvesKept { attn, mlp }) => {
                self.o
                    .forward(device, attn.rows_mut(t), o.rows(t), Store::Overwrite);
                self.norm(device, params, attention_norm, h_attn, rstd_attn, attn, t);
                elementwise::add(device, x_mid.rows_mut(t), h_attn.rows(t));
                let store = Store::Overwrite;
                self.feed_forward(device, params, mlp, x_mid, t, store, feed_forward);
                self.norm(device, params, mlp_norm, h_mlp, rstd_mlp, mlp, t);
                x_out.copy_rows(x_mid, t);
                elementwise::add(device, x_out.rows_mut(t), h_mlp.rows(t));
            }
        }
    }

    /// y (T, D) = or += mlp(h (T, D)), for the first `t` rows.
    fn feed_forward(
        &self,
        device: &Device,
        params: &Tensor,
        y: &mut Tensor,
        h: &Tensor,
        t: usize,
        store: Store,
        kept: &mut FeedForwardKept,
    ) {
        match (&self.feed_forward, kept) {
            (FeedForward::Dense(mlp), FeedForwardKept::Dense(kept)) => {
                mlp.forward(device, y, h, t, store, kept);
            }
            (FeedForward::Sparse(moe), FeedForwardKept::Sparse(kept)) => {
                moe.forward(device, params, y, h, t, store, kept);
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
            dy,
            mlp: mlp_scratch,
            moe: moe_scratch,
        } = scratch;
        // The second half: from dx, the gradient of x2, to that of x1.
        if let (Some(out), Some(dy)) = (&kept.out, dy.as_mut()) {
            let (x, rstd) = (&out.mlp, &kept.rstd_mlp);
            let store = Store::Overwrite;
            self.norm_backward(
                device,
                params,
                grads,
                spans.mlp_norm,
                dy,
                dx.view(),
                x,
                rstd,
                store,
            );
        }
        let half_out = match (&kept.out, dy.as_ref()) {
            (Some(_), Some(dy)) => dy.view(),
            _ => dx.view(),
        };
        let half_in = match &kept.out {
            Some(_) => &kept.x_mid,
            None => &kept.h_mlp,
        };
        let extended = "scratch was extended for every block";
        match (&self.feed_forward, &kept.feed_forward) {
            (FeedForward::Dense(mlp), FeedForwardKept::Dense(kept)) => {
                let scratch = mlp_scratch.as_mut().expect(extended);
                mlp.backward(device, grads, dh, half_out, half_in, kept, scratch);
            }
            (FeedForward::Sparse(moe), FeedForwardKept::Sparse(kept)) => {
                let scratch = moe_scratch.as_mut().expect(extended);
                let cu_seqlens = seqs.cu_seqlens;
                moe.backward(
                    device, grads, dh, half_out, half_in, cu_seqlens, kept, scratch,
                );
            }
            _ => unreachable!("kept by `Block::kept` of this block"),
        }
        match kept.out {
            Some(_) => elementwise::add(device, dx.view_mut(), dh.view()),
            None => {
                let (x, rstd) = (&kept.x_mid, &kept.rstd_mlp);
                let (gain, store) = (spans.mlp_norm, Store::Add);
                self.norm_backward(device, params, grads, gain, dx, dh.view(), x, rstd, store);
            }
        }

        // The first half: from dx, the gradient of x1, to that of x0.
        if let (Some(out), Some(dy)) = (&kept.out, dy.as_mut()) {
            let (x, rstd) = (&out.attn, &kept.rstd_attn);
            let (gain, store) = (spans.attention_norm, Store::Overwrite);
            self.norm_backward(device, params, grads, gain, dy, dx.view(), x, rstd, store);
        }
        let half_out = match (&kept.out, dy.as_ref()) {
            (Some(_), Some(dy)) => dy.view(),
            _ => dx.view(),
        };
        self.o
            .backward_input(device, d_o.view_mut(), half_out, Store::Overwrite);
        self.o
            .backward_weight(device, grads, half_out, kept.o.view());
        attention::backward(
            device,
            self.compute,
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
            self.gains(params),
            seqs.positions.view(),
            self.has_rope.then_some(seqs.rope),
            self.heads,
        );
        if let Some(spans) = spans.attention.qk_norm {
            for (span, gain) in spans.iter().zip([&dq_gain, &dk_gain]) {
                elementwise::add(device, grads.range_mut(span.range()), gain.view());
            }
        }
        match kept.out {
            Some(_) => {
                self.qkv
                    .backward_input(device, dx.view_mut(), dqkv.view(), Store::Add);
                self.qkv
                    .backward_weight(device, grads, dqkv.view(), x.view());
            }
            None => {
                self.qkv
                    .backward_input(device, dh.view_mut(), dqkv.view(), Store::Overwrite);
                self.qkv
                    .backward_weight(device, grads, dqkv.view(), kept.h_attn.view());
                let (gain, store) = (spans.attention_norm, Store::Add);
                let rstd = &kept.rstd_attn;
                self.norm_backward(device, params, grads, gain, dx, dh.view(), x, rstd, store);
            }
        }
    }

    /// dx (T, D) of h = norm(x) from dh; the gradient of the gain adds.
    fn norm_backward(
        &self,
        device: &Device,
        params: &Tensor,
        grads: &mut Tensor,
        gain: Span,
        dx: &mut Tensor,
        dh: View,
        x: &Tensor,
        rstd: &Tensor,
        store: Store,
    ) {
        rms_norm::backward(
            device,
            dx.view_mut(),
            grads.range_mut(gain.range()),
            dh,
            x.view(),
            rstd.view(),
            params.range(gain.range()),
            store,
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
            dy: (config.architecture.norm_placement() == NormPlacement::After)
                .then(|| zeros(config.hidden_size)),
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
            ("qkv", &self.qkv),
            ("q", &self.q),
            ("k", &self.k),
            ("o", &self.o),
            ("x_mid", &self.x_mid),
        ];
        all.extend(match &self.out {
            None => [("h_attn", &self.h_attn), ("h_mlp", &self.h_mlp)],
            Some(out) => [("attn_out", &out.attn), ("mlp_out", &out.mlp)],
        });
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
