//! Products of groups of rows, each group with its own matrix: `reference::ops::linear` group by group.

use super::boxed;
use super::gemm::{computes, factors};
use crate::case::{Case, Cost, Kernel, Mode, Output, below, normal, upload};
use crate::compare::Tolerance;
use reference::ops;
use std::ops::Range;
use tensor::ops::gemm::Store;
use tensor::ops::grouped_gemm::{grouped_matmul, grouped_matmul_tn};
use tensor::packed::PackedGroup;
use tensor::{Compute, Device, Packed};

/// Rows of each group (none, one, few, many), columns, depth.
const SIZES: [(&[usize], usize, usize); 6] = [
    (&[1], 1, 1),
    (&[0, 0, 3], 5, 7),
    (&[2, 0, 1, 13], 33, 17),
    (&[40, 3, 0, 100, 17], 31, 65),
    (&[0, 12, 24, 1], 64, 513),
    (&[64, 70, 61, 60, 66, 63, 0, 128], 384, 192),
];
/// The experts of a training step, whose tokens are 384 wide and their own width is 192, and of a token.
const EXPERTS: &[usize] = &[1024; 16];
const REAL: [(Kind, &[usize], usize, usize); 7] = [
    (Kind::Gathered, EXPERTS, 384, 384),
    (Kind::InOrder, EXPERTS, 384, 192),
    (Kind::Transposed, EXPERTS, 384, 384),
    (Kind::Transposed, EXPERTS, 384, 192),
    (Kind::Weight, EXPERTS, 384, 384),
    (Kind::Weight, EXPERTS, 384, 192),
    (Kind::Gathered, &[1, 0, 1, 0, 1, 1, 0, 0], 2048, 1024),
];

/// The table.
pub fn cases(mode: Mode) -> Vec<Box<dyn Case>> {
    let sized: Vec<_> = match mode {
        Mode::Grad => Vec::new(), // those of `gemm`, group by group
        Mode::Perf => REAL.to_vec(),
        Mode::Conform => {
            let sizes = SIZES.iter();
            let of_kinds =
                |&(groups, n, k)| KINDS.into_iter().map(move |kind| (kind, groups, n, k));
            sizes.flat_map(of_kinds).collect()
        }
    };
    let all = computes().into_iter().flat_map(|compute| {
        let case = move |&(kind, groups, n, k)| Grouped {
            kind,
            compute,
            groups,
            n,
            k,
        };
        sized.iter().map(case).collect::<Vec<_>>()
    });
    boxed(all).collect()
}

/// With one store or the other: both are the same kernel with another start.
const KINDS: [Kind; 4] = [Kind::Gathered, Kind::Added, Kind::Transposed, Kind::Weight];

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// y = x[rows] W^T.
    Gathered,
    /// y = x W^T.
    InOrder,
    /// y += x W^T.
    Added,
    /// dx = dy W.
    Transposed,
    /// dW += dy^T x[rows].
    Weight,
}

struct Grouped {
    kind: Kind,
    compute: Compute,
    groups: &'static [usize],
    n: usize,
    k: usize,
}

impl Grouped {
    fn rows(&self) -> usize {
        self.groups.iter().sum()
    }
    /// As many tokens as rows or fewer: a token is in several groups.
    fn tokens(&self) -> usize {
        self.rows().div_ceil(2)
    }
    fn offsets(&self) -> Vec<u32> {
        let mut end = 0;
        let ends = self.groups.iter().map(|&rows| {
            end += rows as u32;
            end
        });
        std::iter::once(0).chain(ends).collect()
    }
    fn group(&self, e: usize) -> Range<usize> {
        let start = self.groups[..e].iter().sum();
        start..start + self.groups[e]
    }
    /// The token of each row, in the cases that gather.
    fn gather(&self) -> Vec<u32> {
        below(self.rows(), self.tokens(), "gather")
    }
    fn x(&self) -> Vec<f32> {
        let rows = match self.kind {
            Kind::Gathered | Kind::Weight => self.tokens(),
            Kind::InOrder | Kind::Added | Kind::Transposed => self.rows(),
        };
        normal(rows * self.k, "x")
    }
    fn w(&self) -> Vec<f32> {
        normal(self.groups.len() * self.n * self.k, "w")
    }
    fn dy(&self) -> Vec<f32> {
        normal(self.rows() * self.n, "dy")
    }
    /// x with a row for each row of y.
    fn gathered(&self) -> Vec<f32> {
        let x = self.x();
        match self.kind {
            Kind::Gathered | Kind::Weight => self
                .gather()
                .iter()
                .flat_map(|&r| &x[r as usize * self.k..][..self.k])
                .copied()
                .collect(),
            Kind::InOrder | Kind::Added | Kind::Transposed => x,
        }
    }
}

