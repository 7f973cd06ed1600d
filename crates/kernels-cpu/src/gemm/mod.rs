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
//! Compute-bound: 2mnk operations. While a tile is multiplied, what its thread needs next is fetched ([`ahead`]). With
//! one row it is bound by reading the panels once.
//!
//! Absent: alpha and beta, strides, unpacked right operands.

mod ahead;
mod blocks;
mod micro;
mod pack;
#[cfg(test)]
mod tests;
mod tn;

pub use blocks::Activations;
pub use pack::{Packed, Stored};
pub(crate) use tn::groups_tn;
pub use tn::matmul_tn;

use crate::factor::{Factor, LINE, Left, Words, dispatch_factors};
use crate::pool::{SharedMut, part};
use crate::simd::{Simd, end_streams, prefetch};
use crate::{Cpu, Isa, Store};
use ahead::{Ahead, Piece, Values};
pub(crate) use micro::Chain;
use micro::{Floats, Kernel, Tile};
use pack::{Factors, Part};
use std::cell::Cell;
use std::ops::Range;

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

/// Rows of an operand, perhaps gathered.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) gather: Option<&'a [u32]>,
    pub(crate) width: usize,
}

impl<'a> Rows<'a> {
    #[inline(always)]
    fn row(self, i: usize) -> &'a [f32] {
        let row = match self.gather {
            Some(gather) => gather[i] as usize,
            None => i,
        };
        &self.data[row * self.width..][..self.width]
    }
}

