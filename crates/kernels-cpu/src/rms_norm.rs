//! RMSNorm: scale each token's vector to unit root-mean-square, then by a learned gain.
//!
//! forward   r = 1/sqrt(mean_k(x_k^2) + eps)   y_j = x_j*r*g_j
//! backward  dg_j += dy_j*x_j*r                dx_j = r*(dy_j*g_j - x_j*r^2 * mean_k(dy_k*g_k*x_k))
//!
//! Shapes: T tokens, D hidden_size. `rstd` (T) is r, kept for backward. All sums are f32.
//! Bound by memory: a row is read once from memory (the second sweep finds it in the cache);
//! forward moves 8TD bytes, with the residual addition 16TD, backward 12TD, or 16TD when it adds.
//! Source: Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4; eps inside the root as published.
//!
//! dg is a sum over rows. Blocks of [`BLOCK_ROWS`] rows each sum their own rows in order, then the
//! blocks are added in order: neither depends on the number of threads. No subtraction of the mean,
//! no bias.

use crate::pool::SharedMut;
use crate::row::{self, fold_lanes, for_lanes, load, store};
use crate::simd::Simd;
use crate::{Cpu, Store};
use std::cell::RefCell;

/// Rows whose share of dg is summed before the shares are: a partial row of 384 values is then
/// written 1.6% as often as x is read.
const BLOCK_ROWS: usize = 64;

