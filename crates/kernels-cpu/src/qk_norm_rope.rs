//! Per-head RMSNorm of queries and keys where the architecture has it, then the rotary embedding where the
//! layer has one.
//!
//! y = norm(x) * gain (gain shared by all heads)      [a|b] -> [a cos - b sin | b cos + a sin]
//!
//! The halves a, b are the first and the last K/2 channels; the angle of pair i at position p is
//! f32(p) * inv_freq_i, rounded to f32 as the published code does. Layout of qkv (T, (H+2G)*K): query
//! heads, key heads, value heads. Source: Su et al. 2021, arXiv:2104.09864; norm before rotation as
//! published for K-EXAONE. Memory-bound.

use crate::Cpu;
use crate::pool::SharedMut;
use crate::row;
use crate::simd::Simd;
use std::ops::Range;

/// Tokens whose gain gradients are summed before the sums are.
const BLOCK: usize = 64;

/// Heads of an attention layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadShape {
    /// H.
    pub num_heads: usize,
    /// G, a divisor of H.
    pub num_kv_heads: usize,
    /// K, even.
    pub head_dim: usize,
}

impl HeadShape {
    /// Width of a row of qkv: (H+2G)*K.
    pub fn qkv_size(&self) -> usize {
        (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
    }
}

/// What queries and keys are multiplied with after they are normed: (K) each.
#[derive(Clone, Copy)]
pub struct Gains<'a> {
    /// Of queries.
    pub q: &'a [f32],
    /// Of keys.
    pub k: &'a [f32],
}

/// Cosines and sines of every position up to a length.
pub struct RopeTable {
    inv_freq: Vec<f32>, // (K/2)
    cos: Vec<f32>,      // (len, K/2)
    sin: Vec<f32>,      // (len, K/2)
}

impl RopeTable {
    /// For positions below `len`.
    pub fn new(inv_freq: &[f32], len: usize) -> RopeTable {
        let mut table = RopeTable {
            inv_freq: inv_freq.to_vec(),
            cos: vec![],
            sin: vec![],
        };
        table.grow(len);
        table
    }

    /// Positions covered.
    pub fn len(&self) -> usize {
        self.cos.len() / self.inv_freq.len()
    }

    /// Whether no position is covered.
    pub fn is_empty(&self) -> bool {
        self.cos.is_empty()
    }

    /// Covers positions below `len`.
    pub fn grow(&mut self, len: usize) {
        for position in self.len()..len {
            for &f in &self.inv_freq {
                let angle = f64::from(position as f32 * f);
                self.cos.push(angle.cos() as f32);
                self.sin.push(angle.sin() as f32);
            }
        }
    }

    #[inline(always)]
    fn at(&self, position: u32) -> (&[f32], &[f32]) {
        let half = self.inv_freq.len();
        let range = position as usize * half..(position as usize + 1) * half;
        (&self.cos[range.clone()], &self.sin[range])
    }
}

/// Normalises one head; returns r.
#[inline(always)]
unsafe fn normalise<S: Simd>(y: &mut [f32], x: &[f32], gain: &[f32], eps: f32) -> f32 {
    let d = x.len();
    // SAFETY: all three have K values.
    unsafe {
        let mut sum = S::splat(0.0);
        let mut j = 0;
        while j < d {
            let v = S::load_partial(x.as_ptr().add(j), (d - j).min(S::LANES));
            sum = S::fma(v, v, sum);
            j += S::LANES;
        }
        let r = 1.0 / (S::reduce_add(sum) / d as f32 + eps).sqrt();
        let mut j = 0;
        while j < d {
            let n = (d - j).min(S::LANES);
            let v = S::mul(S::load_partial(x.as_ptr().add(j), n), S::splat(r));
            let v = S::mul(v, S::load_partial(gain.as_ptr().add(j), n));
            S::store_partial(y.as_mut_ptr().add(j), v, n);
            j += S::LANES;
        }
        r
    }
}

