//! Columns of rows that are packed a step at a time, while tiles of what is packed already are multiplied.

use super::aside::{Aside, Output, Piece};
use super::left::Rows;
use crate::factor::{Factor, LINE};
use crate::simd::{Fetch, Simd, prefetch};
use std::cell::Cell;
use std::ops::Range;

/// Columns of some rows on the way into panels of `width` columns each, step by step; the last panel may have fewer.
/// Tiles that lie side by side are a panel, too.
pub(super) struct Columns<'a> {
    from: Rows<'a>,
    rows: Range<usize>,
    /// The first column.
    column: usize,
    /// Panels that tiles pack: those that are whole, at least as columns of the matrix.
    panels: usize,
    /// Columns of the panel after them, which is packed at once.
    rest: usize,
    out: *mut u32,
    /// Words from a panel to the next.
    apart: usize,
    /// Steps of panels that a tile packs, and those that no tile has been given.
    share: usize,
    left: Cell<usize>,
    /// How many rows after those that are packed the ones are that are fetched.
    ahead: usize,
    next: Cell<Step>,
    /// What tiles fetch at each step of their own, though it is packed already.
    packed: Cell<Fetch>,
}

/// The step that is packed next, of one panel.
#[derive(Clone, Copy)]
struct Step {
    first: *const f32,
    /// Null where a step is one row, or there is no second.
    second: *const f32,
    /// What is fetched meanwhile: the same columns of later rows.
    fetched: [*const f32; 2],
    out: *mut u32,
    row: usize,
    /// Panels of it that are left, with this one.
    left: usize,
}

impl<'a> Columns<'a> {
    /// Columns `cols` of the rows `rows`, which `tiles` tiles pack at `out`, in panels of `width` columns that lie
    /// `apart` words apart.
    #[inline(always)]
    pub(super) fn new<S: Simd, F: Factor<S>>(
        from: Rows<'a>,
        rows: Range<usize>,
        cols: Range<usize>,
        width: usize,
        (out, apart): (*mut u32, usize),
        tiles: usize,
    ) -> Columns<'a> {
        let all = cols.len().div_ceil(width);
        let whole = all.min((from.width - cols.start) / width);
        let steps = rows.len().div_ceil(F::STEP) * whole;
        let share = steps.div_ceil(tiles.max(1));
        let columns = Columns {
            // An eighth of what a tile packs: nobody fetches the first rows.
            ahead: (1 + share.div_ceil(8 * whole.max(1))) * F::STEP,
            from,
            rows,
            column: cols.start,
            panels: whole,
            rest: cols.len().saturating_sub(whole * width),
            out,
            apart,
            share,
            left: Cell::new(steps),
            next: Cell::new(Step {
                first: std::ptr::null(),
                second: std::ptr::null(),
                fetched: [std::ptr::null(); 2],
                out,
                row: 0,
                left: 0,
            }),
            packed: Cell::new(Piece::new(out, 0).over(1)),
        };
        if steps > 0 {
            let first = columns.at_row::<S, F>(columns.rows.start, out);
            columns.next.set(first);
        }
        columns
    }

    /// With what tiles fetch that is packed already.
    #[inline(always)]
    pub(super) fn and_fetch(self, packed: Fetch) -> Columns<'a> {
        self.packed.set(packed);
        self
    }

    /// The step whose first row is `row`.
    #[inline(always)]
    fn at_row<S: Simd, F: Factor<S>>(&self, row: usize, out: *mut u32) -> Step {
        // After the last row comes the last again, so that fetching needs no end.
        let last = self.rows.end - 1;
        let start = |row: usize| self.from.row(row.min(last))[self.column..].as_ptr();
        let second = if F::STEP == 2 && row < last {
            start(row + 1)
        } else {
            std::ptr::null()
        };
        let later = start(row + self.ahead);
        Step {
            first: start(row),
            second,
            // Not by `map`: its closure would be a call, which costs all registers.
            fetched: match F::STEP {
                2 => [later, start(row + self.ahead + 1)],
                _ => [later; 2],
            },
            out,
            row,
            left: self.panels,
        }
    }

    /// The most that the next tile is given.
    #[inline(always)]
    pub(super) fn most(&self) -> usize {
        self.share.min(self.left.get())
    }

    /// Gives a tile what it packs: so many steps of panels.
    #[inline(always)]
    pub(super) fn give(&self) -> usize {
        let share = self.share.min(self.left.get());
        self.left.set(self.left.get() - share);
        share
    }

    /// Packs all of it at once, where there are no tiles yet.
    ///
    /// # Safety
    /// As for `pack`.
    #[inline(always)]
    pub(super) unsafe fn at_once<S: Simd, F: Factor<S>>(&self, width: usize) {
        self.left.set(0);
        // SAFETY: forwarded to the caller.
        unsafe {
            for panel in 0..self.panels {
                self.pack_panel::<S, F>(panel, width, width);
            }
            self.finish::<S, F>(width);
        }
    }

    /// Packs what no tile was given.
    ///
    /// # Safety
    /// As for `pack`.
    #[inline(always)]
    pub(super) unsafe fn finish<S: Simd, F: Factor<S>>(&self, width: usize) {
        // SAFETY: forwarded to the caller; a row has the rest after its panels.
        unsafe {
            for _ in 0..self.left.take() {
                self.pack::<S, F>(width);
            }
            if self.rest > 0 {
                self.pack_panel::<S, F>(self.panels, width, self.rest);
            }
        }
    }

    /// Packs the first `cols` columns of a panel.
    ///
    /// # Safety
    /// There is room for it, and a row has so many columns.
    #[inline(always)]
    unsafe fn pack_panel<S: Simd, F: Factor<S>>(&self, panel: usize, width: usize, cols: usize) {
        // SAFETY: forwarded to the caller.
        unsafe {
            let mut out = self.out.add(panel * self.apart);
            for row in self.rows.clone().step_by(F::STEP) {
                let values = |row| self.from.row(row)[self.column + panel * width..].as_ptr();
                let second = if F::STEP == 2 && row + 1 < self.rows.end {
                    values(row + 1)
                } else {
                    std::ptr::null()
                };
                F::right_of_columns(out, values(row), second, cols);
                out = out.add(width);
            }
        }
    }

    /// Packs a step of a panel. `width` is that of all panels, which is known here when it is compiled.
    ///
    /// # Safety
    /// It was given, and there is room for it.
    #[inline(always)]
    pub(super) unsafe fn pack<S: Simd, F: Factor<S>>(&self, width: usize) {
        let mut step = self.next.get();
        // SAFETY: forwarded to the caller; a row has so many columns from here on.
        unsafe { F::columns_aside(step.out, step.first, step.second, width) };
        for at in (0..width).step_by(LINE) {
            prefetch(step.fetched[0].wrapping_add(at));
            if F::STEP == 2 {
                prefetch(step.fetched[1].wrapping_add(at));
            }
        }
        step.left -= 1;
        if step.left > 0 {
            step.first = step.first.wrapping_add(width);
            if F::STEP == 2 && !step.second.is_null() {
                step.second = step.second.wrapping_add(width);
            }
            let [first, second] = step.fetched;
            step.fetched = [first.wrapping_add(width), second.wrapping_add(width)];
            step.out = step.out.wrapping_add(self.apart);
        } else if step.row + F::STEP < self.rows.end {
            let back = (self.panels - 1) * self.apart;
            let out = step.out.wrapping_sub(back).wrapping_add(width);
            step = self.at_row::<S, F>(step.row + F::STEP, out);
        }
        self.next.set(step);
    }
}

