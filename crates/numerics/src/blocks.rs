//! Element types of GGUF tensors: floats, and blocks of few bits that share their scales.
//!
//! A row is cut into blocks of B values. A block is read on its own; it holds numbers q of few bits
//! and what they are multiplied by. Halves `d`, `m` are IEEE half precision; all is little-endian.
//!
//! ```text
//! type  id  B    bytes  layout, in order of the bytes                  value of one element
//! F32   0   1    4      f32
//! F16   1   1    2      f16
//! BF16  30  1    2      upper half of an f32
//! Q8_0  8   32   34     d | i8 q[32]                                   q d
//! Q4_0  2   32   18     d | 16 bytes of nibbles                        (q - 8) d
//! Q4_1  3   32   20     d | m | 16 bytes of nibbles                    q d + m
//! Q2_K  10  256  84     s[16] | low[64] | d | m                        (d s) q - (m t)
//! Q3_K  11  256  110    high[32] | low[64] | s[12] | d                 (d s) (q - 4)
//! Q4_K  12  256  144    d | m | s[12] | low[128]                       (d s) q - (m t)
//! Q5_K  13  256  176    d | m | s[12] | high[32] | low[128]            (d s) q - (m t)
//! Q6_K  14  256  210    low[128] | high[64] | i8 s[16] | d             (d s) (q - 32)
//! ```
//! Where each bit lies is told in `of32` (B = 32) and `of256` (B = 256).
//!
//! Source: the block formats of ggml (github.com/ggml-org/ggml, `ggml-common.h`, `ggml-quants.c`).
//! [`BlockType::dequantise`] gives the same f32 as ggml. Every product above fits into the 24 bits
//! of an f32 (11 of a half, at most 7 of a scale, at most 5 of q), so that the one rounding is that
//! of the difference, whether or not ggml was compiled to fused multiply-adds.
//!
//! [`BlockType::quantise`] is of the quality of ggml's own quantisers without an importance matrix,
//! not of the same bytes: the choice of the scales is in `fit`.
//!
//! It does not know files (`formats::gguf`) or rows, and does not multiply (`kernels-cpu`).

mod fit;
mod of256;
mod of32;

use std::fmt;

use half::{bf16, f16};
use thiserror::Error;

/// A type by which tensors are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BlockType {
    /// 32-bit float.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a 32-bit float.
    Bf16,
    /// 8 bits and a scale for 32 values.
    Q8_0,
    /// 4 bits and a scale for 32 values.
    Q4_0,
    /// 4 bits, a scale and an offset for 32 values.
    Q4_1,
    /// 2 bits; scales and offsets of 4 bits for 16 values.
    Q2K,
    /// 3 bits; scales of 6 bits for 16 values.
    Q3K,
    /// 4 bits; scales and offsets of 6 bits for 32 values.
    Q4K,
    /// 5 bits; scales and offsets of 6 bits for 32 values.
    Q5K,
    /// 6 bits; scales of 8 bits for 16 values.
    Q6K,
}

/// Values and bytes do not fit a block type, or it is not written.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BlockError {
    /// A block would be cut.
    #[error("{got} values are no whole number of {block_type} blocks; expected a multiple of {}",
        block_type.block_values())]
    Values {
        /// The type.
        block_type: BlockType,
        /// The number of values.
        got: usize,
    },
    /// The size in bytes is beyond the address space.
    #[error("{got} values of type {block_type} take more bytes than can be counted")]
    TooMany {
        /// The type.
        block_type: BlockType,
        /// The number of values.
        got: usize,
    },
    /// Memory of the wrong size.
    #[error("{values} values of type {block_type}: expected {expected} bytes, got {got}")]
    Bytes {
        /// The type.
        block_type: BlockType,
        /// The number of values.
        values: usize,
        /// Their size.
        expected: usize,
        /// The size of what was given.
        got: usize,
    },
    /// The type has no integers.
    #[error("type {block_type} holds floats; expected a type of integers and scales")]
    Floats {
        /// The type.
        block_type: BlockType,
    },
    /// There is no quantiser for this type.
    #[error(
        "type {block_type} is read but not written; expected one of F32, F16, BF16, Q8_0, Q4_0, \
         Q4_1, Q4_K, Q5_K, Q6_K"
    )]
    NotWritten {
        /// The type.
        block_type: BlockType,
    },
}

