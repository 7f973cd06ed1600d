//! The sparse feed-forward part: routed experts, chosen per token, and one shared expert.
//!
//! z = W_r h (f32)   s = sigmoid(z)   experts = top A of s + bias   w = s[experts], normalised, scaled
//! y = sum_a w_a expert_a(h) + shared(h)
//!
//! No token is dropped: rows are sorted by expert once and run as one grouped product, or where experts are
//! paged ([`crate::experts`]) as one for each part of them that is in memory at a time.
//! Source of the router: DeepSeek-V3, arXiv 2412.19437, section 2.1.2, as published for K-EXAONE.

use crate::experts::{ExpertGroups, ExpertShape, Experts};
use crate::linear::Linear;
use crate::mlp::{Mlp, MlpKept, MlpScratch};
use crate::weights::{Matrices, Span, SwigluSpans};
use tensor::ops::gemm::Store;
use tensor::ops::router::RouterShape;
use tensor::ops::{grouped_gemm, moe_permute, router, swiglu};
use tensor::packed::PackedGroup;
use tensor::{Compute, Device, Tensor, View};

/// Router, experts, shared expert.
pub struct Moe {
    shape: RouterShape,
    compute: Compute,
    hidden_size: usize,
    width: usize,       // F of one expert
    limit: Option<f32>, // where experts cut gate and up
    router: Linear,
    router_bias: Span,
    spans: SwigluSpans,
    forward: Experts,
    backward: Option<ExpertGroups>, // E of (D, 2F), E of (F, D)
    shared: Mlp,
}

/// What the backward pass needs.
pub struct MoeKept {
    scores: Tensor,                   // (T, E)
    logits: Tensor,                   // (T, E)
    pub(crate) topk_ids: Tensor<u32>, // (T, A), best first
    topk_weights: Tensor,             // (T, A)
    pub(crate) offsets: Tensor<u32>,  // (E+1), rows of each expert
    rows: Tensor<u32>,                // (N), token of each row
    pos: Tensor<u32>,                 // (T, A), row of each choice
    gate_up: Tensor,                  // (N, 2F)
    act: Tensor,                      // (N, F)
    out: Tensor,                      // (N, D)
    balance: Tensor,                  // (B, E), or empty
    shared: MlpKept,
}

/// Working memory of the backward pass, shared by all sparse layers.
pub struct MoeScratch {
    dtopk_weights: Tensor, // (T, A)
    dlogits: Tensor,       // (T, E)
    dout: Tensor,          // (N, D), reused for the gradient of the gathered input
    dact: Tensor,          // (N, F)
    dgate_up: Tensor,      // (N, 2F)
    shared: MlpScratch,
}

impl MoeKept {
    /// For up to `t` tokens.
    pub fn new(device: &Device, t: usize, moe: &Moe) -> MoeKept {
        let (e, a) = (moe.shape.num_experts, moe.shape.num_experts_per_tok);
        let (n, d, f) = (t * a, moe.hidden_size, moe.width);
        MoeKept {
            scores: Tensor::zeros(device, &[t, e]),
            logits: Tensor::zeros(device, &[t, e]),
            topk_ids: Tensor::zeros(device, &[t, a]),
            topk_weights: Tensor::zeros(device, &[t, a]),
            offsets: Tensor::zeros(device, &[e + 1]),
            rows: Tensor::zeros(device, &[n]),
            pos: Tensor::zeros(device, &[t, a]),
            gate_up: Tensor::zeros(device, &[n, 2 * f]),
            act: Tensor::zeros(device, &[n, f]),
            out: Tensor::zeros(device, &[n, d]),
            balance: Tensor::zeros(device, &[0, e]),
            shared: MlpKept::new(device, t, moe.shared.width()),
        }
    }
}

impl MoeKept {
    /// By name, for [`crate::block::BlockKept::activations`].
    pub(crate) fn activations(&self) -> Vec<(&'static str, &Tensor)> {
        let mut all = vec![
            ("scores", &self.scores),
            ("topk_weights", &self.topk_weights),
            ("experts gate_up", &self.gate_up),
            ("experts act", &self.act),
            ("experts out", &self.out),
        ];
        all.extend(self.shared.activations());
        all
    }
}

