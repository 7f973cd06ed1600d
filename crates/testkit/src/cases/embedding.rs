//! Rows of a table (V, D) by ids (T): `reference::ops::embedding`.

use super::boxed;
use crate::case::{Case, Cost, Gradient, Kernel, Mode, Output, below, dot, normal, upload};
use crate::compare::{Tolerance, to_f64};
use reference::ops;
use tensor::Device;
use tensor::ops::embedding;

/// (T, V, D): one; odd; every id used often; every id used at most once or so; real.
const SIZES: [(usize, usize, usize); 5] = [
    (1, 1, 1),
    (7, 5, 3),
    (300, 9, 17),
    (33, 2000, 20),
    (512, 1000, 384),
];
const REAL: [(usize, usize, usize); 1] = [(16_384, 8192, 1024)];

/// The table.
pub fn cases(mode: Mode) -> Vec<Box<dyn Case>> {
    let sizes = if mode == Mode::Perf {
        &REAL[..]
    } else {
        &SIZES
    };
    let forward = sizes.iter().map(|&(t, v, d)| Forward(Size { t, v, d }));
    let backward = sizes.iter().map(|&(t, v, d)| Backward(Size { t, v, d }));
    boxed(forward).chain(boxed(backward)).collect()
}

struct Size {
    t: usize,
    v: usize,
    d: usize,
}

impl Size {
    fn dims(&self) -> Vec<(&'static str, usize)> {
        vec![("T", self.t), ("V", self.v), ("D", self.d)]
    }
    fn ids(&self) -> Vec<u32> {
        below(self.t, self.v, "ids")
    }
    fn table(&self) -> Vec<f32> {
        normal(self.v * self.d, "table")
    }
    fn dx(&self) -> Vec<f32> {
        normal(self.t * self.d, "dx")
    }
}

struct Forward(Size);

impl Case for Forward {
    fn op(&self) -> &'static str {
        "embedding.forward"
    }
    fn dims(&self) -> Vec<(&'static str, usize)> {
        self.0.dims()
    }
    fn cost(&self) -> Cost {
        Cost::values(self.0.t * self.0.d, self.0.t * self.0.d)
    }
    fn outputs(&self) -> Vec<Output> {
        vec![Output::new("x", self.0.t * self.0.d, Tolerance::Exact)]
    }
    fn reference(&self) -> Vec<Vec<f64>> {
        let table = to_f64(&self.0.table());
        vec![ops::embedding(&table, &self.0.ids(), self.0.d)]
    }
    fn kernel<'a>(&'a self, device: &'a Device) -> Kernel<'a> {
        let (table, ids) = (
            upload(device, &self.0.table()),
            upload(device, &self.0.ids()),
        );
        Box::new(move |out| {
            let x = out[0].floats_mut();
            embedding::forward(device, x, table.view(), ids.view(), self.0.d);
        })
    }
}

struct Backward(Size);

impl Case for Backward {
    fn op(&self) -> &'static str {
        "embedding.backward"
    }
    fn dims(&self) -> Vec<(&'static str, usize)> {
        self.0.dims()
    }
    fn cost(&self) -> Cost {
        Cost::values(2 * self.0.t * self.0.d, self.0.t * self.0.d)
    }
    fn outputs(&self) -> Vec<Output> {
        let start = normal(self.0.v * self.0.d, "old dtable");
        vec![Output::sum("dtable", start, Tolerance::sums(self.0.t))]
    }
    fn reference(&self) -> Vec<Vec<f64>> {
        let dx = to_f64(&self.0.dx());
        vec![ops::embedding_backward(&dx, &self.0.ids(), self.0.v)]
    }
    fn kernel<'a>(&'a self, device: &'a Device) -> Kernel<'a> {
        let (dx, ids) = (upload(device, &self.0.dx()), upload(device, &self.0.ids()));
        Box::new(move |out| {
            let dtable = out[0].floats_mut();
            embedding::backward(device, dtable, dx.view(), ids.view(), self.0.d);
        })
    }
    fn gradient(&self) -> Option<Gradient<'_>> {
        let (dx, ids) = (to_f64(&self.0.dx()), self.0.ids());
        Some(Gradient {
            at: vec![to_f64(&self.0.table())],
            claimed: self.reference(),
            of: Box::new(move |at| dot(&dx, &ops::embedding(&at[0], &ids, self.0.d))),
        })
    }
}
