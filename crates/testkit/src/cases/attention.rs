//! Causal grouped-query attention of packed sequences: `reference::ops::attention`, one by one.

use super::boxed;
use super::gemm::factors;
use crate::case::{
    Case, Cost, Gradient, Kernel, Mode, Output, beside, columns, dot, normal, upload,
};
use crate::compare::{Tolerance, sums, to_f32, to_f64};
use reference::ops;
use std::ops::Range;
use tensor::ops::attention::{self, CachedSequence, HeadShape, KV_BLOCK, KvLayer};
use tensor::{Compute, Device};

/// Lengths of the sequences, H, G, K, and the window (0 for none): one token; odd; windows of one, inside
/// a block of 64 keys, of a block, beyond it, beyond the sequence; empty sequences; lengths around tiles
/// of 16 queries and blocks; real.
const SIZES: [(&[usize], usize, usize, usize, usize); 9] = [
    (&[1], 1, 1, 2, 0),
    (&[5, 1, 3], 3, 1, 10, 0),
    (&[5, 0, 17], 2, 2, 6, 1),
    (&[70, 1, 12, 0, 137], 4, 2, 32, 8),
    (&[129], 2, 1, 16, 64),
    (&[64, 65, 63], 2, 2, 18, 65),
    (&[200], 4, 1, 34, 100),
    (&[33], 2, 1, 80, 500),
    (&[96, 160], 6, 2, 64, 128),
];
/// A training step's, of either kind, and one long sequence.
const REAL: [(&[usize], usize, usize, usize, usize); 3] = [
    (&[512; 8], 6, 2, 64, 128),
    (&[512; 8], 6, 2, 64, 0),
    (&[4096], 6, 2, 64, 0),
];

/// The table.
pub fn cases(mode: Mode) -> Vec<Box<dyn Case>> {
    let sizes = if mode == Mode::Perf {
        &REAL[..]
    } else {
        &SIZES
    };
    // Gradients by differences: the roundings of bf16 are steps.
    let types = match mode {
        Mode::Grad => &[Compute::F32][..],
        Mode::Conform | Mode::Perf => &[Compute::F32, Compute::Bf16],
    };
    let all = sizes.iter().map(|&(lens, h, g, k, window)| Packed {
        compute: Compute::F32,
        lens,
        shape: HeadShape {
            num_heads: h,
            num_kv_heads: g,
            head_dim: k,
        },
        window: (window > 0).then_some(window),
    });
    let all = types.iter().flat_map(|&compute| {
        let of_type = move |packed| Packed { compute, ..packed };
        all.clone().map(of_type)
    });
    let forward = all.clone().map(Forward);
    // A token of each sequence, and several, against a cache.
    let cached = all.clone().flat_map(|packed| {
        [1, 19].map(|rows| Cached {
            packed: packed.clone(),
            rows,
        })
    });
    boxed(forward)
        .chain(boxed(all.map(Backward)))
        .chain(boxed(cached))
        .collect()
}

/// The inputs of all.
#[derive(Clone)]
struct Packed {
    compute: Compute,
    lens: &'static [usize],
    shape: HeadShape,
    window: Option<usize>,
}

