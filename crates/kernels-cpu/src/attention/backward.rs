//! The gradients of attention: probabilities are computed again from the kept logarithms.
//!
//! D_i = do_i . o_i   dv_j = sum_i p_ij do_i   ds_ij = p_ij (do_i . v_j - D_i) / sqrt(K)
//! dq_i = sum_j ds_ij k_j   dk_j = sum_i ds_ij q_i
//!
//! One thread has a sequence and a key-value head with all its query heads, in their order, so the sums
//! have one order. Source: Dao et al. 2022, arXiv:2205.14135, appendix B.

use super::block::{Sizes, product, visible};
use super::{HeadShape, KV_BLOCK, Memory, TILE, check, visible_blocks};
use crate::Cpu;
use crate::pool::SharedMut;
use crate::row::{self, fold_lanes};
use crate::simd::{Simd, exp};

/// dq (T, H, K), dk (T, G, K), and the value columns of dqkv.
pub fn backward(
    cpu: &Cpu,
    dq: &mut [f32],
    dk: &mut [f32],
    dqkv: &mut [f32],
    d_o: &[f32],
    o: &[f32],
    lse: &[f32],
    q: &[f32],
    k: &[f32],
    qkv: &[f32],
    cu_seqlens: &[u32],
    window: Option<usize>,
    shape: HeadShape,
) {
    check(d_o.len(), q.len(), k.len(), qkv.len(), cu_seqlens, shape);
    check(dq.len(), o.len(), dk.len(), dqkv.len(), cu_seqlens, shape);
    let isa = cpu.isa();
    let (dq, dk, dqkv) = (SharedMut::new(dq), SharedMut::new(dk), SharedMut::new(dqkv));
    let items = (cu_seqlens.len() - 1) * shape.num_kv_heads;
    let inputs = &Inputs {
        d_o,
        o,
        lse,
        q,
        k,
        qkv,
        cu_seqlens,
        window,
        shape,
    };
    cpu.pool.for_each(items, &|item| {
        dispatch!(isa, backward_item(dq: SharedMut<f32>, dk: SharedMut<f32>, dqkv: SharedMut<f32>, inputs: &Inputs, item: usize));
    });
}

/// The sum of a_i b_i.
///
/// # Safety
/// As for [`Simd`]; equal lengths.
#[inline(always)]
unsafe fn dot<S: Simd>(a: &[f32], b: &[f32]) -> f32 {
    let (len, a, b) = (a.len(), a.as_ptr(), b.as_ptr());
    // SAFETY: `i + n <= len`.
    unsafe {
        row::sum::<S>(fold_lanes!(S, len, 0.0, |acc, i, n| {
            S::fma(
                row::load::<S>(a.add(i), n),
                row::load::<S>(b.add(i), n),
                acc,
            )
        }))
    }
}

struct Inputs<'a> {
    d_o: &'a [f32],
    o: &'a [f32],
    lse: &'a [f32],
    q: &'a [f32],
    k: &'a [f32],
    qkv: &'a [f32],
    cu_seqlens: &'a [u32],
    window: Option<usize>,
    shape: HeadShape,
}

