//! The gradient of weights: c (p, q) += a (m, p)^T b (m, q), summed over rows in their order; and the
//! same for groups of rows, each with its own c.
//!
//! Rows are taken in stretches of [`stretch_steps`] steps (one row; two where pairs of bf16 have an instruction) from
//! the first row of the group; the sum of a stretch is one chain from zero, in the order of the rows, and is added to c once.
//! Both sides are packed as they are read: some tiles of a and some panels of b at a time. Then each tile meets all
//! these panels.

use super::aside::{ForRows, Output, Values};
use super::left::{Rows, Scratch};
use super::micro::{self, Chain, Floats, Tiles};
use crate::factor::{Factor, LINE, Left, dispatch_own_factors, lanes};
use crate::pool::{SharedMut, part};
use crate::simd::Simd;
use crate::{Compute, Cpu, Isa};
use std::ops::Range;

/// Steps of a stretch: a panel of b and a tile of a take two thirds of a first-level cache of 48 KiB. The bits of a
/// sum depend on it.
const fn stretch_steps<S: Simd>() -> usize {
    (6 << 10) / (2 * S::LANES)
}

/// Words of a that are packed at a time, and of b: together they stay in a second-level cache of 1 MiB.
const LEFT_WORDS: usize = 104 << 10;
const RIGHT_WORDS: usize = 72 << 10;

/// Packed tiles of a that lie side by side, step by step: whole vectors on every instruction set.
const SIDE: usize = 4;

/// c (p, q) += a (m, p)^T b (m, q); p and q follow from the lengths.
pub fn matmul_tn(cpu: &Cpu, compute: Compute, c: &mut [f32], a: &[f32], b: &[f32], m: usize) {
    if m == 0 {
        return;
    }
    let (p, q) = (a.len() / m, b.len() / m);
    assert_eq!(a.len(), m * p, "matmul_tn: a is not (m, p)");
    assert_eq!(b.len(), m * q, "matmul_tn: b is not (m, q)");
    let a = Rows::in_order(a, p);
    let b = Rows::in_order(b, q);
    groups_tn(cpu, compute, c, a, b, 1, Half::Both, |_| 0..m);
}

/// What is computed of a group's c.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Half {
    Both,
    /// No less than what is on the diagonal and below it.
    Lower,
}

/// `c[e]` (p, q) += the product over `rows(e)`, for each of `groups` groups.
///
/// The columns of a, all groups end to end, are cut into pieces of equal work, and so are those of b where that
/// packs less (`cut`).
pub(crate) fn groups_tn(
    cpu: &Cpu,
    compute: Compute,
    c: &mut [f32],
    a: Rows,
    b: Rows,
    groups: usize,
    half: Half,
    rows: impl Fn(usize) -> Range<usize> + Sync,
) {
    let (p, q, isa) = (a.width, b.width, cpu.isa());
    assert_eq!(c.len(), groups * p * q, "c is not (groups, p, q)");
    if p == 0 || q == 0 {
        return;
    }
    let total: usize = (0..groups).map(|e| rows(e).len() * p).sum();
    let panels = q.div_ceil(2 * lanes(isa));
    let (pieces, across) = cut(groups * p, q, cpu.pool.threads());
    let out = SharedMut::new(c);
    cpu.pool.for_each(pieces * across, &|piece| {
        let panels = part(&(0..panels), piece % across, across);
        let work = part(&(0..total), piece / across, pieces);
        let mut done = 0;
        for e in 0..groups {
            let rows = rows(e);
            // The border falls on the same column for both pieces that share it.
            let column = |at: usize| {
                let column = at.saturating_sub(done) / rows.len().max(1);
                if column >= p {
                    p
                } else {
                    column / BORDER * BORDER
                }
            };
            let cols = column(work.start)..column(work.end);
            done += rows.len() * p;
            if !rows.is_empty() && !cols.is_empty() && !panels.is_empty() {
                let c = out.offset(e * p * q);
                group_tn(isa, compute, c, a, b, half, rows, cols, panels.clone());
            }
        }
    });
}

/// How many pieces the columns of a are cut into, and those of b: each piece packs its columns of both, and of all
/// ways to cut one for each thread the one that packs least is taken.
fn cut(p: usize, q: usize, threads: usize) -> (usize, usize) {
    let divisors = (1..=threads).filter(|across| threads.is_multiple_of(*across));
    let packed = |across: &usize| threads / across * q + across * p;
    let across = divisors.min_by_key(packed).unwrap_or(1);
    (threads / across, across)
}

/// Borders between pieces lie at multiples of this many columns of a.
const BORDER: usize = 12;