thread_local! {
    /// Partial sums of dg (T / BLOCK_ROWS, D).
    static PARTIAL: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// x (T, D), gain (D) -> y (T, D), rstd (T).
pub fn forward(cpu: &Cpu, y: &mut [f32], rstd: &mut [f32], x: &[f32], gain: &[f32], eps: f32) {
    let d = gain.len();
    check(d, rstd.len(), x.len(), y.len());
    let isa = cpu.isa();
    let (len, y, rstd) = (rstd.len(), SharedMut::new(y), SharedMut::new(rstd));
    cpu.pool.for_ranges(len, row::grain(d), &|rows| {
        let x = &x[rows.start * d..rows.end * d];
        // SAFETY: ranges of rows are disjoint.
        let (y, rstd) = unsafe { (y.slice(rows.start * d..rows.end * d), rstd.slice(rows)) };
        dispatch!(isa, forward_rows(
            y: &mut [f32], rstd: &mut [f32], x: &[f32], gain: &[f32], eps: f32,
        ));
    });
}

/// x += r, then as [`forward`]: r (T, D), x (T, D) -> x (T, D), y (T, D), rstd (T).
pub fn forward_residual(
    cpu: &Cpu,
    y: &mut [f32],
    rstd: &mut [f32],
    x: &mut [f32],
    r: &[f32],
    gain: &[f32],
    eps: f32,
) {
    let d = gain.len();
    check(d, rstd.len(), x.len(), y.len());
    assert_eq!(r.len(), x.len(), "r is (T, D)");
    let isa = cpu.isa();
    let (len, x) = (rstd.len(), SharedMut::new(x));
    let (y, rstd) = (SharedMut::new(y), SharedMut::new(rstd));
    cpu.pool.for_ranges(len, row::grain(d), &|rows| {
        let values = rows.start * d..rows.end * d;
        let r = &r[values.clone()];
        // SAFETY: ranges of rows are disjoint.
        let (y, rstd, x) = unsafe { (y.slice(values.clone()), rstd.slice(rows), x.slice(values)) };
        dispatch!(isa, forward_residual_rows(
            y: &mut [f32], rstd: &mut [f32], x: &mut [f32], r: &[f32], gain: &[f32], eps: f32,
        ));
    });
}

/// dy (T, D), x (T, D), rstd (T), gain (D) -> dx (T, D), dgain (D). Adds to dgain; dx as `store`
/// says (`Add` for a residual stream that already carries a gradient).
pub fn backward(
    cpu: &Cpu,
    dx: &mut [f32],
    dgain: &mut [f32],
    dy: &[f32],
    x: &[f32],
    rstd: &[f32],
    gain: &[f32],
    store: Store,
) {
    let d = gain.len();
    check(d, rstd.len(), x.len(), dx.len());
    assert!(
        dy.len() == x.len() && dgain.len() == d,
        "dy is (T, D) and dgain (D)"
    );
    let isa = cpu.isa();
    let adds = store == Store::Add;
    let dx = SharedMut::new(dx);
    let num_blocks = rstd.len().div_ceil(BLOCK_ROWS);
    row::with_scratch(&PARTIAL, num_blocks * d, |partial| {
        let shared = SharedMut::new(partial);
        cpu.pool.for_ranges(rstd.len(), BLOCK_ROWS, &|rows| {
            let values = rows.start * d..rows.end * d;
            let blocks = rows.start / BLOCK_ROWS..rows.end.div_ceil(BLOCK_ROWS);
            let (dy, x, rstd) = (&dy[values.clone()], &x[values.clone()], &rstd[rows]);
            // SAFETY: ranges of rows are disjoint and begin where a block begins.
            let (dx, partial) = unsafe {
                (
                    dx.slice(values),
                    shared.slice(blocks.start * d..blocks.end * d),
                )
            };
            dispatch!(isa, backward_rows(
                dx: &mut [f32], partial: &mut [f32], dy: &[f32], x: &[f32], rstd: &[f32],
                gain: &[f32], adds: bool,
            ));
        });
        let (partial, dgain) = (&*partial, SharedMut::new(dgain));
        cpu.pool
            .for_ranges(d, row::column_grain(num_blocks), &|columns| {
                let first = columns.start;
                // SAFETY: ranges of columns are disjoint.
                let dgain = unsafe { dgain.slice(columns) };
                dispatch!(isa, add_partial(
                    dgain: &mut [f32], partial: &[f32], d: usize, first: usize,
                ));
            });
    });
}

fn check(d: usize, rows: usize, x: usize, y: usize) {
    assert!(
        d > 0 && x == rows * d && y == x,
        "x and y are (T, D), rstd (T), gain (D)"
    );
}

/// # Safety
/// As for [`Simd`]; shapes as in [`forward`].
#[inline(always)]
unsafe fn forward_rows<S: Simd>(
    y: &mut [f32],
    rstd: &mut [f32],
    x: &[f32],
    gain: &[f32],
    eps: f32,
) {
    let d = gain.len();
    for t in 0..rstd.len() {
        // SAFETY: `i + n <= d`.
        unsafe {
            let (y, x) = (y.as_mut_ptr().add(t * d), x.as_ptr().add(t * d));
            let squares = fold_lanes!(S, d, 0.0, |acc, i, n| {
                let x = load::<S>(x.add(i), n);
                S::fma(x, x, acc)
            });
            rstd[t] = 1.0 / (row::sum::<S>(squares) / d as f32 + eps).sqrt();
            scale_row::<S>(y, x, gain, rstd[t]);
        }
    }
}

/// # Safety
/// As for [`Simd`]; shapes as in [`forward_residual`].
#[inline(always)]
unsafe fn forward_residual_rows<S: Simd>(
    y: &mut [f32],
    rstd: &mut [f32],
    x: &mut [f32],
    r: &[f32],
    gain: &[f32],
    eps: f32,
) {
    let d = gain.len();
    for t in 0..rstd.len() {
        // SAFETY: `i + n <= d`.
        unsafe {
            let (y, x) = (y.as_mut_ptr().add(t * d), x.as_mut_ptr().add(t * d));
            let r = r.as_ptr().add(t * d);
            let squares = fold_lanes!(S, d, 0.0, |acc, i, n| {
                let sum = S::add(load::<S>(x.add(i), n), load::<S>(r.add(i), n));
                store::<S>(x.add(i), sum, n);
                S::fma(sum, sum, acc)
            });
            rstd[t] = 1.0 / (row::sum::<S>(squares) / d as f32 + eps).sqrt();
            scale_row::<S>(y, x, gain, rstd[t]);
        }
    }
}

/// y = x * rstd * gain for one row.
///
/// # Safety
/// As for [`Simd`]; y and x have the length of gain.
#[inline(always)]
unsafe fn scale_row<S: Simd>(y: *mut f32, x: *const f32, gain: &[f32], rstd: f32) {
    let (d, gain) = (gain.len(), gain.as_ptr());
    // SAFETY: `i + n <= d`.
    unsafe {
        let rstd = S::splat(rstd);
        for_lanes!(S, d, |i, n| {
            let unit = S::mul(load::<S>(x.add(i), n), rstd);
            store::<S>(y.add(i), S::mul(unit, load::<S>(gain.add(i), n)), n);
        });
    }
}

/// # Safety
/// As for [`Simd`]; shapes as in [`backward`]; partial has a row for each block begun.
#[inline(always)]
unsafe fn backward_rows<S: Simd>(
    dx: &mut [f32],
    partial: &mut [f32],
    dy: &[f32],
    x: &[f32],
    rstd: &[f32],
    gain: &[f32],
    adds: bool,
) {
    let d = gain.len();
    partial.fill(0.0);
    for t in 0..rstd.len() {
        let partial = partial[t / BLOCK_ROWS * d..][..d].as_mut_ptr();
        let dx = dx[t * d..][..d].as_mut_ptr();
        let (dy, x) = (dy[t * d..][..d].as_ptr(), x[t * d..][..d].as_ptr());
        let gain = gain.as_ptr();
        // SAFETY: `i + n <= d`.
        unsafe {
            let dot = fold_lanes!(S, d, 0.0, |acc, i, n| {
                let dy_gain = S::mul(load::<S>(dy.add(i), n), load::<S>(gain.add(i), n));
                S::fma(dy_gain, load::<S>(x.add(i), n), acc)
            });
            let pull = S::splat(-rstd[t] * rstd[t] * (row::sum::<S>(dot) / d as f32));
            let rstd = S::splat(rstd[t]);
            for_lanes!(S, d, |i, n| {
                let (dy, x) = (load::<S>(dy.add(i), n), load::<S>(x.add(i), n));
                let dy_gain = S::mul(dy, load::<S>(gain.add(i), n));
                let mut out = S::mul(rstd, S::fma(x, pull, dy_gain));
                if adds {
                    out = S::add(load::<S>(dx.add(i), n), out);
                }
                store::<S>(dx.add(i), out, n);
                let sum = S::fma(dy, S::mul(x, rstd), load::<S>(partial.add(i), n));
                store::<S>(partial.add(i), sum, n);
            });
        }
    }
}

/// # Safety
/// As for [`Simd`]; the columns of dgain begin at `first` of the rows of partial.
#[inline(always)]
unsafe fn add_partial<S: Simd>(dgain: &mut [f32], partial: &[f32], d: usize, first: usize) {
    for block in partial.chunks_exact(d) {
        // SAFETY: equal lengths.
        unsafe { row::add_assign::<S>(dgain, &block[first..][..dgain.len()]) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::*;

    const EPS: f32 = 1e-5;
    const DIMS: [(usize, usize); 5] = [(1, 1), (3, 5), (7, 33), (65, 130), (200, 384)];

    #[test]
    fn the_residual_form_is_an_addition_and_a_norm() {
        on_every_isa(|cpu| {
            for (t, d) in DIMS {
                let (x, r, gain) = (normal(t * d, "x"), normal(t * d, "r"), normal(d, "gain"));
                let sum: Vec<f32> = x.iter().zip(&r).map(|(x, r)| x + r).collect();
                let (mut y, mut rstd) = (vec![0.0; t * d], vec![0.0; t]);
                forward(cpu, &mut y, &mut rstd, &sum, &gain, EPS);
                let (mut x, mut y2, mut rstd2) = (added(&x), output(t * d), output(t));
                forward_residual(cpu, &mut y2, &mut rstd2, &mut x, &r, &gain, EPS);
                assert_eq!(bits(&x.finish()), bits(&sum));
                assert_eq!(bits(&y2.finish()), bits(&y));
                assert_eq!(bits(&rstd2.finish()), bits(&rstd));
            }
        });
    }

    #[test]
    fn a_row_has_the_same_bits_alone_and_on_any_number_of_threads() {
        let (t, d) = (300, 403);
        let (x, gain, dy) = (normal(t * d, "x"), normal(d, "gain"), normal(t * d, "dy"));
        let run = |cpu: &Cpu, rows: std::ops::Range<usize>| {
            let x = &x[rows.start * d..rows.end * d];
            let (mut y, mut rstd) = (vec![0.0; x.len()], vec![0.0; rows.len()]);
            let (mut dx, mut dgain) = (vec![0.0; x.len()], vec![0.0; d]);
            forward(cpu, &mut y, &mut rstd, x, &gain, EPS);
            let dy = &dy[rows.start * d..rows.end * d];
            backward(
                cpu,
                &mut dx,
                &mut dgain,
                dy,
                x,
                &rstd,
                &gain,
                Store::Overwrite,
            );
            (y, dx, dgain)
        };
        same_bits_on_any_number_of_threads(|cpu| {
            let (y, dx, dgain) = run(cpu, 0..t);
            for row in [0, 63, 64, 299] {
                let (y1, dx1, _) = run(cpu, row..row + 1);
                assert_eq!(bits(&y1), bits(&y[row * d..][..d]));
                assert_eq!(bits(&dx1), bits(&dx[row * d..][..d]));
            }
            [y, dx, dgain].concat()
        });
    }
}