impl Case for Grouped {
    fn op(&self) -> &'static str {
        match self.kind {
            Kind::Weight => "grouped_gemm.grouped_matmul_tn",
            _ => "grouped_gemm.grouped_matmul",
        }
    }
    fn dims(&self) -> Vec<(&'static str, usize)> {
        let sizes = [("N", self.rows()), ("E", self.groups.len())];
        let widths = [("n", self.n), ("k", self.k)];
        let how = [
            (
                "gather",
                usize::from(self.x().len() != self.rows() * self.k),
            ),
            ("transposed", usize::from(self.kind == Kind::Transposed)),
        ];
        [&sizes[..], &widths, &how].concat()
    }
    fn compute(&self) -> Compute {
        self.compute
    }
    fn cost(&self) -> Cost {
        let (rows, n, k) = (self.rows(), self.n, self.k);
        let used = self.groups.iter().filter(|&&rows| rows > 0).count() * n * k;
        let cost = match self.kind {
            Kind::Weight => Cost::values(rows * (n + k) + used, used),
            _ => Cost::values(rows * k, rows * n),
        };
        let of_w = match (self.kind, self.compute) {
            (Kind::Weight, _) => 0.0,
            (_, Compute::F32) => 4.0,
            (_, Compute::Bf16) => 2.0, // packed
        };
        Cost {
            bytes_read: cost.bytes_read + of_w * used as f64,
            ..cost
        }
        .multiply_adds((rows * n * k) as f64)
    }
    fn outputs(&self) -> Vec<Output> {
        let (rows, n, k) = (self.rows(), self.n, self.k);
        vec![match self.kind {
            Kind::Gathered | Kind::InOrder => Output::new("y", rows * n, Tolerance::sums(k)),
            Kind::Added => Output::sum("y", normal(rows * n, "old"), Tolerance::sums(k)),
            Kind::Transposed => Output::new("dx", rows * k, Tolerance::sums(n)),
            Kind::Weight => {
                let start = normal(self.w().len(), "old");
                Output::sum("dw", start, Tolerance::sums(rows))
            }
        }]
    }
    fn reference(&self) -> Vec<Vec<f64>> {
        let of = |x: &[f32]| factors(self.compute, x);
        let (x, w, dy) = (of(&self.gathered()), of(&self.w()), of(&self.dy()));
        let (n, k) = (self.n, self.k);
        let group = |e: usize| {
            let rows = self.group(e);
            let x = &x[rows.start * k..rows.end * k];
            let dy = &dy[rows.start * n..rows.end * n];
            let w = &w[e * n * k..(e + 1) * n * k];
            match self.kind {
                Kind::Gathered | Kind::InOrder | Kind::Added => ops::linear(x, w, k),
                Kind::Transposed => ops::linear_backward(dy, x, w, k).0,
                Kind::Weight => ops::linear_backward(dy, x, w, k).1,
            }
        };
        vec![(0..self.groups.len()).flat_map(group).collect()]
    }
    fn kernel<'a>(&'a self, device: &'a Device) -> Kernel<'a> {
        let (x, w) = (upload(device, &self.x()), upload(device, &self.w()));
        let dy = upload(device, &self.dy());
        let offsets = upload(device, &self.offsets());
        let gather = upload(device, &self.gather());
        let (e, n, k, compute) = (self.groups.len(), self.n, self.k, self.compute);
        match self.kind {
            Kind::Gathered | Kind::InOrder | Kind::Added => {
                let zeros = |_| Packed::new(device, compute, n, k);
                let mut packed = PackedGroup::of((0..e).map(zeros));
                for idx in 0..e {
                    packed.pack(device, idx, w.range(idx * n * k..(idx + 1) * n * k));
                }
                let gathers = self.kind == Kind::Gathered;
                let store = match self.kind {
                    Kind::Added => Store::Add,
                    _ => Store::Overwrite,
                };
                Box::new(move |out| {
                    let (y, x, offsets) = (out[0].floats_mut(), x.view(), offsets.view());
                    let rows = gathers.then_some(gather.view());
                    grouped_matmul(device, y, x, rows, offsets, packed.view(), store);
                })
            }
            Kind::Transposed => {
                let zeros = |_| Packed::new(device, compute, k, n);
                let mut packed = PackedGroup::of((0..e).map(zeros));
                for idx in 0..e {
                    packed.pack_transposed(device, idx, w.range(idx * n * k..(idx + 1) * n * k));
                }
                Box::new(move |out| {
                    let (dx, dy, offsets) = (out[0].floats_mut(), dy.view(), offsets.view());
                    grouped_matmul(
                        device,
                        dx,
                        dy,
                        None,
                        offsets,
                        packed.view(),
                        Store::Overwrite,
                    );
                })
            }
            Kind::Weight => Box::new(move |out| {
                let (dw, dy, x) = (out[0].floats_mut(), dy.view(), x.view());
                let (rows, offsets) = (Some(gather.view()), offsets.view());
                grouped_matmul_tn(device, compute, dw, dy, None, x, rows, offsets, n, k);
            }),
        }
    }
}
