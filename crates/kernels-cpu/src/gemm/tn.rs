//! The gradient of weights: c (p, q) += a (m, p)^T b (m, q), summed over rows in their order; and the
//! same for groups of rows, each with its own c.
//!
//! Rows are taken in stretches of [`stretch_rows`] from the first row of the group; the sum of a stretch is one chain
//! from zero, in the order of the rows, and is added to c once.
//! Some columns of a and some panels of b are multiplied at a time, so that what is packed of both stays in a
//! second-level cache: each tile meets all these panels, alone or together with those beside it. Then come the next
//! panels, and after the last of them the next columns of a, which meet the same panels: those stay packed. Tiles pack
//! what comes after them, a little each, or fetch it where it is packed already ([`super::columns`]).

use super::aside::{Output, Piece};
use super::columns::{Columns, ForColumns};
use super::left::{Rows, Scratch};
use super::micro::{self, Chain, Floats, Tiles};
use crate::factor::{Factor, LINE, Left, dispatch_own_factors, lanes};
use crate::pool::{SharedMut, part};
use crate::simd::Simd;
use crate::{Compute, Cpu, Isa};
use std::ops::Range;

/// Rows of a stretch. With vectors of eight lanes a panel of b and all tiles of a side take two thirds of a first-level
/// cache of 32 KiB; longer ones come from the second level, and c is met less often. The bits of a sum depend on it.
const fn stretch_rows<S: Simd>() -> usize {
    match S::LANES {
        16 => 512,
        8 => 128,
        _ => 768,
    }
}

/// Steps of a stretch.
const fn stretch_steps<S: Simd, F: Factor<S>>() -> usize {
    stretch_rows::<S>() / F::STEP
}

/// Words of a that are multiplied with some panels at a time, and words of these. The first and twice the second leave
/// a quarter of a second-level cache of 1 MiB to what passes through it.
const fn words_together<S: Simd>() -> (usize, usize) {
    match S::LANES {
        16 => (100 << 10, 32 << 10),
        _ => (104 << 10, 48 << 10),
    }
}

/// Words of b that stay packed until all columns of a have met them: 4 MiB, of a third-level cache.
const KEPT_WORDS: usize = 1 << 20;

/// Tiles of a that lie side by side, step by step: whole vectors on every instruction set.
const SIDE: usize = 4;

/// Columns of a that meet a panel before the next does: a tile, or all of a side where the cache holds that.
const fn group<S: Simd>() -> usize {
    let tiles = if S::LANES == 8 { SIDE } else { 1 };
    tiles * S::TILE_ROWS
}

/// Columns of a that lie side by side.
pub(super) const fn side<S: Simd>() -> usize {
    SIDE * S::TILE_ROWS
}

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
        let mut parts = (0..groups).map(|e| {
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
            Part {
                c: out.offset(e * p * q),
                rows,
                cols,
            }
        });
        if !panels.is_empty() {
            parts_tn(isa, compute, a, b, half, &mut parts, panels);
        }
    });
}

/// Columns of a group.
struct Part {
    /// The group's c.
    c: SharedMut<f32>,
    rows: Range<usize>,
    cols: Range<usize>,
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
const BORDER: usize = 4;

/// The rows of c that are columns of `parts`, the columns that are `panels` of b: the serial core.
fn parts_tn(
    isa: Isa,
    compute: Compute,
    a: Rows,
    b: Rows,
    half: Half,
    parts: &mut dyn Iterator<Item = Part>,
    panels: Range<usize>,
) {
    dispatch_own_factors!(
        isa,
        compute,
        parts_tn_of(
            a: Rows,
            b: Rows,
            half: Half,
            parts: &mut dyn Iterator<Item = Part>,
            panels: Range<usize>,
        )
    );
}

/// A stretch of the rows of a part, some of its columns and some panels.
struct Block {
    c: SharedMut<f32>,
    half: Half,
    rows: Range<usize>,
    cols: Range<usize>,
    panels: Range<usize>,
    /// Which of the panels that are kept these are; 0 where none are, since no other columns meet them.
    nth: usize,
    /// Whether these are the first panels that the columns meet, and the first columns that the panels meet: what is
    /// met first is packed then.
    packs_left: bool,
    packs_right: bool,
}

impl Block {
    /// Tiles of a that lie side by side, from column `col` on.
    #[inline(always)]
    fn side<S: Simd>(&self, col: usize) -> Range<usize> {
        col..self.cols.end.min(col + side::<S>())
    }

    /// The panels that tiles meet whose last column of a is `col`.
    #[inline(always)]
    fn met<S: Simd>(&self, col: usize) -> Range<usize> {
        let end = match self.half {
            Half::Both => self.panels.end,
            Half::Lower => (col + 1).div_ceil(2 * S::LANES),
        };
        self.panels.start..self.panels.end.min(end).max(self.panels.start)
    }

