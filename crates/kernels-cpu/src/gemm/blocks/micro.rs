//! Rows as integers, and the register tile over blocks.

use super::{Activations, Format, GROUP, group_bytes, head_bytes, tile_rows};
use crate::Isa;
use crate::gemm::aside::{Aside, ForBlocks};
use crate::gemm::micro::{Chain, TileKernel, Tiles};
use crate::isa::{amd_family, is_amd};
use crate::simd::{Simd, prefetch};
use half::f16;
use std::marker::PhantomData;

/// Panels of a format.
pub(super) struct Panels<T>(PhantomData<T>);

/// Rows of a tile at most, of panels that are made wide for more.
pub(super) const FEW_ROWS: usize = 3;

/// A group of a row: a cache line. Upper bytes, where integers have 16 bits, follow it.
#[repr(C, align(32))]
struct Group {
    /// The integers, or their lower bytes: a value is 256 high + low.
    low: [i8; GROUP],
    scale: f32,
    /// -offset times the sum of the integers, for each scale of a group of the right operand.
    start: [i32; 2],
    /// scale times the sum of the integers, likewise.
    term: [f32; 2],
}

/// Bytes ahead of the group that is multiplied, of those that are fetched where rows are few and a panel comes
/// from memory: 4 KiB in types of four bits, 2 KiB in those of eight.
const fn ahead<T: Format>() -> usize {
    (16 << 10) / T::VECTORS
}

/// Whether `rows` rows fetch groups ahead. One row takes so few instructions that a processor may look far enough ahead
/// itself, and is faster alone (docs/LOG.md): AMD's with whole bytes, its Zen 4 with four bits as well (Zen 3, of the
/// same family, was not measured). A panel that was made wide is in the cache.
#[inline(always)]
fn fetches<T: Format>(rows: usize) -> bool {
    match T::VECTORS {
        _ if rows > 1 => true,
        4 => amd_family() != Some(25),
        8 => !T::IS_WIDE && !is_amd(),
        _ => true,
    }
}

const GROUP_WORDS: usize = size_of::<Group>() / 4;

/// Words of a group of a row with its upper bytes, if it has them.
#[inline(always)]
pub(super) const fn left_words(fine: bool) -> usize {
    if fine {
        GROUP_WORDS + GROUP / 4
    } else {
        GROUP_WORDS
    }
}

/// Below this magnitude a group is zero: the largest integer divided by it would not be finite.
const TINY: f32 = 1e-33;

/// `k` values of a row, in whole groups, with what follows from the sums for the offset and the scales of a
/// group of a type.
pub(super) fn quantise(
    isa: Isa,
    activations: Activations,
    offset: i32,
    scales: usize,
    out: *mut u32,
    x: *const f32,
    k: usize,
) {
    dispatch_integers!(
        isa,
        quantise_in(
            activations: Activations,
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
    activations: Activations,
    offset: i32,
    scales: usize,
    out: *mut u32,
    x: *const f32,
    k: usize,
) {
    macro_rules! groups {
        ($fine:literal, $scales:literal) => {
            for g in 0..k / GROUP {
                let words = out.add(left_words($fine) * g);
                integers::<S, $fine, $scales>(words, x.add(GROUP * g), offset);
            }
        };
    }
    // SAFETY: the caller has whole groups, and room for as many.
    unsafe {
        match (activations, scales) {
            (Activations::Int8, 1) => groups!(false, 1),
            (Activations::Int8, _) => groups!(false, 2),
            (Activations::Int16, 1) => groups!(true, 1),
            (Activations::Int16, _) => groups!(true, 2),
        }
    }
}

/// A group of 32 values as integers, with the sums of all of them, or of either half.
#[inline(always)]
unsafe fn integers<S: Simd, const FINE: bool, const SCALES: usize>(
    out: *mut u32,
    x: *const f32,
    offset: i32,
) {
    const { assert!((GROUP / 2) % S::LANES == 0) };
    let limit = if FINE { 127.0 * 256.0 } else { 127.0 };
    // SAFETY: 32 values at `x`, and room for the words of a group.
    unsafe {
        let (group, high) = (&mut *out.cast::<Group>(), out.add(GROUP_WORDS).cast::<i8>());
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
            if FINE {
                // The half of a unit keeps low from being 128.
                let (unit, half) = (S::splat(1.0 / 256.0), S::splat(0.5 / 256.0));
                let upper = S::round(S::fma(q, unit, half));
                S::store_ints(high.add(i), upper);
                q = S::fma(upper, S::splat(-256.0), q);
            }
            S::store_ints(group.low.as_mut_ptr().add(i), q);
        }
        group.scale = largest * (1.0 / limit);
        for (i, sum) in sums.into_iter().enumerate() {
            let sum = S::reduce_add(sum);
            group.start[i] = -offset * sum as i32;
            // Times 0: nothing, or not a number where a value is not finite.
            group.scale += sum * 0.0;
            group.term[i] = group.scale * sum;
        }
    }
}

impl<S: Simd, T: Format> TileKernel<S, ForBlocks<'_>> for Panels<T> {
    const ROWS: usize = if T::WIDE.is_none() || tile_rows::<S>() < FEW_ROWS {
        tile_rows::<S>()
    } else {
        FEW_ROWS
    };

    #[inline(always)]
    unsafe fn tiles_of<const R: usize>(tiles: &mut Tiles<ForBlocks>) {
        let panels = tiles.strip::<R>();
        let Tiles {
            count,
            steps,
            left: a,
            stride,
            chain,
            fine,
            ..
        } = *tiles;
        let fetches = fetches::<T>(R);
        let mut later = tiles.aside.fetch(steps * T::GROUPS);
        let (mut rows, mut to) = (a.ptr, tiles.out);
        for _ in 0..count {
            let mut right = tiles.right.cast::<u8>();
            let mut out = to;
            for _ in 0..panels {
                // SAFETY: by the contract of the trait.
                unsafe {
                    let mut sums = [[S::splat(0.0); 2]; R];
                    if chain == Chain::Continue {
                        for r in 0..R {
                            let row = out.add(r * stride);
                            sums[r] = [S::load(row), S::load(row.add(S::LANES))];
                        }
                    }
                    let mut left = rows;
                    for _ in 0..steps {
                        let heads = heads::<S, T>(right);
                        right = right.add(head_bytes::<T>(S::LANES));
                        for _ in 0..T::GROUPS {
                            if R > FEW_ROWS {
                                later.step::<2>();
                            } else if fetches {
                                for line in (0..group_bytes::<T>(S::LANES)).step_by(64) {
                                    prefetch(right.wrapping_add(ahead::<T>() + line));
                                }
                            }
                            group::<S, T, R>(&mut sums, left, a.row_stride, right, heads, fine);
                            left = left.add(left_words(fine));
                            right = right.add(group_bytes::<T>(S::LANES));
                        }
                    }
                    for r in 0..R {
                        let row = out.add(r * stride);
                        S::store(row, sums[r][0]);
                        S::store(row.add(S::LANES), sums[r][1]);
                    }
                    out = out.add(2 * S::LANES);
                }
            }
            rows = rows.wrapping_add(R * a.row_stride);
            to = to.wrapping_add(R * stride);
        }
        tiles.aside.end(later);
        tiles.advance(count);
    }
}

