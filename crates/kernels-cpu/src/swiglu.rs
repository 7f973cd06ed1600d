//! SwiGLU, the gated activation of a feed-forward block: SiLU(gate) * up.
//!
//! forward   s = 1/(1 + e^-g)       h = g*s*u
//! backward  dg = dh*u*s*(1 + g*(1 - s))      du = dh*g*s
//!
//! With a limit L, g is min(gate, L) and u is up between -L and L; dg and du are zero where a value was cut,
//! not where it is L itself. A NaN is not cut: it stays NaN in both directions.
//!
//! Shapes: R rows (tokens, or rows routed to experts), F intermediate; gate_up (R, 2F) holds the F
//! gate columns, then the F up columns of each row, as one product writes them.
//! Bound by memory: forward moves 12RF bytes, backward 20RF.
//! Source: Shazeer 2020, arXiv:2002.05202, eq. 6 (Swish with beta 1) without the projections; the limit is
//! `swiglu_limits` of K-EXAONE 2.0, as `transformers` computes it (pull request 47802).

use crate::Cpu;
use crate::pool::SharedMut;
use crate::row::{self, for_lanes, load, store};
use crate::simd::{Simd, sigmoid};

/// gate_up (R, 2F) -> h (R, F). `limit` is positive.
pub fn forward(cpu: &Cpu, h: &mut [f32], gate_up: &[f32], f: usize, limit: Option<f32>) {
    let rows = check(h.len(), gate_up.len(), f);
    let isa = cpu.isa();
    let h = SharedMut::new(h);
    cpu.pool.for_ranges(rows, row::grain(f), &|rows| {
        // SAFETY: ranges of rows are disjoint.
        let h = unsafe { h.slice(rows.start * f..rows.end * f) };
        let gate_up = &gate_up[rows.start * 2 * f..rows.end * 2 * f];
        dispatch!(isa, forward_rows(
            h: &mut [f32], gate_up: &[f32], f: usize, limit: Option<f32>,
        ));
    });
}

/// dh (R, F), gate_up (R, 2F) -> dgate_up (R, 2F). Overwrites. `limit` is that of [`forward`].
pub fn backward(
    cpu: &Cpu,
    dgate_up: &mut [f32],
    dh: &[f32],
    gate_up: &[f32],
    f: usize,
    limit: Option<f32>,
) {
    let rows = check(dh.len(), gate_up.len(), f);
    assert_eq!(dgate_up.len(), gate_up.len(), "dgate_up is (R, 2F)");
    let isa = cpu.isa();
    let dgate_up = SharedMut::new(dgate_up);
    cpu.pool.for_ranges(rows, row::grain(2 * f), &|rows| {
        // SAFETY: ranges of rows are disjoint.
        let dgate_up = unsafe { dgate_up.slice(rows.start * 2 * f..rows.end * 2 * f) };
        let gate_up = &gate_up[rows.start * 2 * f..rows.end * 2 * f];
        let dh = &dh[rows.start * f..rows.end * f];
        dispatch!(isa, backward_rows(
            dgate_up: &mut [f32], dh: &[f32], gate_up: &[f32], f: usize, limit: Option<f32>,
        ));
    });
}

/// The number of rows.
fn check(h: usize, gate_up: usize, f: usize) -> usize {
    assert!(
        f > 0 && h % f == 0 && gate_up == 2 * h,
        "h is (R, F) and gate_up (R, 2F)"
    );
    h / f
}

/// # Safety
/// As for [`Simd`]; shapes as in [`forward`].
#[inline(always)]
unsafe fn forward_rows<S: Simd>(h: &mut [f32], gate_up: &[f32], f: usize, limit: Option<f32>) {
    // SAFETY: forwarded to the caller.
    unsafe {
        match limit {
            None => forward_each::<S, false>(h, gate_up, f, 0.0),
            Some(limit) => forward_each::<S, true>(h, gate_up, f, limit),
        }
    }
}

/// # Safety
/// As for [`Simd`]; shapes as in [`forward`].
#[inline(always)]
unsafe fn forward_each<S: Simd, const CUT: bool>(
    h: &mut [f32],
    gate_up: &[f32],
    f: usize,
    limit: f32,
) {
    for r in 0..h.len() / f {
        // SAFETY: `i + n <= f`.
        unsafe {
            let (h, gate) = (h.as_mut_ptr().add(r * f), gate_up.as_ptr().add(r * 2 * f));
            let up = gate.add(f);
            for_lanes!(S, f, |i, n| {
                let g = cut_gate::<S, CUT>(load::<S>(gate.add(i), n), limit);
                let u = cut_up::<S, CUT>(load::<S>(up.add(i), n), limit);
                let silu = S::mul(g, sigmoid::<S>(g));
                store::<S>(h.add(i), S::mul(silu, u), n);
            });
        }
    }
}

