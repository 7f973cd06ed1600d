//! Matrix products with a packed right operand, and the gradient of the weights.
//!
//! matmul     y (m, n) = x (m, k) B           B packed from W (n, k) or (k, n)
//! matmul_tn  c (p, q) += a (m, p)^T b (m, q)
//! and those that are known to be symmetric ([`symmetric`])
//!
//! The right operand lies in panels of two vectors' width, `[k][NR]` (f32), `[k/2][NR][2]` (bf16
//! pairs, an odd last value with zero) or blocks of integers ([`blocks`]); it is packed once and used for
//! many rows. Blocks, and pairs that have no instruction of their own, are made wide for many rows, a stretch of a
//! panel at a time. Rows of the left one are gathered and rounded on the fly, a block at a time, into scratch that
//! each thread keeps. bf16 factors are rounded to nearest even; sums are f32.
//!
//! Every element of the result is one chain of multiply-adds over k in ascending order (pairs of k for
//! bf16), whatever tile it falls into: its bits depend neither on the number of rows nor on the
//! partition. With `Store::Add` the chain starts from what y holds.
//!
//! Compute-bound: 2mnk operations. While a tile is multiplied, what its thread needs next is fetched and packed
//! ([`aside`]). With one row it is bound by reading the panels once.
//!
//! Absent: alpha and beta, strides, unpacked right operands.

mod aside;
mod blocks;
mod columns;
mod left;
mod micro;
mod pack;
mod plan;
mod symmetric;
#[cfg(test)]
mod tests;
mod tn;

pub use blocks::Activations;
pub(crate) use left::{Packer, Rows};
pub use pack::{Packed, Stored};
pub use symmetric::{gram, matmul_symmetric};
pub use tn::matmul_tn;
pub(crate) use tn::{Half, groups_tn};

use crate::factor::{Factor, LINE, Left, dispatch_factors};
use crate::isa::amd_family;
use crate::pool::{Cut, SharedMut, part};
use crate::simd::{Simd, end_streams};
use crate::{Cpu, Isa, Store};
use aside::{Done, ForBlocks, Output, Piece};
pub(crate) use micro::Chain;
use micro::{Floats, Kernel, LARGEST, Tiles};
use pack::{Factors, Part};
use plan::{Block, Plan, pass_steps};
use std::ops::Range;

/// Pieces into which the last block of each thread is cut, so that little is left to wait for. Integers are not cut: each
/// piece makes panels wide, or rounds rows, again (docs/LOG.md).
pub(crate) fn last_pieces(b: &Packed) -> usize {
    let is_floats = |part: &Part| matches!(part.factors, Factors::Floats(_));
    if b.parts().iter().all(is_floats) {
        4
    } else {
        1
    }
}

/// y (m, n) = x (m, k) times the packed matrix; m follows from the length of x.
pub fn matmul(cpu: &Cpu, y: &mut [f32], x: &[f32], b: &Packed, store: Store) {
    let m = x.len() / b.k();
    assert_eq!(x.len(), m * b.k(), "matmul: x is not (m, k)");
    assert_eq!(y.len(), m * b.n(), "matmul: y is not (m, n)");
    let (isa, threads) = (cpu.isa(), cpu.pool.threads());
    let (first, out) = (first_chain(y, store), SharedMut::new(y));
    let x = Rows::in_order(x, b.k());
    // Few rows: each thread reads its own panels once, instead of all threads all panels.
    let packer = || Packer::new(x);
    if m >= 16 * threads {
        let blocks = m.div_ceil(block_rows(b)).next_multiple_of(threads).min(m);
        let rows = |cut: Cut| part(&(0..m), cut.item, blocks);
        // The last ones are cut by columns: a piece of few rows would read all panels.
        let panels = |cut: Cut| cut.of(&(0..b.panels()));
        (cpu.pool).for_each_cut(blocks, last_pieces(b), &packer, &|packer, cut, next| {
            let next = next.map(|cut| Next {
                rows: rows(cut),
                b,
                panel: panels(cut).start,
            });
            rows_times(isa, out, packer, rows(cut), b, panels(cut), first, next);
        });
    } else {
        (cpu.pool).for_ranges_with(b.panels(), 1, &packer, &|packer, panels| {
            rows_times(isa, out, packer, 0..m, b, panels, first, None);
        });
    }
}

