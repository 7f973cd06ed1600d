//! What a product multiplies: the types of factors, how they lie in memory, and the memory.
//!
//! Operands lie in memory as *words* of four bytes. A *step* of depth is one value (f32) or two (bf16). It
//! takes one word of a column of the right operand: a value, or a pair. Of a row of the left one it takes
//! a word for each of its *parts*: the value, the pair as a dot product wants it, or, where pairs are
//! multiplied value by value, both values rounded but in f32, so that only the right operand, which many
//! rows share, is widened in the loop.

use crate::Isa;
use crate::aligned::{Aligned, LINE_BYTES};
use crate::row::{self, for_lanes};
use crate::simd::{Fetch, Simd};
use half::bf16;

/// Type of the factors of a product; sums are f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compute {
    /// 32-bit floating point.
    F32,
    /// bfloat16, rounded to nearest even.
    Bf16,
}

impl Compute {
    /// Values of depth in a step, and in a word of the right operand.
    pub(crate) const fn step(self) -> usize {
        match self {
            Compute::F32 => 1,
            Compute::Bf16 => 2,
        }
    }
}

/// Runs `$f::<S, F>($args)` for the instruction set `$isa` and the factors that `$compute` names; otherwise as
/// [`dispatch!`](crate::dispatch).
macro_rules! dispatch_factors {
    ($isa:expr, $compute:expr, $f:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)?) => {
        $crate::factor::dispatch_factors!(
            @ $isa, $compute, $f, ($($arg: $ty),*), ($(-> $ret)?),
            $f::<S, $crate::factor::Bf16>($($arg),*)
        )
    };
    (@ $isa:expr, $compute:expr, $f:ident, ($($arg:ident: $ty:ty),*), ($(-> $ret:ty)?), $of_bf16:expr) => {{
        #[inline(always)]
        unsafe fn in_f32<S: $crate::simd::Simd>($($arg: $ty),*) $(-> $ret)? {
            // SAFETY: forwarded to the caller (so for the block below).
            unsafe { $f::<S, $crate::factor::F32>($($arg),*) }
        }
        #[inline(always)]
        unsafe fn in_bf16<S: $crate::simd::Simd>($($arg: $ty),*) $(-> $ret)? {
            // SAFETY: as above.
            unsafe { $of_bf16 }
        }
        match $compute {
            $crate::Compute::F32 => dispatch!($isa, in_f32($($arg: $ty),*) $(-> $ret)?),
            $crate::Compute::Bf16 => dispatch!($isa, in_bf16($($arg: $ty),*) $(-> $ret)?),
        }
    }};
}
pub(crate) use dispatch_factors;

/// The same for operands that are packed for this one use: pairs that would be multiplied value by value are not made.
/// The values are the same, and so are the sums of products.
macro_rules! dispatch_own_factors {
    ($isa:expr, $compute:expr, $f:ident($($arg:ident: $ty:ty),* $(,)?)) => {
        $crate::factor::dispatch_factors!(
            @ $isa, $compute, $f, ($($arg: $ty),*), (),
            if S::PAIR_PARTS == 1 {
                $f::<S, $crate::factor::Bf16>($($arg),*)
            } else {
                $f::<S, $crate::factor::Widened>($($arg),*)
            }
        )
    };
}
pub(crate) use dispatch_own_factors;

/// `Simd::LANES` of an instruction set, for layouts that are fixed outside of it.
pub(crate) fn lanes(isa: Isa) -> usize {
    match isa {
        Isa::Avx512 | Isa::Avx512Bf16 => 16,
        Isa::Avx2 | Isa::Portable => 8,
        Isa::Neon => 4,
    }
}

/// Words of operands.
pub(crate) type Words = Aligned<u32>;

/// Words of a cache line.
pub(crate) const LINE: usize = LINE_BYTES / 4;

/// The same memory as values.
pub(crate) fn as_floats(words: &mut [u32]) -> &mut [f32] {
    // SAFETY: both have four bytes and the same alignment, and every word is a value.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), words.len()) }
}

