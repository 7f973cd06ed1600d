//! The register tile: some rows by two vectors of columns, over a stretch of the depth; and its kernel for
//! factors that are floats.
//!
//! Operands lie in memory as *words* of four bytes. A *step* of depth is one value (f32) or two (bf16). It
//! takes one word of a column of the right operand: a value, or a pair. Of a row of the left one it takes
//! a word for each of its *parts*: the value, the pair as a dot product wants it, or, where pairs are
//! multiplied value by value, both values rounded but in f32, so that only the right operand, which many
//! rows share, is widened in the loop.

use crate::row::{self, for_lanes};
use crate::simd::Simd;
use half::bf16;
use std::marker::PhantomData;
use std::mem::MaybeUninit;

/// How rows are multiplied with the panels of one type. A panel is a sequence of steps of its depth.
pub(super) trait Kernel: Copy {
    /// Rows of a tile at most.
    fn rows(self) -> usize;
    /// Values of depth in a step.
    fn depth(self) -> usize;
    /// Words of a step of a panel.
    fn right_words(self) -> usize;
    /// Words of a step of a row of the left operand.
    fn left_words(self) -> usize;
    /// Steps of the left operand from `k` consecutive values, the last step perhaps not whole. `out` has
    /// room for 16 words more than are made.
    unsafe fn left_of_row(self, out: *mut u32, x: *const f32, k: usize);
    /// Computes a tile.
    unsafe fn tile(self, tile: Tile);

    /// Rows of a tile of a wide panel at most.
    fn wide_rows(self) -> usize {
        self.rows()
    }
    /// Words of a step of a panel that was made wide for many rows; 0 where panels are not.
    fn wide_words(self) -> usize {
        0
    }
    /// Makes `steps` steps of a panel wide; returns how many steps of [`Kernel::wide_tile`] they are.
    unsafe fn widen(self, _out: *mut u32, _right: *const u32, steps: usize) -> usize {
        steps
    }
    /// Computes a tile of a wide panel.
    unsafe fn wide_tile(self, tile: Tile) {
        // SAFETY: forwarded.
        unsafe { self.tile(tile) }
    }
}

/// The product with panels of floats.
pub(super) struct Floats<S, F>(PhantomData<(S, F)>);

impl<S, F> Floats<S, F> {
    pub(super) fn new() -> Floats<S, F> {
        Floats(PhantomData)
    }
}

impl<S, F> Clone for Floats<S, F> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<S, F> Copy for Floats<S, F> {}

impl<S: Simd, F: Factor<S>> Kernel for Floats<S, F> {
    #[inline(always)]
    fn rows(self) -> usize {
        S::TILE_ROWS
    }
    #[inline(always)]
    fn depth(self) -> usize {
        F::STEP
    }
    #[inline(always)]
    fn right_words(self) -> usize {
        2 * S::LANES
    }
    #[inline(always)]
    fn left_words(self) -> usize {
        F::PARTS
    }
    #[inline(always)]
    unsafe fn left_of_row(self, out: *mut u32, x: *const f32, k: usize) {
        // SAFETY: forwarded (so for the block below).
        unsafe { F::left_of_row(out, x, k) }
    }
    #[inline(always)]
    unsafe fn tile(self, t: Tile) {
        // SAFETY: as above.
        unsafe { tile::<S, Self>(t) }
    }
}

/// What a word holds, and how words are multiplied.
pub(super) trait Factor<S: Simd> {
    /// A vector of one part of a step.
    type Operand: Copy;
    /// Values of depth in a step.
    const STEP: usize;
    /// Parts of a step.
    const PARTS: usize;

