//! The register tile: up to TILE_ROWS rows by two vectors of columns, over a stretch of the depth.
//!
//! Both operands lie in memory as *words* of four bytes: one f32, or one pair of bf16 values that are
//! neighbours along the depth. A *step* is one word of depth, which is one value (f32) or two (bf16).

use crate::simd::Simd;
use half::bf16;

/// What a word holds, and how words are multiplied.
pub(super) trait Factor<S: Simd> {
    /// A vector of words.
    type Operand: Copy;
    /// Values of depth in a word.
    const STEP: usize;

    /// A vector of words of the right operand.
    unsafe fn load(p: *const u32) -> Self::Operand;
    /// One word of the left operand in every lane.
    unsafe fn splat(p: *const u32) -> Self::Operand;
    /// acc + a b, over the values of a word.
    unsafe fn madd(acc: S::V, a: Self::Operand, b: Self::Operand) -> S::V;
    /// Words of `k` consecutive values; an odd last value is paired with zero. `out` has room for 16
    /// words more than are made.
    unsafe fn words_of_row(out: *mut u32, x: *const f32, k: usize);
    /// Words of `width` columns: from `first` alone, or from the pairs of `first` and `second`; without
    /// a second row (null) the other half is zero.
    unsafe fn words_of_columns(
        out: *mut u32,
        first: *const f32,
        second: *const f32,
        width: usize,
    );
}

/// One f32 a word.
pub(super) struct F32;
/// Two bf16 a word.
pub(super) struct Bf16;

impl<S: Simd> Factor<S> for F32 {
    type Operand = S::V;
    const STEP: usize = 1;

    #[inline(always)]
    unsafe fn load(p: *const u32) -> S::V {
        // SAFETY: by the contract of the trait (so for every block of this impl).
        unsafe { S::load(p.cast()) }
    }
    #[inline(always)]
    unsafe fn splat(p: *const u32) -> S::V {
        // SAFETY: as above.
        unsafe { S::splat(*p.cast()) }
    }
    #[inline(always)]
    unsafe fn madd(acc: S::V, a: S::V, b: S::V) -> S::V {
        // SAFETY: as above.
        unsafe { S::fma(a, b, acc) }
    }
    #[inline(always)]
    unsafe fn words_of_row(out: *mut u32, x: *const f32, k: usize) {
        // SAFETY: as above.
        unsafe { std::ptr::copy_nonoverlapping(x.cast(), out, k) }
    }
    #[inline(always)]
    unsafe fn words_of_columns(out: *mut u32, first: *const f32, _: *const f32, width: usize) {
        // SAFETY: as above.
        unsafe { std::ptr::copy_nonoverlapping(first.cast(), out, width) }
    }
}

impl<S: Simd> Factor<S> for Bf16 {
    type Operand = S::P;
    const STEP: usize = 2;

    #[inline(always)]
    unsafe fn load(p: *const u32) -> S::P {
        // SAFETY: by the contract of the trait (so for every block of this impl).
        unsafe { S::load_pairs(p.cast()) }
    }
    #[inline(always)]
    unsafe fn splat(p: *const u32) -> S::P {
        // SAFETY: as above.
        unsafe { S::splat_pair(p.cast()) }
    }
    #[inline(always)]
    unsafe fn madd(acc: S::V, a: S::P, b: S::P) -> S::V {
        // SAFETY: as above.
        unsafe { S::dot_pairs(acc, a, b) }
    }
    #[inline(always)]
    unsafe fn words_of_row(out: *mut u32, x: *const f32, k: usize) {
        let out = out.cast::<bf16>();
        let mut i = 0;
        // SAFETY: as above; a vector has at most 16 lanes, so that the last store ends within the
        // 16 words more.
        unsafe {
            while i + S::LANES <= k {
                S::store_bf16(out.add(i), S::load(x.add(i)));
                i += S::LANES;
            }
            if i < k {
                S::store_bf16(out.add(i), S::load_partial(x.add(i), k - i));
            }
        }
    }
    #[inline(always)]
    unsafe fn words_of_columns(
        out: *mut u32,
        first: *const f32,
        second: *const f32,
        width: usize,
    ) {
        // SAFETY: as above.
        unsafe {
            if second.is_null() {
                for j in 0..width {
                    *out.add(j) = bf16_bits(*first.add(j));
                }
            } else {
                for j in 0..width {
                    *out.add(j) = bf16_bits(*first.add(j)) | bf16_bits(*second.add(j)) << 16;
                }
            }
        }
    }
}

