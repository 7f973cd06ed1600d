//! Tiles of query rows against one block of keys after the other: scores, running softmax, weighted values.

use super::{HeadShape, KV_BLOCK, TILE, visible_blocks};
use crate::simd::{Simd, exp_of_negative};
use std::ops::Range;

/// Lanes of the longest vector.
const LANES: usize = 16;

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
        TILE * (self.d + KV_BLOCK + self.padded + 1 + LANES)
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

/// The queries of one sequence that share a key-value head. Query `i` is that of the head `i % heads` among those
/// that share it, and `i / heads` positions after the first.
#[derive(Clone, Copy)]
pub(super) struct Queries {
    pub(super) shape: HeadShape,
    pub(super) kv_head: usize,
    /// The sequence's first row of q, and its position.
    pub(super) first_row: usize,
    pub(super) first_pos: usize,
    pub(super) window: Option<usize>,
}

impl Queries {
    /// Query heads that share the key-value head.
    #[inline(always)]
    pub(super) fn heads(&self) -> usize {
        self.shape.num_heads / self.shape.num_kv_heads
    }

    #[inline(always)]
    fn position(&self, query: usize) -> usize {
        self.first_pos + query / self.heads()
    }

    /// Its row of q (T H, K).
    #[inline(always)]
    fn row(&self, query: usize) -> usize {
        let heads = self.heads();
        let token = self.first_row + query / heads;
        token * self.shape.num_heads + self.kv_head * heads + query % heads
    }
}

/// Queries of an item: each block of keys and values is read once for all of them.
pub(super) const TOGETHER: usize = 16 * TILE;

/// Working memory of [`attend`].
pub(super) fn memory_len(sizes: Sizes, queries: usize) -> usize {
    queries.div_ceil(TILE) * sizes.tile()
}

/// The queries `range` of q (T H, K), at most [`TOGETHER`], against all keys that they see. `block(b)` is the keys
/// (K, 64) and values (64, padded) of block b; `done(row, tile, r)` takes the result for a row of q, which is row r of
/// the tile.
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
pub(super) unsafe fn attend<'a, S: Simd>(
    memory: &mut [f32],
    sizes: Sizes,
    queries: Queries,
    range: Range<usize>,
    q: &[f32],
    block: impl Fn(usize) -> (&'a [f32], &'a [f32]),
    mut done: impl FnMut(usize, &QueryTile, usize),
) {
    let tiles = || range.clone().step_by(TILE);
    let of_tile = |first: usize| first..range.end.min(first + TILE);
    let seen = |some: &Range<usize>| {
        let (first, last) = (queries.position(some.start), queries.position(some.end - 1));
        visible_blocks(first, last, queries.window)
    };
    for (first, memory) in tiles().zip(memory.chunks_exact_mut(sizes.tile())) {
        let mut tile = QueryTile::new(memory, sizes);
        for (r, i) in of_tile(first).enumerate() {
            let query = &q[queries.row(i) * sizes.d..][..sizes.d];
            tile.q[r * sizes.d..(r + 1) * sizes.d].copy_from_slice(query);
        }
        tile.start();
    }
    for b in seen(&range) {
        let (keys, values) = block(b);
        for (first, memory) in tiles().zip(memory.chunks_exact_mut(sizes.tile())) {
            let some = of_tile(first);
            if seen(&some).contains(&b) {
                let mut tile = QueryTile::new(memory, sizes);
                // SAFETY: forwarded to the caller.
                unsafe { tile.attend::<S>(keys, values, b * KV_BLOCK, queries, some) };
            }
        }
    }
    for (first, memory) in tiles().zip(memory.chunks_exact_mut(sizes.tile())) {
        let tile = QueryTile::new(memory, sizes);
        for (r, i) in of_tile(first).enumerate() {
            let sum = &mut tile.sum[r * LANES];
            // SAFETY: a row has LANES sums.
            *sum = unsafe { S::reduce_add(S::load(sum)) };
            done(queries.row(i), &tile, r);
        }
    }
}

/// Queries, scores, weighted sums and running softmax of up to TILE rows.
pub(super) struct QueryTile<'a> {
    sizes: Sizes,
    q: &'a mut [f32],      // (rows, K)
    scores: &'a mut [f32], // (rows, 64)
    o: &'a mut [f32],      // (rows, padded)
    max: &'a mut [f32],    // (rows)
    sum: &'a mut [f32],    // (rows, LANES): lane by lane until it is finished
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

