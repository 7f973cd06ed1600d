//! AdamW: `reference::optim::adamw`.

use super::boxed;
use crate::case::{Case, Cost, Kernel, Mode, Output, normal, upload};
use crate::compare::{Tolerance, to_f64};
use reference::optim;
use tensor::Device;
use tensor::ops::adamw::{self, AdamW};

/// Parameters, step: one; odd; around vectors; enough for several threads; the first step and a late one.
const SIZES: [(usize, u64); 6] = [(1, 1), (7, 2), (16, 1), (33, 10), (5003, 3), (70_001, 1000)];
const REAL: [(usize, u64); 1] = [(1 << 24, 100)];

const SETTINGS: AdamW = AdamW {
    lr: 3e-3,
    beta1: 0.9,
    beta2: 0.95,
    eps: 1e-8,
    weight_decay: 0.1,
};
/// As from clipping.
const GRAD_SCALE: f32 = 0.7;

/// The table.
pub fn cases(mode: Mode) -> Vec<Box<dyn Case>> {
    let sizes = if mode == Mode::Perf {
        &REAL[..]
    } else {
        &SIZES
    };
    boxed(sizes.iter().map(|&(len, step)| Step { len, step })).collect()
}

struct Step {
    len: usize,
    step: u64,
}

impl Step {
    fn w(&self) -> Vec<f32> {
        normal(self.len, "w")
    }
    fn m(&self) -> Vec<f32> {
        normal(self.len, "m")
    }
    /// Away from zero, below which no mean of squares is.
    fn v(&self) -> Vec<f32> {
        normal(self.len, "v").iter().map(|v| v * v + 0.1).collect()
    }
    fn g(&self) -> Vec<f32> {
        normal(self.len, "g")
    }
}

impl Case for Step {
    fn op(&self) -> &'static str {
        "adamw.step"
    }
    fn dims(&self) -> Vec<(&'static str, usize)> {
        vec![("N", self.len), ("step", self.step as usize)]
    }
    fn cost(&self) -> Cost {
        Cost::values(4 * self.len, 3 * self.len)
    }
    fn outputs(&self) -> Vec<Output> {
        let tolerance = Tolerance::sums(4);
        vec![
            Output::operand("w", self.w(), tolerance),
            Output::operand("m", self.m(), tolerance),
            Output::operand("v", self.v(), tolerance),
        ]
    }
    fn reference(&self) -> Vec<Vec<f64>> {
        let of = |x: f32| f64::from(x);
        let settings = optim::AdamW {
            lr: of(SETTINGS.lr),
            beta1: of(SETTINGS.beta1),
            beta2: of(SETTINGS.beta2),
            eps: of(SETTINGS.eps),
            weight_decay: of(SETTINGS.weight_decay),
        };
        let (mut w, mut m, mut v) = (to_f64(&self.w()), to_f64(&self.m()), to_f64(&self.v()));
        let g: Vec<f64> = self.g().iter().map(|&g| of(g) * of(GRAD_SCALE)).collect();
        optim::adamw(&mut w, &mut m, &mut v, &g, &settings, self.step as i32);
        vec![w, m, v]
    }
    fn kernel<'a>(&'a self, device: &'a Device) -> Kernel<'a> {
        let g = upload(device, &self.g());
        Box::new(move |out| {
            let [w, m, v] = out else {
                unreachable!("three outputs")
            };
            let (w, m, v) = (w.floats_mut(), m.floats_mut(), v.floats_mut());
            adamw::step(device, w, m, v, g.view(), GRAD_SCALE, &SETTINGS, self.step);
        })
    }
}