impl Packed {
    fn dims(&self) -> Vec<(&'static str, usize)> {
        let HeadShape {
            num_heads,
            num_kv_heads,
            head_dim,
        } = self.shape;
        vec![
            ("T", self.tokens()),
            ("B", self.lens.len()),
            ("H", num_heads),
            ("G", num_kv_heads),
            ("K", head_dim),
            ("window", self.window.unwrap_or(0)),
        ]
    }
    fn tokens(&self) -> usize {
        self.lens.iter().sum()
    }
    fn cu_seqlens(&self) -> Vec<u32> {
        let mut end = 0;
        let ends = self.lens.iter().map(|&len| {
            end += len as u32;
            end
        });
        std::iter::once(0).chain(ends).collect()
    }
    fn sequences(&self) -> impl Iterator<Item = Range<usize>> {
        let borders = self.cu_seqlens();
        let pairs: Vec<_> = borders
            .windows(2)
            .map(|w| w[0] as usize..w[1] as usize)
            .collect();
        pairs.into_iter()
    }
    /// Widths of q and of k.
    fn widths(&self) -> (usize, usize) {
        let d = self.shape.head_dim;
        (self.shape.num_heads * d, self.shape.num_kv_heads * d)
    }
    fn q(&self) -> Vec<f32> {
        normal(self.tokens() * self.widths().0, "q")
    }
    fn k(&self) -> Vec<f32> {
        normal(self.tokens() * self.widths().1, "k")
    }
    fn qkv(&self) -> Vec<f32> {
        normal(self.tokens() * self.shape.qkv_size(), "qkv")
    }
    fn d_o(&self) -> Vec<f32> {
        normal(self.tokens() * self.widths().0, "do")
    }
    /// Factors of products, as they are multiplied.
    fn factors(&self, x: &[f32]) -> Vec<f64> {
        factors(self.compute, x)
    }
    /// The value columns of qkv.
    fn values(&self, qkv: &[f64]) -> Vec<f64> {
        let size = self.shape.qkv_size();
        columns(qkv, size, size - self.widths().1, size)
    }
    fn reference_shape(&self) -> ops::HeadShape {
        ops::HeadShape {
            num_heads: self.shape.num_heads,
            num_kv_heads: self.shape.num_kv_heads,
            head_dim: self.shape.head_dim,
        }
    }
    /// Rows `of` of matrices as wide as q, and as k.
    fn rows<'a>(&self, of: &Range<usize>, wide: &'a [f64], narrow: &'a [f64]) -> [&'a [f64]; 2] {
        let (q, k) = self.widths();
        [
            &wide[of.start * q..of.end * q],
            &narrow[of.start * k..of.end * k],
        ]
    }
    fn forward(&self, q: &[f64], k: &[f64], v: &[f64]) -> Vec<f64> {
        let mut o = Vec::new();
        for of in self.sequences() {
            let ([q, k], [_, v]) = (self.rows(&of, q, k), self.rows(&of, q, v));
            o.extend(ops::attention(q, k, v, self.window, self.reference_shape()));
        }
        o
    }
    /// Of each query and head the logarithm of the sum of its exponentiated scores: (T, H).
    fn lse(&self, q: &[f64], k: &[f64]) -> Vec<f64> {
        let (d, h, g) = (
            self.shape.head_dim,
            self.shape.num_heads,
            self.shape.num_kv_heads,
        );
        let mut lse = Vec::new();
        for of in self.sequences() {
            for i in 0..of.len() {
                for head in 0..h {
                    let query = &q[((of.start + i) * h + head) * d..][..d];
                    let sum: f64 = ops::visible(i, self.window)
                        .map(|j| &k[((of.start + j) * g + head / (h / g)) * d..][..d])
                        .map(|key| (dot(query, key) / (d as f64).sqrt()).exp())
                        .sum();
                    lse.push(sum.ln());
                }
            }
        }
        lse
    }
    /// -> dq, dk, dv.
    fn backward(&self) -> [Vec<f64>; 3] {
        let (d_o, q) = (self.factors(&self.d_o()), self.factors(&self.q()));
        let k = self.factors(&self.k());
        let v = self.values(&self.factors(&self.qkv()));
        let [mut dq, mut dk, mut dv] = [Vec::new(), Vec::new(), Vec::new()];
        for of in self.sequences() {
            let ([q, k], [d_o, v]) = (self.rows(&of, &q, &k), self.rows(&of, &d_o, &v));
            let shape = self.reference_shape();
            let grads = ops::attention_backward(d_o, q, k, v, self.window, shape);
            dq.extend(grads.0);
            dk.extend(grads.1);
            dv.extend(grads.2);
        }
        [dq, dk, dv]
    }
    /// Products of a query with a key, or of a probability with a value, in multiply-adds.
    fn product(&self) -> f64 {
        let pairs: usize = self
            .lens
            .iter()
            .flat_map(|&len| (0..len).map(|i| ops::visible(i, self.window).count()))
            .sum();
        (pairs * self.shape.num_heads * self.shape.head_dim) as f64
    }
}

