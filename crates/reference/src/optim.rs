//! What is done with the gradients: they are clipped, then Muon moves the matrices of the network and
//! AdamW everything else, each by a learning rate that follows a schedule; the routers' biases, which
//! have no gradient, are moved by the load of the experts.
//!
//! [`step`] is all of it but the schedule, on all weights.

use crate::ops::{dot, linear};
use crate::{Tensor, Tensors};

/// The learning rate over the steps of a run: up, level, down.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// Learning rate on the plateau; K-EXAONE's is 3e-4.
    pub lr: f64,
    /// Steps of the way up.
    pub warmup_steps: usize,
    /// Steps of the way down, the last of the run.
    pub decay_steps: usize,
    /// Steps of the run.
    pub steps: usize,
    /// Share of `lr` that is left after the last step.
    pub final_lr_frac: f64,
}

impl Schedule {
    /// Of step 0, 1, ..: both ways are straight lines, and the first step already moves.
    ///
    /// Hu et al. 2024 (MiniCPM), arXiv:2404.06395, section 4, with a line for the decay.
    pub fn lr_at(&self, step: usize) -> f64 {
        let up = (step + 1) as f64 / self.warmup_steps.max(1) as f64;
        let left = self.steps.saturating_sub(step) as f64 / (self.decay_steps + 1) as f64;
        let down = self.final_lr_frac + (1.0 - self.final_lr_frac) * left;
        self.lr * up.min(down).min(1.0)
    }
}

/// g *= min(1, max_norm / |g|) with |g| over all tensors together; -> |g| before.
///
/// Pascanu, Mikolov & Bengio 2013, arXiv:1211.5063, algorithm 1.
pub fn clip(grads: &mut Tensors, max_norm: f64) -> f64 {
    let norm = grads
        .values()
        .map(|g| dot(&g.data, &g.data))
        .sum::<f64>()
        .sqrt();
    let scale = if norm > max_norm {
        max_norm / norm
    } else {
        1.0
    };
    for grad in grads.values_mut() {
        grad.data.iter_mut().for_each(|g| *g *= scale);
    }
    norm
}

/// Settings of AdamW.
#[derive(Clone, Copy, Debug)]
pub struct AdamW {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the mean of the gradients.
    pub beta1: f64,
    /// Decay of the mean of their squares.
    pub beta2: f64,
    /// Added to the root.
    pub eps: f64,
    /// Share of a weight that is taken off, times `lr`.
    pub weight_decay: f64,
}

/// m = beta1 m + (1 - beta1) g    v = beta2 v + (1 - beta2) g^2
/// w -= lr (m / (1 - beta1^step) / (sqrt(v / (1 - beta2^step)) + eps) + weight_decay w)
///
/// `step` counts from 1. Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2.
pub fn adamw(w: &mut [f64], m: &mut [f64], v: &mut [f64], g: &[f64], p: &AdamW, step: i32) {
    for i in 0..w.len() {
        m[i] = p.beta1 * m[i] + (1.0 - p.beta1) * g[i];
        v[i] = p.beta2 * v[i] + (1.0 - p.beta2) * g[i] * g[i];
        let mean = m[i] / (1.0 - p.beta1.powi(step));
        let root = (v[i] / (1.0 - p.beta2.powi(step))).sqrt();
        w[i] -= p.lr * (mean / (root + p.eps) + p.weight_decay * w[i]);
    }
}

/// Settings of Muon.
#[derive(Clone, Copy, Debug)]
pub struct Muon {
    /// Learning rate.
    pub lr: f64,
    /// mu.
    pub momentum: f64,
    /// Whether the gradient is added once more to the momentum.
    pub nesterov: bool,
    /// Share of a weight that is taken off, times `lr`.
    pub weight_decay: f64,
    /// Steps of [`newton_schulz`]: five.
    pub ns_steps: usize,
}

/// m = mu m + g    u = g + mu m with Nesterov, else m
/// w -= lr (0.2 sqrt(max(rows, cols)) newton_schulz(u) + weight_decay w)
///
/// The factor gives the update the size of AdamW's. Jordan et al. 2024 (Muon); Liu et al. 2025
/// (Moonlight), arXiv:2502.16982, section 2.2.
pub fn muon(w: &mut [f64], m: &mut [f64], g: &[f64], cols: usize, p: &Muon) {
    let rows = w.len() / cols;
    let mut u = Vec::with_capacity(w.len());
    for (m, g) in m.iter_mut().zip(g) {
        *m = p.momentum * *m + g;
        u.push(if p.nesterov { g + p.momentum * *m } else { *m });
    }
    let scale = 0.2 * (rows.max(cols) as f64).sqrt();
    for (w, x) in w.iter_mut().zip(newton_schulz(&u, cols, p.ns_steps)) {
        *w -= p.lr * (scale * x + p.weight_decay * *w);
    }
}