/// A block taken apart: value i is `d s[i / 16] (q[i] - offset) + m t[i / 16]`, with the offset of the
/// type. Blocks of 32 values fill the first 32 (of s and t the first 2).
#[derive(Clone, Debug, PartialEq)]
pub struct Integers {
    /// Scale of the block.
    pub d: f16,
    /// Scale of the added terms; 0 where there are none.
    pub m: f16,
    /// Scales of 16 values each.
    pub s: [i8; 16],
    /// Added terms of 16 values each.
    pub t: [u8; 16],
    /// Values, from 0 on.
    pub q: [u8; 256],
}

impl Integers {
    /// Of a block of a type, with all values zero.
    pub fn new(block_type: BlockType) -> Integers {
        Integers {
            d: f16::ZERO,
            m: f16::NEG_ZERO, // x + -0 is x, of either sign
            s: [1; 16],
            t: [u8::from(block_type == BlockType::Q4_1); 16],
            q: [0; 256],
        }
    }
}

impl BlockType {
    /// All of them, by decreasing number of bits.
    pub const ALL: [BlockType; 11] = [
        BlockType::F32,
        BlockType::F16,
        BlockType::Bf16,
        BlockType::Q8_0,
        BlockType::Q6K,
        BlockType::Q5K,
        BlockType::Q4_1,
        BlockType::Q4K,
        BlockType::Q4_0,
        BlockType::Q3K,
        BlockType::Q2K,
    ];

