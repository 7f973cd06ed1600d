//! Stretched rotary frequencies as GGUF has them: a divisor for each, and the published parameters that
//! they came from.

use model::config::RopeScaling;

/// The divisor of each frequency, (K/2), as llama.cpp's converter computes it.
pub(crate) fn divisors(scaling: &RopeScaling, theta: f64, head_dim: usize) -> Vec<f32> {
    let s = scaling;
    let original = s.original_max_position_embeddings as f64;
    let (low, high) = (f64::from(s.low_freq_factor), f64::from(s.high_freq_factor));
    let factor = f64::from(s.factor);
    (0..head_dim / 2)
        .map(|i| {
            let turns = original * frequency(theta, head_dim, i) / std::f64::consts::TAU;
            let share = ((turns - low) / (high - low)).clamp(0.0, 1.0);
            (1.0 / (share + (1.0 - share) / factor)) as f32
        })
        .collect()
}

fn frequency(theta: f64, head_dim: usize, i: usize) -> f64 {
    theta.powf(-((2 * i) as f64) / head_dim as f64)
}

/// The parameters that give these divisors; `None` where all are one.
///
/// The factor is the largest divisor, and as published a wave is long below one turn and short above four;
/// the original length then follows from any divisor between.
///
/// # Errors
/// When there are no such parameters, says what does not fit.
pub(crate) fn scaling_of(
    found: &[f32],
    theta: f64,
    head_dim: usize,
) -> Result<Option<RopeScaling>, String> {
    if found.len() != head_dim / 2 {
        return Err(format!("{} divisors for heads of {head_dim}", found.len()));
    }
    if found.iter().all(|&d| d == 1.0) {
        return Ok(None);
    }
    let factor = found.iter().copied().fold(0.0f32, f32::max);
    let (low, high) = (1.0, 4.0);
    let with = |original: usize| RopeScaling {
        factor,
        low_freq_factor: low,
        high_freq_factor: high,
        original_max_position_embeddings: original,
    };
    let fits = |original: usize| {
        let expected = divisors(&with(original), theta, head_dim);
        let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-4 * b.abs();
        expected.iter().zip(found).all(close)
    };
    let between = found.iter().enumerate().filter_map(|(i, &d)| {
        let (d, factor) = (f64::from(d), f64::from(factor));
        let share = (1.0 / d - 1.0 / factor) / (1.0 - 1.0 / factor);
        let turns = f64::from(low) + share * f64::from(high - low);
        let original = turns * std::f64::consts::TAU / frequency(theta, head_dim, i);
        (share > 1e-3 && share < 1.0 - 1e-3).then_some(original.round() as usize)
    });
    let powers = (4..24).map(|n| 1usize << n);
    between
        .chain(powers)
        .find(|&original| original > 0 && fits(original))
        .map(|original| Some(with(original)))
        .ok_or_else(|| {
            format!("divisors up to {factor} that no low factor of 1 and high factor of 4 give")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parameters_are_found_again_in_their_divisors() {
        for (theta, head_dim, factor, original) in [
            (1e6, 128, 16.0, 8192),
            (5e5, 64, 8.0, 8192),
            (5e5, 80, 32.0, 4096),
            (1e6, 32, 16.0, 64),
            (1e4, 8, 2.0, 100),
        ] {
            let scaling = RopeScaling {
                factor,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_max_position_embeddings: original,
            };
            let found = scaling_of(&divisors(&scaling, theta, head_dim), theta, head_dim);
            let found = found.unwrap().unwrap();
            assert_eq!(
                divisors(&found, theta, head_dim),
                divisors(&scaling, theta, head_dim)
            );
        }
    }

    #[test]
    fn a_frequency_through_its_divisor_is_the_stretched_one() {
        let text = r#"{"model_type": "llama", "vocab_size": 8, "hidden_size": 64,
            "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1,
            "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192}}"#;
        let stretched = model::ModelConfig::from_json(text).unwrap();
        let plain = model::ModelConfig {
            rope_scaling: None,
            ..stretched.clone()
        };
        let divisors = divisors(&stretched.rope_scaling.unwrap(), 5e5, 64);
        assert!(divisors[0] == 1.0 && divisors[31] == 8.0);
        let both = plain.inv_freq().into_iter().zip(divisors);
        for ((plain, divisor), expected) in both.zip(stretched.inv_freq()) {
            assert!((plain / divisor / expected - 1.0).abs() < 1e-5);
        }
    }

    #[test]
    fn other_divisors_are_refused() {
        assert_eq!(scaling_of(&[1.0; 4], 1e4, 8), Ok(None));
        assert!(scaling_of(&[1.0, 3.0, 1.0, 2.0], 1e4, 8).is_err());
        assert!(scaling_of(&[1.0; 3], 1e4, 8).is_err());
        assert!(scaling_of(&[1.0, f32::NAN, 1.0, 2.0], 1e4, 8).is_err());
    }
}
