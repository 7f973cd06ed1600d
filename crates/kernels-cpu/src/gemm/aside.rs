//! What a tile does aside, while it multiplies: it fetches its share of the next panel, packs its share of the rows of
//! the next block, and moves the tile before it into the output.
//!
//! All of this is done a little at a time, between the steps of its depth. At once it would occupy all that a core can
//! wait for at a time, and stop the tile until most of it is there. Fetching changes no result, and pointers of what
//! is fetched may lead anywhere.

use super::Rows;
use crate::factor::{Factor, LINE};
use crate::simd::{Fetch, Simd, prefetch};
use std::cell::Cell;
use std::ops::Range;

/// What tiles do aside. The steps of a tile are cut into parts, and before each part one thing of each kind is done.
pub(super) trait Aside: Copy {
    /// Whether rows of the left operand are packed one after another.
    const IN_ROWS: bool;

    /// Into how many parts the steps of tiles of `rows` rows are cut, at least one.
    fn parts<S: Simd, F: Factor<S>>(&mut self, rows: usize) -> usize;
    /// What tiles fetch at each of their `steps` steps.
    fn fetch(&self, steps: usize) -> Fetch;
    /// Before a tile of `rows` rows that belong to `to`, `stride` apart. Returns where it writes them. `next` is where
    /// the tile after it belongs.
    fn begin(
        &mut self,
        to: *mut f32,
        stride: usize,
        rows: usize,
        next: Option<*mut f32>,
    ) -> (*mut f32, usize);
    /// Does what comes before part `idx`, which has about `steps` steps; `fetch` is what they fetch.
    ///
    /// # Safety
    /// By the contracts of [`Done`] and [`Packing`].
    unsafe fn part<S: Simd, F: Factor<S>>(&mut self, idx: usize, steps: usize, fetch: &mut Fetch);
    /// After the last tile; `fetch` has come this far.
    fn end(&mut self, fetch: Fetch);
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
    /// What is to be fetched of the next panel, and how many tiles share all of it.
    pub(super) panel: Piece,
    pub(super) sharers: usize,
    /// Of the next block.
    packing: &'a Packing<'a>,
    /// The tile before.
    pub(super) done: Done,
    /// Whether each tile waits to be moved by the next.
    pub(super) waits: bool,
    /// Where the tile after these writes.
    pub(super) after: *mut f32,
    /// Lines that this tile packs.
    lines: usize,
    /// The tile that is moved meanwhile.
    moved: Done,
    /// Rows of the output that are fetched.
    out: Output,
    /// Parts from a row that is moved, or fetched, to the next: spread over the tile, rows cost less (docs/LOG.md).
    every: usize,
    /// The part that has the next row, and the row.
    at: usize,
    row: usize,
}

impl<'a> ForBlocks<'a> {
    /// Nothing yet, but for a tile that is done.
    #[inline(always)]
    pub(super) fn new(packing: &'a Packing<'a>, done: Done) -> ForBlocks<'a> {
        ForBlocks {
            panel: Piece::new(done.from, 0),
            sharers: 1,
            packing,
            done,
            waits: false,
            after: done.to.ptr,
            lines: 0,
            moved: done,
            out: Output { rows: 0, ..done.to },
            every: 1,
            at: 0,
            row: 0,
        }
    }
}

impl Aside for ForBlocks<'_> {
    const IN_ROWS: bool = true;

    #[inline(always)]
    fn parts<S: Simd, F: Factor<S>>(&mut self, rows: usize) -> usize {
        if !has_registers::<S, F>() {
            debug_assert!(
                self.packing.share + self.done.to.rows == 0,
                "nobody would do it"
            );
            return 1;
        }
        let rows = self.done.to.rows.max(rows);
        let parts = rows.max(self.packing.share);
        self.every = parts / rows;
        parts
    }

    #[inline(always)]
    fn fetch(&self, steps: usize) -> Fetch {
        self.panel.over(self.sharers * steps)
    }

    #[inline(always)]
    fn begin(
        &mut self,
        to: *mut f32,
        stride: usize,
        rows: usize,
        next: Option<*mut f32>,
    ) -> (*mut f32, usize) {
        self.lines = self.packing.give();
        self.moved = self.done;
        (self.at, self.row) = (0, 0);
        self.done.to.rows = if self.waits { rows } else { 0 };
        // What is written past the caches needs not be fetched.
        self.out.rows = if self.done.past_caches { 0 } else { rows };
        self.out.ptr = if self.waits {
            to
        } else {
            next.unwrap_or(self.after)
        };
        if self.waits {
            self.done.to.ptr = to;
            (self.done.from.cast_mut(), self.done.cols)
        } else {
            (to, stride)
        }
    }

    #[inline(always)]
    unsafe fn part<S: Simd, F: Factor<S>>(&mut self, idx: usize, _: usize, _: &mut Fetch) {
        if !has_registers::<S, F>() {
            self.out.fetch::<S>();
            return;
        }
        if idx < self.lines {
            // SAFETY: forwarded to the caller.
            unsafe { self.packing.pack_line::<S, F>() };
        }
        if idx == self.at {
            if self.row < self.moved.to.rows {
                // SAFETY: as above.
                unsafe { self.moved.move_row::<S>(self.row) };
            }
            if self.row < self.out.rows {
                self.out.fetch_row::<S>(self.row);
            }
            self.at += self.every;
            self.row += 1;
        }
    }

    #[inline(always)]
    fn end(&mut self, fetch: Fetch) {
        self.panel.ptr = fetch.ptr;
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
    pub(super) fn fetch<S: Simd>(self) {
        for row in 0..self.rows {
            self.fetch_row::<S>(row);
        }
    }

    #[inline(always)]
    pub(super) fn fetch_row<S: Simd>(self, row: usize) {
        let row = self.ptr.wrapping_add(row * self.stride);
        prefetch(row);
        prefetch(row.wrapping_add(S::LANES));
    }
}