/// X = u / |u|, then `steps` times X = a X + (b XX^T + c (XX^T)^2) X: pushes every singular value towards 1.
///
/// u (rows, cols) -> the same shape. The coefficients make small singular values grow fast, at the price
/// of ending between about 0.7 and 1.2 instead of at 1.
pub fn newton_schulz(u: &[f64], cols: usize, steps: usize) -> Vec<f64> {
    const A: f64 = 3.4445;
    const B: f64 = -4.7750;
    const C: f64 = 2.0315;
    let rows = u.len() / cols;
    if rows > cols {
        // The products are smaller on the short side; a transposed matrix has the same singular values.
        return transpose(&newton_schulz(&transpose(u, cols), rows, steps), rows);
    }
    let norm = u.iter().map(|u| u * u).sum::<f64>().sqrt() + 1e-7;
    let mut x: Vec<f64> = u.iter().map(|u| u / norm).collect();
    for _ in 0..steps {
        let gram = linear(&x, &x, cols);
        let square = linear(&gram, &gram, rows); // gram is symmetric
        let polynomial: Vec<f64> = gram
            .iter()
            .zip(&square)
            .map(|(g, s)| B * g + C * s)
            .collect();
        let product = linear(&polynomial, &transpose(&x, cols), rows);
        x = x.iter().zip(&product).map(|(x, p)| A * x + p).collect();
    }
    x
}

/// (rows, cols) -> (cols, rows).
fn transpose(x: &[f64], cols: usize) -> Vec<f64> {
    (0..cols)
        .flat_map(|c| x.iter().skip(c).step_by(cols))
        .copied()
        .collect()
}

/// bias_e += rate * sign(mean load - load_e): an expert with too few tokens becomes likelier to be chosen.
///
/// `load` (E) counts the tokens of a step. DeepSeek-V3, arXiv:2412.19437, section 2.1.2; K-EXAONE's rate
/// is 1e-4.
pub fn expert_bias(bias: &mut [f64], load: &[u64], rate: f64) {
    let mean = load.iter().sum::<u64>() as f64 / load.len() as f64;
    for (bias, &load) in bias.iter_mut().zip(load) {
        let error = mean - load as f64;
        if error != 0.0 {
            *bias += rate * error.signum();
        }
    }
}

/// How a tensor is moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// The matrices of the network: an orthogonal step fits what maps one space onto another.
    Muon,
    /// Embedding and head, whose rows are looked up one by one.
    AdamW,
    /// The gains of the norms: AdamW without weight decay, because they belong near one.
    AdamWWithoutDecay,
    /// The routers' biases.
    ExpertBias,
}

/// How the tensor of a name is moved.
pub fn rule(name: &str, tensor: &Tensor) -> Rule {
    if name.ends_with("e_score_correction_bias") {
        Rule::ExpertBias
    } else if tensor.shape.len() < 2 {
        Rule::AdamWWithoutDecay
    } else if ["model.embed_tokens.weight", "lm_head.weight"].contains(&name) {
        Rule::AdamW
    } else {
        Rule::Muon
    }
}

/// What [`step`] goes by.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Bound on the norm of all gradients together.
    pub max_grad_norm: f64,
    /// Of the matrices.
    pub muon: Muon,
    /// Of the rest.
    pub adamw: AdamW,
    /// Step of [`expert_bias`].
    pub expert_bias_rate: f64,
}

/// Moments of every tensor; those that its rule does not use stay zero.
#[derive(Clone, Debug)]
pub struct State {
    /// The momentum, or the mean of the gradients.
    pub m: Tensors,
    /// The mean of their squares.
    pub v: Tensors,
}

