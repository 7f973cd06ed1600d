//! What a tile fetches for those after it, while it multiplies: a share of the next panel, rows that will be packed,
//! and the output of the next tile.
//!
//! Panels and rows are fetched a little at every step: all at once would occupy all that a core can wait for at a
//! time, and stop the tile until most of it is there. Fetching changes no result, and pointers may lead anywhere.

use super::{Rows, part};
use crate::aligned::LINE_BYTES;
use crate::simd::prefetch;
use std::ops::Range;

/// The most rows that a tile fetches. Tiles share the rows that are packed next; where they are few, some rows are not
/// fetched.
const MOST_ROWS: usize = 4;

/// What a tile fetches.
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    /// Of a panel.
    pub(super) panel: Piece,
    /// Output that lies as that of this tile, row by row.
    pub(super) out: *const f32,
    rows: [Piece; MOST_ROWS],
    row_count: usize,
}

impl Ahead {
    /// Nothing: `out` is written anyway, and `right` read.
    #[inline(always)]
    pub(super) fn nothing(right: *const u32, out: *const f32) -> Ahead {
        Ahead {
            panel: Piece::new(right, 0),
            out,
            rows: [Piece::new(out, 0); MOST_ROWS],
            row_count: 0,
        }
    }

    /// Fetches share `idx` of `count` of all rows in `later` too.
    #[inline(always)]
    pub(super) fn set_share(&mut self, later: &[Values], idx: usize, count: usize) {
        let total = later.iter().map(|values| values.rows.len()).sum();
        let mut share = part(&(0..total), idx, count);
        self.row_count = 0;
        for values in later {
            let len = values.rows.len();
            for row in share.start..share.end.min(len) {
                if self.row_count < MOST_ROWS {
                    self.rows[self.row_count] = values.row(row);
                    self.row_count += 1;
                }
            }
            share = share.start.saturating_sub(len)..share.end.saturating_sub(len);
        }
    }

    /// Parts that the steps of a tile are cut into, so that each has one row to fetch, if any.
    #[inline(always)]
    pub(super) fn parts(&self) -> usize {
        self.row_count.max(1)
    }

    /// How many of `steps` steps part `idx` of `parts` has, and what it fetches of its row at each.
    #[inline(always)]
    pub(super) fn part(&self, idx: usize, parts: usize, steps: usize) -> (usize, Piece) {
        let steps = part(&(0..steps), idx, parts).len();
        (steps, self.rows[idx].at_each_of(steps))
    }
}

/// Values that will be packed.
pub(super) struct Values<'a> {
    pub(super) of: Rows<'a>,
    pub(super) rows: Range<usize>,
    pub(super) columns: Range<usize>,
}

impl Values<'_> {
    /// Those of row `idx` among these rows.
    #[inline(always)]
    fn row(&self, idx: usize) -> Piece {
        let row = &self.of.row(self.rows.start + idx)[self.columns.clone()];
        Piece::new(row.as_ptr(), row.len())
    }
}

/// Bytes in a row.
#[derive(Clone, Copy)]
pub(super) struct Piece {
    ptr: *const u8,
    bytes: usize,
}

impl Piece {
    /// `len` elements.
    #[inline(always)]
    pub(super) fn new<T>(ptr: *const T, len: usize) -> Piece {
        Piece {
            ptr: ptr.cast(),
            bytes: len * size_of::<T>(),
        }
    }

    /// What is fetched at each of `steps` steps.
    #[inline(always)]
    pub(super) fn at_each_of(self, steps: usize) -> Piece {
        Piece {
            ptr: self.ptr,
            bytes: self.bytes / steps.max(1),
        }
    }

    /// Fetches what a step does, in `LINES` lines at most, and goes on to the next.
    #[inline(always)]
    pub(super) fn step<const LINES: usize>(&mut self) {
        for line in 0..LINES {
            prefetch(self.ptr.wrapping_add(LINE_BYTES * line));
        }
        self.ptr = self.ptr.wrapping_add(self.bytes);
    }
}
