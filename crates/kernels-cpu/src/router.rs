//! The router of a sparse layer: sigmoid scores, choice by score plus bias, weights from the
//! scores; and the balance loss of a sequence.
//!
//! forward   s = sigmoid(z)    ids = the A largest of s + bias    u_a = s[ids_a]
//!           w_a = scale * u_a / (sum_b u_b + 1e-20) if `norm_topk_prob`, else scale * u_a
//! balance   f_i = E/(A*T_b) * (choices of i)    p_ti = s_ti / sum_j s_tj    P_i = mean_t p_ti
//!           loss = mean over sequences of alpha * sum_i f_i P_i    c_i = alpha*f_i / (T_b*B)
//! backward  du_a = scale/U * (dw_a - sum_b dw_b u_b / U), U = sum_b u_b + 1e-20; else scale * dw_a
//!           ds_i = [i = ids_a] du_a + (c_i - sum_j c_j p_j) / sum_j s_j
//!           dz_i = ds_i s_i (1 - s_i)
//!
//! Shapes: T tokens, E experts, A experts per token, B sequences, T_b tokens of b. All f32.
//! The bias takes part in the choice only and has no gradient; f is a count and has none either.
//! Ties go to the lower index; ids and weights are ordered best first (by s + bias). The choice is
//! A rounds of a vector maximum: without a branch on the data, which a partial sort cannot avoid.
//! Bound by memory: forward moves 8TE bytes, backward as many.
//! Source: DeepSeek-V3, arXiv:2412.19437, eq. 12-20; the 1e-20 and the order of the operations on
//! the weights as in the published model code of K-EXAONE. No groups of experts (`n_group` is 1).

use crate::Cpu;
use crate::pool::SharedMut;
use crate::row::{self, fold_lanes, for_lanes, load, store};
use crate::simd::{Simd, sigmoid};
use std::cell::RefCell;

/// Sizes and rules of a router.
#[derive(Clone, Copy, Debug)]
pub struct RouterShape {
    /// E.
    pub num_experts: usize,
    /// A.
    pub num_experts_per_tok: usize,
    /// Whether the weights of a token are divided by their sum.
    pub norm_topk_prob: bool,
    /// Factor on the weights.
    pub routed_scaling_factor: f32,
}

/// Lanes of the widest instruction set.
const MAX_LANES: usize = 16;

/// Keeps the sum of the chosen scores from being zero.
const SUM_EPS: f32 = 1e-20;

