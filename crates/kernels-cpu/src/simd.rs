//! The vector vocabulary of every kernel: one trait, implemented once per instruction set in `arch`.
//!
//! A kernel is written once, generic over `S: Simd`, every function below its entry marked
//! `#[inline(always)]`. [`dispatch!`](crate::dispatch) instantiates it per instruction set, with
//! `#[target_feature]` on the outermost function only, and picks one at run time.
//!
//! Rules that keep the bits of a result independent of batch, chunking and threads:
//! - the tail of a row goes through the same vector instructions as its body
//!   (`load_partial`, `store_partial`), never through scalar code;
//! - a reduction over a row uses `reduce_add` once, on accumulators filled in a fixed order;
//! - a product is accumulated over its inner dimension one after another in a single chain.
//!
//! Bits may differ from one instruction set to another, never within one.

use crate::Isa;
use crate::aligned::LINE_BYTES;
use half::{bf16, f16};

/// One instruction set. All methods are `unsafe`: the caller guarantees that the processor has the
/// instructions (it stands below a `#[target_feature]` function chosen by `dispatch!`) and that
/// pointers are valid for the lanes read or written. No alignment is required.
#[expect(
    clippy::missing_safety_doc,
    reason = "the one contract of all methods is stated above"
)]
pub trait Simd: Copy + Send + Sync + 'static {
    /// Its name.
    const ISA: Isa;
    /// Number of f32 lanes of [`Simd::V`].
    const LANES: usize;
    /// Rows of the register tile of a matrix product (its columns are two vectors).
    const TILE_ROWS: usize;
    /// `LANES` values of f32.
    type V: Copy;
    /// Instructions for the product of a pair of bf16 values: one dot product, or a multiply-add for
    /// each value, widened to f32.
    const PAIR_PARTS: usize;
    /// The operand of [`Simd::dot_pairs`]: one part of `LANES` pairs.
    type P: Copy;

    /// Every lane `x`.
    unsafe fn splat(x: f32) -> Self::V;
    /// Reads `LANES` values.
    unsafe fn load(p: *const f32) -> Self::V;
    /// Writes `LANES` values.
    unsafe fn store(p: *mut f32, v: Self::V);
    /// Writes `LANES` values past the caches, where there is an instruction for it. `p` is aligned to them; other
    /// threads see them after [`end_streams`].
    #[inline(always)]
    unsafe fn stream(p: *mut f32, v: Self::V) {
        // SAFETY: forwarded to the caller.
        unsafe { Self::store(p, v) }
    }
    /// Copies `LANES` values in the way that takes least from multiply-adds around it.
    #[inline(always)]
    unsafe fn copy_aside(to: *mut f32, from: *const f32) {
        // SAFETY: forwarded to the caller.
        unsafe { Self::store(to, Self::load(from)) }
    }
    /// Reads `n <= LANES` values; the other lanes are zero.
    unsafe fn load_partial(p: *const f32, n: usize) -> Self::V;
    /// Writes the first `n <= LANES` values.
    unsafe fn store_partial(p: *mut f32, v: Self::V, n: usize);
    /// Reads `LANES` bf16 values, widened.
    unsafe fn load_bf16(p: *const bf16) -> Self::V;
    /// Writes `LANES` values rounded to the nearest bf16, ties to even.
    unsafe fn store_bf16(p: *mut bf16, v: Self::V);

    /// a + b.
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    /// a - b.
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    /// a * b.
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    /// a / b.
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    /// a * b + c (fused where the instruction set fuses).
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// Steps that [`Simd::fma_steps`] takes; 1 where a loop over single ones is the best there is.
    const FMA_STEPS: usize = 1;
    /// `FMA_STEPS` steps of a product, more than one: step i adds to `sums[r]` the value i of row r times the vectors 2i
    /// and 2i + 1 of `columns`, and fetches. R is at most `TILE_ROWS`; rows lie `row_stride` apart.
    #[inline(always)]
    unsafe fn fma_steps<const R: usize>(
        _sums: &mut [[Self::V; 2]; R],
        _rows: *const f32,
        _row_stride: usize,
        _columns: *const f32,
        _fetch: &mut Fetch,
    ) {
        unreachable!("there are no steps to take at once")
    }
    /// The larger, lane by lane.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// The smaller, lane by lane.
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    /// Square root.
    unsafe fn sqrt(a: Self::V) -> Self::V;
    /// To the nearest integer, ties to even.
    unsafe fn round(a: Self::V) -> Self::V;
    /// 2^n for integer-valued n in [-126, 127].
    unsafe fn pow2(n: Self::V) -> Self::V;
    /// x 2^n for x in [0.5, 2) and integer-valued n in [-150, 0]; where that is below the normal range, any value
    /// from 0 to 2^-125.
    #[inline(always)]
    unsafe fn scale_down(x: Self::V, n: Self::V) -> Self::V {
        // SAFETY: forwarded to the caller.
        unsafe { Self::mul(x, Self::pow2(Self::max(n, Self::splat(-126.0)))) }
    }
    /// Lane by lane: `if a < b { x } else { y }`.
    unsafe fn select_lt(a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V;
    /// Sum of all lanes, as a balanced tree (always in the same order).
    unsafe fn reduce_add(a: Self::V) -> f32;
    /// Largest lane.
    unsafe fn reduce_max(a: Self::V) -> f32;

    /// The nearest bf16, ties to even, as f32.
    unsafe fn round_bf16(v: Self::V) -> Self::V;
    /// The bits of `LANES` pairs of values that are bf16 already.
    unsafe fn zip_bf16(first: Self::V, second: Self::V) -> Self::V;
    /// The reverse: the first values of `LANES` pairs, and the second.
    unsafe fn unzip_bf16(pairs: Self::V) -> [Self::V; 2];
    /// `LANES` pairs, a value of each vector rounded to bf16, as [`Simd::dot_pairs`] multiplies them: where its
    /// instruction takes values below the normal range for zero, they may be zero here.
    #[inline(always)]
    unsafe fn pair_up(first: Self::V, second: Self::V) -> Self::V {
        // SAFETY: forwarded to the caller.
        unsafe { Self::zip_bf16(Self::round_bf16(first), Self::round_bf16(second)) }
    }
    /// Writes `LANES` values rounded to bf16, as [`Simd::pair_up`] rounds them.
    #[inline(always)]
    unsafe fn store_factors(p: *mut bf16, v: Self::V) {
        // SAFETY: forwarded to the caller.
        unsafe { Self::store_bf16(p, v) }
    }
    /// Part `part` of `LANES` consecutive pairs, that is of `2 * LANES` bf16 values.
    unsafe fn load_pairs(p: *const bf16, part: usize) -> Self::P;
    /// Copies one part of a pair to every lane: both values as bf16, or one value as f32. Four bytes.
    unsafe fn splat_pair(p: *const bf16) -> Self::P;
    /// acc + the sum of a * b over the values of a part, per lane, accumulated in f32.
    unsafe fn dot_pairs(acc: Self::V, a: Self::P, b: Self::P) -> Self::V;

    /// Four bytes in each lane.
    type B: Copy;
    /// A 32-bit integer in each lane.
    type I: Copy;

    /// Reads `4 * LANES` bytes.
    unsafe fn load_bytes(p: *const u8) -> Self::B;
    /// Writes `4 * LANES` bytes.
    unsafe fn store_bytes(p: *mut u8, b: Self::B);
    /// The four bytes at `p`, in every lane.
    unsafe fn splat_bytes(p: *const i8) -> Self::B;
    /// Of every byte the bits of `mask`, after a shift to the right. `mask` has no bit that would come from
    /// the next byte.
    unsafe fn bits<const SHIFT: u32>(b: Self::B, mask: u8) -> Self::B;
    /// `low | high << SHIFT` of every byte. No byte of `high` has a bit that would leave it.
    unsafe fn join_bits<const SHIFT: u32>(low: Self::B, high: Self::B) -> Self::B;
    /// The two lower bytes of every lane as words, and the two upper ones.
    unsafe fn to_words(b: Self::B) -> [Self::B; 2];
    /// a + b of both 16-bit words of a lane; wraps.
    unsafe fn add_words(a: Self::B, b: Self::B) -> Self::B;
    /// acc + the sum of a * b over both words of a lane, which are signed; wraps.
    unsafe fn dot_words(acc: Self::I, a: Self::B, b: Self::B) -> Self::I;
    /// `STEPS` steps of a product of sums of words, as the kernel of blocks has them: step i adds to `sums[r]` the dot
    /// products of two sums, of the words 2i of row r with the vectors 4i + 2 and 4i + 3 of `columns`, and of the words
    /// 2i + 1 with the vectors 4i and 4i + 1. Rows lie `row_stride` apart. STEPS is 4 or 8, and R at most `TILE_ROWS / 2`.
    #[inline(always)]
    unsafe fn dot_sums<const R: usize, const STEPS: usize>(
        sums: &mut [[Self::I; 2]; R],
        rows: *const u32,
        row_stride: usize,
        columns: *const u8,
    ) {
        // SAFETY: forwarded to the caller.
        unsafe {
            for step in 0..STEPS {
                let column =
                    |i: usize| Self::load_bytes(columns.add(4 * Self::LANES * (4 * step + i)));
                let (lower, upper) = ([column(0), column(1)], [column(2), column(3)]);
                for r in 0..R {
                    let row = rows.add(r * row_stride + 2 * step).cast();
                    let x = [Self::splat_bytes(row), Self::splat_bytes(row.add(4))];
                    for half in 0..2 {
                        let first = Self::add_words(x[0], upper[half]);
                        let second = Self::add_words(x[1], lower[half]);
                        sums[r][half] = Self::dot_words(sums[r][half], first, second);
                    }
                }
            }
        }
    }
    /// w * x, of both pairs of a lane the two products added up to a word: w from 0 to 127, x from -128 to 127.
    unsafe fn dot_pairs_of_bytes(w: Self::B, x: Self::B) -> Self::B;
    /// Whether no instruction adds up four products of bytes. Then sums of pairs are added up as words, as long as these
    /// have room.
    const BYTES_TO_WORDS: bool = false;
    /// `STEPS` steps of a product of bytes, as the kernel of blocks has them: `sums[r]` become the sums, word by word, of
    /// the products ([`Simd::dot_pairs_of_bytes`]) of the four bytes i of row r with the vectors 2i and 2i + 1 of
    /// `columns`. Rows lie `row_stride` apart. STEPS is 2, 4 or 8, and R at most `TILE_ROWS / 2`.
    #[inline(always)]
    unsafe fn dot_bytes_to_words<const R: usize, const STEPS: usize>(
        sums: &mut [[Self::B; 2]; R],
        rows: *const u32,
        row_stride: usize,
        columns: *const u8,
    ) {
        // SAFETY: forwarded to the caller.
        unsafe {
            for step in 0..STEPS {
                for r in 0..R {
                    let x = Self::splat_bytes(rows.add(r * row_stride + step).cast());
                    for half in 0..2 {
                        let w = columns.add(4 * Self::LANES * (2 * step + half));
                        let pairs = Self::dot_pairs_of_bytes(Self::load_bytes(w), x);
                        sums[r][half] = match step {
                            0 => pairs,
                            _ => Self::add_words(sums[r][half], pairs),
                        };
                    }
                }
            }
        }
    }
    /// Writes `LANES` words, from values that are integers from -32768 to 32767.
    unsafe fn store_words(p: *mut i16, v: Self::V);
    /// Reads `LANES` integers.
    unsafe fn load_int(p: *const i32) -> Self::I;
    /// Writes `LANES` integers.
    unsafe fn store_int(p: *mut i32, x: Self::I);
    /// a - b; wraps.
    unsafe fn sub_int(a: Self::I, b: Self::I) -> Self::I;
    /// Every lane `x`.
    unsafe fn splat_int(x: i32) -> Self::I;
    /// acc + the sum of w * x over the four bytes of a lane: w from 0 to 255, x from -128 to 127. Exact.
    /// With `SMALL`, w is below 128.
    unsafe fn dot_bytes<const SMALL: bool>(acc: Self::I, w: Self::B, x: Self::B) -> Self::I;
    /// 256 a + b.
    unsafe fn next_byte(a: Self::I, b: Self::I) -> Self::I;
    /// The nearest f32.
    unsafe fn to_float(x: Self::I) -> Self::V;
    /// Writes `LANES` values, which are integers from -128 to 127.
    unsafe fn store_ints(p: *mut i8, v: Self::V);
    /// Reads `LANES` halves.
    unsafe fn load_halves(p: *const f16) -> Self::V;
    /// Reads `LANES` unsigned bytes as values.
    unsafe fn load_u8(p: *const u8) -> Self::V;
    /// Reads `LANES` signed bytes as values.
    unsafe fn load_i8(p: *const i8) -> Self::V;
}

