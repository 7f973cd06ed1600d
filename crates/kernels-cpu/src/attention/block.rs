//! Tiles of query rows against one block of keys after the other: scores, running softmax, weighted values.

use super::{HeadShape, KV_BLOCK, TILE, visible_blocks};
use crate::Compute;
use crate::factor::{Factor, Left, as_floats};
use crate::simd::{Simd, exp_of_negative};
use std::ops::Range;
use std::ptr::null;

/// Lanes of the longest vector.
const LANES: usize = 16;

/// Sizes of the blocks, in words, for one head width, vector length and type of factors.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub(super) d: usize,      // K
    pub(super) padded: usize, // K rounded up to whole vectors
    pub(super) steps: usize,  // of K
    value_steps: usize,       // of 64 positions
}

impl Sizes {
    #[inline(always)]
    pub(super) fn new<S: Simd, F: Factor<S>>(d: usize) -> Sizes {
        Sizes::of(S::LANES, F::STEP, d)
    }

    /// Where the instruction set is not that of the function.
    pub(super) fn for_lanes(lanes: usize, compute: Compute, d: usize) -> Sizes {
        Sizes::of(lanes, compute.step(), d)
    }

    #[inline(always)]
    fn of(lanes: usize, step: usize, d: usize) -> Sizes {
        Sizes {
            d,
            padded: d.next_multiple_of(lanes),
            steps: d.div_ceil(step),
            value_steps: KV_BLOCK / step,
        }
    }

    /// Keys of a block, transposed: (steps of K, 64).
    #[inline(always)]
    pub(super) fn key_block(&self) -> usize {
        self.steps * KV_BLOCK
    }

    /// Values of a block: (steps of 64 positions, padded).
    #[inline(always)]
    pub(super) fn value_block(&self) -> usize {
        self.value_steps * self.padded
    }

    /// A row of K values as words, and what its last vector has more.
    #[inline(always)]
    pub(super) fn row(&self) -> usize {
        self.padded + LANES
    }

    /// Working memory of a query tile.
    #[inline(always)]
    fn tile<S: Simd, F: Factor<S>>(&self) -> usize {
        self.queries::<S, F>() + TILE * (KV_BLOCK + self.padded + 1 + LANES)
    }

    /// The query rows of a tile as a left operand, and what the last vector has more.
    #[inline(always)]
    pub(super) fn queries<S: Simd, F: Factor<S>>(&self) -> usize {
        TILE * self.query::<S, F>() + LANES
    }

    /// A query row as a left operand.
    #[inline(always)]
    pub(super) fn query<S: Simd, F: Factor<S>>(&self) -> usize {
        self.steps * F::PARTS
    }

    /// Puts a key at slot `slot` of a block of keys; `row` is working memory.
    ///
    /// # Safety
    /// As for [`Simd`].
    #[inline(always)]
    pub(super) unsafe fn put_key<S: Simd, F: Factor<S>>(
        &self,
        block: &mut [u32],
        slot: usize,
        key: &[f32],
        row: &mut [u32],
    ) {
        assert!(key.len() == self.d && row.len() >= self.row());
        // SAFETY: the key has d values, and `row` has room for 16 words more.
        unsafe { F::right_of_row(row.as_mut_ptr(), key.as_ptr(), self.d) };
        let to = block[slot..self.key_block()].iter_mut().step_by(KV_BLOCK);
        for (to, word) in to.zip(&*row) {
            *to = *word;
        }
    }

