//! Matrix products of groups of rows, each with its own matrix (the experts). Formulas and proofs: `kernels_cpu::grouped_gemm`.

use crate::packed::PackedRange;
use crate::{Compute, Device, View, ViewMut};
use kernels_cpu::Store;
use kernels_cpu::grouped_gemm as cpu_kernel;

/// Rows `offsets[e]..offsets[e+1]` of y (N, n) = those of x (gathered by `rows`) times `b[e]`; a group without rows needs
/// no matrix.
pub fn grouped_matmul(
    device: &Device,
    y: ViewMut,
    x: View,
    rows: Option<View<u32>>,
    offsets: View<u32>,
    b: PackedRange,
    store: Store,
) {
    match (device, y, x, offsets, b) {
        (
            Device::Cpu(cpu),
            ViewMut::Cpu(y),
            View::Cpu(x),
            View::Cpu(offsets),
            PackedRange::Cpu(b),
        ) => cpu_kernel::grouped_matmul(
            cpu,
            y,
            x,
            rows.map(|View::Cpu(rows)| rows),
            offsets,
            b,
            store,
        ),
    }
}

/// c (E, p, q): `c[e]` += sum over the rows of group e of a^T b.
pub fn grouped_matmul_tn(
    device: &Device,
    compute: Compute,
    c: ViewMut,
    a: View,
    a_rows: Option<View<u32>>,
    b: View,
    b_rows: Option<View<u32>>,
    offsets: View<u32>,
    p: usize,
    q: usize,
) {
    match (device, c, a, b, offsets) {
        (Device::Cpu(cpu), ViewMut::Cpu(c), View::Cpu(a), View::Cpu(b), View::Cpu(offsets)) => {
            cpu_kernel::grouped_matmul_tn(
                cpu,
                compute,
                c,
                a,
                a_rows.map(|View::Cpu(rows)| rows),
                b,
                b_rows.map(|View::Cpu(rows)| rows),
                offsets,
                p,
                q,
            )
        }
    }
}