/// The rows of c that are `cols` of a, the columns that are `panels` of b: the serial core.
fn group_tn(
    isa: Isa,
    compute: Compute,
    c: SharedMut<f32>,
    a: Rows,
    b: Rows,
    half: Half,
    rows: Range<usize>,
    cols: Range<usize>,
    panels: Range<usize>,
) {
    dispatch_own_factors!(
        isa,
        compute,
        group_tn_of(
            c: SharedMut<f32>,
            a: Rows,
            b: Rows,
            half: Half,
            rows: Range<usize>,
            cols: Range<usize>,
            panels: Range<usize>,
        )
    );
}

#[inline(always)]
unsafe fn group_tn_of<S: Simd, F: Factor<S>>(
    c: SharedMut<f32>,
    a: Rows,
    b: Rows,
    half: Half,
    rows: Range<usize>,
    cols: Range<usize>,
    panels: Range<usize>,
) {
    let (nr, most) = (2 * S::LANES, stretch_steps::<S>());
    let (tile_words, panel_words) = (most * S::TILE_ROWS, most * nr);
    let (left_tiles, right_panels) = (LEFT_WORDS / tile_words, RIGHT_WORDS / panel_words);
    let tiles = 0..cols.len().div_ceil(S::TILE_ROWS);
    let left_blocks = tiles.len().div_ceil(left_tiles);
    let right_blocks = panels.len().div_ceil(right_panels);
    let mut scratch = Scratch::take();
    let memory = &mut *scratch;
    let groups = tiles.len().min(left_tiles).div_ceil(SIDE);
    (memory.left).reserve(groups * apart(SIDE * tile_words));
    (memory.right).reserve(panels.len().min(right_panels) * apart(panel_words));
    let (left, right) = (memory.left.as_mut_ptr(), memory.right.as_mut_ptr());
    let stretch_from = |start: usize| start..rows.end.min(start + most * F::STEP);
    let columns_of_a = |i: usize| {
        let tiles = part(&tiles, i, left_blocks);
        let column = |tile: usize| cols.end.min(cols.start + tile * S::TILE_ROWS);
        column(tiles.start)..column(tiles.end)
    };
    let columns_of_b = |j: usize| {
        let panels = part(&panels, j, right_blocks);
        panels.start * nr..b.width.min(panels.end * nr)
    };
    for start in rows.clone().step_by(most * F::STEP) {
        let stretch = stretch_from(start);
        for i in 0..left_blocks {
            let cols = columns_of_a(i);
            // SAFETY: the scratch has room for the tiles of a block, as many steps each as a stretch has.
            unsafe { pack_left::<S, F>(left, a, &stretch, cols.clone()) };
            for j in 0..right_blocks {
                let panels = part(&panels, j, right_blocks);
                // What is packed next, of a and of b.
                let (next_a, next_b) = if j + 1 < right_blocks {
                    (None, Some((stretch.clone(), j + 1)))
                } else if i + 1 < left_blocks {
                    let first = (right_blocks > 1).then(|| (stretch.clone(), 0));
                    (Some((stretch.clone(), i + 1)), first)
                } else {
                    let first = (stretch.end < rows.end).then(|| (stretch_from(stretch.end), 0));
                    (first.clone(), first)
                };
                let later = [
                    values(a, next_a, columns_of_a),
                    values(b, next_b, columns_of_b),
                ];
                // SAFETY: as above, for the panels; rows `cols` and columns `panels` of c belong to this thread.
                unsafe {
                    if i == 0 || right_blocks > 1 {
                        pack_right::<S, F>(right, b, &stretch, columns_of_b(j));
                    }
                    let steps = stretch.len().div_ceil(F::STEP);
                    packed_times::<S, F>(
                        c, half, b.width, left, right, steps, &cols, &panels, &later,
                    );
                }
            }
        }
    }
}

/// Columns of a stretch of rows, if any: those of the block that stands beside it.
#[inline(always)]
fn values(
    of: Rows,
    block: Option<(Range<usize>, usize)>,
    columns: impl Fn(usize) -> Range<usize>,
) -> Values {
    let (rows, columns) = match block {
        Some((rows, idx)) => (rows, columns(idx)),
        None => (0..0, 0..0),
    };
    Values { of, rows, columns }
}

/// Words from one packed panel to the next, or one group of tiles: a cache line more than they have, since they are
/// written side by side and would all fall into the same set of the cache.
const fn apart(words: usize) -> usize {
    words + LINE
}

