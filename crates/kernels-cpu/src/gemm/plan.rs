//! How the rows of a product and its depth are cut.

use super::micro::{Kernel, STRIP_ROWS};
use crate::factor::LINE;
use crate::pool::part;
use std::ops::Range;

/// Rows from which on it pays to make a panel wide first.
pub(super) const WIDE_ROWS: usize = 7;

/// Rows that are packed together, over a stretch of the depth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) rows: Range<usize>,
    pub(super) depth: Range<usize>,
    /// Words from a packed row to the next.
    pub(super) stride: usize,
}

/// The blocks of a product: all stretches of the first rows, then those of the next.
pub(super) struct Plan {
    rows: Range<usize>,
    k: usize,
    /// Whether panels are made wide first.
    pub(super) is_wide: bool,
    /// Whether one tile holds the rows, and goes through the panels as through a strip. It reads each once, so passes
    /// gain nothing, and every stop costs time.
    pub(super) is_strip: bool,
    /// Whether tiles work for what follows, each its share. With a tile or two, one is not multiplied for long
    /// enough: it would only delay what is read.
    pub(super) works_aside: bool,
    /// Rows of a tile at most.
    pub(super) tile_rows: usize,
    /// Parts of the rows, as equal as can be.
    parts: usize,
    /// Depth that is packed together, a whole number of passes.
    stretch: usize,
    /// Depth of a pass, in whole steps.
    pub(super) pass: usize,
    stride: usize,
}

impl Plan {
    /// For rows `rows` of depth `k`, at least one.
    #[inline(always)]
    pub(super) fn new<K: Kernel>(kernel: K, rows: Range<usize>, k: usize) -> Plan {
        let (step_depth, left_words) = (kernel.depth(), kernel.left_words());
        let is_wide = kernel.wide_words() > 0 && rows.len() >= WIDE_ROWS;
        let tile_rows = if is_wide {
            kernel.wide_rows()
        } else {
            kernel.rows()
        };
        let is_strip = !is_wide && rows.len() <= tile_rows.min(STRIP_ROWS);
        let pass = match is_strip {
            true => k.next_multiple_of(step_depth),
            false => pass_depth(kernel, k),
        };
        let parts = rows.len().div_ceil(block_rows(kernel, k));
        // Few rows are packed deeper than a pass: then all passes of a panel follow one another.
        let passes = k.div_ceil(pass);
        let pass_words = pass.div_ceil(step_depth) * left_words;
        let together = kernel.block_words() / (rows.len().div_ceil(parts) * pass_words);
        let stretch = pass * passes.div_ceil(passes.div_ceil(together.clamp(1, passes)));
        Plan {
            is_wide,
            is_strip,
            works_aside: is_wide || rows.len() > 2 * tile_rows,
            tile_rows,
            parts,
            stretch,
            pass,
            // An odd number of cache lines, so that the rows of a tile fall into different sets of the cache.
            stride: (stretch.div_ceil(step_depth) * left_words).next_multiple_of(32) + 16,
            rows,
            k,
        }
    }

    /// Whether one pass takes the whole depth.
    #[inline(always)]
    pub(super) fn is_one_pass(&self) -> bool {
        self.pass >= self.k
    }

    /// Tiles of a panel, over all passes of a block.
    #[inline(always)]
    pub(super) fn tiles(&self, block: &Block) -> usize {
        block.depth.len().div_ceil(self.pass) * block.rows.len().div_ceil(self.tile_rows)
    }

    /// Block `idx`, if there is one.
    #[inline(always)]
    pub(super) fn block(&self, idx: usize) -> Option<Block> {
        let stretches = self.k.div_ceil(self.stretch);
        let start = idx % stretches * self.stretch;
        (idx / stretches < self.parts).then(|| Block {
            rows: part(&self.rows, idx / stretches, self.parts),
            depth: start..self.k.min(start + self.stretch),
            stride: self.stride,
        })
    }
}

/// Rows of a block: whole tiles, of which one pass packs `block_words`. Shallow rows count as if they had two cache
/// lines, which they take.
#[inline(always)]
pub(super) fn block_rows<K: Kernel>(kernel: K, k: usize) -> usize {
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
pub(super) fn pass_steps<K: Kernel>(kernel: K) -> usize {
    kernel.pass_words() / kernel.right_words().max(kernel.wide_words())
}
