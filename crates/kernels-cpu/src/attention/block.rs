//! A tile of query rows against one block of keys: scores, running softmax, weighted values.

use super::{KV_BLOCK, TILE};
use crate::simd::{Simd, exp};

/// Sizes of the blocks for one head width and vector length.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub(super) d: usize,      // K
    pub(super) padded: usize, // K rounded up to whole vectors
}

impl Sizes {
    #[inline(always)]
    pub(super) fn new<S: Simd>(d: usize) -> Sizes {
        Sizes {
            d,
            padded: d.next_multiple_of(S::LANES),
        }
    }

    /// Keys of a block, transposed: (K, 64).
    #[inline(always)]
    pub(super) fn key_block(&self) -> usize {
        self.d * KV_BLOCK
    }

    /// Values of a block: (64, padded).
    #[inline(always)]
    pub(super) fn value_block(&self) -> usize {
        KV_BLOCK * self.padded
    }

    /// Working memory of a query tile.
    #[inline(always)]
    pub(super) fn tile(&self) -> usize {
        TILE * (self.d + KV_BLOCK + self.padded + 2)
    }

    #[inline(always)]
    pub(super) fn put_key(&self, block: &mut [f32], slot: usize, key: &[f32]) {
        for (c, &value) in key.iter().enumerate() {
            block[c * KV_BLOCK + slot] = value;
        }
    }

    #[inline(always)]
    pub(super) fn put_value(&self, block: &mut [f32], slot: usize, value: &[f32]) {
        block[slot * self.padded..][..self.d].copy_from_slice(value);
    }
}

/// Queries, scores, weighted sums and running softmax of up to TILE rows.
pub(super) struct QueryTile<'a> {
    pub(super) sizes: Sizes,
    pub(super) rows: usize,
    q: &'a mut [f32],      // (rows, K)
    scores: &'a mut [f32], // (rows, 64)
    o: &'a mut [f32],      // (rows, padded)
    max: &'a mut [f32],    // (rows)
    sum: &'a mut [f32],    // (rows)
}

