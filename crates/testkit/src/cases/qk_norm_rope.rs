//! Norm of each head of q and k, then the rotation, each where there is one: `reference::ops::rms_norm`
//! and `rope` on the query and key columns of qkv (T, (H+2G)*K).

use super::boxed;
use crate::case::{
    Case, Cost, Gradient, Kernel, Mode, Output, beside, columns, dot, normal, upload,
};
use crate::compare::{Tolerance, to_f32, to_f64};
use reference::ops;
use tensor::Device;
use tensor::ops::qk_norm_rope::{self, Gains, HeadShape, RopeTable};

/// Large beside the values, so that it counts, and so that a row of one or two columns has a gradient that
/// is not all cancellation.
const EPS: f32 = 0.1;
const THETA: f64 = 1e4;

/// (T, H, G, K): one; odd; around vectors; beyond the 64 tokens whose share of the gains is summed apart;
/// real.
const SIZES: [(usize, usize, usize, usize); 5] = [
    (1, 1, 1, 2),
    (3, 3, 1, 10),
    (7, 2, 2, 34),
    (65, 4, 2, 16),
    (130, 6, 2, 64),
];
const REAL: [(usize, usize, usize, usize); 1] = [(16_384, 12, 4, 64)];

/// The table.
pub fn cases(mode: Mode) -> Vec<Box<dyn Case>> {
    let sizes = if mode == Mode::Perf {
        &REAL[..]
    } else {
        &SIZES
    };
    let all = sizes.iter().flat_map(|&(t, h, g, k)| {
        [(true, true), (true, false), (false, true)].map(|(has_norm, has_rope)| Heads {
            t,
            shape: HeadShape {
                num_heads: h,
                num_kv_heads: g,
                head_dim: k,
            },
            has_norm,
            has_rope,
        })
    });
    let both: Vec<Heads> = all.collect();
    let forward = both.iter().cloned().map(Forward);
    let backward = both.iter().cloned().map(Backward);
    boxed(forward).chain(boxed(backward)).collect()
}

/// The inputs of both directions.
#[derive(Clone)]
struct Heads {
    t: usize,
    shape: HeadShape,
    has_norm: bool,
    has_rope: bool,
}

impl Heads {
    fn dims(&self) -> Vec<(&'static str, usize)> {
        let HeadShape {
            num_heads,
            num_kv_heads,
            head_dim,
        } = self.shape;
        let (norm, rope) = (usize::from(self.has_norm), usize::from(self.has_rope));
        vec![
            ("T", self.t),
            ("H", num_heads),
            ("G", num_kv_heads),
            ("K", head_dim),
            ("norm", norm),
            ("rope", rope),
        ]
    }
    /// Widths of q, k and v.
    fn widths(&self) -> (usize, usize) {
        let HeadShape {
            num_heads,
            num_kv_heads,
            head_dim,
        } = self.shape;
        (num_heads * head_dim, num_kv_heads * head_dim)
    }
    fn qkv(&self) -> Vec<f32> {
        normal(self.t * self.shape.qkv_size(), "qkv")
    }
    fn gain(&self, name: &str) -> Vec<f32> {
        normal(self.shape.head_dim, name)
    }
    /// Three sequences, the first of one token.
    fn positions(&self) -> Vec<u32> {
        let half = self.t.div_ceil(2) as u32;
        let starts = [0, 1.min(self.t as u32), half.max(1).min(self.t as u32)];
        (0..self.t as u32)
            .map(|t| t - starts.iter().rev().find(|&&start| start <= t).unwrap_or(&0))
            .collect()
    }
    fn frequencies(&self) -> Vec<f32> {
        ops::rope_frequencies(THETA, self.shape.head_dim, None)
    }
    fn table(&self) -> RopeTable {
        RopeTable::new(&self.frequencies(), self.t)
    }
    /// qkv, gains of q and k -> q, k.
    fn forward(&self, qkv: &[f64], q_gain: &[f64], k_gain: &[f64]) -> [Vec<f64>; 2] {
        let (size, (q, k)) = (self.shape.qkv_size(), self.widths());
        [(0, q, q_gain), (q, q + k, k_gain)].map(|(from, to, gain)| {
            let mut x = columns(qkv, size, from, to);
            if self.has_norm {
                x = ops::rms_norm(&x, gain, f64::from(EPS));
            }
            if self.has_rope {
                ops::rope(&x, &self.positions(), &self.frequencies())
            } else {
                x
            }
        })
    }
    fn old_rstd(&self) -> Vec<f32> {
        let heads = self.shape.num_heads + self.shape.num_kv_heads;
        normal(self.t * heads, "old rstd")
    }
    /// r of each head of q and k: (T, H+G); left as it was where nothing is normed.
    fn rstd(&self, qkv: &[f64]) -> Vec<f64> {
        if !self.has_norm {
            return to_f64(&self.old_rstd());
        }
        let (size, (q, k)) = (self.shape.qkv_size(), self.widths());
        columns(qkv, size, 0, q + k)
            .chunks_exact(self.shape.head_dim)
            .map(|x| ops::reciprocal_rms(x, f64::from(EPS)))
            .collect()
    }
}