/// The backward pass of [`normalise`]; `dgain` adds.
#[inline(always)]
unsafe fn normalise_backward<S: Simd>(
    dx: &mut [f32],
    dgain: &mut [f32],
    dy: &[f32],
    x: &[f32],
    r: f32,
    gain: &[f32],
) {
    let d = x.len();
    // SAFETY: all slices have K values.
    unsafe {
        let mut dot = S::splat(0.0);
        let mut j = 0;
        while j < d {
            let n = (d - j).min(S::LANES);
            let dyv = S::load_partial(dy.as_ptr().add(j), n);
            let xv = S::load_partial(x.as_ptr().add(j), n);
            dot = S::fma(
                S::mul(dyv, S::load_partial(gain.as_ptr().add(j), n)),
                xv,
                dot,
            );
            let sum = S::load_partial(dgain.as_ptr().add(j), n);
            let sum = S::fma(dyv, S::mul(xv, S::splat(r)), sum);
            S::store_partial(dgain.as_mut_ptr().add(j), sum, n);
            j += S::LANES;
        }
        let c = S::splat(-S::reduce_add(dot) * r * r / d as f32);
        let mut j = 0;
        while j < d {
            let n = (d - j).min(S::LANES);
            let dyv = S::load_partial(dy.as_ptr().add(j), n);
            let g = S::mul(dyv, S::load_partial(gain.as_ptr().add(j), n));
            let v = S::fma(S::load_partial(x.as_ptr().add(j), n), c, g);
            S::store_partial(dx.as_mut_ptr().add(j), S::mul(S::splat(r), v), n);
            j += S::LANES;
        }
    }
}

/// Rotates one head in place; `direction` is 1, or -1 for the inverse (which is the transpose).
#[inline(always)]
unsafe fn rotate<S: Simd>(x: &mut [f32], cos: &[f32], sin: &[f32], direction: f32) {
    let half = x.len() / 2;
    let (a, b) = x.split_at_mut(half);
    // SAFETY: all four slices have K/2 values.
    unsafe {
        let sign = S::splat(direction);
        let mut j = 0;
        while j < half {
            let n = (half - j).min(S::LANES);
            let c = S::load_partial(cos.as_ptr().add(j), n);
            let s = S::mul(S::load_partial(sin.as_ptr().add(j), n), sign);
            let av = S::load_partial(a.as_ptr().add(j), n);
            let bv = S::load_partial(b.as_ptr().add(j), n);
            S::store_partial(
                a.as_mut_ptr().add(j),
                S::sub(S::mul(av, c), S::mul(bv, s)),
                n,
            );
            S::store_partial(
                b.as_mut_ptr().add(j),
                S::add(S::mul(bv, c), S::mul(av, s)),
                n,
            );
            j += S::LANES;
        }
    }
}

/// q (T, H, K), k (T, G, K), rstd (T, H+G) of qkv (T, (H+2G)*K). Without gains nothing is normed, and
/// rstd is left as it is.
pub fn forward(
    cpu: &Cpu,
    q: &mut [f32],
    k: &mut [f32],
    rstd: &mut [f32],
    qkv: &[f32],
    gains: Option<Gains>,
    positions: &[u32],
    rope: Option<&RopeTable>,
    shape: HeadShape,
    eps: f32,
) {
    let t = positions.len();
    check(shape, t, q.len(), k.len(), rstd.len(), qkv.len());
    let isa = cpu.isa();
    let (q, k, rstd) = (SharedMut::new(q), SharedMut::new(k), SharedMut::new(rstd));
    cpu.pool.for_ranges(t, row::grain(shape.qkv_size()), &|tokens| {
        dispatch!(isa, forward_rows(q: SharedMut<f32>, k: SharedMut<f32>, rstd: SharedMut<f32>, qkv: &[f32], gains: Option<Gains>, positions: &[u32], rope: Option<&RopeTable>, shape: HeadShape, eps: f32, tokens: Range<usize>));
    });
}

fn check(shape: HeadShape, t: usize, q: usize, k: usize, rstd: usize, qkv: usize) {
    let HeadShape {
        num_heads: h,
        num_kv_heads: g,
        head_dim,
    } = shape;
    assert_eq!(q, t * h * head_dim, "qk_norm_rope: q is not (T, H, K)");
    assert_eq!(k, t * g * head_dim, "qk_norm_rope: k is not (T, G, K)");
    assert_eq!(rstd, t * (h + g), "qk_norm_rope: rstd is not (T, H+G)");
    assert_eq!(
        qkv,
        t * shape.qkv_size(),
        "qk_norm_rope: qkv is not (T, (H+2G)*K)"
    );
}

