//! What is minimised.
//!
//! total = next-token loss + mtp_weight * loss of the token after next + balance losses of all layers
//!
//! K-EXAONE trains with mtp_weight 0.05 and alpha 1e-4 (arXiv:2601.01739, section 3.1). Both prediction
//! losses are means over all predicted tokens of a batch; the balance loss is a mean over sequences.

use crate::ops::{dot, softmax};

/// The tokens of one sequence, and which of them are to be predicted.
#[derive(Clone, Debug)]
pub struct Sequence {
    /// (T).
    pub ids: Vec<u32>,
    /// (T), whether predicting the token counts: of a conversation only the answers do.
    pub is_target: Vec<bool>,
    /// (T), how much predicting the token as the next one counts: of a sampled answer how much better or worse than
    /// others it is.
    pub weights: Vec<f64>,
}

impl Sequence {
    /// Plain text: every token counts.
    pub fn text(ids: &[u32]) -> Sequence {
        Sequence {
            ids: ids.to_vec(),
            is_target: vec![true; ids.len()],
            weights: vec![1.0; ids.len()],
        }
    }

    /// What the losses of the targets of rows 0..`rows`, each the token after it, count.
    pub fn target_weights(&self, rows: usize) -> Vec<f64> {
        let weight = |t: usize| self.weights.get(t + 1).copied().unwrap_or(0.0);
        (0..rows).map(weight).collect()
    }

    /// What rows 0..`rows` of the logits are to predict: row t token t + `ahead`, where there is one
    /// that counts.
    pub fn targets(&self, ahead: usize, rows: usize) -> Vec<Option<u32>> {
        let target = |t: usize| self.is_target.get(t).is_some_and(|&counts| counts);
        (0..rows)
            .map(|t| target(t + ahead).then(|| self.ids[t + ahead]))
            .collect()
    }
}

/// The weights in the total.
#[derive(Clone, Copy, Debug)]
pub struct Objective {
    /// Of the loss of the token after next.
    pub mtp_weight: f64,
    /// alpha of [`balance_loss`].
    pub balance_alpha: f64,
}

/// The parts of the total.
#[derive(Clone, Copy, Debug, Default)]
pub struct Losses {
    /// Mean cross-entropy of the next token, in nats, each times its weight.
    pub next_token: f64,
    /// Mean cross-entropy of the token after next, in nats.
    pub mtp: f64,
    /// Sum over layers of the mean over sequences, alpha included.
    pub balance: f64,
    /// What the gradients are of.
    pub total: f64,
}

/// loss_r = log sum_v e^z_rv - z_r,target: logits (R, V), targets (R) -> losses (R), 0 without a target.
pub fn cross_entropy(logits: &[f64], targets: &[Option<u32>]) -> Vec<f64> {
    let v = logits.len() / targets.len().max(1);
    let loss = |(r, target): (usize, &Option<u32>)| {
        target.map_or(0.0, |target| {
            let z = &logits[r * v..(r + 1) * v];
            let largest = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = z.iter().map(|z| (z - largest).exp()).sum();
            largest + sum.ln() - z[target as usize]
        })
    };
    targets.iter().enumerate().map(loss).collect()
}

/// dz_rv = scale_r (softmax(z_r)_v - [v = target]): scales (R) = d total / d loss_r -> dlogits (R, V).
pub fn cross_entropy_backward(scales: &[f64], logits: &[f64], targets: &[Option<u32>]) -> Vec<f64> {
    let v = logits.len() / targets.len().max(1);
    let mut dlogits = vec![0.0; logits.len()];
    for (r, (target, scale)) in targets.iter().zip(scales).enumerate() {
        let Some(target) = target else { continue };
        let dz = &mut dlogits[r * v..(r + 1) * v];
        for (dz, p) in dz.iter_mut().zip(softmax(&logits[r * v..(r + 1) * v])) {
            *dz = scale * p;
        }
        dz[*target as usize] -= scale;
    }
    dlogits
}

/// f_i = E / (A T) * how often expert i was chosen: 1 for each when the load is even.
fn load(topk_ids: &[u32], num_experts: usize) -> Vec<f64> {
    let mut f = vec![0.0; num_experts];
    for &id in topk_ids {
        f[id as usize] += num_experts as f64 / topk_ids.len() as f64;
    }
    f
}

