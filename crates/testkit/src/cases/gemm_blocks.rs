//! Products with weights in blocks of integers: `reference::ops::linear`, of what is multiplied.
//!
//! `matmul` and `grouped_matmul` round each 32 values of a row to integers of 8 or 16 bits
//! (`kernels_cpu::gemm::blocks`). The reference is given rows so rounded and weights as `numerics` reads
//! them, so what is left is the order of sums in f32.
//!
//! A factor of 16 bits is multiplied as two of 8: its products count twice.

use super::boxed;
use crate::case::{Case, Cost, Kernel, Mode, Output, normal, upload};
use crate::compare::{Tolerance, to_f64};
use numerics::BlockType;
use reference::ops;
use tensor::ops::gemm::{Store, matmul};
use tensor::ops::grouped_gemm::grouped_matmul;
use tensor::packed::{Activations, PackedGroup, Stored};
use tensor::{Compute, Device, Packed};

/// The types that are timed, and stand for the kinds of blocks: plain, of four bits, with terms, with two
/// scales for a group.
const TYPES: [BlockType; 4] = [
    BlockType::Q8_0,
    BlockType::Q4_0,
    BlockType::Q4K,
    BlockType::Q6K,
];

/// (groups of rows, N, K): a row; odd; enough rows to make panels wide. K is a multiple of the largest block.
const SIZES: [(&[usize], usize, usize); 4] = [
    (&[1], 33, 256),
    (&[13], 31, 512),
    (&[40], 65, 768),
    (&[0, 3, 14, 1], 20, 256),
];

/// Products of 1024; of a model whose rows are of 1024 values, for a prompt of 512 and for a token: queries, keys
/// and values, a dense layer's two, 8 of 64 experts, the vocabulary (of which a prompt needs one row).
const REAL: [(&[usize], usize, usize); 11] = [
    (&[1024], 1024, 1024),
    (&[512], 1024, 1024),
    (&[512], 1536, 1024),
    (&[512], 8192, 1024),
    (&[512], 1024, 4096),
    (&[64; 64], 1024, 1024),
    (&[64; 64], 1024, 512),
    (&[1], 1536, 1024),
    (&[1], 8192, 1024),
    (&[1], 32768, 1024),
    (&[1; 8], 1024, 1024),
];

/// The table.
pub fn cases(mode: Mode) -> Vec<Box<dyn Case>> {
    let sizes = match mode {
        Mode::Grad => return Vec::new(), // weights in blocks are not trained
        Mode::Perf => &REAL[..],
        Mode::Conform => &SIZES,
    };
    let both = [Activations::Int8, Activations::Int16];
    let all = TYPES.into_iter().flat_map(move |block_type| {
        both.into_iter().flat_map(move |activations| {
            sizes.iter().map(move |&(groups, n, k)| Product {
                block_type,
                activations,
                groups,
                n,
                k,
            })
        })
    });
    boxed(all).collect()
}

struct Product {
    block_type: BlockType,
    activations: Activations,
    /// Rows of each matrix; with one matrix an ordinary product.
    groups: &'static [usize],
    n: usize,
    k: usize,
}

/// Rows of weights that are drawn and rounded; more are these again. A prime, and more than a panel has.
const DRAWN_ROWS: usize = 67;

impl Product {
    fn rows(&self) -> usize {
        self.groups.iter().sum()
    }
    fn x(&self) -> Vec<f32> {
        normal(self.rows() * self.k, "x")
    }
    /// All matrices, one after the other, in blocks.
    fn w(&self) -> Vec<u8> {
        let rows = self.groups.len() * self.n;
        let drawn = normal(rows.min(DRAWN_ROWS) * self.k, "w");
        let bytes_for = |values| self.block_type.bytes_for(values);
        let mut bytes = vec![0; bytes_for(drawn.len()).expect("whole blocks")];
        let written = self.block_type.quantise(&drawn, &mut bytes);
        written.expect("a type that is written");
        let all = bytes_for(rows * self.k).expect("whole blocks");
        bytes.into_iter().cycle().take(all).collect()
    }
    /// Largest integer of a row.
    fn limit(&self) -> f32 {
        match self.activations {
            Activations::Int8 => 127.0,
            Activations::Int16 => 32512.0,
        }
    }
}

