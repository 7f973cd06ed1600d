//! Tokens to experts and back: the sort of the routed rows by expert, the weighted sum of the
//! experts' outputs, and the gradients of both.
//!
//! permute   a stable counting sort of the N choices (t, a) by expert: offsets[e]..offsets[e+1] are
//!           the sorted rows of expert e, rows[i] is the token of sorted row i, pos[t, a] the
//!           row of a choice
//! combine   y_t = sum_a w_ta * out[pos_ta]          (a ascending)
//! backward  dout[pos_ta] = w_ta * dy_t              dw_ta = sum_j dy_tj * out[pos_ta]_j
//! unpermute_add    dx_t += sum_a drows[pos_ta]      (a ascending): the backward of gathering rows
//!
//! Shapes: T tokens, A experts per token, N = T*A routed rows, E experts, D hidden_size.
//! No capacity and no dropped token: every choice has a row.
//! Bound by memory: combine moves 4D(N + T) bytes, its backward 4D(2N + T). The sort touches 20N
//! bytes on one thread, a hundredth of what the rows take.
//! Source: Gale et al. 2022, arXiv:2211.15841, section 5 (dropless experts), restated for the CPU.

use crate::pool::SharedMut;
use crate::row::{self, fold_lanes, for_lanes, load};
use crate::simd::Simd;
use crate::{Cpu, Store};
use std::cell::RefCell;

