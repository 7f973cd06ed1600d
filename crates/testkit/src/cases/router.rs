//! Scores, choice and weights of experts, and the balance loss of sequences: `reference::ops::router`,
//! `reference::loss::balance_loss`.

use super::boxed;
use crate::case::{Case, Cost, Gradient, Kernel, Mode, Output, dot, normal, upload};
use crate::compare::{Tolerance, to_f32, to_f64};
use reference::loss::{balance_loss, balance_loss_backward};
use reference::ops::{self, Routing};
use std::ops::Range;
use tensor::Device;
use tensor::ops::router::{self, RouterShape};

const ALPHA: f32 = 0.3;

/// Lengths of the sequences, E, A: one; all experts; odd; empty sequences; around vectors; real.
const SIZES: [(&[usize], usize, usize); 6] = [
    (&[1], 1, 1),
    (&[5], 3, 3),
    (&[7, 0, 1, 25], 17, 4),
    (&[9], 40, 1),
    (&[3, 4], 257, 9),
    (&[100, 33], 128, 8),
];
const REAL: [(&[usize], usize, usize); 1] = [(&[8192; 16], 128, 8)];

/// The table.
pub fn cases(mode: Mode) -> Vec<Box<dyn Case>> {
    let sizes = if mode == Mode::Perf {
        &REAL[..]
    } else {
        &SIZES
    };
    let norms: &[bool] = if mode == Mode::Perf {
        &[true]
    } else {
        &[true, false]
    };
    let all = norms.iter().flat_map(|&norm_topk_prob| {
        sizes.iter().map(move |&(lens, e, a)| Routed {
            lens,
            shape: RouterShape {
                num_experts: e,
                num_experts_per_tok: a,
                norm_topk_prob,
                routed_scaling_factor: 2.5,
            },
        })
    });
    let forward = all.clone().map(Forward);
    let balance = all.clone().filter(|r| r.shape.norm_topk_prob).map(Balance);
    let backward = all.clone().map(|routed| Backward {
        routed,
        has_balance: false,
    });
    let with_balance = all.map(|routed| Backward {
        routed,
        has_balance: true,
    });
    boxed(forward)
        .chain(boxed(balance))
        .chain(boxed(backward))
        .chain(boxed(with_balance))
        .collect()
}

/// The inputs of all.
#[derive(Clone)]
struct Routed {
    lens: &'static [usize],
    shape: RouterShape,
}