impl<'a> QueryTile<'a> {
    #[inline(always)]
    pub(super) fn new(memory: &'a mut [f32], sizes: Sizes, rows: usize) -> QueryTile<'a> {
        let (q, rest) = memory.split_at_mut(TILE * sizes.d);
        let (scores, rest) = rest.split_at_mut(TILE * KV_BLOCK);
        let (o, rest) = rest.split_at_mut(TILE * sizes.padded);
        let (max, sum) = rest.split_at_mut(TILE);
        QueryTile {
            sizes,
            rows,
            q,
            scores,
            o,
            max,
            sum,
        }
    }

    #[inline(always)]
    pub(super) fn query(&mut self, r: usize) -> &mut [f32] {
        &mut self.q[r * self.sizes.d..(r + 1) * self.sizes.d]
    }
}

/// No key seen.
#[inline(always)]
pub(super) fn start(tile: &mut QueryTile) {
    tile.o.fill(0.0);
    tile.max.fill(f32::NEG_INFINITY);
    tile.sum.fill(0.0);
}

/// Slots of a block at `first_key` that the query at `position` sees.
#[inline(always)]
pub(super) fn visible(
    position: usize,
    first_key: usize,
    window: Option<usize>,
) -> std::ops::Range<usize> {
    let oldest = window.map_or(0, |w| (position + 1).saturating_sub(w));
    let from = oldest.saturating_sub(first_key).min(KV_BLOCK);
    let to = (position + 1).saturating_sub(first_key).min(KV_BLOCK);
    from..to.max(from)
}

/// Takes one block of keys (K, 64) and values (64, padded) into the tile.
///
/// # Safety
/// The slices hold a whole block; the instruction set is there.
#[inline(always)]
pub(super) unsafe fn attend<S: Simd>(
    tile: &mut QueryTile,
    keys: &[f32],
    values: &[f32],
    first_key: usize,
    first_row: usize,
    window: Option<usize>,
) {
    let Sizes { d, padded } = tile.sizes;
    let scale = 1.0 / (d as f32).sqrt();
    assert!(keys.len() >= d * KV_BLOCK && values.len() >= KV_BLOCK * padded);
    // SAFETY: sizes as asserted; the tile's own parts have theirs by construction.
    unsafe {
        product::<S>(
            tile.scores.as_mut_ptr(),
            KV_BLOCK,
            (tile.q.as_ptr(), d, 1),
            (keys.as_ptr(), KV_BLOCK),
            (tile.rows, KV_BLOCK, d),
            false,
        );
        for r in 0..tile.rows {
            let seen = visible(first_row + r, first_key, window);
            if seen.is_empty() {
                // The row stays as it is: nothing is added, and nothing is scaled.
                tile.scores[r * KV_BLOCK..(r + 1) * KV_BLOCK].fill(0.0);
                continue;
            }
            let row = &mut tile.scores[r * KV_BLOCK..(r + 1) * KV_BLOCK];
            row[..seen.start].fill(f32::NEG_INFINITY);
            row[seen.end..].fill(f32::NEG_INFINITY);
            let mut max = S::splat(f32::NEG_INFINITY);
            let mut j = 0;
            while j < KV_BLOCK {
                let s = S::mul(S::load(row.as_ptr().add(j)), S::splat(scale));
                S::store(row.as_mut_ptr().add(j), s);
                max = S::max(max, s);
                j += S::LANES;
            }
            let max = S::reduce_max(max).max(tile.max[r]);
            let mut sum = S::splat(0.0);
            let mut j = 0;
            while j < KV_BLOCK {
                let s = S::load(row.as_ptr().add(j));
                let p = exp::<S>(S::sub(s, S::splat(max)));
                S::store(row.as_mut_ptr().add(j), p);
                j += S::LANES;
            }
            row[..seen.start].fill(0.0);
            row[seen.end..].fill(0.0);
            let mut j = 0;
            while j < KV_BLOCK {
                sum = S::add(sum, S::load(row.as_ptr().add(j)));
                j += S::LANES;
            }
            let keep = if tile.max[r] == f32::NEG_INFINITY {
                0.0
            } else {
                let mut lane = [0.0f32; 16];
                S::store(lane.as_mut_ptr(), exp::<S>(S::splat(tile.max[r] - max)));
                lane[0]
            };
            tile.sum[r] = tile.sum[r] * keep + S::reduce_add(sum);
            tile.max[r] = max;
            let mut c = 0;
            while c < padded {
                let o = tile.o.as_mut_ptr().add(r * padded + c);
                S::store(o, S::mul(S::load(o), S::splat(keep)));
                c += S::LANES;
            }
        }
        product::<S>(
            tile.o.as_mut_ptr(),
            padded,
            (tile.scores.as_ptr(), KV_BLOCK, 1),
            (values.as_ptr(), padded),
            (tile.rows, padded, KV_BLOCK),
            true,
        );
    }
}

/// Writes row r of the result (K); returns the logarithm of the sum of exponentials.
#[inline(always)]
pub(super) fn finish(tile: &QueryTile, r: usize, out: &mut [f32]) -> f32 {
    let Sizes { d, padded } = tile.sizes;
    let inverse = 1.0 / tile.sum[r];
    for (out, &o) in out.iter_mut().zip(&tile.o[r * padded..][..d]) {
        *out = o * inverse;
    }
    tile.max[r] + tile.sum[r].ln()
}

/// c (m, n) = or += a (m, k) b (k, n), n whole vectors; a is (pointer, row stride, column stride), b and c
/// have row strides. Each element is one chain over k in ascending order.
///
/// # Safety
/// The pointers reach over the sizes.
#[inline(always)]
pub(super) unsafe fn product<S: Simd>(
    c: *mut f32,
    ldc: usize,
    a: (*const f32, usize, usize),
    b: (*const f32, usize),
    (m, n, k): (usize, usize, usize),
    accumulate: bool,
) {
    // Sums of a cell that stay in registers: 4 x 4 of 32, or 4 x 2 of 16.
    let widest = if S::LANES == 16 { 4 } else { 2 };
    let mut i = 0;
    while i < m {
        let rows = (m - i).min(4);
        let mut j = 0;
        while j < n {
            let vectors = ((n - j) / S::LANES).min(widest);
            // SAFETY: forwarded.
            unsafe {
                let c = c.add(i * ldc + j);
                let a = (a.0.add(i * a.1), a.1, a.2);
                let b = (b.0.add(j), b.1);
                match (rows, vectors) {
                    (4, 4) => cell::<S, 4, 4>(c, ldc, a, b, k, accumulate),
                    (4, 3) => cell::<S, 4, 3>(c, ldc, a, b, k, accumulate),
                    (4, 2) => cell::<S, 4, 2>(c, ldc, a, b, k, accumulate),
                    (4, _) => cell::<S, 4, 1>(c, ldc, a, b, k, accumulate),
                    (_, 4) => each_row::<S, 4>(rows, c, ldc, a, b, k, accumulate),
                    (_, 3) => each_row::<S, 3>(rows, c, ldc, a, b, k, accumulate),
                    (_, 2) => each_row::<S, 2>(rows, c, ldc, a, b, k, accumulate),
                    _ => each_row::<S, 1>(rows, c, ldc, a, b, k, accumulate),
                }
            }
            j += vectors * S::LANES;
        }
        i += rows;
    }
}

#[inline(always)]
unsafe fn each_row<S: Simd, const V: usize>(
    rows: usize,
    c: *mut f32,
    ldc: usize,
    a: (*const f32, usize, usize),
    b: (*const f32, usize),
    k: usize,
    accumulate: bool,
) {
    for r in 0..rows {
        // SAFETY: forwarded.
        unsafe {
            let a = (a.0.add(r * a.1), a.1, a.2);
            cell::<S, 1, V>(c.add(r * ldc), ldc, a, b, k, accumulate);
        }
    }
}

#[inline(always)]
unsafe fn cell<S: Simd, const R: usize, const V: usize>(
    c: *mut f32,
    ldc: usize,
    a: (*const f32, usize, usize),
    b: (*const f32, usize),
    k: usize,
    accumulate: bool,
) {
    // SAFETY: see `product`.
    unsafe {
        let mut acc = [[S::splat(0.0); V]; R];
        if accumulate {
            for r in 0..R {
                for v in 0..V {
                    acc[r][v] = S::load(c.add(r * ldc + v * S::LANES));
                }
            }
        }
        for i in 0..k {
            let mut row = [S::splat(0.0); V];
            for v in 0..V {
                row[v] = S::load(b.0.add(i * b.1 + v * S::LANES));
            }
            for r in 0..R {
                let x = S::splat(*a.0.add(r * a.1 + i * a.2));
                for v in 0..V {
                    acc[r][v] = S::fma(x, row[v], acc[r][v]);
                }
            }
        }
        for r in 0..R {
            for v in 0..V {
                S::store(c.add(r * ldc + v * S::LANES), acc[r][v]);
            }
        }
    }
}
