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
    /// Computes tiles.
    unsafe fn tiles(self, tiles: &mut Tiles<ForBlocks>);

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
    /// Makes `steps` steps of a panel wide; returns how many steps of [`Kernel::wide_tiles`] they are.
    unsafe fn widen(self, _out: *mut u32, _right: *const u32, steps: usize) -> usize {
        steps
    }
    /// Computes tiles of a wide panel.
    unsafe fn wide_tiles(self, tiles: &mut Tiles<ForBlocks>) {
        // SAFETY: forwarded.
        unsafe { self.tiles(tiles) }
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
    unsafe fn tiles(self, t: &mut Tiles<ForBlocks>) {
        // SAFETY: as above.
        unsafe { tiles::<S, Self, _>(t) }
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
    unsafe fn wide_tiles(self, t: &mut Tiles<ForBlocks>) {
        // SAFETY: as above.
        unsafe { tiles::<S, Floats<S, Widened>, _>(t) }
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

/// Tiles one below the other, of one panel: `rows` rows by `cols` columns each, over `steps` steps. Or, where rows are
/// few, one tile that goes through a strip of panels, over one whole panel after the other.
#[derive(Clone, Copy)]
pub(super) struct Tiles<A> {
    pub(super) count: usize,
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// Panels of the strip, each with its columns of the output; one where there are more than [`STRIP_ROWS`] rows.
    pub(super) panels: usize,
    pub(super) steps: usize,
    /// Of the first tile that is not computed yet.
    pub(super) left: Left,
    pub(super) right: *const u32,
    /// The output of that tile; its rows lie `stride` apart.
    pub(super) out: *mut f32,
    pub(super) stride: usize,
    pub(super) chain: Chain,
    /// Whether rows of bytes have upper ones.
    pub(super) fine: bool,
    /// What they do for others.
    pub(super) aside: A,
}

impl<A> Tiles<A> {
    /// Panels that R rows go through: known to be one where R is large, so that no loop is left.
    #[inline(always)]
    pub(super) fn strip<const R: usize>(&self) -> usize {
        if R > STRIP_ROWS { 1 } else { self.panels }
    }

    /// Goes on to the tile after `count` more.
    #[inline(always)]
    pub(super) fn advance(&mut self, count: usize) {
        let rows = count * self.rows;
        self.left.ptr = self.left.ptr.wrapping_add(rows * self.left.row_stride);
        self.out = self.out.wrapping_add(rows * self.stride);
    }
}

/// R rows by two vectors of columns.
pub(super) trait TileKernel<S: Simd, A> {
    /// Rows of a tile at most.
    const ROWS: usize;

    /// Computes tiles of R rows and whole vectors.
    unsafe fn tiles_of<const R: usize>(tiles: &mut Tiles<A>);
}

/// The most rows of a tile, and the most columns.
pub(super) const LARGEST: (usize, usize) = (14, 32);

/// Room for a copy of a tile at the edge. It aligns the whole frame to cache lines, and so the vectors for which there
/// is no register: across two lines they slow down a product by up to a fifth.
#[repr(align(64))]
struct Edge(#[expect(dead_code, reason = "read as floats")] [f32; LARGEST.0 * LARGEST.1]);

/// Computes tiles, and leaves `tiles` at what follows them.
///
/// # Safety
/// `1 <= rows <= K::ROWS`, `1 <= cols <= 2 LANES`; the operands hold `steps` steps; the output is
/// valid for the rows and columns.
#[inline(always)]
pub(super) unsafe fn tiles<S: Simd, K: TileKernel<S, A>, A: Copy>(tiles: &mut Tiles<A>) {
    let Tiles {
        count,
        rows,
        cols,
        stride,
        ..
    } = *tiles;
    // SAFETY: forwarded; the copy of a tile at the edge has room for any tile.
    unsafe {
        if cols == 2 * S::LANES {
            return whole_tiles::<S, K, A>(tiles);
        }
        let mut edge = MaybeUninit::<Edge>::uninit();
        let copy = edge.as_mut_ptr().cast::<f32>();
        for _ in 0..count {
            copy.write_bytes(0, LARGEST.0 * LARGEST.1);
            for r in 0..rows {
                let row = tiles.out.add(r * stride);
                std::ptr::copy_nonoverlapping(row, copy.add(r * LARGEST.1), cols);
            }
            let mut whole = Tiles {
                count: 1,
                out: copy,
                stride: LARGEST.1,
                ..*tiles
            };
            whole_tiles::<S, K, A>(&mut whole);
            tiles.aside = whole.aside;
            for r in 0..rows {
                let row = tiles.out.add(r * stride);
                std::ptr::copy_nonoverlapping(copy.add(r * LARGEST.1), row, cols);
            }
            tiles.advance(1);
        }
    }
}

#[inline(always)]
unsafe fn whole_tiles<S: Simd, K: TileKernel<S, A>, A>(tiles: &mut Tiles<A>) {
    const { assert!(K::ROWS <= LARGEST.0 && 2 * S::LANES <= LARGEST.1) };
    macro_rules! by_rows {
        ($($r:literal)*) => {
            match tiles.rows {
                $($r if $r <= K::ROWS => {
                    // SAFETY: forwarded; this arm has as many rows as it says.
                    unsafe { K::tiles_of::<$r>(tiles) }
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
    unsafe fn tiles_of<const R: usize>(tiles: &mut Tiles<A>) {
        let panels = tiles.strip::<R>();
        let Tiles {
            count,
            steps,
            left: a,
            right: b,
            stride,
            chain,
            mut aside,
            ..
        } = *tiles;
        let many = if A::IN_ROWS { F::STEPS } else { 1 };
        let parts = aside.parts::<S, F>(R);
        let (each, rest) = (steps / many / parts, steps / many % parts);
        let mut fetch = aside.fetch(steps);
        let (mut rows, mut to) = (a.ptr, tiles.out);
        for idx in 0..count {
            let next = to.wrapping_add(R * stride);
            let (mut out, stride) = aside.begin(to, stride, R, (idx + 1 < count).then_some(next));
            let mut b_step = b;
            for _ in 0..panels {
                // SAFETY: see `tiles`.
                unsafe {
                    let mut sums = [[S::splat(0.0); 2]; R];
                    if chain == Chain::Continue {
                        for r in 0..R {
                            let row = out.add(r * stride);
                            sums[r] = [S::load(row), S::load(row.add(S::LANES))];
                        }
                    }
                    let mut a_part = rows;
                    for idx in 0..parts {
                        aside.part::<S, F>(idx, steps / parts, &mut fetch);
                        for _ in 0..each + usize::from(idx < rest) {
                            if many > 1 {
                                F::madd_steps(&mut sums, a_part, a.row_stride, b_step, &mut fetch);
                                a_part = a_part.add(many);
                                b_step = b_step.add(many * 2 * S::LANES);
                            } else {
                                madd_step::<S, F, R>(&mut sums, &mut a_part, a, &mut b_step);
                                fetch.step::<1>();
                            }
                        }
                    }
                    for _ in 0..steps % many {
                        madd_step::<S, F, R>(&mut sums, &mut a_part, a, &mut b_step);
                    }
                    if chain == Chain::AddOnce {
                        for r in 0..R {
                            let row = out.add(r * stride);
                            sums[r][0] = S::add(S::load(row), sums[r][0]);
                            sums[r][1] = S::add(S::load(row.add(S::LANES)), sums[r][1]);
                        }
                    }
                    for r in 0..R {
                        let row = out.add(r * stride);
                        S::store(row, sums[r][0]);
                        S::store(row.add(S::LANES), sums[r][1]);
                    }
                    out = out.add(2 * S::LANES);
                }
            }
            rows = rows.wrapping_add(R * a.row_stride);
            to = next;
        }
        aside.end(fetch);
        tiles.aside = aside;
        tiles.advance(count);
    }
}

/// One step, and on to the next.
#[inline(always)]
unsafe fn madd_step<S: Simd, F: Factor<S>, const R: usize>(
    sums: &mut [[S::V; 2]; R],
    a_part: &mut *const u32,
    a: Left,
    b_step: &mut *const u32,
) {
    // SAFETY: see `tiles`.
    unsafe {
        // Written out: in a loop the sums would not stay in registers.
        madd_part::<S, F, R>(sums, *a_part, a.row_stride, *b_step, 0);
        *a_part = a_part.add(a.part_stride);
        if F::PARTS == 2 {
            madd_part::<S, F, R>(sums, *a_part, a.row_stride, *b_step, 1);
            *a_part = a_part.add(a.part_stride);
        }
        *b_step = b_step.add(2 * S::LANES);
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
    // SAFETY: see `tiles`.
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
