//! Causal grouped-query attention with sliding windows. Formulas and proofs: `kernels_cpu::attention`.

use crate::{Device, View, ViewMut};
use kernels_cpu::attention as cpu_kernel;
pub use kernels_cpu::attention::{CachedSequence, KV_BLOCK, KvLayer};
pub use kernels_cpu::qk_norm_rope::HeadShape;

/// o (T, H, K), lse (T, H) for packed sequences.
pub fn forward(
    device: &Device,
    o: ViewMut,
    lse: ViewMut,
    q: View,
    k: View,
    qkv: View,
    cu_seqlens: View<u32>,
    window: Option<usize>,
    shape: HeadShape,
) {
    match (device, o, lse, q, k, qkv, cu_seqlens) {
        (
            Device::Cpu(cpu),
            ViewMut::Cpu(o),
            ViewMut::Cpu(lse),
            View::Cpu(q),
            View::Cpu(k),
            View::Cpu(qkv),
            View::Cpu(cu_seqlens),
        ) => cpu_kernel::forward(cpu, o, lse, q, k, qkv, cu_seqlens, window, shape),
    }
}

/// dq, dk, and the value columns of dqkv.
pub fn backward(
    device: &Device,
    dq: ViewMut,
    dk: ViewMut,
    dqkv: ViewMut,
    d_o: View,
    o: View,
    lse: View,
    q: View,
    k: View,
    qkv: View,
    cu_seqlens: View<u32>,
    window: Option<usize>,
    shape: HeadShape,
) {
    match (device, dq, dk, dqkv, d_o, o, lse, q, k, qkv, cu_seqlens) {
        (
            Device::Cpu(cpu),
            ViewMut::Cpu(dq),
            ViewMut::Cpu(dk),
            ViewMut::Cpu(dqkv),
            View::Cpu(d_o),
            View::Cpu(o),
            View::Cpu(lse),
            View::Cpu(q),
            View::Cpu(k),
            View::Cpu(qkv),
            View::Cpu(cu_seqlens),
        ) => cpu_kernel::backward(
            cpu, dq, dk, dqkv, d_o, o, lse, q, k, qkv, cu_seqlens, window, shape,
        ),
    }
}
