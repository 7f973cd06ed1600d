//! The register tile: some rows by two vectors of columns, over a stretch of the depth; and its kernel for
//! factors that are floats.

use super::aside::{Aside, Done, ForBlocks};
use super::plan::WIDE_ROWS;
use crate::factor::{Factor, Left, Widened};
use crate::simd::Simd;
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
    /// Words of a block of rows that are packed at a time.
    fn block_words(self) -> usize;
    /// Words of a panel that one pass over a block of rows takes. y carries the chain from pass to pass.
    fn pass_words(self) -> usize;
    /// Steps of the left operand from `k` consecutive values, the last step perhaps not whole. `out` has
    /// room for 16 words more than are made.
    unsafe fn left_of_row(self, out: *mut u32, x: *const f32, k: usize);
    /// Computes a tile.
    unsafe fn tile(self, tile: Tile<ForBlocks>);

    /// Whether tiles pack and move what [`ForBlocks`] says, and not only fetch.
    fn works_aside(self) -> bool {
        false
    }
    /// Moves a tile that is done.
    unsafe fn move_done(self, _done: Done) {}

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
    unsafe fn wide_tile(self, tile: Tile<ForBlocks>) {
        // SAFETY: forwarded.
        unsafe { self.tile(tile) }
    }
}

/// The product with panels of floats. Pairs that have no instruction of their own are widened for many rows: then they
/// are multiplied as f32 are, each value once.
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
        <Self as TileKernel<S, ForBlocks>>::ROWS
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
    // A block, the one that is packed meanwhile, a pass of a panel and one of the panel after it stay in a second-level
    // cache of 1 MiB.
    #[inline(always)]
    fn block_words(self) -> usize {
        48 << 10
    }
    // Each tile reads the panel again, and a second-level cache is fast enough for that: a step takes a tile 7 to
    // 14 cycles, and is two lines of it. So passes are deep, but where panels are widened: what is written there
    // stays in the first level.
    #[inline(always)]
    fn pass_words(self) -> usize {
        if F::PARTS == 1 { 32 << 10 } else { 8 << 10 }
    }
    #[inline(always)]
    unsafe fn left_of_row(self, out: *mut u32, x: *const f32, k: usize) {
        // SAFETY: forwarded (so for the block below).
        unsafe { F::left_of_row(out, x, k) }
    }
    #[inline(always)]
    fn works_aside(self) -> bool {
        true
    }
    #[inline(always)]
    unsafe fn tile(self, t: Tile<ForBlocks>) {
        // SAFETY: as above.
        unsafe { tile::<S, Self, _>(t) }
    }
    #[inline(always)]
    unsafe fn move_done(self, done: Done) {
        // SAFETY: as above.
        unsafe { done.move_all::<S>() }
    }
    #[inline(always)]
    fn wide_rows(self) -> usize {
        S::TILE_ROWS
    }
    #[inline(always)]
    fn wide_words(self) -> usize {
        if F::PARTS == 1 {
            0
        } else {
            F::PARTS * self.right_words()
        }
    }
    #[inline(always)]
    unsafe fn widen(self, out: *mut u32, right: *const u32, steps: usize) -> usize {
        // SAFETY: as above; a step of pairs becomes two.
        unsafe {
            for step in 0..steps {
                let from = right.add(step * self.right_words()).cast::<f32>();
                let to = out.add(step * self.wide_words()).cast::<f32>();
                for at in [0, S::LANES] {
                    let [first, second] = S::unzip_bf16(S::load(from.add(at)));
                    S::store(to.add(at), first);
                    S::store(to.add(2 * S::LANES + at), second);
                }
            }
        }
        F::PARTS * steps
    }
    #[inline(always)]
    unsafe fn wide_tile(self, t: Tile<ForBlocks>) {
        // SAFETY: as above.
        unsafe { tile::<S, Floats<S, Widened>, _>(t) }
    }
}

/// What a tile does with its place in the output.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Chain {
    /// The chain starts from zero and replaces the output.
    Start,
    /// The chain starts from the output.
    Continue,
    /// The chain starts from zero and is added to the output.
    AddOnce,
    /// As `Start`, and whole, of an output that is too large for the caches to keep: tiles that wait are moved past
    /// them. Rows of the output are aligned to vectors.
    Only,
}

