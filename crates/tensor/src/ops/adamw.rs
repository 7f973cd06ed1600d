//! AdamW on a range of parameters. Formulas and proofs: `kernels_cpu::adamw`.

use crate::{Device, View, ViewMut};
use kernels_cpu::adamw as cpu_kernel;
pub use kernels_cpu::adamw::AdamW;

/// One update of w with moments m and v.
pub fn step(
    device: &Device,
    w: ViewMut,
    m: ViewMut,
    v: ViewMut,
    g: View,
    grad_scale: f32,
    params: &AdamW,
    step: u64,
) {
    match (device, w, m, v, g) {
        (Device::Cpu(cpu), ViewMut::Cpu(w), ViewMut::Cpu(m), ViewMut::Cpu(v), View::Cpu(g)) => {
            cpu_kernel::step(cpu, w, m, v, g, grad_scale, params, step)
        }
    }
}
