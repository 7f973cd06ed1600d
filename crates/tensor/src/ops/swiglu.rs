//! SiLU(gate) * up. Formulas and proofs: `kernels_cpu::swiglu`.

use crate::{Device, View, ViewMut};
use kernels_cpu::swiglu as cpu_kernel;

/// h (R, F) of gate_up (R, 2F), whose values are cut at `limit`.
pub fn forward(device: &Device, h: ViewMut, gate_up: View, f: usize, limit: Option<f32>) {
    match (device, h, gate_up) {
        (Device::Cpu(cpu), ViewMut::Cpu(h), View::Cpu(gate_up)) => {
            cpu_kernel::forward(cpu, h, gate_up, f, limit)
        }
    }
}

/// dgate_up (R, 2F) of dh (R, F).
pub fn backward(
    device: &Device,
    dgate_up: ViewMut,
    dh: View,
    gate_up: View,
    f: usize,
    limit: Option<f32>,
) {
    match (device, dgate_up, dh, gate_up) {
        (Device::Cpu(cpu), ViewMut::Cpu(dgate_up), View::Cpu(dh), View::Cpu(gate_up)) => {
            cpu_kernel::backward(cpu, dgate_up, dh, gate_up, f, limit)
        }
    }
}
