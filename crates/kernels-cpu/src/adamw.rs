//! AdamW: Adam with the weight decay outside of the moments.
//!
//! g' = grad_scale*g
//! m <- beta1*m + (1 - beta1)*g'          v <- beta2*v + (1 - beta2)*g'^2
//! w <- w*(1 - lr*weight_decay) - lr * (m / (1 - beta1^step)) / (sqrt(v / (1 - beta2^step)) + eps)
//!
//! All of w, m, v, g are f32 of one length; `step` counts from 1. `grad_scale` is the factor of
//! gradient clipping (1 when the norm is below the bound).
//! Bound by memory: 16 bytes read and 12 written for each parameter, in one pass.
//! Source: Kingma & Ba 2015, arXiv:1412.6980, algorithm 1; Loshchilov & Hutter 2019,
//! arXiv:1711.05101, algorithm 2, with the schedule's factor inside lr: the decay shrinks with it.
//! No AMSGrad, no low-precision states, no clipping of its own.

use crate::Cpu;
use crate::pool::SharedMut;
use crate::row::{self, for_lanes, load, store};
use crate::simd::Simd;

/// What is the same for all parameters of a group.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Share of the weight taken off per unit of `lr`.
    pub weight_decay: f32,
}

/// The scalars of one step, corrections included.
#[derive(Clone, Copy)]
struct Factors {
    grad_scale: f32,
    beta1: f32,
    beta2: f32,
    one_minus_beta1: f32,
    one_minus_beta2: f32,
    /// lr / (1 - beta1^step)
    step_size: f32,
    /// 1 / sqrt(1 - beta2^step)
    root_correction: f32,
    eps: f32,
    /// 1 - lr * weight_decay
    keep: f32,
}

/// One step of w with moments m and v, from gradient g.
///
/// # Panics
/// When `step` is 0: the corrections would divide by zero.
pub fn step(
    cpu: &Cpu,
    w: &mut [f32],
    m: &mut [f32],
    v: &mut [f32],
    g: &[f32],
    grad_scale: f32,
    p: &AdamW,
    step: u64,
) {
    let len = w.len();
    assert!(
        m.len() == len && v.len() == len && g.len() == len,
        "w, m, v, g have one shape"
    );
    assert!(step > 0, "steps count from 1");
    let factors = factors(p, grad_scale, step);
    let isa = cpu.isa();
    let (w, m, v) = (SharedMut::new(w), SharedMut::new(m), SharedMut::new(v));
    cpu.pool.for_ranges(len, row::grain(1), &|range| {
        let g = &g[range.clone()];
        // SAFETY: ranges are disjoint.
        let (w, m, v) = unsafe {
            (
                w.slice(range.clone()),
                m.slice(range.clone()),
                v.slice(range),
            )
        };
        dispatch!(isa, step_range(
            w: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32], factors: Factors,
        ));
    });
}

/// In f64, because 1 - beta2^step loses most digits of an f32 in the first steps.
fn factors(p: &AdamW, grad_scale: f32, step: u64) -> Factors {
    let step = i32::try_from(step).unwrap_or(i32::MAX);
    let (beta1, beta2) = (f64::from(p.beta1), f64::from(p.beta2));
    let lr = f64::from(p.lr);
    Factors {
        grad_scale,
        beta1: p.beta1,
        beta2: p.beta2,
        one_minus_beta1: (1.0 - beta1) as f32,
        one_minus_beta2: (1.0 - beta2) as f32,
        step_size: (lr / (1.0 - beta1.powi(step))) as f32,
        root_correction: (1.0 / (1.0 - beta2.powi(step)).sqrt()) as f32,
        eps: p.eps,
        keep: (1.0 - lr * f64::from(p.weight_decay)) as f32,
    }
}

/// # Safety
/// As for [`Simd`]; equal lengths.
#[inline(always)]
unsafe fn step_range<S: Simd>(
    w: &mut [f32],
    m: &mut [f32],
    v: &mut [f32],
    g: &[f32],
    factors: Factors,
) {
    let len = w.len();
    let (w, m, v, g) = (w.as_mut_ptr(), m.as_mut_ptr(), v.as_mut_ptr(), g.as_ptr());
    // SAFETY: `i + n <= len`.
    unsafe {
        let grad_scale = S::splat(factors.grad_scale);
        let (beta1, beta2) = (S::splat(factors.beta1), S::splat(factors.beta2));
        let one_minus_beta1 = S::splat(factors.one_minus_beta1);
        let one_minus_beta2 = S::splat(factors.one_minus_beta2);
        let minus_step_size = S::splat(-factors.step_size);
        let root_correction = S::splat(factors.root_correction);
        let (eps, keep) = (S::splat(factors.eps), S::splat(factors.keep));
        for_lanes!(S, len, |i, n| {
            let g = S::mul(load::<S>(g.add(i), n), grad_scale);
            let m_new = S::fma(beta1, load::<S>(m.add(i), n), S::mul(one_minus_beta1, g));
            let share = S::mul(one_minus_beta2, S::mul(g, g));
            let v_new = S::fma(beta2, load::<S>(v.add(i), n), share);
            let root = S::fma(S::sqrt(v_new), root_correction, eps);
            let kept = S::mul(load::<S>(w.add(i), n), keep);
            let w_new = S::fma(minus_step_size, S::div(m_new, root), kept);
            store::<S>(m.add(i), m_new, n);
            store::<S>(v.add(i), v_new, n);
            store::<S>(w.add(i), w_new, n);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::*;

    const PARAMS: AdamW = AdamW {
        lr: 3e-3,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.1,
    };

    #[test]
    fn the_first_step_moves_each_weight_by_the_learning_rate_against_its_gradient() {
        on_every_isa(|cpu| {
            let p = AdamW {
                weight_decay: 0.0,
                ..PARAMS
            };
            let (mut w, mut m, mut v) = ([0.0; 3], [0.0; 3], [0.0; 3]);
            step(cpu, &mut w, &mut m, &mut v, &[1e-3, -5.0, 0.0], 1.0, &p, 1);
            assert!((w[0] + 3e-3).abs() < 1e-7 && (w[1] - 3e-3).abs() < 1e-8 && w[2] == 0.0);
        });
    }

    #[test]
    fn weight_decay_acts_without_a_gradient() {
        on_every_isa(|cpu| {
            let (mut w, mut m, mut v) = ([2.0], [0.0], [0.0]);
            step(cpu, &mut w, &mut m, &mut v, &[0.0], 1.0, &PARAMS, 9);
            assert!((w[0] - 2.0 * (1.0 - 3e-4)).abs() < 2e-7);
        });
    }

    #[test]
    fn the_bits_do_not_depend_on_the_number_of_threads() {
        let len = 70_001;
        let (start, g) = (normal(len, "w"), normal(len, "g"));
        same_bits_on_any_number_of_threads(|cpu| {
            let (mut w, mut m, mut v) = (start.clone(), vec![0.1; len], vec![0.1; len]);
            step(cpu, &mut w, &mut m, &mut v, &g, 1.0, &PARAMS, 3);
            [w, m, v].concat()
        });
    }
}
