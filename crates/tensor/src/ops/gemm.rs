//! Matrix products with a packed right operand, and their weight gradient. Formulas and proofs: `kernels_cpu::gemm`.

use crate::{Compute, Device, Packed, View, ViewMut};
pub use kernels_cpu::Store;
use kernels_cpu::gemm as cpu_kernel;

/// y (m, n) = x (m, k) times the packed matrix; adds to y when `store` says so.
pub fn matmul(device: &Device, y: ViewMut, x: View, b: &Packed, store: Store) {
    match (device, y, x, b) {
        (Device::Cpu(cpu), ViewMut::Cpu(y), View::Cpu(x), Packed::Cpu(b)) => {
            cpu_kernel::matmul(cpu, y, x, b, store)
        }
    }
}

/// c (p, q) += a (m, p)^T b (m, q).
pub fn matmul_tn(device: &Device, compute: Compute, c: ViewMut, a: View, b: View, m: usize) {
    match (device, c, a, b) {
        (Device::Cpu(cpu), ViewMut::Cpu(c), View::Cpu(a), View::Cpu(b)) => {
            cpu_kernel::matmul_tn(cpu, compute, c, a, b, m)
        }
    }
}
