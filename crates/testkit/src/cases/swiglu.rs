//! silu(gate) * up of rows gate_up (R, 2F): `reference::ops::swiglu`.

use super::boxed;
use crate::case::{
    Case, Cost, Gradient, Kernel, Mode, Output, beside, columns, dot, normal, upload,
};
use crate::compare::{Tolerance, to_f64};
use reference::ops;
use tensor::Device;
use tensor::ops::swiglu;

/// (R, F): one; odd; around one and several vectors; real.
const SIZES: [(usize, usize); 6] = [(1, 1), (3, 5), (2, 16), (7, 33), (4, 255), (130, 192)];
const REAL: [(usize, usize); 1] = [(16_384, 1024)];

/// The table.
pub fn cases(mode: Mode) -> Vec<Box<dyn Case>> {
    let sizes = if mode == Mode::Perf {
        &REAL[..]
    } else {
        &SIZES
    };
    let forward = sizes.iter().map(|&(r, f)| Forward { r, f });
    let backward = sizes.iter().map(|&(r, f)| Backward { r, f });
    boxed(forward).chain(boxed(backward)).collect()
}

/// Gates on both sides of zero, some far from it.
fn gate_up(r: usize, f: usize) -> Vec<f32> {
    normal(r * 2 * f, "gate_up")
        .iter()
        .map(|x| 3.0 * x)
        .collect()
}

fn swiglu_of(gate_up: &[f64], f: usize) -> Vec<f64> {
    let (gate, up) = (
        columns(gate_up, 2 * f, 0, f),
        columns(gate_up, 2 * f, f, 2 * f),
    );
    ops::swiglu(&gate, &up)
}

struct Forward {
    r: usize,
    f: usize,
}

impl Case for Forward {
    fn op(&self) -> &'static str {
        "swiglu.forward"
    }
    fn dims(&self) -> Vec<(&'static str, usize)> {
        vec![("R", self.r), ("F", self.f)]
    }
    fn cost(&self) -> Cost {
        Cost::values(2 * self.r * self.f, self.r * self.f)
    }
    fn outputs(&self) -> Vec<Output> {
        vec![Output::new("h", self.r * self.f, Tolerance::exponentials())]
    }
    fn reference(&self) -> Vec<Vec<f64>> {
        vec![swiglu_of(&to_f64(&gate_up(self.r, self.f)), self.f)]
    }
    fn kernel<'a>(&'a self, device: &'a Device) -> Kernel<'a> {
        let gate_up = upload(device, &gate_up(self.r, self.f));
        Box::new(move |out| swiglu::forward(device, out[0].floats_mut(), gate_up.view(), self.f))
    }
}

struct Backward {
    r: usize,
    f: usize,
}

impl Backward {
    fn dh(&self) -> Vec<f32> {
        normal(self.r * self.f, "dh")
    }
}

impl Case for Backward {
    fn op(&self) -> &'static str {
        "swiglu.backward"
    }
    fn dims(&self) -> Vec<(&'static str, usize)> {
        vec![("R", self.r), ("F", self.f)]
    }
    fn cost(&self) -> Cost {
        Cost::values(3 * self.r * self.f, 2 * self.r * self.f)
    }
    fn outputs(&self) -> Vec<Output> {
        let len = self.r * 2 * self.f;
        vec![Output::new("dgate_up", len, Tolerance::exponentials())]
    }
    fn reference(&self) -> Vec<Vec<f64>> {
        let (f, x) = (self.f, to_f64(&gate_up(self.r, self.f)));
        let (gate, up) = (columns(&x, 2 * f, 0, f), columns(&x, 2 * f, f, 2 * f));
        let (dgate, dup) = ops::swiglu_backward(&to_f64(&self.dh()), &gate, &up);
        vec![beside(&[(&dgate, f), (&dup, f)])]
    }
    fn kernel<'a>(&'a self, device: &'a Device) -> Kernel<'a> {
        let gate_up = upload(device, &gate_up(self.r, self.f));
        let dh = upload(device, &self.dh());
        Box::new(move |out| {
            let dgate_up = out[0].floats_mut();
            swiglu::backward(device, dgate_up, dh.view(), gate_up.view(), self.f);
        })
    }
    fn gradient(&self) -> Option<Gradient<'_>> {
        let dh = to_f64(&self.dh());
        Some(Gradient {
            at: vec![to_f64(&gate_up(self.r, self.f))],
            claimed: self.reference(),
            of: Box::new(move |at| dot(&dh, &swiglu_of(&at[0], self.f))),
        })
    }
}
