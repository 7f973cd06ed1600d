//! The operations, each followed by its derivative.
//!
//! A matrix is its rows one after another, so its height follows from a length and a width. A function
//! `<op>_backward` takes the gradient of the output (`d` + name) and gives the gradients of the inputs;
//! it is the chain rule written out and nothing else.
//!
//! Shapes: T rows (tokens of one sequence), I inputs, O outputs, D hidden size, H query heads,
//! G key-value heads, K head size, F intermediate size, E experts, A experts per token, V vocabulary.

use crate::RopeScaling;

/// y_to = sum_i x_ti w_oi: x (T, I), w (O, I) -> y (T, O), with I = `inputs`.
pub fn linear(x: &[f64], w: &[f64], inputs: usize) -> Vec<f64> {
    let mut y = Vec::with_capacity(x.len() / inputs * (w.len() / inputs));
    for x in x.chunks_exact(inputs) {
        for w in w.chunks_exact(inputs) {
            y.push(dot(x, w));
        }
    }
    y
}

/// dx_ti = sum_o dy_to w_oi, dw_oi = sum_t dy_to x_ti: -> dx (T, I), dw (O, I).
pub fn linear_backward(dy: &[f64], x: &[f64], w: &[f64], inputs: usize) -> (Vec<f64>, Vec<f64>) {
    let outputs = w.len() / inputs;
    let (mut dx, mut dw) = (vec![0.0; x.len()], vec![0.0; w.len()]);
    for (t, dy) in dy.chunks_exact(outputs).enumerate() {
        let row = t * inputs..(t + 1) * inputs;
        for (o, &dy) in dy.iter().enumerate() {
            let weights = o * inputs..(o + 1) * inputs;
            add_scaled(&mut dx[row.clone()], &w[weights.clone()], dy);
            add_scaled(&mut dw[weights], &x[row.clone()], dy);
        }
    }
    (dx, dw)
}

/// x_t = table[ids_t]: table (V, D) -> x (T, D).
pub fn embedding(table: &[f64], ids: &[u32], d: usize) -> Vec<f64> {
    ids.iter()
        .flat_map(|&id| &table[id as usize * d..][..d])
        .copied()
        .collect()
}

/// dtable_v = sum of dx_t over the t with ids_t = v: dx (T, D) -> dtable (V, D).
pub fn embedding_backward(dx: &[f64], ids: &[u32], vocab_size: usize) -> Vec<f64> {
    let d = dx.len() / ids.len().max(1);
    let mut dtable = vec![0.0; vocab_size * d];
    for (t, &id) in ids.iter().enumerate() {
        add_scaled(&mut dtable[id as usize * d..][..d], &dx[t * d..][..d], 1.0);
    }
    dtable
}

/// r = 1 / sqrt(mean_k x_k^2 + eps), y_j = x_j r g_j: x (T, D), gain (D) -> y (T, D).
///
/// Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4.
pub fn rms_norm(x: &[f64], gain: &[f64], eps: f64) -> Vec<f64> {
    let mut y = Vec::with_capacity(x.len());
    for x in x.chunks_exact(gain.len()) {
        let r = reciprocal_rms(x, eps);
        y.extend(x.iter().zip(gain).map(|(x, g)| x * r * g));
    }
    y
}

/// dg_j = sum_t dy_j x_j r, dx_j = r (dy_j g_j - x_j r^2 mean_k(dy_k g_k x_k)): -> dx (T, D), dgain (D).
pub fn rms_norm_backward(dy: &[f64], x: &[f64], gain: &[f64], eps: f64) -> (Vec<f64>, Vec<f64>) {
    let d = gain.len();
    let (mut dx, mut dgain) = (Vec::with_capacity(x.len()), vec![0.0; d]);
    for (x, dy) in x.chunks_exact(d).zip(dy.chunks_exact(d)) {
        let r = reciprocal_rms(x, eps);
        let mean = (0..d).map(|k| dy[k] * gain[k] * x[k]).sum::<f64>() / d as f64;
        for j in 0..d {
            dgain[j] += dy[j] * x[j] * r;
            dx.push(r * (dy[j] * gain[j] - x[j] * r * r * mean));
        }
    }
    (dx, dgain)
}