/// Scales of a block, and of what is added: for both halves.
pub(super) type Heads<S> = [[<S as Simd>::V; 2]; 2];

/// Those at the start of a block.
#[inline(always)]
pub(super) unsafe fn heads<S: Simd, T: Format>(block: *const u8) -> Heads<S> {
    // SAFETY: by the layout of a panel (so for every block below).
    unsafe {
        let none = [S::splat(0.0); 2];
        let halves = |p: *const f16| [S::load_halves(p), S::load_halves(p.add(S::LANES))];
        let head = block.cast::<f16>();
        match (T::IS_WIDE, T::HAS_TERMS) {
            (true, _) => [none, none],
            (_, false) => [halves(head), none],
            (_, true) => [halves(head), halves(head.add(2 * S::LANES))],
        }
    }
}

/// Scale `i` of a group, and what is added.
#[inline(always)]
pub(super) unsafe fn scales<S: Simd, T: Format>(
    group: *const u8,
    heads: Heads<S>,
    i: usize,
) -> Heads<S> {
    // SAFETY: as above.
    unsafe {
        let at = group.add(8 * S::LANES * T::VECTORS);
        if T::IS_WIDE {
            let at = at.cast::<f32>().add(2 * S::LANES * i);
            let two = |p: *const f32| [S::load(p), S::load(p.add(S::LANES))];
            return match T::HAS_TERMS {
                true => [two(at), two(at.add(2 * S::LANES * T::SCALES))],
                false => [two(at), heads[1]],
            };
        }
        if T::GROUPS == 1 {
            return heads;
        }
        let [d, m] = heads;
        let s = at.add(2 * S::LANES * i);
        let scale = [
            S::mul(d[0], S::load_i8(s.cast())),
            S::mul(d[1], S::load_i8(s.add(S::LANES).cast())),
        ];
        if !T::HAS_TERMS {
            return [scale, m];
        }
        let t = s.add(2 * S::LANES * T::SCALES);
        let term = [
            S::mul(m[0], S::load_u8(t)),
            S::mul(m[1], S::load_u8(t.add(S::LANES))),
        ];
        [scale, term]
    }
}

/// One group of the right operand with the same group of R rows. Of six rows three follow on three: the sums of both
/// bytes of all six have no registers. On Zen 4 most products with rows of 16 bits are 2 to 5 % faster so (docs/LOG.md).
#[inline(always)]
unsafe fn group<S: Simd, T: Format, const R: usize>(
    sums: &mut [[S::V; 2]; R],
    left: *const u32,
    row_stride: usize,
    right: *const u8,
    heads: Heads<S>,
    fine: bool,
) {
    // SAFETY: as above.
    unsafe {
        macro_rules! rows {
            ($count:literal from $first:literal) => {
                if let Some(sums) = sums[$first..].first_chunk_mut::<$count>() {
                    let left = left.add($first * row_stride);
                    group_of::<S, T, $count>(sums, left, row_stride, right, heads, fine);
                }
            };
        }
        match R {
            5 => {
                rows!(3 from 0);
                rows!(2 from 3);
            }
            6 => {
                rows!(3 from 0);
                rows!(3 from 3);
            }
            _ => group_of::<S, T, R>(sums, left, row_stride, right, heads, fine),
        }
    }
}