/// What a word holds, and how words are multiplied.
pub(crate) trait Factor<S: Simd> {
    /// A vector of one part of a step.
    type Operand: Copy;
    /// Values of depth in a step.
    const STEP: usize;
    /// Parts of a step.
    const PARTS: usize;

    /// A part of a vector of words of the right operand.
    unsafe fn load(p: *const u32, part: usize) -> Self::Operand;
    /// One word of the left operand in every lane.
    unsafe fn splat(p: *const u32) -> Self::Operand;
    /// acc + a b, over the values of a part.
    unsafe fn madd(acc: S::V, a: Self::Operand, b: Self::Operand) -> S::V;
    /// Steps that [`Factor::madd_steps`] takes at once.
    const STEPS: usize = 1;
    /// `STEPS` steps of R rows by two vectors of columns, where they are more than one; the rows lie one after another.
    /// See [`Simd::fma_steps`].
    #[inline(always)]
    unsafe fn madd_steps<const R: usize>(
        _sums: &mut [[S::V; 2]; R],
        _rows: *const u32,
        _row_stride: usize,
        _columns: *const u32,
        _fetch: &mut Fetch,
    ) {
        unreachable!("there are no steps to take at once")
    }
    /// Words of the right operand of `k` consecutive values; an odd last value is paired with zero.
    /// `out` has room for 16 words more than are made.
    unsafe fn right_of_row(out: *mut u32, x: *const f32, k: usize);
    /// Words of the right operand of `width` columns: from `first` alone, or from the pairs of `first`
    /// and `second`; without a second row (null) the other half is zero.
    unsafe fn right_of_columns(out: *mut u32, first: *const f32, second: *const f32, width: usize);
    /// As `right_of_columns`, of whole vectors, between the steps of a tile.
    #[inline(always)]
    unsafe fn columns_aside(out: *mut u32, first: *const f32, second: *const f32, width: usize) {
        // SAFETY: forwarded to the caller.
        unsafe { Self::right_of_columns(out, first, second, width) }
    }
    /// As `right_of_row`, for the left operand: the words of a step follow one another.
    unsafe fn left_of_row(out: *mut u32, x: *const f32, k: usize);
    /// As `right_of_columns`, for the left operand: the words of a part lie `stride` after those of the
    /// part before.
    unsafe fn left_of_columns(
        out: *mut u32,
        stride: usize,
        first: *const f32,
        second: *const f32,
        width: usize,
    );
    /// As `left_of_row`, where the values are; `k` is a multiple of 16.
    unsafe fn left_in_place(x: *mut f32, k: usize);
    /// The values that are multiplied.
    unsafe fn round(x: S::V) -> S::V;
}

/// The left operand of a product: word of row r, step i and part j at
/// `ptr + r row_stride + (i PARTS + j) part_stride`.
#[derive(Clone, Copy)]
pub(crate) struct Left {
    pub(crate) ptr: *const u32,
    pub(crate) row_stride: usize,
    pub(crate) part_stride: usize,
}

/// One f32 a word.
pub(crate) struct F32;
/// Two bf16 a word.
pub(crate) struct Bf16;
/// One bf16 a word, as f32: what pairs become, or are packed as, where they would be multiplied value by value.
pub(crate) struct Widened;

impl<S: Simd> Factor<S> for F32 {
    type Operand = S::V;
    const STEP: usize = Compute::F32.step();
    const PARTS: usize = 1;

    const STEPS: usize = S::FMA_STEPS;