/// Scores are sums of K products and stand in an exponent: an error of a score is one of a probability.
/// Gradients are differences of such, all of them zero where a query sees one key.
/// In bf16 the oracle rounds what it is given, and probabilities and gradients of scores are each off by a relative
/// 2^-9 at most where they are multiplied.
fn tolerance(packed: &Packed) -> Tolerance {
    let terms = 16 * packed.shape.head_dim + packed.tokens();
    match packed.compute {
        Compute::F32 => Tolerance::differences(terms),
        Compute::Bf16 => Tolerance::NmseOfTerms {
            bound: sums(terms) + 2f64.powi(-18),
            size: 1.0,
        },
    }
}

/// Of the logarithms, which no rounded factor but those that are given reaches.
fn tolerance_of_lse(packed: &Packed) -> Tolerance {
    Tolerance::differences(16 * packed.shape.head_dim + packed.tokens())
}

struct Forward(Packed);

impl Case for Forward {
    fn op(&self) -> &'static str {
        "attention.forward"
    }
    fn dims(&self) -> Vec<(&'static str, usize)> {
        self.0.dims()
    }
    fn compute(&self) -> Compute {
        self.0.compute
    }
    fn cost(&self) -> Cost {
        let (t, (q, k)) = (self.0.tokens(), self.0.widths());
        Cost::values(t * (q + 2 * k), t * q).multiply_adds(2.0 * self.0.product())
    }
    fn outputs(&self) -> Vec<Output> {
        let (t, q) = (self.0.tokens(), self.0.widths().0);
        let tolerance = tolerance(&self.0);
        vec![
            Output::new("o", t * q, tolerance),
            Output::new("lse", t * self.0.shape.num_heads, tolerance_of_lse(&self.0)),
        ]
    }
    fn reference(&self) -> Vec<Vec<f64>> {
        let (q, k) = (self.0.factors(&self.0.q()), self.0.factors(&self.0.k()));
        let v = self.0.values(&self.0.factors(&self.0.qkv()));
        vec![self.0.forward(&q, &k, &v), self.0.lse(&q, &k)]
    }
    fn kernel<'a>(&'a self, device: &'a Device) -> Kernel<'a> {
        let (q, k) = (upload(device, &self.0.q()), upload(device, &self.0.k()));
        let qkv = upload(device, &self.0.qkv());
        let cu_seqlens = upload(device, &self.0.cu_seqlens());
        let (window, shape) = (self.0.window, self.0.shape);
        Box::new(move |out| {
            let [o, lse] = out else {
                unreachable!("two outputs")
            };
            let (o, lse) = (o.floats_mut(), lse.floats_mut());
            let (q, k, qkv, cu_seqlens) = (q.view(), k.view(), qkv.view(), cu_seqlens.view());
            attention::forward(
                device,
                self.0.compute,
                o,
                lse,
                q,
                k,
                qkv,
                cu_seqlens,
                window,
                shape,
            );
        })
    }
}

struct Backward(Packed);

impl Backward {
    fn old(&self) -> Vec<f32> {
        normal(self.0.tokens() * self.0.shape.qkv_size(), "old dqkv")
    }
    /// `dqkv` with its value columns replaced.
    fn dqkv(&self, dqkv: &[f64], dv: &[f64]) -> Vec<f64> {
        let (size, k) = (self.0.shape.qkv_size(), self.0.widths().1);
        let others = columns(dqkv, size, 0, size - k);
        beside(&[(&others, size - k), (dv, k)])
    }
}

