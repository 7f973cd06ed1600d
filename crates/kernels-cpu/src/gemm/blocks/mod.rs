//! Right operands that stay in blocks of few bits, multiplied as integers.
//!
//! y = sum over groups of 32 values of depth, in order, of (d s d_x) (sum of (q - offset) x_q) + (m t) (d_x sum of x_q)
//!
//! Weights are the integers q of a block type with its scales (`numerics::blocks`). A row of the left
//! operand is cut into groups of 32 as well: d_x is its largest magnitude over 32512 (or 127), x_q the nearest
//! integers to x / d_x, of 16 bits (or 8). Those of 16 bits are two of 8: x_q = 256 high + low. The inner sums are
//! exact, 8-bit times 8-bit in 32 bits; each is turned into f32 and joins one chain of multiply-adds, in order of
//! the depth, so that the bits of an element do not depend on its company. A row with a value that is not finite
//! gives NaN.
//!
//! A panel has two vectors of columns, called halves. It is a sequence of blocks; of each, for L lanes:
//!
//! ```text
//! halves d[2 L], and m[2 L] where the type has added terms
//! for each group of 32 values of depth:
//!     vectors of 4 L bytes, of the two halves in turn; a lane has four values of depth, a step
//!     where a block has several groups: i8 s[2 L] (twice where scales are for 16 values), u8 t[2 L] likewise
//! ```
//! The steps of a group in the vectors of a half (bit 0 is the lowest):
//!
//! ```text
//! Q8_0               step i is vector i; q is stored from 0 to 255
//! Q4_0, Q4_1, Q4_K   step i < 4 is in bits 0-3 of vector i, step i + 4 in bits 4-7
//! Q5_K               as Q4_K; bit 4 of step i is bit i of vector 4
//! Q6_K               as Q4_K; bits 4-5 of step i are bits 2j, 2j+1 of vector 4 + i div 4, j = i mod 4
//! Q2_K               step i is bits 2j, 2j+1 of vector i div 4
//! Q3_K               as Q2_K; bit 2 of step i is bit i of vector 2
//! ```
//! Each byte of the file is thus read once for a row, at the size it has in the file. Where many rows follow,
//! a stretch of a panel is first made *wide*: a vector for each step, and scales that are multiplied out in f32. Where
//! that is faster, it is made of words, of which a product takes half as many multiplications ([`words`]). Where an
//! instruction adds up two products of bytes and not four, their sums stay words as long as these have room ([`sums`]).
//!
//! Error: that of rounding x, at most 1/65024 (or 1/254) of the largest of each 32 values.
//!
//! Absent: gradients (weights in blocks are not trained).

mod micro;
mod pack;
mod rows;
mod sums;
mod wide;
mod words;

pub(super) use pack::pack;

use super::aside::ForBlocks;
use super::micro::{Kernel, Tiles};
use crate::Isa;
use crate::factor::lanes;
use crate::simd::Simd;
use numerics::BlockType;
use rows::Form;
use wide::Wide;

/// Runs `$f!(Format)` for the format of a type of integers.
macro_rules! with_format {
    ($block_type:expr, $f:ident) => {
        match $block_type {
            numerics::BlockType::Q8_0 => $f!($crate::gemm::blocks::Q8_0),
            numerics::BlockType::Q4_0 => $f!($crate::gemm::blocks::Q4_0),
            numerics::BlockType::Q4_1 => $f!($crate::gemm::blocks::Q4_1),
            numerics::BlockType::Q2K => $f!($crate::gemm::blocks::Q2K),
            numerics::BlockType::Q3K => $f!($crate::gemm::blocks::Q3K),
            numerics::BlockType::Q4K => $f!($crate::gemm::blocks::Q4K),
            numerics::BlockType::Q5K => $f!($crate::gemm::blocks::Q5K),
            numerics::BlockType::Q6K => $f!($crate::gemm::blocks::Q6K),
            numerics::BlockType::F32 | numerics::BlockType::F16 | numerics::BlockType::Bf16 => {
                unreachable!("blocks of integers, by `Packed::of`")
            }
        }
    };
}
pub(super) use with_format;

/// How rows are rounded before they are multiplied with blocks of integers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Activations {
    /// To 8 bits: an error of up to 1/254 of the largest of 32 values. Up to twice as fast where there are many
    /// rows, as fast where there are few.
    Int8,
    /// To 16 bits: an error of up to 1/65024.
    #[default]
    Int16,
}