struct Forward(Heads);

impl Case for Forward {
    fn op(&self) -> &'static str {
        "qk_norm_rope.forward"
    }
    fn dims(&self) -> Vec<(&'static str, usize)> {
        self.0.dims()
    }
    fn cost(&self) -> Cost {
        let (q, k) = self.0.widths();
        Cost::values(self.0.t * (q + k), self.0.t * (q + k))
    }
    fn outputs(&self) -> Vec<Output> {
        let (t, (q, k)) = (self.0.t, self.0.widths());
        let tolerance = Tolerance::sums(self.0.shape.head_dim);
        vec![
            Output::new("q", t * q, tolerance),
            Output::new("k", t * k, tolerance),
            match self.0.has_norm {
                true => Output::new("rstd", t * (q + k) / self.0.shape.head_dim, tolerance),
                false => Output::operand("rstd", self.0.old_rstd(), tolerance),
            },
        ]
    }
    fn reference(&self) -> Vec<Vec<f64>> {
        let qkv = to_f64(&self.0.qkv());
        let (q_gain, k_gain) = (self.0.gain("q_gain"), self.0.gain("k_gain"));
        let [q, k] = self.0.forward(&qkv, &to_f64(&q_gain), &to_f64(&k_gain));
        vec![q, k, self.0.rstd(&qkv)]
    }
    fn kernel<'a>(&'a self, device: &'a Device) -> Kernel<'a> {
        let (shape, table) = (self.0.shape, self.0.table());
        let qkv = upload(device, &self.0.qkv());
        let q_gain = upload(device, &self.0.gain("q_gain"));
        let k_gain = upload(device, &self.0.gain("k_gain"));
        let positions = upload(device, &self.0.positions());
        Box::new(move |out| {
            let [q, k, rstd] = out else {
                unreachable!("three outputs")
            };
            let (q, k, rstd) = (q.floats_mut(), k.floats_mut(), rstd.floats_mut());
            let rope = self.0.has_rope.then_some(&table);
            let gains = self.0.has_norm.then(|| Gains {
                q: q_gain.view(),
                k: k_gain.view(),
            });
            let (qkv, positions) = (qkv.view(), positions.view());
            qk_norm_rope::forward(device, q, k, rstd, qkv, gains, positions, rope, shape, EPS);
        })
    }
}

struct Backward(Heads);

