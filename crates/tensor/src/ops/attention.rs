//! Causal grouped-query attention with sliding windows. Formulas and proofs: `kernels_cpu::attention`.

use crate::{Compute, Device, View, ViewMut};
use kernels_cpu::attention as cpu_kernel;
pub use kernels_cpu::attention::{CachedSequence, KV_BLOCK};
pub use kernels_cpu::qk_norm_rope::HeadShape;

/// Keys and values of one layer, in blocks of [`KV_BLOCK`] positions.
pub enum KvLayer {
    /// In the order of the processor's attention kernel.
    Cpu(cpu_kernel::KvLayer),
}

impl KvLayer {
    /// Room for `num_blocks` blocks, which are kept as the type they are multiplied in.
    pub fn new(device: &Device, compute: Compute, num_blocks: usize, shape: HeadShape) -> KvLayer {
        match device {
            Device::Cpu(cpu) => KvLayer::Cpu(cpu_kernel::KvLayer::new(
                cpu.isa(),
                compute,
                num_blocks,
                shape,
            )),
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        match self {
            KvLayer::Cpu(layer) => layer.bytes(),
        }
    }
}

/// o (T, H, K), lse (T, H) for packed sequences.
pub fn forward(
    device: &Device,
    compute: Compute,
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
        ) => cpu_kernel::forward(cpu, compute, o, lse, q, k, qkv, cu_seqlens, window, shape),
    }
}

/// dq, dk, and the value columns of dqkv.
pub fn backward(
    device: &Device,
    compute: Compute,
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
            cpu, compute, dq, dk, dqkv, d_o, o, lse, q, k, qkv, cu_seqlens, window, shape,
        ),
    }
}

/// Writes the keys k (T, G, K) and the values of qkv at slots (T), slot = block * KV_BLOCK + offset.
pub fn append_kv(device: &Device, cache: &mut KvLayer, k: View, qkv: View, slots: View<u32>) {
    match (device, cache, k, qkv, slots) {
        (Device::Cpu(cpu), KvLayer::Cpu(cache), View::Cpu(k), View::Cpu(qkv), View::Cpu(slots)) => {
            cpu_kernel::append_kv(cpu, cache, k, qkv, slots)
        }
    }
}

/// o (T, H, K) of q (T, H, K) against the cache, to which the rows' own keys have been appended.
pub fn forward_cached(
    device: &Device,
    o: ViewMut,
    q: View,
    cache: &KvLayer,
    seqs: &[CachedSequence],
    window: Option<usize>,
) {
    match (device, o, q, cache) {
        (Device::Cpu(cpu), ViewMut::Cpu(o), View::Cpu(q), KvLayer::Cpu(cache)) => {
            cpu_kernel::forward_cached(cpu, o, q, cache, seqs, window)
        }
    }
}
