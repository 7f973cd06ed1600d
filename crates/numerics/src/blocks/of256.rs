//! Blocks of 256 values with scales of their own for every 16 or 32: Q2_K to Q6_K.
//!
//! ```text
//! Q2_K   0  s[16]       16  low[64]     80  d          82  m
//! Q3_K   0  high[32]    32  low[64]     96  s[12]      108  d
//! Q4_K   0  d           2   m           4   s[12]      16  low[128]
//! Q5_K   0  d           2   m           4   s[12]      16  high[32]    48  low[128]
//! Q6_K   0  low[128]    128 high[64]    192 i8 s[16]   208  d
//! ```
//! Bits of the value i = 128 h + 32 j + l, with l < 32 and j < 4 (or i = 64 p + 32 j + l, j < 2);
//! bit 0 is the lowest:
//!
//! ```text
//! Q2_K   q = bits 2j, 2j+1 of low[32 h + l]
//! Q3_K   q = bits 2j, 2j+1 of low[32 h + l], and 4 if bit 4h + j of high[l] is set
//! Q4_K   q = bits 4j to 4j+3 of low[32 p + l]
//! Q5_K   as Q4_K, and 16 if bit 2p + j of high[l] is set
//! Q6_K   q = bits 0-3 (j < 2) or 4-7 (j >= 2) of low[64 h + 32 (j mod 2) + l],
//!            and 16 times bits 2j, 2j+1 of high[32 h + l]
//! ```
//! Scales s and offsets t. Q2_K: of values 16 b to 16 b + 15, s in the lower and t in the upper half
//! of byte b. Q6_K: of 16 values, one signed byte. The others have six bits in twelve bytes a:
//!
//! ```text
//! Q3_K        s(b) + 32, b < 16: bits 0-3 are half b div 8 (lower first) of a[b mod 8];
//!             bits 4-5 are bits 2c, 2c+1 of a[8 + b mod 4], c = b div 4
//! Q4_K, Q5_K  of 32 values each, b < 4: s(b) is bits 0-5 of a[b], t(b) bits 0-5 of a[b + 4];
//!             s(b + 4) has bits 0-3 from the lower half of a[b + 8], bits 4-5 from bits 6-7 of a[b];
//!             t(b + 4) has bits 0-3 from the upper half of a[b + 8], bits 4-5 from bits 6-7 of a[b + 4]
//! ```
//! Writing: `fit` gives a real scale (and offset) for each 16 (32) values; the largest of them
//! determines d (and m); all are rounded, and then the values against the rounded scales.

use half::f16;

use super::fit::{affine, finite, inverse, peak, round_within, symmetric};
use super::{Integers, half_at, put_half, stored_half};

pub(super) fn split_q2_k(block: &[u8; 84], out: &mut Integers) {
    (out.d, out.m) = (stored_half(block, 80), -stored_half(block, 82));
    for (b, q) in out.q.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        (out.s[b], out.t[b]) = ((block[b] & 15) as i8, block[b] >> 4);
        let (h, j, start) = (b / 8, b / 2 % 4, b % 2 * 16);
        let low = &block[16 + 32 * h + start..][..16];
        for (q, low) in q.iter_mut().zip(low) {
            *q = low >> (2 * j) & 3;
        }
    }
}

pub(super) fn split_q3_k(block: &[u8; 110], out: &mut Integers) {
    let a = &block[96..108];
    out.d = stored_half(block, 108);
    for (b, q) in out.q.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let bits = a[b % 8] >> (b / 8 * 4) & 15 | (a[8 + b % 4] >> (b / 4 * 2) & 3) << 4;
        out.s[b] = bits as i8 - 32;
        let (h, j, start) = (b / 8, b / 2 % 4, b % 2 * 16);
        let (high, low) = (&block[start..][..16], &block[32 + 32 * h + start..][..16]);
        for ((q, high), low) in q.iter_mut().zip(high).zip(low) {
            *q = low >> (2 * j) & 3 | (high >> (4 * h + j) & 1) << 2;
        }
    }
}

pub(super) fn split_q4_k(block: &[u8; 144], out: &mut Integers) {
    Scales::read(block).split(out);
    split_low(&block[16..], &mut out.q);
}

pub(super) fn split_q5_k(block: &[u8; 176], out: &mut Integers) {
    Scales::read(block).split(out);
    split_low(&block[48..], &mut out.q);
    for (b, q) in out.q.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        for (q, high) in q.iter_mut().zip(&block[16..48]) {
            *q |= (high >> b & 1) << 4;
        }
    }
}

pub(super) fn split_q6_k(block: &[u8; 210], out: &mut Integers) {
    out.d = stored_half(block, 208);
    for (b, q) in out.q.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        out.s[b] = block[192 + b] as i8;
        let (h, j, start) = (b / 8, b / 2 % 4, b % 2 * 16);
        let low = &block[64 * h + j % 2 * 32 + start..][..16];
        let high = &block[128 + 32 * h + start..][..16];
        for ((q, low), high) in q.iter_mut().zip(low).zip(high) {
            *q = low >> (j / 2 * 4) & 15 | (high >> (2 * j) & 3) << 4;
        }
    }
}

