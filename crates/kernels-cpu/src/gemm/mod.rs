//! Matrix products with a packed right operand, and the gradient of the weights.
//!
//! matmul     y (m, n) = x (m, k) B           B packed from W (n, k) or (k, n)
//! matmul_tn  c (p, q) += a (m, p)^T b (m, q)
//!
//! The right operand lies in panels of two vectors' width, `[k][NR]` (f32), `[k/2][NR][2]` (bf16
//! pairs, an odd last value with zero) or blocks of integers ([`blocks`]); it is packed once and used for
//! many rows. Rows of the left one are gathered and rounded on the fly, a block at a time, into scratch that
//! each thread keeps. bf16 factors are rounded to nearest even; sums are f32.
//!
//! Every element of the result is one chain of multiply-adds over k in ascending order (pairs of k for
//! bf16), whatever tile it falls into: its bits depend neither on the number of rows nor on the
//! partition. With `Store::Add` the chain starts from what y holds.
//!
//! Compute-bound: 2mnk operations. With one row it is bound by reading the panels once.
//!
//! Absent: alpha and beta, strides, unpacked right operands.

mod blocks;
mod micro;
mod pack;
#[cfg(test)]
mod tests;
mod tn;

pub use blocks::Activations;
pub use pack::{Packed, Stored};
pub use tn::matmul_tn;
pub(crate) use tn::{Rows, groups_tn};

use crate::factor::{Factor, LINE, Left, Words, dispatch_factors};
use crate::pool::{SharedMut, part};
use crate::simd::{Simd, end_streams, prefetch};
use crate::{Cpu, Isa, Store};
pub(crate) use micro::Chain;
use micro::{Ahead, Floats, Kernel, Tile};
use pack::{Factors, Part};
use std::cell::Cell;
use std::ops::Range;

/// Words of a block of rows that are packed at a time: with a pass of a panel they stay in a second-level cache of
/// 1 MiB.
const LEFT_WORDS: usize = 128 << 10;

/// How far ahead rows are fetched that are packed.
const ROWS_AHEAD: usize = 2;

/// Rows from which on it pays to make a panel wide first.
const WIDE_ROWS: usize = 7;

/// Operands that a thread has packed, kept between calls.
struct Scratch {
    left: Words,
    right: Words,
}

thread_local! {
    static SCRATCH: Cell<Option<Scratch>> = const { Cell::new(None) };
}

impl Scratch {
    /// Takes the scratch of this thread; `give_back` returns it. (Not a closure: what is compiled for
    /// one instruction set must not cross a function that is not.)
    fn take() -> Scratch {
        SCRATCH.take().unwrap_or(Scratch {
            left: Words::new(),
            right: Words::new(),
        })
    }

    fn give_back(self) {
        SCRATCH.set(Some(self));
    }
}

/// y (m, n) = x (m, k) times the packed matrix; m follows from the length of x.
pub fn matmul(cpu: &Cpu, y: &mut [f32], x: &[f32], b: &Packed, store: Store) {
    let m = x.len() / b.k();
    assert_eq!(x.len(), m * b.k(), "matmul: x is not (m, k)");
    assert_eq!(y.len(), m * b.n(), "matmul: y is not (m, n)");
    let (isa, threads) = (cpu.isa(), cpu.pool.threads());
    let (first, out) = (first_chain(y, store), SharedMut::new(y));
    // Few rows: each thread reads its own panels once, instead of all threads all panels.
    if m >= 16 * threads {
        cpu.pool.for_parts(m, block_rows(b), &|rows| {
            rows_times(isa, out, x, None, rows, b, 0..b.panels(), first);
        });
    } else {
        cpu.pool.for_ranges(b.panels(), 1, &|panels| {
            rows_times(isa, out, x, None, 0..m, b, panels, first);
        });
    }
}

/// Bytes of an output from which on it is written past the caches: nothing that has room in a second level.
const STREAMED_BYTES: usize = 8 << 20;