impl<'a> QueryTile<'a> {
    #[inline(always)]
    fn new(memory: &'a mut [f32], sizes: Sizes) -> QueryTile<'a> {
        let (q, rest) = memory.split_at_mut(TILE * sizes.d);
        let (scores, rest) = rest.split_at_mut(TILE * KV_BLOCK);
        let (o, rest) = rest.split_at_mut(TILE * sizes.padded);
        let (max, sum) = rest.split_at_mut(TILE);
        QueryTile {
            sizes,
            q,
            scores,
            o,
            max,
            sum,
        }
    }

    /// No key seen.
    #[inline(always)]
    fn start(&mut self) {
        self.o.fill(0.0);
        self.max.fill(f32::NEG_INFINITY);
        self.sum.fill(0.0);
    }

    /// Takes one block of keys (K, 64) and values (64, padded) in, for queries `range`.
    ///
    /// # Safety
    /// As for [`Simd`].
    #[inline(always)]
    unsafe fn attend<S: Simd>(
        &mut self,
        keys: &[f32],
        values: &[f32],
        first_key: usize,
        queries: Queries,
        range: Range<usize>,
    ) {
        let Sizes { d, padded } = self.sizes;
        let rows = range.len();
        assert!(rows <= TILE && keys.len() >= d * KV_BLOCK && values.len() >= KV_BLOCK * padded);
        // SAFETY: sizes as asserted; the tile's own parts have theirs by construction.
        unsafe {
            product::<S>(
                self.scores.as_mut_ptr(),
                KV_BLOCK,
                (self.q.as_ptr(), d, 1),
                (keys.as_ptr(), KV_BLOCK),
                (rows, KV_BLOCK, d),
                false,
            );
            for (r, i) in range.enumerate() {
                let seen = visible(queries.position(i), first_key, queries.window);
                self.weigh::<S>(r, seen);
            }
            product::<S>(
                self.o.as_mut_ptr(),
                padded,
                (self.scores.as_ptr(), KV_BLOCK, 1),
                (values.as_ptr(), padded),
                (rows, padded, KV_BLOCK),
                true,
            );
        }
    }

    /// The scores of row r become weights by its running maximum, which what was summed before follows.
    ///
    /// # Safety
    /// As for [`Simd`].
    #[inline(always)]
    unsafe fn weigh<S: Simd>(&mut self, r: usize, seen: Range<usize>) {
        let Sizes { d, padded } = self.sizes;
        let scale = 1.0 / (d as f32).sqrt();
        let row = &mut self.scores[r * KV_BLOCK..(r + 1) * KV_BLOCK];
        if seen.is_empty() {
            // The row stays as it is: nothing is added, and nothing is scaled.
            return row.fill(0.0);
        }
        row[..seen.start].fill(f32::NEG_INFINITY);
        row[seen.end..].fill(f32::NEG_INFINITY);
        let row = row.as_mut_ptr();
        // SAFETY: a row has KV_BLOCK scores, which are whole vectors; a row of o has `padded` values.
        unsafe {
            let mut max = S::splat(f32::NEG_INFINITY);
            for j in (0..KV_BLOCK).step_by(S::LANES) {
                max = S::max(max, S::load(row.add(j)));
            }
            let (old, max) = (self.max[r], (S::reduce_max(max) * scale).max(self.max[r]));
            let sum = self.sum.as_mut_ptr().add(r * LANES);
            if old != max {
                let mut keep = S::splat(0.0);
                if old > f32::NEG_INFINITY {
                    keep = exp_of_negative::<S>(S::splat(old - max));
                }
                let o = self.o.as_mut_ptr().add(r * padded);
                for c in (0..padded).step_by(S::LANES) {
                    S::store(o.add(c), S::mul(S::load(o.add(c)), keep));
                }
                S::store(sum, S::mul(S::load(sum), keep));
                self.max[r] = max;
            }
            for j in (0..KV_BLOCK).step_by(S::LANES) {
                // Not fused: the largest weight is exactly 1.
                let x = S::mul(S::load(row.add(j)), S::splat(scale));
                let p = exp_of_negative::<S>(S::sub(x, S::splat(max)));
                S::store(row.add(j), p);
            }
            // What is not seen has the smallest weight there is, not zero.
            for j in (0..seen.start).chain(seen.end..KV_BLOCK) {
                *row.add(j) = 0.0;
            }
            let mut all = S::load(sum);
            for j in (0..KV_BLOCK).step_by(S::LANES) {
                all = S::add(all, S::load(row.add(j)));
            }
            S::store(sum, all);
        }
    }

    /// Writes row r of the result (K); returns the logarithm of the sum of exponentials.
    #[inline(always)]
    pub(super) fn finish(&self, r: usize, out: &mut [f32]) -> f32 {
        let Sizes { d, padded } = self.sizes;
        let inverse = 1.0 / self.sum[r * LANES];
        for (out, &o) in out.iter_mut().zip(&self.o[r * padded..][..d]) {
            *out = o * inverse;
        }
        self.max[r] + self.sum[r * LANES].ln()
    }
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