/// alpha sum_i f_i P_i with P_i = mean_t s_ti / sum_j s_tj, over one sequence: scores (T, E), topk_ids
/// (T, A). DeepSeek-V3, arXiv:2412.19437, eq. 17-20.
pub fn balance_loss(
    alpha: f64,
    scores: &[f64],
    topk_ids: &[u32],
    num_experts_per_tok: usize,
) -> f64 {
    let tokens = topk_ids.len() / num_experts_per_tok;
    let e = scores.len() / tokens;
    let f = load(topk_ids, e);
    let share = |s: &[f64]| dot(&f, s) / s.iter().sum::<f64>();
    alpha * scores.chunks_exact(e).map(share).sum::<f64>() / tokens as f64
}

/// f is a count and has no gradient; with c = alpha f / T: ds_ti = (c_i - sum_j c_j p_tj) / sum_j s_tj.
///
/// -> dscores (T, E).
pub fn balance_loss_backward(
    alpha: f64,
    scores: &[f64],
    topk_ids: &[u32],
    num_experts_per_tok: usize,
) -> Vec<f64> {
    let tokens = topk_ids.len() / num_experts_per_tok;
    let e = scores.len() / tokens;
    let c: Vec<f64> = load(topk_ids, e)
        .iter()
        .map(|f| alpha * f / tokens as f64)
        .collect();
    let mut dscores = Vec::with_capacity(scores.len());
    for s in scores.chunks_exact(e) {
        let sum: f64 = s.iter().sum();
        let mean = dot(&c, s) / sum;
        dscores.extend(c.iter().map(|c| (c - mean) / sum));
    }
    dscores
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{assert_gradient, values};

    #[test]
    fn cross_entropy_has_the_gradient_of_finite_differences_and_skips_rows_without_target() {
        let (logits, scales) = (values(3 * 5, 1), values(3, 2));
        let targets = [Some(4), None, Some(0)];
        assert_eq!(cross_entropy(&logits, &targets)[1], 0.0);
        let dlogits = cross_entropy_backward(&scales, &logits, &targets);
        assert_gradient("logits", &dlogits, &logits, |logits| {
            dot(&scales, &cross_entropy(logits, &targets))
        });
    }

    #[test]
    fn a_row_predicts_the_token_ahead_of_it_if_that_counts() {
        let sequence = Sequence {
            ids: vec![5, 6, 7, 8],
            is_target: vec![true, false, true, true],
            weights: vec![1.0, 2.0, -3.0, 4.0],
        };
        assert_eq!(sequence.target_weights(4), [2.0, -3.0, 4.0, 0.0]);
        assert_eq!(sequence.targets(1, 4), [None, Some(7), Some(8), None]);
        assert_eq!(sequence.targets(2, 3), [Some(7), Some(8), None]);
    }

    #[test]
    fn even_logits_cost_the_logarithm_of_the_vocabulary() {
        let loss = cross_entropy(&[700.0; 8], &[Some(3)])[0];
        assert!((loss - 8f64.ln()).abs() < 1e-12);
    }

    #[test]
    fn balance_loss_has_the_gradient_of_finite_differences() {
        let scores: Vec<f64> = values(4 * 3, 1).iter().map(|x| x + 1.5).collect();
        let topk_ids = [0, 1, 0, 2, 0, 1, 2, 0];
        let dscores = balance_loss_backward(0.7, &scores, &topk_ids, 2);
        assert_gradient("scores", &dscores, &scores, |scores| {
            balance_loss(0.7, scores, &topk_ids, 2)
        });
    }

    #[test]
    fn balance_loss_is_alpha_for_an_even_load_and_more_where_scores_and_choices_gather() {
        let even = balance_loss(0.1, &[0.5; 16], &[0, 1, 2, 3], 1);
        assert!((even - 0.1).abs() < 1e-12);
        let gathered: Vec<f64> = [0.9, 0.1, 0.1, 0.1].repeat(2);
        assert!(balance_loss(0.1, &gathered, &[0, 0], 1) > 0.29);
    }
}