/// Rows at most of a tile that goes through a strip of panels. With more, products are slower for the loop over panels.
pub(super) const STRIP_ROWS: usize = 4;

/// A tile: `rows` rows by `cols` columns, over `steps` steps; or a strip of them, over one whole panel after the other.
#[derive(Clone, Copy)]
pub(super) struct Tile<A> {
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// Panels of the strip, each with its columns of the output; one where there are more than [`STRIP_ROWS`] rows.
    pub(super) panels: usize,
    pub(super) steps: usize,
    pub(super) left: Left,
    pub(super) right: *const u32,
    /// Output rows lie `stride` apart.
    pub(super) out: *mut f32,
    pub(super) stride: usize,
    pub(super) chain: Chain,
    /// Whether rows of integers have upper bytes.
    pub(super) fine: bool,
    /// What it does for others.
    pub(super) aside: A,
}

impl<A> Tile<A> {
    /// Panels that R rows go through: known to be one where R is large, so that no loop is left.
    #[inline(always)]
    pub(super) fn strip<const R: usize>(&self) -> usize {
        if R > STRIP_ROWS { 1 } else { self.panels }
    }
}

/// R rows by two vectors of columns.
pub(super) trait TileKernel<S: Simd, A> {
    /// Rows of a tile at most.
    const ROWS: usize;

    /// Computes a tile of R rows and whole vectors.
    unsafe fn tile_rows<const R: usize>(tile: Tile<A>);
}

/// The most rows of a tile, and the most columns.
pub(super) const LARGEST: (usize, usize) = (14, 32);

/// Room for a copy of a tile at the edge. It aligns the whole frame to cache lines, and so the vectors for which there
/// is no register: across two lines they slow down a product by up to a fifth.
#[repr(align(64))]
struct Edge(#[expect(dead_code, reason = "read as floats")] [f32; LARGEST.0 * LARGEST.1]);

/// Computes a tile.
///
/// # Safety
/// `1 <= rows <= K::ROWS`, `1 <= cols <= 2 LANES`; the operands hold `steps` steps; the output is
/// valid for the rows and columns.
#[inline(always)]
pub(super) unsafe fn tile<S: Simd, K: TileKernel<S, A>, A: Copy>(tile: Tile<A>) {
    let Tile { rows, cols, .. } = tile;
    let is_edge = cols < 2 * S::LANES;
    let mut edge = MaybeUninit::<Edge>::uninit();
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
        whole_tile::<S, K, A>(whole);
        if is_edge {
            for r in 0..rows {
                let row = tile.out.add(r * tile.stride);
                std::ptr::copy_nonoverlapping(copy.add(r * LARGEST.1), row, cols);
            }
        }
    }
}

#[inline(always)]
unsafe fn whole_tile<S: Simd, K: TileKernel<S, A>, A>(tile: Tile<A>) {
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
impl<S: Simd, F: Factor<S>, A: Aside> TileKernel<S, A> for Floats<S, F> {
    const ROWS: usize = if F::PARTS > 1 && S::TILE_ROWS >= WIDE_ROWS {
        WIDE_ROWS - 1
    } else {
        S::TILE_ROWS
    };

    #[inline(always)]
    unsafe fn tile_rows<const R: usize>(tile: Tile<A>) {
        let panels = tile.strip::<R>();
        let Tile {
            steps,
            left: a,
            right: b,
            mut out,
            stride: ldc,
            chain,
            mut aside,
            ..
        } = tile;
        let mut b_step = b;
        for _ in 0..panels {
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
                }
                let mut a_part = a.ptr;
                let parts = aside.start::<S, F>(steps);
                let (each, rest) = (steps / parts, steps % parts);
                for idx in 0..parts {
                    let steps = each + usize::from(idx < rest);
                    let mut fetched = aside.part::<S, F>(idx, steps);
                    for _ in 0..steps {
                        // Written out: in a loop the sums would not stay in registers.
                        madd_part::<S, F, R>(&mut acc, a_part, a.row_stride, b_step, 0);
                        a_part = a_part.add(a.part_stride);
                        if F::PARTS == 2 {
                            madd_part::<S, F, R>(&mut acc, a_part, a.row_stride, b_step, 1);
                            a_part = a_part.add(a.part_stride);
                        }
                        b_step = b_step.add(2 * S::LANES);
                        fetched.step::<1>();
                    }
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
                out = out.add(2 * S::LANES);
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