/// Bytes of an output from which on it is written past the caches: nothing that has room in a second level, and with the
/// slower products of Zen 4, nothing that has room in the third (docs/LOG.md).
fn streamed_bytes() -> usize {
    match amd_family() {
        Some(25) => 32 << 20,
        _ => 8 << 20,
    }
}

/// Whether a tile of an output that stays in the caches is written aside first, for the next one to move. There it waits
/// for no line, but is stored twice, and on Zen 4 a store of 512 bits takes the place of a multiply-add (docs/LOG.md).
fn stores_twice() -> bool {
    amd_family() != Some(25)
}

/// What the first pass of a product does with y.
pub(crate) fn first_chain(y: &[f32], store: Store) -> Chain {
    match store {
        Store::Overwrite if size_of_val(y) >= streamed_bytes() => Chain::Only,
        Store::Overwrite => Chain::Start,
        Store::Add => Chain::Continue,
    }
}

/// Rows that a thread takes at a time: a block, so that it reads the panels once for all of them.
pub(crate) fn block_rows(b: &Packed) -> usize {
    #[inline(always)]
    unsafe fn of_floats<S: Simd, F: Factor<S>>(k: usize) -> usize {
        plan::block_rows(Floats::<S, F>::new(), k)
    }
    let (isa, k) = (b.isa(), b.k());
    let of_part = |part: &Part| match part.factors {
        Factors::Floats(compute) => {
            dispatch_factors!(isa, compute, of_floats(k: usize) -> usize)
        }
        Factors::Blocks(block_type) => {
            let kernel = blocks::Blocks::new(isa, block_type, b.activations(), usize::MAX);
            plan::block_rows(kernel, k)
        }
    };
    b.parts().iter().map(of_part).min().unwrap_or(1)
}

/// What a thread will probably multiply after what it has, with the same x. Tiles work for it meanwhile.
pub(crate) struct Next<'a> {
    pub(crate) rows: Range<usize>,
    pub(crate) b: &'a Packed,
    /// The first panel.
    pub(crate) panel: usize,
}

/// Rows `rows` of y and columns of `panels`: the serial core of every product with a packed matrix.
/// The caller sees to it that y has these rows and that no other thread has them; `first` is what the first pass does
/// with it.
pub(crate) fn rows_times(
    isa: Isa,
    y: SharedMut<f32>,
    packer: &mut Packer,
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
        packer.x.width,
        b.k(),
        "rows of x are as long as the matrix is deep"
    );
    let panels_of =
        |part: &Part| panels.start.max(part.first_panel)..panels.end.min(part.end_panel());
    let parts = || b.parts().iter().filter(|part| !panels_of(part).is_empty());
    for (idx, part) in parts().enumerate() {
        let (rows, panels) = (rows.clone(), panels_of(part));
        let then = match (parts().nth(idx + 1), &next) {
            (Some(part), _) => Some((rows.clone(), part, panels_of(part).start)),
            (None, Some(next)) if !next.rows.is_empty() => {
                let mut parts = next.b.parts().iter();
                let part = parts.find(|part| next.panel < part.end_panel());
                part.map(|part| (next.rows.clone(), part, next.panel))
            }
            (None, _) => None,
        };
        let then = then.map(|(rows, then, panel)| Then {
            rows: (then.factors == part.factors).then_some(rows),
            panel: then.panel(panel),
        });
        match part.factors {
            Factors::Floats(compute) => dispatch_factors!(
                isa,
                compute,
                rows_times_floats(
                    y: SharedMut<f32>,
                    packer: &mut Packer,
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
                let kernel = blocks::Blocks::new(isa, block_type, b.activations(), rows.len());
                rows_times_as(kernel, y, packer, rows, b, part, panels, first, then);
            },
        }
    }
}

