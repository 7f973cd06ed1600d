//! Right operands in panels, and the memory that packed operands live in.

use super::blocks::{self, Activations};
use crate::factor::{Factor, Words, dispatch_factors, lanes};
use crate::pool::SharedMut;
use crate::simd::Simd;
use crate::{Compute, Cpu, Isa};
use numerics::BlockType;
use std::ops::Range;

/// Rows of a matrix as a file or an array holds them, row-major.
#[derive(Clone, Copy, Debug)]
pub enum Stored<'a> {
    /// Values.
    F32(&'a [f32]),
    /// Blocks of integers, each row a whole number of them.
    Blocks(BlockType, &'a [u8]),
}

/// How the factors of a part lie in its panels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Factors {
    Floats(Compute),
    Blocks(BlockType),
}

/// Columns of one type, in panels of their own; the last panel may have fewer columns, and zeros in
/// their place.
pub(super) struct Part {
    pub(super) factors: Factors,
    /// Its first panel among those of all parts.
    pub(super) first_panel: usize,
    first_column: usize,
    n: usize,
    panels: usize,
    panel_words: usize,
    words: Words,
}

impl Part {
    fn new(isa: Isa, factors: Factors, before: Option<&Part>, n: usize, k: usize) -> Part {
        Part::in_words(Words::new(), isa, factors, before, n, k)
    }

    /// As `new`, in memory that is there.
    fn in_words(
        mut words: Words,
        isa: Isa,
        factors: Factors,
        before: Option<&Part>,
        n: usize,
        k: usize,
    ) -> Part {
        let lanes = lanes(isa);
        let panel_words = match factors {
            Factors::Floats(compute) => k.div_ceil(compute.step()) * 2 * lanes,
            Factors::Blocks(block_type) => blocks::panel_words(isa, block_type, k),
        };
        let panels = n.div_ceil(2 * lanes);
        words.reserve(panels * panel_words);
        Part {
            factors,
            first_panel: before.map_or(0, Part::end_panel),
            first_column: before.map_or(0, Part::end_column),
            n,
            panels,
            panel_words,
            words,
        }
    }

    pub(super) fn end_panel(&self) -> usize {
        self.first_panel + self.panels
    }

    pub(super) fn end_column(&self) -> usize {
        self.first_column + self.n
    }

    /// The first column of a panel, `nr` wide.
    pub(super) fn column(&self, panel: usize, nr: usize) -> usize {
        self.first_column + (panel - self.first_panel) * nr
    }

    /// Where a panel starts.
    pub(super) fn panel(&self, panel: usize) -> *const u32 {
        debug_assert!((self.first_panel..self.end_panel()).contains(&panel));
        let at = (panel - self.first_panel) * self.panel_words;
        self.words.as_ptr().wrapping_add(at)
    }

    /// Fills the panels, each on one thread: `fill(panel, words)`.
    fn fill(&mut self, cpu: &Cpu, fill: &(dyn Fn(usize, &mut [u32]) + Sync)) {
        let panel_words = self.panel_words;
        let out = SharedMut::new(&mut self.words);
        cpu.pool.for_ranges(self.panels, 1, &|range: Range<usize>| {
            for panel in range {
                // SAFETY: each panel belongs to one thread.
                let out = unsafe { out.slice(panel * panel_words..(panel + 1) * panel_words) };
                fill(panel, out);
            }
        });
    }

    fn pack_rows(&mut self, cpu: &Cpu, compute: Compute, w: &[f32], k: usize) {
        let (isa, n) = (cpu.isa(), self.n);
        self.fill(cpu, &|panel, out| {
            dispatch_factors!(
                isa,
                compute,
                pack_rows(out: &mut [u32], w: &[f32], n: usize, k: usize,
                    panel: usize,
                )
            );
        });
    }
}

/// A right operand of n columns and depth k, in panels for one instruction set.
pub struct Packed {
    isa: Isa,
    n: usize,
    k: usize,
    activations: Activations,
    parts: Vec<Part>,
}

impl Packed {
    /// Zeros for `n` columns and depth `k`.
    pub fn new(isa: Isa, compute: Compute, n: usize, k: usize) -> Packed {
        assert!(n > 0 && k > 0, "a packed matrix has columns and depth");
        Packed {
            isa,
            n,
            k,
            activations: Activations::default(),
            parts: vec![Part::new(isa, Factors::Floats(compute), None, n, k)],
        }
    }

    /// From the rows of a matrix of depth `k`, stored one after another in one or several forms, so that a
    /// product gives x w^T. Blocks stay what they are, and are multiplied with rows that are rounded as
    /// `activations` says; values are multiplied as `compute` says.
    ///
    /// # Panics
    /// When a row is not whole, or no whole number of blocks.
    pub fn of(
        cpu: &Cpu,
        compute: Compute,
        activations: Activations,
        k: usize,
        stored: &[Stored],
    ) -> Packed {
        let isa = cpu.isa();
        let mut parts: Vec<Part> = Vec::new();
        for rows in stored {
            let (factors, n) = match *rows {
                Stored::F32(w) => {
                    assert_eq!(w.len() % k, 0, "rows are whole");
                    (Factors::Floats(compute), w.len() / k)
                }
                Stored::Blocks(block_type, bytes) => {
                    assert!(block_type.is_quantised(), "floats are not blocks");
                    let row = block_type.bytes_for(k).expect("rows are whole blocks");
                    assert_eq!(bytes.len() % row, 0, "rows are whole");
                    (Factors::Blocks(block_type), bytes.len() / row)
                }
            };
            let mut part = Part::new(isa, factors, parts.last(), n, k);
            match *rows {
                Stored::F32(w) => part.pack_rows(cpu, compute, w, k),
                Stored::Blocks(block_type, bytes) => {
                    let lanes = lanes(isa);
                    part.fill(cpu, &|panel, out| {
                        let first = panel * 2 * lanes;
                        blocks::pack(block_type, lanes, as_bytes(out), bytes, k, first);
                    });
                }
            }
            parts.push(part);
        }
        let n = parts.last().map_or(0, Part::end_column);
        assert!(n > 0 && k > 0, "a packed matrix has columns and depth");
        Packed {
            isa,
            n,
            k,
            activations,
            parts,
        }
    }