impl Case for Backward {
    fn op(&self) -> &'static str {
        "attention.backward"
    }
    fn dims(&self) -> Vec<(&'static str, usize)> {
        self.0.dims()
    }
    fn compute(&self) -> Compute {
        self.0.compute
    }
    fn cost(&self) -> Cost {
        let (t, (q, k)) = (self.0.tokens(), self.0.widths());
        // q k, do v, and the three gradients.
        Cost::values(t * (3 * q + 2 * k), t * (q + 2 * k)).multiply_adds(5.0 * self.0.product())
    }
    fn outputs(&self) -> Vec<Output> {
        let (t, (q, k)) = (self.0.tokens(), self.0.widths());
        let tolerance = tolerance(&self.0);
        vec![
            Output::new("dq", t * q, tolerance),
            Output::new("dk", t * k, tolerance),
            Output::operand("dqkv", self.old(), tolerance),
        ]
    }
    fn reference(&self) -> Vec<Vec<f64>> {
        let [dq, dk, dv] = self.0.backward();
        vec![dq, dk, self.dqkv(&to_f64(&self.old()), &dv)]
    }
    fn kernel<'a>(&'a self, device: &'a Device) -> Kernel<'a> {
        let (q, k) = (self.0.factors(&self.0.q()), self.0.factors(&self.0.k()));
        let v = self.0.values(&self.0.factors(&self.0.qkv()));
        let o = upload(device, &to_f32(&self.0.forward(&q, &k, &v)));
        let lse = upload(device, &to_f32(&self.0.lse(&q, &k)));
        let (q, k) = (upload(device, &self.0.q()), upload(device, &self.0.k()));
        let (d_o, qkv) = (upload(device, &self.0.d_o()), upload(device, &self.0.qkv()));
        let cu_seqlens = upload(device, &self.0.cu_seqlens());
        Box::new(move |out| {
            let [dq, dk, dqkv] = out else {
                unreachable!("three outputs")
            };
            attention::backward(
                device,
                self.0.compute,
                dq.floats_mut(),
                dk.floats_mut(),
                dqkv.floats_mut(),
                d_o.view(),
                o.view(),
                lse.view(),
                q.view(),
                k.view(),
                qkv.view(),
                cu_seqlens.view(),
                self.0.window,
                self.0.shape,
            );
        })
    }
    fn gradient(&self) -> Option<Gradient<'_>> {
        let [dq, dk, dv] = self.0.backward();
        let d_o = to_f64(&self.0.d_o());
        let v = self.0.values(&to_f64(&self.0.qkv()));
        Some(Gradient {
            at: vec![to_f64(&self.0.q()), to_f64(&self.0.k()), v],
            claimed: vec![dq, dk, dv],
            of: Box::new(move |at| dot(&d_o, &self.0.forward(&at[0], &at[1], &at[2]))),
        })
    }
}

/// The last rows of each sequence (all, where it has no more) against keys and values in a cache.
struct Cached {
    packed: Packed,
    rows: usize,
}

impl Cached {
    /// The rows of each sequence that has any.
    fn queries(&self) -> Vec<Range<usize>> {
        let sequences = self.packed.sequences().filter(|of| !of.is_empty());
        sequences
            .map(|of| of.end - self.rows.min(of.len())..of.end)
            .collect()
    }
    fn num_queries(&self) -> usize {
        self.queries().iter().map(Range::len).sum()
    }
    /// Those rows of a matrix as wide as q.
    fn rows_of(&self, x: &[f64]) -> Vec<f64> {
        let q = self.packed.widths().0;
        let rows = self.queries();
        rows.into_iter()
            .flat_map(|of| x[of.start * q..of.end * q].to_vec())
            .collect()
    }
    /// Blocks of each sequence. They lie in reverse, so that a mixed-up table shows.
    fn block_tables(&self) -> Vec<Vec<u32>> {
        let lens = self.packed.lens.iter().filter(|&&len| len > 0);
        let mut end = self.num_blocks() as u32;
        lens.map(|&len| {
            let blocks = len.div_ceil(KV_BLOCK) as u32;
            end -= blocks;
            (end..end + blocks).rev().collect()
        })
        .collect()
    }
    fn num_blocks(&self) -> usize {
        let lens = self.packed.lens.iter();
        lens.map(|len| len.div_ceil(KV_BLOCK)).sum()
    }
    /// Where each token's key and value go.
    fn slots(&self) -> Vec<u32> {
        let lens = self.packed.lens.iter().filter(|&&len| len > 0);
        let tables = self.block_tables();
        let slot = |table: &Vec<u32>, position: usize| {
            table[position / KV_BLOCK] * KV_BLOCK as u32 + (position % KV_BLOCK) as u32
        };
        lens.zip(&tables)
            .flat_map(|(&len, table)| (0..len).map(move |position| slot(table, position)))
            .collect()
    }
    /// A cache that holds all tokens.
    fn cache(&self, device: &Device) -> KvLayer {
        let mut cache = KvLayer::new(
            device,
            self.packed.compute,
            self.num_blocks(),
            self.packed.shape,
        );
        let k = upload(device, &self.packed.k());
        let qkv = upload(device, &self.packed.qkv());
        let slots = upload(device, &self.slots());
        attention::append_kv(device, &mut cache, k.view(), qkv.view(), slots.view());
        cache
    }
}

