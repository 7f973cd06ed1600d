//! Right operands in panels.

use super::micro::{Bf16, F32, Factor};
use crate::pool::SharedMut;
use crate::simd::Simd;
use crate::{Cpu, Isa};
use half::bf16;

/// Type of the factors of a product; sums are f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compute {
    /// 32-bit floating point.
    F32,
    /// bfloat16, rounded to nearest even.
    Bf16,
}

/// A right operand of n columns and depth k, in panels for one instruction set.
pub struct Packed {
    isa: Isa,
    compute: Compute,
    n: usize,
    k: usize,
    f32: Vec<f32>,
    bf16: Vec<bf16>,
}

/// Constants of an instruction set without running it: (lanes, tile rows).
fn shape_of(isa: Isa) -> (usize, usize) {
    match isa {
        Isa::Avx512 | Isa::Avx512Bf16 => (16, 12),
        Isa::Avx2 => (8, 6),
        Isa::Neon => (4, 8),
        Isa::Portable => (8, 4),
    }
}

/// f32 values in a vector of an instruction set.
pub(crate) fn lanes(isa: Isa) -> usize {
    shape_of(isa).0
}

impl Packed {
    /// Zeros for `n` columns and depth `k`.
    pub fn new(isa: Isa, compute: Compute, n: usize, k: usize) -> Packed {
        assert!(n > 0 && k > 0, "a packed matrix has columns and depth");
        let nr = 2 * shape_of(isa).0;
        let panels = n.div_ceil(nr);
        let (f32_len, bf16_len) = match compute {
            Compute::F32 => (panels * k * nr, 0),
            Compute::Bf16 => (0, panels * k.div_ceil(2) * nr * 2),
        };
        Packed {
            isa,
            compute,
            n,
            k,
            f32: vec![0.0; f32_len],
            bf16: vec![bf16::ZERO; bf16_len],
        }
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
        4 * self.f32.len() + 2 * self.bf16.len()
    }

    pub(super) fn panels(&self) -> usize {
        self.n.div_ceil(2 * shape_of(self.isa).0)
    }

    /// Columns of a panel.
    pub(crate) fn panel_width(&self) -> usize {
        2 * shape_of(self.isa).0
    }

    pub(super) fn tile_rows(&self) -> usize {
        shape_of(self.isa).1
    }

    pub(super) fn f32(&self) -> &[f32] {
        &self.f32
    }

    pub(super) fn bf16(&self) -> &[bf16] {
        &self.bf16
    }

    /// From `w (n, k)` row-major, so that a product gives x w^T.
    pub fn pack(&mut self, cpu: &Cpu, w: &[f32]) {
        assert_eq!(w.len(), self.n * self.k, "pack: w is not (n, k)");
        let (n, k, panels, isa) = (self.n, self.k, self.panels(), self.isa);
        assert_eq!(
            isa,
            cpu.isa(),
            "a packed matrix belongs to one instruction set"
        );
        match self.compute {
            Compute::F32 => {
                let out = SharedMut::new(&mut self.f32);
                cpu.pool.for_ranges(panels, 1, &|range| {
                    dispatch!(isa, pack_f32(out: SharedMut<f32>, w: &[f32], n: usize, k: usize, range: std::ops::Range<usize>));
                });
            }
            Compute::Bf16 => {
                let out = SharedMut::new(&mut self.bf16);
                cpu.pool.for_ranges(panels, 1, &|range| {
                    dispatch!(isa, pack_bf16(out: SharedMut<bf16>, w: &[f32], n: usize, k: usize, range: std::ops::Range<usize>));
                });
            }
        }
    }