/// Moves all weights; `step` counts from 1, `loads` gives the tokens of each expert by the name of the
/// bias. -> the norm of the gradients before clipping.
pub fn step(
    weights: &mut Tensors,
    state: &mut State,
    grads: &mut Tensors,
    loads: &[(String, Vec<u64>)],
    settings: &Settings,
    step: i32,
) -> f64 {
    let norm = clip(grads, settings.max_grad_norm);
    for (name, tensor) in weights.iter_mut() {
        let rule = rule(name, tensor);
        let (g, w) = (&grads[name].data, &mut tensor.data);
        let no_moments = "moments for every weight";
        let m = &mut state.m.get_mut(name).expect(no_moments).data;
        let v = &mut state.v.get_mut(name).expect(no_moments).data;
        let without_decay = AdamW {
            weight_decay: 0.0,
            ..settings.adamw
        };
        match rule {
            Rule::Muon => muon(w, m, g, tensor.shape[1], &settings.muon),
            Rule::AdamW => adamw(w, m, v, g, &settings.adamw, step),
            Rule::AdamWWithoutDecay => adamw(w, m, v, g, &without_decay, step),
            Rule::ExpertBias => {
                for (_, load) in loads.iter().filter(|(of, _)| of == name) {
                    expert_bias(w, load, settings.expert_bias_rate);
                }
            }
        }
    }
    norm
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::values;

    #[test]
    fn the_learning_rate_rises_stays_and_falls_to_its_last_share() {
        let schedule = Schedule {
            lr: 2.0,
            warmup_steps: 4,
            decay_steps: 4,
            steps: 12,
            final_lr_frac: 0.0,
        };
        let lr: Vec<f64> = (0..12).map(|step| schedule.lr_at(step)).collect();
        let expected = [0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 2.0, 2.0, 1.6, 1.2, 0.8, 0.4];
        assert!(
            lr.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12),
            "{lr:?}"
        );
        let half = Schedule {
            final_lr_frac: 0.5,
            ..schedule
        };
        assert!((half.lr_at(11) - 1.2).abs() < 1e-12 && (half.lr_at(12) - 1.0).abs() < 1e-12);
        let level = Schedule {
            warmup_steps: 0,
            decay_steps: 0,
            ..schedule
        };
        assert!((0..12).all(|step| level.lr_at(step) == 2.0));
    }

    fn tensors(all: &[(&str, &[usize], &[f64])]) -> Tensors {
        let tensor = |(name, shape, data): &(&str, &[usize], &[f64])| {
            let (shape, data) = (shape.to_vec(), data.to_vec());
            (name.to_string(), Tensor { shape, data })
        };
        all.iter().map(tensor).collect()
    }

    #[test]
    fn clipping_shortens_what_is_too_long_and_nothing_else() {
        let mut grads = tensors(&[("a", &[1], &[3.0]), ("b", &[2], &[0.0, -4.0])]);
        let before = grads.clone();
        assert_eq!(clip(&mut grads, 5.0), 5.0);
        assert_eq!(grads, before);
        assert_eq!(clip(&mut grads, 1.0), 5.0);
        assert!(
            (grads["b"].data[1] + 0.8).abs() < 1e-12 && (grads["a"].data[0] - 0.6).abs() < 1e-12
        );
    }

    #[test]
    fn a_step_moves_each_tensor_by_its_rule() {
        let bias = "model.layers.1.mlp.e_score_correction_bias";
        let mut weights = tensors(&[
            ("lm_head.weight", &[1, 2], &[1.0, 1.0]),
            ("model.norm.weight", &[2], &[1.0, 1.0]),
            ("mtp.fc.weight", &[1, 2], &[1.0, 1.0]),
            (bias, &[2], &[0.5, 0.5]),
        ]);
        let mut grads = tensors(&[
            ("lm_head.weight", &[1, 2], &[0.3, -0.3]),
            ("model.norm.weight", &[2], &[0.3, -0.3]),
            ("mtp.fc.weight", &[1, 2], &[0.3, -0.3]),
            (bias, &[2], &[0.0, 0.0]),
        ]);
        let settings = Settings {
            max_grad_norm: 1.0,
            muon: Muon {
                lr: 0.1,
                momentum: 0.95,
                nesterov: true,
                weight_decay: 0.5,
                ns_steps: 5,
            },
            adamw: AdamW {
                lr: 0.1,
                beta1: 0.9,
                beta2: 0.95,
                eps: 1e-12,
                weight_decay: 0.5,
            },
            expert_bias_rate: 0.01,
        };
        let zeros = tensors(&[
            ("lm_head.weight", &[1, 2], &[0.0; 2]),
            ("model.norm.weight", &[2], &[0.0; 2]),
            ("mtp.fc.weight", &[1, 2], &[0.0; 2]),
            (bias, &[2], &[0.0; 2]),
        ]);
        let mut state = State {
            m: zeros.clone(),
            v: zeros,
        };
        let loads = [(bias.to_string(), vec![3, 1])];
        let norm = step(&mut weights, &mut state, &mut grads, &loads, &settings, 1);
        assert!((norm - 0.3 * 6f64.sqrt()).abs() < 1e-12);
        let near = |name: &str, expected: [f64; 2]| {
            let w = &weights[name].data;
            assert!(
                (w[0] - expected[0]).abs() < 1e-6 && (w[1] - expected[1]).abs() < 1e-6,
                "{name} {w:?}"
            );
        };
        near("lm_head.weight", [0.95 - 0.1, 0.95 + 0.1]);
        near("model.norm.weight", [1.0 - 0.1, 1.0 + 0.1]);
        near(bias, [0.49, 0.51]);
        let x = 0.1 * 0.2 * 2f64.sqrt() * newton_schulz(&[1.0, -1.0], 2, 5)[0];
        near("mtp.fc.weight", [0.95 - x, 0.95 + x]);
    }

    #[test]
    fn adamw_moves_by_the_learning_rate_at_first_and_decays_apart_from_the_gradient() {
        let p = AdamW {
            lr: 0.01,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-12,
            weight_decay: 0.1,
        };
        let (mut w, mut m, mut v) = (vec![2.0, 2.0, 2.0], vec![0.0; 3], vec![0.0; 3]);
        adamw(&mut w, &mut m, &mut v, &[5.0, -1e-3, 0.0], &p, 1);
        let kept = 2.0 - 0.01 * 0.1 * 2.0;
        for (w, step) in w.iter().zip([-0.01, 0.01, 0.0]) {
            assert!((w - (kept + step)).abs() < 1e-9, "{w}");
        }
        // Worked by hand: m = 0.9 * 0.5 + 0.1 * 1, v = 0.95 * 1.25 + 0.05 * 1.
        adamw(&mut w[..1], &mut m[..1], &mut v[..1], &[1.0], &p, 2);
        assert!((m[0] - 0.55).abs() < 1e-12 && (v[0] - 1.2375).abs() < 1e-12);
        let first = kept - 0.01;
        let update = (0.55 / 0.19) / (1.2375f64 / 0.0975).sqrt();
        assert!((w[0] - (first - 0.01 * (update + 0.1 * first))).abs() < 1e-9);
    }

    #[test]
    fn newton_schulz_follows_its_polynomial_on_every_singular_value() {
        // For a matrix with orthogonal rows of length s the iteration acts on s alone.
        let polynomial = |s: f64| 3.4445 * s - 4.7750 * s.powi(3) + 2.0315 * s.powi(5);
        let u = [3.0, 0.0, 0.0, 0.0, 4.0, 0.0];
        let expected = (0..5).fold((0.6, 0.8), |(a, b), _| (polynomial(a), polynomial(b)));
        for (u, cols, at) in [(u.to_vec(), 3, (0, 4)), (transpose(&u, 3), 2, (0, 3))] {
            let x = newton_schulz(&u, cols, 5);
            assert!((x[at.0] - expected.0).abs() < 1e-5 && (x[at.1] - expected.1).abs() < 1e-5);
            assert!((0.6..1.3).contains(&x[at.0]), "towards one");
        }
    }

    #[test]
    fn muon_takes_a_step_whose_size_does_not_depend_on_that_of_the_gradient() {
        let p = Muon {
            lr: 0.1,
            momentum: 0.9,
            nesterov: true,
            weight_decay: 0.0,
            ns_steps: 5,
        };
        let step = |factor: f64| {
            let g: Vec<f64> = values(12, 1).iter().map(|g| g * factor).collect();
            let (mut w, mut m) = (vec![0.0; 12], vec![0.0; 12]);
            muon(&mut w, &mut m, &g, 4, &p);
            (w, m)
        };
        let ((small, momentum), (large, _)) = (step(1.0), step(1000.0));
        assert!(small.iter().zip(&large).all(|(a, b)| (a - b).abs() < 1e-6));
        assert_eq!(momentum, values(12, 1));
        let expected = newton_schulz(&values(12, 1), 4, 5);
        for (w, x) in small.iter().zip(expected) {
            assert!((w + 0.1 * 0.2 * 2.0 * x).abs() < 1e-6, "0.2 * sqrt(4)");
        }
    }

    #[test]
    fn an_idle_expert_gains_bias_a_crowded_one_loses_it_and_an_even_one_stays() {
        let mut bias = [0.5, 0.5, 0.5];
        expert_bias(&mut bias, &[0, 10, 5], 0.1);
        assert_eq!(bias, [0.6, 0.4, 0.5]);
    }
}
