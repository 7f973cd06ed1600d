//! AVX-512 (F, BW, DQ, VL, VNNI), with or without BF16 dot products: sixteen lanes.

use super::steps;
use crate::simd::{Fetch, Simd};
use half::{bf16, f16};
use std::arch::asm;
use std::arch::x86_64::*;

mod sums;

/// AVX-512 with multiply-adds of widened values.
#[derive(Clone, Copy, Debug)]
pub struct Avx512;

/// AVX-512 with dot products of bf16 pairs.
#[derive(Clone, Copy, Debug)]
pub struct Avx512Bf16;

#[inline(always)]
fn mask(n: usize) -> __mmask16 {
    debug_assert!(n <= 16);
    ((1u32 << n) - 1) as __mmask16
}

/// Rounds sixteen f32 to bf16 (nearest, ties to even; NaN stays NaN) in the high halves; the low ones are
/// left over.
#[inline(always)]
unsafe fn to_bf16_bits(v: __m512) -> __m512i {
    // SAFETY: AVX-512 is present by the contract of `Simd`.
    unsafe {
        let x = _mm512_castps_si512(v);
        let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(x), _mm512_set1_epi32(1));
        let rounded = _mm512_add_epi32(x, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
        let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
        let quiet = _mm512_or_si512(x, _mm512_set1_epi32(0x0040_0000));
        _mm512_mask_blend_epi32(nan, rounded, quiet)
    }
}

