//! Matrix products with a packed right operand: `reference::ops::linear`, and both of its gradients.
//!
//! `matmul` computes y = x W^T from W packed as it lies, and dx = dy W from W packed transposed;
//! `matmul_tn` adds dW = dy^T x. In bf16 the reference is given the factors as they are multiplied,
//! rounded, so the tolerance is that of sums in f32 for both types.

use super::boxed;
use crate::case::{Case, Cost, Gradient, Kernel, Mode, Output, dot, normal, upload};
use crate::compare::{Tolerance, to_f64};
use half::bf16;
use reference::ops;
use tensor::ops::gemm::{self, Store};
use tensor::{Compute, Device, Packed};

/// (M, N, K): one; a row; odd; around the borders of tiles (12 rows, 32 columns) and of passes over the
/// depth (512, 1024); a layer of the smallest real model.
const SIZES: [(usize, usize, usize); 12] = [
    (1, 1, 1),
    (1, 640, 384),
    (3, 5, 7),
    (12, 32, 16),
    (13, 33, 17),
    (25, 31, 65),
    (4, 47, 511),
    (29, 65, 513),
    (9, 20, 1024),
    (5, 34, 1027),
    (64, 100, 3),
    (130, 384, 192),
];
/// A training step's products, a large one, those of a prompt, and a token's.
const REAL: [(usize, usize, usize); 6] = [
    (4096, 640, 384),
    (4096, 2048, 384),
    (1024, 1024, 1024),
    (512, 1536, 1024),
    (512, 1024, 4096),
    (1, 8192, 1024),
];

/// The table.
pub fn cases(mode: Mode) -> Vec<Box<dyn Case>> {
    let sizes = if mode == Mode::Perf {
        &REAL[..]
    } else {
        &SIZES
    };
    // With one store in each: the other is the same kernel with another start.
    let kinds: &[(Kind, Store)] = if mode == Mode::Perf {
        &[
            (Kind::Forward, Store::Overwrite),
            (Kind::Weight, Store::Add),
        ]
    } else {
        &[
            (Kind::Forward, Store::Overwrite),
            (Kind::Forward, Store::Add),
            (Kind::Input, Store::Overwrite),
            (Kind::Input, Store::Add),
            (Kind::Weight, Store::Add),
        ]
    };
    let all = computes().into_iter().flat_map(|compute| {
        let of_kind = move |&(kind, store): &(Kind, Store)| {
            sizes.iter().map(move |&(m, n, k)| Gemm {
                kind,
                store,
                compute,
                m,
                n,
                k,
            })
        };
        kinds.iter().flat_map(of_kind)
    });
    boxed(all).collect()
}

/// The types of factors.
pub(super) fn computes() -> [Compute; 2] {
    [Compute::F32, Compute::Bf16]
}

