//! What a tile does aside, while it multiplies: it fetches its share of the next panel, packs its share of the rows of
//! the next block (or fetches rows, where nothing is packed meanwhile), and moves the tile before it into the output.
//!
//! All of this is done a little at a time, between the steps of its depth. At once it would occupy all that a core can
//! wait for at a time, and stop the tile until most of it is there. Fetching changes no result, and pointers of what
//! is fetched may lead anywhere.

use super::{Rows, part};
use crate::aligned::LINE_BYTES;
use crate::factor::{Factor, LINE};
use crate::simd::{Simd, prefetch};
use std::cell::Cell;
use std::ops::Range;

/// What a tile does aside. Its steps are cut into parts, and before each part one thing is done.
pub(super) trait Aside: Copy {
    /// Into how many parts `steps` steps are cut, at least one.
    fn cut<S: Simd, F: Factor<S>>(&mut self, steps: usize) -> usize;
    /// Does what comes before part `idx`, which has `steps` steps, and returns what is fetched at each of them.
    ///
    /// # Safety
    /// By the contract of [`Done`].
    unsafe fn begin<S: Simd, F: Factor<S>>(&mut self, idx: usize, steps: usize) -> Piece;
}

/// Whether something can be done between steps. Where few rows multiply pairs value by value, registers are short: one
/// of the sums would live in memory, and the product take twice as long.
#[inline(always)]
pub(super) const fn has_registers<S: Simd, F: Factor<S>>() -> bool {
    F::PARTS == 1
}

/// The work of tiles whose panels follow one another: it is for the next panel, the next block and the tile before.
#[derive(Clone, Copy)]
pub(super) struct ForBlocks<'a> {
    /// Of the next panel.
    pub(super) panel: Piece,
    /// Of the next block.
    pub(super) packing: Option<&'a Packing<'a>>,
    /// The tile before this one.
    pub(super) done: Option<Done>,
    /// Where this tile will be moved to, or the next one writes.
    pub(super) out: Output,
}

impl Aside for ForBlocks<'_> {
    #[inline(always)]
    fn cut<S: Simd, F: Factor<S>>(&mut self, steps: usize) -> usize {
        self.panel = self.panel.at_each_of(steps);
        if !has_registers::<S, F>() {
            return 1;
        }
        let lines = self.packing.map_or(0, |packing| packing.share);
        let done = self.done.map_or(0, |done| done.to.rows);
        lines.max(done).max(self.out.rows).max(1)
    }

    #[inline(always)]
    unsafe fn begin<S: Simd, F: Factor<S>>(&mut self, idx: usize, steps: usize) -> Piece {
        if !has_registers::<S, F>() {
            self.out.fetch::<S>();
            return self.panel;
        }
        if let Some(packing) = self.packing
            && idx < packing.share
        {
            packing.pack_line::<S, F>();
        }
        if let Some(done) = self.done
            && idx < done.to.rows
        {
            // SAFETY: forwarded to the caller.
            unsafe { done.move_row::<S>(idx) };
        }
        if idx < self.out.rows {
            self.out.fetch_row::<S>(idx);
        }
        self.panel.take(steps)
    }
}

/// The most rows that a tile fetches. Tiles share the rows that are packed next; where they are few, some rows are not
/// fetched.
const MOST_ROWS: usize = 4;

/// Fetching rows that will be packed, and the output of the next tile.
#[derive(Clone, Copy)]
pub(super) struct ForRows {
    out: Output,
    rows: [Piece; MOST_ROWS],
    count: usize,
}

impl ForRows {
    /// Share `idx` of `count` of all rows in `later`.
    #[inline(always)]
    pub(super) fn share(later: &[Values], idx: usize, count: usize, out: Output) -> ForRows {
        let nothing = Piece::new(out.ptr, 0);
        let mut work = ForRows {
            out,
            rows: [nothing; MOST_ROWS],
            count: 0,
        };
        let total = later.iter().map(|values| values.rows.len()).sum();
        let mut share = part(&(0..total), idx, count);
        for values in later {
            let len = values.rows.len();
            for row in share.start..share.end.min(len) {
                if work.count < MOST_ROWS {
                    work.rows[work.count] = values.row(row);
                    work.count += 1;
                }
            }
            share = share.start.saturating_sub(len)..share.end.saturating_sub(len);
        }
        work
    }
}

impl Aside for ForRows {
    #[inline(always)]
    fn cut<S: Simd, F: Factor<S>>(&mut self, _: usize) -> usize {
        self.count.max(1)
    }

    #[inline(always)]
    unsafe fn begin<S: Simd, F: Factor<S>>(&mut self, idx: usize, steps: usize) -> Piece {
        if idx == 0 {
            self.out.fetch::<S>();
        }
        self.rows[idx].at_each_of(steps)
    }
}

/// `rows` rows of output, two vectors each, `stride` apart.
#[derive(Clone, Copy)]
pub(super) struct Output {
    pub(super) ptr: *mut f32,
    pub(super) rows: usize,
    pub(super) stride: usize,
}