    /// A part of a vector of words of the right operand.
    unsafe fn load(p: *const u32, part: usize) -> Self::Operand;
    /// One word of the left operand in every lane.
    unsafe fn splat(p: *const u32) -> Self::Operand;
    /// acc + a b, over the values of a part.
    unsafe fn madd(acc: S::V, a: Self::Operand, b: Self::Operand) -> S::V;
    /// Words of the right operand of `k` consecutive values; an odd last value is paired with zero.
    /// `out` has room for 16 words more than are made.
    unsafe fn right_of_row(out: *mut u32, x: *const f32, k: usize);
    /// Words of the right operand of `width` columns: from `first` alone, or from the pairs of `first`
    /// and `second`; without a second row (null) the other half is zero.
    unsafe fn right_of_columns(out: *mut u32, first: *const f32, second: *const f32, width: usize);
    /// As `right_of_row`, for the left operand: the words of a step follow one another.
    unsafe fn left_of_row(out: *mut u32, x: *const f32, k: usize);
    /// As `right_of_columns`, for the left operand: the words of a part lie `stride` after those of the
    /// part before.
    unsafe fn left_of_columns(
        out: *mut u32,
        stride: usize,
        first: *const f32,
        second: *const f32,
        width: usize,
    );
}

/// One f32 a word.
pub(super) struct F32;
/// Two bf16 a word.
pub(super) struct Bf16;

impl<S: Simd> Factor<S> for F32 {
    type Operand = S::V;
    const STEP: usize = 1;
    const PARTS: usize = 1;

    #[inline(always)]
    unsafe fn load(p: *const u32, _: usize) -> S::V {
        // SAFETY: by the contract of the trait (so for every block of this impl).
        unsafe { S::load(p.cast()) }
    }
    #[inline(always)]
    unsafe fn splat(p: *const u32) -> S::V {
        // SAFETY: as above.
        unsafe { S::splat(*p.cast()) }
    }
    #[inline(always)]
    unsafe fn madd(acc: S::V, a: S::V, b: S::V) -> S::V {
        // SAFETY: as above.
        unsafe { S::fma(a, b, acc) }
    }
    #[inline(always)]
    unsafe fn right_of_row(out: *mut u32, x: *const f32, k: usize) {
        // SAFETY: as above.
        unsafe { std::ptr::copy_nonoverlapping(x.cast(), out, k) }
    }
    #[inline(always)]
    unsafe fn right_of_columns(out: *mut u32, first: *const f32, _: *const f32, width: usize) {
        // SAFETY: as above.
        unsafe { std::ptr::copy_nonoverlapping(first.cast(), out, width) }
    }
    #[inline(always)]
    unsafe fn left_of_row(out: *mut u32, x: *const f32, k: usize) {
        // SAFETY: as above.
        unsafe { std::ptr::copy_nonoverlapping(x.cast(), out, k) }
    }
    #[inline(always)]
    unsafe fn left_of_columns(
        out: *mut u32,
        _: usize,
        first: *const f32,
        _: *const f32,
        width: usize,
    ) {
        // SAFETY: as above.
        unsafe { std::ptr::copy_nonoverlapping(first.cast(), out, width) }
    }
}

impl<S: Simd> Factor<S> for Bf16 {
    type Operand = S::P;
    const STEP: usize = 2;
    const PARTS: usize = S::PAIR_PARTS;