#[inline(always)]
unsafe fn rows_times_floats<S: Simd, F: Factor<S>>(
    y: SharedMut<f32>,
    packer: &mut Packer,
    rows: Range<usize>,
    b: &Packed,
    part: &Part,
    panels: Range<usize>,
    first: Chain,
    then: Option<Then>,
) {
    let kernel = Floats::<S, F>::new();
    // SAFETY: forwarded.
    unsafe { rows_times_as(kernel, y, packer, rows, b, part, panels, first, then) }
}

/// What follows on a product.
struct Then {
    /// Rows, where they are packed for the same kernel.
    rows: Option<Range<usize>>,
    /// The panel that is multiplied first.
    panel: *const u32,
}

#[inline(always)]
unsafe fn rows_times_as<K: Kernel>(
    kernel: K,
    y: SharedMut<f32>,
    packer: &mut Packer,
    rows: Range<usize>,
    b: &Packed,
    right: &Part,
    panels: Range<usize>,
    first: Chain,
    then: Option<Then>,
) {
    let (n, k, nr) = (b.n(), b.k(), b.panel_width());
    let plan = Plan::new(kernel, rows, k);
    // Only what is whole after one pass, and lies as vectors do, can go past the caches.
    let column = right.column(right.first_panel, nr);
    let is_aligned = n.is_multiple_of(LINE)
        && column.is_multiple_of(LINE)
        && y.ptr().addr().is_multiple_of(4 * LINE);
    let first = match first {
        Chain::Only if !plan.is_one_pass() || !is_aligned => Chain::Start,
        first => first,
    };
    let memory = &mut *packer.scratch;
    (memory.right).reserve(pass_steps(kernel) * kernel.wide_words());
    memory.tile.reserve(LARGEST.0 * LARGEST.1);
    let wide = memory.right.as_mut_ptr();
    let mut waiting = Done {
        from: memory.tile.as_mut_ptr().cast(),
        cols: nr,
        to: Output {
            ptr: y.ptr(),
            rows: 0,
            stride: n,
        },
        past_caches: first == Chain::Only,
    };
    let panel_at = |panel: usize, start: usize| {
        let words = start / kernel.depth() * kernel.right_words();
        right.panel(panel).wrapping_add(words)
    };
    let mut idx = 0;
    while let Some(block) = plan.block(idx) {
        idx += 1;
        let left = packer.pack(kernel, right.factors, &block);
        let (next, next_panel) = match (plan.block(idx), &then) {
            (Some(next), _) => {
                let panel = panel_at(panels.start, next.depth.start);
                (Some(next), Some(panel))
            }
            (None, Some(then)) => {
                let rows = then.rows.clone();
                let next = rows.and_then(|rows| Plan::new(kernel, rows, k).block(0));
                (next, Some(then.panel))
            }
            (None, None) => (None, None),
        };
        // The rest of the same rows needs no packing.
        let next = next.filter(|next| *next != block && plan.works_aside && kernel.works_aside());
        let tiles = panels.len() * plan.tiles(&block);
        let packing = packer.packing(kernel, next.as_ref(), tiles);
        let mut panel = panels.start;
        while panel < panels.end {
            let column = right.column(panel, nr);
            let count = if plan.is_strip {
                let whole = (right.end_column() - column) / nr;
                whole.clamp(1, panels.end - panel)
            } else {
                1
            };
            // SAFETY: y has these rows and columns, by the contract of `rows_times`.
            let out = unsafe { y.ptr().add(block.rows.start * n + column) };
            let tiles = Tiles {
                count: 0,
                rows: 0,
                cols: (right.end_column() - column).min(nr),
                panels: count,
                steps: 0,
                left: Left {
                    ptr: left,
                    row_stride: block.stride,
                    part_stride: 1,
                },
                right: panel_at(panel, block.depth.start),
                out,
                stride: n,
                chain: if block.depth.start == 0 {
                    first
                } else {
                    Chain::Continue
                },
                fine: false,
                aside: ForBlocks::new(&packing, waiting),
            };
            panel += count;
            let next_panel = match panel < panels.end {
                true => Some(panel_at(panel, block.depth.start)),
                false => next_panel,
            }
            .filter(|_| plan.works_aside);
            // SAFETY: the rows of the block are packed, and the scratch has room for a wide pass.
            waiting = unsafe { panel_times(kernel, &plan, tiles, &block, wide, next_panel) };
        }
        if packing.is_given() {
            packer.spare = next.map(|next| (right.factors, next));
        }
    }
    // SAFETY: the tile is still in its place, and y has its rows and columns.
    unsafe { kernel.move_done(waiting) };
    if first == Chain::Only {
        end_streams();
    }
}