/// What the first pass of a product does with y.
pub(crate) fn first_chain(y: &[f32], store: Store) -> Chain {
    match store {
        Store::Overwrite if size_of_val(y) >= STREAMED_BYTES => Chain::Only,
        Store::Overwrite => Chain::Start,
        Store::Add => Chain::Continue,
    }
}

/// Rows that a thread takes at a time: a block, so that it reads the panels once for all of them.
pub(crate) fn block_rows(b: &Packed) -> usize {
    #[inline(always)]
    unsafe fn of_floats<S: Simd, F: Factor<S>>(k: usize) -> usize {
        block_rows_of(Floats::<S, F>::new(), k)
    }
    let (isa, k) = (b.isa(), b.k());
    let of_part = |part: &Part| match part.factors {
        Factors::Floats(compute) => {
            dispatch_factors!(isa, compute, of_floats(k: usize) -> usize)
        }
        Factors::Blocks(block_type) => {
            block_rows_of(blocks::Blocks::new(isa, block_type, b.activations()), k)
        }
    };
    b.parts().iter().map(of_part).min().unwrap_or(1)
}

/// Rows of a block: whole tiles, of which one pass packs `LEFT_WORDS`. Shallow rows count as if they had two cache
/// lines, which they take.
#[inline(always)]
fn block_rows_of<K: Kernel>(kernel: K, k: usize) -> usize {
    let words = pass_depth(kernel, k).div_ceil(kernel.depth()) * kernel.left_words();
    (LEFT_WORDS / words.max(2 * LINE)).next_multiple_of(kernel.wide_rows())
}

/// Depth of a pass, in whole steps; passes are as equal as can be.
#[inline(always)]
fn pass_depth<K: Kernel>(kernel: K, k: usize) -> usize {
    let passes = k.div_ceil(pass_steps(kernel) * kernel.depth());
    k.div_ceil(passes).next_multiple_of(kernel.depth())
}

/// Steps of a pass at most.
#[inline(always)]
fn pass_steps<K: Kernel>(kernel: K) -> usize {
    kernel.pass_words() / kernel.right_words().max(kernel.wide_words())
}

/// Rows `rows` of y and columns of `panels`: the serial core of every product with a packed matrix.
/// Row i reads row `gather[i]` of x where there is one. The caller sees to it that y has these rows and
/// that no other thread has them; `first` is what the first pass does with it.
pub(crate) fn rows_times(
    isa: Isa,
    y: SharedMut<f32>,
    x: &[f32],
    gather: Option<&[u32]>,
    rows: Range<usize>,
    b: &Packed,
    panels: Range<usize>,
    first: Chain,
) {
    if rows.is_empty() || panels.is_empty() {
        return;
    }
    assert_eq!(
        b.isa(),
        isa,
        "a packed matrix belongs to one instruction set"
    );
    assert!(panels.end <= b.panels(), "no such panel");
    let x_rows = x.len() / b.k();
    if let Some(gather) = gather {
        assert!(
            gather[rows.clone()].iter().all(|&r| (r as usize) < x_rows),
            "gather: no such row"
        );
    } else {
        assert!(rows.end <= x_rows, "matmul: no such row");
    }
    for part in b.parts() {
        let panels = panels.start.max(part.first_panel)..panels.end.min(part.end_panel());
        if !panels.is_empty() {
            let rows = rows.clone();
            match part.factors {
                Factors::Floats(compute) => dispatch_factors!(
                    isa,
                    compute,
                    rows_times_floats(
                        y: SharedMut<f32>,
                        x: &[f32],
                        gather: Option<&[u32]>,
                        rows: Range<usize>,
                        b: &Packed,
                        part: &Part,
                        panels: Range<usize>,
                        first: Chain,
                    )
                ),
                // SAFETY: as for the floats.
                Factors::Blocks(block_type) => unsafe {
                    let kernel = blocks::Blocks::new(isa, block_type, b.activations());
                    rows_times_as(kernel, y, x, gather, rows, b, part, panels, first);
                },
            }
        }
    }
}

