//! Muon on a batch of matrices. Formulas and proofs: `kernels_cpu::muon`.

use crate::Device;
use kernels_cpu::muon as cpu_kernel;
pub use kernels_cpu::muon::{Matrix, Muon};

/// One update of every matrix. The matrices are ranges of processor memory: parameters, gradients and
/// momentum of one device.
pub fn step(device: &Device, matrices: &mut [Matrix], grad_scale: f32, params: &Muon) {
    match device {
        Device::Cpu(cpu) => cpu_kernel::step(cpu, matrices, grad_scale, params),
    }
}
