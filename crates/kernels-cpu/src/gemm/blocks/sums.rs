//! Sums of products of integers, over the steps of a group that share a scale.

use super::rows::BYTE_WORDS;
use super::{Format, GROUP, words};
use crate::simd::Simd;
use std::ops::Range;

/// Adds the steps of scale I of a group of R rows. `ints` are those of the group in the first row, of two bytes each where
/// they are `fine`; rows lie `row_stride` apart.
///
/// # Safety
/// By the layout of rows and panels (so for every function of this file).
#[inline(always)]
pub(super) unsafe fn add<S: Simd, T: Format, const R: usize, const I: usize>(
    sums: &mut [[S::I; 2]; R],
    ints: *const u32,
    row_stride: usize,
    right: *const u8,
    fine: bool,
) {
    // SAFETY: as above (so for every block of this file).
    unsafe {
        if T::WORDS {
            return words::add::<S, T, R, I>(sums, ints, row_stride, right);
        }
        if T::IS_WIDE && S::BYTES_TO_WORDS && !fine {
            return add_wide::<S, T, R, I>(sums, ints, row_stride, right);
        }
        let steps = steps::<T>(I);
        let mut lower = Sums::<S, R>::of(*sums);
        macro_rules! each_step {
            ($($step:literal)*) => {
                if fine {
                    // Both bytes of a row together: a step of the panel is read and taken apart once.
                    let mut upper = Sums::<S, R>::of([[S::splat_int(0); 2]; R]);
                    $(if steps.start <= $step && $step < steps.end {
                        let w = columns::<S, T, $step>(right);
                        upper.add::<T>(ints.add(BYTE_WORDS), row_stride, w, $step);
                        lower.add::<T>(ints, row_stride, w, $step);
                    })*
                    for r in 0..R {
                        for half in 0..2 {
                            let int = &mut lower.ints[r][half];
                            *int = S::next_byte(upper.ints[r][half], *int);
                        }
                    }
                } else {
                    $(if steps.start <= $step && $step < steps.end {
                        let w = columns::<S, T, $step>(right);
                        lower.add::<T>(ints, row_stride, w, $step);
                    })*
                }
            };
        }
        each_step!(0 1 2 3 4 5 6 7);
        *sums = lower.ints;
    }
}

/// Both vectors of a step of the panel.
#[inline(always)]
unsafe fn columns<S: Simd, T: Format, const STEP: usize>(right: *const u8) -> [S::B; 2] {
    // SAFETY: as above.
    unsafe {
        [
            T::step::<S, STEP>(right),
            T::step::<S, STEP>(right.add(4 * S::LANES)),
        ]
    }
}

/// The steps of scale `i`.
#[inline(always)]
pub(super) const fn steps<T: Format>(i: usize) -> Range<usize> {
    let each = GROUP / 4 / T::SCALES;
    i * each..(i + 1) * each
}

/// As many steps as words have room for, of those with one scale: pairs of products of q with bytes from -128.
const fn steps_in_words<T: Format>() -> usize {
    let pair = 2 * 128 * ((1 << T::BITS) - 1);
    match i16::MAX as usize / pair {
        8.. if T::SCALES == 1 => 8,
        4.. => 4,
        2.. => 2,
        _ => 1,
    }
}

/// Words are added up by their products with these.
#[inline(always)]
unsafe fn ones<S: Simd>() -> S::B {
    // SAFETY: as above.
    unsafe { S::splat_bytes([1i16; 2].as_ptr().cast()) }
}

/// [`add`] for bytes of a wide panel, where pairs are added up as words.
#[inline(always)]
unsafe fn add_wide<S: Simd, T: Format, const R: usize, const I: usize>(
    sums: &mut [[S::I; 2]; R],
    ints: *const u32,
    row_stride: usize,
    right: *const u8,
) {
    // SAFETY: as above.
    unsafe {
        let mut words = [[std::mem::zeroed(); 2]; R];
        for first in steps::<T>(I).step_by(steps_in_words::<T>()) {
            let (ints, right) = (ints.add(first), right.add(8 * S::LANES * first));
            match steps_in_words::<T>() {
                2 => S::dot_bytes_to_words::<R, 2>(&mut words, ints, row_stride, right),
                4 => S::dot_bytes_to_words::<R, 4>(&mut words, ints, row_stride, right),
                8 => S::dot_bytes_to_words::<R, 8>(&mut words, ints, row_stride, right),
                _ => unreachable!("wide panels have few bits"),
            }
            for r in 0..R {
                for half in 0..2 {
                    sums[r][half] = S::dot_words(sums[r][half], words[r][half], ones::<S>());
                }
            }
        }
    }
}

/// Sums that grow by a step at a time.
struct Sums<S: Simd, const R: usize> {
    ints: [[S::I; 2]; R],
    /// Of the last steps, where pairs are added up as words.
    words: [[S::B; 2]; R],
}

impl<S: Simd, const R: usize> Sums<S, R> {
    #[inline(always)]
    unsafe fn of(ints: [[S::I; 2]; R]) -> Self {
        // SAFETY: as above.
        unsafe {
            // Bytes may be anything.
            Sums {
                ints,
                words: [[std::mem::zeroed(); 2]; R],
            }
        }
    }

    /// Adds step `step`. `w` are both vectors of its columns.
    #[inline(always)]
    unsafe fn add<T: Format>(
        &mut self,
        ints: *const u32,
        row_stride: usize,
        w: [S::B; 2],
        step: usize,
    ) {
        // SAFETY: as above.
        unsafe {
            for r in 0..R {
                let x = S::splat_bytes(ints.add(r * row_stride + step).cast());
                for half in 0..2 {
                    let sum = &mut self.ints[r][half];
                    if S::BYTES_TO_WORDS && steps_in_words::<T>() > 1 {
                        let words = &mut self.words[r][half];
                        let pairs = S::dot_pairs_of_bytes(w[half], x);
                        *words = match step % steps_in_words::<T>() {
                            0 => pairs,
                            _ => S::add_words(*words, pairs),
                        };
                        if (step + 1) % steps_in_words::<T>() == 0 {
                            *sum = S::dot_words(*sum, *words, ones::<S>());
                        }
                    } else if T::BITS < 8 {
                        *sum = S::dot_bytes::<true>(*sum, w[half], x);
                    } else {
                        *sum = S::dot_bytes::<false>(*sum, w[half], x);
                    }
                }
            }
        }
    }
}
