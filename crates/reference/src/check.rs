//! What the tests share: values without a random generator, and finite differences.

/// Values between -1 and 1 that follow no simple pattern, another row of them for each seed.
pub(crate) fn values(len: usize, seed: usize) -> Vec<f64> {
    (0..len)
        .map(|i| (1.7 * i as f64 + 0.3 * (i * i) as f64 + 11.3 * seed as f64).sin())
        .collect()
}

/// (f(x + h) - f(x - h)) / 2h in every coordinate, improved to fourth order by the same with 2h.
pub(crate) fn finite_differences(x: &[f64], f: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    const H: f64 = 1e-4;
    let mut x = x.to_vec();
    (0..x.len())
        .map(|i| {
            let at = x[i];
            let mut value = |offset: f64| {
                x[i] = at + offset;
                f(&x)
            };
            let (near, far) = (value(H) - value(-H), value(2.0 * H) - value(-2.0 * H));
            x[i] = at;
            (8.0 * near - far) / (12.0 * H)
        })
        .collect()
}

/// `gradient` must be that of `f` at x. The differences are off by h^4 / 30 times a fifth derivative,
/// which reaches thousands in a whole model, and by some 1e-15 / h: together below 1e-10.
#[track_caller]
pub(crate) fn assert_gradient(what: &str, gradient: &[f64], x: &[f64], f: impl Fn(&[f64]) -> f64) {
    let expected = finite_differences(x, f);
    assert_eq!(gradient.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(1e-3f64, |m, e| m.max(e.abs()));
    for (i, (got, expected)) in gradient.iter().zip(&expected).enumerate() {
        let error = (got - expected).abs() / largest;
        assert!(
            error < 1e-8,
            "{what}[{i}]: {got} where differences give {expected}"
        );
    }
}
