//! The layers: operations joined with weights, which are found by their names in the checkpoint.
//!
//! A layer's `<layer>` gives its output and what it kept; `<layer>_backward` takes the gradient of the
//! output, adds the gradients of its weights to `grads`, and gives the gradient of its input. `at` is
//! the common beginning of the names, such as `model.layers.3.self_attn`.
//!
//! block   x' = x + attention(norm(x))    x'' = x' + mlp(norm(x'))      norms before
//!         x' = x + norm(attention(x))    x'' = x' + norm(mlp(x'))      norms after
//!
//! Every function is for one sequence; row t of an array is its token t.

use crate::loss::balance_loss_backward;
use crate::ops::{self, HeadShape, RouterShape, Routing, add_scaled, dot};
use crate::{Config, MlpLayerType, NormPlacement, Tensor, Tensors};

/// A tensor that has to be there.
pub fn tensor<'a>(weights: &'a Tensors, name: &str) -> &'a Tensor {
    weights
        .get(name)
        .unwrap_or_else(|| panic!("the weights have no tensor {name}"))
}

/// Adds to the gradient of a tensor.
pub fn add_grad(grads: &mut Tensors, name: &str, grad: &[f64]) {
    let all = grads
        .get_mut(name)
        .unwrap_or_else(|| panic!("no gradient for {name}"));
    add_scaled(&mut all.data, grad, 1.0);
}

/// y = x W^T with the matrix `name`: x (T, I) -> y (T, O).
pub fn linear(weights: &Tensors, name: &str, x: &[f64]) -> Vec<f64> {
    let w = tensor(weights, name);
    ops::linear(x, &w.data, w.shape[1])
}

/// dy (T, O), x (T, I) -> dx (T, I).
pub fn linear_backward(
    weights: &Tensors,
    grads: &mut Tensors,
    name: &str,
    dy: &[f64],
    x: &[f64],
) -> Vec<f64> {
    let w = tensor(weights, name);
    let (dx, dw) = ops::linear_backward(dy, x, &w.data, w.shape[1]);
    add_grad(grads, name, &dw);
    dx
}

/// The norm with the gain `name`: over the whole row, or over each head where the gain is as short.
pub fn rms_norm(cfg: &Config, weights: &Tensors, name: &str, x: &[f64]) -> Vec<f64> {
    ops::rms_norm(x, &tensor(weights, name).data, cfg.rms_norm_eps)
}

/// dy, x -> dx, all of one shape.
pub fn rms_norm_backward(
    cfg: &Config,
    weights: &Tensors,
    grads: &mut Tensors,
    name: &str,
    dy: &[f64],
    x: &[f64],
) -> Vec<f64> {
    let gain = &tensor(weights, name).data;
    let (dx, dgain) = ops::rms_norm_backward(dy, x, gain, cfg.rms_norm_eps);
    add_grad(grads, name, &dgain);
    dx
}

/// What [`attention`] keeps.
#[derive(Debug)]
pub struct AttentionKept {
    /// (T, D), the input.
    pub h: Vec<f64>,
    /// (T, H, K), before norm and rotation.
    pub q_proj: Vec<f64>,
    /// (T, G, K), before norm and rotation.
    pub k_proj: Vec<f64>,
    /// (T, H, K), normed and rotated.
    pub q: Vec<f64>,
    /// (T, G, K), normed and rotated.
    pub k: Vec<f64>,
    /// (T, G, K).
    pub v: Vec<f64>,
    /// (T, H, K), what the heads gathered.
    pub o: Vec<f64>,
}

fn head_shape(cfg: &Config) -> HeadShape {
    HeadShape {
        num_heads: cfg.num_attention_heads,
        num_kv_heads: cfg.num_key_value_heads,
        head_dim: cfg.head_dim,
    }
}

/// Positions of the tokens, and the frequencies, of a layer that rotates: those with a window, and the
/// others where the configuration says so.
fn rotation(cfg: &Config, window: Option<usize>, tokens: usize) -> Option<(Vec<u32>, Vec<f32>)> {
    (window.is_some() || cfg.full_attention_rope).then(|| {
        let frequencies = ops::rope_frequencies(cfg.rope_theta, cfg.head_dim, cfg.rope_scaling);
        ((0..tokens as u32).collect(), frequencies)
    })
}