    /// Puts a value at slot `slot` of a block of values; `row` is working memory.
    ///
    /// # Safety
    /// As for [`Simd`].
    #[inline(always)]
    pub(super) unsafe fn put_value<S: Simd, F: Factor<S>>(
        &self,
        block: &mut [u32],
        slot: usize,
        value: &[f32],
        row: &mut [u32],
    ) {
        assert!(value.len() == self.d && row.len() >= self.row());
        // SAFETY: the value has d values, and `row` has room for as many words.
        unsafe { F::right_of_columns(row.as_mut_ptr(), value.as_ptr(), null(), self.d) };
        // A word is the values of as many positions as a step has: the first in its lowest bits.
        let bits = 32 / F::STEP;
        let shift = slot % F::STEP * bits;
        let others = !(u32::MAX >> (32 - bits) << shift);
        let to = &mut block[slot / F::STEP * self.padded..][..self.d];
        for (to, word) in to.iter_mut().zip(&*row) {
            *to = *to & others | *word << shift;
        }
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
pub(super) fn memory_len<S: Simd, F: Factor<S>>(sizes: Sizes, queries: usize) -> usize {
    queries.div_ceil(TILE) * sizes.tile::<S, F>()
}

/// The queries `range` of q (T H, K), at most [`TOGETHER`], against all keys that they see. `block(b)` is the keys
/// and the values of block b; `done(row, tile, r)` takes the result for a row of q, which is row r of
/// the tile.
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
pub(super) unsafe fn attend<'a, S: Simd, F: Factor<S>>(
    memory: &mut [u32],
    sizes: Sizes,
    queries: Queries,
    range: Range<usize>,
    q: &[f32],
    block: impl Fn(usize) -> (&'a [u32], &'a [u32]),
    mut done: impl FnMut(usize, &QueryTile, usize),
) {
    let tiles = || range.clone().step_by(TILE);
    let of_tile = |first: usize| first..range.end.min(first + TILE);
    let seen = |some: &Range<usize>| {
        let (first, last) = (queries.position(some.start), queries.position(some.end - 1));
        visible_blocks(first, last, queries.window)
    };
    for (first, memory) in tiles().zip(memory.chunks_exact_mut(sizes.tile::<S, F>())) {
        let mut tile = QueryTile::new::<S, F>(memory, sizes);
        for (r, i) in of_tile(first).enumerate() {
            let query = &q[queries.row(i) * sizes.d..][..sizes.d];
            let words = &mut tile.q[r * sizes.query::<S, F>()..];
            // SAFETY: a query has d values; after the words of the last there is room for 16 more.
            unsafe { F::left_of_row(words.as_mut_ptr(), query.as_ptr(), sizes.d) };
        }
        tile.start();
    }
    for b in seen(&range) {
        let (keys, values) = block(b);
        for (first, memory) in tiles().zip(memory.chunks_exact_mut(sizes.tile::<S, F>())) {
            let some = of_tile(first);
            if seen(&some).contains(&b) {
                let mut tile = QueryTile::new::<S, F>(memory, sizes);
                // SAFETY: forwarded to the caller.
                unsafe { tile.attend::<S, F>(keys, values, b * KV_BLOCK, queries, some) };
            }
        }
    }
    for (first, memory) in tiles().zip(memory.chunks_exact_mut(sizes.tile::<S, F>())) {
        let tile = QueryTile::new::<S, F>(memory, sizes);
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
    q: &'a mut [u32],      // (rows, steps of K, parts)
    scores: &'a mut [f32], // (rows, 64): then weights, as the words of a left operand
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
    fn new<S: Simd, F: Factor<S>>(memory: &'a mut [u32], sizes: Sizes) -> QueryTile<'a> {
        let (q, rest) = memory.split_at_mut(sizes.queries::<S, F>());
        let (scores, rest) = as_floats(rest).split_at_mut(TILE * KV_BLOCK);
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

    /// Takes one block of keys and values in, for queries `range`.
    ///
    /// # Safety
    /// As for [`Simd`].
    #[inline(always)]
    unsafe fn attend<S: Simd, F: Factor<S>>(
        &mut self,
        keys: &[u32],
        values: &[u32],
        first_key: usize,
        queries: Queries,
        range: Range<usize>,
    ) {
        let sizes = self.sizes;
        let rows = range.len();
        assert!(rows <= TILE && keys.len() >= sizes.key_block());
        assert!(values.len() >= sizes.value_block());
        // SAFETY: sizes as asserted; the tile's own parts have theirs by construction.
        unsafe {
            product::<S, F>(
                self.scores.as_mut_ptr(),
                KV_BLOCK,
                Left {
                    ptr: self.q.as_ptr(),
                    row_stride: sizes.query::<S, F>(),
                    part_stride: 1,
                },
                (keys.as_ptr(), KV_BLOCK),
                (rows, KV_BLOCK, sizes.steps),
                false,
            );
            for (r, i) in range.enumerate() {
                let seen = visible(queries.position(i), first_key, queries.window);
                self.weigh::<S, F>(r, seen);
            }
            product::<S, F>(
                self.o.as_mut_ptr(),
                sizes.padded,
                Left {
                    ptr: self.scores.as_ptr().cast(),
                    row_stride: KV_BLOCK,
                    part_stride: 1,
                },
                (values.as_ptr(), sizes.padded),
                (rows, sizes.padded, sizes.value_steps),
                true,
            );
        }
    }

    /// The scores of row r become weights by its running maximum, which what was summed before follows.
    ///
    /// # Safety
    /// As for [`Simd`].
    #[inline(always)]
    unsafe fn weigh<S: Simd, F: Factor<S>>(&mut self, r: usize, seen: Range<usize>) {
        let Sizes { d, padded, .. } = self.sizes;
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
            F::left_in_place(row, KV_BLOCK);
        }
    }

    /// Writes row r of the result (K); returns the logarithm of the sum of exponentials.
    #[inline(always)]
    pub(super) fn finish(&self, r: usize, out: &mut [f32]) -> f32 {
        let Sizes { d, padded, .. } = self.sizes;
        let inverse = 1.0 / self.sum[r * LANES];
        for (out, &o) in out.iter_mut().zip(&self.o[r * padded..][..d]) {
            *out = o * inverse;
        }
        self.max[r] + self.sum[r * LANES].ln()
    }
}

/// c (m, n) = or += a (m, steps) b (steps, n), n whole vectors; b and c have row strides. Each element is one chain
/// over the steps in ascending order.
///
/// # Safety
/// The pointers reach over the sizes.
#[inline(always)]
pub(super) unsafe fn product<S: Simd, F: Factor<S>>(
    c: *mut f32,
    ldc: usize,
    a: Left,
    b: (*const u32, usize),
    (m, n, steps): (usize, usize, usize),
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
                let mut a = a;
                a.ptr = a.ptr.add(i * a.row_stride);
                let b = (b.0.add(j), b.1);
                match (rows, vectors) {
                    (4, 4) => cell::<S, F, 4, 4>(c, ldc, a, b, steps, accumulate),
                    (4, 3) => cell::<S, F, 4, 3>(c, ldc, a, b, steps, accumulate),
                    (4, 2) => cell::<S, F, 4, 2>(c, ldc, a, b, steps, accumulate),
                    (4, _) => cell::<S, F, 4, 1>(c, ldc, a, b, steps, accumulate),
                    (_, 4) => each_row::<S, F, 4>(rows, c, ldc, a, b, steps, accumulate),
                    (_, 3) => each_row::<S, F, 3>(rows, c, ldc, a, b, steps, accumulate),
                    (_, 2) => each_row::<S, F, 2>(rows, c, ldc, a, b, steps, accumulate),
                    _ => each_row::<S, F, 1>(rows, c, ldc, a, b, steps, accumulate),
                }
            }
            j += vectors * S::LANES;
        }
        i += rows;
    }
}