/// What a loop fetches while it does something else: at each step the cache line at `ptr`, which then goes on by
/// `bytes`. It may lead anywhere.
#[derive(Clone, Copy, Debug)]
pub struct Fetch {
    /// The next line.
    pub ptr: *const u8,
    /// From one step to the next.
    pub bytes: usize,
}

impl Fetch {
    /// A step, of `LINES` lines at most.
    #[inline(always)]
    pub(crate) fn step<const LINES: usize>(&mut self) {
        for line in 0..LINES {
            prefetch(self.ptr.wrapping_add(LINE_BYTES * line));
        }
        self.ptr = self.ptr.wrapping_add(self.bytes);
    }
}

/// Brings the cache line at `p` near, where there is an instruction for it; any address will do.
#[inline(always)]
pub(crate) fn prefetch<T>(p: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 has the instruction, which takes any address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(p.cast());
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above, of aarch64.
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{p}]", p = in(reg) p, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = p;
}

/// What this thread wrote by [`Simd::stream`] is there for others that it synchronises with from here on.
#[inline(always)]
pub(crate) fn end_streams() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 has the instruction.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}

/// e^x per lane. Relative error below 2.6e-7; inputs are clamped to [-87.3, 88.4], so that no lane overflows, and
/// e^-inf is about 1e-38.
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
pub unsafe fn exp<S: Simd>(x: S::V) -> S::V {
    // SAFETY: forwarded to the caller.
    unsafe {
        let x = S::min(S::max(x, S::splat(-87.336_54)), S::splat(88.376_26));
        let (n, p) = reduced_exp::<S>(x);
        S::mul(p, S::pow2(n))
    }
}