#[inline(always)]
unsafe fn backward_item<S: Simd>(
    dq: SharedMut<f32>,
    dk: SharedMut<f32>,
    dqkv: SharedMut<f32>,
    inputs: &Inputs,
    item: usize,
) {
    let Inputs {
        d_o,
        o,
        lse,
        q,
        k,
        qkv,
        cu_seqlens,
        window,
        shape,
    } = *inputs;
    let HeadShape {
        num_heads: h,
        num_kv_heads: g,
        head_dim: d,
    } = shape;
    let (b, kv_head) = (item / g, item % g);
    let (first, len) = (
        cu_seqlens[b] as usize,
        (cu_seqlens[b + 1] - cu_seqlens[b]) as usize,
    );
    let sizes = Sizes::new::<S>(d);
    let padded = sizes.padded;
    let span = len.div_ceil(KV_BLOCK) * KV_BLOCK;
    // Per sequence: keys and values transposed (blocks of (K, 64)), keys as rows, gradients of both.
    let parts = [
        span * d,
        span * d,
        span * padded,
        span * padded,
        span * padded,
    ];
    let tile = TILE * (2 * padded + 2 * KV_BLOCK + padded + 1);
    let len_all = parts.iter().sum::<usize>() + tile;
    let mut memory = Memory::take(len_all);
    let memory = memory.zeroed(len_all);
    let (keys_t, rest) = memory.split_at_mut(parts[0]);
    let (values_t, rest) = rest.split_at_mut(parts[1]);
    let (keys, rest) = rest.split_at_mut(parts[2]);
    let (dkeys, rest) = rest.split_at_mut(parts[3]);
    let (dvalues, rest) = rest.split_at_mut(parts[4]);
    let (q_rows, rest) = rest.split_at_mut(TILE * padded);
    let (do_rows, rest) = rest.split_at_mut(TILE * padded);
    let (p, rest) = rest.split_at_mut(TILE * KV_BLOCK);
    let (ds, rest) = rest.split_at_mut(TILE * KV_BLOCK);
    let (dqt, delta) = rest.split_at_mut(TILE * padded);
    let value_at = |j: usize| (first + j) * shape.qkv_size() + (h + g + kv_head) * d;
    for j in 0..len {
        let key = &k[((first + j) * g + kv_head) * d..][..d];
        let block = j / KV_BLOCK * sizes.key_block();
        sizes.put_key(&mut keys_t[block..], j % KV_BLOCK, key);
        sizes.put_key(
            &mut values_t[block..],
            j % KV_BLOCK,
            &qkv[value_at(j)..][..d],
        );
        keys[j * padded..][..d].copy_from_slice(key);
    }
    let scale = 1.0 / (d as f32).sqrt();
    for head in kv_head * (h / g)..(kv_head + 1) * (h / g) {
        for start in (0..len).step_by(TILE) {
            let rows = TILE.min(len - start);
            for r in 0..rows {
                let at = ((first + start + r) * h + head) * d;
                q_rows[r * padded..][..d].copy_from_slice(&q[at..at + d]);
                do_rows[r * padded..][..d].copy_from_slice(&d_o[at..at + d]);
                // SAFETY: both have K values.
                delta[r] = unsafe { dot::<S>(&o[at..at + d], &d_o[at..at + d]) };
            }
            dqt.fill(0.0);
            for block in visible_blocks(start, start + rows - 1, window) {
                let transposed = block * sizes.key_block();
                let row_block = block * KV_BLOCK * padded;
                // SAFETY: every part reaches over its tile and block.
                unsafe {
                    let (kt, vt) = (
                        keys_t[transposed..].as_ptr(),
                        values_t[transposed..].as_ptr(),
                    );
                    let full = (rows, KV_BLOCK, d);
                    product::<S>(
                        p.as_mut_ptr(),
                        KV_BLOCK,
                        (q_rows.as_ptr(), padded, 1),
                        (kt, KV_BLOCK),
                        full,
                        false,
                    );
                    product::<S>(
                        ds.as_mut_ptr(),
                        KV_BLOCK,
                        (do_rows.as_ptr(), padded, 1),
                        (vt, KV_BLOCK),
                        full,
                        false,
                    );
                    for r in 0..rows {
                        let seen = visible(start + r, block * KV_BLOCK, window);
                        let l = S::splat(lse[(first + start + r) * h + head]);
                        let (p, ds) = (
                            &mut p[r * KV_BLOCK..][..KV_BLOCK],
                            &mut ds[r * KV_BLOCK..][..KV_BLOCK],
                        );
                        let mut j = 0;
                        while j < KV_BLOCK {
                            let s = S::mul(S::load(p.as_ptr().add(j)), S::splat(scale));
                            let prob = exp::<S>(S::sub(s, l));
                            let dp = S::sub(S::load(ds.as_ptr().add(j)), S::splat(delta[r]));
                            let g = S::mul(S::mul(prob, dp), S::splat(scale));
                            S::store(p.as_mut_ptr().add(j), prob);
                            S::store(ds.as_mut_ptr().add(j), g);
                            j += S::LANES;
                        }
                        for masked in [0..seen.start, seen.end..KV_BLOCK] {
                            p[masked.clone()].fill(0.0);
                            ds[masked].fill(0.0);
                        }
                    }
                    let key_rows = (keys[row_block..].as_ptr(), padded);
                    product::<S>(
                        dqt.as_mut_ptr(),
                        padded,
                        (ds.as_ptr(), KV_BLOCK, 1),
                        key_rows,
                        (rows, padded, KV_BLOCK),
                        true,
                    );
                    let down = (KV_BLOCK, padded, rows);
                    product::<S>(
                        dkeys[row_block..].as_mut_ptr(),
                        padded,
                        (ds.as_ptr(), 1, KV_BLOCK),
                        (q_rows.as_ptr(), padded),
                        down,
                        true,
                    );
                    product::<S>(
                        dvalues[row_block..].as_mut_ptr(),
                        padded,
                        (p.as_ptr(), 1, KV_BLOCK),
                        (do_rows.as_ptr(), padded),
                        down,
                        true,
                    );
                }
            }
            for r in 0..rows {
                let at = ((first + start + r) * h + head) * d;
                // SAFETY: this head of this sequence belongs to this thread.
                unsafe { dq.slice(at..at + d) }.copy_from_slice(&dqt[r * padded..][..d]);
            }
        }
    }
    for j in 0..len {
        let at = ((first + j) * g + kv_head) * d;
        // SAFETY: this key-value head of this sequence belongs to this thread.
        unsafe {
            dk.slice(at..at + d)
                .copy_from_slice(&dkeys[j * padded..][..d]);
            let at = value_at(j);
            dqkv.slice(at..at + d)
                .copy_from_slice(&dvalues[j * padded..][..d]);
        }
    }
}
