//! From a row of logits to a token.
//!
//! z'_j = z_j - frequency_penalty * count_j - presence_penalty * [count_j > 0], counts over the tokens
//! generated so far. Temperature 0 takes the largest z' (ties: the lower id). Otherwise p = softmax(z'/t),
//! and in this order: top_k keeps the k likeliest, min_p keeps p_j >= min_p * max p, top_p keeps the
//! shortest prefix, likeliest first, whose share of what was kept reaches top_p; one draw from the rest.
//!
//! The draw is Philox(seed, "sample") at the counter of the token's position in its sequence, so it
//! depends neither on the batch nor on how often the sequence was preempted.
//! Log-probabilities are those of the model: of z before penalties and temperature.
//!
//! Sources: Holtzman et al. 2020, arXiv:1904.09751 (top_p); Nguyen et al. 2024, arXiv:2407.01082
//! (min_p); the penalties as OpenAI's API reference defines them.

use crate::runner::log_sum_exp;
use numerics::Philox;
use std::cmp::Ordering;
use std::collections::HashMap;
use thiserror::Error;

/// How a request draws its tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 is greedy; at most 100.
    pub temperature: f32,
    /// In (0, 1]; 1 keeps all.
    pub top_p: f32,
    /// 0 keeps all.
    pub top_k: usize,
    /// In [0, 1]; 0 keeps all.
    pub min_p: f32,
    /// In [-2, 2].
    pub presence_penalty: f32,
    /// In [-2, 2].
    pub frequency_penalty: f32,
    /// Same seed, same prompt, same parameters: same tokens.
    pub seed: u64,
    /// `Some(n)` returns the log-probability of the token and of the n likeliest; n at most 20.
    pub logprobs: Option<usize>,
}

impl SamplingParams {
    /// Takes the likeliest token at every position.
    pub fn greedy() -> SamplingParams {
        SamplingParams {
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: 0,
            logprobs: None,
        }
    }

    /// Whether every value lies in its range.
    ///
    /// # Errors
    /// Names the first field that does not.
    pub fn validate(&self) -> Result<(), SamplingError> {
        let check = |field, value: f32, is_allowed: bool, allowed| {
            if is_allowed {
                Ok(())
            } else {
                Err(SamplingError {
                    field,
                    value,
                    allowed,
                })
            }
        };
        let t = self.temperature;
        check("temperature", t, (0.0..=100.0).contains(&t), "0 to 100")?;
        check(
            "top_p",
            self.top_p,
            self.top_p > 0.0 && self.top_p <= 1.0,
            "above 0, at most 1",
        )?;
        check(
            "min_p",
            self.min_p,
            (0.0..=1.0).contains(&self.min_p),
            "0 to 1",
        )?;
        for (field, value) in [
            ("presence_penalty", self.presence_penalty),
            ("frequency_penalty", self.frequency_penalty),
        ] {
            check(field, value, (-2.0..=2.0).contains(&value), "-2 to 2")?;
        }
        let n = self.logprobs.unwrap_or(0);
        check("logprobs", n as f32, n <= MAX_LOGPROBS, "0 to 20")
    }
}

/// A sampling parameter out of its range.
#[derive(Clone, Debug, PartialEq, Error)]
#[error("{field} is {value}, allowed is {allowed}")]
pub struct SamplingError {
    /// The field of [`SamplingParams`].
    pub field: &'static str,
    /// What was given.
    pub value: f32,
    /// What would have been accepted.
    pub allowed: &'static str,
}

/// Log-probabilities at one position.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprobs {
    /// Of the token that was drawn.
    pub logprob: f32,
    /// The likeliest tokens, best first.
    pub top: Vec<(u32, f32)>,
}

/// A drawn token.
#[derive(Clone, Debug, PartialEq)]
pub struct SampledToken {
    /// Token id.
    pub id: u32,
    /// Present when asked for.
    pub logprobs: Option<Logprobs>,
}

