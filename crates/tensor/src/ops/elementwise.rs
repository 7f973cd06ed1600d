//! What is too small for a name of its own. Formulas and proofs: `kernels_cpu::elementwise`.

use crate::{Device, View, ViewMut};
use kernels_cpu::elementwise as cpu_kernel;

/// y += x.
pub fn add(device: &Device, y: ViewMut, x: View) {
    match (device, y, x) {
        (Device::Cpu(cpu), ViewMut::Cpu(y), View::Cpu(x)) => cpu_kernel::add(cpu, y, x),
    }
}

/// Sum of squares, in a fixed order.
pub fn sum_squares(device: &Device, x: View) -> f64 {
    match (device, x) {
        (Device::Cpu(cpu), View::Cpu(x)) => cpu_kernel::sum_squares(cpu, x),
    }
}

/// y (T, 2D) = rows of a, then of b.
pub fn concat2(device: &Device, y: ViewMut, a: View, b: View, d: usize) {
    match (device, y, a, b) {
        (Device::Cpu(cpu), ViewMut::Cpu(y), View::Cpu(a), View::Cpu(b)) => {
            cpu_kernel::concat2(cpu, y, a, b, d)
        }
    }
}

/// The reverse of concat2.
pub fn split2(device: &Device, a: ViewMut, b: ViewMut, y: View, d: usize) {
    match (device, a, b, y) {
        (Device::Cpu(cpu), ViewMut::Cpu(a), ViewMut::Cpu(b), View::Cpu(y)) => {
            cpu_kernel::split2(cpu, a, b, y, d)
        }
    }
}
