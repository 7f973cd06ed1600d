//! Rows of a table by id. Formulas and proofs: `kernels_cpu::embedding`.

use crate::{Device, View, ViewMut};
use kernels_cpu::embedding as cpu_kernel;

/// x (T, D) = table (V, D) at ids (T).
pub fn forward(device: &Device, x: ViewMut, table: View, ids: View<u32>, d: usize) {
    match (device, x, table, ids) {
        (Device::Cpu(cpu), ViewMut::Cpu(x), View::Cpu(table), View::Cpu(ids)) => {
            cpu_kernel::forward(cpu, x, table, ids, d)
        }
    }
}

/// dtable (V, D) at ids += dx (T, D), in token order.
pub fn backward(device: &Device, dtable: ViewMut, dx: View, ids: View<u32>, d: usize) {
    match (device, dtable, dx, ids) {
        (Device::Cpu(cpu), ViewMut::Cpu(dtable), View::Cpu(dx), View::Cpu(ids)) => {
            cpu_kernel::backward(cpu, dtable, dx, ids, d)
        }
    }
}
