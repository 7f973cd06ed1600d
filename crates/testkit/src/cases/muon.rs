//! Muon: `reference::optim::muon`.

use super::boxed;
use crate::case::{Case, Cost, Kernel, Mode, Output, normal, upload};
use crate::compare::{Tolerance, sums, to_f64};
use reference::optim;
use tensor::ops::muon::{self, Matrix, Muon};
use tensor::{Device, ViewMut};

/// (rows, columns): a row; a column; odd; wide; tall; square; around tiles; real.
const SIZES: [(usize, usize); 8] = [
    (1, 9),
    (9, 1),
    (3, 5),
    (16, 40),
    (40, 16),
    (17, 17),
    (33, 65),
    (192, 384),
];
const REAL: [(usize, usize); 2] = [(384, 384), (1024, 1024)];

const GRAD_SCALE: f32 = 0.7;

/// The table.
pub fn cases(mode: Mode) -> Vec<Box<dyn Case>> {
    let sizes = if mode == Mode::Perf {
        &REAL[..]
    } else {
        &SIZES
    };
    let nesterov: &[bool] = if mode == Mode::Perf {
        &[true]
    } else {
        &[true, false]
    };
    let all = nesterov.iter().flat_map(|&nesterov| {
        sizes.iter().map(move |&(rows, cols)| Step {
            rows,
            cols,
            nesterov,
        })
    });
    boxed(all).collect()
}

struct Step {
    rows: usize,
    cols: usize,
    nesterov: bool,
}

impl Step {
    fn values(&self, name: &str) -> Vec<f32> {
        normal(self.rows * self.cols, name)
    }
    fn settings(&self) -> Muon {
        Muon {
            lr: 0.02,
            momentum: 0.95,
            nesterov: self.nesterov,
            weight_decay: 0.1,
            ns_steps: 5,
        }
    }
}

impl Case for Step {
    fn op(&self) -> &'static str {
        "muon.step"
    }
    fn dims(&self) -> Vec<(&'static str, usize)> {
        let nesterov = usize::from(self.nesterov);
        vec![
            ("rows", self.rows),
            ("cols", self.cols),
            ("nesterov", nesterov),
        ]
    }
    fn cost(&self) -> Cost {
        let (len, short) = (self.rows * self.cols, self.rows.min(self.cols));
        let long = len / short;
        // X X^T, its square, and its product with X.
        let products = 2 * short * short * long + short * short * short;
        Cost::values(3 * len, 2 * len).multiply_adds(5.0 * products as f64)
    }
    fn outputs(&self) -> Vec<Output> {
        // A step of Newton-Schulz multiplies a small singular value, and with it an error, by up to
        // 3.4445; five by 485. What is compared is mostly the weight, to which the update adds a
        // hundredth.
        let bound = 485.0f64.powi(2) * 1e-4 * sums(self.rows + self.cols);
        vec![
            Output::operand("w", self.values("w"), Tolerance::Nmse(bound)),
            Output::operand("momentum", self.values("momentum"), Tolerance::sums(2)),
        ]
    }
    fn reference(&self) -> Vec<Vec<f64>> {
        let (of, settings) = (|x: f32| f64::from(x), self.settings());
        let (mut w, mut m) = (to_f64(&self.values("w")), to_f64(&self.values("momentum")));
        let g = self.values("grad");
        let g: Vec<f64> = g.iter().map(|&g| of(g) * of(GRAD_SCALE)).collect();
        let settings = optim::Muon {
            lr: of(settings.lr),
            momentum: of(settings.momentum),
            nesterov: settings.nesterov,
            weight_decay: of(settings.weight_decay),
            ns_steps: settings.ns_steps,
        };
        optim::muon(&mut w, &mut m, &g, self.cols, &settings);
        vec![w, m]
    }
    fn kernel<'a>(&'a self, device: &'a Device) -> Kernel<'a> {
        let grad = upload(device, &self.values("grad"));
        Box::new(move |out| {
            let [w, momentum] = out else {
                unreachable!("two outputs")
            };
            let (ViewMut::Cpu(w), ViewMut::Cpu(momentum)) = (w.floats_mut(), momentum.floats_mut());
            let matrix = Matrix {
                w,
                momentum,
                grad: grad.host(),
                rows: self.rows,
                cols: self.cols,
            };
            muon::step(device, &mut [matrix], GRAD_SCALE, &self.settings());
        })
    }
}
