//! Sums and copies: one rounding or none, so that nothing but the exact value will do.

use super::boxed;
use crate::case::{Case, Cost, Kernel, Mode, Output, beside, columns, dot, normal, upload};
use crate::compare::{Tolerance, to_f32, to_f64};
use tensor::Device;
use tensor::ops::elementwise;

/// (T, D): one; odd; around vectors and the 4,096 values that are summed apart; real.
const SIZES: [(usize, usize); 6] = [(1, 1), (3, 5), (1, 17), (64, 64), (241, 17), (130, 384)];
const REAL: [(usize, usize); 1] = [(16_384, 1024)];

/// The table.
pub fn cases(mode: Mode) -> Vec<Box<dyn Case>> {
    let sizes = if mode == Mode::Perf {
        &REAL[..]
    } else {
        &SIZES
    };
    let kinds = [Kind::Add, Kind::SumSquares, Kind::Concat2, Kind::Split2];
    let all = kinds
        .into_iter()
        .flat_map(|kind| sizes.iter().map(move |&(t, d)| Elementwise { kind, t, d }));
    boxed(all).collect()
}

#[derive(Clone, Copy)]
enum Kind {
    Add,
    SumSquares,
    Concat2,
    Split2,
}

struct Elementwise {
    kind: Kind,
    t: usize,
    d: usize,
}

impl Elementwise {
    fn len(&self) -> usize {
        self.t * self.d
    }
    fn a(&self) -> Vec<f32> {
        normal(self.len(), "a")
    }
    fn b(&self) -> Vec<f32> {
        normal(self.len(), "b")
    }
    fn both(&self) -> Vec<f32> {
        normal(2 * self.len(), "both")
    }
}

impl Case for Elementwise {
    fn op(&self) -> &'static str {
        match self.kind {
            Kind::Add => "elementwise.add",
            Kind::SumSquares => "elementwise.sum_squares",
            Kind::Concat2 => "elementwise.concat2",
            Kind::Split2 => "elementwise.split2",
        }
    }
    fn dims(&self) -> Vec<(&'static str, usize)> {
        vec![("T", self.t), ("D", self.d)]
    }
    fn cost(&self) -> Cost {
        let len = self.len();
        match self.kind {
            Kind::Add => Cost::values(2 * len, len),
            Kind::SumSquares => Cost::values(len, 0),
            Kind::Concat2 | Kind::Split2 => Cost::values(2 * len, 2 * len),
        }
    }
    fn outputs(&self) -> Vec<Output> {
        let (len, exact) = (self.len(), Tolerance::Exact);
        match self.kind {
            Kind::Add => vec![Output::operand("y", self.b(), exact)],
            // Chunks in f32, then f64; the buffer rounds once more.
            Kind::SumSquares => vec![Output::new("sum", 1, Tolerance::sums(64))],
            Kind::Concat2 => vec![Output::new("y", 2 * len, exact)],
            Kind::Split2 => vec![Output::new("a", len, exact), Output::new("b", len, exact)],
        }
    }
    fn reference(&self) -> Vec<Vec<f64>> {
        let (a, b, both) = (to_f64(&self.a()), to_f64(&self.b()), to_f64(&self.both()));
        let d = self.d;
        match self.kind {
            Kind::Add => {
                let sum: Vec<f64> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
                vec![to_f64(&to_f32(&sum))]
            }
            Kind::SumSquares => vec![vec![dot(&a, &a)]],
            Kind::Concat2 => vec![beside(&[(&a, d), (&b, d)])],
            Kind::Split2 => vec![columns(&both, 2 * d, 0, d), columns(&both, 2 * d, d, 2 * d)],
        }
    }
    fn kernel<'a>(&'a self, device: &'a Device) -> Kernel<'a> {
        let d = self.d;
        let (a, b, both) = (
            upload(device, &self.a()),
            upload(device, &self.b()),
            upload(device, &self.both()),
        );
        Box::new(move |out| match (self.kind, out) {
            (Kind::Add, [y]) => elementwise::add(device, y.floats_mut(), a.view()),
            (Kind::SumSquares, [sum]) => sum.put(elementwise::sum_squares(device, a.view()) as f32),
            (Kind::Concat2, [y]) => {
                elementwise::concat2(device, y.floats_mut(), a.view(), b.view(), d);
            }
            (Kind::Split2, [a, b]) => {
                let (a, b) = (a.floats_mut(), b.floats_mut());
                elementwise::split2(device, a, b, both.view(), d);
            }
            _ => unreachable!("outputs of another kind"),
        })
    }
}
