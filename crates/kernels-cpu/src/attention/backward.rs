//! The gradients of attention: probabilities are computed again from the kept logarithms.
//!
//! D_i = do_i . o_i   dv_j = sum_i p_ij do_i   ds_ij = p_ij (do_i . v_j - D_i) / sqrt(K)
//! dq_i = sum_j ds_ij k_j   dk_j = sum_i ds_ij q_i
//!
//! One thread has a sequence and a key-value head with all its query heads, in their order, so the sums
//! have one order. Source: Dao et al. 2022, arXiv:2205.14135, appendix B.

use super::block::{Sizes, product, visible};
use super::{HeadShape, KV_BLOCK, Memory, TILE, check, visible_blocks};
use crate::factor::{Factor, Left, as_floats, dispatch_own_factors};
use crate::pool::SharedMut;
use crate::row::{self, fold_lanes};
use crate::simd::{Simd, exp};
use crate::{Compute, Cpu};
use std::ptr::null;

/// dq (T, H, K), dk (T, G, K), and the value columns of dqkv.
pub fn backward(
    cpu: &Cpu,
    compute: Compute,
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
        dispatch_own_factors!(isa, compute, backward_item(dq: SharedMut<f32>, dk: SharedMut<f32>, dqkv: SharedMut<f32>, inputs: &Inputs, item: usize));
    });
}

