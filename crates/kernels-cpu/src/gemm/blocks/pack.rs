//! From the blocks of a file to panels.

use super::{Format, GROUP, block_bytes, group_bytes, head_bytes, with_format};
use half::f16;
use numerics::blocks::{BlockType, Integers};

/// Columns `first..` of one panel from the rows of a matrix of depth `k`, `bytes` in blocks of `block_type`.
/// `out` is the panel, `lanes` the width of a vector.
pub(in crate::gemm) fn pack(
    block_type: BlockType,
    lanes: usize,
    out: &mut [u8],
    bytes: &[u8],
    k: usize,
    first: usize,
) {
    macro_rules! of {
        ($format:ty) => {
            pack_as::<$format>(block_type, lanes, out, bytes, k, first)
        };
    }
    with_format!(block_type, of)
}

fn pack_as<T: Format>(
    block_type: BlockType,
    lanes: usize,
    out: &mut [u8],
    bytes: &[u8],
    k: usize,
    first: usize,
) {
    let row_bytes = k / block_type.block_values() * block_type.block_bytes();
    let rows = bytes.chunks_exact(row_bytes).skip(first).take(2 * lanes);
    let mut block = Integers::new(block_type);
    out.fill(0);
    for (column, row) in rows.enumerate() {
        let blocks = row.chunks_exact(block_type.block_bytes());
        for (out, bytes) in out.chunks_exact_mut(block_bytes::<T>(lanes)).zip(blocks) {
            block_type
                .integers(bytes, &mut block)
                .expect("whole blocks of integers, by `Packed::of`");
            put::<T>(block_type, lanes, out, &block, column);
        }
    }
}

/// A block of one column.
fn put<T: Format>(
    block_type: BlockType,
    lanes: usize,
    out: &mut [u8],
    block: &Integers,
    column: usize,
) {
    let put_half = |out: &mut [u8], at: usize, x: f16| {
        out[2 * at..2 * at + 2].copy_from_slice(&x.to_ne_bytes());
    };
    put_half(out, column, block.d);
    if T::HAS_TERMS {
        put_half(out, 2 * lanes + column, block.m);
    }
    let groups = out[head_bytes::<T>(lanes)..].chunks_exact_mut(group_bytes::<T>(lanes));
    for (g, group) in groups.enumerate() {
        let (vectors, scales) = group.split_at_mut(8 * lanes * T::VECTORS);
        for (step, q) in block.q[GROUP * g..][..GROUP].chunks_exact(4).enumerate() {
            let put = |vector: usize, bits: u32| {
                let at = &mut vectors[4 * (2 * lanes * vector + column)..][..4];
                let bits = bits.to_le_bytes();
                at.iter_mut().zip(bits).for_each(|(at, bits)| *at |= bits);
            };
            put_step(
                block_type,
                put,
                u32::from_le_bytes([q[0], q[1], q[2], q[3]]),
                step,
            );
        }
        if T::GROUPS > 1 {
            let width = 2 * lanes;
            for i in 0..T::SCALES {
                // Where one scale is for 32 values, both halves of them have the same.
                let at = 2 * g + i;
                scales[i * width + column] = block.s[at] as u8;
                if T::HAS_TERMS {
                    scales[(T::SCALES + i) * width + column] = block.t[at];
                }
            }
        }
    }
}

/// Where the bits of the four values of a step go, a byte each: `put(vector, bits)`, as the table of the module
/// says. No shift carries a bit from one byte to another.
#[inline(always)]
fn put_step(block_type: BlockType, mut put: impl FnMut(usize, u32), q: u32, step: usize) {
    let each = |byte: u8| u32::from_le_bytes([byte; 4]);
    match block_type {
        BlockType::Q8_0 => put(step, q),
        BlockType::Q2K => put(step / 4, q << (2 * (step % 4))),
        BlockType::Q3K => {
            put(step / 4, (q & each(3)) << (2 * (step % 4)));
            put(2, (q >> 2 & each(1)) << step);
        }
        _ => {
            put(step % 4, (q & each(15)) << (4 * (step / 4)));
            let high = q >> 4 & each(15);
            match block_type {
                BlockType::Q5K => put(4, high << step),
                BlockType::Q6K => put(4 + step / 4, high << (2 * (step % 4))),
                _ => (),
            }
        }
    }
}