/// A tile that is done: rows of two vectors, one after another at `from`, which belong to `to`; no rows where there is
/// none.
#[derive(Clone, Copy)]
pub(super) struct Done {
    pub(super) from: *const f32,
    /// Columns: all that a panel has.
    pub(super) cols: usize,
    pub(super) to: Output,
    /// Whether they are written past the caches. Then they lie as vectors do.
    pub(super) past_caches: bool,
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
                let values = S::load(from.add(at));
                match self.past_caches {
                    true => S::stream(to.add(at), values),
                    false => S::store(to.add(at), values),
                }
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
    /// The first value of a row that is packed.
    column: usize,
    /// Lines of a row.
    lines: usize,
    /// Words from the last line of a packed row to the next row.
    gap: usize,
    /// The row after the last.
    end: usize,
    /// How many rows after the one that is packed the one is that is fetched: no less than a tile packs.
    ahead: usize,
    /// Lines that a tile packs, and those that no tile has been given.
    share: usize,
    left: Cell<usize>,
    next: Cell<Line>,
}

/// The line that is packed next.
#[derive(Clone, Copy)]
struct Line {
    values: *const f32,
    /// What is fetched meanwhile.
    fetched: *const f32,
    out: *mut u32,
    /// Its row, and lines of it that are left, with this one.
    row: usize,
    left: usize,
}

impl<'a> Packing<'a> {
    /// By `tiles` tiles, of rows `rows` of x, the values from `column` on that fill `lines` lines; perhaps nothing. Rows
    /// are packed `stride` words apart, the first at `out`.
    #[inline(always)]
    pub(super) fn new(
        x: Rows<'a>,
        rows: Range<usize>,
        column: usize,
        lines: usize,
        (out, stride): (*mut u32, usize),
        tiles: usize,
    ) -> Packing<'a> {
        let all = rows.len() * lines;
        let share = all.div_ceil(tiles);
        let packing = Packing {
            x,
            column,
            lines,
            gap: stride - lines * LINE,
            end: rows.end,
            ahead: share.div_ceil(lines.max(1)),
            share,
            left: Cell::new(all),
            next: Cell::new(Line {
                values: std::ptr::null(),
                fetched: std::ptr::null(),
                out,
                row: rows.start,
                left: lines,
            }),
        };
        if all > 0 {
            packing
                .next
                .set(packing.at_row(rows.start, packing.next.get()));
        }
        packing
    }

    /// `line`, at the start of a row.
    #[inline(always)]
    fn at_row(&self, row: usize, line: Line) -> Line {
        // After the last row comes the last again, so that fetching needs no end.
        let start = |row: usize| self.x.row(row.min(self.end - 1))[self.column..].as_ptr();
        Line {
            values: start(row),
            fetched: start(row + self.ahead),
            row,
            left: self.lines,
            ..line
        }
    }

    /// Gives a tile the lines that it packs, and says how many they are.
    #[inline(always)]
    pub(super) fn give(&self) -> usize {
        let lines = self.share.min(self.left.get());
        self.left.set(self.left.get() - lines);
        lines
    }

    /// Whether all lines were given to tiles.
    #[inline(always)]
    pub(super) fn is_given(&self) -> bool {
        self.left.get() == 0
    }

    /// Packs a line.
    ///
    /// # Safety
    /// It was given; the rows are as long as was said, and there is room for them.
    #[inline(always)]
    unsafe fn pack_line<S: Simd, F: Factor<S>>(&self) {
        let mut line = self.next.get();
        let width = LINE * F::STEP / F::PARTS;
        // SAFETY: forwarded to the caller.
        unsafe { F::left_of_row(line.out, line.values, width) };
        for at in (0..width).step_by(LINE) {
            prefetch(line.fetched.wrapping_add(at));
        }
        line.values = line.values.wrapping_add(width);
        line.fetched = line.fetched.wrapping_add(width);
        line.out = line.out.wrapping_add(LINE);
        line.left -= 1;
        if line.left == 0 {
            line.out = line.out.wrapping_add(self.gap);
            line = self.at_row(line.row + 1, line);
        }
        self.next.set(line);
    }
}

/// Bytes, one after another.
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

    /// All of it in `steps` steps.
    #[inline(always)]
    pub(super) fn over(self, steps: usize) -> Fetch {
        Fetch {
            ptr: self.ptr,
            bytes: self.bytes.div_ceil(steps.max(1)),
        }
    }
}