macro_rules! avx512 {
    ($name:ident, $parts:literal, $pairs:ty, $load_pairs:expr, $splat_pair:expr, $dot:expr,
     { $($more:item)* }) => {
        impl Simd for $name {
            const ISA: crate::Isa = crate::Isa::$name;
            const LANES: usize = 16;
            const TILE_ROWS: usize = 12;
            const FMA_STEPS: usize = steps::STEPS_512;
            type V = __m512;
            const PAIR_PARTS: usize = $parts;
            type P = $pairs;

            #[inline(always)]
            unsafe fn splat(x: f32) -> __m512 {
                // SAFETY: by the contract of `Simd` (so for every block of this file).
                unsafe { _mm512_set1_ps(x) }
            }
            #[inline(always)]
            unsafe fn load(p: *const f32) -> __m512 {
                // SAFETY: as above.
                unsafe { _mm512_loadu_ps(p) }
            }
            #[inline(always)]
            unsafe fn store(p: *mut f32, v: __m512) {
                // SAFETY: as above.
                unsafe { _mm512_storeu_ps(p, v) }
            }
            #[inline(always)]
            unsafe fn stream(p: *mut f32, v: __m512) {
                // SAFETY: as above; aligned by the contract of the method.
                unsafe { _mm512_stream_ps(p, v) }
            }
            #[inline(always)]
            unsafe fn copy_aside(to: *mut f32, from: *const f32) {
                // The store of a vector takes the place of a multiply-add and more on Zen 4 (docs/LOG.md).
                // SAFETY: the contract of the method covers 64 bytes at both places.
                unsafe {
                    asm!(
                        ".irp at, 0, 16, 32, 48",
                        "mov {x}, [{from} + \\at]",
                        "mov {y}, [{from} + \\at + 8]",
                        "mov [{to} + \\at], {x}",
                        "mov [{to} + \\at + 8], {y}",
                        ".endr",
                        x = out(reg) _,
                        y = out(reg) _,
                        from = in(reg) from,
                        to = in(reg) to,
                        options(nostack, preserves_flags),
                    );
                }
            }
            #[inline(always)]
            unsafe fn load_partial(p: *const f32, n: usize) -> __m512 {
                // SAFETY: as above; masked lanes are not touched.
                unsafe { _mm512_maskz_loadu_ps(mask(n), p) }
            }
            #[inline(always)]
            unsafe fn store_partial(p: *mut f32, v: __m512, n: usize) {
                // SAFETY: as above; masked lanes are not touched.
                unsafe { _mm512_mask_storeu_ps(p, mask(n), v) }
            }
            #[inline(always)]
            unsafe fn load_bf16(p: *const bf16) -> __m512 {
                // SAFETY: as above.
                unsafe {
                    let x = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
                    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(x))
                }
            }
            #[inline(always)]
            unsafe fn store_bf16(p: *mut bf16, v: __m512) {
                // SAFETY: as above.
                unsafe {
                    let bits = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(to_bf16_bits(v)));
                    _mm256_storeu_si256(p.cast(), bits)
                }
            }
            #[inline(always)]
            unsafe fn add(a: __m512, b: __m512) -> __m512 {
                // SAFETY: as above.
                unsafe { _mm512_add_ps(a, b) }
            }
            #[inline(always)]
            unsafe fn sub(a: __m512, b: __m512) -> __m512 {
                // SAFETY: as above.
                unsafe { _mm512_sub_ps(a, b) }
            }
            #[inline(always)]
            unsafe fn mul(a: __m512, b: __m512) -> __m512 {
                // SAFETY: as above.
                unsafe { _mm512_mul_ps(a, b) }
            }
            #[inline(always)]
            unsafe fn div(a: __m512, b: __m512) -> __m512 {
                // SAFETY: as above.
                unsafe { _mm512_div_ps(a, b) }
            }
            #[inline(always)]
            unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
                // SAFETY: as above.
                unsafe { _mm512_fmadd_ps(a, b, c) }
            }
            #[inline(always)]
            unsafe fn fma_steps<const R: usize>(
                sums: &mut [[__m512; 2]; R],
                rows: *const f32,
                row_stride: usize,
                columns: *const f32,
                fetch: &mut Fetch,
            ) {
                // SAFETY: as above.
                unsafe { steps::of_512(sums, rows, row_stride, columns, fetch) }
            }
            #[inline(always)]
            unsafe fn max(a: __m512, b: __m512) -> __m512 {
                // SAFETY: as above.
                unsafe { _mm512_max_ps(a, b) }
            }
            #[inline(always)]
            unsafe fn min(a: __m512, b: __m512) -> __m512 {
                // SAFETY: as above.
                unsafe { _mm512_min_ps(a, b) }
            }
            #[inline(always)]
            unsafe fn sqrt(a: __m512) -> __m512 {
                // SAFETY: as above.
                unsafe { _mm512_sqrt_ps(a) }
            }
            #[inline(always)]
            unsafe fn round(a: __m512) -> __m512 {
                // SAFETY: as above.
                unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT }>(a) }
            }
            #[inline(always)]
            unsafe fn scale_down(x: __m512, n: __m512) -> __m512 {
                // SAFETY: as above.
                unsafe { _mm512_scalef_ps(x, n) }
            }
            #[inline(always)]
            unsafe fn pow2(n: __m512) -> __m512 {
                // SAFETY: as above.
                unsafe {
                    let e = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
                    _mm512_castsi512_ps(_mm512_slli_epi32::<23>(e))
                }
            }
            #[inline(always)]
            unsafe fn select_lt(a: __m512, b: __m512, x: __m512, y: __m512) -> __m512 {
                // SAFETY: as above.
                unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), y, x) }
            }
            #[inline(always)]
            unsafe fn reduce_add(a: __m512) -> f32 {
                // SAFETY: as above.
                unsafe {
                    let lo = _mm512_castps512_ps256(a);
                    let hi = _mm512_extractf32x8_ps::<1>(a);
                    super::avx2::reduce_add_256(_mm256_add_ps(lo, hi))
                }
            }
            #[inline(always)]
            unsafe fn reduce_max(a: __m512) -> f32 {
                // SAFETY: as above.
                unsafe { _mm512_reduce_max_ps(a) }
            }
            #[inline(always)]
            unsafe fn round_bf16(v: __m512) -> __m512 {
                // SAFETY: as above.
                unsafe {
                    let top = _mm512_set1_epi32(0xffff_0000_u32 as i32);
                    _mm512_castsi512_ps(_mm512_and_si512(to_bf16_bits(v), top))
                }
            }
            #[inline(always)]
            unsafe fn zip_bf16(first: __m512, second: __m512) -> __m512 {
                // SAFETY: as above.
                unsafe {
                    let low = _mm512_srli_epi32::<16>(_mm512_castps_si512(first));
                    _mm512_castsi512_ps(_mm512_or_si512(low, _mm512_castps_si512(second)))
                }
            }
            #[inline(always)]
            unsafe fn unzip_bf16(pairs: __m512) -> [__m512; 2] {
                // SAFETY: as above.
                unsafe {
                    let pairs = _mm512_castps_si512(pairs);
                    [widened(pairs, 0), widened(pairs, 1)]
                }
            }
            $($more)*
            #[inline(always)]
            unsafe fn load_pairs(p: *const bf16, part: usize) -> $pairs {
                // SAFETY: as above.
                unsafe { $load_pairs(_mm512_loadu_si512(p.cast()), part) }
            }
            #[inline(always)]
            unsafe fn splat_pair(p: *const bf16) -> $pairs {
                // SAFETY: as above.
                unsafe { $splat_pair(p.cast::<i32>().read_unaligned()) }
            }
            #[inline(always)]
            unsafe fn dot_pairs(acc: __m512, a: $pairs, b: $pairs) -> __m512 {
                // SAFETY: as above.
                unsafe { $dot(acc, a, b) }
            }

            type B = __m512i;
            type I = __m512i;

            #[inline(always)]
            unsafe fn load_bytes(p: *const u8) -> __m512i {
                // SAFETY: as above.
                unsafe { _mm512_loadu_si512(p.cast()) }
            }
            #[inline(always)]
            unsafe fn store_bytes(p: *mut u8, b: __m512i) {
                // SAFETY: as above.
                unsafe { _mm512_storeu_si512(p.cast(), b) }
            }
            #[inline(always)]
            unsafe fn splat_bytes(p: *const i8) -> __m512i {
                // SAFETY: as above.
                unsafe { _mm512_set1_epi32(p.cast::<i32>().read_unaligned()) }
            }
            #[inline(always)]
            unsafe fn bits<const SHIFT: u32>(b: __m512i, mask: u8) -> __m512i {
                // SAFETY: as above.
                unsafe {
                    let mask = _mm512_set1_epi8(mask as i8);
                    _mm512_and_si512(_mm512_srli_epi16::<SHIFT>(b), mask)
                }
            }
            #[inline(always)]
            unsafe fn join_bits<const SHIFT: u32>(low: __m512i, high: __m512i) -> __m512i {
                // SAFETY: as above.
                unsafe { _mm512_or_si512(low, _mm512_slli_epi16::<SHIFT>(high)) }
            }
            #[inline(always)]
            unsafe fn to_words(b: __m512i) -> [__m512i; 2] {
                // SAFETY: as above; -1 stands for a zero.
                unsafe {
                    let lower = _mm_setr_epi8(0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13, -1);
                    let upper =
                        _mm_setr_epi8(2, -1, 3, -1, 6, -1, 7, -1, 10, -1, 11, -1, 14, -1, 15, -1);
                    [
_mm512_shuffle_epi8(b, _mm512_broadcast_i32x4(lower)),
_mm512_shuffle_epi8(b, _mm512_broadcast_i32x4(upper)),
]
                }
            }
            #[inline(always)]
            unsafe fn add_words(a: __m512i, b: __m512i) -> __m512i {
                // SAFETY: as above.
                unsafe { _mm512_add_epi16(a, b) }
            }
            #[inline(always)]
            unsafe fn dot_words(acc: __m512i, a: __m512i, b: __m512i) -> __m512i {
                // SAFETY: as above.
                unsafe { _mm512_dpwssd_epi32(acc, a, b) }
            }
            #[inline(always)]
            unsafe fn dot_sums<const R: usize, const STEPS: usize>(
                sums: &mut [[__m512i; 2]; R],
                rows: *const u32,
                row_stride: usize,
                columns: *const u8,
            ) {
                // SAFETY: as above.
                unsafe { sums::dot_sums::<R, STEPS>(sums, rows, row_stride, columns) }
            }
            #[inline(always)]
            unsafe fn dot_pairs_of_bytes(w: __m512i, x: __m512i) -> __m512i {
                // SAFETY: as above.
                unsafe { _mm512_maddubs_epi16(w, x) }
            }
            #[inline(always)]
            unsafe fn store_words(p: *mut i16, v: __m512) {
                // SAFETY: as above.
                unsafe {
                    let words = _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(v));
                    _mm256_storeu_si256(p.cast(), words)
                }
            }
            #[inline(always)]
            unsafe fn load_int(p: *const i32) -> __m512i {
                // SAFETY: as above.
                unsafe { _mm512_loadu_si512(p.cast()) }
            }
            #[inline(always)]
            unsafe fn store_int(p: *mut i32, x: __m512i) {
                // SAFETY: as above.
                unsafe { _mm512_storeu_si512(p.cast(), x) }
            }
            #[inline(always)]
            unsafe fn sub_int(a: __m512i, b: __m512i) -> __m512i {
                // SAFETY: as above.
                unsafe { _mm512_sub_epi32(a, b) }
            }
            #[inline(always)]
            unsafe fn splat_int(x: i32) -> __m512i {
                // SAFETY: as above.
                unsafe { _mm512_set1_epi32(x) }
            }
            #[inline(always)]
            unsafe fn dot_bytes<const SMALL: bool>(
                acc: __m512i,
                w: __m512i,
                x: __m512i,
            ) -> __m512i {
                // SAFETY: as above.
                unsafe { _mm512_dpbusd_epi32(acc, w, x) }
            }
            #[inline(always)]
            unsafe fn next_byte(a: __m512i, b: __m512i) -> __m512i {
                // SAFETY: as above.
                unsafe { _mm512_add_epi32(_mm512_slli_epi32::<8>(a), b) }
            }
            #[inline(always)]
            unsafe fn to_float(x: __m512i) -> __m512 {
                // SAFETY: as above.
                unsafe { _mm512_cvtepi32_ps(x) }
            }
            #[inline(always)]
            unsafe fn store_ints(p: *mut i8, v: __m512) {
                // SAFETY: as above.
                unsafe {
                    let bytes = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v));
                    _mm_storeu_si128(p.cast(), bytes)
                }
            }
            #[inline(always)]
            unsafe fn load_halves(p: *const f16) -> __m512 {
                // SAFETY: as above.
                unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
            }
            #[inline(always)]
            unsafe fn load_u8(p: *const u8) -> __m512 {
                // SAFETY: as above.
                unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()))) }
            }
            #[inline(always)]
            unsafe fn load_i8(p: *const i8) -> __m512 {
                // SAFETY: as above.
                unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))) }
            }
        }
    };
}

