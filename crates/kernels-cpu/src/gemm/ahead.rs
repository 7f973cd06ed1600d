//! What a tile fetches for those after it, while it multiplies: a share of the next panel, rows that will be packed,
//! and the output of the next tile.
//!
//! Panels and rows are fetched a little at every step: all at once would occupy all that a core can wait for at a
//! time, and stop the tile until most of it is there. Fetching changes no result, and pointers may lead anywhere.

use super::part;
use crate::aligned::LINE_BYTES;
use crate::simd::prefetch;

/// The most rows that a tile fetches. The tiles of all panels share the rows that are packed next; where there are less
/// than four panels, some of them are not fetched.
const MOST_ROWS: usize = 4;

/// What a tile fetches.
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    /// Of a panel.
    pub(super) panel: Piece,
    /// Output that lies as that of this tile, row by row.
    pub(super) out: *const f32,
    rows: [*const f32; MOST_ROWS],
    row_count: usize,
    row_len: usize,
}

impl Ahead {
    /// Nothing: `out` is written anyway, and `right` read.
    #[inline(always)]
    pub(super) fn nothing(right: *const u32, out: *const f32) -> Ahead {
        Ahead {
            panel: Piece::new(right, 0),
            out,
            rows: [out; MOST_ROWS],
            row_count: 0,
            row_len: 0,
        }
    }

    /// Fetches these rows too, of `len` values each.
    #[inline(always)]
    pub(super) fn set_rows(&mut self, rows: impl Iterator<Item = *const f32>, len: usize) {
        (self.row_count, self.row_len) = (0, len);
        for (out, row) in self.rows.iter_mut().zip(rows) {
            *out = row;
            self.row_count += 1;
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
        let row = Piece::new(self.rows[idx], self.row_len);
        (steps, row.at_each_of(steps))
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