/// h (T, D) -> y (T, D): each head's query and key are normed, then rotated, then compared.
pub fn attention(
    cfg: &Config,
    weights: &Tensors,
    at: &str,
    window: Option<usize>,
    h: &[f64],
) -> (Vec<f64>, AttentionKept) {
    let q_proj = linear(weights, &format!("{at}.q_proj.weight"), h);
    let k_proj = linear(weights, &format!("{at}.k_proj.weight"), h);
    let v = linear(weights, &format!("{at}.v_proj.weight"), h);
    let (mut q, mut k) = (q_proj.clone(), k_proj.clone());
    if cfg.has_qk_norm {
        q = rms_norm(cfg, weights, &format!("{at}.q_norm.weight"), &q);
        k = rms_norm(cfg, weights, &format!("{at}.k_norm.weight"), &k);
    }
    if let Some((positions, frequencies)) = rotation(cfg, window, h.len() / cfg.hidden_size) {
        q = ops::rope(&q, &positions, &frequencies);
        k = ops::rope(&k, &positions, &frequencies);
    }
    let o = ops::attention(&q, &k, &v, window, head_shape(cfg));
    let y = linear(weights, &format!("{at}.o_proj.weight"), &o);
    (
        y,
        AttentionKept {
            h: h.to_vec(),
            q_proj,
            k_proj,
            q,
            k,
            v,
            o,
        },
    )
}

/// dy (T, D) -> dh (T, D).
pub fn attention_backward(
    cfg: &Config,
    weights: &Tensors,
    grads: &mut Tensors,
    at: &str,
    window: Option<usize>,
    dy: &[f64],
    kept: &AttentionKept,
) -> Vec<f64> {
    let AttentionKept {
        h,
        q_proj,
        k_proj,
        q,
        k,
        v,
        o,
    } = kept;
    let d_o = linear_backward(weights, grads, &format!("{at}.o_proj.weight"), dy, o);
    let (mut dq, mut dk, dv) = ops::attention_backward(&d_o, q, k, v, window, head_shape(cfg));
    if let Some((positions, frequencies)) = rotation(cfg, window, h.len() / cfg.hidden_size) {
        dq = ops::rope_backward(&dq, &positions, &frequencies);
        dk = ops::rope_backward(&dk, &positions, &frequencies);
    }
    if cfg.has_qk_norm {
        let (q_norm, k_norm) = (format!("{at}.q_norm.weight"), format!("{at}.k_norm.weight"));
        dq = rms_norm_backward(cfg, weights, grads, &q_norm, &dq, q_proj);
        dk = rms_norm_backward(cfg, weights, grads, &k_norm, &dk, k_proj);
    }
    let mut dh = vec![0.0; h.len()];
    for (name, d) in [("q_proj", dq), ("k_proj", dk), ("v_proj", dv)] {
        let share = linear_backward(weights, grads, &format!("{at}.{name}.weight"), &d, h);
        add_scaled(&mut dh, &share, 1.0);
    }
    dh
}

/// What [`mlp`] keeps.
#[derive(Debug)]
pub struct MlpKept {
    /// (T, D), the input.
    pub h: Vec<f64>,
    /// (T, F).
    pub gate: Vec<f64>,
    /// (T, F).
    pub up: Vec<f64>,
    /// (T, F), silu(gate) * up.
    pub act: Vec<f64>,
    /// Where gate and up were cut.
    pub limit: Option<f64>,
}

/// y = W_down (silu(W_gate h) * (W_up h)), gate and up cut at `limit`: h (T, D) -> y (T, D).
pub fn mlp(weights: &Tensors, at: &str, limit: Option<f64>, h: &[f64]) -> (Vec<f64>, MlpKept) {
    let gate = linear(weights, &format!("{at}.gate_proj.weight"), h);
    let up = linear(weights, &format!("{at}.up_proj.weight"), h);
    let act = ops::swiglu(&gate, &up, limit);
    let y = linear(weights, &format!("{at}.down_proj.weight"), &act);
    (
        y,
        MlpKept {
            h: h.to_vec(),
            gate,
            up,
            act,
            limit,
        },
    )
}