/// r of [`rms_norm`] for one row.
pub fn reciprocal_rms(x: &[f64], eps: f64) -> f64 {
    1.0 / (dot(x, x) / x.len() as f64 + eps).sqrt()
}

/// theta^(-2i/K) for i in 0..K/2, rounded to f32 as the published code holds them.
///
/// Scaled (`llama3`): with s the turns of a wave within the original length, waves with s below
/// `low_freq_factor` are stretched by `factor`, those with s above `high_freq_factor` stay, and between
/// them the frequency goes over linearly in s. Llama 3.1, as released.
pub fn rope_frequencies(theta: f64, head_dim: usize, scaling: Option<RopeScaling>) -> Vec<f32> {
    let pairs = head_dim / 2;
    let frequency = |i: usize| {
        let plain = theta.powf(-(i as f64) / pairs as f64);
        let Some(s) = scaling else { return plain };
        let turns = s.original_max_position_embeddings as f64 * plain / std::f64::consts::TAU;
        let span = s.high_freq_factor - s.low_freq_factor;
        let share = ((turns - s.low_freq_factor) / span).clamp(0.0, 1.0);
        plain * (share + (1.0 - share) / s.factor)
    };
    (0..pairs).map(|i| frequency(i) as f32).collect()
}

/// Rotates each pair (x_i, x_{i+K/2}) of a head by the angle position * frequency_i.
///
/// x (T, heads, K), positions (T) -> the same shape. `turn` is 1, or -1 to rotate backwards. The angle
/// is a product of two f32, as in the published code: at position 100,000 that rounding is part of what
/// the model has learned. Su et al. 2021, arXiv:2104.09864, in the form that pairs the two halves.
fn rotate(x: &[f64], positions: &[u32], frequencies: &[f32], turn: f64) -> Vec<f64> {
    let half = frequencies.len();
    let mut y = x.to_vec();
    if positions.is_empty() {
        return y;
    }
    for (y, &position) in y.chunks_exact_mut(x.len() / positions.len()).zip(positions) {
        for head in y.chunks_exact_mut(2 * half) {
            for (i, &frequency) in frequencies.iter().enumerate() {
                let angle = f64::from(position as f32 * frequency);
                let (sin, cos) = (turn * angle.sin(), angle.cos());
                let (a, b) = (head[i], head[i + half]);
                head[i] = a * cos - b * sin;
                head[i + half] = b * cos + a * sin;
            }
        }
    }
    y
}

/// Rotary position embedding: x (T, heads, K), positions (T), frequencies (K/2) -> (T, heads, K).
pub fn rope(x: &[f64], positions: &[u32], frequencies: &[f32]) -> Vec<f64> {
    rotate(x, positions, frequencies, 1.0)
}

/// A rotation's derivative is its transpose: the rotation backwards.
pub fn rope_backward(dy: &[f64], positions: &[u32], frequencies: &[f32]) -> Vec<f64> {
    rotate(dy, positions, frequencies, -1.0)
}

/// H, G and K of an attention layer.
#[derive(Clone, Copy, Debug)]
pub struct HeadShape {
    /// H, `num_attention_heads`.
    pub num_heads: usize,
    /// G, `num_key_value_heads`; query head h reads key-value head h / (H / G).
    pub num_kv_heads: usize,
    /// K, `head_dim`.
    pub head_dim: usize,
}

/// The keys that query i sees: itself and those before it, of a window the nearest `window` only.
pub fn visible(i: usize, window: Option<usize>) -> std::ops::RangeInclusive<usize> {
    window.map_or(0, |window| (i + 1).saturating_sub(window))..=i
}

/// p_ij = softmax over the visible j of q_i k_j / sqrt(K): one head's probabilities for one query.
fn probabilities(q: &[f64], k: impl Fn(usize) -> usize, keys: &[f64], sees: &[usize]) -> Vec<f64> {
    let scale = 1.0 / (q.len() as f64).sqrt();
    softmax(
        &sees
            .iter()
            .map(|&j| scale * dot(q, &keys[k(j)..][..q.len()]))
            .collect::<Vec<_>>(),
    )
}