/// A packed block times one panel. `all` holds what its tiles have in common, from the first row on, and the panel from
/// the start of the stretch on, as `next_panel` does, which tiles fetch. Returns the tile that waits to be moved.
#[inline(always)]
unsafe fn panel_times<'a, K: Kernel>(
    kernel: K,
    plan: &Plan,
    all: Tiles<ForBlocks<'a>>,
    block: &Block,
    wide: *mut u32,
    next_panel: Option<*const u32>,
) -> Done {
    let step_depth = kernel.depth();
    let (rows, stretch) = (block.rows.len(), block.depth.len());
    let count = rows.div_ceil(plan.tile_rows);
    let mut aside = all.aside;
    for pass in 0..stretch.div_ceil(plan.pass) {
        let depth = pass * plan.pass;
        let mut tiles = all;
        tiles.aside = aside;
        tiles.steps = (stretch - depth).min(plan.pass).div_ceil(step_depth);
        if pass > 0 {
            tiles.chain = Chain::Continue;
        }
        let left_words = depth / step_depth * kernel.left_words();
        let right_words = depth / step_depth * kernel.right_words();
        if let Some(next) = next_panel {
            let first = next.wrapping_add(right_words);
            tiles.aside.panel = Piece::new(first, tiles.steps * kernel.right_words());
            tiles.aside.sharers = count;
        }
        // SAFETY: the panel has these steps.
        unsafe {
            tiles.right = all.right.add(right_words);
            if plan.is_wide {
                tiles.steps = kernel.widen(wide, tiles.right, tiles.steps);
                tiles.right = wide;
            }
        }
        // What is written once can wait until the next tile moves it.
        tiles.aside.waits = kernel.works_aside()
            && plan.works_aside
            && plan.is_one_pass()
            && match tiles.chain {
                Chain::Only => true,
                Chain::Start => stores_twice(),
                Chain::Continue | Chain::AddOnce => false,
            }
            && tiles.cols == aside.done.cols;
        tiles.left.ptr = all.left.ptr.wrapping_add(left_words);
        let (each, more) = (rows / count, rows % count);
        let next_column = all.out.wrapping_add(all.cols);
        for (rows, count, is_last) in [(each + 1, more, false), (each, count - more, true)] {
            if count == 0 {
                continue;
            }
            (tiles.rows, tiles.count) = (rows, count);
            tiles.aside.after = match is_last {
                true => next_column,
                false => tiles.out.wrapping_add(count * rows * all.stride),
            };
            // SAFETY: these rows are packed and are those of the output; the panel has these steps.
            unsafe {
                if plan.is_wide {
                    kernel.wide_tiles(&mut tiles);
                } else {
                    kernel.tiles(&mut tiles);
                }
            }
        }
        aside = tiles.aside;
    }
    aside.done
}