/// How often each token was generated in a sequence. Empty where no penalty needs it.
pub(crate) type TokenCounts = HashMap<u32, u32>;

/// The scratch space of sampling; it carries nothing from one token to the next.
#[derive(Debug, Default)]
pub(crate) struct Sampler {
    adjusted: Vec<f32>,          // (V)
    candidates: Vec<(f64, u32)>, // weight relative to the likeliest, id
}

impl Sampler {
    /// Draws the token for `position` from logits (V), or takes the one that is `forced`; `None` when they
    /// hold a NaN or an infinity other than -inf, or nothing but -inf.
    pub(crate) fn sample(
        &mut self,
        logits: &[f32],
        params: &SamplingParams,
        counts: &TokenCounts,
        position: usize,
        forced: Option<u32>,
    ) -> Option<SampledToken> {
        if logits.iter().any(|z| z.is_nan() || *z == f32::INFINITY) {
            return None;
        }
        self.adjusted.clear();
        self.adjusted.extend_from_slice(logits);
        for (&id, &count) in counts {
            let penalty = params.frequency_penalty * count as f32 + params.presence_penalty;
            self.adjusted[id as usize] -= penalty;
        }
        let best = argmax(&self.adjusted)?;
        let id = match forced {
            Some(id) => id,
            None if params.temperature == 0.0 => best,
            None => self.draw(best, params, position),
        };
        let logprobs = params.logprobs.map(|n| self.logprobs(logits, id, n));
        Some(SampledToken { id, logprobs })
    }

    fn draw(&mut self, best: u32, params: &SamplingParams, position: usize) -> u32 {
        let max = f64::from(self.adjusted[best as usize]);
        let temperature = f64::from(params.temperature);
        let candidates = &mut self.candidates;
        candidates.clear();
        candidates.extend(self.adjusted.iter().zip(0u32..).filter_map(|(&z, id)| {
            let weight = ((f64::from(z) - max) / temperature).exp();
            (weight > 0.0 && weight >= f64::from(params.min_p)).then_some((weight, id))
        }));
        if params.top_k > 0 && params.top_k < candidates.len() {
            candidates.select_nth_unstable_by(params.top_k - 1, likeliest_first);
            candidates.truncate(params.top_k);
        }
        if params.top_k > 0 || params.top_p < 1.0 {
            keep_top_p(candidates, f64::from(params.top_p));
        }
        let total: f64 = candidates.iter().map(|(weight, _)| weight).sum();
        let mut left = uniform(params.seed, position) * total;
        for &(weight, id) in candidates.iter() {
            left -= weight;
            if left < 0.0 {
                return id;
            }
        }
        // Rounding may leave a crumb of the total: the last candidate takes it.
        candidates.last().map_or(best, |&(_, id)| id)
    }

    fn logprobs(&mut self, logits: &[f32], id: u32, n: usize) -> Logprobs {
        let log_sum = log_sum_exp(logits);
        let candidates = &mut self.candidates;
        candidates.clear();
        candidates.extend(logits.iter().zip(0u32..).map(|(&z, id)| (f64::from(z), id)));
        let n = n.min(candidates.len());
        if n > 0 {
            candidates.select_nth_unstable_by(n - 1, likeliest_first);
        }
        candidates.truncate(n);
        candidates.sort_unstable_by(likeliest_first);
        Logprobs {
            logprob: (f64::from(logits[id as usize]) - log_sum) as f32,
            top: candidates
                .iter()
                .map(|&(z, id)| (id, (z - log_sum) as f32))
                .collect(),
        }
    }
}

