//! Plain Rust in arrays of eight: works everywhere, and shows what each method means.
//!
//! Multiply-add is two roundings here, because a fused one is a library call on processors without it.

use crate::simd::Simd;
use half::{bf16, f16};

/// The portable instruction set.
#[derive(Clone, Copy, Debug)]
pub struct Portable;

const N: usize = 8;

#[inline(always)]
fn map(a: [f32; N], f: impl Fn(f32) -> f32) -> [f32; N] {
    std::array::from_fn(|i| f(a[i]))
}

#[inline(always)]
fn zip(a: [f32; N], b: [f32; N], f: impl Fn(f32, f32) -> f32) -> [f32; N] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

/// The two words of a lane.
#[inline(always)]
fn words(lane: [u8; 4]) -> [i16; 2] {
    let word = |i| i16::from_ne_bytes([lane[i], lane[i + 1]]);
    [word(0), word(2)]
}

// SAFETY (all blocks below): pointers are valid for the lanes touched, by the contract of `Simd`.
impl Simd for Portable {
    const ISA: crate::Isa = crate::Isa::Portable;
    const LANES: usize = N;
    const TILE_ROWS: usize = 4;
    type V = [f32; N];
    const PAIR_PARTS: usize = 2;
    type P = [f32; N];

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        [x; N]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::V {
        // SAFETY: see above.
        unsafe { p.cast::<Self::V>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::V) {
        // SAFETY: see above.
        unsafe { p.cast::<Self::V>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn load_partial(p: *const f32, n: usize) -> Self::V {
        // SAFETY: see above.
        std::array::from_fn(|i| if i < n { unsafe { *p.add(i) } } else { 0.0 })
    }
    #[inline(always)]
    unsafe fn store_partial(p: *mut f32, v: Self::V, n: usize) {
        for (i, x) in v.iter().enumerate().take(n) {
            // SAFETY: see above.
            unsafe { *p.add(i) = *x }
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> Self::V {
        // SAFETY: see above.
        std::array::from_fn(|i| unsafe { *p.add(i) }.to_f32())
    }
    #[inline(always)]
    unsafe fn store_bf16(p: *mut bf16, v: Self::V) {
        for (i, x) in v.iter().enumerate() {
            // SAFETY: see above.
            unsafe { *p.add(i) = bf16::from_f32(*x) }
        }
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |x, y| x + y)
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |x, y| x - y)
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |x, y| x * y)
    }
    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |x, y| x / y)
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |x, y| if x > y { x } else { y })
    }
    #[inline(always)]
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |x, y| if x < y { x } else { y })
    }
    #[inline(always)]
    unsafe fn sqrt(a: Self::V) -> Self::V {
        map(a, f32::sqrt)
    }
    #[inline(always)]
    unsafe fn round(a: Self::V) -> Self::V {
        map(a, f32::round_ties_even)
    }
    #[inline(always)]
    unsafe fn pow2(n: Self::V) -> Self::V {
        map(n, |n| f32::from_bits(((n as i32 + 127) as u32) << 23))
    }
    #[inline(always)]
    unsafe fn select_lt(a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V {
        std::array::from_fn(|i| if a[i] < b[i] { x[i] } else { y[i] })
    }
    #[inline(always)]
    unsafe fn reduce_add(a: Self::V) -> f32 {
        let q = [a[0] + a[4], a[1] + a[5], a[2] + a[6], a[3] + a[7]];
        (q[0] + q[2]) + (q[1] + q[3])
    }
    #[inline(always)]
    unsafe fn reduce_max(a: Self::V) -> f32 {
        a.iter()
            .fold(f32::NEG_INFINITY, |m, &x| if x > m { x } else { m })
    }
    #[inline(always)]
    unsafe fn round_bf16(v: Self::V) -> Self::V {
        map(v, |x| bf16::from_f32(x).to_f32())
    }
    #[inline(always)]
    unsafe fn zip_bf16(first: Self::V, second: Self::V) -> Self::V {
        zip(first, second, |x, y| {
            f32::from_bits(x.to_bits() >> 16 | y.to_bits())
        })
    }
    #[inline(always)]
    unsafe fn unzip_bf16(pairs: Self::V) -> [Self::V; 2] {
        let first = map(pairs, |x| f32::from_bits(x.to_bits() << 16));
        let second = map(pairs, |x| f32::from_bits(x.to_bits() & 0xffff_0000));
        [first, second]
    }
    #[inline(always)]
    unsafe fn load_pairs(p: *const bf16, part: usize) -> Self::P {
        // SAFETY: see above.
        std::array::from_fn(|i| unsafe { *p.add(2 * i + part) }.to_f32())
    }
    #[inline(always)]
    unsafe fn splat_pair(p: *const bf16) -> Self::P {
        // SAFETY: see above.
        [unsafe { p.cast::<f32>().read_unaligned() }; N]
    }
    #[inline(always)]
    unsafe fn dot_pairs(acc: Self::V, a: Self::P, b: Self::P) -> Self::V {
        std::array::from_fn(|i| a[i] * b[i] + acc[i])
    }

    // Nothing below is inlined: tiles of blocks would grow to hundreds of kilobytes, and no function here needs
    // the features of its caller.
    type B = [[u8; 4]; N];
    type I = [i32; N];

    #[inline(never)]
    unsafe fn load_bytes(p: *const u8) -> Self::B {
        // SAFETY: see above.
        unsafe { p.cast::<Self::B>().read_unaligned() }
    }
    #[inline(never)]
    unsafe fn store_bytes(p: *mut u8, b: Self::B) {
        // SAFETY: see above.
        unsafe { p.cast::<Self::B>().write_unaligned(b) }
    }
    #[inline(never)]
    unsafe fn splat_bytes(p: *const i8) -> Self::B {
        // SAFETY: see above.
        [unsafe { p.cast::<[u8; 4]>().read_unaligned() }; N]
    }
    #[inline(never)]
    unsafe fn bits<const SHIFT: u32>(b: Self::B, mask: u8) -> Self::B {
        b.map(|lane| lane.map(|byte| byte >> SHIFT & mask))
    }
    #[inline(never)]
    unsafe fn join_bits<const SHIFT: u32>(low: Self::B, high: Self::B) -> Self::B {
        std::array::from_fn(|i| std::array::from_fn(|j| low[i][j] | high[i][j] << SHIFT))
    }
    #[inline(never)]
    unsafe fn to_words(b: Self::B) -> [Self::B; 2] {
        let lane = |[first, second]: [u8; 2]| {
            let [first, second] = [first, second].map(|byte| u16::from(byte).to_ne_bytes());
            [first[0], first[1], second[0], second[1]]
        };
        [
            b.map(|[first, second, ..]| lane([first, second])),
            b.map(|[.., first, second]| lane([first, second])),
        ]
    }
    #[inline(never)]
    unsafe fn add_words(a: Self::B, b: Self::B) -> Self::B {
        std::array::from_fn(|i| {
            let sum = |word: usize| {
                words(a[i])[word]
                    .wrapping_add(words(b[i])[word])
                    .to_ne_bytes()
            };
            let [first, second] = [sum(0), sum(1)];
            [first[0], first[1], second[0], second[1]]
        })
    }
    #[inline(never)]
    unsafe fn dot_words(acc: Self::I, a: Self::B, b: Self::B) -> Self::I {
        std::array::from_fn(|i| {
            let product = |word: usize| i32::from(words(a[i])[word]) * i32::from(words(b[i])[word]);
            acc[i].wrapping_add(product(0)).wrapping_add(product(1))
        })
    }
    #[inline(never)]
    unsafe fn dot_pairs_of_bytes(w: Self::B, x: Self::B) -> Self::B {
        std::array::from_fn(|i| {
            let product = |j: usize| i16::from(w[i][j]) * i16::from(x[i][j] as i8);
            let first = (product(0) + product(1)).to_ne_bytes();
            let second = (product(2) + product(3)).to_ne_bytes();
            [first[0], first[1], second[0], second[1]]
        })
    }
    #[inline(never)]
    unsafe fn store_words(p: *mut i16, v: Self::V) {
        // SAFETY: see above.
        unsafe { p.cast::<[i16; N]>().write_unaligned(v.map(|x| x as i16)) }
    }
    #[inline(never)]
    unsafe fn load_int(p: *const i32) -> Self::I {
        // SAFETY: see above.
        unsafe { p.cast::<Self::I>().read_unaligned() }
    }
    #[inline(never)]
    unsafe fn store_int(p: *mut i32, x: Self::I) {
        // SAFETY: see above.
        unsafe { p.cast::<Self::I>().write_unaligned(x) }
    }
    #[inline(never)]
    unsafe fn sub_int(a: Self::I, b: Self::I) -> Self::I {
        std::array::from_fn(|i| a[i].wrapping_sub(b[i]))
    }
    #[inline(never)]
    unsafe fn splat_int(x: i32) -> Self::I {
        [x; N]
    }
    #[inline(never)]
    unsafe fn dot_bytes<const SMALL: bool>(acc: Self::I, w: Self::B, x: Self::B) -> Self::I {
        std::array::from_fn(|i| {
            let product = |j: usize| i32::from(w[i][j]) * i32::from(x[i][j] as i8);
            acc[i] + product(0) + product(1) + product(2) + product(3)
        })
    }
    #[inline(never)]
    unsafe fn next_byte(a: Self::I, b: Self::I) -> Self::I {
        std::array::from_fn(|i| 256 * a[i] + b[i])
    }
    #[inline(never)]
    unsafe fn to_float(x: Self::I) -> Self::V {
        x.map(|x| x as f32)
    }
    #[inline(never)]
    unsafe fn store_ints(p: *mut i8, v: Self::V) {
        // SAFETY: see above.
        unsafe { p.cast::<[i8; N]>().write_unaligned(v.map(|x| x as i8)) }
    }
    #[inline(never)]
    unsafe fn load_halves(p: *const f16) -> Self::V {
        // SAFETY: see above.
        std::array::from_fn(|i| unsafe { *p.add(i) }.to_f32())
    }
    #[inline(never)]
    unsafe fn load_u8(p: *const u8) -> Self::V {
        // SAFETY: see above.
        std::array::from_fn(|i| f32::from(unsafe { *p.add(i) }))
    }
    #[inline(never)]
    unsafe fn load_i8(p: *const i8) -> Self::V {
        // SAFETY: see above.
        std::array::from_fn(|i| f32::from(unsafe { *p.add(i) }))
    }
}