thread_local! {
    /// Whether a sorted row is taken, 64 to a word.
    static TAKEN: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

/// topk_ids (T, A) -> offsets (E+1), rows (N), pos (T, A). By expert, then in token order.
///
/// # Panics
/// When an id is not below E.
pub fn permute(
    _cpu: &Cpu,
    offsets: &mut [u32],
    rows: &mut [u32],
    pos: &mut [u32],
    topk_ids: &[u32],
    num_experts: usize,
    num_experts_per_tok: usize,
) {
    assert_eq!(offsets.len(), num_experts + 1, "offsets is (E+1)");
    let len = topk_ids.len();
    assert!(
        rows.len() == len && pos.len() == len,
        "rows is (N), pos and ids are (T, A)"
    );
    assert!(u32::try_from(len).is_ok(), "row numbers are u32");
    offsets.fill(0);
    let (zero, ends) = offsets.split_at_mut(1);
    for &id in topk_ids {
        ends[id as usize] += 1;
    }
    let mut start = 0;
    for end in &mut *ends {
        start += std::mem::replace(end, start);
    }
    // Each entry of `ends` walks from the start of its expert to the end.
    for (choice, (&id, pos)) in topk_ids.iter().zip(pos).enumerate() {
        let next = &mut ends[id as usize];
        rows[*next as usize] = (choice / num_experts_per_tok) as u32;
        *pos = *next;
        *next += 1;
    }
    debug_assert_eq!(zero, [0]);
}

/// out (N, D), pos (T, A), topk_weights (T, A) -> y (T, D).
///
/// # Panics
/// When `pos` holds a row that does not exist.
pub fn combine(
    cpu: &Cpu,
    y: &mut [f32],
    out: &[f32],
    pos: &[u32],
    topk_weights: &[f32],
    d: usize,
    store: Store,
) {
    assert_eq!(topk_weights.len(), pos.len(), "one weight for each choice");
    gather_sum(cpu, y, out, pos, topk_weights, d, store);
}

/// drows (N, D), pos (T, A) -> dx (T, D). Adds.
///
/// # Panics
/// When `pos` holds a row that does not exist.
pub fn unpermute_add(
    cpu: &Cpu,
    dx: &mut [f32],
    drows: &[f32],
    pos: &[u32],
    num_experts_per_tok: usize,
    d: usize,
) {
    assert_eq!(
        dx.len() * num_experts_per_tok,
        pos.len() * d,
        "dx is (T, D), pos (T, A)"
    );
    gather_sum(cpu, dx, drows, pos, &[], d, Store::Add);
}

/// dy (T, D), out (N, D), pos (T, A), topk_weights (T, A) -> dout (N, D), dtopk_weights (T, A).
/// Overwrites both.
///
/// # Panics
/// When `pos` is not a permutation of the rows: two threads could write one row.
pub fn combine_backward(
    cpu: &Cpu,
    dout: &mut [f32],
    dtopk_weights: &mut [f32],
    dy: &[f32],
    out: &[f32],
    pos: &[u32],
    topk_weights: &[f32],
    d: usize,
) {
    let (t, a) = check(dy.len(), out.len(), pos, d);
    assert_eq!(dout.len(), out.len(), "dout is (N, D)");
    assert!(
        dtopk_weights.len() == pos.len() && topk_weights.len() == pos.len(),
        "one weight each"
    );
    assert!(is_permutation(pos), "pos is not a permutation of the rows");
    let isa = cpu.isa();
    let (dout, dtopk_weights) = (SharedMut::new(dout), SharedMut::new(dtopk_weights));
    cpu.pool.for_ranges(t, row::grain(d * a), &|tokens| {
        let choices = tokens.start * a..tokens.end * a;
        let (pos, weights) = (&pos[choices.clone()], &topk_weights[choices.clone()]);
        let (dy, dout) = (&dy[tokens.start * d..tokens.end * d], dout.ptr());
        // SAFETY: ranges of tokens are disjoint.
        let dweights = unsafe { dtopk_weights.slice(choices) };
        dispatch!(isa, backward_rows(
            dout: *mut f32, dweights: &mut [f32], dy: &[f32], out: &[f32], pos: &[u32],
            weights: &[f32], a: usize, d: usize,
        ));
    });
}

/// The sum of each token's rows, weighted unless `weights` is empty.
fn gather_sum(
    cpu: &Cpu,
    y: &mut [f32],
    out: &[f32],
    pos: &[u32],
    weights: &[f32],
    d: usize,
    store: Store,
) {
    let (t, a) = check(y.len(), out.len(), pos, d);
    let (isa, adds) = (cpu.isa(), store == Store::Add);
    let y = SharedMut::new(y);
    cpu.pool.for_ranges(t, row::grain(d * a), &|tokens| {
        let choices = tokens.start * a..tokens.end * a;
        let pos = &pos[choices.clone()];
        let weights = if weights.is_empty() {
            weights
        } else {
            &weights[choices]
        };
        // SAFETY: ranges of tokens are disjoint.
        let y = unsafe { y.slice(tokens.start * d..tokens.end * d) };
        dispatch!(isa, gather_sum_rows(
            y: &mut [f32], out: &[f32], pos: &[u32], weights: &[f32], a: usize, d: usize,
            adds: bool,
        ));
    });
}

/// T and A.
fn check(y: usize, out: usize, pos: &[u32], d: usize) -> (usize, usize) {
    assert!(
        d > 0 && y % d == 0 && out == pos.len() * d,
        "y is (T, D), out (N, D), pos (T, A)"
    );
    let t = y / d;
    let a = pos.len().checked_div(t).unwrap_or(0);
    assert_eq!(a * t, pos.len(), "pos is (T, A)");
    let exists = |&row: &u32| (row as usize) < pos.len();
    assert!(
        pos.iter().all(exists),
        "pos holds a row that does not exist"
    );
    (t, a)
}

/// Whether no row is taken twice; all are known to exist.
fn is_permutation(pos: &[u32]) -> bool {
    row::with_scratch(&TAKEN, pos.len().div_ceil(64), |taken| {
        taken.fill(0);
        pos.iter().all(|&row| {
            let (word, bit) = (&mut taken[row as usize / 64], 1 << (row % 64));
            let is_free = *word & bit == 0;
            *word |= bit;
            is_free
        })
    })
}

/// # Safety
/// As for [`Simd`]; shapes as in [`combine`], `pos` checked.
#[inline(always)]
unsafe fn gather_sum_rows<S: Simd>(
    y: &mut [f32],
    out: &[f32],
    pos: &[u32],
    weights: &[f32],
    a: usize,
    d: usize,
    adds: bool,
) {
    let out = out.as_ptr();
    for t in 0..y.len() / d {
        let pos = &pos[t * a..(t + 1) * a];
        // SAFETY: `i + n <= d`, rows of `out` exist.
        unsafe {
            let y = y.as_mut_ptr().add(t * d);
            if weights.is_empty() {
                for_lanes!(S, d, |i, n| {
                    let mut sum = S::splat(0.0);
                    for c in 0..a {
                        sum = S::add(sum, load::<S>(out.add(pos[c] as usize * d + i), n));
                    }
                    put::<S>(y.add(i), sum, n, adds);
                });
            } else {
                let weights = &weights[t * a..(t + 1) * a];
                for_lanes!(S, d, |i, n| {
                    let mut sum = S::splat(0.0);
                    for c in 0..a {
                        let row = load::<S>(out.add(pos[c] as usize * d + i), n);
                        sum = S::fma(S::splat(weights[c]), row, sum);
                    }
                    put::<S>(y.add(i), sum, n, adds);
                });
            }
        }
    }
}

/// # Safety
/// As for [`Simd`]; n values at y.
#[inline(always)]
unsafe fn put<S: Simd>(y: *mut f32, sum: S::V, n: usize, adds: bool) {
    // SAFETY: forwarded to the caller.
    unsafe {
        let sum = if adds {
            S::add(load::<S>(y, n), sum)
        } else {
            sum
        };
        row::store::<S>(y, sum, n);
    }
}

/// # Safety
/// As for [`Simd`]; shapes as in [`combine_backward`]; no other thread touches the rows `pos` of
/// dout, all of which exist.
#[inline(always)]
unsafe fn backward_rows<S: Simd>(
    dout: *mut f32,
    dweights: &mut [f32],
    dy: &[f32],
    out: &[f32],
    pos: &[u32],
    weights: &[f32],
    a: usize,
    d: usize,
) {
    for choice in 0..pos.len() {
        let at = pos[choice] as usize * d;
        let dy = dy[choice / a * d..][..d].as_ptr();
        // SAFETY: `i + n <= d`, the row exists and is ours.
        unsafe {
            let (out, dout) = (out.as_ptr().add(at), dout.add(at));
            let w = S::splat(weights[choice]);
            let dot = fold_lanes!(S, d, 0.0, |acc, i, n| {
                let dy = load::<S>(dy.add(i), n);
                row::store::<S>(dout.add(i), S::mul(w, dy), n);
                S::fma(dy, load::<S>(out.add(i), n), acc)
            });
            dweights[choice] = row::sum::<S>(dot);
        }
    }
}

#[cfg(test)]
mod tests;
