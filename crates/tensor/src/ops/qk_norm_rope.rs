//! Per-head norm of queries and keys, then the rotation, each where there is one. Formulas and proofs:
//! `kernels_cpu::qk_norm_rope`.

use crate::{Device, View, ViewMut};
use kernels_cpu::qk_norm_rope as cpu_kernel;
pub use kernels_cpu::qk_norm_rope::{HeadShape, RopeTable};

/// What queries and keys are multiplied with after they are normed: (K) each.
#[derive(Clone, Copy)]
pub struct Gains<'a> {
    /// Of queries.
    pub q: View<'a>,
    /// Of keys.
    pub k: View<'a>,
}

impl<'a> Gains<'a> {
    fn cpu(self) -> cpu_kernel::Gains<'a> {
        match (self.q, self.k) {
            (View::Cpu(q), View::Cpu(k)) => cpu_kernel::Gains { q, k },
        }
    }
}

/// q (T, H, K), k (T, G, K), rstd (T, H+G) of qkv (T, (H+2G)*K); without gains nothing is normed.
pub fn forward(
    device: &Device,
    q: ViewMut,
    k: ViewMut,
    rstd: ViewMut,
    qkv: View,
    gains: Option<Gains>,
    positions: View<u32>,
    rope: Option<&RopeTable>,
    shape: HeadShape,
    eps: f32,
) {
    match (device, q, k, rstd, qkv, positions) {
        (
            Device::Cpu(cpu),
            ViewMut::Cpu(q),
            ViewMut::Cpu(k),
            ViewMut::Cpu(rstd),
            View::Cpu(qkv),
            View::Cpu(positions),
        ) => {
            let gains = gains.map(Gains::cpu);
            cpu_kernel::forward(cpu, q, k, rstd, qkv, gains, positions, rope, shape, eps);
        }
    }
}

/// Query and key columns of dqkv; gradients of gains add.
pub fn backward(
    device: &Device,
    dqkv: ViewMut,
    dq_gain: ViewMut,
    dk_gain: ViewMut,
    dq: View,
    dk: View,
    qkv: View,
    rstd: View,
    gains: Option<Gains>,
    positions: View<u32>,
    rope: Option<&RopeTable>,
    shape: HeadShape,
) {
    match (device, dqkv, dq_gain, dk_gain, dq, dk, qkv, rstd, positions) {
        (
            Device::Cpu(cpu),
            ViewMut::Cpu(dqkv),
            ViewMut::Cpu(dq_gain),
            ViewMut::Cpu(dk_gain),
            View::Cpu(dq),
            View::Cpu(dk),
            View::Cpu(qkv),
            View::Cpu(rstd),
            View::Cpu(positions),
        ) => {
            let gains = gains.map(Gains::cpu);
            cpu_kernel::backward(
                cpu, dqkv, dq_gain, dk_gain, dq, dk, qkv, rstd, gains, positions, rope, shape,
            );
        }
    }
}