/// The sum of a_i b_i, b as it is multiplied elsewhere.
///
/// # Safety
/// As for [`Simd`]; equal lengths.
#[inline(always)]
unsafe fn dot<S: Simd, F: Factor<S>>(a: &[f32], b: &[f32]) -> f32 {
    let (len, a, b) = (a.len(), a.as_ptr(), b.as_ptr());
    // SAFETY: `i + n <= len`.
    unsafe {
        row::sum::<S>(fold_lanes!(S, len, 0.0, |acc, i, n| {
            S::fma(
                row::load::<S>(a.add(i), n),
                F::round(row::load::<S>(b.add(i), n)),
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

/// Rows of a tile as both operands of products.
struct TileRows<'a> {
    left: &'a mut [u32],  // (rows, steps of K, parts)
    right: &'a mut [u32], // (steps of the rows, padded)
}

impl TileRows<'_> {
    /// Packs `rows` rows of K values, which lie `stride` apart in x.
    ///
    /// # Safety
    /// As for [`Simd`].
    #[inline(always)]
    unsafe fn pack<S: Simd, F: Factor<S>>(
        &mut self,
        sizes: Sizes,
        x: &[f32],
        stride: usize,
        rows: usize,
    ) {
        let row = |r: usize| x[r * stride..][..sizes.d].as_ptr();
        let words = sizes.query::<S, F>();
        assert!(rows <= TILE && self.left.len() >= sizes.queries::<S, F>());
        assert!(self.right.len() >= TILE / F::STEP * sizes.padded);
        for r in 0..rows {
            // SAFETY: a row has K values; after the words of the last there is room for 16 more.
            unsafe { F::left_of_row(self.left.as_mut_ptr().add(r * words), row(r), sizes.d) };
        }
        for r in (0..rows).step_by(F::STEP) {
            let second = if F::STEP == 2 && r + 1 < rows {
                row(r + 1)
            } else {
                null()
            };
            // SAFETY: a row has K values, and a step of these rows `padded` words.
            unsafe {
                let step = self.right.as_mut_ptr().add(r / F::STEP * sizes.padded);
                F::right_of_columns(step, row(r), second, sizes.d);
            }
        }
    }
}

/// The transposed of x (rows, 64) as a left operand: (steps of the rows, parts, 64).
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
unsafe fn transpose<S: Simd, F: Factor<S>>(out: &mut [u32], x: &[f32], rows: usize) {
    assert!(out.len() >= TILE * KV_BLOCK && x.len() >= TILE * KV_BLOCK && rows <= TILE);
    for r in (0..rows).step_by(F::STEP) {
        // SAFETY: a row has 64 values, and a part as many words.
        unsafe {
            let first = x.as_ptr().add(r * KV_BLOCK);
            let second = if F::STEP == 2 && r + 1 < rows {
                first.add(KV_BLOCK)
            } else {
                null()
            };
            let out = out.as_mut_ptr().add(r / F::STEP * F::PARTS * KV_BLOCK);
            F::left_of_columns(out, KV_BLOCK, first, second, KV_BLOCK);
        }
    }
}

#[inline(always)]
unsafe fn backward_item<S: Simd, F: Factor<S>>(
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
    let sizes = Sizes::new::<S, F>(d);
    let padded = sizes.padded;
    let blocks = len.div_ceil(KV_BLOCK);
    let span = blocks * KV_BLOCK;
    // Per sequence: keys and values transposed, keys as rows, gradients of both; per tile: q and do, p and ds, both
    // transposed, dq and the sums D.
    let parts = [
        blocks * sizes.key_block(),
        blocks * sizes.key_block(),
        blocks * sizes.value_block(),
        span * padded,
        span * padded,
        sizes.row(),
        sizes.queries::<S, F>(),
        TILE * padded,
        sizes.queries::<S, F>(),
        TILE * padded,
        TILE * KV_BLOCK,
        TILE * KV_BLOCK,
        TILE * KV_BLOCK,
        TILE * KV_BLOCK,
        TILE * padded,
        TILE,
    ];
    let len_all = parts.iter().sum();
    let mut memory = Memory::take(len_all);
    let mut rest = memory.zeroed(len_all);
    let [
        keys_t,
        values_t,
        keys,
        dkeys,
        dvalues,
        row,
        q_left,
        q_right,
        do_left,
        do_right,
        p,
        ds,
        p_t,
        ds_t,
        dqt,
        delta,
    ] = parts.map(|len| {
        let (part, others) = std::mem::take(&mut rest).split_at_mut(len);
        rest = others;
        part
    });
    let (dkeys, dvalues, p, ds) = (
        as_floats(dkeys),
        as_floats(dvalues),
        as_floats(p),
        as_floats(ds),
    );
    let (dqt, delta) = (as_floats(dqt), as_floats(delta));
    let mut q_rows = TileRows {
        left: q_left,
        right: q_right,
    };
    let mut do_rows = TileRows {
        left: do_left,
        right: do_right,
    };
    let value_at = |j: usize| (first + j) * shape.qkv_size() + (h + g + kv_head) * d;
    for j in 0..len {
        let key = &k[((first + j) * g + kv_head) * d..][..d];
        let value = &qkv[value_at(j)..][..d];
        let (block, slot) = (j / KV_BLOCK, j % KV_BLOCK);
        let (transposed, rows) = (block * sizes.key_block(), block * sizes.value_block());
        // SAFETY: forwarded.
        unsafe {
            sizes.put_key::<S, F>(&mut keys_t[transposed..], slot, key, row);
            sizes.put_key::<S, F>(&mut values_t[transposed..], slot, value, row);
            sizes.put_value::<S, F>(&mut keys[rows..], slot, key, row);
        }
    }
    let scale = 1.0 / (d as f32).sqrt();
    for head in kv_head * (h / g)..(kv_head + 1) * (h / g) {
        for start in (0..len).step_by(TILE) {
            let rows = TILE.min(len - start);
            let row_at = |r: usize| ((first + start + r) * h + head) * d;
            // SAFETY: forwarded.
            unsafe {
                q_rows.pack::<S, F>(sizes, &q[row_at(0)..], h * d, rows);
                do_rows.pack::<S, F>(sizes, &d_o[row_at(0)..], h * d, rows);
                for (r, delta) in delta[..rows].iter_mut().enumerate() {
                    *delta = dot::<S, F>(&o[row_at(r)..][..d], &d_o[row_at(r)..][..d]);
                }
            }
            dqt.fill(0.0);
            for block in visible_blocks(start, start + rows - 1, window) {
                let transposed = block * sizes.key_block()..(block + 1) * sizes.key_block();
                let row_block = block * KV_BLOCK * padded..(block + 1) * KV_BLOCK * padded;
                let value_block = block * sizes.value_block()..(block + 1) * sizes.value_block();
                let scores = |x: &TileRows| Left {
                    ptr: x.left.as_ptr(),
                    row_stride: sizes.query::<S, F>(),
                    part_stride: 1,
                };
                let down = |x: &[u32]| Left {
                    ptr: x.as_ptr(),
                    row_stride: 1,
                    part_stride: KV_BLOCK,
                };
                // SAFETY: every part reaches over its tile and block.
                unsafe {
                    let full = (rows, KV_BLOCK, sizes.steps);
                    let keys_t = (keys_t[transposed.clone()].as_ptr(), KV_BLOCK);
                    product::<S, F>(
                        p.as_mut_ptr(),
                        KV_BLOCK,
                        scores(&q_rows),
                        keys_t,
                        full,
                        false,
                    );
                    let values_t = (values_t[transposed].as_ptr(), KV_BLOCK);
                    product::<S, F>(
                        ds.as_mut_ptr(),
                        KV_BLOCK,
                        scores(&do_rows),
                        values_t,
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
                    transpose::<S, F>(p_t, p, rows);
                    transpose::<S, F>(ds_t, ds, rows);
                    F::left_in_place(ds.as_mut_ptr(), rows * KV_BLOCK);
                    product::<S, F>(
                        dqt.as_mut_ptr(),
                        padded,
                        Left {
                            ptr: ds.as_ptr().cast(),
                            row_stride: KV_BLOCK / F::STEP * F::PARTS,
                            part_stride: 1,
                        },
                        (keys[value_block].as_ptr(), padded),
                        (rows, padded, KV_BLOCK / F::STEP),
                        true,
                    );
                    let over_rows = (KV_BLOCK, padded, rows.div_ceil(F::STEP));
                    product::<S, F>(
                        dkeys[row_block.clone()].as_mut_ptr(),
                        padded,
                        down(ds_t),
                        (q_rows.right.as_ptr(), padded),
                        over_rows,
                        true,
                    );
                    product::<S, F>(
                        dvalues[row_block].as_mut_ptr(),
                        padded,
                        down(p_t),
                        (do_rows.right.as_ptr(), padded),
                        over_rows,
                        true,
                    );
                }
            }
            for r in 0..rows {
                // SAFETY: this head of this sequence belongs to this thread.
                unsafe { dq.slice(row_at(r)..row_at(r) + d) }
                    .copy_from_slice(&dqt[r * padded..][..d]);
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
