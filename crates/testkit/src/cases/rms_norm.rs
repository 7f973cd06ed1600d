//! RMSNorm of rows x (T, D) with a gain (D): `reference::ops::rms_norm`.

use super::boxed;
use crate::case::{Case, Cost, Gradient, Kernel, Mode, Output, dot, normal, upload};
use crate::compare::{Tolerance, to_f32, to_f64};
use reference::ops;
use tensor::Device;
use tensor::ops::gemm::Store;
use tensor::ops::rms_norm;

/// Large beside the values, so that it counts, and so that a row of one or two columns has a gradient that
/// is not all cancellation.
const EPS: f32 = 0.1;

/// (T, D): one; odd; beyond one vector; beyond the 64 rows whose share of dgain is summed apart; real.
const SIZES: [(usize, usize); 6] = [(1, 1), (3, 5), (7, 33), (65, 130), (2, 1024), (200, 384)];
const REAL: [(usize, usize); 1] = [(16_384, 1024)];

/// The table.
pub fn cases(mode: Mode) -> Vec<Box<dyn Case>> {
    let sizes = if mode == Mode::Perf {
        &REAL[..]
    } else {
        &SIZES
    };
    let forward = sizes.iter().map(|&(t, d)| Forward { t, d });
    let stores = [Store::Overwrite, Store::Add];
    let both = sizes
        .iter()
        .flat_map(|&(t, d)| stores.map(|store| Backward { t, d, store }));
    boxed(forward).chain(boxed(both)).collect()
}

/// 1 / sqrt(mean x^2 + eps) of each row.
fn rstd(x: &[f64], d: usize) -> Vec<f64> {
    let rows = x.chunks_exact(d);
    rows.map(|x| ops::reciprocal_rms(x, f64::from(EPS)))
        .collect()
}

struct Forward {
    t: usize,
    d: usize,
}

impl Forward {
    fn x(&self) -> Vec<f32> {
        normal(self.t * self.d, "x")
    }
    fn gain(&self) -> Vec<f32> {
        normal(self.d, "gain")
    }
}

impl Case for Forward {
    fn op(&self) -> &'static str {
        "rms_norm.forward"
    }
    fn dims(&self) -> Vec<(&'static str, usize)> {
        vec![("T", self.t), ("D", self.d)]
    }
    fn cost(&self) -> Cost {
        Cost::values(self.t * self.d, self.t * self.d)
    }
    fn outputs(&self) -> Vec<Output> {
        let tolerance = Tolerance::sums(self.d);
        vec![
            Output::new("y", self.t * self.d, tolerance),
            Output::new("rstd", self.t, tolerance),
        ]
    }
    fn reference(&self) -> Vec<Vec<f64>> {
        let (x, gain) = (to_f64(&self.x()), to_f64(&self.gain()));
        let y = ops::rms_norm(&x, &gain, f64::from(EPS));
        vec![y, rstd(&x, self.d)]
    }
    fn kernel<'a>(&'a self, device: &'a Device) -> Kernel<'a> {
        let (x, gain) = (upload(device, &self.x()), upload(device, &self.gain()));
        Box::new(move |out| {
            let [y, rstd] = out else {
                unreachable!("two outputs")
            };
            let (y, rstd) = (y.floats_mut(), rstd.floats_mut());
            rms_norm::forward(device, y, rstd, x.view(), gain.view(), EPS);
        })
    }
}

struct Backward {
    t: usize,
    d: usize,
    store: Store,
}

impl Backward {
    fn input(&self) -> Forward {
        let (t, d) = (self.t, self.d);
        Forward { t, d }
    }
    fn dy(&self) -> Vec<f32> {
        normal(self.t * self.d, "dy")
    }
}

impl Case for Backward {
    fn op(&self) -> &'static str {
        "rms_norm.backward"
    }
    fn dims(&self) -> Vec<(&'static str, usize)> {
        let adds = usize::from(self.store == Store::Add);
        vec![("T", self.t), ("D", self.d), ("add", adds)]
    }
    fn cost(&self) -> Cost {
        let values = self.t * self.d;
        let adds = usize::from(self.store == Store::Add);
        Cost::values((2 + adds) * values, values)
    }
    fn outputs(&self) -> Vec<Output> {
        let (t, d) = (self.t, self.d);
        // A sum over rows; and of few columns dx is a difference of terms ten times as large.
        let (sums, dx) = (Tolerance::sums(t + d), Tolerance::sums(100 + d));
        let dx = match self.store {
            Store::Overwrite => Output::new("dx", t * d, dx),
            Store::Add => Output::sum("dx", normal(t * d, "old dx"), dx),
        };
        vec![dx, Output::sum("dgain", normal(d, "old dgain"), sums)]
    }
    fn reference(&self) -> Vec<Vec<f64>> {
        let (x, gain) = (to_f64(&self.input().x()), to_f64(&self.input().gain()));
        let (dx, dgain) = ops::rms_norm_backward(&to_f64(&self.dy()), &x, &gain, f64::from(EPS));
        vec![dx, dgain]
    }
    fn kernel<'a>(&'a self, device: &'a Device) -> Kernel<'a> {
        let (x, gain) = (self.input().x(), self.input().gain());
        let rstd = upload(device, &to_f32(&rstd(&to_f64(&x), self.d)));
        let (x, gain) = (upload(device, &x), upload(device, &gain));
        let dy = upload(device, &self.dy());
        Box::new(move |out| {
            let [dx, dgain] = out else {
                unreachable!("two outputs")
            };
            let (dx, dgain) = (dx.floats_mut(), dgain.floats_mut());
            let (dy, x, rstd, gain) = (dy.view(), x.view(), rstd.view(), gain.view());
            rms_norm::backward(device, dx, dgain, dy, x, rstd, gain, self.store);
        })
    }
    fn gradient(&self) -> Option<Gradient<'_>> {
        let dy = to_f64(&self.dy());
        Some(Gradient {
            at: vec![to_f64(&self.input().x()), to_f64(&self.input().gain())],
            claimed: self.reference(),
            of: Box::new(move |at| dot(&dy, &ops::rms_norm(&at[0], &at[1], f64::from(EPS)))),
        })
    }
}