    #[inline(always)]
    unsafe fn madd_steps<const R: usize>(
        sums: &mut [[S::V; 2]; R],
        rows: *const u32,
        row_stride: usize,
        columns: *const u32,
        fetch: &mut Fetch,
    ) {
        // SAFETY: as above.
        unsafe { S::fma_steps(sums, rows.cast(), row_stride, columns.cast(), fetch) }
    }
    #[inline(always)]
    unsafe fn load(p: *const u32, _: usize) -> S::V {
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
    unsafe fn right_of_row(out: *mut u32, x: *const f32, k: usize) {
        // SAFETY: as above.
        unsafe { std::ptr::copy_nonoverlapping(x.cast(), out, k) }
    }
    #[inline(always)]
    unsafe fn right_of_columns(out: *mut u32, first: *const f32, _: *const f32, width: usize) {
        // Not the library's copy: a call would cost all registers.
        // SAFETY: as above; `j + n <= width`.
        unsafe {
            for_lanes!(S, width, |j, n| {
                row::store::<S>(out.add(j).cast(), row::load::<S>(first.add(j), n), n);
            });
        }
    }
    #[inline(always)]
    unsafe fn columns_aside(out: *mut u32, first: *const f32, _: *const f32, width: usize) {
        for j in (0..width).step_by(S::LANES) {
            // SAFETY: as above; the columns are whole vectors.
            unsafe { S::copy_aside(out.add(j).cast(), first.add(j)) };
        }
    }
    #[inline(always)]
    unsafe fn left_of_row(out: *mut u32, x: *const f32, k: usize) {
        // SAFETY: as above.
        unsafe { std::ptr::copy_nonoverlapping(x.cast(), out, k) }
    }
    #[inline(always)]
    unsafe fn left_of_columns(
        out: *mut u32,
        _: usize,
        first: *const f32,
        _: *const f32,
        width: usize,
    ) {
        // SAFETY: as above.
        unsafe { std::ptr::copy_nonoverlapping(first.cast(), out, width) }
    }
    #[inline(always)]
    unsafe fn left_in_place(_: *mut f32, _: usize) {}
    #[inline(always)]
    unsafe fn round(x: S::V) -> S::V {
        x
    }
}

impl<S: Simd> Factor<S> for Bf16 {
    type Operand = S::P;
    const STEP: usize = Compute::Bf16.step();
    const PARTS: usize = S::PAIR_PARTS;

    #[inline(always)]
    unsafe fn load(p: *const u32, part: usize) -> S::P {
        // SAFETY: by the contract of the trait (so for every block of this impl).
        unsafe { S::load_pairs(p.cast(), part) }
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
    unsafe fn right_of_row(out: *mut u32, x: *const f32, k: usize) {
        let out = out.cast::<bf16>();
        let mut i = 0;
        // SAFETY: as above; a vector has at most 16 lanes, so that the last store ends within the
        // 16 words more.
        unsafe {
            while i + S::LANES <= k {
                S::store_factors(out.add(i), S::load(x.add(i)));
                i += S::LANES;
            }
            if i < k {
                S::store_factors(out.add(i), S::load_partial(x.add(i), k - i));
            }
        }
    }
    #[inline(always)]
    unsafe fn right_of_columns(out: *mut u32, first: *const f32, second: *const f32, width: usize) {
        // SAFETY: as above; `j + n <= width`.
        unsafe {
            for_lanes!(S, width, |j, n| {
                let first = row::load::<S>(first.add(j), n);
                let second = load_or_zero::<S>(second, j, n);
                row::store::<S>(out.add(j).cast(), S::pair_up(first, second), n);
            });
        }
    }
    #[inline(always)]
    unsafe fn left_of_row(out: *mut u32, x: *const f32, k: usize) {
        // SAFETY: as above; `i + n <= k`.
        unsafe {
            if S::PAIR_PARTS == 1 {
                return <Bf16 as Factor<S>>::right_of_row(out, x, k);
            }
            Widened::of_row::<S>(out, x, k);
            if k % 2 == 1 {
                *out.add(k) = 0;
            }
        }
    }
    #[inline(always)]
    unsafe fn left_of_columns(
        out: *mut u32,
        stride: usize,
        first: *const f32,
        second: *const f32,
        width: usize,
    ) {
        // SAFETY: as above; `j + n <= width`.
        unsafe {
            if S::PAIR_PARTS == 1 {
                return <Bf16 as Factor<S>>::right_of_columns(out, first, second, width);
            }
            for_lanes!(S, width, |j, n| {
                let first = S::round_bf16(row::load::<S>(first.add(j), n));
                let second = S::round_bf16(load_or_zero::<S>(second, j, n));
                row::store::<S>(out.add(j).cast(), first, n);
                row::store::<S>(out.add(stride + j).cast(), second, n);
            });
        }
    }
    #[inline(always)]
    unsafe fn left_in_place(x: *mut f32, k: usize) {
        // SAFETY: as above; a vector is read before its words are written, which lie there or before.
        unsafe { <Bf16 as Factor<S>>::left_of_row(x.cast(), x, k) }
    }
    #[inline(always)]
    unsafe fn round(x: S::V) -> S::V {
        // SAFETY: as above.
        unsafe { S::round_bf16(x) }
    }
}

impl Widened {
    /// `k` words from as many values.
    #[inline(always)]
    unsafe fn of_row<S: Simd>(out: *mut u32, x: *const f32, k: usize) {
        // SAFETY: by the contract of the callers; `i + n <= k`.
        unsafe {
            for_lanes!(S, k, |i, n| {
                let x = S::round_bf16(row::load::<S>(x.add(i), n));
                row::store::<S>(out.add(i).cast(), x, n);
            });
        }
    }
}

impl<S: Simd> Factor<S> for Widened {
    type Operand = S::V;
    const STEP: usize = 1;
    const PARTS: usize = 1;

