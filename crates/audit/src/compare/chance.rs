//! How likely it is that two models which have nothing to do with one another look as alike as these.
//!
//! Before training, and whatever the data, the hidden units of a random network could as well stand in any other order:
//! starting values are drawn alike, and AdamW and Muon treat all units alike. So if model A was begun from random numbers
//! of its own, then for any model B the order of A's units is one of all n! orders, each as likely as any other. What
//! follows holds for that reason alone; nothing is assumed of the weights, the data or the kind of similarity.
//! (Zhu, Ahmed, Kuditipudi, Liang, "Independence Tests for Language Models", 2025, arXiv 2502.12292, has the idea.)
//!
//! Legend: L blocks (a layer, an expert, a head) with n units each; C[i][j] how alike unit i of A and unit j of B are.
//!
//! - Matches. f(i) is the j with the largest C[i][j], and K the number of units with f(i) = i, in all blocks. In one block
//!   the mean of binomial(K, k) is at most 1/k!: at most binomial(n, k) choices of k units have k different f, and for
//!   each the chance that all stand there is (n-k)!/n!. So the mean of (1+t)^K is at most e^(tL), and by Markov's
//!   inequality with t = k/L - 1
//!
//!   P(K >= k) <= e^(k-L) (L/k)^k   for k > L.
//!
//! - Excess. S is the sum of all C[i][i]. Over all orders its mean is the sum of C / n, and its variance the sum of the
//!   squares of the doubly centred C, divided by n-1 (Hoeffding 1951, Annals of Mathematical Statistics 22:558), summed
//!   over blocks. By Cantelli's inequality, z standard deviations above the mean, P <= 1 / (1 + z^2).
//!
//! Both are bounds, not estimates: the true chance is smaller. Everything is in decimal logarithms, since a whole model
//! has chances that no number holds.

use std::f64::consts::{LN_10, LOG10_2};

/// log10 of the bound for `matches` units in their place, in `blocks` blocks.
pub(super) fn matches(matches: usize, blocks: usize) -> f64 {
    let (k, l) = (matches as f64, blocks as f64);
    if matches <= blocks || blocks == 0 {
        return 0.0;
    }
    (k - l + k * (l / k).ln()) / LN_10
}

/// log10 of the bound for a sum `z` standard deviations above its mean.
pub(super) fn excess(z: f64) -> f64 {
    match z > 0.0 {
        true => -z.mul_add(z, 1.0).log10(),
        false => 0.0,
    }
}

/// log10 of the bound for the less likely of two things that were looked at.
pub(super) fn either(a: f64, b: f64) -> f64 {
    (a.min(b) + LOG10_2).min(0.0)
}

/// The same for a whole family, so that one false finding among all is as unlikely as said (Holm 1979, Scandinavian
/// Journal of Statistics 6:65).
pub(super) fn holm(logs: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..logs.len()).collect();
    order.sort_by(|&i, &j| logs[i].total_cmp(&logs[j]));
    let mut adjusted = vec![0.0; logs.len()];
    let mut least = f64::NEG_INFINITY;
    for (rank, &idx) in order.iter().enumerate() {
        let left = (logs.len() - rank) as f64;
        least = (logs[idx] + left.log10()).clamp(least, 0.0);
        adjusted[idx] = least;
    }
    adjusted
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All orders of n units; calls `f` with each.
    fn orders(n: usize, f: &mut impl FnMut(&[usize])) {
        fn go(order: &mut Vec<usize>, at: usize, f: &mut impl FnMut(&[usize])) {
            if at == order.len() {
                return f(order);
            }
            for i in at..order.len() {
                order.swap(at, i);
                go(order, at + 1, f);
                order.swap(at, i);
            }
        }
        go(&mut (0..n).collect(), 0, f);
    }

    #[test]
    fn matches_are_never_likelier_than_the_bound() {
        let n = 6;
        // Every kind of f: one to one, several units to one, all to one.
        for f in [
            [0, 1, 2, 3, 4, 5],
            [0, 0, 2, 2, 4, 4],
            [3; 6],
            [0, 1, 2, 3, 3, 3],
        ] {
            let (mut at_least, mut all) = ([0usize; 7], 0);
            orders(n, &mut |order| {
                let k = (0..n).filter(|&place| f[order[place]] == place).count();
                (0..=k).for_each(|k| at_least[k] += 1);
                all += 1;
            });
            for (k, count) in at_least.iter().enumerate() {
                let chance = *count as f64 / all as f64;
                assert!(chance <= 10f64.powf(matches(k, 1)) + 1e-12, "{f:?} {k}");
            }
        }
    }

    #[test]
    fn bounds_are_those_of_the_formulas() {
        assert_eq!(matches(3, 3), 0.0);
        assert_eq!(matches(0, 0), 0.0);
        let by_hand = (7.0f64 + 10.0 * 0.3f64.ln()).exp();
        assert!((10f64.powf(matches(10, 3)) - by_hand).abs() < 1e-12);
        assert_eq!(excess(-3.0), 0.0);
        assert!((10f64.powf(excess(3.0)) - 0.1).abs() < 1e-12);
        assert_eq!(either(-0.1, 0.0), 0.0);
        assert!((10f64.powf(either(-3.0, -1.0)) - 0.002).abs() < 1e-12);
    }

    #[test]
    fn a_family_is_corrected_as_holm_does() {
        let logs: Vec<f64> = [0.01f64, 0.04, 0.03, 0.005].map(f64::log10).to_vec();
        let adjusted = holm(&logs).into_iter().map(|log| 10f64.powf(log));
        let expected = [0.03, 0.06, 0.06, 0.02];
        for (got, expected) in adjusted.zip(expected) {
            assert!((got - expected).abs() < 1e-12, "{got} {expected}");
        }
        assert_eq!(holm(&[]), [0.0; 0]);
    }
}
