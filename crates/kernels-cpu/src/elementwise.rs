//! What is too small for a name of its own.
//!
//! add          y += x
//! scale        y *= factor
//! sum_squares  sum x_i^2, for the norm of all gradients
//! concat2      y_t = [a_t | b_t]        split2 is its backward: a_t, b_t = y_t
//!
//! Shapes: T tokens, D hidden_size. All are bound by memory.
//! `sum_squares` adds chunks of [`CHUNK`] values in f32 (four chains of a vector each: some dozens
//! of additions a lane), and the chunks in f64, in order, whatever the number of threads.

use crate::Cpu;
use crate::pool::SharedMut;
use crate::row::{self, fold_lanes, for_lanes, load, store};
use crate::simd::Simd;
use std::cell::RefCell;

/// Values summed in f32 before f64 takes over.
const CHUNK: usize = 4096;

thread_local! {
    /// The sums of the chunks.
    static SUMS: RefCell<Vec<f64>> = const { RefCell::new(Vec::new()) };
}

/// y += x.
pub fn add(cpu: &Cpu, y: &mut [f32], x: &[f32]) {
    assert_eq!(y.len(), x.len(), "y and x have one shape");
    let isa = cpu.isa();
    let (len, y) = (y.len(), SharedMut::new(y));
    cpu.pool.for_ranges(len, row::grain(1), &|range| {
        let x = &x[range.clone()];
        // SAFETY: ranges are disjoint.
        let y = unsafe { y.slice(range) };
        dispatch!(isa, add_range(y: &mut [f32], x: &[f32]));
    });
}

/// y *= factor.
pub fn scale(cpu: &Cpu, y: &mut [f32], factor: f32) {
    let isa = cpu.isa();
    let (len, y) = (y.len(), SharedMut::new(y));
    cpu.pool.for_ranges(len, row::grain(1), &|range| {
        // SAFETY: ranges are disjoint.
        let y = unsafe { y.slice(range) };
        dispatch!(isa, scale_range(y: &mut [f32], factor: f32));
    });
}

/// The sum of x_i^2.
pub fn sum_squares(cpu: &Cpu, x: &[f32]) -> f64 {
    let isa = cpu.isa();
    row::with_scratch(&SUMS, x.len().div_ceil(CHUNK), |sums| {
        let shared = SharedMut::new(sums);
        cpu.pool.for_ranges(x.len(), 2 * CHUNK, &|range| {
            // SAFETY: ranges are disjoint and begin where a chunk begins.
            let sums = unsafe { shared.slice(range.start / CHUNK..range.end.div_ceil(CHUNK)) };
            let x = &x[range];
            dispatch!(isa, sum_squares_of_chunks(sums: &mut [f64], x: &[f32]));
        });
        sums.iter().sum()
    })
}

/// a (T, D), b (T, D) -> y (T, 2D).
pub fn concat2(cpu: &Cpu, y: &mut [f32], a: &[f32], b: &[f32], d: usize) {
    let rows = check(a.len(), b.len(), y.len(), d);
    let y = SharedMut::new(y);
    cpu.pool.for_ranges(rows, row::grain(2 * d), &|rows| {
        // SAFETY: ranges of rows are disjoint.
        let y = unsafe { y.slice(2 * rows.start * d..2 * rows.end * d) };
        let (a, b) = (
            &a[rows.start * d..rows.end * d],
            &b[rows.start * d..rows.end * d],
        );
        let halves = a.chunks_exact(d).zip(b.chunks_exact(d));
        for (y, (a, b)) in y.chunks_exact_mut(2 * d).zip(halves) {
            y[..d].copy_from_slice(a);
            y[d..].copy_from_slice(b);
        }
    });
}

/// y (T, 2D) -> a (T, D), b (T, D). Overwrites both.
pub fn split2(cpu: &Cpu, a: &mut [f32], b: &mut [f32], y: &[f32], d: usize) {
    let rows = check(a.len(), b.len(), y.len(), d);
    let (a, b) = (SharedMut::new(a), SharedMut::new(b));
    cpu.pool.for_ranges(rows, row::grain(2 * d), &|rows| {
        let values = rows.start * d..rows.end * d;
        // SAFETY: ranges of rows are disjoint.
        let (a, b) = unsafe { (a.slice(values.clone()), b.slice(values)) };
        let y = &y[2 * rows.start * d..2 * rows.end * d];
        let halves = a.chunks_exact_mut(d).zip(b.chunks_exact_mut(d));
        for (y, (a, b)) in y.chunks_exact(2 * d).zip(halves) {
            a.copy_from_slice(&y[..d]);
            b.copy_from_slice(&y[d..]);
        }
    });
}

/// The number of rows.
fn check(a: usize, b: usize, y: usize, d: usize) -> usize {
    assert!(
        d > 0 && a % d == 0 && a == b && y == 2 * a,
        "a and b are (T, D), y (T, 2D)"
    );
    a / d
}

/// # Safety
/// As for [`Simd`]; equal lengths.
#[inline(always)]
unsafe fn add_range<S: Simd>(y: &mut [f32], x: &[f32]) {
    // SAFETY: forwarded to the caller.
    unsafe { row::add_assign::<S>(y, x) }
}

/// # Safety
/// As for [`Simd`].
#[inline(always)]
unsafe fn scale_range<S: Simd>(y: &mut [f32], factor: f32) {
    let (len, y) = (y.len(), y.as_mut_ptr());
    // SAFETY: `i + n <= len`.
    unsafe {
        let factor = S::splat(factor);
        for_lanes!(S, len, |i, n| {
            store::<S>(y.add(i), S::mul(load::<S>(y.add(i), n), factor), n);
        });
    }
}

/// # Safety
/// As for [`Simd`]; one sum for each chunk begun.
#[inline(always)]
unsafe fn sum_squares_of_chunks<S: Simd>(sums: &mut [f64], x: &[f32]) {
    for (sum, x) in sums.iter_mut().zip(x.chunks(CHUNK)) {
        let (len, x) = (x.len(), x.as_ptr());
        // SAFETY: `i + n <= len`.
        unsafe {
            let squares = fold_lanes!(S, len, 0.0, |acc, i, n| {
                let x = load::<S>(x.add(i), n);
                S::fma(x, x, acc)
            });
            *sum = f64::from(row::sum::<S>(squares));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::*;

    const LENS: [usize; 7] = [0, 1, 15, 17, 4096, 4097, 50_003];

    #[test]
    fn add_and_scale_are_exact_and_stay_inside() {
        on_every_isa(|cpu| {
            for len in LENS {
                let (x, y) = (normal(len, "x"), normal(len, "y"));
                let mut sum = added(&y);
                add(cpu, &mut sum, &x);
                assert_eq!(
                    sum.finish(),
                    x.iter().zip(&y).map(|(x, y)| x + y).collect::<Vec<_>>()
                );
                let mut scaled = added(&y);
                scale(cpu, &mut scaled, 0.3);
                assert_eq!(
                    scaled.finish(),
                    y.iter().map(|y| 0.3 * y).collect::<Vec<_>>()
                );
            }
        });
    }

    #[test]
    fn sum_squares_has_the_same_bits_on_any_number_of_threads() {
        let x = normal(100_003, "x");
        same_bits_on_any_number_of_threads(|cpu| {
            let bits = sum_squares(cpu, &x).to_bits();
            vec![
                f32::from_bits((bits >> 32) as u32),
                f32::from_bits(bits as u32),
            ]
        });
    }
}