/// The rounding of `Simd::store_bf16` in plain integers, which the compiler turns into vectors.
#[inline(always)]
fn bf16_bits(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    (if x.is_nan() { bits | 0x0040_0000 } else { rounded }) >> 16
}

/// The left operand of a tile: word of row r and step i at `ptr + r row_stride + i step_stride`.
#[derive(Clone, Copy)]
pub(super) struct Left {
    pub(super) ptr: *const u32,
    pub(super) row_stride: usize,
    pub(super) step_stride: usize,
}

/// What a tile does with its place in the output.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Chain {
    /// The chain starts from zero and replaces the output.
    Start,
    /// The chain starts from the output.
    Continue,
    /// The chain starts from zero and is added to the output.
    AddOnce,
}

/// `rows` rows by `cols` columns, over `steps` steps; output rows lie `ldc` apart.
///
/// # Safety
/// `1 <= rows <= TILE_ROWS`, `1 <= cols <= 2 LANES`; the operands hold `steps` steps; the output is
/// valid for the rows and columns.
#[inline(always)]
pub(super) unsafe fn tile<S: Simd, F: Factor<S>>(
    rows: usize,
    steps: usize,
    a: Left,
    b: *const u32,
    out: *mut f32,
    ldc: usize,
    cols: usize,
    chain: Chain,
) {
    macro_rules! by_rows {
        ($($r:literal)*) => {
            match rows {
                $($r if $r <= S::TILE_ROWS => {
                    // SAFETY: forwarded; this arm has as many rows as it says.
                    unsafe { tile_rows::<S, F, $r>(steps, a, b, out, ldc, cols, chain) }
                })*
                _ => debug_assert!(false, "a tile of {rows} rows"),
            }
        };
    }
    by_rows!(1 2 3 4 5 6 7 8 9 10 11 12 13 14);
}

#[inline(always)]
unsafe fn tile_rows<S: Simd, F: Factor<S>, const R: usize>(
    steps: usize,
    a: Left,
    b: *const u32,
    out: *mut f32,
    ldc: usize,
    cols: usize,
    chain: Chain,
) {
    let whole = cols == 2 * S::LANES;
    let first = cols.min(S::LANES);
    let second = cols - first;
    // SAFETY: see `tile`. A second vector without columns is neither read nor written.
    unsafe {
        let mut acc = [[S::splat(0.0); 2]; R];
        if chain == Chain::Continue {
            for r in 0..R {
                acc[r] = read::<S>(out.add(r * ldc), whole, first, second);
            }
        }
        let (mut a_step, mut b_step) = (a.ptr, b);
        for _ in 0..steps {
            let b0 = F::load(b_step);
            let b1 = F::load(b_step.add(S::LANES));
            for r in 0..R {
                let x = F::splat(a_step.add(r * a.row_stride));
                acc[r][0] = F::madd(acc[r][0], x, b0);
                acc[r][1] = F::madd(acc[r][1], x, b1);
            }
            a_step = a_step.add(a.step_stride);
            b_step = b_step.add(2 * S::LANES);
        }
        for r in 0..R {
            let row = out.add(r * ldc);
            let [mut v0, mut v1] = acc[r];
            if chain == Chain::AddOnce {
                let old = read::<S>(row, whole, first, second);
                v0 = S::add(old[0], v0);
                v1 = S::add(old[1], v1);
            }
            if whole {
                S::store(row, v0);
                S::store(row.add(S::LANES), v1);
            } else {
                S::store_partial(row, v0, first);
                if second > 0 {
                    S::store_partial(row.add(S::LANES), v1, second);
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn read<S: Simd>(row: *const f32, whole: bool, first: usize, second: usize) -> [S::V; 2] {
    // SAFETY: see `tile`.
    unsafe {
        if whole {
            [S::load(row), S::load(row.add(S::LANES))]
        } else if second > 0 {
            [S::load_partial(row, first), S::load_partial(row.add(S::LANES), second)]
        } else {
            [S::load_partial(row, first), S::splat(0.0)]
        }
    }
}
