//! From logits to a token.

use crate::ops::softmax;

/// The likeliest token; of equals the first.
pub fn greedy(logits: &[f64]) -> u32 {
    let mut best = 0;
    for (id, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = id;
        }
    }
    best as u32
}

/// A token drawn from the likeliest ones, as few as have together a probability of at least `top_p`.
///
/// logits (V), temperature > 0, `uniform` in [0, 1) the draw. Tokens are ordered by probability, equals
/// by id; `uniform` picks the point where their running sum passes it. Holtzman et al. 2020,
/// arXiv:1904.09751.
pub fn top_p(logits: &[f64], temperature: f64, top_p: f64, uniform: f64) -> u32 {
    let scaled: Vec<f64> = logits.iter().map(|z| z / temperature).collect();
    let p = softmax(&scaled);
    let mut ids: Vec<usize> = (0..p.len()).collect();
    ids.sort_by(|&a, &b| p[b].total_cmp(&p[a]));
    let (mut nucleus, mut sum) = (0, 0.0);
    while nucleus < ids.len() && (nucleus == 0 || sum < top_p) {
        sum += p[ids[nucleus]];
        nucleus += 1;
    }
    let mut left = uniform * sum;
    for &id in &ids[..nucleus] {
        if left < p[id] {
            return id as u32;
        }
        left -= p[id];
    }
    ids[nucleus - 1] as u32 // what rounding left over
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Logits of the probabilities 0.1, 0.6, 0.3.
    fn logits() -> Vec<f64> {
        [0.1f64, 0.6, 0.3].iter().map(|p| p.ln()).collect()
    }

    #[test]
    fn greedy_takes_the_largest_and_of_equals_the_first() {
        assert_eq!(greedy(&[0.0, 2.0, -1.0, 2.0]), 1);
    }

    #[test]
    fn top_p_draws_in_proportion() {
        let draws = |p: f64| {
            let mut counts = [0; 3];
            for i in 0..1000 {
                counts[top_p(&logits(), 1.0, p, f64::from(i) / 1000.0) as usize] += 1;
            }
            counts
        };
        let near = |a: [i32; 3], b: [i32; 3]| a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1);
        assert!(near(draws(1.0), [100, 600, 300]));
        assert!(near(draws(0.7), [0, 667, 333]), "two suffice for 0.7");
        assert_eq!(draws(0.6), [0, 1000, 0], "one suffices for 0.6");
        assert_eq!(draws(0.0), [0, 1000, 0], "never none");
    }

    #[test]
    fn a_low_temperature_sharpens() {
        let drawn = |temperature| top_p(&logits(), temperature, 1.0, 0.75);
        assert_eq!((drawn(1.0), drawn(0.2)), (2, 1));
    }
}