/// Factors as they are multiplied.
pub(super) fn factors(compute: Compute, x: &[f32]) -> Vec<f64> {
    match compute {
        Compute::F32 => to_f64(x),
        Compute::Bf16 => x.iter().map(|&x| bf16::from_f32(x).to_f64()).collect(),
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Forward,
    Input,
    Weight,
}

struct Gemm {
    kind: Kind,
    store: Store,
    compute: Compute,
    m: usize,
    n: usize,
    k: usize,
}

impl Gemm {
    fn x(&self) -> Vec<f32> {
        normal(self.m * self.k, "x")
    }
    fn w(&self) -> Vec<f32> {
        normal(self.n * self.k, "w")
    }
    fn dy(&self) -> Vec<f32> {
        normal(self.m * self.n, "dy")
    }
}

impl Case for Gemm {
    fn op(&self) -> &'static str {
        match self.kind {
            Kind::Forward | Kind::Input => "gemm.matmul",
            Kind::Weight => "gemm.matmul_tn",
        }
    }
    fn dims(&self) -> Vec<(&'static str, usize)> {
        let adds = usize::from(self.store == Store::Add);
        let transposed = usize::from(matches!(self.kind, Kind::Input));
        let sizes = [("M", self.m), ("N", self.n), ("K", self.k)];
        let how = [("add", adds), ("transposed", transposed)];
        [&sizes[..], &how].concat()
    }
    fn compute(&self) -> Compute {
        self.compute
    }
    fn cost(&self) -> Cost {
        let (m, n, k) = (self.m, self.n, self.k);
        let of_w = match (self.kind, self.compute) {
            (Kind::Weight, _) | (_, Compute::F32) => 4.0,
            (_, Compute::Bf16) => 2.0, // packed
        };
        let adds = usize::from(self.store == Store::Add);
        let (w, rest, out) = match self.kind {
            Kind::Forward => (n * k, m * k, m * n),
            Kind::Input => (n * k, m * n, m * k),
            Kind::Weight => (0, m * n + m * k, n * k),
        };
        let cost = Cost::values(rest + adds * out, out);
        Cost {
            bytes_read: cost.bytes_read + of_w * w as f64,
            ..cost
        }
        .multiply_adds((m * n * k) as f64)
    }
    fn outputs(&self) -> Vec<Output> {
        let (name, len, terms) = match self.kind {
            Kind::Forward => ("y", self.m * self.n, self.k),
            Kind::Input => ("dx", self.m * self.k, self.n),
            Kind::Weight => ("dw", self.n * self.k, self.m),
        };
        let tolerance = Tolerance::sums(terms);
        vec![match self.store {
            Store::Overwrite => Output::new(name, len, tolerance),
            Store::Add => Output::sum(name, normal(len, "old"), tolerance),
        }]
    }
    fn reference(&self) -> Vec<Vec<f64>> {
        let of = |x: &[f32]| factors(self.compute, x);
        let (x, w) = (of(&self.x()), of(&self.w()));
        if matches!(self.kind, Kind::Forward) {
            return vec![ops::linear(&x, &w, self.k)];
        }
        let (dx, dw) = ops::linear_backward(&of(&self.dy()), &x, &w, self.k);
        vec![if matches!(self.kind, Kind::Input) {
            dx
        } else {
            dw
        }]
    }
    fn kernel<'a>(&'a self, device: &'a Device) -> Kernel<'a> {
        let (x, w) = (upload(device, &self.x()), upload(device, &self.w()));
        let dy = upload(device, &self.dy());
        let (n, k, store) = (self.n, self.k, self.store);
        match self.kind {
            Kind::Forward => {
                let mut packed = Packed::new(device, self.compute, n, k);
                packed.pack(device, w.view());
                Box::new(move |out| {
                    gemm::matmul(device, out[0].floats_mut(), x.view(), &packed, store);
                })
            }
            Kind::Input => {
                let mut packed = Packed::new(device, self.compute, k, n);
                packed.pack_transposed(device, w.view());
                Box::new(move |out| {
                    gemm::matmul(device, out[0].floats_mut(), dy.view(), &packed, store);
                })
            }
            Kind::Weight => Box::new(move |out| {
                let (dw, dy, x) = (out[0].floats_mut(), dy.view(), x.view());
                gemm::matmul_tn(device, self.compute, dw, dy, x, self.m);
            }),
        }
    }
    fn gradient(&self) -> Option<Gradient<'_>> {
        if !matches!((self.kind, self.compute), (Kind::Weight, Compute::F32)) {
            return None;
        }
        let (x, w, dy) = (to_f64(&self.x()), to_f64(&self.w()), to_f64(&self.dy()));
        let (dx, dw) = ops::linear_backward(&dy, &x, &w, self.k);
        Some(Gradient {
            at: vec![x, w],
            claimed: vec![dx, dw],
            of: Box::new(move |at| dot(&dy, &ops::linear(&at[0], &at[1], self.k))),
        })
    }
}