    /// From `w (k, n)` row-major, so that a product gives x w.
    pub fn pack_transposed(&mut self, cpu: &Cpu, w: &[f32]) {
        assert_eq!(w.len(), self.n * self.k, "pack_transposed: w is not (k, n)");
        let (n, k, panels, isa) = (self.n, self.k, self.panels(), self.isa);
        assert_eq!(
            isa,
            cpu.isa(),
            "a packed matrix belongs to one instruction set"
        );
        match self.compute {
            Compute::F32 => {
                let out = SharedMut::new(&mut self.f32);
                cpu.pool.for_ranges(panels, 1, &|range| {
                    dispatch!(isa, pack_columns_f32(out: SharedMut<f32>, w: &[f32], n: usize, k: usize, range: std::ops::Range<usize>));
                });
            }
            Compute::Bf16 => {
                let out = SharedMut::new(&mut self.bf16);
                cpu.pool.for_ranges(panels, 1, &|range| {
                    dispatch!(isa, pack_columns_bf16(out: SharedMut<bf16>, w: &[f32], n: usize, k: usize, range: std::ops::Range<usize>));
                });
            }
        }
    }
}

/// Panel by panel: `[k][NR]` from rows of w.
#[inline(always)]
unsafe fn pack_f32<S: Simd>(
    out: SharedMut<f32>,
    w: &[f32],
    n: usize,
    k: usize,
    panels: std::ops::Range<usize>,
) {
    let nr = 2 * S::LANES;
    for panel in panels {
        // SAFETY: each thread has its own panels.
        let out = unsafe { out.slice(panel * k * nr..(panel + 1) * k * nr) };
        for j in 0..nr.min(n - panel * nr) {
            let row = &w[(panel * nr + j) * k..][..k];
            for (i, &value) in row.iter().enumerate() {
                out[i * nr + j] = value;
            }
        }
    }
}

#[inline(always)]
unsafe fn pack_bf16<S: Simd>(
    out: SharedMut<bf16>,
    w: &[f32],
    n: usize,
    k: usize,
    panels: std::ops::Range<usize>,
) {
    let (nr, steps) = (2 * S::LANES, k.div_ceil(2));
    for panel in panels {
        // SAFETY: each thread has its own panels.
        let out = unsafe { out.slice(panel * steps * nr * 2..(panel + 1) * steps * nr * 2) };
        let mut rounded = [bf16::ZERO; 16];
        for j in 0..nr.min(n - panel * nr) {
            let row = &w[(panel * nr + j) * k..][..k];
            for (chunk, part) in row.chunks(S::LANES).enumerate() {
                // SAFETY: the part has that many values; a vector has at most 16 lanes.
                unsafe {
                    let v = S::load_partial(part.as_ptr(), part.len());
                    S::store_bf16(rounded.as_mut_ptr(), v);
                }
                for (l, &value) in rounded[..part.len()].iter().enumerate() {
                    let i = chunk * S::LANES + l;
                    out[(i / 2 * nr + j) * 2 + i % 2] = value;
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn pack_columns_f32<S: Simd>(
    out: SharedMut<f32>,
    w: &[f32],
    n: usize,
    k: usize,
    panels: std::ops::Range<usize>,
) {
    // SAFETY: forwarded.
    unsafe { pack_columns::<S, F32>(out, w, n, k, panels) }
}

#[inline(always)]
unsafe fn pack_columns_bf16<S: Simd>(
    out: SharedMut<bf16>,
    w: &[f32],
    n: usize,
    k: usize,
    panels: std::ops::Range<usize>,
) {
    // SAFETY: forwarded.
    unsafe { pack_columns::<S, Bf16>(out, w, n, k, panels) }
}

#[inline(always)]
unsafe fn pack_columns<S: Simd, F: Factor<S>>(
    out: SharedMut<F::Elem>,
    w: &[f32],
    n: usize,
    k: usize,
    panels: std::ops::Range<usize>,
) {
    let (nr, steps) = (2 * S::LANES, k.div_ceil(F::STEP));
    for panel in panels {
        let cols = nr.min(n - panel * nr);
        for step in 0..steps {
            let row = |i: usize| (i < k).then(|| w[i * n + panel * nr..][..cols].as_ptr());
            let rows = [
                row(step * F::STEP),
                (F::STEP == 2).then(|| row(step * 2 + 1)).flatten(),
            ];
            // SAFETY: each thread has its own panels; the rows were sliced to `cols` values.
            unsafe {
                let out = out.ptr().add((panel * steps + step) * nr * F::STEP);
                F::pack_step(out, nr, rows, cols);
            }
        }
    }
}
