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

/// None, and one that cuts a third of the values.
const LIMITS: [Option<f32>; 2] = [None, Some(2.5)];

/// The table.
pub fn cases(mode: Mode) -> Vec<Box<dyn Case>> {
    let sizes = if mode == Mode::Perf {
        &REAL[..]
    } else {
        &SIZES
    };
    let each = || {
        let limited = |limit| move |&(r, f): &(usize, usize)| Sizes { r, f, limit };
        LIMITS
            .into_iter()
            .flat_map(move |limit| sizes.iter().map(limited(limit)))
    };
    let (forward, backward) = (each().map(Forward), each().map(Backward));
    boxed(forward).chain(boxed(backward)).collect()
}

/// What both directions share.
struct Sizes {
    r: usize,
    f: usize,
    limit: Option<f32>,
}

impl Sizes {
    fn dims(&self) -> Vec<(&'static str, usize)> {
        let mut dims = vec![("R", self.r), ("F", self.f)];
        if self.limit.is_some() {
            dims.push(("limited", 1));
        }
        dims
    }

    /// Gates on both sides of zero, some far from it.
    fn gate_up(&self) -> Vec<f32> {
        let normal = normal(self.r * 2 * self.f, "gate_up");
        normal.iter().map(|x| 3.0 * x).collect()
    }

    /// (R, F) each.
    fn halves(&self, gate_up: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let f = self.f;
        (
            columns(gate_up, 2 * f, 0, f),
            columns(gate_up, 2 * f, f, 2 * f),
        )
    }

    fn swiglu_of(&self, gate_up: &[f64]) -> Vec<f64> {
        let (gate, up) = self.halves(gate_up);
        ops::swiglu(&gate, &up, self.limit.map(f64::from))
    }
}

struct Forward(Sizes);

impl Case for Forward {
    fn op(&self) -> &'static str {
        "swiglu.forward"
    }
    fn dims(&self) -> Vec<(&'static str, usize)> {
        self.0.dims()
    }
    fn cost(&self) -> Cost {
        Cost::values(2 * self.0.r * self.0.f, self.0.r * self.0.f)
    }
    fn outputs(&self) -> Vec<Output> {
        vec![Output::new(
            "h",
            self.0.r * self.0.f,
            Tolerance::exponentials(),
        )]
    }
    fn reference(&self) -> Vec<Vec<f64>> {
        vec![self.0.swiglu_of(&to_f64(&self.0.gate_up()))]
    }
    fn kernel<'a>(&'a self, device: &'a Device) -> Kernel<'a> {
        let gate_up = upload(device, &self.0.gate_up());
        Box::new(move |out| {
            let h = out[0].floats_mut();
            swiglu::forward(device, h, gate_up.view(), self.0.f, self.0.limit);
        })
    }
}

struct Backward(Sizes);

impl Backward {
    fn dh(&self) -> Vec<f32> {
        normal(self.0.r * self.0.f, "dh")
    }
}

impl Case for Backward {
    fn op(&self) -> &'static str {
        "swiglu.backward"
    }
    fn dims(&self) -> Vec<(&'static str, usize)> {
        self.0.dims()
    }
    fn cost(&self) -> Cost {
        Cost::values(3 * self.0.r * self.0.f, 2 * self.0.r * self.0.f)
    }
    fn outputs(&self) -> Vec<Output> {
        let len = self.0.r * 2 * self.0.f;
        vec![Output::new("dgate_up", len, Tolerance::exponentials())]
    }
    fn reference(&self) -> Vec<Vec<f64>> {
        let (gate, up) = self.0.halves(&to_f64(&self.0.gate_up()));
        let limit = self.0.limit.map(f64::from);
        let (dgate, dup) = ops::swiglu_backward(&to_f64(&self.dh()), &gate, &up, limit);
        vec![beside(&[(&dgate, self.0.f), (&dup, self.0.f)])]
    }
    fn kernel<'a>(&'a self, device: &'a Device) -> Kernel<'a> {
        let gate_up = upload(device, &self.0.gate_up());
        let dh = upload(device, &self.dh());
        Box::new(move |out| {
            let dgate_up = out[0].floats_mut();
            let (f, limit) = (self.0.f, self.0.limit);
            swiglu::backward(device, dgate_up, dh.view(), gate_up.view(), f, limit);
        })
    }
    fn gradient(&self) -> Option<Gradient<'_>> {
        let dh = to_f64(&self.dh());
        Some(Gradient {
            at: vec![to_f64(&self.0.gate_up())],
            claimed: self.reference(),
            of: Box::new(move |at| dot(&dh, &self.0.swiglu_of(&at[0]))),
        })
    }
}