    #[inline(always)]
    unsafe fn load(p: *const u32, part: usize) -> S::P {
        // SAFETY: by the contract of the trait (so for every block of this impl).
        unsafe { S::load_pairs(p.cast(), part) }
    }
    #[inline(always)]
    unsafe fn splat(p: *const u32) -> S::P {
        // SAFETY: as above.
        unsafe { S::splat_pair(p.cast()) }
    }
    #[inline(always)]
    unsafe fn madd(acc: S::V, a: S::P, b: S::P) -> S::V {
        // SAFETY: as above.
        unsafe { S::dot_pairs(acc, a, b) }
    }
    #[inline(always)]
    unsafe fn right_of_row(out: *mut u32, x: *const f32, k: usize) {
        let out = out.cast::<bf16>();
        let mut i = 0;
        // SAFETY: as above; a vector has at most 16 lanes, so that the last store ends within the
        // 16 words more.
        unsafe {
            while i + S::LANES <= k {
                S::store_factors(out.add(i), S::load(x.add(i)));
                i += S::LANES;
            }
            if i < k {
                S::store_factors(out.add(i), S::load_partial(x.add(i), k - i));
            }
        }
    }
    #[inline(always)]
    unsafe fn right_of_columns(out: *mut u32, first: *const f32, second: *const f32, width: usize) {
        // SAFETY: as above; `j + n <= width`.
        unsafe {
            for_lanes!(S, width, |j, n| {
                let first = row::load::<S>(first.add(j), n);
                let second = load_or_zero::<S>(second, j, n);
                row::store::<S>(out.add(j).cast(), S::pair_up(first, second), n);
            });
        }
    }
    #[inline(always)]
    unsafe fn left_of_row(out: *mut u32, x: *const f32, k: usize) {
        // SAFETY: as above; `i + n <= k`.
        unsafe {
            if S::PAIR_PARTS == 1 {
                return <Bf16 as Factor<S>>::right_of_row(out, x, k);
            }
            for_lanes!(S, k, |i, n| {
                let x = S::round_bf16(row::load::<S>(x.add(i), n));
                row::store::<S>(out.add(i).cast(), x, n);
            });
            if k % 2 == 1 {
                *out.add(k) = 0;
            }
        }
    }
    #[inline(always)]
    unsafe fn left_of_columns(
        out: *mut u32,
        stride: usize,
        first: *const f32,
        second: *const f32,
        width: usize,
    ) {
        // SAFETY: as above; `j + n <= width`.
        unsafe {
            if S::PAIR_PARTS == 1 {
                return <Bf16 as Factor<S>>::right_of_columns(out, first, second, width);
            }
            for_lanes!(S, width, |j, n| {
                let first = S::round_bf16(row::load::<S>(first.add(j), n));
                let second = S::round_bf16(load_or_zero::<S>(second, j, n));
                row::store::<S>(out.add(j).cast(), first, n);
                row::store::<S>(out.add(stride + j).cast(), second, n);
            });
        }
    }
}

/// The `n` values at `row[j]`; zero where there is no row.
#[inline(always)]
unsafe fn load_or_zero<S: Simd>(row: *const f32, j: usize, n: usize) -> S::V {
    // SAFETY: a row that is there has `j + n` values.
    unsafe {
        if row.is_null() {
            S::splat(0.0)
        } else {
            row::load::<S>(row.add(j), n)
        }
    }
}

/// The left operand of a tile: word of row r, step i and part j at
/// `ptr + r row_stride + (i PARTS + j) part_stride`.
#[derive(Clone, Copy)]
pub(super) struct Left {
    pub(super) ptr: *const u32,
    pub(super) row_stride: usize,
    pub(super) part_stride: usize,
}

/// What a tile does with its place in the output.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Chain {
    /// The chain starts from zero and replaces the output.
    Start,
    /// The chain starts from the output.
    Continue,
    /// The chain starts from zero and is added to the output.
    AddOnce,
}

/// A tile: `rows` rows by `cols` columns, over `steps` steps.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) steps: usize,
    pub(super) left: Left,
    pub(super) right: *const u32,
    /// Output rows lie `stride` apart.
    pub(super) out: *mut f32,
    pub(super) stride: usize,
    pub(super) chain: Chain,
    /// Whether rows of integers have upper bytes.
    pub(super) fine: bool,
}

/// R rows by two vectors of columns.
pub(super) trait TileKernel<S: Simd> {
    /// Rows of a tile at most.
    const ROWS: usize;

    /// Computes a tile of R rows and whole vectors.
    unsafe fn tile_rows<const R: usize>(tile: Tile);
}

/// The most rows of a tile, and the most columns.
const LARGEST: (usize, usize) = (14, 32);

