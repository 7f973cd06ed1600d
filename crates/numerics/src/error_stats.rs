//! How far two arrays are apart.

/// Normalised mean-square error: sum (a - b)^2 / sum b^2, in f64. Zero against zero is 0.
pub fn nmse(got: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(got.len(), expected.len(), "nmse: lengths differ");
    let (mut diff, mut norm) = (0.0f64, 0.0f64);
    for (&a, &b) in got.iter().zip(expected) {
        diff += (f64::from(a) - f64::from(b)).powi(2);
        norm += f64::from(b).powi(2);
    }
    if diff == 0.0 { 0.0 } else { diff / norm }
}

/// Largest absolute difference, in f64; NaN if either side holds a NaN.
pub fn max_abs_diff(got: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(got.len(), expected.len(), "max_abs_diff: lengths differ");
    got.iter().zip(expected).fold(0.0, |max, (&a, &b)| {
        let d = (f64::from(a) - f64::from(b)).abs();
        if d.is_nan() || d > max { d } else { max }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_arrays_have_no_error_and_nan_is_seen() {
        assert_eq!(nmse(&[1.0, 2.0], &[1.0, 2.0]), 0.0);
        assert!((nmse(&[1.0, 2.1], &[1.0, 2.0]) - 0.01 / 5.0).abs() < 1e-6);
        assert!(max_abs_diff(&[f32::NAN, 1.0], &[0.0, 0.0]).is_nan());
    }
}