/// dy (T, D) -> dh (T, D).
pub fn mlp_backward(
    weights: &Tensors,
    grads: &mut Tensors,
    at: &str,
    dy: &[f64],
    kept: &MlpKept,
) -> Vec<f64> {
    let MlpKept {
        h,
        gate,
        up,
        act,
        limit,
    } = kept;
    let dact = linear_backward(weights, grads, &format!("{at}.down_proj.weight"), dy, act);
    let (dgate, dup) = ops::swiglu_backward(&dact, gate, up, *limit);
    let mut dh = linear_backward(weights, grads, &format!("{at}.gate_proj.weight"), &dgate, h);
    let share = linear_backward(weights, grads, &format!("{at}.up_proj.weight"), &dup, h);
    add_scaled(&mut dh, &share, 1.0);
    dh
}

/// What one expert did.
#[derive(Debug)]
pub struct Visit {
    /// t * A + a of those who chose it, in order.
    pub choices: Vec<usize>,
    /// (choices, D), its output.
    pub out: Vec<f64>,
    /// Of its network.
    pub kept: MlpKept,
}

/// What [`moe`] keeps.
#[derive(Debug)]
pub struct MoeKept {
    /// (T, D), the input.
    pub h: Vec<f64>,
    /// What the router decided.
    pub routing: Routing,
    /// (E).
    pub visits: Vec<Visit>,
    /// Of the shared expert.
    pub shared: Option<MlpKept>,
}

fn router_shape(cfg: &Config) -> RouterShape {
    RouterShape {
        num_experts: cfg.num_experts,
        num_experts_per_tok: cfg.num_experts_per_tok,
        norm_topk_prob: cfg.norm_topk_prob,
        routed_scaling_factor: cfg.routed_scaling_factor,
    }
}

/// y_t = sum over the experts e that the router chose for t of w_te expert_e(h_t), plus shared(h_t).
///
/// h (T, D) -> y (T, D). No expert has a limit on its tokens; the shared one is neither routed nor
/// weighed. DeepSeek-V3, arXiv:2412.19437, section 2.1.2.
/// Every expert cuts at `limit`, the shared one too.
pub fn moe(
    cfg: &Config,
    weights: &Tensors,
    at: &str,
    limit: Option<f64>,
    h: &[f64],
) -> (Vec<f64>, MoeKept) {
    let (d, a) = (cfg.hidden_size, cfg.num_experts_per_tok);
    let logits = linear(weights, &format!("{at}.gate.weight"), h);
    let bias = &tensor(weights, &format!("{at}.e_score_correction_bias")).data;
    let routing = ops::router(&logits, bias, router_shape(cfg));
    let mut y = vec![0.0; h.len()];
    let mut visits = Vec::new();
    for e in 0..cfg.num_experts {
        let chosen = |&choice: &usize| routing.topk_ids[choice] as usize == e;
        let choices: Vec<usize> = (0..routing.topk_ids.len()).filter(chosen).collect();
        let visitors: Vec<f64> = choices
            .iter()
            .flat_map(|&choice| row(h, choice / a, d))
            .copied()
            .collect();
        let (out, kept) = mlp(weights, &format!("{at}.experts.{e}"), limit, &visitors);
        for (i, &choice) in choices.iter().enumerate() {
            let weight = routing.topk_weights[choice];
            add_scaled(row_mut(&mut y, choice / a, d), row(&out, i, d), weight);
        }
        visits.push(Visit { choices, out, kept });
    }
    let shared = (cfg.num_shared_experts > 0).then(|| {
        let (out, kept) = mlp(weights, &format!("{at}.shared_experts"), limit, h);
        add_scaled(&mut y, &out, 1.0);
        kept
    });
    (
        y,
        MoeKept {
            h: h.to_vec(),
            routing,
            visits,
            shared,
        },
    )
}

