//! AVX2 with FMA and F16C: eight lanes.

mod sums;

use super::steps;
use crate::simd::{Fetch, Simd};
use half::{bf16, f16};
use std::arch::x86_64::*;

/// AVX2, FMA and F16C.
#[derive(Clone, Copy, Debug)]
pub struct Avx2;

/// Lanes `i < n` of the result are all ones.
#[inline(always)]
unsafe fn mask(n: usize) -> __m256i {
    debug_assert!(n <= 8);
    // SAFETY: AVX2 is present by the contract of `Simd`.
    unsafe {
        _mm256_cmpgt_epi32(
            _mm256_set1_epi32(n as i32),
            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7),
        )
    }
}

/// Sum of eight lanes as a balanced tree.
#[inline(always)]
pub(super) unsafe fn reduce_add_256(a: __m256) -> f32 {
    // SAFETY: AVX is present by the contract of `Simd`.
    unsafe {
        let q = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
        let d = _mm_add_ps(q, _mm_movehl_ps(q, q));
        _mm_cvtss_f32(_mm_add_ss(d, _mm_movehdup_ps(d)))
    }
}

/// Rounds eight f32 to bf16 (nearest, ties to even; NaN stays NaN) in the high halves; the low ones are
/// left over.
#[inline(always)]
unsafe fn to_bf16_bits(v: __m256) -> __m256i {
    // SAFETY: AVX2 is present by the contract of `Simd`.
    unsafe {
        let x = _mm256_castps_si256(v);
        let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(x), _mm256_set1_epi32(1));
        let rounded = _mm256_add_epi32(x, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
        let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(v, v));
        let quiet = _mm256_or_si256(x, _mm256_set1_epi32(0x0040_0000));
        _mm256_blendv_epi8(rounded, quiet, nan)
    }
}