#[inline(always)]
unsafe fn widened(x: __m512i, part: usize) -> __m512 {
    // SAFETY: AVX-512 is present by the contract of `Simd` (so for every block below).
    unsafe {
        _mm512_castsi512_ps(match part {
            0 => _mm512_slli_epi32::<16>(x),
            _ => _mm512_and_si512(x, _mm512_set1_epi32(0xffff_0000_u32 as i32)),
        })
    }
}

#[inline(always)]
unsafe fn splat_value(bits: i32) -> __m512 {
    // SAFETY: as above.
    unsafe { _mm512_castsi512_ps(_mm512_set1_epi32(bits)) }
}

#[inline(always)]
unsafe fn multiply_add(acc: __m512, a: __m512, b: __m512) -> __m512 {
    // SAFETY: as above.
    unsafe { _mm512_fmadd_ps(a, b, acc) }
}

#[inline(always)]
unsafe fn whole(x: __m512i, _: usize) -> __m512i {
    x
}

#[inline(always)]
unsafe fn splat_bits(bits: i32) -> __m512i {
    // SAFETY: as above.
    unsafe { _mm512_set1_epi32(bits) }
}

#[inline(always)]
unsafe fn dot(acc: __m512, a: __m512i, b: __m512i) -> __m512 {
    // SAFETY: AVX-512 BF16 is present by the contract of `Simd`; the casts keep all bits.
    unsafe {
        _mm512_dpbf16_ps(
            acc,
            std::mem::transmute::<__m512i, __m512bh>(a),
            std::mem::transmute::<__m512i, __m512bh>(b),
        )
    }
}

