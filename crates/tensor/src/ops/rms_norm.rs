//! Root-mean-square norm with a learned gain. Formulas and proofs: `kernels_cpu::rms_norm`.

use crate::{Device, View, ViewMut};
use kernels_cpu::Store;
use kernels_cpu::rms_norm as cpu_kernel;

/// y (T, D), rstd (T) of x (T, D).
pub fn forward(device: &Device, y: ViewMut, rstd: ViewMut, x: View, gain: View, eps: f32) {
    match (device, y, rstd, x, gain) {
        (Device::Cpu(cpu), ViewMut::Cpu(y), ViewMut::Cpu(rstd), View::Cpu(x), View::Cpu(gain)) => {
            cpu_kernel::forward(cpu, y, rstd, x, gain, eps)
        }
    }
}

/// dx (T, D) per `store`; dgain (D) adds.
pub fn backward(
    device: &Device,
    dx: ViewMut,
    dgain: ViewMut,
    dy: View,
    x: View,
    rstd: View,
    gain: View,
    store: Store,
) {
    match (device, dx, dgain, dy, x, rstd, gain) {
        (
            Device::Cpu(cpu),
            ViewMut::Cpu(dx),
            ViewMut::Cpu(dgain),
            View::Cpu(dy),
            View::Cpu(x),
            View::Cpu(rstd),
            View::Cpu(gain),
        ) => cpu_kernel::backward(cpu, dx, dgain, dy, x, rstd, gain, store),
    }
}
