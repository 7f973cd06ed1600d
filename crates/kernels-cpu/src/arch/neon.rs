//! NEON (aarch64): four lanes.

use crate::simd::Simd;
use half::{bf16, f16};
use std::arch::aarch64::*;

/// NEON, present on every aarch64 processor.
#[derive(Clone, Copy, Debug)]
pub struct Neon;

/// Rounds four f32 to bf16 (nearest, ties to even; NaN stays NaN) in the high halves; the low ones are
/// left over.
#[inline(always)]
unsafe fn to_bf16_bits(v: float32x4_t) -> uint32x4_t {
    // SAFETY: NEON is present by the contract of `Simd`.
    unsafe {
        let x = vreinterpretq_u32_f32(v);
        let odd = vandq_u32(vshrq_n_u32::<16>(x), vdupq_n_u32(1));
        let rounded = vaddq_u32(x, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
        let quiet = vorrq_u32(x, vdupq_n_u32(0x0040_0000));
        vbslq_u32(vceqq_f32(v, v), rounded, quiet)
    }
}

impl Simd for Neon {
    const ISA: crate::Isa = crate::Isa::Neon;
    const LANES: usize = 4;
    const TILE_ROWS: usize = 8;
    type V = float32x4_t;
    const PAIR_PARTS: usize = 2;
    type P = float32x4_t;

    #[inline(always)]
    unsafe fn splat(x: f32) -> float32x4_t {
        // SAFETY: by the contract of `Simd` (so for every block of this impl).
        unsafe { vdupq_n_f32(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> float32x4_t {
        // SAFETY: as above.
        unsafe { vld1q_f32(p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: float32x4_t) {
        // SAFETY: as above.
        unsafe { vst1q_f32(p, v) }
    }
    #[inline(always)]
    unsafe fn load_partial(p: *const f32, n: usize) -> float32x4_t {
        let mut lanes = [0.0f32; 4];
        // SAFETY: as above; `n` values are copied.
        unsafe {
            std::ptr::copy_nonoverlapping(p, lanes.as_mut_ptr(), n);
            vld1q_f32(lanes.as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn store_partial(p: *mut f32, v: float32x4_t, n: usize) {
        let mut lanes = [0.0f32; 4];
        // SAFETY: as above; `n` values are copied.
        unsafe {
            vst1q_f32(lanes.as_mut_ptr(), v);
            std::ptr::copy_nonoverlapping(lanes.as_ptr(), p, n);
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> float32x4_t {
        // SAFETY: as above.
        unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn store_bf16(p: *mut bf16, v: float32x4_t) {
        // SAFETY: as above.
        unsafe { vst1_u16(p.cast(), vshrn_n_u32::<16>(to_bf16_bits(v))) }
    }
    #[inline(always)]
    unsafe fn add(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: as above.
        unsafe { vaddq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: as above.
        unsafe { vsubq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: as above.
        unsafe { vmulq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: as above.
        unsafe { vdivq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        // SAFETY: as above.
        unsafe { vfmaq_f32(c, a, b) }
    }
    #[inline(always)]
    unsafe fn max(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: as above.
        unsafe { vmaxq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: as above.
        unsafe { vminq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn sqrt(a: float32x4_t) -> float32x4_t {
        // SAFETY: as above.
        unsafe { vsqrtq_f32(a) }
    }
    #[inline(always)]
    unsafe fn round(a: float32x4_t) -> float32x4_t {
        // SAFETY: as above.
        unsafe { vrndnq_f32(a) }
    }
    #[inline(always)]
    unsafe fn pow2(n: float32x4_t) -> float32x4_t {
        // SAFETY: as above.
        unsafe {
            let e = vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127));
            vreinterpretq_f32_s32(vshlq_n_s32::<23>(e))
        }
    }
    #[inline(always)]
    unsafe fn select_lt(
        a: float32x4_t,
        b: float32x4_t,
        x: float32x4_t,
        y: float32x4_t,
    ) -> float32x4_t {
        // SAFETY: as above.
        unsafe { vbslq_f32(vcltq_f32(a, b), x, y) }
    }
    #[inline(always)]
    unsafe fn reduce_add(a: float32x4_t) -> f32 {
        // SAFETY: as above.
        unsafe {
            let d = vadd_f32(vget_low_f32(a), vget_high_f32(a));
            vget_lane_f32::<0>(d) + vget_lane_f32::<1>(d)
        }
    }
    #[inline(always)]
    unsafe fn reduce_max(a: float32x4_t) -> f32 {
        // SAFETY: as above.
        unsafe { vmaxvq_f32(a) }
    }
    #[inline(always)]
    unsafe fn round_bf16(v: float32x4_t) -> float32x4_t {
        // SAFETY: as above.
        unsafe { vreinterpretq_f32_u32(vandq_u32(to_bf16_bits(v), vdupq_n_u32(0xffff_0000))) }
    }
    #[inline(always)]
    unsafe fn zip_bf16(first: float32x4_t, second: float32x4_t) -> float32x4_t {
        // SAFETY: as above.
        unsafe {
            let low = vshrq_n_u32::<16>(vreinterpretq_u32_f32(first));
            vreinterpretq_f32_u32(vorrq_u32(low, vreinterpretq_u32_f32(second)))
        }
    }
    #[inline(always)]
    unsafe fn unzip_bf16(pairs: float32x4_t) -> [float32x4_t; 2] {
        // SAFETY: as above.
        unsafe {
            let x = vreinterpretq_u32_f32(pairs);
            let (first, second) = (vshlq_n_u32::<16>(x), vandq_u32(x, vdupq_n_u32(0xffff_0000)));
            [vreinterpretq_f32_u32(first), vreinterpretq_f32_u32(second)]
        }
    }
    #[inline(always)]
    unsafe fn load_pairs(p: *const bf16, part: usize) -> float32x4_t {
        // SAFETY: as above.
        unsafe { Self::unzip_bf16(Self::load(p.cast()))[part] }
    }
    #[inline(always)]
    unsafe fn splat_pair(p: *const bf16) -> float32x4_t {
        // SAFETY: as above.
        unsafe { vdupq_n_f32(p.cast::<f32>().read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn dot_pairs(acc: float32x4_t, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: as above.
        unsafe { vfmaq_f32(acc, a, b) }
    }

    type B = uint8x16_t;
    type I = int32x4_t;

    #[inline(always)]
    unsafe fn load_bytes(p: *const u8) -> uint8x16_t {
        // SAFETY: as above.
        unsafe { vld1q_u8(p) }
    }
    #[inline(always)]
    unsafe fn store_bytes(p: *mut u8, b: uint8x16_t) {
        // SAFETY: as above.
        unsafe { vst1q_u8(p, b) }
    }
    #[inline(always)]
    unsafe fn splat_bytes(p: *const i8) -> uint8x16_t {
        // SAFETY: as above.
        unsafe { vreinterpretq_u8_u32(vdupq_n_u32(p.cast::<u32>().read_unaligned())) }
    }
    #[inline(always)]
    unsafe fn bits<const SHIFT: u32>(b: uint8x16_t, mask: u8) -> uint8x16_t {
        // SAFETY: as above; a negative count shifts to the right.
        unsafe { vandq_u8(vshlq_u8(b, vdupq_n_s8(-(SHIFT as i8))), vdupq_n_u8(mask)) }
    }
    #[inline(always)]
    unsafe fn join_bits<const SHIFT: u32>(low: uint8x16_t, high: uint8x16_t) -> uint8x16_t {
        // SAFETY: as above.
        unsafe { vorrq_u8(low, vshlq_u8(high, vdupq_n_s8(SHIFT as i8))) }
    }
    #[inline(always)]
    unsafe fn to_words(b: uint8x16_t) -> [uint8x16_t; 2] {
        // SAFETY: as above.
        unsafe {
            let b = vreinterpretq_u32_u8(b);
            let (even, odd) = (vdupq_n_u32(0x00ff_00ff), vdupq_n_u32(0xff00_ff00));
            let (even, odd) = (vandq_u32(b, even), vandq_u32(b, odd));
            let (first, second) = (vdupq_n_u32(0x0000_00ff), vdupq_n_u32(0x00ff_0000));
            let lower = vorrq_u32(
                vandq_u32(even, first),
                vandq_u32(vshlq_n_u32::<8>(odd), second),
            );
            let upper = vorrq_u32(
                vshrq_n_u32::<16>(even),
                vandq_u32(vshrq_n_u32::<8>(odd), second),
            );
            [vreinterpretq_u8_u32(lower), vreinterpretq_u8_u32(upper)]
        }
    }
    #[inline(always)]
    unsafe fn add_words(a: uint8x16_t, b: uint8x16_t) -> uint8x16_t {
        // SAFETY: as above.
        unsafe {
            let sum = vaddq_u16(vreinterpretq_u16_u8(a), vreinterpretq_u16_u8(b));
            vreinterpretq_u8_u16(sum)
        }
    }
    #[inline(always)]
    unsafe fn dot_words(acc: int32x4_t, a: uint8x16_t, b: uint8x16_t) -> int32x4_t {
        // SAFETY: as above.
        unsafe {
            let (a, b) = (vreinterpretq_s16_u8(a), vreinterpretq_s16_u8(b));
            let first = vmull_s16(vget_low_s16(a), vget_low_s16(b));
            let second = vmull_high_s16(a, b);
            vaddq_s32(acc, vpaddq_s32(first, second))
        }
    }
    #[inline(always)]
    unsafe fn dot_pairs_of_bytes(w: uint8x16_t, x: uint8x16_t) -> uint8x16_t {
        // SAFETY: as above.
        unsafe {
            let (w, x) = (vreinterpretq_s8_u8(w), vreinterpretq_s8_u8(x));
            let low = vmull_s8(vget_low_s8(w), vget_low_s8(x));
            vreinterpretq_u8_s16(vpaddq_s16(low, vmull_high_s8(w, x)))
        }
    }
    #[inline(always)]
    unsafe fn store_words(p: *mut i16, v: float32x4_t) {
        // SAFETY: as above.
        unsafe { vst1_s16(p, vmovn_s32(vcvtnq_s32_f32(v))) }
    }
    #[inline(always)]
    unsafe fn load_int(p: *const i32) -> int32x4_t {
        // SAFETY: as above.
        unsafe { vld1q_s32(p) }
    }
    #[inline(always)]
    unsafe fn store_int(p: *mut i32, x: int32x4_t) {
        // SAFETY: as above.
        unsafe { vst1q_s32(p, x) }
    }
    #[inline(always)]
    unsafe fn sub_int(a: int32x4_t, b: int32x4_t) -> int32x4_t {
        // SAFETY: as above.
        unsafe { vsubq_s32(a, b) }
    }
    #[inline(always)]
    unsafe fn splat_int(x: i32) -> int32x4_t {
        // SAFETY: as above.
        unsafe { vdupq_n_s32(x) }
    }
    #[inline(always)]
    unsafe fn dot_bytes<const SMALL: bool>(
        acc: int32x4_t,
        w: uint8x16_t,
        x: uint8x16_t,
    ) -> int32x4_t {
        // SAFETY: as above.
        unsafe {
            let x = vreinterpretq_s8_u8(x);
            if SMALL {
                let w = vreinterpretq_s8_u8(w);
                let low = vmull_s8(vget_low_s8(w), vget_low_s8(x));
                let high = vmull_high_s8(w, x);
                // Two products of at most 127 * 128 fit 16 bits.
                return vpadalq_s16(acc, vpaddq_s16(low, high));
            }
            let w_low = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(w)));
            let w_high = vreinterpretq_s16_u16(vmovl_high_u8(w));
            let (x_low, x_high) = (vmovl_s8(vget_low_s8(x)), vmovl_high_s8(x));
            let sums = |w: int16x8_t, x: int16x8_t| {
                let low = vmull_s16(vget_low_s16(w), vget_low_s16(x));
                vpaddq_s32(low, vmull_high_s16(w, x))
            };
            vaddq_s32(acc, vpaddq_s32(sums(w_low, x_low), sums(w_high, x_high)))
        }
    }
    #[inline(always)]
    unsafe fn next_byte(a: int32x4_t, b: int32x4_t) -> int32x4_t {
        // SAFETY: as above.
        unsafe { vaddq_s32(vshlq_n_s32::<8>(a), b) }
    }
    #[inline(always)]
    unsafe fn to_float(x: int32x4_t) -> float32x4_t {
        // SAFETY: as above.
        unsafe { vcvtq_f32_s32(x) }
    }
    #[inline(always)]
    unsafe fn store_ints(p: *mut i8, v: float32x4_t) {
        // SAFETY: as above; four bytes are written.
        unsafe {
            let halves = vmovn_s32(vcvtnq_s32_f32(v));
            let bytes = vmovn_s16(vcombine_s16(halves, halves));
            p.cast::<i32>()
                .write_unaligned(vget_lane_s32::<0>(vreinterpret_s32_s8(bytes)));
        }
    }
    #[inline(always)]
    unsafe fn load_halves(p: *const f16) -> float32x4_t {
        // SAFETY: as above.
        unsafe { vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> float32x4_t {
        // SAFETY: as above; four bytes are read.
        unsafe {
            let bytes = vcreate_u8(u64::from(p.cast::<u32>().read_unaligned()));
            vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(bytes))))
        }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> float32x4_t {
        // SAFETY: as above; four bytes are read.
        unsafe {
            let bytes = vcreate_s8(u64::from(p.cast::<u32>().read_unaligned()));
            vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(bytes))))
        }
    }
}