impl Simd for Avx2 {
    const ISA: crate::Isa = crate::Isa::Avx2;
    const LANES: usize = 8;
    const TILE_ROWS: usize = 6;
    const FMA_STEPS: usize = steps::STEPS_256;
    type V = __m256;
    const PAIR_PARTS: usize = 2;
    type P = __m256;

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m256 {
        // SAFETY: by the contract of `Simd` (so for every block of this impl).
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: __m256) {
        // SAFETY: as above.
        unsafe { _mm256_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn stream(p: *mut f32, v: __m256) {
        // SAFETY: as above; aligned by the contract of the method.
        unsafe { _mm256_stream_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn load_partial(p: *const f32, n: usize) -> __m256 {
        // SAFETY: as above; masked lanes are not touched.
        unsafe { _mm256_maskload_ps(p, mask(n)) }
    }
    #[inline(always)]
    unsafe fn store_partial(p: *mut f32, v: __m256, n: usize) {
        // SAFETY: as above; masked lanes are not touched.
        unsafe { _mm256_maskstore_ps(p, mask(n), v) }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> __m256 {
        // SAFETY: as above.
        unsafe {
            let x = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(x))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(p: *mut bf16, v: __m256) {
        // SAFETY: as above.
        unsafe {
            let bits = _mm256_srli_epi32::<16>(to_bf16_bits(v));
            let packed = _mm256_permute4x64_epi64::<0b1000>(_mm256_packus_epi32(bits, bits));
            _mm_storeu_si128(p.cast(), _mm256_castsi256_si128(packed));
        }
    }
    #[inline(always)]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m256, b: __m256) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: __m256, b: __m256) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn fma_steps<const R: usize>(
        sums: &mut [[__m256; 2]; R],
        rows: *const f32,
        row_stride: usize,
        columns: *const f32,
        fetch: &mut Fetch,
    ) {
        // SAFETY: as above.
        unsafe { steps::of_256(sums, rows, row_stride, columns, fetch) }
    }
    #[inline(always)]
    unsafe fn max(a: __m256, b: __m256) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: __m256, b: __m256) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sqrt(a: __m256) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_sqrt_ps(a) }
    }
    #[inline(always)]
    unsafe fn round(a: __m256) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }
    #[inline(always)]
    unsafe fn pow2(n: __m256) -> __m256 {
        // SAFETY: as above.
        unsafe {
            let e = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(e))
        }
    }
    #[inline(always)]
    unsafe fn select_lt(a: __m256, b: __m256, x: __m256, y: __m256) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_blendv_ps(y, x, _mm256_cmp_ps::<_CMP_LT_OQ>(a, b)) }
    }
    #[inline(always)]
    unsafe fn reduce_add(a: __m256) -> f32 {
        // SAFETY: as above.
        unsafe { reduce_add_256(a) }
    }
    #[inline(always)]
    unsafe fn reduce_max(a: __m256) -> f32 {
        // SAFETY: as above.
        unsafe {
            let q = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let d = _mm_max_ps(q, _mm_movehl_ps(q, q));
            _mm_cvtss_f32(_mm_max_ss(d, _mm_movehdup_ps(d)))
        }
    }
    #[inline(always)]
    unsafe fn round_bf16(v: __m256) -> __m256 {
        // SAFETY: as above.
        unsafe {
            let top = _mm256_set1_epi32(0xffff_0000_u32 as i32);
            _mm256_castsi256_ps(_mm256_and_si256(to_bf16_bits(v), top))
        }
    }
    #[inline(always)]
    unsafe fn zip_bf16(first: __m256, second: __m256) -> __m256 {
        // SAFETY: as above.
        unsafe {
            let low = _mm256_srli_epi32::<16>(_mm256_castps_si256(first));
            _mm256_castsi256_ps(_mm256_or_si256(low, _mm256_castps_si256(second)))
        }
    }
    #[inline(always)]
    unsafe fn unzip_bf16(pairs: __m256) -> [__m256; 2] {
        // SAFETY: as above.
        unsafe {
            let x = _mm256_castps_si256(pairs);
            let first = _mm256_slli_epi32::<16>(x);
            let second = _mm256_and_si256(x, _mm256_set1_epi32(0xffff_0000_u32 as i32));
            [_mm256_castsi256_ps(first), _mm256_castsi256_ps(second)]
        }
    }
    #[inline(always)]
    unsafe fn load_pairs(p: *const bf16, part: usize) -> __m256 {
        // SAFETY: as above.
        unsafe { Self::unzip_bf16(Self::load(p.cast()))[part] }
    }
    #[inline(always)]
    unsafe fn splat_pair(p: *const bf16) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_set1_ps(p.cast::<f32>().read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn dot_pairs(acc: __m256, a: __m256, b: __m256) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_fmadd_ps(a, b, acc) }
    }

    type B = __m256i;
    type I = __m256i;

    #[inline(always)]
    unsafe fn load_bytes(p: *const u8) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_loadu_si256(p.cast()) }
    }
    #[inline(always)]
    unsafe fn store_bytes(p: *mut u8, b: __m256i) {
        // SAFETY: as above.
        unsafe { _mm256_storeu_si256(p.cast(), b) }
    }
    #[inline(always)]
    unsafe fn splat_bytes(p: *const i8) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_set1_epi32(p.cast::<i32>().read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn bits<const SHIFT: u32>(b: __m256i, mask: u8) -> __m256i {
        // SAFETY: as above. The count is known when this is compiled.
        unsafe {
            let shifted = _mm256_srl_epi16(b, _mm_cvtsi32_si128(SHIFT as i32));
            _mm256_and_si256(shifted, _mm256_set1_epi8(mask as i8))
        }
    }
    #[inline(always)]
    unsafe fn join_bits<const SHIFT: u32>(low: __m256i, high: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe {
            let shifted = _mm256_sll_epi16(high, _mm_cvtsi32_si128(SHIFT as i32));
            _mm256_or_si256(low, shifted)
        }
    }
    #[inline(always)]
    unsafe fn to_words(b: __m256i) -> [__m256i; 2] {
        // SAFETY: as above; -1 stands for a zero.
        unsafe {
            let lower = _mm_setr_epi8(0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13, -1);
            let upper = _mm_setr_epi8(2, -1, 3, -1, 6, -1, 7, -1, 10, -1, 11, -1, 14, -1, 15, -1);
            [
                _mm256_shuffle_epi8(b, _mm256_broadcastsi128_si256(lower)),
                _mm256_shuffle_epi8(b, _mm256_broadcastsi128_si256(upper)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn add_words(a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_add_epi16(a, b) }
    }
    #[inline(always)]
    unsafe fn dot_words(acc: __m256i, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_add_epi32(acc, _mm256_madd_epi16(a, b)) }
    }
    const BYTES_TO_WORDS: bool = true;
    #[inline(always)]
    unsafe fn dot_sums<const R: usize, const STEPS: usize>(
        sums: &mut [[__m256i; 2]; R],
        rows: *const u32,
        row_stride: usize,
        columns: *const u8,
    ) {
        // SAFETY: as above.
        unsafe { sums::dot_sums::<R, STEPS>(sums, rows, row_stride, columns) }
    }
    #[inline(always)]
    unsafe fn dot_bytes_to_words<const R: usize, const STEPS: usize>(
        sums: &mut [[__m256i; 2]; R],
        rows: *const u32,
        row_stride: usize,
        columns: *const u8,
    ) {
        // SAFETY: as above.
        unsafe { sums::bytes_to_words::<R, STEPS>(sums, rows, row_stride, columns) }
    }
    #[inline(always)]
    unsafe fn dot_pairs_of_bytes(w: __m256i, x: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_maddubs_epi16(w, x) }
    }
    #[inline(always)]
    unsafe fn store_words(p: *mut i16, v: __m256) {
        // SAFETY: as above.
        unsafe {
            let ints = _mm256_cvtps_epi32(v);
            let words = _mm_packs_epi32(
                _mm256_castsi256_si128(ints),
                _mm256_extracti128_si256::<1>(ints),
            );
            _mm_storeu_si128(p.cast(), words);
        }
    }
    #[inline(always)]
    unsafe fn load_int(p: *const i32) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_loadu_si256(p.cast()) }
    }
    #[inline(always)]
    unsafe fn store_int(p: *mut i32, x: __m256i) {
        // SAFETY: as above.
        unsafe { _mm256_storeu_si256(p.cast(), x) }
    }
    #[inline(always)]
    unsafe fn sub_int(a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_sub_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn splat_int(x: i32) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_set1_epi32(x) }
    }
    #[inline(always)]
    unsafe fn dot_bytes<const SMALL: bool>(acc: __m256i, w: __m256i, x: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe {
            if SMALL {
                // Two products of at most 127 * 127 fit 16 bits.
                let pairs = _mm256_maddubs_epi16(w, x);
                return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
            }
            let w_even = _mm256_and_si256(w, _mm256_set1_epi16(0xff));
            let x_even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(x));
            let even = _mm256_madd_epi16(w_even, x_even);
            let odd = _mm256_madd_epi16(_mm256_srli_epi16::<8>(w), _mm256_srai_epi16::<8>(x));
            _mm256_add_epi32(acc, _mm256_add_epi32(even, odd))
        }
    }
    #[inline(always)]
    unsafe fn next_byte(a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_add_epi32(_mm256_slli_epi32::<8>(a), b) }
    }
    #[inline(always)]
    unsafe fn to_float(x: __m256i) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_cvtepi32_ps(x) }
    }
    #[inline(always)]
    unsafe fn store_ints(p: *mut i8, v: __m256) {
        // SAFETY: as above; eight bytes are written.
        unsafe {
            let ints = _mm256_cvtps_epi32(v);
            let halves = _mm_packs_epi32(
                _mm256_castsi256_si128(ints),
                _mm256_extracti128_si256::<1>(ints),
            );
            _mm_storel_epi64(p.cast(), _mm_packs_epi16(halves, halves));
        }
    }
    #[inline(always)]
    unsafe fn load_halves(p: *const f16) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> __m256 {
        // SAFETY: as above; eight bytes are read.
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> __m256 {
        // SAFETY: as above; eight bytes are read.
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast()))) }
    }
}