/// # Safety
/// As for [`Simd`]; shapes as in [`backward`].
#[inline(always)]
unsafe fn backward_rows<S: Simd>(
    dgate_up: &mut [f32],
    dh: &[f32],
    gate_up: &[f32],
    f: usize,
    limit: Option<f32>,
) {
    // SAFETY: forwarded to the caller.
    unsafe {
        match limit {
            None => backward_each::<S, false>(dgate_up, dh, gate_up, f, 0.0),
            Some(limit) => backward_each::<S, true>(dgate_up, dh, gate_up, f, limit),
        }
    }
}

/// # Safety
/// As for [`Simd`]; shapes as in [`backward`].
#[inline(always)]
unsafe fn backward_each<S: Simd, const CUT: bool>(
    dgate_up: &mut [f32],
    dh: &[f32],
    gate_up: &[f32],
    f: usize,
    limit: f32,
) {
    for r in 0..dh.len() / f {
        // SAFETY: `i + n <= f`.
        unsafe {
            let dgate = dgate_up.as_mut_ptr().add(r * 2 * f);
            let (gate, dh) = (gate_up.as_ptr().add(r * 2 * f), dh.as_ptr().add(r * f));
            let (dup, up) = (dgate.add(f), gate.add(f));
            let one = S::splat(1.0);
            for_lanes!(S, f, |i, n| {
                let (gate, up) = (load::<S>(gate.add(i), n), load::<S>(up.add(i), n));
                let g = cut_gate::<S, CUT>(gate, limit);
                let u = cut_up::<S, CUT>(up, limit);
                let dh = load::<S>(dh.add(i), n);
                let s = sigmoid::<S>(g);
                let slope = S::mul(s, S::fma(g, S::sub(one, s), one));
                let mut dg = S::mul(S::mul(dh, u), slope);
                let mut du = S::mul(dh, S::mul(g, s));
                if CUT {
                    let (zero, limit) = (S::splat(0.0), S::splat(limit));
                    dg = S::select_lt(limit, gate, zero, dg);
                    du = S::select_lt(limit, up, zero, du);
                    du = S::select_lt(up, S::sub(zero, limit), zero, du);
                }
                store::<S>(dgate.add(i), dg, n);
                store::<S>(dup.add(i), du, n);
            });
        }
    }
}

/// min(gate, limit). The value stands second: of a NaN and a number, the instructions of x86 return the
/// second, those of Arm the NaN.
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
unsafe fn cut_gate<S: Simd, const CUT: bool>(gate: S::V, limit: f32) -> S::V {
    // SAFETY: forwarded to the caller.
    unsafe {
        if CUT {
            S::min(S::splat(limit), gate)
        } else {
            gate
        }
    }
}