/// o_i = sum_j p_ij v_j for one sequence: q (T, H, K), k and v (T, G, K) -> o (T, H, K).
pub fn attention(
    q: &[f64],
    k: &[f64],
    v: &[f64],
    window: Option<usize>,
    shape: HeadShape,
) -> Vec<f64> {
    let HeadShape {
        num_heads: h,
        num_kv_heads: g,
        head_dim: d,
    } = shape;
    let mut o = vec![0.0; q.len()];
    for i in 0..q.len() / (h * d) {
        let sees: Vec<usize> = visible(i, window).collect();
        for head in 0..h {
            let query = (i * h + head) * d;
            let key = |j: usize| (j * g + head / (h / g)) * d;
            let p = probabilities(&q[query..][..d], key, k, &sees);
            for (&j, p) in sees.iter().zip(p) {
                add_scaled(&mut o[query..][..d], &v[key(j)..][..d], p);
            }
        }
    }
    o
}

/// With dp_ij = do_i v_j and ds_ij = p_ij (dp_ij - sum_l p_il dp_il) / sqrt(K):
/// dq_i = sum_j ds_ij k_j, dk_j = sum_i ds_ij q_i, dv_j = sum_i p_ij do_i.
///
/// -> dq (T, H, K), dk, dv (T, G, K).
pub fn attention_backward(
    d_o: &[f64],
    q: &[f64],
    k: &[f64],
    v: &[f64],
    window: Option<usize>,
    shape: HeadShape,
) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let HeadShape {
        num_heads: h,
        num_kv_heads: g,
        head_dim: d,
    } = shape;
    let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
    let scale = 1.0 / (d as f64).sqrt();
    for i in 0..q.len() / (h * d) {
        let sees: Vec<usize> = visible(i, window).collect();
        for head in 0..h {
            let query = (i * h + head) * d;
            let key = |j: usize| (j * g + head / (h / g)) * d;
            let p = probabilities(&q[query..][..d], key, k, &sees);
            let d_o = &d_o[query..][..d];
            let dp: Vec<f64> = sees.iter().map(|&j| dot(d_o, &v[key(j)..][..d])).collect();
            let mean = dot(&p, &dp);
            for ((&j, p), dp) in sees.iter().zip(p).zip(dp) {
                let ds = p * (dp - mean) * scale;
                add_scaled(&mut dq[query..][..d], &k[key(j)..][..d], ds);
                add_scaled(&mut dk[key(j)..][..d], &q[query..][..d], ds);
                add_scaled(&mut dv[key(j)..][..d], d_o, p);
            }
        }
    }
    (dq, dk, dv)
}

/// h = silu(gate) * up with silu(z) = z sigmoid(z): gate, up (T, F) -> h (T, F).
///
/// With a limit L, gate is min(gate, L) first and up is cut to [-L, L].
/// Shazeer 2020, arXiv:2002.05202; the limit is `swiglu_limits` of K-EXAONE 2.0.
pub fn swiglu(gate: &[f64], up: &[f64], limit: Option<f64>) -> Vec<f64> {
    let limit = limit.unwrap_or(f64::INFINITY);
    gate.iter()
        .zip(up)
        .map(|(&gate, &up)| {
            let (g, u) = (gate.min(limit), up.clamp(-limit, limit));
            g * sigmoid(g) * u
        })
        .collect()
}

/// With g and u as cut and s = sigmoid(g): dgate = dh u s (1 + g (1 - s)), dup = dh g s, and zero for what
/// was cut.
pub fn swiglu_backward(
    dh: &[f64],
    gate: &[f64],
    up: &[f64],
    limit: Option<f64>,
) -> (Vec<f64>, Vec<f64>) {
    let limit = limit.unwrap_or(f64::INFINITY);
    let mut dgate_up = (Vec::with_capacity(gate.len()), Vec::with_capacity(up.len()));
    for ((&dh, &gate), &up) in dh.iter().zip(gate).zip(up) {
        let (g, u) = (gate.min(limit), up.clamp(-limit, limit));
        let s = sigmoid(g);
        let (dgate, dup) = (dh * u * s * (1.0 + g * (1.0 - s)), dh * g * s);
        dgate_up.0.push(if gate > limit { 0.0 } else { dgate });
        dgate_up.1.push(if up.abs() > limit { 0.0 } else { dup });
    }
    dgate_up
}