impl Activations {
    /// The largest integer of a row.
    fn limit(self) -> f32 {
        match self {
            Activations::Int8 => 127.0,
            Activations::Int16 => 127.0 * 256.0,
        }
    }
}

/// Values of depth in a group.
const GROUP: usize = 32;

/// How a type lies in a panel.
pub(super) trait Format {
    /// Whether it was made wide: scales and terms are multiplied out, in f32.
    const IS_WIDE: bool = false;
    /// Whether it was made of words, which only wide ones are.
    const WORDS: bool = false;
    /// Groups in a block.
    const GROUPS: usize;
    /// Scales of a group: one for 32 values, or two for 16 each.
    const SCALES: usize;
    /// Whether something is added to the scaled values.
    const HAS_TERMS: bool;
    /// What is subtracted from q.
    const OFFSET: i32;
    /// Bits of the largest q.
    const BITS: u32;
    /// Vectors of each half of a group.
    const VECTORS: usize;

    /// The q of one step.
    ///
    /// # Safety
    /// As for [`Simd`]; `half` is the first vector of one half of a group.
    unsafe fn step<S: Simd, const STEP: usize>(half: *const u8) -> S::B;
}

/// Whether the vectors of a type hold several steps, so that the q are to be taken apart.
const fn is_taken_apart<T: Format>() -> bool {
    T::VECTORS < GROUP / 4
}

/// Bytes of the integers of a group with L lanes, both halves.
const fn integer_bytes<T: Format>(lanes: usize) -> usize {
    if T::WORDS {
        return words::integer_bytes(lanes, T::SCALES);
    }
    8 * lanes * T::VECTORS
}

/// Bytes of a group with L lanes, both halves.
const fn group_bytes<T: Format>(lanes: usize) -> usize {
    let of_scale = if T::IS_WIDE {
        4
    } else {
        (T::GROUPS > 1) as usize
    };
    let scales = T::SCALES * (1 + T::HAS_TERMS as usize) * of_scale;
    integer_bytes::<T>(lanes) + 2 * lanes * scales
}

/// Bytes of the halves before the groups of a block.
const fn head_bytes<T: Format>(lanes: usize) -> usize {
    if T::IS_WIDE {
        return 0;
    }
    4 * lanes * (1 + T::HAS_TERMS as usize)
}

/// Bytes of a block of a panel.
const fn block_bytes<T: Format>(lanes: usize) -> usize {
    head_bytes::<T>(lanes) + T::GROUPS * group_bytes::<T>(lanes)
}

/// Words of one panel of depth `k`.
pub(super) fn panel_words(isa: Isa, block_type: BlockType, k: usize) -> usize {
    let blocks = Blocks::new(isa, block_type, Activations::Int8, 1);
    k / blocks.depth() * blocks.right_words()
}

/// The product with panels of a type. Its functions are compiled for each format on their own: all in one would
/// be a very large one.
#[derive(Clone, Copy)]
pub(super) struct Blocks {
    isa: Isa,
    block_type: BlockType,
    form: Form,
    limit: f32,
    groups: usize,
    wide: Wide,
    offset: i32,
    is_taken_apart: bool,
    right_words: usize,
    wide_words: usize,
}

impl Blocks {
    /// For `rows` rows at a time.
    pub(super) fn new(
        isa: Isa,
        block_type: BlockType,
        activations: Activations,
        rows: usize,
    ) -> Blocks {
        let lanes = lanes(isa);
        macro_rules! of {
            ($format:ty) => {{
                let bits = <$format>::BITS;
                let words = rows >= words::ROWS && words::are_faster(isa, activations, bits);
                let form = match activations {
                    _ if words => Form::Words,
                    Activations::Int8 => Form::Bytes,
                    Activations::Int16 => Form::TwoBytes,
                };
                Blocks {
                    isa,
                    block_type,
                    form,
                    limit: activations.limit(),
                    groups: <$format>::GROUPS,
                    wide: Wide {
                        scales: <$format>::SCALES,
                        has_terms: <$format>::HAS_TERMS,
                        bits: if words { wide::WORD_BITS } else { bits },
                    },
                    offset: <$format>::OFFSET,
                    is_taken_apart: is_taken_apart::<$format>(),
                    right_words: block_bytes::<$format>(lanes) / 4,
                    wide_words: wide::wide_words::<$format>(lanes, form),
                }
            }};
        }
        with_format!(block_type, of)
    }
}

