//! Softmax cross-entropy of rows of logits against one target each.
//!
//! forward   m = max_j z_j    S = sum_j e^(z_j - m)    loss = ln S + m - z_target
//! backward  dz_j = scale * (e^(z_j - m)/S - [j = target])
//!
//! Shapes: R rows, V vocab. `scales` (R) is the derivative of the total by each row's loss (1/count
//! for a mean, a weight of its own for a masked or weighted token). A row whose target is
//! [`IGNORE`] has loss 0 and gradient 0.
//! Bound by memory: the gradient overwrites the logits, 8RV bytes; a row is read from memory once
//! and stays in the cache for the exponentials and the gradient.
//! S is summed in f32 in four chains of a vector each; ln S + m - z_target is taken in f64.
//! Source: Goodfellow, Bengio & Courville 2016, Deep Learning, sections 4.1 and 6.2.2.3.
//! No label smoothing, no z-loss, no soft cap.

use crate::Cpu;
use crate::pool::SharedMut;
use crate::row::{self, fold_lanes, for_lanes, keep, load, store};
use crate::simd::{Simd, exp};

/// The target of a row that does not count.
pub const IGNORE: u32 = u32::MAX;

/// logits (R, V), targets (R), scales (R) -> losses (R); logits become their gradient.
///
/// # Panics
/// When a target is neither below V nor [`IGNORE`].
pub fn forward_backward(
    cpu: &Cpu,
    logits: &mut [f32],
    losses: &mut [f32],
    targets: &[u32],
    scales: &[f32],
) {
    let Some(v) = check(logits, losses, targets) else {
        return;
    };
    assert_eq!(scales.len(), losses.len(), "scales is (R)");
    let isa = cpu.isa();
    let (len, logits, losses) = (losses.len(), SharedMut::new(logits), SharedMut::new(losses));
    cpu.pool.for_ranges(len, row::grain(v), &|rows| {
        let (targets, scales) = (&targets[rows.clone()], &scales[rows.clone()]);
        // SAFETY: ranges of rows are disjoint.
        let (logits, losses) = unsafe {
            (
                logits.slice(rows.start * v..rows.end * v),
                losses.slice(rows),
            )
        };
        dispatch!(isa, forward_backward_rows(
            logits: &mut [f32], losses: &mut [f32], targets: &[u32], scales: &[f32], v: usize,
        ));
    });
}

/// logits (R, V), targets (R) -> losses (R), with the bits of [`forward_backward`].
///
/// # Panics
/// When a target is neither below V nor [`IGNORE`].
pub fn forward(cpu: &Cpu, losses: &mut [f32], logits: &[f32], targets: &[u32]) {
    let Some(v) = check(logits, losses, targets) else {
        return;
    };
    let isa = cpu.isa();
    let (len, losses) = (losses.len(), SharedMut::new(losses));
    cpu.pool.for_ranges(len, row::grain(v), &|rows| {
        let targets = &targets[rows.clone()];
        let logits = &logits[rows.start * v..rows.end * v];
        // SAFETY: ranges of rows are disjoint.
        let losses = unsafe { losses.slice(rows) };
        dispatch!(isa, forward_rows(
            losses: &mut [f32], logits: &[f32], targets: &[u32], v: usize,
        ));
    });
}

/// V, unless there is no row.
fn check(logits: &[f32], losses: &[f32], targets: &[u32]) -> Option<usize> {
    assert_eq!(targets.len(), losses.len(), "targets and losses are (R)");
    let v = logits.len().checked_div(losses.len())?;
    assert!(
        v > 0 && v * losses.len() == logits.len(),
        "logits is (R, V)"
    );
    let is_valid = |&target: &u32| target == IGNORE || (target as usize) < v;
    assert!(
        targets.iter().all(is_valid),
        "a target is not in the vocabulary"
    );
    Some(v)
}

/// # Safety
/// As for [`Simd`]; shapes as in [`forward_backward`], targets checked.
#[inline(always)]
unsafe fn forward_backward_rows<S: Simd>(
    logits: &mut [f32],
    losses: &mut [f32],
    targets: &[u32],
    scales: &[f32],
    v: usize,
) {
    for r in 0..losses.len() {
        let (target, scale) = (targets[r], scales[r]);
        let row = &mut logits[r * v..(r + 1) * v];
        if target == IGNORE {
            row.fill(0.0);
            losses[r] = 0.0;
            continue;
        }
        let target_logit = row[target as usize];
        let z = row.as_mut_ptr();
        // SAFETY: `i + n <= v`.
        unsafe {
            let max = row_max::<S>(z, v);
            let shift = S::splat(-max);
            let sum = row::sum::<S>(fold_lanes!(S, v, 0.0, |acc, i, n| {
                let e = exp::<S>(S::add(load::<S>(z.add(i), n), shift));
                store::<S>(z.add(i), e, n);
                S::add(acc, keep::<S>(e, n, 0.0))
            }));
            losses[r] = row_loss(sum, max, target_logit);
            let factor = S::splat(scale / sum);
            for_lanes!(S, v, |i, n| {
                store::<S>(z.add(i), S::mul(load::<S>(z.add(i), n), factor), n);
            });
        }
        row[target as usize] -= scale;
    }
}