    /// Another shape in the same memory; what it holds has no meaning until it is packed.
    pub(crate) fn reshape(&mut self, n: usize, k: usize) {
        assert!(n > 0 && k > 0, "a packed matrix has columns and depth");
        let isa = self.isa;
        let (part, compute) = self.floats();
        let words = std::mem::take(&mut part.words);
        *part = Part::in_words(words, isa, Factors::Floats(compute), None, n, k);
        (self.n, self.k) = (n, k);
    }

    /// Columns.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Depth.
    pub fn k(&self) -> usize {
        self.k
    }

    /// The instruction set it was laid out for.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Memory held.
    pub fn bytes(&self) -> usize {
        let bytes = |part: &Part| 4 * part.panels * part.panel_words;
        self.parts.iter().map(bytes).sum()
    }

    /// How rows are rounded for parts in blocks.
    pub(super) fn activations(&self) -> Activations {
        self.activations
    }

    pub(super) fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Columns of a panel: two vectors.
    pub(super) fn panel_width(&self) -> usize {
        2 * lanes(self.isa)
    }

    /// Number of panels.
    pub(crate) fn panels(&self) -> usize {
        self.parts.last().map_or(0, Part::end_panel)
    }

    /// The one part of a matrix that is packed again and again.
    fn floats(&mut self) -> (&mut Part, Compute) {
        match self.parts.as_mut_slice() {
            [part] => match part.factors {
                Factors::Floats(compute) => (part, compute),
                Factors::Blocks(_) => panic!("blocks are not packed again"),
            },
            _ => panic!("a matrix of several parts is not packed again"),
        }
    }

    /// From `w (n, k)` row-major, so that a product gives x w^T.
    pub fn pack(&mut self, cpu: &Cpu, w: &[f32]) {
        assert_eq!(w.len(), self.n * self.k, "pack: w is not (n, k)");
        assert_eq!(
            self.isa,
            cpu.isa(),
            "a packed matrix belongs to one instruction set"
        );
        let k = self.k;
        let (part, compute) = self.floats();
        part.pack_rows(cpu, compute, w, k);
    }

    /// From `w (k, n)` row-major, so that a product gives x w.
    pub fn pack_transposed(&mut self, cpu: &Cpu, w: &[f32]) {
        assert_eq!(w.len(), self.n * self.k, "pack_transposed: w is not (k, n)");
        assert_eq!(
            self.isa,
            cpu.isa(),
            "a packed matrix belongs to one instruction set"
        );
        let (isa, n, k) = (self.isa, self.n, self.k);
        let (part, compute) = self.floats();
        part.fill(cpu, &|panel, out| {
            dispatch_factors!(
                isa,
                compute,
                pack_columns(out: &mut [u32], w: &[f32], n: usize, k: usize,
                    panel: usize,
                )
            );
        });
    }
}

fn as_bytes(words: &mut [u32]) -> &mut [u8] {
    let len = 4 * words.len();
    // SAFETY: a word is four bytes without padding; every value of them is one.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), len) }
}

/// One panel from the rows of w (n, k): a transposition, in stretches of depth that stay in the
/// first-level cache.
#[inline(always)]
unsafe fn pack_rows<S: Simd, F: Factor<S>>(
    out: &mut [u32],
    w: &[f32],
    n: usize,
    k: usize,
    panel: usize,
) {
    const STRETCH: usize = 128;
    let nr = 2 * S::LANES;
    let cols = (n - panel * nr).min(nr);
    let mut words = [0u32; STRETCH + 16];
    let mut start = 0;
    for out in out.chunks_mut(STRETCH * nr) {
        let steps = out.len() / nr;
        let depth = (k - start).min(STRETCH * F::STEP);
        for j in 0..nr {
            if j < cols {
                let row = &w[(panel * nr + j) * k + start..][..depth];
                // SAFETY: the words of the row, rounded up to a vector, fit.
                unsafe { F::right_of_row(words.as_mut_ptr(), row.as_ptr(), depth) };
            } else {
                words[..steps].fill(0);
            }
            for (out, word) in out[j..].iter_mut().step_by(nr).zip(&words[..steps]) {
                *out = *word;
            }
        }
        start += depth;
    }
}

/// One panel from the columns of w (k, n).
#[inline(always)]
unsafe fn pack_columns<S: Simd, F: Factor<S>>(
    out: &mut [u32],
    w: &[f32],
    n: usize,
    k: usize,
    panel: usize,
) {
    let nr = 2 * S::LANES;
    let cols = (n - panel * nr).min(nr);
    for (step, out) in out.chunks_exact_mut(nr).enumerate() {
        // SAFETY: both rows hold `cols` values.
        unsafe {
            let i = step * F::STEP;
            let first = w[i * n + panel * nr..][..cols].as_ptr();
            let second = if F::STEP == 2 && i + 1 < k {
                w[(i + 1) * n + panel * nr..][..cols].as_ptr()
            } else {
                std::ptr::null()
            };
            if cols == nr {
                F::right_of_columns(out.as_mut_ptr(), first, second, nr);
            } else {
                F::right_of_columns(out.as_mut_ptr(), first, second, cols);
                out[cols..].fill(0);
            }
        }
    }
}