/// `up` between -limit and limit; the value stands second as in [`cut_gate`].
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
unsafe fn cut_up<S: Simd, const CUT: bool>(up: S::V, limit: f32) -> S::V {
    // SAFETY: forwarded to the caller.
    unsafe {
        if CUT {
            S::max(S::splat(-limit), S::min(S::splat(limit), up))
        } else {
            up
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::*;

    #[test]
    fn gates_far_from_zero_stay_finite() {
        on_every_isa(|cpu| {
            let gate_up = [-1e30, -200.0, 200.0, 1e30, 1.0, 1.0, 1.0, 1.0];
            let (mut h, mut d) = ([0.0; 4], [0.0; 8]);
            forward(cpu, &mut h, &gate_up, 4, None);
            backward(cpu, &mut d, &[1.0; 4], &gate_up, 4, None);
            assert!(
                h[0].abs() < 1e-7 && h[1].abs() < 1e-30 && h[2..] == [200.0, 1e30],
                "{h:?}"
            );
            assert!(
                d[..4]
                    .iter()
                    .zip([0.0, 0.0, 1.0, 1.0])
                    .all(|(d, e)| (d - e).abs() < 1e-6)
            );
        });
    }

    #[test]
    fn what_is_cut_has_no_gradient_and_the_limit_itself_is_not_cut() {
        on_every_isa(|cpu| {
            // Columns: gate cut; gate at the limit; gate far below; up cut above, cut below, at both limits.
            let gate = [7.5, 7.0, -1e30, 1.0, 1.0, 1.0, 1.0];
            let up = [1.0, 1.0, 1.0, 1e30, -7.5, 7.0, -7.0];
            let gate_up = [gate, up].concat();
            let (mut h, mut d) = ([0.0; 7], [0.0; 14]);
            forward(cpu, &mut h, &gate_up, 7, Some(7.0));
            backward(cpu, &mut d, &[1.0; 7], &gate_up, 7, Some(7.0));
            let silu = |x: f32| x / (1.0 + (-x).exp());
            let expected = [silu(7.0), silu(7.0), 0.0, 7.0, -7.0, 7.0, -7.0];
            for (column, (h, expected)) in h.iter().zip(expected).enumerate() {
                let scale = if column < 3 { 1.0 } else { silu(1.0) };
                assert!((h - expected * scale).abs() < 1e-5, "{column}: {h}");
            }
            let (dgate, dup) = d.split_at(7);
            let is_cut = |d: &[f32]| d.iter().map(|&d| d == 0.0).collect::<Vec<_>>();
            assert!(dgate[0] == 0.0 && dgate[1] > 0.9, "{dgate:?}");
            assert!(dgate[3..].iter().all(|&d| d != 0.0), "{dgate:?}");
            let cut = [false, false, false, true, true, false, false];
            assert_eq!(is_cut(dup)[3..], cut[3..], "{dup:?}");
            assert!((dup[0] - silu(7.0)).abs() < 1e-5, "the gate as it was cut");
            assert!((dgate[3] - 7.0 * 0.927_670_5).abs() < 1e-5, "{dgate:?}");
        });
    }

    #[test]
    fn a_nan_is_not_cut() {
        on_every_isa(|cpu| {
            // Every lane of a vector and of its tail, and both operands.
            let f = 19;
            let gate_up = |nan: usize| {
                let mut gate_up = vec![1.0; 2 * f];
                gate_up[nan] = f32::NAN;
                gate_up
            };
            for nan in 0..2 * f {
                let (mut h, mut d) = (vec![0.0; f], vec![0.0; 2 * f]);
                forward(cpu, &mut h, &gate_up(nan), f, Some(7.0));
                backward(cpu, &mut d, &vec![1.0; f], &gate_up(nan), f, Some(7.0));
                for (column, h) in h.iter().enumerate() {
                    assert_eq!(h.is_nan(), column == nan % f, "{nan}: {h}");
                }
                assert!(d[nan % f].is_nan(), "{nan}: {d:?}");
            }
        });
    }

    #[test]
    fn a_limit_that_nothing_reaches_changes_no_bit() {
        let (r, f) = (7, 403);
        let (gate_up, dh) = (normal(r * 2 * f, "gu"), normal(r * f, "dh"));
        on_every_isa(|cpu| {
            let run = |limit| {
                let (mut h, mut d) = (vec![0.0; r * f], vec![0.0; r * 2 * f]);
                forward(cpu, &mut h, &gate_up, f, limit);
                backward(cpu, &mut d, &dh, &gate_up, f, limit);
                (bits(&h), bits(&d))
            };
            assert_eq!(run(None), run(Some(100.0)));
        });
    }

    #[test]
    fn a_row_has_the_same_bits_alone_and_on_any_number_of_threads() {
        let (r, f) = (41, 403);
        let (gate_up, dh) = (normal(r * 2 * f, "gu"), normal(r * f, "dh"));
        let run = |cpu: &Cpu, rows: std::ops::Range<usize>| {
            let gate_up = &gate_up[rows.start * 2 * f..rows.end * 2 * f];
            let (mut h, mut d) = (vec![0.0; rows.len() * f], vec![0.0; gate_up.len()]);
            let dh = &dh[rows.start * f..rows.end * f];
            forward(cpu, &mut h, gate_up, f, Some(0.5));
            backward(cpu, &mut d, dh, gate_up, f, Some(0.5));
            (h, d)
        };
        same_bits_on_any_number_of_threads(|cpu| {
            let (h, d) = run(cpu, 0..r);
            for row in [0, 20, 40] {
                let (h1, d1) = run(cpu, row..row + 1);
                assert_eq!(bits(&h1), bits(&h[row * f..][..f]));
                assert_eq!(bits(&d1), bits(&d[row * 2 * f..][..2 * f]));
            }
            [h, d].concat()
        });
    }
}
