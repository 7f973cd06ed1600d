//! Products of words by half as many multiplications (S. Winograd, "A new algorithm for inner product", IEEE
//! Transactions on Computers C-17, 1968):
//!
//! x_0 w_0 + x_1 w_1 = (x_0 + w_1) (x_1 + w_0) - x_0 x_1 - w_0 w_1
//!
//! Of the two products that are subtracted one belongs to a row and one to a column, so each is computed once for
//! many. Two additions of words take the place of a multiplication. An instruction multiplies two pairs of words or
//! four pairs of bytes, and x of 16 bits is two bytes: where the processor adds words beside its multiplications, this
//! is faster than products of bytes.
//!
//! Integers are exact: sums of two words stay below 2^15 (x is at most 32512, w a byte), and sums of products may wrap,
//! since what they are modulo 2^32 is all that is asked, and the whole is smaller. So bits are those of products of
//! bytes.
//!
//! The pairs are the values 0 and 2 of each step of four, and 1 and 3.

use super::rows::BYTE_WORDS;
use super::sums::steps;
use super::{Activations, Format, GROUP};
use crate::Isa;
use crate::gemm::plan::WIDE_ROWS;
use crate::isa::is_amd;
use crate::simd::Simd;

/// Rows from which on it pays to make words of a panel (docs/LOG.md).
pub(super) const ROWS: usize = 16;
const _: () = assert!(ROWS >= WIDE_ROWS, "rows of words are only for wide panels");

/// Whether an instruction set multiplies words faster than bytes, for q of so many bits. AMD's processors add words in
/// twice as many places as they multiply; AVX2 has no instruction that adds up four products of bytes, and words have
/// no room for the sums of two where q has 8 bits (docs/LOG.md).
pub(super) fn are_faster(isa: Isa, activations: Activations, bits: u32) -> bool {
    match (isa, activations) {
        (Isa::Avx512 | Isa::Avx512Bf16, Activations::Int16) => is_amd(),
        (Isa::Avx2, Activations::Int16) => true,
        (Isa::Avx2, Activations::Int8) => bits == 8,
        _ => false,
    }
}

/// What the sums of scale `i` of a group of a row start from: minus the products of its pairs.
#[inline(always)]
pub(super) unsafe fn start_of_row<S: Simd, const SCALES: usize>(ints: *const u32, i: usize) -> i32 {
    let mut products = [0; 2 * BYTE_WORDS];
    // SAFETY: the words of a group at `ints`, with memory for one more after them.
    unsafe {
        for i in (0..products.len()).step_by(S::LANES) {
            // Of a step the first two words with the other two; every second lane has nothing to say.
            let first = S::load_bytes(ints.add(i).cast());
            let second = S::load_bytes(ints.add(i + 1).cast());
            let both = S::dot_words(S::splat_int(0), first, second);
            S::store_int(products.as_mut_ptr().add(i), both);
        }
    }
    let count = products.len() / SCALES;
    let mut start = 0i32;
    for product in products[i * count..][..count].iter().step_by(2) {
        start = start.wrapping_sub(*product);
    }
    start
}

/// Bytes of a group of columns, both halves: for each scale what is subtracted, then of each step the two lower words of
/// both halves and the two upper ones.
pub(super) const fn integer_bytes(lanes: usize, scales: usize) -> usize {
    2 * lanes * (4 * scales + 2 * GROUP)
}

/// Words of a group of columns from its q.
#[inline(always)]
pub(super) unsafe fn widen<S: Simd, T: Format>(out: *mut u8, right: *const u8) {
    // SAFETY: as for `wide::widen` (so for every block below).
    unsafe {
        let mut sums = [[S::splat_int(0); 2]; 2];
        let offset = [-(T::OFFSET as i16); 2];
        let offset = S::splat_bytes(offset.as_ptr().cast());
        let steps = out.add(8 * S::LANES * T::SCALES);
        macro_rules! step {
            ($step:literal) => {
                for half in 0..2 {
                    let q = T::step::<S, $step>(right.add(half * 4 * S::LANES));
                    let [lower, upper] = S::to_words(q);
                    let lower = S::add_words(lower, offset);
                    let upper = S::add_words(upper, offset);
                    let sum = &mut sums[$step * T::SCALES / 8][half];
                    *sum = S::dot_words(*sum, lower, upper);
                    let out = steps.add(4 * S::LANES * (4 * $step + half));
                    S::store_bytes(out, lower);
                    S::store_bytes(out.add(8 * S::LANES), upper);
                }
            };
        }
        step!(0);
        step!(1);
        step!(2);
        step!(3);
        step!(4);
        step!(5);
        step!(6);
        step!(7);
        for (i, sums) in sums.into_iter().take(T::SCALES).enumerate() {
            for (half, sum) in sums.into_iter().enumerate() {
                S::store_int(out.cast::<i32>().add(S::LANES * (2 * i + half)), sum);
            }
        }
    }
}

/// What the sums of scale `i` of a group start from: that of the row, less the products of pairs of the columns.
#[inline(always)]
pub(super) unsafe fn start<S: Simd>(row: i32, right: *const u8, i: usize) -> [S::I; 2] {
    // SAFETY: as above.
    unsafe {
        let columns = right.cast::<i32>().add(2 * S::LANES * i);
        let row = S::splat_int(row);
        [
            S::sub_int(row, S::load_int(columns)),
            S::sub_int(row, S::load_int(columns.add(S::LANES))),
        ]
    }
}

/// See [`sums::add`](super::sums::add).
#[inline(always)]
pub(super) unsafe fn add<S: Simd, T: Format, const R: usize, const I: usize>(
    sums: &mut [[S::I; 2]; R],
    ints: *const u32,
    row_stride: usize,
    right: *const u8,
) {
    // SAFETY: as above.
    unsafe {
        let first = steps::<T>(I).start;
        let ints = ints.add(2 * first);
        let steps = right.add(8 * S::LANES * T::SCALES + 16 * S::LANES * first);
        match T::SCALES {
            1 => S::dot_sums::<R, 8>(sums, ints, row_stride, steps),
            _ => S::dot_sums::<R, 4>(sums, ints, row_stride, steps),
        }
    }
}