#[inline(always)]
unsafe fn rows_times_floats<S: Simd, F: Factor<S>>(
    y: SharedMut<f32>,
    x: &[f32],
    gather: Option<&[u32]>,
    rows: Range<usize>,
    b: &Packed,
    part: &Part,
    panels: Range<usize>,
    first: Chain,
) {
    let kernel = Floats::<S, F>::new();
    // SAFETY: forwarded.
    unsafe { rows_times_as(kernel, y, x, gather, rows, b, part, panels, first) }
}

/// How the rows of a product and its depth are cut.
struct Plan {
    /// Whether panels are made wide first.
    is_wide: bool,
    /// Whether the next panel is fetched while one is multiplied, each tile its share. With a tile or two, one is not
    /// multiplied for long enough: fetching would only delay what is read.
    fetches_ahead: bool,
    /// Rows of a tile at most.
    tile_rows: usize,
    /// Blocks of rows, as equal as can be.
    blocks: usize,
    /// Depth that is packed together, a whole number of passes.
    stretch: usize,
    /// Depth of a pass, in whole steps.
    pass: usize,
    /// Words from a packed row to the next.
    stride: usize,
}

impl Plan {
    /// For `rows` rows of depth `k`.
    #[inline(always)]
    fn new<K: Kernel>(kernel: K, rows: usize, k: usize) -> Plan {
        let (step_depth, left_words) = (kernel.depth(), kernel.left_words());
        let is_wide = kernel.wide_words() > 0 && rows >= WIDE_ROWS;
        let tile_rows = if is_wide {
            kernel.wide_rows()
        } else {
            kernel.rows()
        };
        let pass = pass_depth(kernel, k);
        let blocks = rows.div_ceil(block_rows_of(kernel, k));
        // Few rows are packed deeper than a pass: then all passes of a panel follow one another.
        let passes = k.div_ceil(pass);
        let pass_words = pass.div_ceil(step_depth) * left_words;
        let together = LEFT_WORDS / (rows.div_ceil(blocks) * pass_words);
        let stretch = pass * passes.div_ceil(passes.div_ceil(together.clamp(1, passes)));
        // An odd number of cache lines, so that the rows of a tile fall into different sets of the cache.
        let stride = (stretch.div_ceil(step_depth) * left_words).next_multiple_of(32) + 16;
        Plan {
            is_wide,
            fetches_ahead: is_wide || rows > 2 * tile_rows,
            tile_rows,
            blocks,
            stretch,
            pass,
            stride,
        }
    }
}

