//! Softmax cross-entropy of rows of logits. Formulas and proofs: `kernels_cpu::cross_entropy`.

use crate::{Device, View, ViewMut};
use kernels_cpu::cross_entropy as cpu_kernel;
pub use kernels_cpu::cross_entropy::IGNORE;

/// losses (R).
pub fn forward(device: &Device, losses: ViewMut, logits: View, targets: View<u32>) {
    match (device, losses, logits, targets) {
        (Device::Cpu(cpu), ViewMut::Cpu(losses), View::Cpu(logits), View::Cpu(targets)) => {
            cpu_kernel::forward(cpu, losses, logits, targets)
        }
    }
}

/// losses (R); logits (R, V) become their gradient times `scales`.
pub fn forward_backward(
    device: &Device,
    logits: ViewMut,
    losses: ViewMut,
    targets: View<u32>,
    scales: View,
) {
    match (device, logits, losses, targets, scales) {
        (
            Device::Cpu(cpu),
            ViewMut::Cpu(logits),
            ViewMut::Cpu(losses),
            View::Cpu(targets),
            View::Cpu(scales),
        ) => cpu_kernel::forward_backward(cpu, logits, losses, targets, scales),
    }
}