/// Each 32 values rounded to integers of at most `limit`, and back.
fn rounded(x: &[f32], limit: f32) -> Vec<f64> {
    let group = |x: &[f32]| {
        let largest = x.iter().fold(0f32, |m, x| m.max(x.abs()));
        let (scale, inverse) = (largest * (1.0 / limit), limit / largest);
        let round = move |x: &f32| f64::from((x * inverse).round_ties_even()) * f64::from(scale);
        x.iter().map(round).collect::<Vec<_>>()
    };
    x.chunks(32).flat_map(group).collect()
}

impl Case for Product {
    fn op(&self) -> &'static str {
        match self.groups.len() {
            1 => "gemm.matmul",
            _ => "grouped_gemm.grouped_matmul",
        }
    }
    fn dims(&self) -> Vec<(&'static str, usize)> {
        let bits = match self.activations {
            Activations::Int8 => 8,
            Activations::Int16 => 16,
        };
        let sizes = match self.groups.len() {
            1 => vec![("M", self.rows()), ("N", self.n), ("K", self.k)],
            e => vec![("N", self.rows()), ("E", e), ("n", self.n), ("k", self.k)],
        };
        [&sizes[..], &[("bits", bits)]].concat()
    }
    fn blocks(&self) -> Option<BlockType> {
        Some(self.block_type)
    }
    fn cost(&self) -> Cost {
        let used = self.groups.iter().filter(|&&rows| rows > 0).count();
        let stored = self.block_type.bytes_for(used * self.n * self.k);
        let cost = Cost::values(self.rows() * self.k, self.rows() * self.n);
        // As products of bytes: kernels that multiply words take fewer, and may pass the peak of bytes.
        let parts = match self.activations {
            Activations::Int8 => 1,
            Activations::Int16 => 2,
        };
        Cost {
            bytes_read: cost.bytes_read + stored.expect("whole blocks") as f64,
            ..cost
        }
        .multiply_adds((parts * self.rows() * self.n * self.k) as f64)
    }
    fn outputs(&self) -> Vec<Output> {
        // Each 32 values are two products and two sums in f32; where blocks have terms, the parts of a sum cancel:
        // they are at most 4 times as large as the values.
        let tolerance = Tolerance::sums(4 * self.k);
        vec![Output::new("y", self.rows() * self.n, tolerance)]
    }
    fn reference(&self) -> Vec<Vec<f64>> {
        let (n, k) = (self.n, self.k);
        let mut w = vec![0.0; self.groups.len() * n * k];
        let read = self.block_type.dequantise(&self.w(), &mut w);
        read.expect("whole blocks");
        let (x, w) = (rounded(&self.x(), self.limit()), to_f64(&w));
        let mut first = 0;
        let group = |(e, &rows): (usize, &usize)| {
            let x = &x[first * k..(first + rows) * k];
            first += rows;
            ops::linear(x, &w[e * n * k..(e + 1) * n * k], k)
        };
        vec![self.groups.iter().enumerate().flat_map(group).collect()]
    }
    fn kernel<'a>(&'a self, device: &'a Device) -> Kernel<'a> {
        let (x, w) = (upload(device, &self.x()), self.w());
        let matrices = w.chunks_exact(w.len() / self.groups.len());
        let mut packed = matrices.map(|bytes| {
            let stored = [Stored::Blocks(self.block_type, bytes)];
            Packed::of(device, Compute::F32, self.activations, self.k, &stored)
        });
        if self.groups.len() == 1 {
            let packed = packed.next().expect("one matrix");
            return Box::new(move |out| {
                let y = out[0].floats_mut();
                matmul(device, y, x.view(), &packed, Store::Overwrite);
            });
        }
        let packed = PackedGroup::of(packed);
        let mut end = 0;
        let ends = self.groups.iter().map(|&rows| {
            end += rows as u32;
            end
        });
        let offsets: Vec<u32> = std::iter::once(0).chain(ends).collect();
        let offsets = upload(device, &offsets);
        Box::new(move |out| {
            let (y, offsets) = (out[0].floats_mut(), offsets.view());
            grouped_matmul(
                device,
                y,
                x.view(),
                None,
                offsets,
                packed.view(),
                Store::Overwrite,
            );
        })
    }
}