/// How experts are chosen and weighed.
#[derive(Clone, Copy, Debug)]
pub struct RouterShape {
    /// E.
    pub num_experts: usize,
    /// A.
    pub num_experts_per_tok: usize,
    /// Whether a token's weights are made to sum to one before scaling.
    pub norm_topk_prob: bool,
    /// Factor on the weights.
    pub routed_scaling_factor: f64,
}

/// What the router decides.
#[derive(Clone, Debug)]
pub struct Routing {
    /// (T, E), sigmoid of the logits.
    pub scores: Vec<f64>,
    /// (T, A), best first.
    pub topk_ids: Vec<u32>,
    /// (T, A).
    pub topk_weights: Vec<f64>,
}

/// Keeps the sum of the chosen scores from being zero.
const SUM_EPS: f64 = 1e-20;

/// s = sigmoid(z); the A experts with the largest s + bias are chosen (of equals the first); their
/// weights are s without the bias, made to sum to one if the config says so, times the scaling factor.
///
/// logits (T, E), bias (E). DeepSeek-V3, arXiv:2412.19437, eq. 12-16.
pub fn router(logits: &[f64], bias: &[f64], shape: RouterShape) -> Routing {
    let (e, a) = (shape.num_experts, shape.num_experts_per_tok);
    let scores: Vec<f64> = logits.iter().map(|&z| sigmoid(z)).collect();
    let (mut topk_ids, mut topk_weights) = (vec![], vec![]);
    for s in scores.chunks_exact(e) {
        let mut ids: Vec<usize> = (0..e).collect();
        ids.sort_by(|&i, &j| (s[j] + bias[j]).total_cmp(&(s[i] + bias[i])));
        ids.truncate(a);
        let sum = ids.iter().map(|&i| s[i]).sum::<f64>() + SUM_EPS;
        let divisor = if shape.norm_topk_prob { sum } else { 1.0 };
        topk_weights.extend(
            ids.iter()
                .map(|&i| shape.routed_scaling_factor * s[i] / divisor),
        );
        topk_ids.extend(ids.iter().map(|&i| i as u32));
    }
    Routing {
        scores,
        topk_ids,
        topk_weights,
    }
}

/// With u the chosen scores and U their sum: du_a = scale / U (dw_a - sum_b dw_b u_b / U), or
/// scale dw_a where weights are not normalised; dz = (dscores + du) s (1 - s).
///
/// dtopk_weights (T, A), dscores (T, E) from elsewhere (the balance loss) -> dlogits (T, E). The choice
/// itself, and so the bias, has no gradient.
pub fn router_backward(
    dtopk_weights: &[f64],
    dscores: &[f64],
    routing: &Routing,
    shape: RouterShape,
) -> Vec<f64> {
    let (e, a, scale) = (
        shape.num_experts,
        shape.num_experts_per_tok,
        shape.routed_scaling_factor,
    );
    let mut ds = dscores.to_vec();
    for (t, ids) in routing.topk_ids.chunks_exact(a).enumerate() {
        let dw = &dtopk_weights[t * a..(t + 1) * a];
        let u: Vec<f64> = ids
            .iter()
            .map(|&i| routing.scores[t * e + i as usize])
            .collect();
        let sum = u.iter().sum::<f64>() + SUM_EPS;
        let mean = dot(dw, &u) / sum;
        for (&i, dw) in ids.iter().zip(dw) {
            ds[t * e + i as usize] += if shape.norm_topk_prob {
                scale / sum * (dw - mean)
            } else {
                scale * dw
            };
        }
    }
    ds.iter()
        .zip(&routing.scores)
        .map(|(ds, s)| ds * s * (1.0 - s))
        .collect()
}

/// e^x_i / sum_j e^x_j, with the largest x taken off first so that nothing overflows.
pub fn softmax(x: &[f64]) -> Vec<f64> {
    let largest = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let e: Vec<f64> = x.iter().map(|x| (x - largest).exp()).collect();
    let sum: f64 = e.iter().sum();
    e.iter().map(|e| e / sum).collect()
}

/// 1 / (1 + e^-z).
pub fn sigmoid(z: f64) -> f64 {
    1.0 / (1.0 + (-z).exp())
}

