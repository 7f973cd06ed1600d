//! A stretch of a panel made wide: what many rows would each take apart is taken apart once.

use super::micro::{Panels, heads, scales};
use super::{Format, GROUP, group_bytes, head_bytes, vector};
use crate::Isa;
use crate::gemm::aside::ForBlocks;
use crate::gemm::micro::{self, Tiles};
use crate::simd::Simd;

/// A wide form: scales of a group, each perhaps with a term.
#[derive(Clone, Copy)]
pub(in crate::gemm) enum Wide {
    One,
    OneWithTerm,
    Two,
    TwoWithTerms,
}

/// The format of a wide form: one of these four serves several types.
struct WideFormat<const SCALES: usize, const HAS_TERMS: bool>;

impl<const SCALES: usize, const HAS_TERMS: bool> Format for WideFormat<SCALES, HAS_TERMS> {
    const WIDE: Option<Wide> = None;
    const IS_WIDE: bool = true;
    const GROUPS: usize = 1;
    const SCALES: usize = SCALES;
    const HAS_TERMS: bool = HAS_TERMS;
    const OFFSET: i32 = 0; // rows were made for what was packed
    const SMALL: bool = true;
    const VECTORS: usize = GROUP / 4;

    #[inline(always)]
    unsafe fn step<S: Simd, const STEP: usize>(half: *const u8) -> S::B {
        // SAFETY: forwarded.
        unsafe { vector::<S>(half, STEP) }
    }
}

/// Bytes of a group of a format when it is wide.
const fn wide_group_bytes<T: Format>(lanes: usize) -> usize {
    match T::WIDE {
        None => 0,
        Some(Wide::One) => group_bytes::<WideFormat<1, false>>(lanes),
        Some(Wide::OneWithTerm) => group_bytes::<WideFormat<1, true>>(lanes),
        Some(Wide::Two) => group_bytes::<WideFormat<2, false>>(lanes),
        Some(Wide::TwoWithTerms) => group_bytes::<WideFormat<2, true>>(lanes),
    }
}

/// Words that a block of a panel takes when it is wide; 0 where it does not become so.
pub(super) const fn wide_words<T: Format>(lanes: usize) -> usize {
    T::GROUPS * wide_group_bytes::<T>(lanes) / 4
}

/// Computes tiles of a wide panel.
pub(super) fn wide_tiles(isa: Isa, wide: Wide, tiles: &mut Tiles<ForBlocks>) {
    macro_rules! of {
        ($scales:literal, $terms:literal) => {{
            #[inline(always)]
            unsafe fn tiles_of<S: Simd>(tiles: &mut Tiles<ForBlocks>) {
                // SAFETY: forwarded to the caller.
                unsafe { micro::tiles::<S, Panels<WideFormat<$scales, $terms>>, _>(tiles) }
            }
            dispatch_integers!(isa, tiles_of(tiles: &mut Tiles<ForBlocks>));
        }};
    }
    match wide {
        Wide::One => of!(1, false),
        Wide::OneWithTerm => of!(1, true),
        Wide::Two => of!(2, false),
        Wide::TwoWithTerms => of!(2, true),
    }
}

/// Makes `blocks` blocks wide.
#[inline(always)]
pub(super) unsafe fn widen<S: Simd, T: Format>(
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
                for half in 0..2 {
                    let from = right.add(half * 4 * S::LANES);
                    let to = out.add(half * 4 * S::LANES);
                    steps::<S, T>(to, from);
                }
                let to = out.add(2 * S::LANES * GROUP).cast::<f32>();
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
                out = out.add(wide_group_bytes::<T>(S::LANES));
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
