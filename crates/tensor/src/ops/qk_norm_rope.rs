//! Per-head norm of queries and keys, then the rotation of sliding layers. Formulas and proofs: `kernels_cpu::qk_norm_rope`.

use crate::{Device, View, ViewMut};
use kernels_cpu::qk_norm_rope as cpu_kernel;
pub use kernels_cpu::qk_norm_rope::{HeadShape, RopeTable};

/// q (T, H, K), k (T, G, K), rstd (T, H+G) of qkv (T, (H+2G)*K).
pub fn forward(
    device: &Device,
    q: ViewMut,
    k: ViewMut,
    rstd: ViewMut,
    qkv: View,
    q_gain: View,
    k_gain: View,
    positions: View<u32>,
    rope: Option<&RopeTable>,
    shape: HeadShape,
    eps: f32,
) {
    match (device, q, k, rstd, qkv, q_gain, k_gain, positions) {
        (
            Device::Cpu(cpu),
            ViewMut::Cpu(q),
            ViewMut::Cpu(k),
            ViewMut::Cpu(rstd),
            View::Cpu(qkv),
            View::Cpu(q_gain),
            View::Cpu(k_gain),
            View::Cpu(positions),
        ) => cpu_kernel::forward(
            cpu, q, k, rstd, qkv, q_gain, k_gain, positions, rope, shape, eps,
        ),
    }
}

/// Query and key columns of dqkv; gains add.
pub fn backward(
    device: &Device,
    dqkv: ViewMut,
    dq_gain: ViewMut,
    dk_gain: ViewMut,
    dq: View,
    dk: View,
    qkv: View,
    rstd: View,
    q_gain: View,
    k_gain: View,
    positions: View<u32>,
    rope: Option<&RopeTable>,
    shape: HeadShape,
) {
    match (
        device, dqkv, dq_gain, dk_gain, dq, dk, qkv, rstd, q_gain, k_gain, positions,
    ) {
        (
            Device::Cpu(cpu),
            ViewMut::Cpu(dqkv),
            ViewMut::Cpu(dq_gain),
            ViewMut::Cpu(dk_gain),
            View::Cpu(dq),
            View::Cpu(dk),
            View::Cpu(qkv),
            View::Cpu(rstd),
            View::Cpu(q_gain),
            View::Cpu(k_gain),
            View::Cpu(positions),
        ) => cpu_kernel::backward(
            cpu, dqkv, dq_gain, dk_gain, dq, dk, qkv, rstd, q_gain, k_gain, positions, rope, shape,
        ),
    }
}
