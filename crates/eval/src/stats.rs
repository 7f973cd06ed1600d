//! How sure a score is: intervals at 95 % and tests, for right-or-wrong items and for sums of bits.
//!
//! Legend: n items of which a share p is right; items of one cluster (one passage, one fact) stand or fall
//! together.
//!
//! - A share: Wilson's interval (Wilson 1927; Newcombe 1998a, Statistics in Medicine 17:857, method 3), with
//!   n divided by the design effect V / (p (1-p) / (n-1)), V = C/(C-1) sum_c (sum_{i in c} (x_i - p))^2 / n^2
//!   over the C clusters (after Korn and Graubard 1998); it is 1 for clusters of one item. At p = 0 or 1,
//!   where V says nothing, each cluster counts once.
//! - A weighted mean of shares: sqrt(sum w^2 (p - l)^2) below it, sqrt(sum w^2 (u - p)^2) above
//!   (Zou, Huang, Zhang 2009, Computational Statistics & Data Analysis 53:1080).
//! - A difference of shares of the same items: Newcombe 1998b, Statistics in Medicine 17:2635, method 10.
//! - Is a difference chance? Every cluster's change could as well have had the other sign: the exact
//!   distribution of the sum over all signs. For clusters of one item it is McNemar's exact test.
//! - A ratio of sums: resampling of blocks, percentiles; draws from Philox, so the same every time.

use std::collections::BTreeMap;

use numerics::Rng;

/// Lower and upper limit.
pub type Interval = [f64; 2];

/// 97.5 % of a standard normal variable lie below.
const Z: f64 = 1.959_963_984_540_054;

/// Resamples of a bootstrap: the limits then move by less than a twentieth of the interval's width
/// between seeds.
const RESAMPLES: usize = 2000;

/// A share of items that are right.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share {
    /// p, 0 to 1.
    pub p: f64,
    /// At 95 %.
    pub ci95: Interval,
    /// Items divided by the design effect.
    pub effective_n: f64,
}

impl Share {
    /// The share of right ones among `(cluster, is right)`; without items nothing is known.
    pub fn of<'a>(items: impl IntoIterator<Item = (&'a str, bool)>) -> Share {
        let mut clusters: BTreeMap<&str, (f64, f64)> = BTreeMap::new(); // items, right ones
        for (cluster, is_correct) in items {
            let entry = clusters.entry(cluster).or_default();
            entry.0 += 1.0;
            entry.1 += f64::from(u8::from(is_correct));
        }
        let n: f64 = clusters.values().map(|c| c.0).sum();
        if n == 0.0 {
            return Share {
                p: 0.0,
                ci95: [0.0, 1.0],
                effective_n: 0.0,
            };
        }
        let p = clusters.values().map(|c| c.1).sum::<f64>() / n;
        let c = clusters.len() as f64;
        let effective_n = if p == 0.0 || p == 1.0 || c == 1.0 {
            c
        } else {
            let squares: f64 = (clusters.values())
                .map(|(items, right)| (right - items * p).powi(2))
                .sum();
            let variance = c / (c - 1.0) * squares / (n * n);
            // Above n the clusters would know more than independent items: an accident of the sample.
            (n * p * (1.0 - p) / ((n - 1.0) * variance)).clamp(1.0, n)
        };
        let ci95 = wilson(p, effective_n);
        Share {
            p,
            ci95,
            effective_n,
        }
    }
}

/// Wilson's interval for a share p of n.
pub fn wilson(p: f64, n: f64) -> Interval {
    let z2 = Z * Z / n;
    let centre = p + z2 / 2.0;
    let half = Z * (p * (1.0 - p) / n + z2 / (4.0 * n)).sqrt();
    [
        ((centre - half) / (1.0 + z2)).max(0.0),
        ((centre + half) / (1.0 + z2)).min(1.0),
    ]
}

/// The mean of independent estimates with their intervals, all of the same weight.
pub fn mean(parts: &[(f64, Interval)]) -> (f64, Interval) {
    let w = 1.0 / parts.len().max(1) as f64;
    let total: f64 = parts.iter().map(|(value, _)| w * value).sum();
    let spread = |side: usize| {
        let squares = parts.iter().map(|(v, ci)| (w * (v - ci[side])).powi(2));
        squares.sum::<f64>().sqrt()
    };
    (total, [total - spread(0), total + spread(1)])
}

/// An item answered twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair<'a> {
    /// Items of one cluster stand or fall together.
    pub cluster: &'a str,
    /// Right the first time.
    pub before: bool,
    /// Right the second time.
    pub after: bool,
}