impl MoeScratch {
    /// For `t` tokens.
    pub fn new(device: &Device, t: usize, moe: &Moe) -> MoeScratch {
        let (e, a) = (moe.shape.num_experts, moe.shape.num_experts_per_tok);
        let (n, d, f) = (t * a, moe.hidden_size, moe.width);
        MoeScratch {
            dtopk_weights: Tensor::zeros(device, &[t, a]),
            dlogits: Tensor::zeros(device, &[t, e]),
            dout: Tensor::zeros(device, &[n, d]),
            dact: Tensor::zeros(device, &[n, f]),
            dgate_up: Tensor::zeros(device, &[n, 2 * f]),
            shared: MlpScratch::new(device, t, moe.shared.width()),
        }
    }
}

impl Moe {
    /// The sparse part at the given spans; the routed experts are cut at `limit`, as `shared` says for itself.
    pub(crate) fn new(
        device: &Device,
        compute: Compute,
        shape: RouterShape,
        router: Span,
        router_bias: Span,
        experts: SwigluSpans,
        shared: Mlp,
        width: usize,
        limit: Option<f32>,
        hidden_size: usize,
        trains: bool,
        weights: &mut dyn Matrices,
    ) -> Moe {
        let (e, d, f) = (shape.num_experts, hidden_size, width);
        // The router multiplies in f32 whatever the rest does: a rounded score chooses other experts.
        let router = Linear::new(device, Compute::F32, router, e, trains, weights);
        let forward = Experts::new(
            device,
            ExpertShape {
                num_experts: e,
                hidden_size: d,
                width: f,
                compute,
            },
            experts,
            weights,
        );
        let mut transposed = |all: Span, k: usize| {
            let packed = |span| weights.pack_transposed(device, compute, span, k);
            PackedGroup::of(all.parts(e).map(packed))
        };
        let backward = trains.then(|| ExpertGroups {
            gate_up: transposed(experts.gate_up_proj, d),
            down: transposed(experts.down_proj, f),
        });
        Moe {
            shape,
            compute,
            hidden_size,
            width,
            limit,
            router,
            router_bias,
            spans: experts,
            forward,
            backward,
            shared,
        }
    }

    /// Bytes of router and shared expert, and of all experts.
    pub(crate) fn bytes(&self) -> (usize, usize) {
        (
            self.router.bytes() + self.shared.bytes(),
            self.forward.bytes(),
        )
    }

    /// Packs the present weights.
    ///
    /// # Panics
    /// When experts are paged, which are not trained.
    pub fn refresh(&mut self, device: &Device, params: &Tensor) {
        self.router.refresh(device, params);
        self.shared.refresh(device, params);
        let Experts::Resident(forward) = &mut self.forward else {
            unreachable!("a model that is read is not trained")
        };
        for idx in 0..self.shape.num_experts {
            let part = |all: Span| params.range(all.part(idx, self.shape.num_experts).range());
            let (gate_up, down) = (part(self.spans.gate_up_proj), part(self.spans.down_proj));
            forward.gate_up.pack(device, idx, gate_up);
            forward.down.pack(device, idx, down);
            if let Some(backward) = &mut self.backward {
                backward.gate_up.pack_transposed(device, idx, gate_up);
                backward.down.pack_transposed(device, idx, down);
            }
        }
    }

    /// y (T, D) = or += moe(h (T, D)), for the first `t` rows.
    pub fn forward(
        &self,
        device: &Device,
        params: &Tensor,
        y: &mut Tensor,
        h: &Tensor,
        t: usize,
        store: Store,
        kept: &mut MoeKept,
    ) {
        let n = t * self.shape.num_experts_per_tok;
        self.router
            .forward(device, kept.logits.rows_mut(t), h.rows(t), Store::Overwrite);
        router::forward(
            device,
            kept.scores.rows_mut(t),
            kept.topk_ids.rows_mut(t),
            kept.topk_weights.rows_mut(t),
            kept.logits.rows(t),
            params.range(self.router_bias.range()),
            self.shape,
        );
        moe_permute::permute(
            device,
            kept.offsets.view_mut(),
            kept.rows.rows_mut(n),
            kept.pos.rows_mut(t),
            kept.topk_ids.rows(t),
            self.shape.num_experts,
            self.shape.num_experts_per_tok,
        );
        let (offsets, rows) = (&kept.offsets, &kept.rows);
        let (width, limit) = (self.width, self.limit);
        let (gate_up, act, out) = (&mut kept.gate_up, &mut kept.act, &mut kept.out);
        self.forward
            .for_parts(device, offsets.host(), |experts, groups| {
                // Up to the last row of the part; those of earlier parts are left as they are.
                let borders = experts.start..experts.end + 1;
                let start = offsets.host()[experts.start] as usize;
                let n = offsets.host()[experts.end] as usize;
                grouped_gemm::grouped_matmul(
                    device,
                    gate_up.rows_mut(n),
                    h.rows(t),
                    Some(rows.rows(n)),
                    offsets.range(borders.clone()),
                    groups.gate_up.range(experts.clone()),
                    Store::Overwrite,
                );
                swiglu::forward(
                    device,
                    act.range_mut(start * width..n * width),
                    gate_up.range(2 * start * width..2 * n * width),
                    width,
                    limit,
                );
                grouped_gemm::grouped_matmul(
                    device,
                    out.rows_mut(n),
                    act.rows(n),
                    None,
                    offsets.range(borders),
                    groups.down.range(experts),
                    Store::Overwrite,
                );
            });
        moe_permute::combine(
            device,
            y.rows_mut(t),
            kept.out.rows(n),
            kept.pos.rows(t),
            kept.topk_weights.rows(t),
            self.hidden_size,
            store,
        );
        let store = Store::Add;
        self.shared
            .forward(device, y, h, t, store, &mut kept.shared);
    }

