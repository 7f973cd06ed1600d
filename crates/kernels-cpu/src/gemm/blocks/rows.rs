//! Rows of the left operand as integers.

use super::{GROUP, words};
use crate::Isa;
use crate::simd::Simd;

/// How the integers of a row lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// A byte each.
    Bytes,
    /// Lower bytes, then upper ones: a value is 256 upper + lower.
    TwoBytes,
    /// A word each.
    Words,
}

/// What is before the integers of a group of a row.
#[repr(C, align(32))]
pub(super) struct Head {
    pub(super) scale: f32,
    /// What the integer sums start from, for each scale of a group of the right operand: -offset times the sum of the
    /// integers; of words, what a product of sums has too much of them ([`super::words`]).
    pub(super) start: [i32; 2],
    /// scale times the sum of the integers, likewise.
    pub(super) term: [f32; 2],
}

/// Words before the integers, and of a byte of each.
pub(super) const HEAD_WORDS: usize = size_of::<Head>() / 4;
pub(super) const BYTE_WORDS: usize = GROUP / 4;

impl Form {
    /// Words of a group of a row.
    #[inline(always)]
    pub(super) const fn words(self) -> usize {
        match self {
            Form::Bytes => HEAD_WORDS + BYTE_WORDS,
            Form::TwoBytes | Form::Words => HEAD_WORDS + 2 * BYTE_WORDS,
        }
    }
}

/// Below this magnitude a group is zero: the largest integer divided by it would not be finite.
const TINY: f32 = 1e-33;

/// `k` values of a row, in whole groups, as integers of at most `limit`, with what follows from them for the offset and the scales of a group of a
/// type.
pub(super) fn quantise(
    isa: Isa,
    form: Form,
    limit: f32,
    offset: i32,
    scales: usize,
    out: *mut u32,
    x: *const f32,
    k: usize,
) {
    dispatch_integers!(
        isa,
        quantise_in(
            form: Form,
            limit: f32,
            offset: i32,
            scales: usize,
            out: *mut u32,
            x: *const f32,
            k: usize,
        )
    );
}

#[inline(always)]
unsafe fn quantise_in<S: Simd>(
    form: Form,
    limit: f32,
    offset: i32,
    scales: usize,
    out: *mut u32,
    x: *const f32,
    k: usize,
) {
    macro_rules! groups {
        ($form:path, $scales:literal) => {
            for g in 0..k / GROUP {
                let group = out.add($form.words() * g);
                integers::<S, $scales>($form, group, x.add(GROUP * g), limit, offset);
            }
        };
    }
    // SAFETY: the caller has whole groups, and room for as many.
    unsafe {
        match (form, scales) {
            (Form::Bytes, 1) => groups!(Form::Bytes, 1),
            (Form::Bytes, _) => groups!(Form::Bytes, 2),
            (Form::TwoBytes, 1) => groups!(Form::TwoBytes, 1),
            (Form::TwoBytes, _) => groups!(Form::TwoBytes, 2),
            (Form::Words, 1) => groups!(Form::Words, 1),
            (Form::Words, _) => groups!(Form::Words, 2),
        }
    }
}

/// A group of 32 values as integers, with the sums of all of them, or of either half.
#[inline(always)]
unsafe fn integers<S: Simd, const SCALES: usize>(
    form: Form,
    out: *mut u32,
    x: *const f32,
    limit: f32,
    offset: i32,
) {
    const { assert!((GROUP / 2) % S::LANES == 0) };
    // SAFETY: 32 values at `x`, and room for the words of a group.
    unsafe {
        let (head, ints) = (&mut *out.cast::<Head>(), out.add(HEAD_WORDS));
        let mut largest = S::splat(0.0);
        for i in (0..GROUP).step_by(S::LANES) {
            let x = S::load(x.add(i));
            largest = S::max(largest, S::max(x, S::sub(S::splat(0.0), x)));
        }
        let largest = S::reduce_max(largest);
        let inverse = if largest > TINY { limit / largest } else { 0.0 };
        let mut sums = [S::splat(0.0); SCALES];
        for i in (0..GROUP).step_by(S::LANES) {
            let mut q = S::round(S::mul(S::load(x.add(i)), S::splat(inverse)));
            let sum = &mut sums[i * SCALES / GROUP];
            *sum = S::add(*sum, q);
            if form == Form::Words {
                S::store_words(ints.cast::<i16>().add(i), q);
                continue;
            }
            if form == Form::TwoBytes {
                // The half of a unit keeps the lower byte from being 128.
                let (unit, half) = (S::splat(1.0 / 256.0), S::splat(0.5 / 256.0));
                let upper = S::round(S::fma(q, unit, half));
                S::store_ints(ints.add(BYTE_WORDS).cast::<i8>().add(i), upper);
                q = S::fma(upper, S::splat(-256.0), q);
            }
            S::store_ints(ints.cast::<i8>().add(i), q);
        }
        head.scale = largest * (1.0 / limit);
        // Not by `map`: what is compiled for one instruction set must not cross a function that is not.
        for (i, sum) in sums.into_iter().enumerate() {
            let sum = S::reduce_add(sum);
            head.start[i] = match form {
                Form::Words => words::start_of_row::<S, SCALES>(ints, i),
                Form::Bytes | Form::TwoBytes => -offset * sum as i32,
            };
            // Times 0: nothing, or not a number where a value is not finite.
            head.scale += sum * 0.0;
            head.term[i] = head.scale * sum;
        }
    }
}
