//! The choice of scales: weighted least squares over rounded candidates.
//!
//! ```text
//! symmetric   x ~ s q         q in -n..n       max of (sum w x q)^2 / sum w q^2         w = x^2
//! affine      x ~ s q - m     q in 0..=n, m >= 0                                        w = rms + |x|
//! ```
//! For given q the best s (and m) have a closed form; the best q for given s are those of rounding.
//! Each candidate maps the range of x to a slightly different number of steps, rounds, and solves for
//! s (and m); kept is the one that explains most, i.e. has the largest
//! `sum w x^2 - sum w (x - s q + m)^2 = s sum w x q - m sum w x`.
//! The affine fit then rounds and solves twice more from there, as Lloyd's method does.
//!
//! Source: weights and candidates of the symmetric fit, and weights of the affine one, as in ggml
//! (`ggml-quants.c`).
//! Sums run in eight lanes of f32, always in the same order: the same bytes on every machine.

/// Larger magnitudes are cut off: 2^28 is what Q6_K can hold, and its cube is still far from overflow.
const LARGEST: f32 = (1u32 << 28) as f32;
/// Half of the smallest step above zero that any type can store: 2^-25.
const TINY: f32 = 1.0 / (1u32 << 25) as f32;
/// 1.5 * 2^23: an f32 of this size has no bits left for fractions.
const NO_FRACTIONS: f32 = 12_582_912.0;
const LANES: usize = 8;
/// From two steps fewer than q has to one more, by fifths.
const AFFINE_STEPS: u8 = 16;

/// The nearest integer of `lo..=hi`, ties to even; both are integers within 2^22 of zero.
pub(super) fn round_within(x: f32, lo: f32, hi: f32) -> f32 {
    // Two comparisons rather than `clamp`: its check of the bounds would keep this off vectors.
    let x = if x < lo { lo } else { x };
    let x = if x > hi { hi } else { x };
    (x + NO_FRACTIONS) - NO_FRACTIONS
}

/// The smallest and the largest.
pub(super) fn range<const B: usize>(x: &[f32; B]) -> (f32, f32) {
    let ends = (x[0], x[0]);
    x.iter().fold(ends, |(lo, hi), x| (lo.min(*x), hi.max(*x)))
}

/// 1 / x, or 0 for 0.
pub(super) fn inverse(x: f32) -> f32 {
    if x == 0.0 { 0.0 } else { 1.0 / x }
}

/// Zero for NaN, and nothing of infinite or absurd size.
pub(super) fn finite<const B: usize>(values: &[f32; B]) -> [f32; B] {
    values.map(|x| {
        if x.is_nan() {
            0.0
        } else {
            x.clamp(-LARGEST, LARGEST)
        }
    })
}

/// The first value of largest magnitude, with its sign.
pub(super) fn peak(x: &[f32]) -> f32 {
    x.iter().fold(
        0.0,
        |peak: f32, x| if x.abs() > peak.abs() { *x } else { peak },
    )
}

/// The scale s of x ~ s q with q in -n..n; its sign is such that the peak is a negative q.
pub(super) fn symmetric(x: &[f32; 16], n: f32) -> f32 {
    let peak = peak(x);
    if peak == 0.0 {
        return 0.0;
    }
    let w = x.map(|x| x * x);
    let wx = x.map(|x| x * x * x);
    let (mut best, mut scale) = (0.0, 0.0);
    for step in -9i8..=9 {
        let inv = -(n + f32::from(step) / 10.0) / peak;
        let q = x.map(|x| round_within(x * inv, -n, n - 1.0));
        let (wqq, wxq) = (dot(&w, &q.map(|q| q * q)), dot(&wx, &q));
        let explained = wxq * wxq / wqq;
        // NaN where squares vanish: such values are far below the smallest step of any type.
        if explained > best {
            (best, scale) = (explained, wxq / wqq);
        }
    }
    scale as f32
}

/// The scale s and the offset m of x ~ s q - m with q in 0..=n, neither of them negative.
pub(super) fn affine(x: &[f32; 32], n: f32) -> (f32, f32) {
    let (lo, hi) = range(x);
    let lo = lo.min(0.0);
    if hi - lo <= TINY {
        return (0.0, -lo);
    }
    let rms = (dot(x, x) / 32.0).sqrt() as f32;
    let w = x.map(|x| rms + x.abs());
    let wx: [f32; 32] = std::array::from_fn(|i| w[i] * x[i]);
    let (sum_w, sum_wx) = (dot(&w, &[1.0; 32]), dot(&wx, &[1.0; 32]));
    let mut best = Affine {
        explained: 0.0,
        s: (hi - lo) / n,
        m: -lo,
    };
    // Lines x -> (x + m) inv to round on, and then twice the best line found so far.
    for step in 0..AFFINE_STEPS + 2 {
        let (m, inv) = if step < AFFINE_STEPS {
            (-lo, (n - 2.0 + f32::from(step) / 5.0) / (hi - lo))
        } else {
            (best.m, 1.0 / best.s)
        };
        let q = x.map(|x| round_within((x + m) * inv, 0.0, n));
        let (wq, wqq, wxq) = (dot(&w, &q), dot(&w, &q.map(|q| q * q)), dot(&wx, &q));
        let (s, m) = solve(sum_w, sum_wx, wq, wqq, wxq);
        let explained = s * wxq - m * sum_wx;
        let (s, m) = (s as f32, m as f32);
        if s > 0.0 && explained > best.explained {
            best = Affine { explained, s, m };
        }
    }
    (best.s, best.m)
}

struct Affine {
    explained: f64,
    s: f32,
    m: f32,
}

/// The minimum of sum w (x - s q + m)^2 over s and m >= 0.
fn solve(w: f64, wx: f64, wq: f64, wqq: f64, wxq: f64) -> (f64, f64) {
    let det = w * wqq - wq * wq;
    // Of equal q, det is the rounding of the sums: 1e-7 of its terms. Of one other q in 32, 3e-5.
    if det > 1e-6 * w * wqq {
        let m = (wq * wxq - wqq * wx) / det;
        if m > 0.0 {
            return ((w * wxq - wq * wx) / det, m);
        }
    }
    (wxq / wqq, 0.0)
}

fn dot<const B: usize>(a: &[f32; B], b: &[f32; B]) -> f64 {
    let mut lanes = [0.0f32; LANES];
    let chunks = a.as_chunks::<LANES>().0.iter();
    for (a, b) in chunks.zip(b.as_chunks::<LANES>().0) {
        for i in 0..LANES {
            lanes[i] += a[i] * b[i];
        }
    }
    let pairs: [f32; LANES / 2] = std::array::from_fn(|i| lanes[i] + lanes[i + LANES / 2]);
    f64::from(pairs[0] + pairs[2]) + f64::from(pairs[1] + pairs[3])
}
