//! Tokens to experts and back. Formulas and proofs: `kernels_cpu::moe_permute`.

use crate::{Device, View, ViewMut};
use kernels_cpu::Store;
use kernels_cpu::moe_permute as cpu_kernel;

/// offsets (E+1), rows (N), pos (T, A) of topk_ids (T, A).
pub fn permute(
    device: &Device,
    offsets: ViewMut<u32>,
    rows: ViewMut<u32>,
    pos: ViewMut<u32>,
    topk_ids: View<u32>,
    num_experts: usize,
    num_experts_per_tok: usize,
) {
    match (device, offsets, rows, pos, topk_ids) {
        (
            Device::Cpu(cpu),
            ViewMut::Cpu(offsets),
            ViewMut::Cpu(rows),
            ViewMut::Cpu(pos),
            View::Cpu(topk_ids),
        ) => cpu_kernel::permute(
            cpu,
            offsets,
            rows,
            pos,
            topk_ids,
            num_experts,
            num_experts_per_tok,
        ),
    }
}

/// y (T, D): weighted sum of each token's expert outputs.
pub fn combine(
    device: &Device,
    y: ViewMut,
    out: View,
    pos: View<u32>,
    topk_weights: View,
    d: usize,
    store: Store,
) {
    match (device, y, out, pos, topk_weights) {
        (
            Device::Cpu(cpu),
            ViewMut::Cpu(y),
            View::Cpu(out),
            View::Cpu(pos),
            View::Cpu(topk_weights),
        ) => cpu_kernel::combine(cpu, y, out, pos, topk_weights, d, store),
    }
}

/// dout (N, D) and dtopk_weights (T, A) of dy (T, D).
pub fn combine_backward(
    device: &Device,
    dout: ViewMut,
    dtopk_weights: ViewMut,
    dy: View,
    out: View,
    pos: View<u32>,
    topk_weights: View,
    d: usize,
) {
    match (device, dout, dtopk_weights, dy, out, pos, topk_weights) {
        (
            Device::Cpu(cpu),
            ViewMut::Cpu(dout),
            ViewMut::Cpu(dtopk_weights),
            View::Cpu(dy),
            View::Cpu(out),
            View::Cpu(pos),
            View::Cpu(topk_weights),
        ) => cpu_kernel::combine_backward(cpu, dout, dtopk_weights, dy, out, pos, topk_weights, d),
    }
}

/// dx (T, D) += the rows of each token.
pub fn unpermute_add(
    device: &Device,
    dx: ViewMut,
    drows: View,
    pos: View<u32>,
    num_experts_per_tok: usize,
    d: usize,
) {
    match (device, dx, drows, pos) {
        (Device::Cpu(cpu), ViewMut::Cpu(dx), View::Cpu(drows), View::Cpu(pos)) => {
            cpu_kernel::unpermute_add(cpu, dx, drows, pos, num_experts_per_tok, d)
        }
    }
}