/// Packed columns `cols` of a with packed `panels` of b, over `steps` steps, added to c of `q` columns. A tile of a
/// meets all panels before the next: so c is written along its rows, as the processor expects. Of the rows in `later`
/// each tile fetches its share.
#[inline(always)]
unsafe fn packed_times<S: Simd, F: Factor<S>>(
    c: SharedMut<f32>,
    half: Half,
    q: usize,
    left: *const u32,
    right: *const u32,
    steps: usize,
    cols: &Range<usize>,
    panels: &Range<usize>,
    later: &[Values],
) {
    let tiles = cols.len().div_ceil(S::TILE_ROWS) * panels.len();
    let (nr, side) = (2 * S::LANES, SIDE * S::TILE_ROWS);
    for (tile, col) in cols.clone().step_by(S::TILE_ROWS).enumerate() {
        let group = tile / SIDE * apart(side * steps);
        for panel in panels.clone() {
            if half == Half::Lower && panel * nr >= col + S::TILE_ROWS {
                break;
            }
            // SAFETY: forwarded to the caller.
            unsafe {
                let right = right.add((panel - panels.start) * apart(nr * steps));
                let out = c.ptr().add(col * q + panel * nr);
                let rows = (cols.end - col).min(S::TILE_ROWS);
                let next = Output {
                    ptr: out.wrapping_add(nr),
                    rows,
                    stride: q,
                };
                let idx = tile * panels.len() + panel - panels.start;
                micro::tiles::<S, Floats<S, F>, _>(&mut Tiles {
                    count: 1,
                    rows,
                    cols: nr.min(q - panel * nr),
                    panels: 1,
                    steps,
                    left: Left {
                        ptr: left.add(group + tile % SIDE * S::TILE_ROWS),
                        row_stride: 1,
                        part_stride: side,
                    },
                    right,
                    out,
                    stride: q,
                    chain: Chain::AddOnce,
                    fine: false,
                    aside: ForRows::share(later, idx, tiles, next),
                });
            }
        }
    }
}

/// The two rows of step `step` of a stretch, from column `col` on; the second is null where there is none.
#[inline(always)]
fn rows_of_step<S: Simd, F: Factor<S>>(
    from: Rows,
    stretch: &Range<usize>,
    step: usize,
    cols: &Range<usize>,
) -> (*const f32, *const f32) {
    let i = stretch.start + step * F::STEP;
    let second = if F::STEP == 2 && i + 1 < stretch.end {
        from.row(i + 1)[cols.clone()].as_ptr()
    } else {
        std::ptr::null()
    };
    (from.row(i)[cols.clone()].as_ptr(), second)
}

/// Columns `cols` of the rows in `stretch` as panels, each `[step][column]`, zeros for what the last lacks.
#[inline(always)]
unsafe fn pack_right<S: Simd, F: Factor<S>>(
    out: *mut u32,
    from: Rows,
    stretch: &Range<usize>,
    cols: Range<usize>,
) {
    let (steps, width) = (stretch.len().div_ceil(F::STEP), 2 * S::LANES);
    let (whole, rest) = (cols.len() / width, cols.len() % width);
    for step in 0..steps {
        let (first, second) = rows_of_step::<S, F>(from, stretch, step, &cols);
        for panel in 0..whole {
            // SAFETY: the rows were sliced to `cols`; `out` has room by the contract of this function.
            unsafe {
                let out = out.add(panel * apart(width * steps) + step * width);
                F::right_of_columns(
                    out,
                    first.add(panel * width),
                    after(second, panel * width),
                    width,
                );
            }
        }
        if rest > 0 {
            // SAFETY: as above.
            unsafe {
                let out = out.add(whole * apart(width * steps) + step * width);
                F::right_of_columns(
                    out,
                    first.add(whole * width),
                    after(second, whole * width),
                    rest,
                );
                std::slice::from_raw_parts_mut(out.add(rest), width - rest).fill(0);
            }
        }
    }
}

/// Columns `cols` of the rows in `stretch` as tiles, each `[step][column]`; what the last lacks is left as it is.
#[inline(always)]
unsafe fn pack_left<S: Simd, F: Factor<S>>(
    out: *mut u32,
    from: Rows,
    stretch: &Range<usize>,
    cols: Range<usize>,
) {
    let (steps, width) = (stretch.len().div_ceil(F::STEP), SIDE * S::TILE_ROWS);
    let (whole, rest) = (cols.len() / width, cols.len() % width);
    for step in 0..steps {
        let (first, second) = rows_of_step::<S, F>(from, stretch, step, &cols);
        for group in 0..=whole {
            let at = group * width;
            // SAFETY: the rows were sliced to `cols`; `out` has room by the contract of this function.
            unsafe {
                let out = out.add(group * apart(width * steps) + step * width);
                let (first, second) = (first.add(at), after(second, at));
                if group < whole {
                    F::left_of_columns(out, width, first, second, width);
                } else if rest > 0 {
                    F::left_of_columns(out, width, first, second, rest);
                }
            }
        }
    }
}

/// `p` advanced, or null.
#[inline(always)]
unsafe fn after(p: *const f32, by: usize) -> *const f32 {
    // SAFETY: forwarded to the caller.
    if p.is_null() { p } else { unsafe { p.add(by) } }
}