/// Sorts what is kept, likeliest first, and cuts it where the share reaches `top_p`.
fn keep_top_p(candidates: &mut Vec<(f64, u32)>, top_p: f64) {
    let total: f64 = candidates.iter().map(|(weight, _)| weight).sum();
    let (mut sorted, mut sum) = (0, 0.0);
    // The prefix is nearly always short: sort 64 candidates, then four times as many, and so on.
    let mut piece = 64;
    while sorted < candidates.len() {
        let rest = &mut candidates[sorted..];
        let len = piece.min(rest.len());
        if len < rest.len() {
            rest.select_nth_unstable_by(len - 1, likeliest_first);
        }
        rest[..len].sort_unstable_by(likeliest_first);
        for i in 0..len {
            sum += rest[i].0;
            if sum >= top_p * total {
                candidates.truncate(sorted + i + 1);
                return;
            }
        }
        sorted += len;
        piece *= 4;
    }
}

/// Descending weight, then ascending id: a total order, so that ties never depend on the algorithm.
fn likeliest_first(a: &(f64, u32), b: &(f64, u32)) -> Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

/// The first largest entry above -inf.
fn argmax(z: &[f32]) -> Option<u32> {
    let mut best = None;
    let mut max = f32::NEG_INFINITY;
    for (id, &value) in z.iter().enumerate() {
        if value > max {
            (best, max) = (Some(id as u32), value);
        }
    }
    best
}

