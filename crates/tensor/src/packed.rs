//! Matrices laid out for the device's matrix product, in the type it multiplies in.

use crate::{Device, View};
pub use kernels_cpu::gemm::{Activations, Compute, Stored};

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

/// As many packed matrices of one size as there are experts.
pub enum PackedGroup {
    /// Panels for the processor's instruction set.
    Cpu(Vec<kernels_cpu::gemm::Packed>),
}

impl PackedGroup {
    /// Of matrices of one size.
    pub fn of(matrices: impl IntoIterator<Item = Packed>) -> PackedGroup {
        let cpu = matrices.into_iter().map(|Packed::Cpu(packed)| packed);
        PackedGroup::Cpu(cpu.collect())
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        match self {
            PackedGroup::Cpu(group) => group.iter().map(|packed| packed.bytes()).sum(),
        }
    }

    /// Matrix `idx` from `w (n, k)`: products give `x w^T`.
    pub fn pack(&mut self, device: &Device, idx: usize, w: View) {
        match (device, self, w) {
            (Device::Cpu(cpu), PackedGroup::Cpu(group), View::Cpu(w)) => group[idx].pack(cpu, w),
        }
    }

    /// Matrix `idx` from `w (k, n)`: products give `x w`.
    pub fn pack_transposed(&mut self, device: &Device, idx: usize, w: View) {
        match (device, self, w) {
            (Device::Cpu(cpu), PackedGroup::Cpu(group), View::Cpu(w)) => {
                group[idx].pack_transposed(cpu, w);
            }
        }
    }
}