impl Routed {
    fn dims(&self) -> Vec<(&'static str, usize)> {
        let norm = usize::from(self.shape.norm_topk_prob);
        vec![
            ("T", self.tokens()),
            ("B", self.lens.len()),
            ("E", self.shape.num_experts),
            ("A", self.shape.num_experts_per_tok),
            ("norm", norm),
        ]
    }
    fn tokens(&self) -> usize {
        self.lens.iter().sum()
    }
    /// T * E and T * A.
    fn lens(&self) -> (usize, usize) {
        let t = self.tokens();
        (
            t * self.shape.num_experts,
            t * self.shape.num_experts_per_tok,
        )
    }
    fn cu_seqlens(&self) -> Vec<u32> {
        let mut end = 0;
        let ends = self.lens.iter().map(|&len| {
            end += len as u32;
            end
        });
        std::iter::once(0).chain(ends).collect()
    }
    /// Tokens of the sequences that have any.
    fn sequences(&self) -> Vec<Range<usize>> {
        let borders = self.cu_seqlens();
        let all = borders.windows(2).map(|w| w[0] as usize..w[1] as usize);
        all.collect()
    }
    fn logits(&self) -> Vec<f32> {
        normal(self.lens().0, "logits")
    }
    fn bias(&self) -> Vec<f32> {
        normal(self.shape.num_experts, "bias")
    }
    fn reference_shape(&self) -> ops::RouterShape {
        ops::RouterShape {
            num_experts: self.shape.num_experts,
            num_experts_per_tok: self.shape.num_experts_per_tok,
            norm_topk_prob: self.shape.norm_topk_prob,
            routed_scaling_factor: f64::from(self.shape.routed_scaling_factor),
        }
    }
    fn route(&self, logits: &[f64]) -> Routing {
        ops::router(logits, &to_f64(&self.bias()), self.reference_shape())
    }
    fn routing(&self) -> Routing {
        self.route(&to_f64(&self.logits()))
    }
    /// Weight of a sequence's balance loss in the mean.
    fn alpha(&self) -> f64 {
        f64::from(ALPHA) / self.lens.len() as f64
    }
    /// Scores and choices of the tokens `of`.
    fn part<'a>(&self, of: &Range<usize>, routing: &'a Routing) -> (&'a [f64], &'a [u32]) {
        let (e, a) = (self.shape.num_experts, self.shape.num_experts_per_tok);
        let scores = &routing.scores[of.start * e..of.end * e];
        (scores, &routing.topk_ids[of.start * a..of.end * a])
    }
    /// The mean over sequences.
    fn balance(&self, routing: &Routing) -> f64 {
        let a = self.shape.num_experts_per_tok;
        let of = |of: Range<usize>| {
            let (scores, ids) = self.part(&of, routing);
            balance_loss(self.alpha(), scores, ids, a)
        };
        let sequences = self.sequences().into_iter().filter(|of| !of.is_empty());
        sequences.map(of).sum()
    }
    /// Its gradient by the scores: (T, E).
    fn dbalance(&self, routing: &Routing) -> Vec<f64> {
        let a = self.shape.num_experts_per_tok;
        let of = |of: Range<usize>| {
            let (scores, ids) = self.part(&of, routing);
            balance_loss_backward(self.alpha(), scores, ids, a)
        };
        let sequences = self.sequences().into_iter().filter(|of| !of.is_empty());
        sequences.flat_map(of).collect()
    }
    /// c_i = alpha f_i / T_b of each sequence: (B, E).
    fn coeff(&self, routing: &Routing) -> Vec<f64> {
        let e = self.shape.num_experts;
        let of = |of: Range<usize>| {
            let (_, ids) = self.part(&of, routing);
            let each = self.alpha() * e as f64 / (ids.len().max(1) * of.len().max(1)) as f64;
            let count = move |i: usize| ids.iter().filter(|&&id| id as usize == i).count();
            (0..e).map(move |i| each * count(i) as f64)
        };
        self.sequences().into_iter().flat_map(of).collect()
    }
}

struct Forward(Routed);

impl Case for Forward {
    fn op(&self) -> &'static str {
        "router.forward"
    }
    fn dims(&self) -> Vec<(&'static str, usize)> {
        self.0.dims()
    }
    fn cost(&self) -> Cost {
        let (te, ta) = self.0.lens();
        Cost::values(te, te + 2 * ta)
    }
    fn outputs(&self) -> Vec<Output> {
        let (te, ta) = self.0.lens();
        vec![
            Output::new("scores", te, Tolerance::exponentials()),
            Output::ids("topk_ids", ta),
            Output::new("topk_weights", ta, Tolerance::exponentials()),
        ]
    }
    fn reference(&self) -> Vec<Vec<f64>> {
        let routing = self.0.routing();
        let ids = routing.topk_ids.iter().map(|&id| f64::from(id)).collect();
        vec![routing.scores, ids, routing.topk_weights]
    }
    fn kernel<'a>(&'a self, device: &'a Device) -> Kernel<'a> {
        let (logits, bias) = (
            upload(device, &self.0.logits()),
            upload(device, &self.0.bias()),
        );
        Box::new(move |out| {
            let [scores, ids, weights] = out else {
                unreachable!("three outputs")
            };
            let (scores, ids, weights) = (scores.floats_mut(), ids.ids_mut(), weights.floats_mut());
            let (logits, bias) = (logits.view(), bias.view());
            router::forward(device, scores, ids, weights, logits, bias, self.0.shape);
        })
    }
}

struct Balance(Routed);