/// The share after less the share before, with its interval.
pub fn paired_difference(pairs: &[Pair<'_>]) -> (f64, Interval) {
    let before = Share::of(pairs.iter().map(|pair| (pair.cluster, pair.before)));
    let after = Share::of(pairs.iter().map(|pair| (pair.cluster, pair.after)));
    let n = pairs.len() as f64;
    let count = |b, a| {
        let matching = pairs.iter().filter(|p| p.before == b && p.after == a);
        matching.count() as f64
    };
    let (both, lost, gained, neither) = (
        count(true, true),
        count(true, false),
        count(false, true),
        count(false, false),
    );
    // The correlation of the two answers, with Newcombe's continuity correction towards none.
    let covariance = match both * neither - lost * gained {
        c if c > n / 2.0 => c - n / 2.0,
        c if c > 0.0 => 0.0,
        c => c,
    };
    let margins = (both + lost) * (gained + neither) * (both + gained) * (lost + neither);
    let phi = match margins > 0.0 {
        true => covariance / margins.sqrt(),
        false => 0.0,
    };
    let difference = after.p - before.p;
    let half = |x: f64, y: f64| (x * x - 2.0 * phi * x * y + y * y).max(0.0).sqrt();
    let below = half(after.p - after.ci95[0], before.ci95[1] - before.p);
    let above = half(after.ci95[1] - after.p, before.p - before.ci95[0]);
    (
        difference,
        [
            (difference - below).max(-1.0),
            (difference + above).min(1.0),
        ],
    )
}

/// The probability that chance alone gives a change as large as this one, in either direction.
pub fn paired_p_value(pairs: &[Pair<'_>]) -> f64 {
    let mut changes: BTreeMap<&str, i64> = BTreeMap::new();
    for pair in pairs {
        *changes.entry(pair.cluster).or_default() += i64::from(pair.after) - i64::from(pair.before);
    }
    let sizes: Vec<usize> = (changes.values())
        .map(|change| change.unsigned_abs() as usize)
        .filter(|size| *size > 0)
        .collect();
    let observed = changes.values().sum::<i64>().unsigned_abs() as usize;
    // probability[s]: that the signed sizes so far sum to s - sum of them.
    let reach: usize = sizes.iter().sum();
    let mut probability = vec![0.0; 2 * reach + 1];
    probability[reach] = 1.0;
    let mut reached = 0;
    for size in sizes {
        reached += size;
        let mut next = vec![0.0; probability.len()];
        for at in reach - (reached - size)..=reach + (reached - size) {
            next[at - size] += probability[at] / 2.0;
            next[at + size] += probability[at] / 2.0;
        }
        probability = next;
    }
    let far = (probability.iter().enumerate())
        .filter(|(at, _)| at.abs_diff(reach) >= observed)
        .map(|(_, p)| p);
    far.sum::<f64>().min(1.0)
}

/// Means over groups of (sum of numerators / sum of denominators), as `(value, interval)` of each group and
/// of their unweighted mean. Blocks `(numerator, denominator)` of a group are drawn anew with replacement.
pub fn ratio_bootstrap(
    groups: &[Vec<(f64, f64)>],
    seed: u64,
) -> (Vec<(f64, Interval)>, (f64, Interval)) {
    let ratio = |sums: (f64, f64)| sums.0 / sums.1.max(f64::MIN_POSITIVE);
    let sum = |blocks: &mut dyn Iterator<Item = (f64, f64)>| {
        blocks.fold((0.0, 0.0), |sum, block| (sum.0 + block.0, sum.1 + block.1))
    };
    let mut means = vec![0.0; RESAMPLES];
    let mut results = Vec::with_capacity(groups.len());
    for (idx, blocks) in groups.iter().enumerate() {
        let mut rng = Rng::new(seed, &format!("eval/bootstrap/{idx}"));
        let mut draws: Vec<f64> = (0..RESAMPLES)
            .map(|_| {
                let mut drawn = (0..blocks.len()).map(|_| *rng.pick(blocks));
                ratio(sum(&mut drawn))
            })
            .collect();
        for (mean, draw) in means.iter_mut().zip(&draws) {
            *mean += draw / groups.len() as f64;
        }
        let value = ratio(sum(&mut blocks.iter().copied()));
        results.push((value, percentiles(&mut draws)));
    }
    let values = results.iter().map(|(value, _)| value);
    let mean = values.sum::<f64>() / groups.len().max(1) as f64;
    (results, (mean, percentiles(&mut means)))
}

/// The 2.5th and the 97.5th percentile.
fn percentiles(draws: &mut [f64]) -> Interval {
    draws.sort_unstable_by(f64::total_cmp);
    let at = |share: f64| draws[((draws.len() - 1) as f64 * share).round() as usize];
    [at(0.025), at(0.975)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounded(ci: Interval) -> [f64; 2] {
        ci.map(|limit| (limit * 1e4).round() / 1e4)
    }

    /// Items of clusters of their own.
    fn single(n: usize) -> Vec<String> {
        (0..n).map(|idx| idx.to_string()).collect()
    }

    #[test]
    fn wilson_agrees_with_newcombes_table() {
        // Newcombe 1998a, table I, method 3.
        for (right, n, limits) in [
            (81.0, 263.0, [0.2553, 0.3662]),
            (15.0, 148.0, [0.0624, 0.1605]),
            (0.0, 20.0, [0.0, 0.1611]),
            (1.0, 29.0, [0.0061, 0.1718]),
        ] {
            assert_eq!(rounded(wilson(right / n, n)), limits, "{right} of {n}");
        }
    }

    #[test]
    fn clusters_widen_the_interval_to_that_of_fewer_items() {
        let names = single(40);
        let own = Share::of(names.iter().enumerate().map(|(i, c)| (c.as_str(), i < 20)));
        assert_eq!(own.p, 0.5);
        assert!((own.effective_n - 40.0).abs() < 1e-9);
        // Pairs that always agree are one observation each.
        let paired = Share::of((0..40).map(|i| (names[i / 2].as_str(), i < 20)));
        assert!((paired.effective_n - 40.0 / 39.0 * 19.0).abs() < 1e-9);
        assert!(paired.ci95[0] < own.ci95[0] && paired.ci95[1] > own.ci95[1]);
        let perfect = Share::of((0..40).map(|i| (names[i / 4].as_str(), true)));
        assert_eq!((perfect.p, perfect.effective_n), (1.0, 10.0));
        assert_eq!(perfect.ci95, wilson(1.0, 10.0));
        assert_eq!(Share::of([]).ci95, [0.0, 1.0]);
    }

    #[test]
    fn a_mean_is_surer_than_its_parts() {
        let part = (0.5, [0.4, 0.6]);
        let (value, ci) = mean(&[part; 4]);
        assert!((value - 0.5).abs() < 1e-12);
        assert!((ci[0] - 0.45).abs() < 1e-12 && (ci[1] - 0.55).abs() < 1e-12);
        assert_eq!(mean(&[part]), part);
    }

    fn pairs(names: &[String], counts: [usize; 4]) -> Vec<Pair<'_>> {
        let kinds = [(true, true), (true, false), (false, true), (false, false)];
        let all = kinds.iter().zip(counts);
        let flat = all.flat_map(|(kind, count)| std::iter::repeat_n(*kind, count));
        flat.zip(names)
            .map(|((before, after), cluster)| Pair {
                cluster,
                before,
                after,
            })
            .collect()
    }

    #[test]
    fn a_paired_difference_agrees_with_published_examples() {
        // Altman, Machin, Bryant, Gardner 2000, "Statistics with confidence", table 6.2: 14, 5, 0, 22 of
        // 41, difference 0.122, 95 % interval 0.011 to 0.226; and Newcombe 1998b: 36, 12, 2, 0.
        let names = single(50);
        let (difference, ci) = paired_difference(&pairs(&names, [14, 0, 5, 22]));
        assert_eq!((difference * 1e3).round(), 122.0);
        assert_eq!(rounded(ci), [0.0115, 0.2265]);
        let (_, ci) = paired_difference(&pairs(&names, [36, 2, 12, 0]));
        assert_eq!(rounded(ci), [0.0569, 0.3404]);
    }

    #[test]
    fn the_sign_test_is_mcnemars_for_single_items() {
        let names = single(100);
        // Binomial(12, 1/2): 2 (1 + 12 + 66) / 4096.
        let p = paired_p_value(&pairs(&names, [30, 2, 10, 40]));
        assert!((p - 2.0 * 79.0 / 4096.0).abs() < 1e-12, "{p}");
        assert_eq!(paired_p_value(&pairs(&names, [5, 3, 3, 5])), 1.0);
        assert_eq!(paired_p_value(&[]), 1.0);
        // Ten pairs that change together are ten coins, not twenty.
        let together: Vec<Pair> = (0..20)
            .map(|i| Pair {
                cluster: &names[i / 2],
                before: false,
                after: true,
            })
            .collect();
        assert!((paired_p_value(&together) - 2.0 / 1024.0).abs() < 1e-12);
    }

    #[test]
    fn a_bootstrap_finds_the_standard_error_of_a_mean_and_repeats_itself() {
        let mut rng = Rng::new(1, "test");
        let blocks: Vec<(f64, f64)> = (0..400).map(|_| (rng.uniform(), 1.0)).collect();
        let (groups, (mean, ci)) = ratio_bootstrap(&[blocks.clone(), blocks.clone()], 7);
        // A uniform variable has variance 1/12.
        let expected = 2.0 * Z * (1.0f64 / 12.0 / 400.0).sqrt();
        let width = groups[0].1[1] - groups[0].1[0];
        assert!((width / expected - 1.0).abs() < 0.1, "{width} {expected}");
        assert!((mean - groups[0].0).abs() < 1e-12);
        // The mean of two independent groups is surer by the root of two.
        assert!(((ci[1] - ci[0]) / width - 0.5f64.sqrt()).abs() < 0.1);
        assert_eq!(ratio_bootstrap(&[blocks.clone(), blocks], 7).1, (mean, ci));
    }
}
