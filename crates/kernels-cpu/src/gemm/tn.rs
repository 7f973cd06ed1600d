//! The gradient of a weight matrix: c (p, q) += a (m, p)^T b (m, q), summed over rows in their order.
//!
//! Rows are taken in chunks of fixed size; each chunk's sum is one chain from zero, added to c in the
//! order of the chunks. Both sides are packed from f32 as they are read.

use super::SCRATCH;
use super::micro::{self, Bf16, F32, Factor};
use super::pack::Compute;
use crate::pool::SharedMut;
use crate::simd::Simd;
use crate::{Cpu, Isa, Store};
use std::ops::Range;

/// Rows of a chunk: a packed chunk of a few hundred columns stays in the second-level cache.
const CHUNK: usize = 256;

/// c (p, q) += a (m, p)^T b (m, q); p and q follow from the lengths.
pub fn matmul_tn(cpu: &Cpu, compute: Compute, c: &mut [f32], a: &[f32], b: &[f32], m: usize) {
    if m == 0 {
        return;
    }
    let (p, q) = (a.len() / m, b.len() / m);
    assert_eq!(a.len(), m * p, "matmul_tn: a is not (m, p)");
    assert_eq!(b.len(), m * q, "matmul_tn: b is not (m, q)");
    assert_eq!(c.len(), p * q, "matmul_tn: c is not (p, q)");
    let (isa, out) = (cpu.isa(), SharedMut::new(c));
    let (a, b) = (
        Rows {
            data: a,
            gather: None,
            width: p,
        },
        Rows {
            data: b,
            gather: None,
            width: q,
        },
    );
    cpu.pool
        .for_ranges(p, 12, &|cols| tn_group(isa, compute, out, a, b, 0..m, cols));
}

/// Rows of one operand, perhaps gathered.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) gather: Option<&'a [u32]>,
    pub(crate) width: usize,
}

impl Rows<'_> {
    #[inline(always)]
    fn row(&self, i: usize) -> &[f32] {
        let row = self.gather.map_or(i, |g| g[i] as usize);
        &self.data[row * self.width..][..self.width]
    }
}

/// The part of c whose rows are `cols` of a: the serial core.
pub(crate) fn tn_group(
    isa: Isa,
    compute: Compute,
    c: SharedMut<f32>,
    a: Rows,
    b: Rows,
    rows: Range<usize>,
    cols: Range<usize>,
) {
    match compute {
        Compute::F32 => dispatch!(
            isa,
            tn_f32(c: SharedMut<f32>, a: Rows, b: Rows, rows: Range<usize>, cols: Range<usize>)
        ),
        Compute::Bf16 => dispatch!(
            isa,
            tn_bf16(c: SharedMut<f32>, a: Rows, b: Rows, rows: Range<usize>, cols: Range<usize>)
        ),
    }
}

#[inline(always)]
unsafe fn tn_f32<S: Simd>(
    c: SharedMut<f32>,
    a: Rows,
    b: Rows,
    rows: Range<usize>,
    cols: Range<usize>,
) {
    // SAFETY: forwarded.
    unsafe { tn_in::<S, F32>(c, a, b, rows, cols) }
}

#[inline(always)]
unsafe fn tn_bf16<S: Simd>(
    c: SharedMut<f32>,
    a: Rows,
    b: Rows,
    rows: Range<usize>,
    cols: Range<usize>,
) {
    // SAFETY: forwarded.
    unsafe { tn_in::<S, Bf16>(c, a, b, rows, cols) }
}

#[inline(always)]
unsafe fn tn_in<S: Simd, F: Factor<S>>(
    c: SharedMut<f32>,
    a: Rows,
    b: Rows,
    rows: Range<usize>,
    cols: Range<usize>,
) {
    let (q, nr) = (b.width, 2 * S::LANES);
    let panels = q.div_ceil(nr);
    let words = |width: usize, steps: usize| steps * width * F::STEP * size_of::<F::Elem>() / 4;
    let max_steps = CHUNK.div_ceil(F::STEP);
    SCRATCH.with_borrow_mut(|(left, right)| {
        left.resize(left.len().max(words(S::TILE_ROWS, max_steps)), 0.0);
        right.resize(right.len().max(panels * words(nr, max_steps)), 0.0);
        let (left, right) = (
            left.as_mut_ptr().cast::<F::Elem>(),
            right.as_mut_ptr().cast::<F::Elem>(),
        );
        let mut start = rows.start;
        while start < rows.end {
            let end = (start + CHUNK).min(rows.end);
            let steps = (end - start).div_ceil(F::STEP);
            for step in 0..steps {
                let i = start + step * F::STEP;
                let first = b.row(i);
                let second = (F::STEP == 2 && i + 1 < end).then(|| b.row(i + 1));
                for panel in 0..panels {
                    let from = panel * nr;
                    let n = nr.min(q - from);
                    // SAFETY: the row has q values; the scratch has room for every step.
                    unsafe {
                        let out = right.add((panel * steps + step) * nr * F::STEP);
                        let rows = [
                            Some(first.as_ptr().add(from)),
                            second.map(|row| row.as_ptr().add(from)),
                        ];
                        F::pack_step(out, nr, rows, n);
                    }
                }
            }
            let mut col = cols.start;
            while col < cols.end {
                let count = S::TILE_ROWS.min(cols.end - col);
                for step in 0..steps {
                    let i = start + step * F::STEP;
                    let first = &a.row(i)[col..col + count];
                    let second = (F::STEP == 2 && i + 1 < end).then(|| &a.row(i + 1)[col..]);
                    // SAFETY: as above.
                    unsafe {
                        let out = left.add(step * count * F::STEP);
                        let rows = [Some(first.as_ptr()), second.map(<[f32]>::as_ptr)];
                        F::pack_step(out, count, rows, count);
                    }
                }
                for panel in 0..panels {
                    // SAFETY: these rows of c belong to this thread.
                    unsafe {
                        let b = right.add(panel * steps * nr * F::STEP);
                        let out = c.ptr().add(col * q + panel * nr);
                        let n = nr.min(q - panel * nr);
                        micro::tile::<S, F>(count, steps, left, b, out, q, n, Store::Add);
                    }
                }
                col += count;
            }
            start = end;
        }
    });
}
