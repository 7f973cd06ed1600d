//! Matrix products with a packed right operand, and the gradient of the weights.
//!
//! matmul     y (m, n) = x (m, k) B           B packed from W (n, k) or (k, n)
//! matmul_tn  c (p, q) += a (m, p)^T b (m, q)
//!
//! The right operand lies in panels of two vectors' width, `[k][NR]` (f32) or `[k/2][NR][2]` (bf16
//! pairs); the left one is rounded and regrouped into tiles on the fly. Every element of the result is
//! one chain of multiply-adds over k in ascending order, so that its bits depend neither on the number
//! of rows nor on the partition. bf16 factors are rounded to nearest even; sums are f32.
//!
//! Compute-bound: 2mnk operations. With one row it is bound by reading the panels once.

mod micro;
mod pack;
mod tn;

pub(crate) use pack::lanes;
pub use pack::{Compute, Packed};
pub use tn::matmul_tn;
pub(crate) use tn::{Rows, tn_group};

use crate::pool::SharedMut;
use crate::simd::Simd;
use crate::{Cpu, Isa, Store};
use micro::{Bf16, F32, Factor};
use std::cell::RefCell;
use std::ops::Range;

thread_local! {
    /// Packed left and right tiles of this thread, kept between calls.
    static SCRATCH: RefCell<(Vec<f32>, Vec<f32>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

/// Bytes of the left operand that are packed at a time: they stay in the second-level cache.
const LEFT_BYTES: usize = 192 << 10;

/// y (m, n) = x (m, k) times the packed matrix; m follows from the length of x.
pub fn matmul(cpu: &Cpu, y: &mut [f32], x: &[f32], b: &Packed, store: Store) {
    let m = x.len() / b.k();
    assert_eq!(x.len(), m * b.k(), "matmul: x is not (m, k)");
    assert_eq!(y.len(), m * b.n(), "matmul: y is not (m, n)");
    let (isa, out) = (cpu.isa(), SharedMut::new(y));
    let tile = b.tile_rows();
    if m >= 2 * tile * cpu.pool.threads() || cpu.pool.threads() == 1 {
        cpu.pool.for_ranges(m, tile, &|rows| {
            rows_times(isa, out, x, None, rows, b, 0..b.panels(), store);
        });
    } else {
        cpu.pool.for_ranges(b.panels(), 1, &|panels| {
            rows_times(isa, out, x, None, 0..m, b, panels, store);
        });
    }
}

/// Rows `rows` of y and columns of `panels`: the serial core of every product with a packed matrix.
/// Row i reads row `gather[i]` of x where there is one.
pub(crate) fn rows_times(
    isa: Isa,
    y: SharedMut<f32>,
    x: &[f32],
    gather: Option<&[u32]>,
    rows: Range<usize>,
    b: &Packed,
    panels: Range<usize>,
    store: Store,
) {
    if rows.is_empty() || panels.is_empty() {
        return;
    }
    assert_eq!(
        b.isa(),
        isa,
        "a packed matrix belongs to one instruction set"
    );
    let x_rows = x.len() / b.k();
    if let Some(gather) = gather {
        assert!(
            gather[rows.clone()].iter().all(|&r| (r as usize) < x_rows),
            "gather: no such row"
        );
    } else {
        assert!(rows.end <= x_rows, "matmul: no such row");
    }
    match b.compute() {
        Compute::F32 => dispatch!(
            isa,
            rows_times_f32(
                y: SharedMut<f32>,
                x: &[f32],
                gather: Option<&[u32]>,
                rows: Range<usize>,
                b: &Packed,
                panels: Range<usize>,
                store: Store,
            )
        ),
        Compute::Bf16 => dispatch!(
            isa,
            rows_times_bf16(
                y: SharedMut<f32>,
                x: &[f32],
                gather: Option<&[u32]>,
                rows: Range<usize>,
                b: &Packed,
                panels: Range<usize>,
                store: Store,
            )
        ),
    }
}

#[inline(always)]
unsafe fn rows_times_f32<S: Simd>(
    y: SharedMut<f32>,
    x: &[f32],
    gather: Option<&[u32]>,
    rows: Range<usize>,
    b: &Packed,
    panels: Range<usize>,
    store: Store,
) {
    // SAFETY: forwarded.
    unsafe { rows_times_in::<S, F32>(y, x, gather, rows, b, panels, store) }
}

#[inline(always)]
unsafe fn rows_times_bf16<S: Simd>(
    y: SharedMut<f32>,
    x: &[f32],
    gather: Option<&[u32]>,
    rows: Range<usize>,
    b: &Packed,
    panels: Range<usize>,
    store: Store,
) {
    // SAFETY: forwarded.
    unsafe { rows_times_in::<S, Bf16>(y, x, gather, rows, b, panels, store) }
}

#[inline(always)]
unsafe fn rows_times_in<S: Simd, F: Factor<S>>(
    y: SharedMut<f32>,
    x: &[f32],
    gather: Option<&[u32]>,
    rows: Range<usize>,
    b: &Packed,
    panels: Range<usize>,
    store: Store,
) {
    let (n, k) = (b.n(), b.k());
    let steps = k.div_ceil(F::STEP);
    let nr = 2 * S::LANES;
    let tile_words = steps * S::TILE_ROWS * F::STEP * size_of::<F::Elem>() / 4;
    let tiles_at_once = (LEFT_BYTES / 4 / tile_words.max(1)).max(1);
    let block = tiles_at_once * S::TILE_ROWS;
    SCRATCH.with_borrow_mut(|(left, line)| {
        left.resize(left.len().max(tiles_at_once * tile_words), 0.0);
        line.resize(line.len().max(k + 2 * S::LANES), 0.0);
        let mut start = rows.start;
        while start < rows.end {
            let end = (start + block).min(rows.end);
            for (t, first) in (start..end).step_by(S::TILE_ROWS).enumerate() {
                let count = (end - first).min(S::TILE_ROWS);
                for r in 0..count {
                    let row = gather.map_or(first + r, |g| g[first + r] as usize);
                    // SAFETY: the row was checked by the caller; the tile has room for every step.
                    unsafe {
                        let tile = left.as_mut_ptr().add(t * tile_words).cast::<F::Elem>();
                        let source = x.as_ptr().add(row * k);
                        F::pack_row(tile, r, count, source, k, line.as_mut_ptr());
                    }
                }
            }
            for panel in panels.clone() {
                let cols = (n - panel * nr).min(nr);
                // SAFETY: the panel exists.
                let right = unsafe { F::panel(b, panel * steps * nr * F::STEP) };
                for (t, first) in (start..end).step_by(S::TILE_ROWS).enumerate() {
                    let count = (end - first).min(S::TILE_ROWS);
                    // SAFETY: rows and columns lie inside y, and no other thread has them.
                    unsafe {
                        let tile = left.as_ptr().add(t * tile_words).cast::<F::Elem>();
                        let out = y.ptr().add(first * n + panel * nr);
                        micro::tile::<S, F>(count, steps, tile, right, out, n, cols, store);
                    }
                }
            }
            start = end;
        }
    });
}