    /// The balance loss of the last forward pass over all rows of `kept`; 0 with `alpha` 0.
    pub fn balance_loss(
        &self,
        device: &Device,
        cu_seqlens: &Tensor<u32>,
        alpha: f32,
        kept: &mut MoeKept,
    ) -> f32 {
        let sequences = if alpha > 0.0 { cu_seqlens.len() - 1 } else { 0 };
        if kept.balance.shape()[0] != sequences {
            kept.balance = Tensor::zeros(device, &[sequences, self.shape.num_experts]);
        }
        if sequences == 0 {
            return 0.0;
        }
        router::balance_loss(
            device,
            kept.balance.view_mut(),
            kept.scores.view(),
            kept.topk_ids.view(),
            cu_seqlens.view(),
            alpha,
            self.shape,
        )
    }

    /// dx (T, D), the gradient of the output -> dh (T, D), overwritten.
    pub fn backward(
        &self,
        device: &Device,
        grads: &mut Tensor,
        dh: &mut Tensor,
        dx: View,
        h: &Tensor,
        cu_seqlens: &Tensor<u32>,
        kept: &MoeKept,
        scratch: &mut MoeScratch,
    ) {
        let (d, f) = (self.hidden_size, self.width);
        let (offsets, rows, pos) = (kept.offsets.view(), kept.rows.view(), kept.pos.view());
        self.shared
            .backward(device, grads, dh, dx, h, &kept.shared, &mut scratch.shared);

        moe_permute::combine_backward(
            device,
            scratch.dout.view_mut(),
            scratch.dtopk_weights.view_mut(),
            dx,
            kept.out.view(),
            pos,
            kept.topk_weights.view(),
            d,
        );
        let backward = self.backward.as_ref();
        let backward = backward.expect("a model made for training packs both ways");
        grouped_gemm::grouped_matmul(
            device,
            scratch.dact.view_mut(),
            scratch.dout.view(),
            None,
            offsets,
            backward.down.view(),
            Store::Overwrite,
        );
        grouped_gemm::grouped_matmul_tn(
            device,
            self.compute,
            grads.range_mut(self.spans.down_proj.range()),
            scratch.dout.view(),
            None,
            kept.act.view(),
            None,
            offsets,
            d,
            f,
        );
        swiglu::backward(
            device,
            scratch.dgate_up.view_mut(),
            scratch.dact.view(),
            kept.gate_up.view(),
            f,
            self.limit,
        );
        grouped_gemm::grouped_matmul_tn(
            device,
            self.compute,
            grads.range_mut(self.spans.gate_up_proj.range()),
            scratch.dgate_up.view(),
            None,
            h.view(),
            Some(rows),
            offsets,
            2 * f,
            d,
        );
        grouped_gemm::grouped_matmul(
            device,
            scratch.dout.view_mut(),
            scratch.dgate_up.view(),
            None,
            offsets,
            backward.gate_up.view(),
            Store::Overwrite,
        );
        moe_permute::unpermute_add(
            device,
            dh.view_mut(),
            scratch.dout.view(),
            pos,
            self.shape.num_experts_per_tok,
            d,
        );

        router::backward(
            device,
            scratch.dlogits.view_mut(),
            scratch.dtopk_weights.view(),
            kept.scores.view(),
            kept.topk_ids.view(),
            kept.balance.view(),
            cu_seqlens.view(),
            self.shape,
        );
        self.router
            .backward_input(device, dh.view_mut(), scratch.dlogits.view(), Store::Add);
        self.router
            .backward_weight(device, grads, scratch.dlogits.view(), h.view());
    }
}