impl Backward {
    fn d(&self, name: &str) -> Vec<f32> {
        let (q, k) = self.0.widths();
        normal(self.0.t * if name == "dq" { q } else { k }, name)
    }
    /// -> gradients of the query columns, the key columns, and both gains.
    fn gradients(&self) -> [[Vec<f64>; 2]; 2] {
        let (size, (q, k)) = (self.0.shape.qkv_size(), self.0.widths());
        let qkv = to_f64(&self.0.qkv());
        [("dq", "q_gain", 0, q), ("dk", "k_gain", q, q + k)].map(|(d, gain, from, to)| {
            let (mut dy, gain) = (to_f64(&self.d(d)), to_f64(&self.0.gain(gain)));
            if self.0.has_rope {
                dy = ops::rope_backward(&dy, &self.0.positions(), &self.0.frequencies());
            }
            if !self.0.has_norm {
                return [dy, vec![0.0; gain.len()]];
            }
            let x = columns(&qkv, size, from, to);
            let (dx, dgain) = ops::rms_norm_backward(&dy, &x, &gain, f64::from(EPS));
            [dx, dgain]
        })
    }
    /// The query and key columns of `dqkv` replaced by their gradients.
    fn dqkv(&self, dqkv: &[f64], dq: &[f64], dk: &[f64]) -> Vec<f64> {
        let (size, (q, k)) = (self.0.shape.qkv_size(), self.0.widths());
        let values = columns(dqkv, size, q + k, size);
        beside(&[(dq, q), (dk, k), (&values, k)])
    }
    fn old(&self) -> Vec<f32> {
        normal(self.0.t * self.0.shape.qkv_size(), "old dqkv")
    }
}

impl Case for Backward {
    fn op(&self) -> &'static str {
        "qk_norm_rope.backward"
    }
    fn dims(&self) -> Vec<(&'static str, usize)> {
        self.0.dims()
    }
    fn cost(&self) -> Cost {
        let (q, k) = self.0.widths();
        Cost::values(2 * self.0.t * (q + k), self.0.t * (q + k))
    }
    fn outputs(&self) -> Vec<Output> {
        let d = self.0.shape.head_dim;
        let sums = Tolerance::sums(self.0.t * self.0.shape.num_heads);
        vec![
            // Of two columns the gradient is a difference of terms ten times as large.
            Output::operand("dqkv", self.old(), Tolerance::sums(100 + d)),
            Output::sum("dq_gain", normal(d, "old dq_gain"), sums),
            Output::sum("dk_gain", normal(d, "old dk_gain"), sums),
        ]
    }
    fn reference(&self) -> Vec<Vec<f64>> {
        let [[dq, dq_gain], [dk, dk_gain]] = self.gradients();
        vec![self.dqkv(&to_f64(&self.old()), &dq, &dk), dq_gain, dk_gain]
    }
    fn kernel<'a>(&'a self, device: &'a Device) -> Kernel<'a> {
        let (shape, table) = (self.0.shape, self.0.table());
        let rstd = to_f32(&self.0.rstd(&to_f64(&self.0.qkv())));
        let (rstd, qkv) = (upload(device, &rstd), upload(device, &self.0.qkv()));
        let q_gain = upload(device, &self.0.gain("q_gain"));
        let k_gain = upload(device, &self.0.gain("k_gain"));
        let (dq, dk) = (upload(device, &self.d("dq")), upload(device, &self.d("dk")));
        let positions = upload(device, &self.0.positions());
        Box::new(move |out| {
            let [dqkv, dq_gain, dk_gain] = out else {
                unreachable!("three outputs")
            };
            qk_norm_rope::backward(
                device,
                dqkv.floats_mut(),
                dq_gain.floats_mut(),
                dk_gain.floats_mut(),
                dq.view(),
                dk.view(),
                qkv.view(),
                rstd.view(),
                self.0.has_norm.then(|| Gains {
                    q: q_gain.view(),
                    k: k_gain.view(),
                }),
                positions.view(),
                self.0.has_rope.then_some(&table),
                shape,
            );
        })
    }
    fn gradient(&self) -> Option<Gradient<'_>> {
        let [[dq, dq_gain], [dk, dk_gain]] = self.gradients();
        let qkv = to_f64(&self.0.qkv());
        let dqkv = self.dqkv(&vec![0.0; qkv.len()], &dq, &dk);
        let (q_gain, k_gain) = (self.0.gain("q_gain"), self.0.gain("k_gain"));
        let (dq, dk) = (to_f64(&self.d("dq")), to_f64(&self.d("dk")));
        Some(Gradient {
            at: vec![qkv, to_f64(&q_gain), to_f64(&k_gain)],
            claimed: vec![dqkv, dq_gain, dk_gain],
            of: Box::new(move |at| {
                let [q, k] = self.0.forward(&at[0], &at[1], &at[2]);
                dot(&dq, &q) + dot(&dk, &k)
            }),
        })
    }
}
