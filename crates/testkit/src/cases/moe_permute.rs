//! Tokens to experts and back, in plain loops: the reference visits experts one by one and has no
//! permutation.

use super::boxed;
use crate::case::{Case, Cost, Gradient, Kernel, Mode, Output, below, dot, normal, upload};
use crate::compare::{Tolerance, to_f64};
use reference::ops::add_scaled;
use tensor::Device;
use tensor::ops::gemm::Store;
use tensor::ops::moe_permute;

/// (T, E, A, D): one; all experts; odd; most experts idle; real.
const SIZES: [(usize, usize, usize, usize); 5] = [
    (1, 1, 1, 1),
    (3, 4, 4, 5),
    (17, 9, 3, 33),
    (5, 128, 8, 100),
    (130, 16, 4, 384),
];
const REAL: [(usize, usize, usize, usize); 1] = [(4096, 16, 4, 1024)];

/// The table.
pub fn cases(mode: Mode) -> Vec<Box<dyn Case>> {
    let sizes = if mode == Mode::Perf {
        &REAL[..]
    } else {
        &SIZES
    };
    let kinds = [
        Kind::Permute,
        Kind::Combine(Store::Overwrite),
        Kind::Combine(Store::Add),
        Kind::CombineBackward,
        Kind::UnpermuteAdd,
    ];
    let all = kinds.into_iter().flat_map(|kind| {
        sizes
            .iter()
            .map(move |&(t, e, a, d)| Permuted { kind, t, e, a, d })
    });
    boxed(all).collect()
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Permute,
    Combine(Store),
    CombineBackward,
    UnpermuteAdd,
}

struct Permuted {
    kind: Kind,
    t: usize,
    e: usize,
    a: usize,
    d: usize,
}

impl Permuted {
    /// T * A.
    fn n(&self) -> usize {
        self.t * self.a
    }
    /// A different experts for each token, in some order.
    fn topk_ids(&self) -> Vec<u32> {
        let first = below(self.t, self.e, "first");
        let of = |&first: &u32| (0..self.a as u32).map(move |i| (first + i) % self.e as u32);
        first.iter().flat_map(of).collect()
    }
    /// The choices in the order of their rows: by expert, then as they come.
    fn order(&self) -> Vec<usize> {
        let ids = self.topk_ids();
        let mut order: Vec<usize> = (0..self.n()).collect();
        order.sort_by_key(|&choice| ids[choice]);
        order
    }
    /// The row of each choice.
    fn pos(&self) -> Vec<u32> {
        let mut pos = vec![0; self.n()];
        for (row, &choice) in self.order().iter().enumerate() {
            pos[choice] = row as u32;
        }
        pos
    }
    fn out(&self) -> Vec<f32> {
        normal(self.n() * self.d, "out")
    }
    fn weights(&self) -> Vec<f32> {
        normal(self.n(), "topk_weights")
    }
    fn dy(&self) -> Vec<f32> {
        normal(self.t * self.d, "dy")
    }
    /// y_t = sum_a w_ta out[pos_ta].
    fn combined(&self, out: &[f64], weights: &[f64]) -> Vec<f64> {
        let mut y = vec![0.0; self.t * self.d];
        for (choice, (&row, &w)) in self.pos().iter().zip(weights).enumerate() {
            let y = &mut y[choice / self.a * self.d..][..self.d];
            add_scaled(y, &out[row as usize * self.d..][..self.d], w);
        }
        y
    }
    /// dout[pos_ta] = w_ta dy_t, dw_ta = dy_t out[pos_ta].
    fn combined_backward(&self) -> Vec<Vec<f64>> {
        let (dy, out) = (to_f64(&self.dy()), to_f64(&self.out()));
        let (mut dout, mut dweights) = (vec![0.0; out.len()], vec![]);
        for (choice, (&row, w)) in self.pos().iter().zip(to_f64(&self.weights())).enumerate() {
            let dy = &dy[choice / self.a * self.d..][..self.d];
            let row = row as usize * self.d..(row as usize + 1) * self.d;
            dweights.push(dot(dy, &out[row.clone()]));
            add_scaled(&mut dout[row], dy, w);
        }
        vec![dout, dweights]
    }
}