/// Runs `$f` for the instruction set and the format of `$blocks`.
macro_rules! dispatch_format {
    ($blocks:expr, $f:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)?) => {{
        let isa = $blocks.isa;
        macro_rules! of {
            ($format:ty) => {{
                #[inline(always)]
                unsafe fn of<S: Simd>($($arg: $ty),*) $(-> $ret)? {
                    // SAFETY: forwarded to the caller.
                    unsafe { $f::<S, $format>($($arg),*) }
                }
                dispatch_integers!(isa, of($($arg: $ty),*) $(-> $ret)?)
            }};
        }
        with_format!($blocks.block_type, of)
    }};
}

/// Rows of a tile: the sums of integers take as many registers as those of floats.
#[inline(always)]
const fn tile_rows<S: Simd>() -> usize {
    S::TILE_ROWS / 2
}

impl Kernel for Blocks {
    fn rows(self) -> usize {
        let rows = self.wide_rows();
        match self.is_taken_apart {
            true => rows.min(micro::FEW_ROWS),
            false => rows,
        }
    }
    fn depth(self) -> usize {
        GROUP * self.groups
    }
    fn right_words(self) -> usize {
        self.right_words
    }
    fn left_words(self) -> usize {
        self.form.words() * self.groups
    }
    // Half of a second-level cache of 1 MiB: the more rows, the more seldom a panel is made wide.
    fn block_words(self) -> usize {
        128 << 10
    }
    // A depth of 1,024 in one pass, so that sums are read and written once. Made wide it is 40 KiB of bytes in Q4_K, and
    // 76 KiB of words; where a first-level cache holds 32, the second is fast enough for it (docs/LOG.md).
    fn pass_words(self) -> usize {
        match self.form {
            Form::Words => 20 << 10,
            Form::Bytes | Form::TwoBytes => 12 << 10,
        }
    }
    unsafe fn left_of_row(self, out: *mut u32, x: *const f32, k: usize) {
        rows::quantise(
            self.isa,
            self.form,
            self.limit,
            self.offset,
            self.wide.scales,
            out,
            x,
            k,
        );
    }
    unsafe fn tiles(self, tiles: &mut Tiles<ForBlocks>) {
        tiles.fine = self.form == Form::TwoBytes;
        #[inline(always)]
        unsafe fn tiles_of<S: Simd, T: Format>(tiles: &mut Tiles<ForBlocks>) {
            // SAFETY: forwarded to the caller.
            unsafe { super::micro::tiles::<S, micro::Panels<T>, _>(tiles) }
        }
        dispatch_format!(self, tiles_of(tiles: &mut Tiles<ForBlocks>));
    }
    fn wide_rows(self) -> usize {
        #[inline(always)]
        unsafe fn of<S: Simd>() -> usize {
            tile_rows::<S>()
        }
        let isa = self.isa;
        dispatch_integers!(isa, of() -> usize)
    }
    fn wide_words(self) -> usize {
        self.wide_words
    }
    unsafe fn widen(self, out: *mut u32, right: *const u32, steps: usize) -> usize {
        let form = self.form;
        #[inline(always)]
        unsafe fn widen_of<S: Simd, T: Format>(
            form: Form,
            out: *mut u32,
            right: *const u32,
            steps: usize,
        ) {
            // SAFETY: forwarded to the caller.
            unsafe { wide::widen::<S, T>(form, out.cast(), right.cast(), steps) }
        }
        dispatch_format!(
            self,
            widen_of(form: Form, out: *mut u32, right: *const u32, steps: usize)
        );
        steps * self.groups
    }
    unsafe fn wide_tiles(self, tiles: &mut Tiles<ForBlocks>) {
        tiles.fine = self.form == Form::TwoBytes;
        wide::wide_tiles(self.isa, self.wide, tiles);
    }
}

/// The vector `idx` of a half.
#[inline(always)]
unsafe fn vector<S: Simd>(half: *const u8, idx: usize) -> S::B {
    // SAFETY: by the contract of `Format::step` (so for every block of this file).
    unsafe { S::load_bytes(half.add(8 * S::LANES * idx)) }
}

