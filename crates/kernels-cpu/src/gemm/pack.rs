//! Right operands in panels, and the memory that packed operands live in.

use super::micro::{Bf16, F32, Factor};
use crate::pool::SharedMut;
use crate::simd::Simd;
use crate::{Cpu, Isa};
use std::ops::Range;

/// Type of the factors of a product; sums are f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compute {
    /// 32-bit floating point.
    F32,
    /// bfloat16, rounded to nearest even.
    Bf16,
}

/// `Simd::LANES` of an instruction set, for layouts that are fixed outside of it.
pub(crate) fn lanes(isa: Isa) -> usize {
    match isa {
        Isa::Avx512 | Isa::Avx512Bf16 => 16,
        Isa::Avx2 | Isa::Portable => 8,
        Isa::Neon => 4,
    }
}

/// Words of four bytes, aligned to cache lines.
pub(super) struct Words(Vec<Line>);

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u32; 16]);

impl Words {
    pub(super) const fn new() -> Words {
        Words(Vec::new())
    }

    /// Makes room for `len` words; new ones are zero.
    pub(super) fn reserve(&mut self, len: usize) {
        let lines = len.div_ceil(16);
        if lines > self.0.len() {
            self.0.resize(lines, Line([0; 16]));
        }
    }

    pub(super) fn as_mut_slice(&mut self) -> &mut [u32] {
        let len = self.0.len() * 16;
        // SAFETY: a line is sixteen words without padding.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), len) }
    }

    pub(super) fn as_ptr(&self) -> *const u32 {
        self.0.as_ptr().cast()
    }

    pub(super) fn as_mut_ptr(&mut self) -> *mut u32 {
        self.0.as_mut_ptr().cast()
    }
}

/// A right operand of n columns and depth k, in panels for one instruction set.
pub struct Packed {
    isa: Isa,
    compute: Compute,
    n: usize,
    k: usize,
    words: Words,
}

impl Packed {
    /// Zeros for `n` columns and depth `k`.
    pub fn new(isa: Isa, compute: Compute, n: usize, k: usize) -> Packed {
        let mut packed = Packed {
            isa,
            compute,
            n: 0,
            k: 0,
            words: Words::new(),
        };
        packed.reshape(n, k);
        packed
    }

    /// Another shape in the same memory; what it holds has no meaning until it is packed.
    pub(crate) fn reshape(&mut self, n: usize, k: usize) {
        assert!(n > 0 && k > 0, "a packed matrix has columns and depth");
        (self.n, self.k) = (n, k);
        self.words.reserve(self.panels() * self.panel_words());
    }

    /// Columns.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Depth.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Type of the factors.
    pub fn compute(&self) -> Compute {
        self.compute
    }

    /// The instruction set it was laid out for.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Memory held.
    pub fn bytes(&self) -> usize {
        4 * self.panels() * self.panel_words()
    }

    /// Columns of a panel: two vectors.
    pub(crate) fn panel_width(&self) -> usize {
        2 * lanes(self.isa)
    }

    /// Number of panels; the last one may have fewer columns, and zeros in their place.
    pub(crate) fn panels(&self) -> usize {
        self.n.div_ceil(self.panel_width())
    }

    fn panel_words(&self) -> usize {
        let steps = match self.compute {
            Compute::F32 => self.k,
            Compute::Bf16 => self.k.div_ceil(2),
        };
        steps * self.panel_width()
    }

    /// Where a panel starts: its words lie `[step][column]`.
    pub(super) fn panel(&self, panel: usize) -> *const u32 {
        debug_assert!(panel < self.panels(), "no such panel");
        self.words.as_ptr().wrapping_add(panel * self.panel_words())
    }

    /// From `w (n, k)` row-major, so that a product gives x w^T.
    pub fn pack(&mut self, cpu: &Cpu, w: &[f32]) {
        assert_eq!(w.len(), self.n * self.k, "pack: w is not (n, k)");
        assert_eq!(
            self.isa,
            cpu.isa(),
            "a packed matrix belongs to one instruction set"
        );
        let (isa, compute, n, k) = (self.isa, self.compute, self.n, self.k);
        let (panels, panel_words) = (self.panels(), self.panel_words());
        let out = SharedMut::new(self.words.as_mut_slice());
        cpu.pool.for_ranges(panels, 1, &|range: Range<usize>| {
            for panel in range {
                // SAFETY: each panel belongs to one thread.
                let out = unsafe { out.slice(panel * panel_words..(panel + 1) * panel_words) };
                dispatch!(
                    isa,
                    pack_rows(
                        compute: Compute, out: &mut [u32], w: &[f32], n: usize, k: usize,
                        panel: usize,
                    )
                );
            }
        });
    }

    /// From `w (k, n)` row-major, so that a product gives x w.
    pub fn pack_transposed(&mut self, cpu: &Cpu, w: &[f32]) {
        assert_eq!(w.len(), self.n * self.k, "pack_transposed: w is not (k, n)");
        assert_eq!(
            self.isa,
            cpu.isa(),
            "a packed matrix belongs to one instruction set"
        );
        let (isa, compute, n, k) = (self.isa, self.compute, self.n, self.k);
        let (panels, panel_words) = (self.panels(), self.panel_words());
        let out = SharedMut::new(self.words.as_mut_slice());
        cpu.pool.for_ranges(panels, 1, &|range: Range<usize>| {
            for panel in range {
                // SAFETY: each panel belongs to one thread.
                let out = unsafe { out.slice(panel * panel_words..(panel + 1) * panel_words) };
                dispatch!(
                    isa,
                    pack_columns(
                        compute: Compute, out: &mut [u32], w: &[f32], n: usize, k: usize,
                        panel: usize,
                    )
                );
            }
        });
    }
}

#[inline(always)]
unsafe fn pack_rows<S: Simd>(
    compute: Compute,
    out: &mut [u32],
    w: &[f32],
    n: usize,
    k: usize,
    panel: usize,
) {
    // SAFETY: forwarded.
    unsafe {
        match compute {
            Compute::F32 => pack_rows_as::<S, F32>(out, w, n, k, panel),
            Compute::Bf16 => pack_rows_as::<S, Bf16>(out, w, n, k, panel),
        }
    }
}

#[inline(always)]
unsafe fn pack_columns<S: Simd>(
    compute: Compute,
    out: &mut [u32],
    w: &[f32],
    n: usize,
    k: usize,
    panel: usize,
) {
    // SAFETY: forwarded.
    unsafe {
        match compute {
            Compute::F32 => pack_columns_as::<S, F32>(out, w, n, k, panel),
            Compute::Bf16 => pack_columns_as::<S, Bf16>(out, w, n, k, panel),
        }
    }
}

/// One panel from the rows of w (n, k): a transposition, in stretches of depth that stay in the
/// first-level cache.
#[inline(always)]
unsafe fn pack_rows_as<S: Simd, F: Factor<S>>(
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
unsafe fn pack_columns_as<S: Simd, F: Factor<S>>(
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