#[inline(always)]
unsafe fn rows_times_as<K: Kernel>(
    kernel: K,
    y: SharedMut<f32>,
    x: &[f32],
    gather: Option<&[u32]>,
    rows: Range<usize>,
    b: &Packed,
    right: &Part,
    panels: Range<usize>,
    first: Chain,
) {
    let (n, k, nr) = (b.n(), b.k(), b.panel_width());
    let plan = Plan::new(kernel, rows.len(), k);
    // Only what is whole after one pass, and lies as vectors do, can go past the caches.
    let column = right.column(right.first_panel, nr);
    let is_aligned = n.is_multiple_of(LINE)
        && column.is_multiple_of(LINE)
        && y.ptr().addr().is_multiple_of(4 * LINE);
    let first = match first {
        Chain::Only if plan.pass < k || !is_aligned => Chain::Start,
        first => first,
    };
    let mut scratch = Scratch::take();
    (scratch.left).reserve(rows.len().div_ceil(plan.blocks) * plan.stride);
    (scratch.right).reserve(pass_steps(kernel) * kernel.wide_words());
    let (left, wide) = (scratch.left.as_mut_ptr(), scratch.right.as_mut_ptr());
    for block in 0..plan.blocks {
        let block = part(&rows, block, plan.blocks);
        for start in (0..k).step_by(plan.stretch) {
            let stretch = start..k.min(start + plan.stretch);
            let source = |row: usize| {
                let row = gather.map_or(row, |gather| gather[row] as usize);
                x.as_ptr().wrapping_add(row * k + start)
            };
            for row in block.clone() {
                if row + ROWS_AHEAD < block.end {
                    prefetch_all(source(row + ROWS_AHEAD), stretch.len());
                }
                // SAFETY: the caller checked the row; the scratch has a stride for each of the block.
                unsafe {
                    let out = left.add((row - block.start) * plan.stride);
                    kernel.left_of_row(out, source(row), stretch.len());
                }
            }
            for panel in panels.clone() {
                let column = right.column(panel, nr);
                let tile = Tile {
                    rows: 0,
                    cols: (right.end_column() - column).min(nr),
                    steps: 0,
                    left: Left {
                        ptr: left,
                        row_stride: plan.stride,
                        part_stride: 1,
                    },
                    right: right.panel(panel),
                    // SAFETY: y has these rows and columns, by the contract of `rows_times`.
                    out: unsafe { y.ptr().add(block.start * n + column) },
                    stride: n,
                    chain: if start == 0 { first } else { Chain::Continue },
                    fine: false,
                    ahead: Ahead::nothing(right.panel(panel)),
                };
                let has_next = plan.fetches_ahead && panels.contains(&(panel + 1));
                let next = has_next.then(|| right.panel(panel + 1));
                // SAFETY: the rows of the block are packed, and the scratch has room for a wide pass.
                unsafe { panel_times(kernel, &plan, tile, block.len(), &stretch, next, wide) };
            }
        }
    }
    if first == Chain::Only {
        end_streams();
    }
    scratch.give_back();
}

/// `rows` packed rows times one panel, over a stretch of the depth. `all` holds what its tiles have in common, from
/// the first row on, and the whole panel. Of the panel `next`, each tile fetches its share.
#[inline(always)]
unsafe fn panel_times<K: Kernel>(
    kernel: K,
    plan: &Plan,
    all: Tile,
    rows: usize,
    stretch: &Range<usize>,
    next: Option<*const u32>,
    wide: *mut u32,
) {
    let step_depth = kernel.depth();
    let tiles = rows.div_ceil(plan.tile_rows);
    for depth in stretch.clone().step_by(plan.pass) {
        let mut tile = all;
        tile.steps = (stretch.end - depth).min(plan.pass).div_ceil(step_depth);
        if depth > stretch.start {
            tile.chain = Chain::Continue;
        }
        let words = (depth - stretch.start) / step_depth * kernel.left_words();
        let in_panel = depth / step_depth * kernel.right_words();
        let right_words = tile.steps * kernel.right_words();
        // SAFETY: the panel has these steps.
        unsafe {
            tile.right = all.right.add(in_panel);
            if plan.is_wide {
                tile.steps = kernel.widen(wide, tile.right, tile.steps);
                tile.right = wide;
            }
        }
        for idx in 0..tiles {
            if let Some(next) = next {
                let share = part(&(in_panel..in_panel + right_words), idx, tiles);
                tile.ahead = Ahead {
                    ptr: next.wrapping_add(share.start).cast(),
                    bytes: 4 * share.len(),
                };
            }
            let rows = part(&(0..rows), idx, tiles);
            tile.rows = rows.len();
            // SAFETY: as above; these rows are packed and are those of the output.
            unsafe {
                tile.left.ptr = all.left.ptr.add(rows.start * plan.stride + words);
                tile.out = all.out.add(rows.start * all.stride);
                if plan.is_wide {
                    kernel.wide_tile(tile);
                } else {
                    kernel.tile(tile);
                }
            }
        }
    }
}

/// Brings `len` values near.
#[inline(always)]
fn prefetch_all(x: *const f32, len: usize) {
    for at in (0..len).step_by(LINE) {
        prefetch(x.wrapping_add(at));
    }
}