/// sum_i a_i b_i.
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// y += factor x.
pub fn add_scaled(y: &mut [f64], x: &[f64], factor: f64) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += factor * x;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{assert_gradient, values};

    #[test]
    fn linear_has_the_gradient_of_finite_differences() {
        let (x, w, dy) = (values(3 * 4, 1), values(2 * 4, 2), values(3 * 2, 3));
        let (dx, dw) = linear_backward(&dy, &x, &w, 4);
        assert_gradient("x", &dx, &x, |x| dot(&dy, &linear(x, &w, 4)));
        assert_gradient("w", &dw, &w, |w| dot(&dy, &linear(&x, w, 4)));
    }

    #[test]
    fn embedding_has_the_gradient_of_finite_differences_where_a_token_occurs_twice() {
        let (table, ids, dx) = (values(5 * 3, 1), [4, 0, 4], values(3 * 3, 2));
        let dtable = embedding_backward(&dx, &ids, 5);
        assert_gradient("table", &dtable, &table, |table| {
            dot(&dx, &embedding(table, &ids, 3))
        });
    }

    #[test]
    fn rms_norm_has_the_gradient_of_finite_differences() {
        // An epsilon as large as the values, so that a formula without it would be seen.
        let (x, gain, dy, eps) = (values(2 * 5, 1), values(5, 2), values(2 * 5, 3), 0.3);
        let (dx, dgain) = rms_norm_backward(&dy, &x, &gain, eps);
        assert_gradient("x", &dx, &x, |x| dot(&dy, &rms_norm(x, &gain, eps)));
        assert_gradient("gain", &dgain, &gain, |gain| {
            dot(&dy, &rms_norm(&x, gain, eps))
        });
    }

    #[test]
    fn rope_has_the_gradient_of_finite_differences_and_keeps_lengths() {
        let (x, dy, frequencies) = (
            values(3 * 2 * 4, 1),
            values(24, 2),
            rope_frequencies(50.0, 4, None),
        );
        let positions = [0, 7, 100];
        let dx = rope_backward(&dy, &positions, &frequencies);
        assert_gradient("x", &dx, &x, |x| {
            dot(&dy, &rope(x, &positions, &frequencies))
        });
        let y = rope(&x, &positions, &frequencies);
        assert_eq!(y[..8], x[..8], "position 0 is not rotated");
        assert!((dot(&y, &y) - dot(&x, &x)).abs() < 1e-12);
    }

    #[test]
    fn rope_makes_a_product_depend_on_the_distance_alone() {
        let (q, k, frequencies) = (values(6, 1), values(6, 2), rope_frequencies(1e4, 6, None));
        let product = |i, j| dot(&rope(&q, &[i], &frequencies), &rope(&k, &[j], &frequencies));
        assert!((product(9, 4) - product(25, 20)).abs() < 1e-5);
        assert!((product(9, 4) - product(9, 5)).abs() > 1e-3);
    }

    const HEADS: HeadShape = HeadShape {
        num_heads: 4,
        num_kv_heads: 2,
        head_dim: 3,
    };

    #[test]
    fn attention_has_the_gradient_of_finite_differences_with_and_without_a_window() {
        let t = 5;
        let (q, k, v) = (values(t * 12, 1), values(t * 6, 2), values(t * 6, 3));
        let d_o = values(t * 12, 4);
        for window in [None, Some(1), Some(2), Some(5), Some(9)] {
            let (dq, dk, dv) = attention_backward(&d_o, &q, &k, &v, window, HEADS);
            assert_gradient("q", &dq, &q, |q| {
                dot(&d_o, &attention(q, &k, &v, window, HEADS))
            });
            assert_gradient("k", &dk, &k, |k| {
                dot(&d_o, &attention(&q, k, &v, window, HEADS))
            });
            assert_gradient("v", &dv, &v, |v| {
                dot(&d_o, &attention(&q, &k, v, window, HEADS))
            });
        }
    }

    #[test]
    fn sliding_window_ignores_tokens_outside_and_counts_the_token_itself() {
        assert_eq!(visible(5, Some(3)), 3..=5);
        assert_eq!(visible(1, Some(3)), 0..=1);
        let t = 6;
        let (q, k, mut v) = (values(t * 12, 1), values(t * 6, 2), values(t * 6, 3));
        let before = attention(&q, &k, &v, Some(3), HEADS);
        v[2 * 6] += 1.0; // a value of token 2, which tokens 2, 3 and 4 see
        let after = attention(&q, &k, &v, Some(3), HEADS);
        for i in 0..t {
            let same = before[i * 12..(i + 1) * 12] == after[i * 12..(i + 1) * 12];
            assert_eq!(same, !(2..=4).contains(&i), "token {i}");
        }
    }

    #[test]
    fn swiglu_has_the_gradient_of_finite_differences() {
        let (gate, up, dh) = (values(30, 1), values(30, 2), values(30, 3));
        for limit in [None, Some(0.4)] {
            let (dgate, dup) = swiglu_backward(&dh, &gate, &up, limit);
            let of = |gate: &[f64], up: &[f64]| dot(&dh, &swiglu(gate, up, limit));
            assert_gradient("gate", &dgate, &gate, |gate| of(gate, &up));
            assert_gradient("up", &dup, &up, |up| of(&gate, up));
            let cut = |d: &[f64]| d.iter().filter(|&&d| d == 0.0).count();
            let (gates, ups) = (cut(&dgate), cut(&dup));
            assert_eq!(gates > 2 && gates < 28, limit.is_some(), "{gates}");
            assert_eq!(ups > 2 && ups < 28, limit.is_some(), "{ups}");
        }
    }

    #[test]
    fn swiglu_cuts_the_gate_above_and_up_on_both_sides() {
        let (gate, up) = ([9.0, -9.0, 1.0, 1.0, 2.0], [1.0, 1.0, 9.0, -9.0, -2.0]);
        let silu = |x: f64| x * sigmoid(x);
        let expected = [
            silu(2.0),
            silu(-9.0),
            2.0 * silu(1.0),
            -2.0 * silu(1.0),
            -2.0 * silu(2.0),
        ];
        assert_eq!(swiglu(&gate, &up, Some(2.0)), expected);
        let (dgate, dup) = swiglu_backward(&[1.0; 5], &gate, &up, Some(2.0));
        let cut = |d: Vec<f64>| d.iter().map(|&d| d == 0.0).collect::<Vec<_>>();
        assert_eq!(cut(dgate), [true, false, false, false, false]);
        let at_the_limit_is_not = [false, false, true, true, false];
        assert_eq!(cut(dup), at_the_limit_is_not);
    }

    #[test]
    fn router_has_the_gradient_of_finite_differences() {
        let (logits, bias) = (values(3 * 5, 1), values(5, 2));
        let (dw, ds) = (values(3 * 2, 3), values(3 * 5, 4));
        for norm_topk_prob in [true, false] {
            let shape = RouterShape {
                num_experts: 5,
                num_experts_per_tok: 2,
                norm_topk_prob,
                routed_scaling_factor: 2.5,
            };
            let routing = router(&logits, &bias, shape);
            let dlogits = router_backward(&dw, &ds, &routing, shape);
            assert_gradient("logits", &dlogits, &logits, |logits| {
                let routing = router(logits, &bias, shape);
                dot(&dw, &routing.topk_weights) + dot(&ds, &routing.scores)
            });
        }
    }

    #[test]
    fn router_chooses_by_biased_score_best_first_and_weighs_by_the_unbiased() {
        let shape = RouterShape {
            num_experts: 4,
            num_experts_per_tok: 2,
            norm_topk_prob: true,
            routed_scaling_factor: 2.0,
        };
        let routing = router(&[0.0, 0.0, 3.0, -1.0], &[0.0, 0.0, 0.0, 1.0], shape);
        assert_eq!(routing.topk_ids, [3, 2], "0.27 + 1 before 0.95");
        let (low, high) = (sigmoid(-1.0), sigmoid(3.0));
        assert!((routing.topk_weights[0] - 2.0 * low / (low + high)).abs() < 1e-15);
        let ties = router(&[0.0; 4], &[0.5; 4], shape);
        assert_eq!(ties.topk_ids, [0, 1], "of equals the first");
    }
}