    /// Its name in listings of GGUF files.
    pub fn name(self) -> &'static str {
        match self {
            BlockType::F32 => "F32",
            BlockType::F16 => "F16",
            BlockType::Bf16 => "BF16",
            BlockType::Q8_0 => "Q8_0",
            BlockType::Q4_0 => "Q4_0",
            BlockType::Q4_1 => "Q4_1",
            BlockType::Q2K => "Q2_K",
            BlockType::Q3K => "Q3_K",
            BlockType::Q4K => "Q4_K",
            BlockType::Q5K => "Q5_K",
            BlockType::Q6K => "Q6_K",
        }
    }

    /// The type of a name, in capital or small letters.
    pub fn from_name(name: &str) -> Option<BlockType> {
        BlockType::ALL
            .into_iter()
            .find(|t| t.name().eq_ignore_ascii_case(name))
    }

    /// Its number in GGUF files.
    pub fn ggml_type(self) -> u32 {
        match self {
            BlockType::F32 => 0,
            BlockType::F16 => 1,
            BlockType::Q4_0 => 2,
            BlockType::Q4_1 => 3,
            BlockType::Q8_0 => 8,
            BlockType::Q2K => 10,
            BlockType::Q3K => 11,
            BlockType::Q4K => 12,
            BlockType::Q5K => 13,
            BlockType::Q6K => 14,
            BlockType::Bf16 => 30,
        }
    }

    /// The type of a number; None for the types that the project does not read.
    pub fn from_ggml_type(id: u32) -> Option<BlockType> {
        BlockType::ALL.into_iter().find(|t| t.ggml_type() == id)
    }

    /// Values in a block.
    pub fn block_values(self) -> usize {
        match self {
            BlockType::F32 | BlockType::F16 | BlockType::Bf16 => 1,
            BlockType::Q8_0 | BlockType::Q4_0 | BlockType::Q4_1 => 32,
            BlockType::Q2K | BlockType::Q3K | BlockType::Q4K | BlockType::Q5K | BlockType::Q6K => {
                256
            }
        }
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        match self {
            BlockType::F32 => 4,
            BlockType::F16 | BlockType::Bf16 => 2,
            BlockType::Q8_0 => 34,
            BlockType::Q4_0 => 18,
            BlockType::Q4_1 => 20,
            BlockType::Q2K => 84,
            BlockType::Q3K => 110,
            BlockType::Q4K => 144,
            BlockType::Q5K => 176,
            BlockType::Q6K => 210,
        }
    }

    /// Bytes of so many values.
    ///
    /// # Errors
    /// When they are no whole number of blocks, or more than can be counted.
    pub fn bytes_for(self, values: usize) -> Result<usize, BlockError> {
        if values % self.block_values() != 0 {
            return Err(BlockError::Values {
                block_type: self,
                got: values,
            });
        }
        (values / self.block_values())
            .checked_mul(self.block_bytes())
            .ok_or(BlockError::TooMany {
                block_type: self,
                got: values,
            })
    }

    /// True when [`BlockType::quantise`] writes it: all but Q2_K and Q3_K.
    pub fn is_written(self) -> bool {
        !matches!(self, BlockType::Q2K | BlockType::Q3K)
    }

    /// The values of whole blocks, as ggml computes them.
    ///
    /// Halves that are not finite make values that are not; the sign and payload of a NaN are not
    /// promised.
    ///
    /// # Errors
    /// When `out` is no whole number of blocks, or `bytes` are not the bytes of as many values.
    pub fn dequantise(self, bytes: &[u8], out: &mut [f32]) -> Result<(), BlockError> {
        self.check(out.len(), bytes.len())?;
        match self {
            BlockType::F32 => read_blocks::<4, 1>(bytes, out, |b, [x]| *x = f32::from_le_bytes(*b)),
            BlockType::F16 => read_blocks::<2, 1>(bytes, out, |b, [x]| {
                *x = f16::from_le_bytes(*b).to_f32();
            }),
            BlockType::Bf16 => read_blocks::<2, 1>(bytes, out, |&[low, high], [x]| {
                *x = f32::from_le_bytes([0, 0, low, high]);
            }),
            _ => read_integers(self, bytes, out),
        }
        Ok(())
    }

    /// Stores values in whole blocks.
    ///
    /// F32 keeps every bit. F16 and BF16 round to the nearest, ties to even; NaN and infinities stay
    /// what they are, and what is beyond the range becomes an infinity. In the other types NaN is
    /// stored as 0, an infinity or a value beyond the range as a large number of its sign that the
    /// block can hold; the scale follows it, and the other values of the block lose their precision.
    /// Callers to whom that matters look for such values first.
    ///
    /// # Errors
    /// When `values` are no whole number of blocks, `out` is not of their size, or the type is not
    /// written (Q2_K, Q3_K).
    pub fn quantise(self, values: &[f32], out: &mut [u8]) -> Result<(), BlockError> {
        self.check(values.len(), out.len())?;
        match self {
            BlockType::F32 => write_blocks::<4, 1>(values, out, |[x], b| *b = x.to_le_bytes()),
            BlockType::F16 => write_blocks::<2, 1>(values, out, |[x], b| {
                *b = f16::from_f32(*x).to_le_bytes();
            }),
            BlockType::Bf16 => write_blocks::<2, 1>(values, out, |[x], b| {
                *b = bf16::from_f32(*x).to_le_bytes();
            }),
            BlockType::Q8_0 => write_blocks(values, out, of32::write_q8_0),
            BlockType::Q4_0 => write_blocks(values, out, of32::write_q4_0),
            BlockType::Q4_1 => write_blocks(values, out, of32::write_q4_1),
            BlockType::Q4K => write_blocks(values, out, of256::write_q4_k),
            BlockType::Q5K => write_blocks(values, out, of256::write_q5_k),
            BlockType::Q6K => write_blocks(values, out, of256::write_q6_k),
            BlockType::Q2K | BlockType::Q3K => {
                return Err(BlockError::NotWritten { block_type: self });
            }
        }
        Ok(())
    }

    /// What is subtracted from q as [`Integers`] holds it.
    pub fn offset(self) -> u8 {
        match self {
            BlockType::Q8_0 => 128,
            BlockType::Q4_0 => 8,
            BlockType::Q3K => 4,
            BlockType::Q6K => 32,
            _ => 0,
        }
    }

    /// True for the types that hold integers and scales, not floats.
    pub fn is_quantised(self) -> bool {
        self.block_values() > 1
    }

    /// Takes one block apart.
    ///
    /// # Errors
    /// When the type holds floats, or `block` is not one block.
    pub fn integers(self, block: &[u8], out: &mut Integers) -> Result<(), BlockError> {
        let cut = split_of(self).ok_or(BlockError::Floats { block_type: self })?;
        self.check(self.block_values(), block.len())?;
        *out = Integers::new(self);
        cut(block, out);
        Ok(())
    }

    fn check(self, values: usize, bytes: usize) -> Result<(), BlockError> {
        let expected = self.bytes_for(values)?;
        if bytes != expected {
            return Err(BlockError::Bytes {
                block_type: self,
                values,
                expected,
                got: bytes,
            });
        }
        Ok(())
    }
}

