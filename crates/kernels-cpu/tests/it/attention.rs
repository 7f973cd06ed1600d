//! Attention against f64 loops, and the three paths (training, prefill in chunks, decode) bit for bit.

use super::{normal, on_every_isa};
use dokja_kernels_cpu::attention::{
    CachedSequence, HeadShape, KV_BLOCK, KvLayer, append_kv, forward, forward_cached,
};
use dokja_kernels_cpu::{Compute, Cpu};

const SHAPES: [HeadShape; 3] = [
    HeadShape {
        num_heads: 4,
        num_kv_heads: 2,
        head_dim: 32,
    },
    HeadShape {
        num_heads: 3,
        num_kv_heads: 1,
        head_dim: 10,
    },
    HeadShape {
        num_heads: 2,
        num_kv_heads: 2,
        head_dim: 80,
    },
];
const WINDOWS: [Option<usize>; 5] = [None, Some(1), Some(8), Some(64), Some(500)];

struct Inputs {
    q: Vec<f32>,
    k: Vec<f32>,
    qkv: Vec<f32>,
}

fn inputs(t: usize, shape: HeadShape) -> Inputs {
    let HeadShape {
        num_heads: h,
        num_kv_heads: g,
        head_dim: d,
    } = shape;
    Inputs {
        q: normal(t * h * d, "q"),
        k: normal(t * g * d, "k"),
        qkv: normal(t * (h + 2 * g) * d, "qkv"),
    }
}

fn trained(
    cpu: &Cpu,
    compute: Compute,
    x: &Inputs,
    cu: &[u32],
    window: Option<usize>,
    shape: HeadShape,
) -> Vec<f32> {
    let mut o = vec![0.0; x.q.len()];
    let mut lse = vec![0.0; x.q.len() / shape.head_dim];
    forward(
        cpu, compute, &mut o, &mut lse, &x.q, &x.k, &x.qkv, cu, window, shape,
    );
    o
}

#[test]
fn forward_agrees_with_f64_loops_for_windows_and_packed_sequences() {
    let cu = [0u32, 70, 71, 83, 83, 220];
    on_every_isa(2, |cpu| {
        for shape in SHAPES {
            let HeadShape {
                num_heads: h,
                num_kv_heads: g,
                head_dim: d,
            } = shape;
            let x = inputs(220, shape);
            for window in WINDOWS {
                let o = trained(cpu, Compute::F32, &x, &cu, window, shape);
                for s in cu.windows(2) {
                    for t in s[0] as usize..s[1] as usize {
                        let first = window
                            .map_or(0, |w| (t + 1).saturating_sub(w))
                            .max(s[0] as usize);
                        for head in 0..h {
                            let kv = head / (h / g);
                            let score = |j: usize| -> f64 {
                                let q = &x.q[(t * h + head) * d..][..d];
                                let k = &x.k[(j * g + kv) * d..][..d];
                                let dot =
                                    q.iter().zip(k).map(|(&a, &b)| f64::from(a) * f64::from(b));
                                dot.sum::<f64>() / (d as f64).sqrt()
                            };
                            let weights: Vec<f64> = (first..=t).map(|j| score(j).exp()).collect();
                            let total: f64 = weights.iter().sum();
                            for c in 0..d {
                                let value = |j: usize| {
                                    f64::from(x.qkv[(j * (h + 2 * g) + h + g + kv) * d + c])
                                };
                                let sum: f64 =
                                    weights.iter().zip(first..).map(|(w, j)| w * value(j)).sum();
                                let got = f64::from(o[(t * h + head) * d + c]);
                                assert!(
                                    (got - sum / total).abs() < 1e-5,
                                    "{window:?} {t} {head} {c}"
                                );
                            }
                        }
                    }
                }
            }
        }
    });
}

#[test]
fn training_prefill_in_chunks_and_decode_give_the_same_bits() {
    on_every_isa(3, |cpu| {
        for shape in SHAPES {
            let t = 211;
            let x = inputs(t, shape);
            let (q_size, k_size, qkv_size) = (x.q.len() / t, x.k.len() / t, shape.qkv_size());
            let types = [Compute::F32, Compute::Bf16];
            for (compute, window) in types.iter().flat_map(|&c| WINDOWS.map(|w| (c, w))) {
                let expected = trained(cpu, compute, &x, &[0, t as u32], window, shape);
                for chunk in [1, 7, 64, 100, 211] {
                    // Blocks lie in reverse, so that a mixed-up table shows.
                    let blocks = t.div_ceil(KV_BLOCK);
                    let table: Vec<u32> = (0..blocks as u32).rev().collect();
                    let mut cache = KvLayer::new(cpu.isa(), compute, blocks, shape);
                    let mut got = Vec::new();
                    for start in (0..t).step_by(chunk) {
                        let end = (start + chunk).min(t);
                        let slots: Vec<u32> = (start..end)
                            .map(|p| table[p / KV_BLOCK] * KV_BLOCK as u32 + (p % KV_BLOCK) as u32)
                            .collect();
                        let k = &x.k[start * k_size..end * k_size];
                        let qkv = &x.qkv[start * qkv_size..end * qkv_size];
                        append_kv(cpu, &mut cache, k, qkv, &slots);
                        let mut o = vec![0.0; (end - start) * q_size];
                        let q = &x.q[start * q_size..end * q_size];
                        let seq = CachedSequence {
                            rows: 0..end - start,
                            first_pos: start,
                            block_table: &table,
                        };
                        forward_cached(cpu, &mut o, q, &cache, &[seq], window);
                        got.extend(o);
                    }
                    let same = got
                        .iter()
                        .zip(&expected)
                        .all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(same, "{} window {window:?} chunk {chunk}", cpu.isa().name());
                }
            }
        }
    });
}
