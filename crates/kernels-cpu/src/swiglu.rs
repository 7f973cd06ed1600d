//! SwiGLU, the gated activation of a feed-forward block: SiLU(gate) * up.
//!
//! forward   s = 1/(1 + e^-g)       h = g*s*u
//! backward  dg = dh*u*s*(1 + g*(1 - s))      du = dh*g*s
//!
//! Shapes: R rows (tokens, or rows routed to experts), F intermediate; gate_up (R, 2F) holds the F
//! gate columns, then the F up columns of each row, as one product writes them.
//! Bound by memory: forward moves 12RF bytes, backward 20RF.
//! Source: Shazeer 2020, arXiv:2002.05202, eq. 6 (Swish with beta 1) without the projections.

use crate::Cpu;
use crate::pool::SharedMut;
use crate::row::{self, for_lanes, load, store};
use crate::simd::{Simd, sigmoid};

/// gate_up (R, 2F) -> h (R, F).
pub fn forward(cpu: &Cpu, h: &mut [f32], gate_up: &[f32], f: usize) {
    let rows = check(h.len(), gate_up.len(), f);
    let isa = cpu.isa();
    let h = SharedMut::new(h);
    cpu.pool.for_ranges(rows, row::grain(f), &|rows| {
        // SAFETY: ranges of rows are disjoint.
        let h = unsafe { h.slice(rows.start * f..rows.end * f) };
        let gate_up = &gate_up[rows.start * 2 * f..rows.end * 2 * f];
        dispatch!(isa, forward_rows(h: &mut [f32], gate_up: &[f32], f: usize));
    });
}

/// dh (R, F), gate_up (R, 2F) -> dgate_up (R, 2F). Overwrites.
pub fn backward(cpu: &Cpu, dgate_up: &mut [f32], dh: &[f32], gate_up: &[f32], f: usize) {
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
            dgate_up: &mut [f32], dh: &[f32], gate_up: &[f32], f: usize,
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
unsafe fn forward_rows<S: Simd>(h: &mut [f32], gate_up: &[f32], f: usize) {
    for r in 0..h.len() / f {
        // SAFETY: `i + n <= f`.
        unsafe {
            let (h, gate) = (h.as_mut_ptr().add(r * f), gate_up.as_ptr().add(r * 2 * f));
            let up = gate.add(f);
            for_lanes!(S, f, |i, n| {
                let g = load::<S>(gate.add(i), n);
                let silu = S::mul(g, sigmoid::<S>(g));
                store::<S>(h.add(i), S::mul(silu, load::<S>(up.add(i), n)), n);
            });
        }
    }
}

/// # Safety
/// As for [`Simd`]; shapes as in [`backward`].
#[inline(always)]
unsafe fn backward_rows<S: Simd>(dgate_up: &mut [f32], dh: &[f32], gate_up: &[f32], f: usize) {
    for r in 0..dh.len() / f {
        // SAFETY: `i + n <= f`.
        unsafe {
            let dgate = dgate_up.as_mut_ptr().add(r * 2 * f);
            let (gate, dh) = (gate_up.as_ptr().add(r * 2 * f), dh.as_ptr().add(r * f));
            let (dup, up) = (dgate.add(f), gate.add(f));
            let one = S::splat(1.0);
            for_lanes!(S, f, |i, n| {
                let g = load::<S>(gate.add(i), n);
                let dh = load::<S>(dh.add(i), n);
                let s = sigmoid::<S>(g);
                let slope = S::mul(s, S::fma(g, S::sub(one, s), one));
                let dg = S::mul(S::mul(dh, load::<S>(up.add(i), n)), slope);
                store::<S>(dgate.add(i), dg, n);
                store::<S>(dup.add(i), S::mul(dh, S::mul(g, s)), n);
            });
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
            forward(cpu, &mut h, &gate_up, 4);
            backward(cpu, &mut d, &[1.0; 4], &gate_up, 4);
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
    fn a_row_has_the_same_bits_alone_and_on_any_number_of_threads() {
        let (r, f) = (41, 403);
        let (gate_up, dh) = (normal(r * 2 * f, "gu"), normal(r * f, "dh"));
        let run = |cpu: &Cpu, rows: std::ops::Range<usize>| {
            let gate_up = &gate_up[rows.start * 2 * f..rows.end * 2 * f];
            let (mut h, mut d) = (vec![0.0; rows.len() * f], vec![0.0; gate_up.len()]);
            forward(cpu, &mut h, gate_up, f);
            backward(cpu, &mut d, &dh[rows.start * f..rows.end * f], gate_up, f);
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
