//! How far two arrays are apart, and how far they may be.
//!
//! A tolerance is derived from what is computed, not tuned to what comes out. f32 rounds to a relative
//! 2^-24, so a chain of k additions leaves an error of which the square, relative to the result's, is
//! about k/6 * 2^-48 when the terms have random signs; an error that is not rounding (a wrong term, a
//! lost row) is of the order of 1/k.

/// How far a result may be from what it should be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Tolerance {
    /// Every value equal: copies, permutations, indices, single roundings.
    Exact,
    /// Normalised mean-square error: sum (a - b)^2 / sum b^2.
    Nmse(f64),
    /// The same, where results smaller than terms of a size cancel: each value counts as that large.
    NmseOfTerms {
        /// On the error.
        bound: f64,
        /// Of the terms.
        size: f64,
    },
    /// Largest difference, relative to the largest value.
    MaxAbs(f64),
}

impl Tolerance {
    /// Of f32 results that are sums of `terms` products each, or of fewer steps than that: 24 times
    /// the expected error, for roundings of the factors and of a few operations before and after.
    pub fn sums(terms: usize) -> Tolerance {
        Tolerance::Nmse(sums(terms))
    }

    /// As [`Tolerance::sums`], of results that may be small differences of terms of size one.
    pub fn differences(terms: usize) -> Tolerance {
        Tolerance::NmseOfTerms {
            bound: sums(terms),
            size: 1.0,
        }
    }

    /// Of functions with an exponential inside: a relative 2.6e-7 (`kernels_cpu::simd::exp`) in each of a
    /// few factors.
    pub fn exponentials() -> Tolerance {
        Tolerance::Nmse(1e-12)
    }
}

/// The bound of [`Tolerance::sums`].
pub fn sums(terms: usize) -> f64 {
    (terms + 16) as f64 * 4.0 * 2f64.powi(-48)
}

/// Two arrays that differ by more than they may.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Mismatch {
    /// Of different lengths.
    #[error("{got} values instead of {expected}")]
    Length {
        /// Of the result.
        got: usize,
        /// Of what it should be.
        expected: usize,
    },
    /// The measure of the tolerance is above its bound.
    #[error(
        "off by {error:e} where {tolerance:?} is allowed; worst is [{idx}], {got} instead of {expected}"
    )]
    Far {
        /// In the measure of the tolerance.
        error: f64,
        /// What was allowed.
        tolerance: Tolerance,
        /// Where the largest difference is.
        idx: usize,
        /// The value there.
        got: f64,
        /// What it should be.
        expected: f64,
    },
}

/// The error in the measure of `tolerance`, if it is allowed. A NaN never is.
pub fn close(got: &[f64], expected: &[f64], tolerance: Tolerance) -> Result<f64, Mismatch> {
    if got.len() != expected.len() {
        let (got, expected) = (got.len(), expected.len());
        return Err(Mismatch::Length { got, expected });
    }
    let (mut squares, mut norm) = (0.0, 0.0);
    let (mut worst, mut idx, mut largest) = (0.0, 0, 0.0f64);
    for (i, (a, b)) in got.iter().zip(expected).enumerate() {
        let difference = if a == b { 0.0 } else { (a - b).abs() };
        squares += difference * difference;
        norm += b * b;
        largest = largest.max(b.abs());
        if difference > worst || difference.is_nan() {
            (worst, idx) = (difference, i);
        }
    }
    let relative = |error: f64, of: f64| if error == 0.0 { 0.0 } else { error / of };
    let (error, bound) = match tolerance {
        Tolerance::Exact => (worst, 0.0),
        Tolerance::Nmse(bound) => (relative(squares, norm), bound),
        Tolerance::NmseOfTerms { bound, size } => {
            let least = expected.len() as f64 * size * size;
            (relative(squares, norm.max(least)), bound)
        }
        Tolerance::MaxAbs(bound) => (relative(worst, largest), bound),
    };
    if error <= bound {
        return Ok(error);
    }
    Err(Mismatch::Far {
        error,
        tolerance,
        idx,
        got: got[idx],
        expected: expected[idx],
    })
}

/// As [`close`], for values of f32.
pub fn close_f32(got: &[f32], expected: &[f64], tolerance: Tolerance) -> Result<f64, Mismatch> {
    close(&to_f64(got), expected, tolerance)
}

/// The same values in f64.
pub fn to_f64(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

/// The nearest values in f32.
pub fn to_f32(x: &[f64]) -> Vec<f32> {
    x.iter().map(|&x| x as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_measure_sees_what_it_is_made_for() {
        let expected = [1.0, 2.0, -2.0];
        let got = [1.0, 2.0, -2.3];
        assert!(matches!(
            close(&expected, &expected, Tolerance::Exact),
            Ok(0.0)
        ));
        assert!(close(&got, &expected, Tolerance::Exact).is_err());
        assert!(close(&got, &expected, Tolerance::Nmse(0.0101)).is_ok());
        assert!(close(&got, &expected, Tolerance::Nmse(0.0099)).is_err());
        let of_terms = |bound, size| Tolerance::NmseOfTerms { bound, size };
        assert!(close(&got, &expected, of_terms(0.0101, 1.0)).is_ok());
        assert!(close(&got, &expected, of_terms(0.0099, 1.0)).is_err());
        assert!(close(&got, &expected, of_terms(0.0009, 6.0)).is_ok());
        assert!(close(&got, &expected, Tolerance::MaxAbs(0.151)).is_ok());
        assert!(close(&got, &expected, Tolerance::MaxAbs(0.149)).is_err());
    }

    #[test]
    fn what_is_not_a_number_or_not_there_is_far() {
        for tolerance in [
            Tolerance::Exact,
            Tolerance::Nmse(9.0),
            Tolerance::MaxAbs(9.0),
        ] {
            assert!(close(&[f64::NAN], &[1.0], tolerance).is_err());
            assert!(close(&[1.0], &[f64::NAN], tolerance).is_err());
            assert!(close(&[f64::INFINITY], &[1.0], tolerance).is_err());
            assert!(close(&[1.0, 1.0], &[1.0], tolerance).is_err());
        }
        assert!(close(&[1e-30], &[0.0], Tolerance::Nmse(1.0)).is_err());
        let infinite = [f64::NEG_INFINITY];
        assert!(close(&infinite, &infinite, Tolerance::Exact).is_ok());
    }
}
