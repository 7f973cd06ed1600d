//! The learning rate of a step: warm-up, plateau, decay, all linear.
//!
//! With s from 0, W = warmup_steps, N = steps, n = decay_frac * N, f = final_lr_frac:
//! rising   (s + 1) / W                          while s < W
//! falling  f + (1 - f) * (N - s) / (n + 1)      in the last n steps
//! the smaller of the two, at most 1, times the plateau.
//!
//! Source: the shape is that of the K-EXAONE report (arXiv 2601.01739, section 3.1), which does not give its
//! curves.

use crate::recipe::Schedule;

/// Factor on the learning rate of the plateau for step `step` of `steps`, counted from 0.
pub fn factor(schedule: &Schedule, step: u64, steps: u64) -> f64 {
    let warmup = schedule.warmup_steps.max(1) as f64;
    let rising = (step + 1) as f64 / warmup;
    let decay = (schedule.decay_frac * steps as f64).floor();
    let left = (steps.saturating_sub(step)) as f64;
    let share = (left / (decay + 1.0)).min(1.0);
    let falling = schedule.final_lr_frac + (1.0 - schedule.final_lr_frac) * share;
    rising.min(falling).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_rises_stays_and_falls() {
        let schedule = Schedule {
            warmup_steps: 4,
            decay_frac: 0.4,
            final_lr_frac: 0.1,
        };
        let curve: Vec<f64> = (0..20).map(|step| factor(&schedule, step, 20)).collect();
        assert_eq!(curve[..4], [0.25, 0.5, 0.75, 1.0]);
        assert!(curve[4..12].iter().all(|&f| f == 1.0));
        assert!(curve[12..].windows(2).all(|w| w[1] < w[0]));
        assert!((curve[19] - (0.1 + 0.9 / 9.0)).abs() < 1e-12);
    }

    #[test]
    fn without_warm_up_and_decay_it_is_level() {
        let schedule = Schedule {
            warmup_steps: 0,
            decay_frac: 0.0,
            final_lr_frac: 0.0,
        };
        assert!((0..5).all(|step| factor(&schedule, step, 5) == 1.0));
    }
}
