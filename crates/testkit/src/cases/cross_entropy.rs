//! Softmax cross-entropy of rows of logits (R, V): `reference::loss::cross_entropy`.

use super::boxed;
use crate::case::{Case, Cost, Gradient, Kernel, Mode, Output, below, dot, normal, upload};
use crate::compare::{Tolerance, to_f64};
use reference::loss;
use tensor::Device;
use tensor::ops::cross_entropy::{self, IGNORE};

/// (R, V): two rows of one; odd; around vectors; a real vocabulary.
const SIZES: [(usize, usize); 6] = [(2, 1), (3, 5), (5, 33), (2, 130), (7, 1003), (3, 20_000)];
const REAL: [(usize, usize); 1] = [(256, 65_536)];

/// The table.
pub fn cases(mode: Mode) -> Vec<Box<dyn Case>> {
    let sizes = if mode == Mode::Perf {
        &REAL[..]
    } else {
        &SIZES
    };
    let both = [false, true].into_iter().flat_map(|has_backward| {
        sizes
            .iter()
            .map(move |&(r, v)| CrossEntropy { r, v, has_backward })
    });
    boxed(both).collect()
}

struct CrossEntropy {
    r: usize,
    v: usize,
    has_backward: bool,
}

impl CrossEntropy {
    /// Of a spread as in a trained model, far from zero.
    fn logits(&self) -> Vec<f32> {
        let z = normal(self.r * self.v, "logits");
        z.iter().map(|z| 4.0 * z + 100.0).collect()
    }
    /// The second row has none.
    fn targets(&self) -> Vec<Option<u32>> {
        let targets = below(self.r, self.v, "targets").into_iter().enumerate();
        targets
            .map(|(r, target)| (r != 1).then_some(target))
            .collect()
    }
    fn scales(&self) -> Vec<f32> {
        normal(self.r, "scales")
    }
    fn dlogits(&self) -> Vec<f64> {
        let (scales, logits) = (to_f64(&self.scales()), to_f64(&self.logits()));
        loss::cross_entropy_backward(&scales, &logits, &self.targets())
    }
}

impl Case for CrossEntropy {
    fn op(&self) -> &'static str {
        if self.has_backward {
            "cross_entropy.forward_backward"
        } else {
            "cross_entropy.forward"
        }
    }
    fn dims(&self) -> Vec<(&'static str, usize)> {
        vec![("R", self.r), ("V", self.v)]
    }
    fn cost(&self) -> Cost {
        let len = self.r * self.v;
        Cost::values(len, if self.has_backward { len } else { 0 })
    }
    fn outputs(&self) -> Vec<Output> {
        let tolerance = Tolerance::exponentials();
        // Of a single token the loss is zero, as is the gradient.
        let exact = Tolerance::Exact;
        let tolerance = if self.v == 1 { exact } else { tolerance };
        let losses = Output::new("losses", self.r, tolerance);
        if self.has_backward {
            vec![Output::operand("logits", self.logits(), tolerance), losses]
        } else {
            vec![losses]
        }
    }
    fn reference(&self) -> Vec<Vec<f64>> {
        let losses = loss::cross_entropy(&to_f64(&self.logits()), &self.targets());
        if self.has_backward {
            vec![self.dlogits(), losses]
        } else {
            vec![losses]
        }
    }
    fn kernel<'a>(&'a self, device: &'a Device) -> Kernel<'a> {
        let targets: Vec<u32> = self.targets().iter().map(|t| t.unwrap_or(IGNORE)).collect();
        let (targets, scales) = (upload(device, &targets), upload(device, &self.scales()));
        let logits = upload(device, &self.logits());
        Box::new(move |out| match out {
            [losses] => {
                let losses = losses.floats_mut();
                cross_entropy::forward(device, losses, logits.view(), targets.view());
            }
            [logits, losses] => {
                let (logits, losses) = (logits.floats_mut(), losses.floats_mut());
                let (targets, scales) = (targets.view(), scales.view());
                cross_entropy::forward_backward(device, logits, losses, targets, scales);
            }
            _ => unreachable!("one or two outputs"),
        })
    }
    fn gradient(&self) -> Option<Gradient<'_>> {
        self.has_backward.then(|| Gradient {
            at: vec![to_f64(&self.logits())],
            claimed: vec![self.dlogits()],
            of: Box::new(|at| {
                let losses = loss::cross_entropy(&at[0], &self.targets());
                dot(&to_f64(&self.scales()), &losses)
            }),
        })
    }
}