impl Output {
    #[inline(always)]
    fn fetch<S: Simd>(self) {
        for row in 0..self.rows {
            self.fetch_row::<S>(row);
        }
    }

    #[inline(always)]
    fn fetch_row<S: Simd>(self, row: usize) {
        let row = self.ptr.wrapping_add(row * self.stride);
        prefetch(row);
        prefetch(row.wrapping_add(S::LANES));
    }
}

/// A tile that is done: rows of two vectors, one after another at `from`, which belong to `to`.
#[derive(Clone, Copy)]
pub(super) struct Done {
    pub(super) from: *const f32,
    pub(super) to: Output,
}

impl Done {
    /// Moves a row.
    ///
    /// # Safety
    /// Both places are valid for two vectors.
    #[inline(always)]
    unsafe fn move_row<S: Simd>(&self, row: usize) {
        // SAFETY: forwarded to the caller.
        unsafe {
            let from = self.from.add(row * 2 * S::LANES);
            let to = self.to.ptr.add(row * self.to.stride);
            for at in [0, S::LANES] {
                S::store(to.add(at), S::load(from.add(at)));
            }
        }
    }

    /// Moves all rows.
    ///
    /// # Safety
    /// As for `move_row`, for each row.
    #[inline(always)]
    pub(super) unsafe fn move_all<S: Simd>(&self) {
        for row in 0..self.to.rows {
            // SAFETY: forwarded to the caller.
            unsafe { self.move_row::<S>(row) };
        }
    }
}

/// Rows that are packed line by line: the whole cache lines of their packed words.
pub(super) struct Packing<'a> {
    x: Rows<'a>,
    rows: Range<usize>,
    /// The first of the values of a row.
    column: usize,
    /// Lines of a row, and values of each.
    lines: usize,
    width: usize,
    /// Where the first row is packed; the others follow `stride` words apart.
    out: *mut u32,
    stride: usize,
    /// Lines that a tile packs.
    share: usize,
    /// How many rows after the one that is packed the one is that is fetched: no less than a tile packs.
    ahead: usize,
    next: Cell<Line>,
}

/// The line that is packed next.
#[derive(Clone, Copy)]
struct Line {
    row: usize,
    /// Lines of its row that are left, with this one. 0: all rows are packed.
    left: usize,
    values: *const f32,
    /// What is fetched meanwhile.
    fetched: *const f32,
    out: *mut u32,
}

impl<'a> Packing<'a> {
    /// By `tiles` tiles, of rows `rows` of x, the values from `column` on that fill `lines` lines of `width` values.
    ///
    /// # Safety
    /// `out` has room for all rows.
    #[inline(always)]
    pub(super) unsafe fn new(
        x: Rows<'a>,
        rows: &Range<usize>,
        column: usize,
        (lines, width): (usize, usize),
        (out, stride): (*mut u32, usize),
        tiles: usize,
    ) -> Packing<'a> {
        let share = (rows.len() * lines).div_ceil(tiles);
        let none = Line {
            row: rows.start,
            left: 0,
            values: x.data.as_ptr(),
            fetched: x.data.as_ptr(),
            out,
        };
        let packing = Packing {
            x,
            rows: rows.clone(),
            column,
            lines,
            width,
            out,
            stride,
            share,
            ahead: share.div_ceil(lines.max(1)),
            next: Cell::new(none),
        };
        packing.next.set(packing.first_line(rows.start));
        packing
    }

    /// The first line of a row of x.
    #[inline(always)]
    fn first_line(&self, row: usize) -> Line {
        let values = |row: usize| match row < self.rows.end {
            true => &self.x.row(row)[self.column..][..self.lines * self.width],
            false => &[],
        };
        let at = (row - self.rows.start) * self.stride;
        Line {
            row,
            left: values(row).len() / self.width,
            values: values(row).as_ptr(),
            fetched: values(row + self.ahead).as_ptr(),
            out: self.out.wrapping_add(at),
        }
    }

    /// Packs a line, if one is left.
    #[inline(always)]
    fn pack_line<S: Simd, F: Factor<S>>(&self) {
        let line = self.next.get();
        if line.left == 0 {
            return;
        }
        let width = LINE * F::STEP / F::PARTS;
        // SAFETY: `out` has room for the line; its values are of a row, by `first_line`.
        unsafe { F::left_of_row(line.out, line.values, width) };
        for at in (0..width).step_by(LINE) {
            prefetch(line.fetched.wrapping_add(at));
        }
        self.next.set(if line.left == 1 {
            self.first_line(line.row + 1)
        } else {
            Line {
                row: line.row,
                left: line.left - 1,
                values: line.values.wrapping_add(width),
                fetched: line.fetched.wrapping_add(width),
                out: line.out.wrapping_add(LINE),
            }
        });
    }

    /// Whether no line is left.
    #[inline(always)]
    pub(super) fn is_done(&self) -> bool {
        self.next.get().left == 0
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

    /// What the next `steps` steps fetch; the rest stays.
    #[inline(always)]
    fn take(&mut self, steps: usize) -> Piece {
        let taken = *self;
        self.ptr = self.ptr.wrapping_add(self.bytes * steps);
        taken
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
