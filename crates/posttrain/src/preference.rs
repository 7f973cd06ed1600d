//! Learning which of two answers is preferred.
//!
//! For a question x with the answers w (chosen) and l (rejected), pi the model and ref the weights that the stage began
//! with:
//!
//! D = ln pi(w|x)/ref(w|x) - ln pi(l|x)/ref(l|x)        loss = -ln sigma(beta D), a mean over pairs
//!
//! (Direct preference optimisation: Rafailov et al. 2023, arXiv 2305.18290.) Its gradient is that of a cross-entropy in
//! which every token of w counts beta sigma(-beta D), and every token of l as much less than nothing. The engine computes
//! the likelihoods, once with the weights of the step and once with those of the start; a step is a function of both.

use std::sync::{Mutex, PoisonError};

use infer::{Engine, ScoreWindow};
use model::ModelConfig;
use thiserror::Error;
use train::recipe::Prefer;
use train::{Batches, Recipe, StepBatches, Trainer};

use crate::answers::{Weighted, engine, of_step, pack};

/// A question and two answers, each with the token that ends it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The question, up to where the answer begins.
    pub prompt_ids: Vec<u32>,
    /// The better answer.
    pub chosen: Vec<u32>,
    /// The worse one.
    pub rejected: Vec<u32>,
}

/// There is nothing to learn from.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "none of {found} dialogues with a rejected answer fits into {seq_len} tokens (train.seq_len, or the positions of the \
     model if they are fewer); give lines with `messages` and `rejected` to `dokja data build`, or raise train.seq_len"
)]
pub struct NoChoice {
    /// How many there were.
    pub found: usize,
    /// Tokens of a row.
    pub seq_len: usize,
}

/// Batches of chosen and rejected answers.
pub struct Preferences {
    choices: Vec<Choice>,
    prefer: Prefer,
    seed: u64,
    seq_len: usize,
    batch_tokens: usize,
    /// The weights that the stage began with, and an engine over them once one is needed.
    reference: Vec<f32>,
    judge: Mutex<Option<Engine>>,
    commitment: String,
}

impl Preferences {
    /// Of those choices that fit into a row; `reference` are the weights that the stage begins with.
    ///
    /// # Errors
    /// When there are none.
    pub fn new(
        mut choices: Vec<Choice>,
        recipe: &Recipe,
        config: &ModelConfig,
        reference: Vec<f32>,
    ) -> Result<Preferences, NoChoice> {
        let prefer = recipe.prefer.clone().unwrap_or_default();
        let (found, seq_len) = (
            choices.len(),
            recipe.train.seq_len.min(config.max_position_embeddings),
        );
        choices.retain(|choice| {
            let fits = |answer: &[u32]| {
                !answer.is_empty() && choice.prompt_ids.len() + answer.len() <= seq_len
            };
            !choice.prompt_ids.is_empty() && fits(&choice.chosen) && fits(&choice.rejected)
        });
        if choices.is_empty() {
            return Err(NoChoice { found, seq_len });
        }
        Ok(Preferences {
            commitment: commitment(&choices, recipe.seed, &prefer),
            choices,
            prefer,
            seed: recipe.seed,
            seq_len,
            batch_tokens: recipe.train.seq_len * recipe.train.rows_per_micro_step,
            reference,
            judge: Mutex::new(None),
        })
    }

    /// ln p(answer | question).
    fn likelihood(&self, engine: &mut Engine, prompt_ids: &[u32], answer: &[u32]) -> f64 {
        let ids = [prompt_ids, answer].concat();
        let window = ScoreWindow {
            max_context: self.seq_len,
            stride: self.seq_len,
        };
        match engine.score(&ids, window) {
            Ok(scores) => scores[prompt_ids.len() - 1..].iter().sum(),
            // The trainer finds it, and says at which step.
            Err(_) => f64::NAN,
        }
    }
}

impl Batches for Preferences {
    fn batches(&self, trainer: &Trainer) -> StepBatches {
        let per_step = self.prefer.pairs_per_step;
        let at = of_step(
            self.seed,
            "prefer.pairs",
            self.choices.len(),
            per_step,
            trainer.step,
        );
        let mut policy = engine(trainer, trainer.model.params.host(), 1, self.seq_len);
        let mut judge = self.judge.lock().unwrap_or_else(PoisonError::into_inner);
        let judge = judge.get_or_insert_with(|| engine(trainer, &self.reference, 1, self.seq_len));
        let choices: Vec<&Choice> = at.into_iter().map(|idx| &self.choices[idx]).collect();
        let targets: usize = choices
            .iter()
            .map(|c| c.chosen.len() + c.rejected.len())
            .sum();
        // The trainer divides by the number of targets; the loss is a mean over pairs.
        let per_pair = targets as f64 / choices.len() as f64;
        let (mut answers, mut preferred) = (Vec::new(), 0);
        for choice in &choices {
            let mut gain = |answer: &[u32]| {
                self.likelihood(&mut policy, &choice.prompt_ids, answer)
                    - self.likelihood(judge, &choice.prompt_ids, answer)
            };
            let difference = gain(&choice.chosen) - gain(&choice.rejected);
            preferred += u32::from(difference > 0.0);
            let beta = self.prefer.beta;
            let weight = per_pair * beta / (1.0 + (beta * difference).exp());
            for (ids, weight) in [(&choice.chosen, weight), (&choice.rejected, -weight)] {
                answers.push(Weighted {
                    prompt_ids: &choice.prompt_ids,
                    ids: ids.clone(),
                    weight: weight as f32,
                });
            }
        }
        StepBatches {
            batches: pack(&answers, self.batch_tokens),
            reward: Some(f64::from(preferred) / choices.len() as f64),
        }
    }

    fn commitment(&self) -> &str {
        &self.commitment
    }

    fn order(&self) -> &'static str {
        ORDER
    }
}

/// SHA-256 of everything that determines a step besides its weights; docs/formats/data.md has the form.
fn commitment(choices: &[Choice], seed: u64, prefer: &Prefer) -> String {
    let Prefer {
        pairs_per_step,
        beta,
    } = prefer;
    let mut bytes = format!("{ORDER}\n{seed}\n{pairs_per_step}\n{beta}\n").into_bytes();
    for choice in choices {
        for ids in [&choice.prompt_ids, &choice.chosen, &choice.rejected] {
            bytes.extend((ids.len() as u64).to_le_bytes());
            bytes.extend(ids.iter().flat_map(|id| id.to_le_bytes()));
        }
    }
    formats::hash::sha256_hex(&bytes)
}

const ORDER: &str = "dokja-preference-order-1: pairs shuffled by (seed, epoch); weighed by how much more the weights of \
                     the step prefer the chosen answer than those that the stage began with";