/// The work of tiles whose both sides are packed by columns: it is for what is multiplied after them, and for the
/// output of the next tile.
#[derive(Clone, Copy)]
pub(super) struct ForColumns<'a> {
    left: &'a Columns<'a>,
    right: &'a Columns<'a>,
    /// Where the tile after these writes.
    after: *mut f32,
    /// Steps that a tile packs of each.
    of_left: usize,
    of_right: usize,
    /// What is fetched: the output of the next tile.
    out: Output,
    /// Parts from a row that is fetched to the next: all rows at once would stop the tile until most of them are there.
    every: usize,
    /// The part that has the next row, and the row.
    at: usize,
    row: usize,
}

impl<'a> ForColumns<'a> {
    /// `after` is the output of the tile after these.
    #[inline(always)]
    pub(super) fn new(
        left: &'a Columns<'a>,
        right: &'a Columns<'a>,
        after: Output,
    ) -> ForColumns<'a> {
        ForColumns {
            left,
            right,
            after: after.ptr,
            of_left: 0,
            of_right: 0,
            out: after,
            every: 1,
            at: 0,
            row: 0,
        }
    }
}

impl Aside for ForColumns<'_> {
    const IN_ROWS: bool = false;

    #[inline(always)]
    fn parts<S: Simd, F: Factor<S>>(&mut self, _: usize) -> usize {
        let parts = self.out.rows.max(self.left.most() + self.right.most());
        self.every = parts / self.out.rows;
        parts
    }

    #[inline(always)]
    fn fetch(&self, _: usize) -> Fetch {
        // Not the panel of the next tile: that costs more than it brings (docs/LOG.md).
        self.right.packed.get()
    }

    #[inline(always)]
    fn begin(
        &mut self,
        to: *mut f32,
        stride: usize,
        _: usize,
        next: Option<*mut f32>,
    ) -> (*mut f32, usize) {
        self.of_left = self.left.give();
        self.of_right = self.right.give();
        self.out.ptr = next.unwrap_or(self.after);
        (self.at, self.row) = (0, 0);
        (to, stride)
    }

    #[inline(always)]
    unsafe fn part<S: Simd, F: Factor<S>>(&mut self, idx: usize, _: usize, _: &mut Fetch) {
        if idx == self.at {
            if self.row < self.out.rows {
                self.out.fetch_row::<S>(self.row);
            }
            self.at += self.every;
            self.row += 1;
        }
        // SAFETY: forwarded to the caller.
        unsafe {
            if idx < self.of_left {
                self.left.pack::<S, F>(super::tn::side::<S>());
            } else if idx < self.of_left + self.of_right {
                self.right.pack::<S, F>(2 * S::LANES);
            }
        }
    }

    #[inline(always)]
    fn end(&mut self, fetch: Fetch) {
        self.right.packed.set(fetch);
    }
}