    const STEPS: usize = S::FMA_STEPS;

    #[inline(always)]
    unsafe fn madd_steps<const R: usize>(
        sums: &mut [[S::V; 2]; R],
        rows: *const u32,
        row_stride: usize,
        columns: *const u32,
        fetch: &mut Fetch,
    ) {
        // SAFETY: as above.
        unsafe { S::fma_steps(sums, rows.cast(), row_stride, columns.cast(), fetch) }
    }
    #[inline(always)]
    unsafe fn load(p: *const u32, _: usize) -> S::V {
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
    unsafe fn right_of_row(out: *mut u32, x: *const f32, k: usize) {
        // SAFETY: as above.
        unsafe { Widened::of_row::<S>(out, x, k) }
    }
    #[inline(always)]
    unsafe fn right_of_columns(out: *mut u32, first: *const f32, _: *const f32, width: usize) {
        // SAFETY: as above.
        unsafe { Widened::of_row::<S>(out, first, width) }
    }
    #[inline(always)]
    unsafe fn left_of_row(out: *mut u32, x: *const f32, k: usize) {
        // SAFETY: as above.
        unsafe { Widened::of_row::<S>(out, x, k) }
    }
    #[inline(always)]
    unsafe fn left_of_columns(
        out: *mut u32,
        _: usize,
        first: *const f32,
        _: *const f32,
        width: usize,
    ) {
        // SAFETY: as above.
        unsafe { Widened::of_row::<S>(out, first, width) }
    }
    #[inline(always)]
    unsafe fn left_in_place(x: *mut f32, k: usize) {
        // SAFETY: as above; each vector is read before it is written.
        unsafe { Widened::of_row::<S>(x.cast(), x, k) }
    }
    #[inline(always)]
    unsafe fn round(x: S::V) -> S::V {
        // SAFETY: as above.
        unsafe { S::round_bf16(x) }
    }
}

/// The `n` values at `row[j]`; zero where there is no row.
#[inline(always)]
unsafe fn load_or_zero<S: Simd>(row: *const f32, j: usize, n: usize) -> S::V {
    // SAFETY: a row that is there has `j + n` values.
    unsafe {
        if row.is_null() {
            S::splat(0.0)
        } else {
            row::load::<S>(row.add(j), n)
        }
    }
}