    /// Tiles of columns `cols`.
    #[inline(always)]
    fn tiles<S: Simd>(&self, cols: Range<usize>) -> usize {
        let met = |col: usize| {
            let end = cols.end.min(col + group::<S>());
            self.met::<S>(end - 1).len() * (end - col).div_ceil(S::TILE_ROWS)
        };
        cols.clone().step_by(group::<S>()).map(met).sum()
    }
}

#[inline(always)]
unsafe fn parts_tn_of<S: Simd, F: Factor<S>>(
    a: Rows,
    b: Rows,
    half: Half,
    parts: &mut dyn Iterator<Item = Part>,
    panels: Range<usize>,
) {
    debug_assert_eq!(F::PARTS, 1, "both sides are packed alike");
    let (nr, most) = (2 * S::LANES, stretch_steps::<S, F>());
    let (left_most, right_most) = words_together::<S>();
    let (left_apart, right_apart) = (apart(most * side::<S>()), apart(most * nr));
    let spans = panels.len().div_ceil(KEPT_WORDS / (most * nr));
    let span = panels.len().div_ceil(spans);
    let count = span.div_ceil(right_most / (most * nr));
    let right_words = span.div_ceil(count) * right_apart;
    let sides = a
        .width
        .div_ceil(side::<S>())
        .min(left_most / (most * side::<S>()));
    let mut scratch = Scratch::take();
    let memory = &mut *scratch;
    memory.left.reserve((sides + 1) * left_apart);
    memory.right.reserve((count + 1) * right_words);
    let (left, right) = (memory.left.as_mut_ptr(), memory.right.as_mut_ptr());
    // The first panels have two places, in turns, since they are packed while the last are multiplied, which may be
    // the same; the others lie between. So have the first tiles.
    let place = |turn: usize, nth: usize, all: usize| if nth == 0 { turn * all } else { nth };
    let right = |turn, nth| right.wrapping_add(place(turn, nth, count) * right_words);
    let left = |turn, nth| left.wrapping_add(place(turn, nth, sides) * left_apart);
    // The last tiles of a row are packed with columns before them, as many as make a side: what is no whole side, no
    // tile packs.
    let before = |col: usize| col.min((col + side::<S>()).saturating_sub(a.width));
    let pack_left = |block: &Block, cols: Range<usize>, out: *mut u32, tiles: usize| {
        let (rows, start) = (block.rows.clone(), cols.start - before(cols.start));
        Columns::new::<S, F>(a, rows, start..cols.end, side::<S>(), (out, 0), tiles)
    };
    let pack_right = |block: &Block, out: *mut u32, tiles: usize| {
        let cols = block.panels.start * nr..b.width.min(block.panels.end * nr);
        Columns::new::<S, F>(b, block.rows.clone(), cols, nr, (out, right_apart), tiles)
    };
    // Of a place that is there: tiles fetch it at each step.
    let nothing = |of| Columns::new::<S, F>(of, 0..0, 0..0, nr, (right(0, 0), 0), 1);

    let step = most * F::STEP;
    let parts = parts.filter(|part| !part.rows.is_empty() && !part.cols.is_empty());
    let blocks = parts.flat_map(|Part { c, rows, cols }| {
        let panels = panels.clone();
        let (all, stretches) = (cols.len().div_ceil(side::<S>()), rows.len().div_ceil(step));
        let cuts = all.div_ceil(sides);
        (0..stretches * spans * cuts * count).map(move |nth| {
            let (some, cut) = (nth % count, nth / count % cuts);
            let (span, stretch) = (nth / count / cuts % spans, nth / count / cuts / spans);
            let start = rows.start + stretch * step;
            let sides = part(&(0..all), cut, cuts);
            let column = |side: usize| cols.end.min(cols.start + side * self::side::<S>());
            let block = Block {
                c,
                half,
                rows: start..rows.end.min(start + step),
                cols: column(sides.start)..column(sides.end),
                panels: part(&part(&panels, span, spans), some, count),
                nth: if cuts == 1 { 0 } else { some },
                packs_left: some == 0,
                packs_right: true,
            };
            // Of half of c, columns before these may have met fewer panels.
            let were_met = cut > 0 && !block.met::<S>(block.cols.start - 1).is_empty();
            Block {
                packs_right: !were_met,
                ..block
            }
        })
    });
    let mut blocks = blocks.filter(|block| !block.met::<S>(block.cols.end - 1).is_empty());
    let mut block = blocks.next();
    let (mut left_turn, mut right_turn) = (0, 0);
    if let Some(first) = &block {
        let cols = first.side::<S>(first.cols.start);
        // SAFETY: there is room for a stretch of all columns that are packed together (so for all of them below).
        unsafe {
            pack_left(first, cols, left(0, 0), 1).at_once::<S, F>(side::<S>());
            pack_right(first, right(0, 0), 1).at_once::<S, F>(nr);
        }
    }
    while let Some(now) = block {
        let next = blocks.next();
        let tiles = now.tiles::<S>(now.cols.clone());
        let next_turn = match &next {
            Some(next) if next.packs_right && next.nth == 0 => 1 - right_turn,
            _ => right_turn,
        };
        let next_right = match &next {
            Some(next) if next.packs_right => pack_right(next, right(next_turn, next.nth), tiles),
            Some(next) => {
                let steps = tiles * now.rows.len().div_ceil(F::STEP);
                let words = Piece::new(right(next_turn, next.nth), right_words);
                nothing(b).and_fetch(words.over(steps))
            }
            None => nothing(b),
        };
        for (nth, col) in now.cols.clone().step_by(side::<S>()).enumerate() {
            let cols = now.side::<S>(col);
            let tiles = now.tiles::<S>(cols.clone());
            // With the first panels of a stretch all its tiles are packed; then they are there.
            let next_left = match &next {
                _ if now.packs_left && cols.end < now.cols.end => pack_left(
                    &now,
                    now.side::<S>(cols.end),
                    left(left_turn, nth + 1),
                    tiles,
                ),
                Some(next) if next.packs_left && cols.end == now.cols.end => {
                    let cols = next.side::<S>(next.cols.start);
                    pack_left(next, cols, left(1 - left_turn, 0), tiles)
                }
                _ => nothing(a),
            };
            let packed = (
                left(left_turn, nth).wrapping_add(before(col)).cast_const(),
                right(right_turn, now.nth).cast_const(),
            );
            // SAFETY: rows `cols` and columns `panels` of c belong to this thread.
            unsafe {
                let next = (&next_left, &next_right);
                packed_times::<S, F>(&now, b.width, packed, cols, next);
                next_left.finish::<S, F>(side::<S>());
            }
        }
        // SAFETY: as above.
        unsafe { next_right.finish::<S, F>(nr) };
        right_turn = next_turn;
        if next.as_ref().is_some_and(|next| next.packs_left) {
            left_turn = 1 - left_turn;
        }
        block = next;
    }
}

/// Words from one packed panel to the next: a cache line more than it has, since they are written side by side and
/// would all fall into the same set of the cache.
const fn apart(words: usize) -> usize {
    words + LINE
}

/// Columns `cols` of a with the panels of a block, both packed, added to c of `q` columns. A group of tiles meets all
/// panels before the next: so c is written along its rows, as the processor expects. Each tile packs its share of `next`.
#[inline(always)]
unsafe fn packed_times<S: Simd, F: Factor<S>>(
    block: &Block,
    q: usize,
    (left, right): (*const u32, *const u32),
    cols: Range<usize>,
    (next_left, next_right): (&Columns, &Columns),
) {
    let nr = 2 * S::LANES;
    let steps = block.rows.len().div_ceil(F::STEP);
    let output = |(col, panel): (usize, usize)| Output {
        ptr: block.c.ptr().wrapping_add(col * q + panel * nr),
        rows: S::TILE_ROWS,
        stride: q,
    };
    for col in cols.clone().step_by(group::<S>()) {
        let end = cols.end.min(col + group::<S>());
        let (whole, rest) = ((end - col) / S::TILE_ROWS, (end - col) % S::TILE_ROWS);
        for panel in block.met::<S>(end - 1) {
            let right = right
                .wrapping_add((panel - block.panels.start) * apart(nr * stretch_steps::<S, F>()));
            // Along the rows, then the rows below, then the panels that follow.
            let next = if panel + 1 < block.met::<S>(end - 1).end {
                (col, panel + 1)
            } else if end < block.cols.end {
                (end, block.panels.start)
            } else {
                (block.cols.start, block.panels.end)
            };
            let mut col = col;
            for (rows, count) in [(S::TILE_ROWS, whole), (rest, 1)] {
                if rows * count == 0 {
                    continue;
                }
                let after = if col + rows * count < end {
                    (col + rows * count, panel)
                } else {
                    next
                };
                // SAFETY: forwarded to the caller.
                unsafe {
                    micro::tiles::<S, Floats<S, F>, _>(&mut Tiles {
                        count,
                        rows,
                        cols: nr.min(q - panel * nr),
                        panels: 1,
                        steps,
                        left: Left {
                            ptr: left.wrapping_add(col - cols.start),
                            row_stride: 1,
                            part_stride: side::<S>(),
                        },
                        right,
                        out: output((col, panel)).ptr,
                        stride: q,
                        chain: Chain::AddOnce,
                        fine: false,
                        aside: ForColumns::new(next_left, next_right, output(after)),
                    });
                }
                col += rows * count;
            }
        }
    }
}