impl fmt::Display for BlockType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How a block of a type is taken apart; none for floats.
fn split_of(block_type: BlockType) -> Option<fn(&[u8], &mut Integers)> {
    /// Blocks of `N` bytes, as whoever asks has checked.
    macro_rules! whole {
        ($split:path) => {
            |block, out| {
                if let Some(block) = block.first_chunk() {
                    $split(block, out);
                }
            }
        };
    }
    Some(match block_type {
        BlockType::F32 | BlockType::F16 | BlockType::Bf16 => return None,
        BlockType::Q8_0 => whole!(of32::split_q8_0),
        BlockType::Q4_0 => whole!(of32::split_q4_0),
        BlockType::Q4_1 => whole!(of32::split_q4_1),
        BlockType::Q2K => whole!(of256::split_q2_k),
        BlockType::Q3K => whole!(of256::split_q3_k),
        BlockType::Q4K => whole!(of256::split_q4_k),
        BlockType::Q5K => whole!(of256::split_q5_k),
        BlockType::Q6K => whole!(of256::split_q6_k),
    })
}

fn read_integers(block_type: BlockType, bytes: &[u8], out: &mut [f32]) {
    let Some(cut) = split_of(block_type) else {
        return;
    };
    let offset = f32::from(block_type.offset());
    let mut block = Integers::new(block_type);
    let blocks = bytes.chunks_exact(block_type.block_bytes());
    for (bytes, values) in blocks.zip(out.chunks_exact_mut(block_type.block_values())) {
        cut(bytes, &mut block);
        let (d, m) = (block.d.to_f32(), block.m.to_f32());
        for (b, values) in values.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let (scale, term) = (d * f32::from(block.s[b]), m * f32::from(block.t[b]));
            for (x, q) in values.iter_mut().zip(&block.q[16 * b..]) {
                *x = scale * (f32::from(*q) - offset) + term;
            }
        }
    }
}

fn read_blocks<const BYTES: usize, const B: usize>(
    bytes: &[u8],
    out: &mut [f32],
    read: impl Fn(&[u8; BYTES], &mut [f32; B]),
) {
    let (blocks, _) = bytes.as_chunks::<BYTES>();
    let (values, _) = out.as_chunks_mut::<B>();
    for (block, values) in blocks.iter().zip(values) {
        read(block, values);
    }
}

fn write_blocks<const BYTES: usize, const B: usize>(
    values: &[f32],
    out: &mut [u8],
    write: impl Fn(&[f32; B], &mut [u8; BYTES]),
) {
    let (values, _) = values.as_chunks::<B>();
    let (blocks, _) = out.as_chunks_mut::<BYTES>();
    for (values, block) in values.iter().zip(blocks) {
        write(values, block);
    }
}

/// The half at byte `at` of a block.
fn stored_half(block: &[u8], at: usize) -> f16 {
    f16::from_le_bytes([block[at], block[at + 1]])
}

fn half_at(block: &[u8], at: usize) -> f32 {
    stored_half(block, at).to_f32()
}

/// Puts a half at byte `at` of a block, the largest finite one if need be; returns its value.
fn put_half(block: &mut [u8], at: usize, x: f32) -> f32 {
    let limit = f16::MAX.to_f32();
    let half = f16::from_f32(x.clamp(-limit, limit));
    block[at..at + 2].copy_from_slice(&half.to_le_bytes());
    half.to_f32()
}