#[inline(always)]
unsafe fn each_row<S: Simd, F: Factor<S>, const V: usize>(
    rows: usize,
    c: *mut f32,
    ldc: usize,
    mut a: Left,
    b: (*const u32, usize),
    steps: usize,
    accumulate: bool,
) {
    for r in 0..rows {
        // SAFETY: forwarded.
        unsafe {
            cell::<S, F, 1, V>(c.add(r * ldc), ldc, a, b, steps, accumulate);
            a.ptr = a.ptr.add(a.row_stride);
        }
    }
}

#[inline(always)]
unsafe fn cell<S: Simd, F: Factor<S>, const R: usize, const V: usize>(
    c: *mut f32,
    ldc: usize,
    a: Left,
    b: (*const u32, usize),
    steps: usize,
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
        for i in 0..steps {
            // Written out: in a loop the sums would not stay in registers.
            madd_part::<S, F, R, V>(&mut acc, a, b, i, 0);
            if F::PARTS == 2 {
                madd_part::<S, F, R, V>(&mut acc, a, b, i, 1);
            }
        }
        for r in 0..R {
            for v in 0..V {
                S::store(c.add(r * ldc + v * S::LANES), acc[r][v]);
            }
        }
    }
}

/// One part of a step.
#[inline(always)]
unsafe fn madd_part<S: Simd, F: Factor<S>, const R: usize, const V: usize>(
    acc: &mut [[S::V; V]; R],
    a: Left,
    b: (*const u32, usize),
    step: usize,
    part: usize,
) {
    // SAFETY: see `product`.
    unsafe {
        let b = b.0.add(step * b.1);
        let mut row = [F::load(b, part); V];
        for v in 1..V {
            row[v] = F::load(b.add(v * S::LANES), part);
        }
        let a_part = a.ptr.add((step * F::PARTS + part) * a.part_stride);
        for r in 0..R {
            let x = F::splat(a_part.add(r * a.row_stride));
            for v in 0..V {
                acc[r][v] = F::madd(acc[r][v], x, row[v]);
            }
        }
    }
}