impl Case for Permuted {
    fn op(&self) -> &'static str {
        match self.kind {
            Kind::Permute => "moe_permute.permute",
            Kind::Combine(_) => "moe_permute.combine",
            Kind::CombineBackward => "moe_permute.combine_backward",
            Kind::UnpermuteAdd => "moe_permute.unpermute_add",
        }
    }
    fn dims(&self) -> Vec<(&'static str, usize)> {
        let adds = usize::from(self.kind == Kind::Combine(Store::Add));
        vec![
            ("T", self.t),
            ("E", self.e),
            ("A", self.a),
            ("D", self.d),
            ("add", adds),
        ]
    }
    fn cost(&self) -> Cost {
        let (rows, tokens) = (self.n() * self.d, self.t * self.d);
        match self.kind {
            Kind::Permute => Cost::values(self.n(), self.e + 1 + 2 * self.n()),
            Kind::Combine(Store::Overwrite) => Cost::values(rows, tokens),
            Kind::Combine(Store::Add) | Kind::UnpermuteAdd => Cost::values(rows + tokens, tokens),
            Kind::CombineBackward => Cost::values(rows + tokens, rows),
        }
    }
    fn outputs(&self) -> Vec<Output> {
        let (n, y) = (self.n(), self.t * self.d);
        let sums = Tolerance::sums(self.a);
        let old = || normal(y, "old");
        match self.kind {
            Kind::Permute => vec![
                Output::ids("offsets", self.e + 1),
                Output::ids("rows", n),
                Output::ids("pos", n),
            ],
            Kind::Combine(Store::Overwrite) => vec![Output::new("y", y, sums)],
            Kind::Combine(Store::Add) => vec![Output::sum("y", old(), sums)],
            Kind::CombineBackward => vec![
                Output::new("dout", n * self.d, sums),
                Output::new("dtopk_weights", n, Tolerance::sums(self.d)),
            ],
            Kind::UnpermuteAdd => vec![Output::sum("dx", old(), sums)],
        }
    }
    fn reference(&self) -> Vec<Vec<f64>> {
        let numbers = |x: Vec<u32>| x.into_iter().map(f64::from).collect();
        match self.kind {
            Kind::Permute => {
                let ids = self.topk_ids();
                let before = |e: u32| ids.iter().filter(|&&id| id < e).count() as f64;
                let tokens = self.order().iter().map(|&c| (c / self.a) as f64).collect();
                let offsets = (0..=self.e as u32).map(before).collect();
                vec![offsets, tokens, numbers(self.pos())]
            }
            Kind::Combine(_) => {
                vec![self.combined(&to_f64(&self.out()), &to_f64(&self.weights()))]
            }
            Kind::CombineBackward => self.combined_backward(),
            Kind::UnpermuteAdd => vec![self.combined(&to_f64(&self.out()), &vec![1.0; self.n()])],
        }
    }
    fn kernel<'a>(&'a self, device: &'a Device) -> Kernel<'a> {
        let (out, dy) = (upload(device, &self.out()), upload(device, &self.dy()));
        let (pos, weights) = (upload(device, &self.pos()), upload(device, &self.weights()));
        let topk_ids = upload(device, &self.topk_ids());
        let (e, a, d) = (self.e, self.a, self.d);
        Box::new(move |outputs| {
            let (out, dy, pos) = (out.view(), dy.view(), pos.view());
            let (weights, topk_ids) = (weights.view(), topk_ids.view());
            match (self.kind, outputs) {
                (Kind::Permute, [offsets, rows, pos]) => {
                    let (offsets, rows, pos) = (offsets.ids_mut(), rows.ids_mut(), pos.ids_mut());
                    moe_permute::permute(device, offsets, rows, pos, topk_ids, e, a);
                }
                (Kind::Combine(store), [y]) => {
                    moe_permute::combine(device, y.floats_mut(), out, pos, weights, d, store);
                }
                (Kind::CombineBackward, [dout, dweights]) => {
                    let (dout, dweights) = (dout.floats_mut(), dweights.floats_mut());
                    moe_permute::combine_backward(device, dout, dweights, dy, out, pos, weights, d);
                }
                (Kind::UnpermuteAdd, [dx]) => {
                    moe_permute::unpermute_add(device, dx.floats_mut(), out, pos, a, d);
                }
                _ => unreachable!("outputs of another kind"),
            }
        })
    }
    fn gradient(&self) -> Option<Gradient<'_>> {
        if self.kind != Kind::CombineBackward {
            return None;
        }
        let dy = to_f64(&self.dy());
        Some(Gradient {
            at: vec![to_f64(&self.out()), to_f64(&self.weights())],
            claimed: self.combined_backward(),
            of: Box::new(move |at| dot(&dy, &self.combined(&at[0], &at[1]))),
        })
    }
}
