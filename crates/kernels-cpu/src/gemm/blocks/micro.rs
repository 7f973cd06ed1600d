//! The register tile over blocks.

use super::rows::{Form, HEAD_WORDS, Head};
use super::sums::add;
use super::{Format, group_bytes, head_bytes, integer_bytes, is_taken_apart, tile_rows, words};
use crate::gemm::aside::{Aside, ForBlocks};
use crate::gemm::micro::{Chain, TileKernel, Tiles};
use crate::isa::amd_family;
use crate::simd::{Simd, prefetch};
use half::f16;
use std::marker::PhantomData;

/// Panels of a format.
pub(super) struct Panels<T>(PhantomData<T>);

/// Rows of a tile at most, of panels that are made wide for more.
pub(super) const FEW_ROWS: usize = 3;

/// Bytes from the group that is multiplied to those that are fetched, where `rows` rows are few and a panel comes from
/// memory. One row takes so few instructions that a processor may look far enough ahead itself, and is faster alone
/// (docs/LOG.md): AMD's with whole bytes, its Zen 4 with four bits as well (Zen 3, of the same family, was not
/// measured). Zen 2 is fastest with what it needs next.
#[inline(always)]
fn ahead<T: Format>(rows: usize) -> Option<usize> {
    match (amd_family(), T::VECTORS) {
        (Some(23), _) => Some(14 << 6),
        (Some(25), 4) | (Some(_), 8) if rows == 1 => None,
        // 4 KiB in types of four bits, 2 KiB in those of eight.
        _ => Some((16 << 10) / T::VECTORS),
    }
}

impl<S: Simd, T: Format> TileKernel<S, ForBlocks<'_>> for Panels<T> {
    const ROWS: usize = if !is_taken_apart::<T>() || tile_rows::<S>() < FEW_ROWS {
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
        let left_words = match fine {
            _ if T::WORDS => Form::Words.words(),
            true => Form::TwoBytes.words(),
            false => Form::Bytes.words(),
        };
        let ahead = ahead::<T>(R);
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
                            if R > FEW_ROWS || T::IS_WIDE {
                                later.step::<2>();
                            } else if let Some(ahead) = ahead {
                                for line in (0..group_bytes::<T>(S::LANES)).step_by(64) {
                                    prefetch(right.wrapping_add(ahead + line));
                                }
                            }
                            group::<S, T, R>(&mut sums, left, a.row_stride, right, heads, fine);
                            left = left.add(left_words);
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
        let at = group.add(integer_bytes::<T>(S::LANES));
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

/// One group of the right operand with the same group of R rows. Of six rows of bytes three follow on three: the sums of
/// both bytes of all six have no registers. On Zen 4 most products with rows of 16 bits are 2 to 5 % faster so
/// (docs/LOG.md). Words have one sum, and room for six.
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
            5 if !T::WORDS => {
                rows!(3 from 0);
                rows!(2 from 3);
            }
            6 if !T::WORDS => {
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
            ($i:literal) => {
                let mut sums_of_ints = start::<S, T, R>(left, row_stride, right, $i);
                let ints = left.add(HEAD_WORDS);
                add::<S, T, R, $i>(&mut sums_of_ints, ints, row_stride, right, fine);
                let [scale, term] = scales::<S, T>(right, heads, $i);
                fold::<S, T, R>(sums, &sums_of_ints, left, row_stride, scale, term, $i);
            };
        }
        part!(0);
        if T::SCALES == 2 {
            part!(1);
        }
    }
}

/// The head of the group of row r.
#[inline(always)]
unsafe fn row(left: *const u32, row_stride: usize, r: usize) -> *const Head {
    // SAFETY: as above.
    unsafe { left.add(r * row_stride).cast() }
}

/// What the sums of integers start from.
#[inline(always)]
unsafe fn start<S: Simd, T: Format, const R: usize>(
    left: *const u32,
    row_stride: usize,
    right: *const u8,
    i: usize,
) -> [[S::I; 2]; R] {
    // SAFETY: as above.
    unsafe {
        let mut ints = [[S::splat_int(0); 2]; R];
        for r in 0..R {
            let start = (*row(left, row_stride, r)).start[i];
            ints[r] = match T::WORDS {
                true => words::start::<S>(start, right, i),
                false => [S::splat_int(start); 2],
            };
        }
        ints
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