/// y (m, n) = x (m, k) times the packed matrix; m follows from the length of x.
pub fn matmul(cpu: &Cpu, y: &mut [f32], x: &[f32], b: &Packed, store: Store) {
    let m = x.len() / b.k();
    assert_eq!(x.len(), m * b.k(), "matmul: x is not (m, k)");
    assert_eq!(y.len(), m * b.n(), "matmul: y is not (m, n)");
    let (isa, threads) = (cpu.isa(), cpu.pool.threads());
    let (first, out) = (first_chain(y, store), SharedMut::new(y));
    let x = Rows {
        data: x,
        gather: None,
        width: b.k(),
    };
    // Few rows: each thread reads its own panels once, instead of all threads all panels.
    if m >= 16 * threads {
        cpu.pool.for_parts(m, block_rows(b), &|rows, next| {
            let next = next.map(|rows| Next { rows, b });
            rows_times(isa, out, x, rows, b, 0..b.panels(), first, next);
        });
    } else {
        cpu.pool.for_ranges(b.panels(), 1, &|panels| {
            rows_times(isa, out, x, 0..m, b, panels, first, None);
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

/// Rows of a block: whole tiles, of which one pass packs `block_words`. Shallow rows count as if they had two cache
/// lines, which they take.
#[inline(always)]
fn block_rows_of<K: Kernel>(kernel: K, k: usize) -> usize {
    let words = pass_depth(kernel, k).div_ceil(kernel.depth()) * kernel.left_words();
    (kernel.block_words() / words.max(2 * LINE)).next_multiple_of(kernel.wide_rows())
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

/// What a thread will probably multiply after what it has, with the same x. It is fetched meanwhile.
pub(crate) struct Next<'a> {
    pub(crate) rows: Range<usize>,
    pub(crate) b: &'a Packed,
}

/// Rows `rows` of y and columns of `panels`: the serial core of every product with a packed matrix.
/// The caller sees to it that y has these rows and that no other thread has them; `first` is what the first pass does
/// with it.
pub(crate) fn rows_times(
    isa: Isa,
    y: SharedMut<f32>,
    x: Rows,
    rows: Range<usize>,
    b: &Packed,
    panels: Range<usize>,
    first: Chain,
    next: Option<Next>,
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
    assert_eq!(
        x.width,
        b.k(),
        "rows of x are as long as the matrix is deep"
    );
    let panels_of =
        |part: &Part| panels.start.max(part.first_panel)..panels.end.min(part.end_panel());
    let parts = || b.parts().iter().filter(|part| !panels_of(part).is_empty());
    for (idx, part) in parts().enumerate() {
        let (rows, panels) = (rows.clone(), panels_of(part));
        let then = match (parts().nth(idx + 1), &next) {
            (Some(part), _) => Some(Then::new(rows.clone(), part.panel(panels_of(part).start))),
            (None, Some(next)) => {
                let part = &next.b.parts()[0];
                Some(Then::new(next.rows.clone(), part.panel(part.first_panel)))
            }
            (None, None) => None,
        };
        match part.factors {
            Factors::Floats(compute) => dispatch_factors!(
                isa,
                compute,
                rows_times_floats(
                    y: SharedMut<f32>,
                    x: Rows,
                    rows: Range<usize>,
                    b: &Packed,
                    part: &Part,
                    panels: Range<usize>,
                    first: Chain,
                    then: Option<Then>,
                )
            ),
            // SAFETY: as for the floats.
            Factors::Blocks(block_type) => unsafe {
                let kernel = blocks::Blocks::new(isa, block_type, b.activations());
                rows_times_as(kernel, y, x, rows, b, part, panels, first, then);
            },
        }
    }
}

#[inline(always)]
unsafe fn rows_times_floats<S: Simd, F: Factor<S>>(
    y: SharedMut<f32>,
    x: Rows,
    rows: Range<usize>,
    b: &Packed,
    part: &Part,
    panels: Range<usize>,
    first: Chain,
    then: Option<Then>,
) {
    let kernel = Floats::<S, F>::new();
    // SAFETY: forwarded.
    unsafe { rows_times_as(kernel, y, x, rows, b, part, panels, first, then) }
}

/// What follows on a block of rows, or on a stretch of its depth.
#[derive(Clone)]
struct Then {
    rows: Range<usize>,
    /// The values of these rows that are packed first.
    start: usize,
    /// Where the panel that is multiplied first has them.
    panel: *const u32,
}

impl Then {
    /// From the start of the depth on.
    fn new(rows: Range<usize>, panel: *const u32) -> Then {
        Then {
            rows,
            start: 0,
            panel,
        }
    }
}

/// How the rows of a product and its depth are cut.
struct Plan {
    /// Whether panels are made wide first.
    is_wide: bool,
    /// Whether what follows is fetched while a panel is multiplied, each tile its share. With a tile or two, one is not
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
        let together = kernel.block_words() / (rows.div_ceil(blocks) * pass_words);
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

    /// The stretch of a depth `k` that begins at `start`.
    #[inline(always)]
    fn stretch_from(&self, start: usize, k: usize) -> Range<usize> {
        start..k.min(start + self.stretch)
    }
}

#[inline(always)]
unsafe fn rows_times_as<K: Kernel>(
    kernel: K,
    y: SharedMut<f32>,
    x: Rows,
    rows: Range<usize>,
    b: &Packed,
    right: &Part,
    panels: Range<usize>,
    first: Chain,
    then: Option<Then>,
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
    for idx in 0..plan.blocks {
        let block = part(&rows, idx, plan.blocks);
        for start in (0..k).step_by(plan.stretch) {
            let stretch = plan.stretch_from(start, k);
            for row in block.clone() {
                if row + ROWS_AHEAD < block.end {
                    prefetch_all(&x.row(row + ROWS_AHEAD)[stretch.clone()]);
                }
                let values = &x.row(row)[stretch.clone()];
                // SAFETY: the scratch has a stride for each row of the block.
                unsafe {
                    let out = left.add((row - block.start) * plan.stride);
                    kernel.left_of_row(out, values.as_ptr(), values.len());
                }
            }
            let panel_at = |panel: usize, start: usize| {
                let words = start / kernel.depth() * kernel.right_words();
                right.panel(panel).wrapping_add(words)
            };
            let then = if stretch.end < k {
                Some(Then {
                    rows: block.clone(),
                    start: stretch.end,
                    panel: panel_at(panels.start, stretch.end),
                })
            } else if block.end < rows.end {
                let rows = part(&rows, idx + 1, plan.blocks);
                Some(Then::new(rows, right.panel(panels.start)))
            } else {
                then.clone()
            };
            for panel in panels.clone() {
                let column = right.column(panel, nr);
                // SAFETY: y has these rows and columns, by the contract of `rows_times`.
                let out = unsafe { y.ptr().add(block.start * n + column) };
                let right_ptr = panel_at(panel, start);
                let tile = Tile {
                    rows: 0,
                    cols: (right.end_column() - column).min(nr),
                    steps: 0,
                    left: Left {
                        ptr: left,
                        row_stride: plan.stride,
                        part_stride: 1,
                    },
                    right: right_ptr,
                    out,
                    stride: n,
                    chain: if start == 0 { first } else { Chain::Continue },
                    fine: false,
                    ahead: Ahead::nothing(right_ptr, out),
                };
                let then = then.as_ref().filter(|_| plan.fetches_ahead);
                let later = Later {
                    panel: match plan.fetches_ahead && panel + 1 < panels.end {
                        true => Some(panel_at(panel + 1, start)),
                        false => then.map(|then| then.panel),
                    },
                    values: then.map(|then| Values {
                        of: x,
                        rows: part(&then.rows, panel - panels.start, panels.len()),
                        columns: plan.stretch_from(then.start, k),
                    }),
                };
                // SAFETY: the rows of the block are packed, and the scratch has room for a wide pass.
                unsafe { panel_times(kernel, &plan, tile, block.len(), &stretch, wide, later) };
            }
        }
    }
    if first == Chain::Only {
        end_streams();
    }
    scratch.give_back();
}

/// What the tiles of a panel fetch, each its share.
struct Later<'a> {
    /// The next panel, from the start of its stretch on.
    panel: Option<*const u32>,
    /// Of the rows that are packed next.
    values: Option<Values<'a>>,
}

/// `rows` packed rows times one panel, over a stretch of the depth. `all` holds what its tiles have in common, from
/// the first row on, and the panel from the start of the stretch on.
#[inline(always)]
unsafe fn panel_times<K: Kernel>(
    kernel: K,
    plan: &Plan,
    all: Tile,
    rows: usize,
    stretch: &Range<usize>,
    wide: *mut u32,
    later: Later,
) {
    let step_depth = kernel.depth();
    let (passes, tiles) = (
        stretch.len().div_ceil(plan.pass),
        rows.div_ceil(plan.tile_rows),
    );
    for pass in 0..passes {
        let depth = pass * plan.pass;
        let mut tile = all;
        tile.steps = (stretch.len() - depth).min(plan.pass).div_ceil(step_depth);
        if pass > 0 {
            tile.chain = Chain::Continue;
        }
        let left_words = depth / step_depth * kernel.left_words();
        let right_words = depth / step_depth * kernel.right_words();
        let panel_words = right_words..right_words + tile.steps * kernel.right_words();
        // SAFETY: the panel has these steps.
        unsafe {
            tile.right = all.right.add(right_words);
            if plan.is_wide {
                tile.steps = kernel.widen(wide, tile.right, tile.steps);
                tile.right = wide;
            }
        }
        for idx in 0..tiles {
            let rows = part(&(0..rows), idx, tiles);
            tile.rows = rows.len();
            // SAFETY: as above; these rows are packed and are those of the output.
            unsafe {
                tile.left.ptr = all.left.ptr.add(rows.start * plan.stride + left_words);
                tile.out = all.out.add(rows.start * all.stride);
            }
            tile.ahead.out = match idx + 1 < tiles {
                true => tile.out.wrapping_add(rows.len() * all.stride),
                false => all.out.wrapping_add(all.cols),
            };
            if let Some(next) = later.panel {
                let share = part(&panel_words, idx, tiles);
                tile.ahead.panel = Piece::new(next.wrapping_add(share.start), share.len());
            }
            if kernel.fetches_rows() {
                let values = later.values.as_slice();
                (tile.ahead).set_share(values, pass * tiles + idx, passes * tiles);
            }
            // SAFETY: as above.
            unsafe {
                if plan.is_wide {
                    kernel.wide_tile(tile);
                } else {
                    kernel.tile(tile);
                }
            }
        }
    }
}

/// Brings values near.
#[inline(always)]
fn prefetch_all(x: &[f32]) {
    for line in x.chunks(LINE) {
        prefetch(line.as_ptr());
    }
}