/// The lower four bits of every q.
fn split_low(low: &[u8], q: &mut [u8; 256]) {
    let (pairs, _) = q.as_chunks_mut::<64>();
    for (low, q) in low.chunks_exact(32).zip(pairs) {
        for (l, low) in low.iter().enumerate() {
            (q[l], q[l + 32]) = (low & 15, low >> 4);
        }
    }
}

pub(super) fn write_q4_k(values: &[f32; 256], block: &mut [u8; 144]) {
    let q = quantise_affine(values, 15.0, block);
    put_low(&q, &mut block[16..]);
}

pub(super) fn write_q5_k(values: &[f32; 256], block: &mut [u8; 176]) {
    let q = quantise_affine(values, 31.0, block);
    block[16..48].fill(0);
    for (b, q) in q.as_chunks::<32>().0.iter().enumerate() {
        for (high, q) in block[16..48].iter_mut().zip(q) {
            *high |= (q >> 4) << b;
        }
    }
    put_low(&q, &mut block[48..]);
}

pub(super) fn write_q6_k(values: &[f32; 256], block: &mut [u8; 210]) {
    let values = finite(values);
    let (groups, _) = values.as_chunks::<16>();
    let scales: [f32; 16] = std::array::from_fn(|b| symmetric(&groups[b], 32.0));
    let d = put_half(block, 208, peak(&scales) / -128.0);
    let inv = inverse(d);
    block[..192].fill(0);
    for (b, group) in groups.iter().enumerate() {
        let s = round_within(scales[b] * inv, -128.0, 127.0);
        block[192 + b] = s as i8 as u8;
        let inv = inverse(d * s);
        let (h, j, start) = (b / 8, b / 2 % 4, b % 2 * 16);
        for (i, x) in group.iter().enumerate() {
            let q = (round_within(x * inv, -32.0, 31.0) + 32.0) as u8;
            block[64 * h + j % 2 * 32 + start + i] |= (q & 15) << (j / 2 * 4);
            block[128 + 32 * h + start + i] |= (q >> 4) << (2 * j);
        }
    }
}

/// Writes d, m and the scales of Q4_K and Q5_K, and returns q in 0..=n of every value.
fn quantise_affine(values: &[f32; 256], n: f32, block: &mut [u8]) -> [u8; 256] {
    let values = finite(values);
    let (groups, _) = values.as_chunks::<32>();
    let fits: [(f32, f32); 8] = std::array::from_fn(|b| affine(&groups[b], n));
    let [s, t] = [fits.map(|fit| fit.0), fits.map(|fit| fit.1)];
    let d = put_half(block, 0, peak(&s) / 63.0);
    let m = put_half(block, 2, peak(&t) / 63.0);
    let six_bits = |x: f32, inv: f32| round_within(x * inv, 0.0, 63.0) as u8;
    let scales = Scales {
        d,
        m,
        s: s.map(|s| six_bits(s, inverse(d))),
        t: t.map(|t| six_bits(t, inverse(m))),
    };
    scales.put(&mut block[4..16]);
    let mut all = [0; 256];
    for (b, q) in all.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, offset) = scales.of(b);
        let inv = inverse(scale);
        *q = groups[b].map(|x| round_within((x + offset) * inv, 0.0, n) as u8);
    }
    all
}

/// The lower four bits of every q.
fn put_low(q: &[u8; 256], low: &mut [u8]) {
    let (pairs, _) = q.as_chunks::<64>();
    for (low, q) in low.chunks_exact_mut(32).zip(pairs) {
        for (l, low) in low.iter_mut().enumerate() {
            *low = q[l] & 15 | (q[l + 32] & 15) << 4;
        }
    }
}

/// Scales and offsets of Q4_K and Q5_K.
struct Scales {
    d: f32,
    m: f32,
    s: [u8; 8], // below 64
    t: [u8; 8], // below 64
}

impl Scales {
    fn read(block: &[u8]) -> Scales {
        let (d, m, a) = (half_at(block, 0), half_at(block, 2), &block[4..16]);
        let (mut s, mut t) = ([0; 8], [0; 8]);
        for b in 0..4 {
            s[b] = a[b] & 63;
            t[b] = a[b + 4] & 63;
            s[b + 4] = a[b + 8] & 15 | a[b] >> 6 << 4;
            t[b + 4] = a[b + 8] >> 4 | a[b + 4] >> 6 << 4;
        }
        Scales { d, m, s, t }
    }

    fn split(&self, out: &mut Integers) {
        (out.d, out.m) = (f16::from_f32(self.d), f16::from_f32(-self.m));
        for b in 0..8 {
            (out.s[2 * b], out.t[2 * b]) = (self.s[b] as i8, self.t[b]);
            (out.s[2 * b + 1], out.t[2 * b + 1]) = (self.s[b] as i8, self.t[b]);
        }
    }

    fn put(&self, a: &mut [u8]) {
        for b in 0..4 {
            a[b] = self.s[b] | self.s[b + 4] >> 4 << 6;
            a[b + 4] = self.t[b] | self.t[b + 4] >> 4 << 6;
            a[b + 8] = self.s[b + 4] & 15 | self.t[b + 4] << 4;
        }
    }

    /// What q of 32 values is multiplied by, and what is subtracted.
    fn of(&self, b: usize) -> (f32, f32) {
        (self.d * f32::from(self.s[b]), self.m * f32::from(self.t[b]))
    }
}