/// e^x per lane for x of at most 0 (or what rounding makes of it), in fewer instructions. Relative error below
/// 2.6e-7, and 1.7e-38 at most where e^x is below the normal range.
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
pub unsafe fn exp_of_negative<S: Simd>(x: S::V) -> S::V {
    // SAFETY: forwarded to the caller; -104 / ln 2 is -150.
    unsafe {
        let (n, p) = reduced_exp::<S>(S::max(x, S::splat(-103.9)));
        S::scale_down(p, n)
    }
}

/// The n nearest to x / ln 2, and e^(x - n ln 2) by a polynomial of degree 6.
#[inline(always)]
unsafe fn reduced_exp<S: Simd>(x: S::V) -> (S::V, S::V) {
    // SAFETY: forwarded to the caller.
    unsafe {
        let n = S::round(S::mul(x, S::splat(std::f32::consts::LOG2_E)));
        // x - n ln 2, with ln 2 split so that n * hi is exact.
        let r = S::fma(n, S::splat(-0.693_359_4), x);
        let r = S::fma(n, S::splat(2.121_944_4e-4), r);
        let mut p = S::splat(1.0 / 720.0);
        p = S::fma(p, r, S::splat(1.0 / 120.0));
        p = S::fma(p, r, S::splat(1.0 / 24.0));
        p = S::fma(p, r, S::splat(1.0 / 6.0));
        p = S::fma(p, r, S::splat(0.5));
        p = S::fma(p, r, S::splat(1.0));
        p = S::fma(p, r, S::splat(1.0));
        (n, p)
    }
}

/// 1 / (1 + e^-x) per lane.
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
pub unsafe fn sigmoid<S: Simd>(x: S::V) -> S::V {
    // SAFETY: forwarded to the caller.
    unsafe {
        let one = S::splat(1.0);
        S::div(one, S::add(one, exp::<S>(S::sub(S::splat(0.0), x))))
    }
}
