//! Sigmoid scores, choice by score plus bias, weights from the scores; the balance loss. Formulas and proofs: `kernels_cpu::router`.

use crate::{Device, View, ViewMut};
use kernels_cpu::router as cpu_kernel;
pub use kernels_cpu::router::RouterShape;

/// scores (T, E), topk_ids and topk_weights (T, A) of logits (T, E).
pub fn forward(
    device: &Device,
    scores: ViewMut,
    topk_ids: ViewMut<u32>,
    topk_weights: ViewMut,
    logits: View,
    bias: View,
    shape: RouterShape,
) {
    match (device, scores, topk_ids, topk_weights, logits, bias) {
        (
            Device::Cpu(cpu),
            ViewMut::Cpu(scores),
            ViewMut::Cpu(topk_ids),
            ViewMut::Cpu(topk_weights),
            View::Cpu(logits),
            View::Cpu(bias),
        ) => cpu_kernel::forward(cpu, scores, topk_ids, topk_weights, logits, bias, shape),
    }
}

/// Sequence-level balance loss; coeff (B, E) is what backward needs.
pub fn balance_loss(
    device: &Device,
    coeff: ViewMut,
    scores: View,
    topk_ids: View<u32>,
    cu_seqlens: View<u32>,
    alpha: f32,
    shape: RouterShape,
) -> f32 {
    match (device, coeff, scores, topk_ids, cu_seqlens) {
        (
            Device::Cpu(cpu),
            ViewMut::Cpu(coeff),
            View::Cpu(scores),
            View::Cpu(topk_ids),
            View::Cpu(cu_seqlens),
        ) => cpu_kernel::balance_loss(cpu, coeff, scores, topk_ids, cu_seqlens, alpha, shape),
    }
}

/// dlogits (T, E); `balance` is coeff, or empty.
pub fn backward(
    device: &Device,
    dlogits: ViewMut,
    dtopk_weights: View,
    scores: View,
    topk_ids: View<u32>,
    balance: View,
    cu_seqlens: View<u32>,
    shape: RouterShape,
) {
    match (
        device,
        dlogits,
        dtopk_weights,
        scores,
        topk_ids,
        balance,
        cu_seqlens,
    ) {
        (
            Device::Cpu(cpu),
            ViewMut::Cpu(dlogits),
            View::Cpu(dtopk_weights),
            View::Cpu(scores),
            View::Cpu(topk_ids),
            View::Cpu(balance),
            View::Cpu(cu_seqlens),
        ) => cpu_kernel::backward(
            cpu,
            dlogits,
            dtopk_weights,
            scores,
            topk_ids,
            balance,
            cu_seqlens,
            shape,
        ),
    }
}
