//! A stretch of a panel made wide: what many rows would each take apart is taken apart once.

use super::micro::{Panels, heads, scales};
use super::rows::Form;
use super::{Format, GROUP, group_bytes, head_bytes, is_taken_apart, vector, words};
use crate::Isa;
use crate::gemm::aside::ForBlocks;
use crate::gemm::micro::{self, Tiles};
use crate::simd::Simd;

/// A wide form: scales of a group, each perhaps with a term, and bits of the integers.
#[derive(Clone, Copy)]
pub(in crate::gemm) struct Wide {
    pub(super) scales: usize,
    pub(super) has_terms: bool,
    pub(super) bits: u32,
}

/// Bits of what is made of words.
pub(super) const WORD_BITS: u32 = 16;

/// The format of a wide form: most of these nine serve several types, of at most so many bits.
struct WideFormat<const SCALES: usize, const HAS_TERMS: bool, const BITS: u32>;

impl<const SCALES: usize, const HAS_TERMS: bool, const BITS: u32> Format
    for WideFormat<SCALES, HAS_TERMS, BITS>
{
    const IS_WIDE: bool = true;
    const WORDS: bool = BITS == WORD_BITS;
    const GROUPS: usize = 1;
    const SCALES: usize = SCALES;
    const HAS_TERMS: bool = HAS_TERMS;
    const OFFSET: i32 = 0; // rows were made for what was packed, and words have none
    const BITS: u32 = BITS;
    const VECTORS: usize = if Self::WORDS { GROUP / 2 } else { GROUP / 4 };

    #[inline(always)]
    unsafe fn step<S: Simd, const STEP: usize>(half: *const u8) -> S::B {
        // SAFETY: forwarded.
        unsafe { vector::<S>(half, STEP) }
    }
}

/// Bytes of a group of a format when it is wide.
const fn wide_group_bytes<T: Format>(lanes: usize, form: Form) -> usize {
    macro_rules! of {
        ($scales:literal, $terms:literal) => {
            match form {
                Form::Words => group_bytes::<WideFormat<$scales, $terms, WORD_BITS>>(lanes),
                _ => group_bytes::<WideFormat<$scales, $terms, 0>>(lanes),
            }
        };
    }
    match (T::SCALES, T::HAS_TERMS) {
        (1, false) => of!(1, false),
        (1, true) => of!(1, true),
        (_, false) => of!(2, false),
        (_, true) => of!(2, true),
    }
}

/// Words that a block of a panel takes when it is wide for rows of a form; 0 where it does not become so.
pub(super) const fn wide_words<T: Format>(lanes: usize, form: Form) -> usize {
    match form {
        Form::Bytes | Form::TwoBytes if !is_taken_apart::<T>() => 0,
        _ => T::GROUPS * wide_group_bytes::<T>(lanes, form) / 4,
    }
}

/// Computes tiles of a wide panel.
pub(super) fn wide_tiles(isa: Isa, wide: Wide, tiles: &mut Tiles<ForBlocks>) {
    macro_rules! of {
        ($scales:literal, $terms:literal, $bits:expr) => {{
            #[inline(always)]
            unsafe fn tiles_of<S: Simd>(tiles: &mut Tiles<ForBlocks>) {
                // SAFETY: forwarded to the caller.
                unsafe { micro::tiles::<S, Panels<WideFormat<$scales, $terms, { $bits }>>, _>(tiles) }
            }
            dispatch_integers!(isa, tiles_of(tiles: &mut Tiles<ForBlocks>));
        }};
    }
    match (wide.scales, wide.has_terms, wide.bits) {
        (1, false, WORD_BITS) => of!(1, false, WORD_BITS),
        (1, false, _) => of!(1, false, 4),
        (1, true, WORD_BITS) => of!(1, true, WORD_BITS),
        (1, true, 4) => of!(1, true, 4),
        (1, true, _) => of!(1, true, 5),
        (_, false, WORD_BITS) => of!(2, false, WORD_BITS),
        (_, false, _) => of!(2, false, 6),
        (_, true, WORD_BITS) => of!(2, true, WORD_BITS),
        (_, true, _) => of!(2, true, 2),
    }
}

/// Makes `blocks` blocks wide.
#[inline(always)]
pub(super) unsafe fn widen<S: Simd, T: Format>(
    form: Form,
    mut out: *mut u8,
    mut right: *const u8,
    blocks: usize,
) {
    // SAFETY: the caller has room for them (so for every block below).
    unsafe {
        for _ in 0..blocks {
            let heads = heads::<S, T>(right);
            right = right.add(head_bytes::<T>(S::LANES));
            for _ in 0..T::GROUPS {
                let bytes = if form == Form::Words {
                    words::widen::<S, T>(out, right);
                    words::integer_bytes(S::LANES, T::SCALES)
                } else {
                    for half in 0..2 {
                        let from = right.add(half * 4 * S::LANES);
                        let to = out.add(half * 4 * S::LANES);
                        steps::<S, T>(to, from);
                    }
                    2 * S::LANES * GROUP
                };
                let to = out.add(bytes).cast::<f32>();
                for i in 0..T::SCALES {
                    let [scale, term] = scales::<S, T>(right, heads, i);
                    let at = to.add(2 * S::LANES * i);
                    S::store(at, scale[0]);
                    S::store(at.add(S::LANES), scale[1]);
                    if T::HAS_TERMS {
                        let at = at.add(2 * S::LANES * T::SCALES);
                        S::store(at, term[0]);
                        S::store(at.add(S::LANES), term[1]);
                    }
                }
                right = right.add(group_bytes::<T>(S::LANES));
                out = out.add(wide_group_bytes::<T>(S::LANES, form));
            }
        }
    }
}

/// The eight steps of one half of a group.
#[inline(always)]
unsafe fn steps<S: Simd, T: Format>(out: *mut u8, half: *const u8) {
    macro_rules! each {
        ($($step:literal)*) => {
            // SAFETY: as above.
            unsafe {
                $(S::store_bytes(out.add(8 * S::LANES * $step), T::step::<S, $step>(half));)*
            }
        };
    }
    each!(0 1 2 3 4 5 6 7);
}