thread_local! {
    /// s + bias of one token, in whole vectors; the chosen and the padding are -inf.
    static VALUES: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    /// Sums of p over the tokens of each sequence (B, E).
    static PROBS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// logits (T, E), bias (E) -> scores (T, E), topk_ids (T, A) best first, topk_weights (T, A).
pub fn forward(
    cpu: &Cpu,
    scores: &mut [f32],
    topk_ids: &mut [u32],
    topk_weights: &mut [f32],
    logits: &[f32],
    bias: &[f32],
    shape: RouterShape,
) {
    let (e, a) = (shape.num_experts, shape.num_experts_per_tok);
    let t = check(logits, topk_ids, topk_weights.len(), shape);
    assert!(
        bias.len() == e && scores.len() == t * e,
        "bias is (E), scores (T, E)"
    );
    let isa = cpu.isa();
    let scores = SharedMut::new(scores);
    let (ids, weights) = (SharedMut::new(topk_ids), SharedMut::new(topk_weights));
    cpu.pool.for_ranges(t, row::grain(e), &|tokens| {
        let all = tokens.start * e..tokens.end * e;
        let chosen = tokens.start * a..tokens.end * a;
        let logits = &logits[all.clone()];
        // SAFETY: ranges of tokens are disjoint.
        let (scores, ids, weights) = unsafe {
            (
                scores.slice(all),
                ids.slice(chosen.clone()),
                weights.slice(chosen),
            )
        };
        row::with_scratch(&VALUES, e.next_multiple_of(MAX_LANES), |values| {
            dispatch!(isa, forward_rows(
                scores: &mut [f32], ids: &mut [u32], weights: &mut [f32], values: &mut [f32],
                logits: &[f32], bias: &[f32], shape: RouterShape,
            ));
        });
    });
}

/// scores (T, E), topk_ids (T, A), cu_seqlens (B+1) -> coeff (B, E), which [`backward`] takes as
/// `balance`, and the loss. A sequence without tokens adds nothing, but counts in B.
///
/// # Panics
/// When `cu_seqlens` does not rise from 0 to T, or an id is not below E.
pub fn balance_loss(
    cpu: &Cpu,
    coeff: &mut [f32],
    scores: &[f32],
    topk_ids: &[u32],
    cu_seqlens: &[u32],
    alpha: f32,
    shape: RouterShape,
) -> f32 {
    let (e, a) = (shape.num_experts, shape.num_experts_per_tok);
    let t = check(scores, topk_ids, topk_ids.len(), shape);
    let num_seqs = check_sequences(cu_seqlens, t);
    assert_eq!(coeff.len(), num_seqs * e, "coeff is (B, E)");
    let isa = cpu.isa();
    let len_of = |b: usize| (cu_seqlens[b + 1] - cu_seqlens[b]) as usize;
    row::with_scratch(&PROBS, num_seqs * e, |probs| {
        let shared = SharedMut::new(probs);
        cpu.pool.for_ranges(num_seqs, 1, &|sequences| {
            for b in sequences {
                let scores = &scores[cu_seqlens[b] as usize * e..][..len_of(b) * e];
                // SAFETY: each sequence belongs to one thread.
                let probs = unsafe { shared.slice(b * e..(b + 1) * e) };
                dispatch!(isa, sum_probs(probs: &mut [f32], scores: &[f32]));
            }
        });
        let mut loss = 0.0f64;
        for (b, coeff) in coeff.chunks_exact_mut(e).enumerate() {
            let len = len_of(b);
            coeff.fill(0.0);
            // Whole numbers stay exact in f32 up to 2^24 tokens.
            for &id in &topk_ids[cu_seqlens[b] as usize * a..][..len * a] {
                coeff[id as usize] += 1.0;
            }
            let per_choice = f64::from(alpha) * e as f64
                / (a * len).max(1) as f64
                / (len.max(1) * num_seqs) as f64;
            for (c, &p) in coeff.iter_mut().zip(&probs[b * e..]) {
                *c = (f64::from(*c) * per_choice) as f32;
                loss += f64::from(*c) * f64::from(p);
            }
        }
        loss as f32
    })
}

/// dtopk_weights (T, A), scores (T, E), topk_ids (T, A), balance (B, E) or empty -> dlogits (T, E).
/// Overwrites. `cu_seqlens` is read only when there is a balance term.
///
/// # Panics
/// When `cu_seqlens` does not rise from 0 to T, or an id is not below E.
pub fn backward(
    cpu: &Cpu,
    dlogits: &mut [f32],
    dtopk_weights: &[f32],
    scores: &[f32],
    topk_ids: &[u32],
    balance: &[f32],
    cu_seqlens: &[u32],
    shape: RouterShape,
) {
    let (e, a) = (shape.num_experts, shape.num_experts_per_tok);
    let t = check(scores, topk_ids, dtopk_weights.len(), shape);
    assert_eq!(dlogits.len(), t * e, "dlogits is (T, E)");
    if !balance.is_empty() {
        let num_seqs = check_sequences(cu_seqlens, t);
        assert_eq!(balance.len(), num_seqs * e, "balance is (B, E)");
    }
    let isa = cpu.isa();
    let dlogits = SharedMut::new(dlogits);
    cpu.pool.for_ranges(t, row::grain(e), &|tokens| {
        let mut seq_idx = cu_seqlens.partition_point(|&end| end as usize <= tokens.start);
        for t in tokens {
            let coeff = if balance.is_empty() {
                &[]
            } else {
                while cu_seqlens[seq_idx] as usize <= t {
                    seq_idx += 1;
                }
                &balance[(seq_idx - 1) * e..seq_idx * e]
            };
            let (scores, ids) = (&scores[t * e..(t + 1) * e], &topk_ids[t * a..(t + 1) * a]);
            let dweights = &dtopk_weights[t * a..(t + 1) * a];
            // SAFETY: each token belongs to one thread.
            let dlogits = unsafe { dlogits.slice(t * e..(t + 1) * e) };
            dispatch!(isa, backward_row(
                dlogits: &mut [f32], dweights: &[f32], scores: &[f32], ids: &[u32],
                coeff: &[f32], shape: RouterShape,
            ));
        }
    });
}

/// The number of tokens.
fn check(scores: &[f32], topk_ids: &[u32], weights: usize, shape: RouterShape) -> usize {
    let (e, a) = (shape.num_experts, shape.num_experts_per_tok);
    assert!(0 < a && a <= e, "1 <= A <= E");
    let t = scores.len() / e;
    assert!(scores.len() == t * e, "scores and logits are (T, E)");
    assert!(
        topk_ids.len() == t * a && weights == t * a,
        "ids and weights are (T, A)"
    );
    t
}

/// The number of sequences.
fn check_sequences(cu_seqlens: &[u32], t: usize) -> usize {
    assert!(
        cu_seqlens.first() == Some(&0)
            && cu_seqlens.is_sorted()
            && cu_seqlens.last().is_some_and(|&end| end as usize == t),
        "cu_seqlens does not rise from 0 to T"
    );
    cu_seqlens.len() - 1
}

/// # Safety
/// As for [`Simd`]; shapes as in [`forward`]; E values in whole vectors.
#[inline(always)]
unsafe fn forward_rows<S: Simd>(
    scores: &mut [f32],
    ids: &mut [u32],
    weights: &mut [f32],
    values: &mut [f32],
    logits: &[f32],
    bias: &[f32],
    shape: RouterShape,
) {
    let (e, a) = (shape.num_experts, shape.num_experts_per_tok);
    for t in 0..logits.len() / e {
        let s = &mut scores[t * e..(t + 1) * e];
        let ids = &mut ids[t * a..(t + 1) * a];
        // SAFETY: `i + n <= e`, and `values` has room for whole vectors.
        unsafe {
            let z = logits.as_ptr().add(t * e);
            for_lanes!(S, e, |i, n| {
                let score = sigmoid::<S>(load::<S>(z.add(i), n));
                store::<S>(s.as_mut_ptr().add(i), score, n);
                let value = S::add(score, load::<S>(bias.as_ptr().add(i), n));
                S::store(
                    values.as_mut_ptr().add(i),
                    row::keep::<S>(value, n, f32::NEG_INFINITY),
                );
            });
            for slot in 0..a {
                let id = match best::<S>(values, e) {
                    Some(id) => id,
                    None => first_free(&ids[..slot]),
                };
                ids[slot] = id;
                values[id as usize] = f32::NEG_INFINITY;
            }
        }
        let divisor = if shape.norm_topk_prob {
            chosen_sum(s, ids)
        } else {
            1.0
        };
        for choice in 0..a {
            let share = s[ids[choice] as usize] / divisor;
            weights[t * a + choice] = share * shape.routed_scaling_factor;
        }
    }
}

/// The lowest index of the largest value; none when all are -inf or NaN. Indices travel as negative
/// f32, exact up to 2^24, so that the lowest is the maximum.
///
/// # Safety
/// As for [`Simd`]; `values` has `e` values in whole vectors.
#[inline(always)]
unsafe fn best<S: Simd>(values: &[f32], e: usize) -> Option<u32> {
    const MINUS_IDX: [f32; MAX_LANES] = [
        0., -1., -2., -3., -4., -5., -6., -7., -8., -9., -10., -11., -12., -13., -14., -15.,
    ];
    const { assert!(S::LANES <= MAX_LANES) };
    // SAFETY: whole vectors, by the contract above.
    unsafe {
        let lowest = S::splat(f32::NEG_INFINITY);
        let (mut largest, mut minus_idx) = (lowest, lowest);
        let mut at = S::load(MINUS_IDX.as_ptr());
        let mut i = 0;
        while i < e {
            let value = S::load(values.as_ptr().add(i));
            minus_idx = S::select_lt(largest, value, at, minus_idx);
            largest = S::select_lt(largest, value, value, largest);
            at = S::sub(at, S::splat(S::LANES as f32));
            i += S::LANES;
        }
        let max = S::splat(S::reduce_max(largest));
        let found = S::reduce_max(S::select_lt(largest, max, lowest, minus_idx));
        (found > f32::NEG_INFINITY).then_some(-found as u32)
    }
}

/// The lowest expert that is not among `ids`.
#[cold]
fn first_free(ids: &[u32]) -> u32 {
    let mut id = 0;
    while ids.contains(&id) {
        id += 1;
    }
    id
}

/// The sum of the scores of the chosen, kept from zero.
#[inline(always)]
fn chosen_sum(scores: &[f32], ids: &[u32]) -> f32 {
    let mut sum = 0.0;
    for &id in ids {
        sum += scores[id as usize];
    }
    sum + SUM_EPS
}

/// # Safety
/// As for [`Simd`]; scores (T_b, E), probs (E).
#[inline(always)]
unsafe fn sum_probs<S: Simd>(probs: &mut [f32], scores: &[f32]) {
    let e = probs.len();
    probs.fill(0.0);
    let probs = probs.as_mut_ptr();
    for t in 0..scores.len() / e {
        // SAFETY: `i + n <= e`.
        unsafe {
            let s = scores.as_ptr().add(t * e);
            let total = row::sum::<S>(fold_lanes!(S, e, 0.0, |acc, i, n| {
                S::add(acc, load::<S>(s.add(i), n))
            }));
            let inverse = S::splat(1.0 / total);
            for_lanes!(S, e, |i, n| {
                let sum = S::fma(load::<S>(s.add(i), n), inverse, load::<S>(probs.add(i), n));
                store::<S>(probs.add(i), sum, n);
            });
        }
    }
}

/// # Safety
/// As for [`Simd`]; one row of each operand of [`backward`]; coeff (E) or empty.
#[inline(always)]
unsafe fn backward_row<S: Simd>(
    dlogits: &mut [f32],
    dweights: &[f32],
    scores: &[f32],
    ids: &[u32],
    coeff: &[f32],
    shape: RouterShape,
) {
    if coeff.is_empty() {
        dlogits.fill(0.0);
    } else {
        let (e, dz, s, c) = (
            scores.len(),
            dlogits.as_mut_ptr(),
            scores.as_ptr(),
            coeff.as_ptr(),
        );
        // SAFETY: `i + n <= e`.
        unsafe {
            let total = row::sum::<S>(fold_lanes!(S, e, 0.0, |acc, i, n| {
                S::add(acc, load::<S>(s.add(i), n))
            }));
            let dot = row::sum::<S>(fold_lanes!(S, e, 0.0, |acc, i, n| {
                S::fma(load::<S>(c.add(i), n), load::<S>(s.add(i), n), acc)
            }));
            let (mean, inverse) = (S::splat(dot / total), S::splat(1.0 / total));
            let one = S::splat(1.0);
            for_lanes!(S, e, |i, n| {
                let s = load::<S>(s.add(i), n);
                let ds = S::mul(S::sub(load::<S>(c.add(i), n), mean), inverse);
                store::<S>(dz.add(i), S::mul(ds, S::mul(s, S::sub(one, s))), n);
            });
        }
    }
    let sum = chosen_sum(scores, ids);
    let mut dot = 0.0;
    for choice in 0..ids.len() {
        dot += dweights[choice] * scores[ids[choice] as usize];
    }
    for choice in 0..ids.len() {
        let (id, dw) = (ids[choice] as usize, dweights[choice]);
        let du = if shape.norm_topk_prob {
            (dw - dot / sum) / sum
        } else {
            dw
        };
        dlogits[id] += shape.routed_scaling_factor * du * (scores[id] * (1.0 - scores[id]));
    }
}

#[cfg(test)]
mod tests;
