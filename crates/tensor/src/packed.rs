//! Matrices laid out for the device's matrix product, in the type it multiplies in.

use crate::{Compute, Device, View};
pub use kernels_cpu::gemm::{Activations, Stored};
use std::ops::Range;

const THERE: &str = "only a matrix that is there is packed again";

/// A right operand of `ops::gemm`, packed once and multiplied many times.
pub enum Packed {
    /// Panels for the processor's instruction set.
    Cpu(kernels_cpu::gemm::Packed),
}

impl Packed {
    /// Room for `n` outputs of depth `k`.
    pub fn new(device: &Device, compute: Compute, n: usize, k: usize) -> Packed {
        match device {
            Device::Cpu(cpu) => {
                Packed::Cpu(kernels_cpu::gemm::Packed::new(cpu.isa(), compute, n, k))
            }
        }
    }

    /// From the rows of a matrix of depth `k` in host memory, in one or several forms: products give `x w^T`.
    /// Blocks of integers are multiplied with rows rounded as `activations` says.
    pub fn of(
        device: &Device,
        compute: Compute,
        activations: Activations,
        k: usize,
        rows: &[Stored],
    ) -> Packed {
        match device {
            Device::Cpu(cpu) => Packed::Cpu(kernels_cpu::gemm::Packed::of(
                cpu,
                compute,
                activations,
                k,
                rows,
            )),
        }
    }

    /// From `w (n, k)`: products give `x w^T`.
    pub fn pack(&mut self, device: &Device, w: View) {
        match (device, self, w) {
            (Device::Cpu(cpu), Packed::Cpu(packed), View::Cpu(w)) => packed.pack(cpu, w),
        }
    }

    /// From `w (k, n)`: products give `x w`.
    pub fn pack_transposed(&mut self, device: &Device, w: View) {
        match (device, self, w) {
            (Device::Cpu(cpu), Packed::Cpu(packed), View::Cpu(w)) => {
                packed.pack_transposed(cpu, w);
            }
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        match self {
            Packed::Cpu(packed) => packed.bytes(),
        }
    }
}

/// As many packed matrices of one size as there are experts, some of which may be absent.
pub enum PackedGroup {
    /// Panels for the processor's instruction set.
    Cpu(Vec<Option<kernels_cpu::gemm::Packed>>),
}

/// Neighbours of a group.
#[derive(Clone, Copy)]
pub enum PackedRange<'a> {
    /// Panels for the processor's instruction set.
    Cpu(&'a [Option<kernels_cpu::gemm::Packed>]),
}

impl PackedGroup {
    /// Of matrices of one size.
    pub fn of(matrices: impl IntoIterator<Item = Packed>) -> PackedGroup {
        let cpu = matrices.into_iter().map(|Packed::Cpu(packed)| Some(packed));
        PackedGroup::Cpu(cpu.collect())
    }

    /// Room for `count` matrices, none of them there.
    pub fn absent(device: &Device, count: usize) -> PackedGroup {
        match device {
            Device::Cpu(_) => PackedGroup::Cpu((0..count).map(|_| None).collect()),
        }
    }

    /// Puts a matrix at its place, or takes away the one that was there; returns that.
    pub fn replace(&mut self, idx: usize, matrix: Option<Packed>) -> Option<Packed> {
        match self {
            PackedGroup::Cpu(group) => {
                let matrix = matrix.map(|Packed::Cpu(packed)| packed);
                std::mem::replace(&mut group[idx], matrix).map(Packed::Cpu)
            }
        }
    }

    /// The matrices of `range`.
    pub fn range(&self, range: Range<usize>) -> PackedRange<'_> {
        match self {
            PackedGroup::Cpu(group) => PackedRange::Cpu(&group[range]),
        }
    }

    /// All matrices.
    pub fn view(&self) -> PackedRange<'_> {
        match self {
            PackedGroup::Cpu(group) => PackedRange::Cpu(group),
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        match self {
            PackedGroup::Cpu(group) => group.iter().flatten().map(|packed| packed.bytes()).sum(),
        }
    }

    /// Matrix `idx`, which is there, from `w (n, k)`: products give `x w^T`.
    pub fn pack(&mut self, device: &Device, idx: usize, w: View) {
        match (device, self, w) {
            (Device::Cpu(cpu), PackedGroup::Cpu(group), View::Cpu(w)) => {
                group[idx].as_mut().expect(THERE).pack(cpu, w);
            }
        }
    }

    /// Matrix `idx`, which is there, from `w (k, n)`: products give `x w`.
    pub fn pack_transposed(&mut self, device: &Device, idx: usize, w: View) {
        match (device, self, w) {
            (Device::Cpu(cpu), PackedGroup::Cpu(group), View::Cpu(w)) => {
                group[idx].as_mut().expect(THERE).pack_transposed(cpu, w);
            }
        }
    }
}
