//! Blocks of 32 values: Q8_0, Q4_0, Q4_1.
//!
//! ```text
//! Q8_0   0  d          2  i8 q[32]
//! Q4_0   0  d          2  nibbles[16]
//! Q4_1   0  d   2  m   4  nibbles[16]
//! ```
//! Byte i of the nibbles holds q of value i in its lower half and of value i + 16 in its upper one.
//!
//! Writing: the value of largest magnitude becomes q = 127 or -127 (Q8_0) or q = 0, which stands for
//! -8 (Q4_0, hence a scale of the other sign); the smallest and the largest become 0 and 15 (Q4_1).
//! The other q are rounded against the scale as it is stored, so that what was read from a block
//! is stored as the same block again.

use super::fit::{finite, inverse, peak, range, round_within};
use super::{Integers, put_half, stored_half};

pub(super) fn split_q8_0(block: &[u8; 34], out: &mut Integers) {
    out.d = stored_half(block, 0);
    for (q, byte) in out.q.iter_mut().zip(&block[2..]) {
        *q = byte ^ 128;
    }
}

pub(super) fn split_q4_0(block: &[u8; 18], out: &mut Integers) {
    out.d = stored_half(block, 0);
    split_nibbles(&block[2..], out);
}

pub(super) fn split_q4_1(block: &[u8; 20], out: &mut Integers) {
    (out.d, out.m) = (stored_half(block, 0), stored_half(block, 2));
    split_nibbles(&block[4..], out);
}

fn split_nibbles(bytes: &[u8], out: &mut Integers) {
    for (i, byte) in bytes.iter().enumerate() {
        out.q[i] = byte & 15;
        out.q[i + 16] = byte >> 4;
    }
}

pub(super) fn write_q8_0(values: &[f32; 32], block: &mut [u8; 34]) {
    let x = finite(values);
    let d = put_half(block, 0, peak(&x).abs() / 127.0);
    let inv = inverse(d);
    for (q, x) in block[2..].iter_mut().zip(x) {
        *q = round_within(x * inv, -127.0, 127.0) as i8 as u8;
    }
}

pub(super) fn write_q4_0(values: &[f32; 32], block: &mut [u8; 18]) {
    let x = finite(values);
    let d = put_half(block, 0, peak(&x) / -8.0);
    let inv = inverse(d);
    let q = x.map(|x| (round_within(x * inv, -8.0, 7.0) + 8.0) as u8);
    put_nibbles(&mut block[2..], &q);
}

pub(super) fn write_q4_1(values: &[f32; 32], block: &mut [u8; 20]) {
    let x = finite(values);
    let (lo, hi) = range(&x);
    let d = put_half(block, 0, (hi - lo) / 15.0);
    let m = put_half(block, 2, lo);
    let inv = inverse(d);
    let q = x.map(|x| round_within((x - m) * inv, 0.0, 15.0) as u8);
    put_nibbles(&mut block[4..], &q);
}

fn put_nibbles(bytes: &mut [u8], q: &[u8; 32]) {
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = q[i] | q[i + 16] << 4;
    }
}