/// Computes a tile.
///
/// # Safety
/// `1 <= rows <= K::ROWS`, `1 <= cols <= 2 LANES`; the operands hold `steps` steps; the output is
/// valid for the rows and columns.
#[inline(always)]
pub(super) unsafe fn tile<S: Simd, K: TileKernel<S>>(tile: Tile) {
    let Tile { rows, cols, .. } = tile;
    let is_edge = cols < 2 * S::LANES;
    let mut edge = MaybeUninit::<[f32; LARGEST.0 * LARGEST.1]>::uninit();
    // SAFETY: forwarded; the copy of a tile at the edge has room for any tile.
    unsafe {
        let copy = edge.as_mut_ptr().cast::<f32>();
        let mut whole = tile;
        if is_edge {
            (whole.out, whole.stride) = (copy, LARGEST.1);
            copy.write_bytes(0, LARGEST.0 * LARGEST.1);
            for r in 0..rows {
                let row = tile.out.add(r * tile.stride);
                std::ptr::copy_nonoverlapping(row, copy.add(r * LARGEST.1), cols);
            }
        }
        whole_tile::<S, K>(whole);
        if is_edge {
            for r in 0..rows {
                let row = tile.out.add(r * tile.stride);
                std::ptr::copy_nonoverlapping(copy.add(r * LARGEST.1), row, cols);
            }
        }
    }
}

#[inline(always)]
unsafe fn whole_tile<S: Simd, K: TileKernel<S>>(tile: Tile) {
    const { assert!(K::ROWS <= LARGEST.0 && 2 * S::LANES <= LARGEST.1) };
    macro_rules! by_rows {
        ($($r:literal)*) => {
            match tile.rows {
                $($r if $r <= K::ROWS => {
                    // SAFETY: forwarded; this arm has as many rows as it says.
                    unsafe { K::tile_rows::<$r>(tile) }
                })*
                rows => debug_assert!(false, "a tile of {rows} rows"),
            }
        };
    }
    by_rows!(1 2 3 4 5 6 7 8 9 10 11 12 13 14);
}

// The loops over rows must all unroll, or the sums live in memory: their bodies are kept small.
impl<S: Simd, F: Factor<S>> TileKernel<S> for Floats<S, F> {
    const ROWS: usize = S::TILE_ROWS;

    #[inline(always)]
    unsafe fn tile_rows<const R: usize>(tile: Tile) {
        let Tile {
            steps,
            left: a,
            right: b,
            out,
            stride: ldc,
            chain,
            ..
        } = tile;
        // SAFETY: see `tile`.
        unsafe {
            let mut acc = [[S::splat(0.0); 2]; R];
            if chain == Chain::Continue {
                for r in 0..R {
                    acc[r] = [
                        S::load(out.add(r * ldc)),
                        S::load(out.add(r * ldc + S::LANES)),
                    ];
                }
            } else {
                for r in 0..R {
                    S::prefetch(out.add(r * ldc));
                    S::prefetch(out.add(r * ldc + S::LANES));
                }
            }
            let (mut a_part, mut b_step) = (a.ptr, b);
            for _ in 0..steps {
                // Written out: in a loop the sums would not stay in registers.
                madd_part::<S, F, R>(&mut acc, a_part, a.row_stride, b_step, 0);
                a_part = a_part.add(a.part_stride);
                if F::PARTS == 2 {
                    madd_part::<S, F, R>(&mut acc, a_part, a.row_stride, b_step, 1);
                    a_part = a_part.add(a.part_stride);
                }
                b_step = b_step.add(2 * S::LANES);
            }
            if chain == Chain::AddOnce {
                for r in 0..R {
                    acc[r][0] = S::add(S::load(out.add(r * ldc)), acc[r][0]);
                    acc[r][1] = S::add(S::load(out.add(r * ldc + S::LANES)), acc[r][1]);
                }
            }
            for r in 0..R {
                S::store(out.add(r * ldc), acc[r][0]);
                S::store(out.add(r * ldc + S::LANES), acc[r][1]);
            }
        }
    }
}

/// One part of a step.
#[inline(always)]
unsafe fn madd_part<S: Simd, F: Factor<S>, const R: usize>(
    acc: &mut [[S::V; 2]; R],
    a: *const u32,
    row_stride: usize,
    b: *const u32,
    part: usize,
) {
    // SAFETY: see `tile`.
    unsafe {
        let b0 = F::load(b, part);
        let b1 = F::load(b.add(S::LANES), part);
        for r in 0..R {
            let x = F::splat(a.add(r * row_stride));
            acc[r][0] = F::madd(acc[r][0], x, b0);
            acc[r][1] = F::madd(acc[r][1], x, b1);
        }
    }
}
