//! The reference's gradients against differences of the reference.

use crate::case::{Case, dot, normal};

/// Directions in which each gradient is tried.
const DIRECTIONS: usize = 3;

/// For each input of the function that a case differentiates, and for random directions u: the claimed
/// gradient times u must be the difference of the function along u.
///
/// The difference is central and of fourth order with steps of 1e-4: for functions of curvature around
/// one it is off by 1e-10 in a value around one, a wrong gradient by a tenth or more.
///
/// # Panics
/// When it is not; the message names the case and the input.
pub fn check(case: &dyn Case) {
    const H: f64 = 1e-4;
    let Some(gradient) = case.gradient() else {
        return;
    };
    for (input, claimed) in gradient.claimed.iter().enumerate() {
        let at = &gradient.at[input];
        let what = format!("{}: input {input}", case.name());
        assert_eq!(claimed.len(), at.len(), "{what}");
        for direction in 0..DIRECTIONS {
            let u = normal(at.len(), &format!("direction {direction}"));
            let norm = u.iter().map(|&u| f64::from(u).powi(2)).sum::<f64>().sqrt();
            let u: Vec<f64> = u.iter().map(|&u| f64::from(u) / norm).collect();
            let along = |h: f64| {
                let mut inputs = gradient.at.clone();
                inputs[input] = at.iter().zip(&u).map(|(x, u)| x + h * u).collect();
                (gradient.of)(&inputs)
            };
            let near = along(H) - along(-H);
            let far = along(2.0 * H) - along(-2.0 * H);
            let difference = (8.0 * near - far) / (12.0 * H);
            let slope = dot(claimed, &u);
            let size = dot(claimed, claimed).sqrt().max(1e-3);
            assert!(
                (difference - slope).abs() <= 1e-6 * size,
                "{what}: {slope} along a direction where differences give {difference}"
            );
        }
    }
}