/// A number in [0, 1) that depends on the seed and the position only.
fn uniform(seed: u64, position: usize) -> f64 {
    let position = position as u64;
    let block = Philox::new(seed, "sample").block([position as u32, (position >> 32) as u32, 0, 0]);
    let bits = u64::from(block[0]) << 32 | u64::from(block[1]);
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

const MAX_LOGPROBS: usize = 20; // OpenAI's API reference, `top_logprobs`

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sampled(logits: &[f32], params: &SamplingParams, position: usize) -> u32 {
        let token = Sampler::default().sample(logits, params, &TokenCounts::new(), position, None);
        token.expect("finite logits").id
    }

    fn warm() -> SamplingParams {
        SamplingParams {
            temperature: 1.0,
            seed: 11,
            ..SamplingParams::greedy()
        }
    }

    #[test]
    fn greedy_takes_the_lower_of_equal_ids() {
        assert_eq!(
            sampled(&[1.0, 3.0, 3.0, -2.0], &SamplingParams::greedy(), 0),
            1
        );
    }

    #[test]
    fn penalties_count_generated_tokens() {
        let counts = TokenCounts::from([(1, 2)]);
        let pick = |presence_penalty, frequency_penalty| {
            let params = SamplingParams {
                presence_penalty,
                frequency_penalty,
                ..SamplingParams::greedy()
            };
            let token = Sampler::default().sample(&[1.0, 2.0], &params, &counts, 0, None);
            token.expect("finite logits").id
        };
        assert_eq!(pick(0.9, 0.0), 1);
        assert_eq!(pick(1.1, 0.0), 0);
        assert_eq!(pick(0.0, 0.49), 1);
        assert_eq!(pick(0.0, 0.51), 0);
    }

    #[test]
    fn draws_follow_the_softmax() {
        let logits = [0.0f32, 1.0, 2.0, -1.0];
        let params = SamplingParams {
            temperature: 0.7,
            ..warm()
        };
        let n = 40_000;
        let mut counts = [0u32; 4];
        for position in 0..n {
            counts[sampled(&logits, &params, position) as usize] += 1;
        }
        let weights = logits.map(|z| (f64::from(z) / 0.7).exp());
        let total: f64 = weights.iter().sum();
        for (count, weight) in counts.iter().zip(weights) {
            let (p, got) = (weight / total, f64::from(*count) / n as f64);
            // Five standard deviations of a binomial share.
            assert!(
                (got - p).abs() < 5.0 * (p * (1.0 - p) / n as f64).sqrt(),
                "{got} against {p}"
            );
        }
    }

    #[test]
    fn truncations_keep_what_they_promise() {
        // Probabilities 0.5, 0.25, 0.125, 0.0625, 0.0625.
        let logits = [4.0f32, 3.0, 2.0, 1.0, 1.0].map(|z| z * std::f32::consts::LN_2);
        let reached = |params: SamplingParams| {
            let mut ids: Vec<u32> = (0..400).map(|pos| sampled(&logits, &params, pos)).collect();
            ids.sort_unstable();
            ids.dedup();
            ids
        };
        assert_eq!(reached(warm()), [0, 1, 2, 3, 4]);
        assert_eq!(reached(SamplingParams { top_k: 2, ..warm() }), [0, 1]);
        assert_eq!(reached(SamplingParams { top_k: 4, ..warm() }), [0, 1, 2, 3]);
        assert_eq!(
            reached(SamplingParams {
                top_p: 0.7,
                ..warm()
            }),
            [0, 1]
        );
        assert_eq!(
            reached(SamplingParams {
                top_p: 0.8,
                ..warm()
            }),
            [0, 1, 2]
        );
        assert_eq!(
            reached(SamplingParams {
                min_p: 0.2,
                ..warm()
            }),
            [0, 1, 2]
        );
        // top_p counts shares of what top_k left: 0.5 and 0.25 of 0.75.
        assert_eq!(
            reached(SamplingParams {
                top_k: 2,
                top_p: 0.6,
                ..warm()
            }),
            [0]
        );
        assert_eq!(
            reached(SamplingParams {
                top_p: 1e-6,
                ..warm()
            }),
            [0]
        );
    }

    #[test]
    fn logprobs_are_those_of_the_model() {
        let logits = [1.0f32, 2.0, 3.0];
        let params = SamplingParams {
            logprobs: Some(2),
            presence_penalty: 2.0,
            ..warm()
        };
        let counts = TokenCounts::from([(2, 1)]);
        let token = Sampler::default()
            .sample(&logits, &params, &counts, 4, None)
            .expect("finite logits");
        let got = token.logprobs.expect("was asked for");
        let log_sum = logits.iter().map(|z| z.exp()).sum::<f32>().ln();
        assert_eq!(
            got.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(),
            [2, 1]
        );
        assert!((got.logprob - (logits[token.id as usize] - log_sum)).abs() < 1e-6);
        assert!((got.top[0].1 - (3.0 - log_sum)).abs() < 1e-6);
    }

    #[test]
    fn logits_that_are_no_numbers_are_refused() {
        let sample = |logits: &[f32]| {
            Sampler::default()
                .sample(logits, &warm(), &TokenCounts::new(), 0, None)
                .map(|t| t.id)
        };
        assert_eq!(sample(&[1.0, f32::NAN]), None);
        assert_eq!(sample(&[f32::INFINITY, 0.0]), None);
        assert_eq!(sample(&[f32::NEG_INFINITY; 3]), None);
        assert_eq!(sample(&[f32::NEG_INFINITY, 0.0]), Some(1));
    }

    #[test]
    fn a_parameter_out_of_range_is_named() {
        let error = SamplingParams {
            top_p: 0.0,
            ..warm()
        }
        .validate();
        assert_eq!(
            error.map_err(|e| e.to_string()),
            Err("top_p is 0, allowed is above 0, at most 1".into())
        );
        let nan = SamplingParams {
            temperature: f32::NAN,
            ..warm()
        };
        assert_eq!(nan.validate().map_err(|e| e.field), Err("temperature"));
    }

    proptest! {
        #[test]
        fn top_p_agrees_with_a_full_sort(
            logits in prop::collection::vec(-8.0f32..8.0, 1..400),
            top_p in 0.01f64..1.0,
        ) {
            let weights: Vec<(f64, u32)> =
                logits.iter().zip(0u32..).map(|(&z, id)| (f64::from(z.round()).exp(), id)).collect();
            let mut sorted = weights.clone();
            sorted.sort_by(likeliest_first);
            let total: f64 = weights.iter().map(|w| w.0).sum();
            let mut sum = 0.0;
            let cut = sorted.iter().position(|w| { sum += w.0; sum >= top_p * total });
            sorted.truncate(cut.map_or(sorted.len(), |i| i + 1));
            let mut kept = weights;
            keep_top_p(&mut kept, top_p);
            prop_assert_eq!(kept, sorted);
        }
    }
}