/// dy (T, D) -> dh (T, D); `balance` is the weight of this sequence's balance loss in the total.
pub fn moe_backward(
    cfg: &Config,
    weights: &Tensors,
    grads: &mut Tensors,
    at: &str,
    dy: &[f64],
    kept: &MoeKept,
    balance: f64,
) -> Vec<f64> {
    let (d, a) = (cfg.hidden_size, cfg.num_experts_per_tok);
    let MoeKept {
        h,
        routing,
        visits,
        shared,
    } = kept;
    let mut dh = vec![0.0; h.len()];
    let mut dtopk_weights = vec![0.0; routing.topk_weights.len()];
    for (e, Visit { choices, out, kept }) in visits.iter().enumerate() {
        let mut dout = vec![0.0; out.len()];
        for (i, &choice) in choices.iter().enumerate() {
            let dy = row(dy, choice / a, d);
            dtopk_weights[choice] = dot(dy, row(out, i, d));
            add_scaled(row_mut(&mut dout, i, d), dy, routing.topk_weights[choice]);
        }
        let dvisitors = mlp_backward(weights, grads, &format!("{at}.experts.{e}"), &dout, kept);
        for (i, &choice) in choices.iter().enumerate() {
            add_scaled(row_mut(&mut dh, choice / a, d), row(&dvisitors, i, d), 1.0);
        }
    }
    if let Some(kept) = shared {
        let share = mlp_backward(weights, grads, &format!("{at}.shared_experts"), dy, kept);
        add_scaled(&mut dh, &share, 1.0);
    }
    let dscores = balance_loss_backward(balance, &routing.scores, &routing.topk_ids, a);
    let dlogits = ops::router_backward(&dtopk_weights, &dscores, routing, router_shape(cfg));
    let share = linear_backward(weights, grads, &format!("{at}.gate.weight"), &dlogits, h);
    add_scaled(&mut dh, &share, 1.0);
    dh
}

fn row(x: &[f64], i: usize, width: usize) -> &[f64] {
    &x[i * width..(i + 1) * width]
}

fn row_mut(x: &mut [f64], i: usize, width: usize) -> &mut [f64] {
    &mut x[i * width..(i + 1) * width]
}

/// What the second half of a block keeps.
#[derive(Debug)]
pub enum FeedForwardKept {
    /// One network.
    Dense(MlpKept),
    /// A router and experts.
    Sparse(MoeKept),
}

/// What [`block`] keeps.
#[derive(Debug)]
pub struct BlockKept {
    window: Option<usize>,
    /// (T, D), the stream before attention.
    pub x: Vec<f64>,
    /// (T, D), what attention gave.
    pub attention_out: Vec<f64>,
    /// (T, D), the stream between the halves.
    pub x_mid: Vec<f64>,
    /// (T, D), what the second half gave.
    pub mlp_out: Vec<f64>,
    /// Of the first half.
    pub attention: AttentionKept,
    /// Of the second half.
    pub feed_forward: FeedForwardKept,
}

impl BlockKept {
    /// The router's decisions, in a sparse block.
    pub fn routing(&self) -> Option<&Routing> {
        match &self.feed_forward {
            FeedForwardKept::Dense(_) => None,
            FeedForwardKept::Sparse(kept) => Some(&kept.routing),
        }
    }
}