/// Bits 0-3 of a step.
#[inline(always)]
unsafe fn four_bits<S: Simd, const STEP: usize>(half: *const u8) -> S::B {
    // SAFETY: as above.
    unsafe {
        let b = vector::<S>(half, STEP % 4);
        match STEP / 4 {
            0 => S::bits::<0>(b, 15),
            _ => S::bits::<4>(b, 15),
        }
    }
}

/// Two bits of a step; four steps share a vector, of which `first` is the first.
#[inline(always)]
unsafe fn two_bits<S: Simd, const STEP: usize>(half: *const u8, first: usize) -> S::B {
    // SAFETY: as above.
    unsafe {
        let b = vector::<S>(half, first + STEP / 4);
        match STEP % 4 {
            0 => S::bits::<0>(b, 3),
            1 => S::bits::<2>(b, 3),
            2 => S::bits::<4>(b, 3),
            _ => S::bits::<6>(b, 3),
        }
    }
}

/// One bit of a step; all steps share vector `idx`.
#[inline(always)]
unsafe fn one_bit<S: Simd, const STEP: usize>(half: *const u8, idx: usize) -> S::B {
    // SAFETY: as above.
    unsafe {
        let b = vector::<S>(half, idx);
        match STEP {
            0 => S::bits::<0>(b, 1),
            1 => S::bits::<1>(b, 1),
            2 => S::bits::<2>(b, 1),
            3 => S::bits::<3>(b, 1),
            4 => S::bits::<4>(b, 1),
            5 => S::bits::<5>(b, 1),
            6 => S::bits::<6>(b, 1),
            _ => S::bits::<7>(b, 1),
        }
    }
}

/// Declares a format: its constants, and the q of a step.
macro_rules! format {
    ($name:ident { groups: $groups:literal, scales: $scales:literal,
      has_terms: $terms:literal, offset: $offset:literal, bits: $bits:literal,
      vectors: $vectors:literal }, |$s:ident, $step:ident, $half:ident| $body:expr) => {
        pub(super) struct $name;

        impl Format for $name {
            const GROUPS: usize = $groups;
            const SCALES: usize = $scales;
            const HAS_TERMS: bool = $terms;
            const OFFSET: i32 = $offset;
            const BITS: u32 = $bits;
            const VECTORS: usize = $vectors;

            #[inline(always)]
            unsafe fn step<$s: Simd, const $step: usize>($half: *const u8) -> $s::B {
                // SAFETY: forwarded.
                unsafe { $body }
            }
        }
    };
}

format!(
    Q8_0 {
        groups: 1,
        scales: 1,
        has_terms: false,
        offset: 128,
        bits: 8,
        vectors: 8
    },
    |S, STEP, half| vector::<S>(half, STEP)
);
format!(
    Q4_0 {
        groups: 1,
        scales: 1,
        has_terms: false,
        offset: 8,
        bits: 4,
        vectors: 4
    },
    |S, STEP, half| four_bits::<S, STEP>(half)
);
format!(
    Q4_1 {
        groups: 1,
        scales: 1,
        has_terms: true,
        offset: 0,
        bits: 4,
        vectors: 4
    },
    |S, STEP, half| four_bits::<S, STEP>(half)
);
format!(
    Q4K {
        groups: 8,
        scales: 1,
        has_terms: true,
        offset: 0,
        bits: 4,
        vectors: 4
    },
    |S, STEP, half| four_bits::<S, STEP>(half)
);
format!(
    Q5K {
        groups: 8,
        scales: 1,
        has_terms: true,
        offset: 0,
        bits: 5,
        vectors: 5
    },
    |S, STEP, half| S::join_bits::<4>(four_bits::<S, STEP>(half), one_bit::<S, STEP>(half, 4))
);
format!(
    Q6K {
        groups: 8,
        scales: 2,
        has_terms: false,
        offset: 32,
        bits: 6,
        vectors: 6
    },
    |S, STEP, half| S::join_bits::<4>(four_bits::<S, STEP>(half), two_bits::<S, STEP>(half, 4))
);
format!(
    Q2K {
        groups: 8,
        scales: 2,
        has_terms: true,
        offset: 0,
        bits: 2,
        vectors: 2
    },
    |S, STEP, half| two_bits::<S, STEP>(half, 0)
);
format!(
    Q3K {
        groups: 8,
        scales: 2,
        has_terms: false,
        offset: 4,
        bits: 3,
        vectors: 3
    },
    |S, STEP, half| S::join_bits::<2>(two_bits::<S, STEP>(half, 0), one_bit::<S, STEP>(half, 2))
);