/// # Safety
/// As for [`Simd`]; shapes as in [`forward`], targets checked.
#[inline(always)]
unsafe fn forward_rows<S: Simd>(losses: &mut [f32], logits: &[f32], targets: &[u32], v: usize) {
    for r in 0..losses.len() {
        let (target, row) = (targets[r], &logits[r * v..(r + 1) * v]);
        if target == IGNORE {
            losses[r] = 0.0;
            continue;
        }
        let z = row.as_ptr();
        // SAFETY: `i + n <= v`.
        unsafe {
            let max = row_max::<S>(z, v);
            let shift = S::splat(-max);
            let sum = row::sum::<S>(fold_lanes!(S, v, 0.0, |acc, i, n| {
                let e = exp::<S>(S::add(load::<S>(z.add(i), n), shift));
                S::add(acc, keep::<S>(e, n, 0.0))
            }));
            losses[r] = row_loss(sum, max, row[target as usize]);
        }
    }
}

/// # Safety
/// As for [`Simd`]; v values at z.
#[inline(always)]
unsafe fn row_max<S: Simd>(z: *const f32, v: usize) -> f32 {
    // SAFETY: `i + n <= v`.
    unsafe {
        row::largest::<S>(fold_lanes!(S, v, f32::NEG_INFINITY, |acc, i, n| {
            S::max(acc, keep::<S>(load::<S>(z.add(i), n), n, f32::NEG_INFINITY))
        }))
    }
}

#[inline(always)]
fn row_loss(sum: f32, max: f32, target_logit: f32) -> f32 {
    (f64::from(sum).ln() + (f64::from(max) - f64::from(target_logit))) as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::*;

    fn run(
        cpu: &Cpu,
        logits: &[f32],
        targets: &[u32],
        scales: &[f32],
    ) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let (mut d, mut losses) = (added(logits), output(targets.len()));
        let mut only_losses = output(targets.len());
        forward_backward(cpu, &mut d, &mut losses, targets, scales);
        forward(cpu, &mut only_losses, logits, targets);
        (d.finish(), losses.finish(), only_losses.finish())
    }

    #[test]
    fn ignored_rows_count_for_nothing() {
        on_every_isa(|cpu| {
            let logits = normal(3 * 21, "z");
            let (d, losses, only_losses) = run(cpu, &logits, &[4, IGNORE, 20], &[1.0; 3]);
            assert!(d[21..42].iter().all(|&d| d == 0.0) && losses[1] == 0.0);
            assert!(losses[0] > 0.0 && losses[2] > 0.0);
            assert_eq!(losses, only_losses);
        });
    }

    #[test]
    fn a_large_common_offset_changes_nothing_and_nothing_overflows() {
        on_every_isa(|cpu| {
            let logits: Vec<f32> = (0..40).map(|j| (j % 7) as f32).collect();
            let moved: Vec<f32> = logits.iter().map(|z| z + 4096.0).collect();
            let plain = run(cpu, &logits, &[3], &[1.0]);
            assert_eq!(run(cpu, &moved, &[3], &[1.0]), plain);
            let (d, losses, _) = run(cpu, &[-3e38, 3e38, 0.0], &[1], &[1.0]);
            assert!(
                losses == [0.0] && d.iter().all(|d| d.abs() < 1e-30),
                "{losses:?} {d:?}"
            );
        });
    }

    #[test]
    fn a_row_of_nan_has_a_loss_of_nan() {
        on_every_isa(|cpu| {
            let (_, losses, _) = run(cpu, &[f32::NAN; 19], &[3], &[1.0]);
            assert!(losses[0].is_nan());
        });
    }

    #[test]
    fn a_row_has_the_same_bits_alone_and_on_any_number_of_threads() {
        let (r, v) = (25, 1003);
        let (logits, targets) = (normal(r * v, "z"), below(r, v, "targets"));
        let scales = normal(r, "scales");
        same_bits_on_any_number_of_threads(|cpu| {
            let (d, losses, _) = run(cpu, &logits, &targets, &scales);
            for row in [0, 12, 24] {
                let z = &logits[row * v..][..v];
                let (d1, losses1, _) = run(cpu, z, &targets[row..=row], &scales[row..=row]);
                assert_eq!(bits(&d1), bits(&d[row * v..][..v]));
                assert_eq!(bits(&losses1), bits(&losses[row..=row]));
            }
            [d, losses].concat()
        });
    }

    #[test]
    #[should_panic(expected = "a target is not in the vocabulary")]
    fn a_target_outside_the_vocabulary_is_refused() {
        let cpu = Cpu::new(crate::Isa::Portable, 1);
        forward(&cpu, &mut [0.0], &[0.0; 4], &[4]);
    }
}