/// x (T, D) -> x'' (T, D): a decoder block; `limit` is that of its SwiGLUs.
pub fn block(
    cfg: &Config,
    weights: &Tensors,
    at: &str,
    window: Option<usize>,
    mlp_type: MlpLayerType,
    limit: Option<f64>,
    x: &[f64],
) -> (Vec<f64>, BlockKept) {
    let before = |name: &str, x: &[f64]| match cfg.norm_placement {
        NormPlacement::Before => rms_norm(cfg, weights, &format!("{at}.{name}.weight"), x),
        NormPlacement::After => x.to_vec(),
    };
    let after = |name: &str, y: &[f64]| match cfg.norm_placement {
        NormPlacement::Before => y.to_vec(),
        NormPlacement::After => rms_norm(cfg, weights, &format!("{at}.{name}.weight"), y),
    };
    let [attention_norm, mlp_norm] = cfg.norm_names();
    let (attention_at, mlp_at) = (format!("{at}.self_attn"), format!("{at}.mlp"));

    let h = before(attention_norm, x);
    let (attention_out, attention) = attention(cfg, weights, &attention_at, window, &h);
    let mut x_mid = x.to_vec();
    add_scaled(&mut x_mid, &after(attention_norm, &attention_out), 1.0);

    let h = before(mlp_norm, &x_mid);
    let (mlp_out, feed_forward) = match mlp_type {
        MlpLayerType::Dense => {
            let (y, kept) = mlp(weights, &mlp_at, limit, &h);
            (y, FeedForwardKept::Dense(kept))
        }
        MlpLayerType::Sparse => {
            let (y, kept) = moe(cfg, weights, &mlp_at, limit, &h);
            (y, FeedForwardKept::Sparse(kept))
        }
    };
    let mut x_out = x_mid.clone();
    add_scaled(&mut x_out, &after(mlp_norm, &mlp_out), 1.0);
    (
        x_out,
        BlockKept {
            window,
            x: x.to_vec(),
            attention_out,
            x_mid,
            mlp_out,
            attention,
            feed_forward,
        },
    )
}

/// dx'' (T, D) -> dx (T, D). Each half adds its share to what flows past it.
pub fn block_backward(
    cfg: &Config,
    weights: &Tensors,
    grads: &mut Tensors,
    at: &str,
    dx: &[f64],
    kept: &BlockKept,
    balance: f64,
) -> Vec<f64> {
    let [attention_norm, mlp_norm] = cfg.norm_names();
    let (attention_at, mlp_at) = (format!("{at}.self_attn"), format!("{at}.mlp"));
    let mut dx = dx.to_vec();

    let dy = norm_after_backward(cfg, weights, grads, at, mlp_norm, &dx, &kept.mlp_out);
    let dh = match &kept.feed_forward {
        FeedForwardKept::Dense(kept) => mlp_backward(weights, grads, &mlp_at, &dy, kept),
        FeedForwardKept::Sparse(kept) => {
            moe_backward(cfg, weights, grads, &mlp_at, &dy, kept, balance)
        }
    };
    let share = norm_before_backward(cfg, weights, grads, at, mlp_norm, &dh, &kept.x_mid);
    add_scaled(&mut dx, &share, 1.0);

    let dy = norm_after_backward(
        cfg,
        weights,
        grads,
        at,
        attention_norm,
        &dx,
        &kept.attention_out,
    );
    let (attention, window) = (&kept.attention, kept.window);
    let dh = attention_backward(cfg, weights, grads, &attention_at, window, &dy, attention);
    let share = norm_before_backward(cfg, weights, grads, at, attention_norm, &dh, &kept.x);
    add_scaled(&mut dx, &share, 1.0);
    dx
}

/// The gradient through the norm on what a half reads, where there is one: dh, x -> dx.
fn norm_before_backward(
    cfg: &Config,
    weights: &Tensors,
    grads: &mut Tensors,
    at: &str,
    name: &str,
    dh: &[f64],
    x: &[f64],
) -> Vec<f64> {
    match cfg.norm_placement {
        NormPlacement::Before => {
            let name = format!("{at}.{name}.weight");
            rms_norm_backward(cfg, weights, grads, &name, dh, x)
        }
        NormPlacement::After => dh.to_vec(),
    }
}

/// The gradient through the norm on what a half adds, where there is one: dx, y -> dy.
fn norm_after_backward(
    cfg: &Config,
    weights: &Tensors,
    grads: &mut Tensors,
    at: &str,
    name: &str,
    dx: &[f64],
    y: &[f64],
) -> Vec<f64> {
    match cfg.norm_placement {
        NormPlacement::Before => dx.to_vec(),
        NormPlacement::After => {
            let name = format!("{at}.{name}.weight");
            rms_norm_backward(cfg, weights, grads, &name, dx, y)
        }
    }
}
