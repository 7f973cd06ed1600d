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

/// What a tile does aside. Its steps are cut into parts, and before each part one thing of each kind is done.
pub(super) trait Aside: Copy {
    /// Into how many parts `steps` steps are cut, at least one.
    fn start<S: Simd, F: Factor<S>>(&mut self, steps: usize) -> usize;
    /// Does what comes before part `idx`, which has `steps` steps, and returns what is fetched at each of them.
    ///
    /// # Safety
    /// By the contracts of [`Done`] and [`Packing`].
    unsafe fn part<S: Simd, F: Factor<S>>(&mut self, idx: usize, steps: usize) -> Piece;
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
    /// This tile's share of the next panel.
    pub(super) panel: Piece,
    /// Of the next block.
    pub(super) packing: &'a Packing,
    /// Lines of it that this tile packs.
    pub(super) lines: usize,
    /// The tile before this one.
    pub(super) done: Done,
    /// Where this tile will be moved to, or the next one writes.
    pub(super) out: Output,
    /// Parts from a row that is moved, or fetched, to the next: spread over the tile, rows cost less (docs/LOG.md).
    every: usize,
    /// The part that has the next row, and the row.
    at: usize,
    row: usize,
}

impl<'a> ForBlocks<'a> {
    /// Nothing yet, but for a tile that is done.
    #[inline(always)]
    pub(super) fn new(packing: &'a Packing, done: Done) -> ForBlocks<'a> {
        ForBlocks {
            panel: Piece::new(done.from, 0),
            packing,
            lines: 0,
            done,
            out: Output { rows: 0, ..done.to },
            every: 1,
            at: 0,
            row: 0,
        }
    }
}

impl Aside for ForBlocks<'_> {
    #[inline(always)]
    fn start<S: Simd, F: Factor<S>>(&mut self, steps: usize) -> usize {
        self.panel = self.panel.at_each_of(steps);
        if !has_registers::<S, F>() {
            debug_assert!(self.lines + self.done.to.rows == 0, "nobody would do it");
            return 1;
        }
        let rows = self.done.to.rows.max(self.out.rows).max(1);
        let parts = rows.max(self.lines);
        self.every = parts / rows;
        parts
    }

    #[inline(always)]
    unsafe fn part<S: Simd, F: Factor<S>>(&mut self, idx: usize, steps: usize) -> Piece {
        if !has_registers::<S, F>() {
            self.out.fetch::<S>();
            return self.panel;
        }
        if idx < self.lines {
            // SAFETY: forwarded to the caller.
            unsafe { self.packing.pack_line::<S, F>() };
        }
        if idx == self.at {
            if self.row < self.done.to.rows {
                // SAFETY: as above.
                unsafe { self.done.move_row::<S>(self.row) };
            }
            if self.row < self.out.rows {
                self.out.fetch_row::<S>(self.row);
            }
            self.at += self.every;
            self.row += 1;
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
    fn start<S: Simd, F: Factor<S>>(&mut self, _: usize) -> usize {
        self.count.max(1)
    }

    #[inline(always)]
    unsafe fn part<S: Simd, F: Factor<S>>(&mut self, idx: usize, steps: usize) -> Piece {
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

/// A tile that is done: rows of two vectors, one after another at `from`, which belong to `to`; no rows where there is
/// none.
#[derive(Clone, Copy)]
pub(super) struct Done {
    pub(super) from: *const f32,
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

/// Where rows start that are packed, and after them what is fetched when there are no more.
pub(super) type Starts = Vec<*const f32>;

/// Rows that are packed line by line: the whole cache lines of their packed words.
pub(super) struct Packing {
    /// Lines of a row.
    lines: usize,
    /// Words from the last line of a packed row to the next row.
    gap: usize,
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
    /// Lines of its row that are left, with this one.
    left: usize,
    /// Where the start of the next row is found.
    start: *const *const f32,
}

impl Packing {
    /// Nothing to pack.
    #[inline(always)]
    pub(super) fn none() -> Packing {
        Packing {
            lines: 0,
            gap: 0,
            ahead: 0,
            share: 0,
            left: Cell::new(0),
            next: Cell::new(Line {
                values: std::ptr::null(),
                fetched: std::ptr::null(),
                out: std::ptr::null_mut(),
                left: 0,
                start: std::ptr::null(),
            }),
        }
    }

    /// By `tiles` tiles, of rows `rows` of x, the values from `column` on that fill `lines` lines. Rows are packed
    /// `stride` words apart, the first at `out`. `starts` is overwritten, and stays as it is until all is packed.
    #[inline(always)]
    pub(super) fn new(
        starts: &mut Starts,
        x: Rows,
        rows: &Range<usize>,
        column: usize,
        lines: usize,
        (out, stride): (*mut u32, usize),
        tiles: usize,
    ) -> Packing {
        if rows.is_empty() || lines == 0 {
            return Packing::none();
        }
        let share = (rows.len() * lines).div_ceil(tiles);
        let ahead = share.div_ceil(lines);
        starts.clear();
        starts.extend(rows.clone().map(|row| x.row(row)[column..].as_ptr()));
        // After the last row comes the last again, so that fetching needs no end.
        starts.resize(rows.len() + ahead + 1, starts[rows.len() - 1]);
        Packing {
            lines,
            gap: stride - lines * LINE,
            ahead,
            share,
            left: Cell::new(rows.len() * lines),
            next: Cell::new(Line {
                values: starts[0],
                fetched: starts[ahead],
                out,
                left: lines,
                start: starts[1..].as_ptr(),
            }),
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
            line.left = self.lines;
            line.out = line.out.wrapping_add(self.gap);
            // SAFETY: after the starts of all rows there are `ahead` more, and one.
            unsafe {
                line.values = *line.start;
                line.fetched = *line.start.add(self.ahead);
                line.start = line.start.add(1);
            }
        }
        self.next.set(line);
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

    /// As many bytes that follow.
    #[inline(always)]
    pub(super) fn following(self) -> Piece {
        Piece {
            ptr: self.ptr.wrapping_add(self.bytes),
            bytes: self.bytes,
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