/// The same, of all rows together.
#[inline(always)]
unsafe fn group_of<S: Simd, T: Format, const R: usize>(
    sums: &mut [[S::V; 2]; R],
    left: *const u32,
    row_stride: usize,
    right: *const u8,
    heads: Heads<S>,
    fine: bool,
) {
    // SAFETY: as above.
    unsafe {
        macro_rules! part {
            ($i:literal: $($step:literal)*) => {
                let mut ints = start::<S, R>(left, row_stride, $i);
                if fine {
                    // Both bytes together: a step of the right operand is read and taken apart once.
                    let mut high = [[S::splat_int(0); 2]; R];
                    $(
                        let w = weights::<S, T, $step>(right);
                        let x = left.add($step);
                        dot::<S, T, R>(&mut high, x.add(GROUP_WORDS), row_stride, w);
                        dot::<S, T, R>(&mut ints, x, row_stride, w);
                    )*
                    for r in 0..R {
                        ints[r][0] = S::next_byte(high[r][0], ints[r][0]);
                        ints[r][1] = S::next_byte(high[r][1], ints[r][1]);
                    }
                } else {
                    $(
                        let w = weights::<S, T, $step>(right);
                        dot::<S, T, R>(&mut ints, left.add($step), row_stride, w);
                    )*
                }
                let [scale, term] = scales::<S, T>(right, heads, $i);
                fold::<S, T, R>(sums, &ints, left, row_stride, scale, term, $i);
            };
        }
        if T::SCALES == 1 {
            part!(0: 0 1 2 3 4 5 6 7);
        } else {
            part!(0: 0 1 2 3);
            part!(1: 4 5 6 7);
        }
    }
}

/// The group of row r.
#[inline(always)]
unsafe fn row(left: *const u32, row_stride: usize, r: usize) -> *const Group {
    // SAFETY: as above.
    unsafe { left.add(r * row_stride).cast() }
}

/// What the sums of the lower bytes start from.
#[inline(always)]
unsafe fn start<S: Simd, const R: usize>(
    left: *const u32,
    row_stride: usize,
    i: usize,
) -> [[S::I; 2]; R] {
    // SAFETY: as above.
    unsafe {
        let mut ints = [[S::splat_int(0); 2]; R];
        for r in 0..R {
            ints[r] = [S::splat_int((*row(left, row_stride, r)).start[i]); 2];
        }
        ints
    }
}

/// What a step of a group multiplies: both vectors of columns.
#[inline(always)]
unsafe fn weights<S: Simd, T: Format, const STEP: usize>(right: *const u8) -> [S::B; 2] {
    // SAFETY: as above.
    unsafe {
        [
            T::step::<S, STEP>(right),
            T::step::<S, STEP>(right.add(4 * S::LANES)),
        ]
    }
}

/// One step. `left` is that of the first row, of its lower or its upper bytes.
#[inline(always)]
unsafe fn dot<S: Simd, T: Format, const R: usize>(
    ints: &mut [[S::I; 2]; R],
    left: *const u32,
    row_stride: usize,
    w: [S::B; 2],
) {
    // SAFETY: as above.
    unsafe {
        for r in 0..R {
            let x = S::splat_bytes(left.add(r * row_stride).cast());
            ints[r][0] = dot_bytes::<S, T>(ints[r][0], w[0], x);
            ints[r][1] = dot_bytes::<S, T>(ints[r][1], w[1], x);
        }
    }
}

#[inline(always)]
unsafe fn dot_bytes<S: Simd, T: Format>(acc: S::I, w: S::B, x: S::B) -> S::I {
    // SAFETY: as above.
    unsafe {
        match T::SMALL {
            true => S::dot_bytes::<true>(acc, w, x),
            false => S::dot_bytes::<false>(acc, w, x),
        }
    }
}

#[inline(always)]
unsafe fn fold<S: Simd, T: Format, const R: usize>(
    sums: &mut [[S::V; 2]; R],
    ints: &[[S::I; 2]; R],
    left: *const u32,
    row_stride: usize,
    scale: [S::V; 2],
    term: [S::V; 2],
    i: usize,
) {
    // SAFETY: as above.
    unsafe {
        for r in 0..R {
            let row = row(left, row_stride, r);
            let x = S::splat((*row).scale);
            sums[r][0] = S::fma(S::to_float(ints[r][0]), S::mul(scale[0], x), sums[r][0]);
            sums[r][1] = S::fma(S::to_float(ints[r][1]), S::mul(scale[1], x), sums[r][1]);
            if T::HAS_TERMS {
                let x = S::splat((*row).term[i]);
                sums[r][0] = S::fma(term[0], x, sums[r][0]);
                sums[r][1] = S::fma(term[1], x, sums[r][1]);
            }
        }
    }
}