impl Case for Cached {
    fn op(&self) -> &'static str {
        "attention.forward_cached"
    }
    fn dims(&self) -> Vec<(&'static str, usize)> {
        [&[("rows", self.rows)], &self.packed.dims()[..]].concat()
    }
    fn compute(&self) -> Compute {
        self.packed.compute
    }
    fn cost(&self) -> Cost {
        let (q, k) = self.packed.widths();
        let (mut pairs, mut keys) = (0, 0);
        let lens = self.packed.lens.iter().filter(|&&len| len > 0);
        for (queries, &len) in self.queries().iter().zip(lens) {
            let seen = |i: usize| ops::visible(i, self.packed.window);
            pairs += (len - queries.len()..len)
                .map(|i| seen(i).count())
                .sum::<usize>();
            keys += len - seen(len - queries.len()).start();
        }
        let rows = self.num_queries() * q;
        let cached = match self.packed.compute {
            Compute::F32 => 2 * keys * k,
            Compute::Bf16 => keys * k,
        };
        Cost::values(rows + cached, rows).multiply_adds((2 * pairs * q) as f64)
    }
    fn outputs(&self) -> Vec<Output> {
        let len = self.num_queries() * self.packed.widths().0;
        vec![Output::new("o", len, tolerance(&self.packed))]
    }
    fn reference(&self) -> Vec<Vec<f64>> {
        let (q, k) = (
            self.packed.factors(&self.packed.q()),
            self.packed.factors(&self.packed.k()),
        );
        let v = self.packed.values(&self.packed.factors(&self.packed.qkv()));
        vec![self.rows_of(&self.packed.forward(&q, &k, &v))]
    }
    fn kernel<'a>(&'a self, device: &'a Device) -> Kernel<'a> {
        let q = to_f32(&self.rows_of(&to_f64(&self.packed.q())));
        let (q, cache) = (upload(device, &q), self.cache(device));
        let tables = self.block_tables();
        let (queries, window) = (self.queries(), self.packed.window);
        let lens = self.packed.lens.iter().filter(|&&len| len > 0);
        let positions: Vec<usize> = lens.zip(&queries).map(|(&len, q)| len - q.len()).collect();
        Box::new(move |out| {
            let mut start = 0;
            let sequence = |((rows, &first_pos), table): ((&Range<usize>, &usize), _)| {
                start += rows.len();
                CachedSequence {
                    rows: start - rows.len()..start,
                    first_pos,
                    block_table: table,
                }
            };
            let all = queries
                .iter()
                .zip(&positions)
                .zip(tables.iter().map(Vec::as_slice));
            let sequences: Vec<CachedSequence> = all.map(sequence).collect();
            let o = out[0].floats_mut();
            attention::forward_cached(device, o, q.view(), &cache, &sequences, window);
        })
    }
}