/// The places of sixteen pairs in two vectors end to end: the first value of each lies in one, the second in the
/// other.
const PAIRS: [u16; 32] = {
    let mut places = [0; 32];
    let mut i = 0;
    while i < 16 {
        places[2 * i] = i as u16;
        places[2 * i + 1] = 16 + i as u16;
        i += 1;
    }
    places
};

avx512!(Avx512, 2, __m512, widened, splat_value, multiply_add, {});
avx512!(Avx512Bf16, 1, __m512i, whole, splat_bits, dot, {
    #[inline(always)]
    unsafe fn pair_up(first: __m512, second: __m512) -> __m512 {
        // SAFETY: AVX-512 BF16 is present by the contract of `Simd`; the casts keep all bits.
        unsafe {
            let both = _mm512_cvtne2ps_pbh(second, first);
            let both = std::mem::transmute::<__m512bh, __m512i>(both);
            let places = _mm512_loadu_si512(PAIRS.as_ptr().cast());
            _mm512_castsi512_ps(_mm512_permutexvar_epi16(places, both))
        }
    }
    #[inline(always)]
    unsafe fn store_factors(p: *mut bf16, v: __m512) {
        // SAFETY: as above.
        unsafe {
            let half = _mm512_cvtneps_pbh(v);
            _mm256_storeu_si256(p.cast(), std::mem::transmute::<__m256bh, __m256i>(half))
        }
    }
});