impl Case for Balance {
    fn op(&self) -> &'static str {
        "router.balance_loss"
    }
    fn dims(&self) -> Vec<(&'static str, usize)> {
        self.0.dims()
    }
    fn cost(&self) -> Cost {
        let (te, ta) = self.0.lens();
        Cost::values(te + ta, self.0.lens.len() * self.0.shape.num_experts)
    }
    fn outputs(&self) -> Vec<Output> {
        let coeff = self.0.lens.len() * self.0.shape.num_experts;
        vec![
            Output::new("coeff", coeff, Tolerance::sums(1)),
            Output::new("loss", 1, Tolerance::sums(self.0.lens().0)),
        ]
    }
    fn reference(&self) -> Vec<Vec<f64>> {
        let routing = self.0.routing();
        vec![self.0.coeff(&routing), vec![self.0.balance(&routing)]]
    }
    fn kernel<'a>(&'a self, device: &'a Device) -> Kernel<'a> {
        let routing = self.0.routing();
        let scores = upload(device, &to_f32(&routing.scores));
        let ids = upload(device, &routing.topk_ids);
        let cu_seqlens = upload(device, &self.0.cu_seqlens());
        Box::new(move |out| {
            let [coeff, loss] = out else {
                unreachable!("two outputs")
            };
            let (coeff, scores, ids) = (coeff.floats_mut(), scores.view(), ids.view());
            let (cu_seqlens, shape) = (cu_seqlens.view(), self.0.shape);
            loss.put(router::balance_loss(
                device, coeff, scores, ids, cu_seqlens, ALPHA, shape,
            ));
        })
    }
}

struct Backward {
    routed: Routed,
    has_balance: bool,
}

impl Backward {
    fn dweights(&self) -> Vec<f32> {
        normal(self.routed.lens().1, "dtopk_weights")
    }
}

impl Case for Backward {
    fn op(&self) -> &'static str {
        "router.backward"
    }
    fn dims(&self) -> Vec<(&'static str, usize)> {
        let balance = ("balance", usize::from(self.has_balance));
        [&self.routed.dims()[..], &[balance]].concat()
    }
    fn cost(&self) -> Cost {
        let (te, ta) = self.routed.lens();
        Cost::values(te + 2 * ta, te)
    }
    fn outputs(&self) -> Vec<Output> {
        // dw - mean(dw), which is zero where one expert is chosen.
        let tolerance = Tolerance::differences(self.routed.shape.num_experts);
        vec![Output::new("dlogits", self.routed.lens().0, tolerance)]
    }
    fn reference(&self) -> Vec<Vec<f64>> {
        let routing = self.routed.routing();
        let dscores = if self.has_balance {
            self.routed.dbalance(&routing)
        } else {
            vec![0.0; routing.scores.len()]
        };
        let (dweights, shape) = (to_f64(&self.dweights()), self.routed.reference_shape());
        vec![ops::router_backward(&dweights, &dscores, &routing, shape)]
    }
    fn kernel<'a>(&'a self, device: &'a Device) -> Kernel<'a> {
        let routing = self.routed.routing();
        let coeff = if self.has_balance {
            to_f32(&self.routed.coeff(&routing))
        } else {
            vec![]
        };
        let scores = upload(device, &to_f32(&routing.scores));
        let ids = upload(device, &routing.topk_ids);
        let (dweights, coeff) = (upload(device, &self.dweights()), upload(device, &coeff));
        let cu_seqlens = upload(device, &self.routed.cu_seqlens());
        Box::new(move |out| {
            let (dlogits, dweights) = (out[0].floats_mut(), dweights.view());
            let (scores, ids, coeff) = (scores.view(), ids.view(), coeff.view());
            let (cu_seqlens, shape) = (cu_seqlens.view(), self.routed.shape);
            router::backward(
                device, dlogits, dweights, scores, ids, coeff, cu_seqlens, shape,
            );
        })
    }
    fn gradient(&self) -> Option<Gradient<'_>> {
        let dweights = to_f64(&self.dweights());
        Some(Gradient {
            at: vec![to_f64(&self.routed.logits())],
            claimed: self.reference(),
            of: Box::new(move |at| {
                let routing = self.routed.route(&at[0]);
                let balance = if self.has_balance {
                    self.routed.balance(&routing)
                } else {
                    0.0
                };
                dot(&dweights, &routing.topk_weights) + balance
            }),
        })
    }
}