#[inline(always)]
unsafe fn forward_rows<S: Simd>(
    q: SharedMut<f32>,
    k: SharedMut<f32>,
    rstd: SharedMut<f32>,
    qkv: &[f32],
    gains: Option<Gains>,
    positions: &[u32],
    rope: Option<&RopeTable>,
    shape: HeadShape,
    eps: f32,
    tokens: Range<usize>,
) {
    let HeadShape {
        num_heads: h,
        num_kv_heads: g,
        head_dim: d,
    } = shape;
    for t in tokens {
        let row = &qkv[t * shape.qkv_size()..][..shape.qkv_size()];
        for head in 0..h + g {
            // SAFETY: each thread has its own tokens.
            unsafe {
                let out = if head < h {
                    q.slice((t * h + head) * d..(t * h + head + 1) * d)
                } else {
                    let first = (t * g + head - h) * d;
                    k.slice(first..first + d)
                };
                let x = &row[head * d..(head + 1) * d];
                match gains {
                    Some(gains) => {
                        let gain = if head < h { gains.q } else { gains.k };
                        let r = normalise::<S>(out, x, gain, eps);
                        rstd.slice(t * (h + g) + head..t * (h + g) + head + 1)[0] = r;
                    }
                    None => out.copy_from_slice(x),
                }
                if let Some(rope) = rope {
                    let (cos, sin) = rope.at(positions[t]);
                    rotate::<S>(out, cos, sin, 1.0);
                }
            }
        }
    }
}

/// Query and key columns of dqkv from dq (T, H, K) and dk (T, G, K); the gradients of the gains add, or
/// are left alone where there are none.
pub fn backward(
    cpu: &Cpu,
    dqkv: &mut [f32],
    dq_gain: &mut [f32],
    dk_gain: &mut [f32],
    dq: &[f32],
    dk: &[f32],
    qkv: &[f32],
    rstd: &[f32],
    gains: Option<Gains>,
    positions: &[u32],
    rope: Option<&RopeTable>,
    shape: HeadShape,
) {
    let t = positions.len();
    check(shape, t, dq.len(), dk.len(), rstd.len(), qkv.len());
    assert_eq!(
        dqkv.len(),
        qkv.len(),
        "qk_norm_rope: dqkv is not (T, (H+2G)*K)"
    );
    let (isa, d) = (cpu.isa(), shape.head_dim);
    let mut partial = vec![0.0f32; t.div_ceil(BLOCK) * 2 * d];
    let (out, sums) = (SharedMut::new(dqkv), SharedMut::new(&mut partial));
    cpu.pool.for_ranges(t, BLOCK, &|tokens| {
        dispatch!(isa, backward_rows(out: SharedMut<f32>, sums: SharedMut<f32>, dq: &[f32], dk: &[f32], qkv: &[f32], rstd: &[f32], gains: Option<Gains>, positions: &[u32], rope: Option<&RopeTable>, shape: HeadShape, tokens: Range<usize>));
    });
    if gains.is_none() {
        return;
    }
    for block in partial.chunks_exact(2 * d) {
        for j in 0..d {
            dq_gain[j] += block[j];
            dk_gain[j] += block[d + j];
        }
    }
}

#[inline(always)]
unsafe fn backward_rows<S: Simd>(
    out: SharedMut<f32>,
    sums: SharedMut<f32>,
    dq: &[f32],
    dk: &[f32],
    qkv: &[f32],
    rstd: &[f32],
    gains: Option<Gains>,
    positions: &[u32],
    rope: Option<&RopeTable>,
    shape: HeadShape,
    tokens: Range<usize>,
) {
    let HeadShape {
        num_heads: h,
        num_kv_heads: g,
        head_dim: d,
    } = shape;
    let width = shape.qkv_size();
    let mut grad = vec![0.0f32; d];
    for t in tokens {
        for head in 0..h + g {
            let (source, offset) = if head < h {
                (&dq[(t * h + head) * d..][..d], 0)
            } else {
                (&dk[(t * g + head - h) * d..][..d], d)
            };
            grad.copy_from_slice(source);
            let span = t * width + head * d..t * width + (head + 1) * d;
            // SAFETY: each thread has its own tokens and its own blocks of tokens.
            unsafe {
                if let Some(rope) = rope {
                    let (cos, sin) = rope.at(positions[t]);
                    rotate::<S>(&mut grad, cos, sin, -1.0);
                }
                let dx = out.slice(span.clone());
                let Some(gains) = gains else {
                    dx.copy_from_slice(&grad);
                    continue;
                };
                let gain = if head < h { gains.q } else { gains.k };
                let first = t / BLOCK * 2 * d + offset;
                let sums = sums.slice(first..first + d);
                let r = rstd[t * (h + g) + head];
                normalise_backward::<S>(dx, sums, &grad, &qkv[span], r, gain);
            }
        }
    }
}
