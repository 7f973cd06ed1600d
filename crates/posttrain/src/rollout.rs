//! The answers of a step, drawn by the weights that it begins with, and what each counts.
//!
//! For each of P questions, G answers o_1 .. o_G are drawn from the model at temperature 1. With rewards r_i, every
//! token of o_i counts as much as the answer was better than the others:
//!
//! A_i = r_i - mean(r)        loss = -(1/N) sum_i sum_t A_i log p(o_it | question, o_i<t)      N: tokens of all answers
//!
//! The gradient is that of the expected reward, with the mean of the group as the baseline: group-relative policy
//! optimisation (Shao et al. 2024, arXiv 2402.03300) without the divisions by length and spread that bias it (Liu et al.
//! 2025, arXiv 2503.20783). Each answer is learned from once, by the weights that drew it, so the ratio of probabilities
//! that other stacks clip is one, and is not computed.
//!
//! Absent: a penalty for leaving the first weights, several updates from one set of answers, other temperatures.

use infer::{Completion, FinishReason, Request, SamplingParams, generate_all};
use model::ModelConfig;
use numerics::Philox;
use thiserror::Error;
use train::recipe::Rl;
use train::{Batches, Recipe, StepBatches, Trainer};

use crate::answers::{Weighted, engine, of_step, pack};

/// A question whose answer can be checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The question, up to where the answer begins.
    pub prompt_ids: Vec<u32>,
    /// An answer that is right.
    pub reference: String,
}

/// Why there is nothing to learn from.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum RolloutsError {
    /// No question is left.
    #[error(
        "none of {problems} questions leaves room for an answer of rl.max_tokens = {max_tokens} in {seq_len} tokens \
         (train.seq_len, or the positions of the model if they are fewer); raise train.seq_len or lower rl.max_tokens"
    )]
    NoRoom {
        /// How many there were.
        problems: usize,
        /// Tokens of an answer.
        max_tokens: usize,
        /// Tokens of a row.
        seq_len: usize,
    },
    /// There were none.
    #[error(
        "the data has no dialogue to ask about{}", match source_names.as_str() {
            "" => String::new(),
            names => format!(" from the sources {names} (rl.sources)"),
        }
    )]
    NoProblems {
        /// The sources that were asked for.
        source_names: String,
    },
}

/// The reward of an answer, given without the token that ends it.
pub type Reward<'a> = dyn Fn(&Problem, &[u32]) -> f64 + 'a;

/// Batches of a model's own answers.
pub struct Rollouts<'a> {
    problems: Vec<Problem>,
    rl: Rl,
    seed: u64,
    seq_len: usize,
    batch_tokens: usize,
    stop_id: u32,
    reward: &'a Reward<'a>,
    commitment: String,
}

impl<'a> Rollouts<'a> {
    /// Of those problems that leave room for an answer of a model of this configuration. Answers end with `stop_id`.
    ///
    /// # Errors
    /// When there are none.
    pub fn new(
        mut problems: Vec<Problem>,
        recipe: &Recipe,
        config: &ModelConfig,
        stop_id: u32,
        reward: &'a Reward<'a>,
    ) -> Result<Rollouts<'a>, RolloutsError> {
        let rl = recipe.rl.clone().unwrap_or_default();
        let found = problems.len();
        let seq_len = recipe.train.seq_len.min(config.max_position_embeddings);
        if found == 0 {
            let source_names = rl.sources.join(", ");
            return Err(RolloutsError::NoProblems { source_names });
        }
        let fits = |problem: &Problem| {
            !problem.prompt_ids.is_empty() && problem.prompt_ids.len() + rl.max_tokens <= seq_len
        };
        problems.retain(fits);
        if problems.is_empty() {
            return Err(RolloutsError::NoRoom {
                problems: found,
                max_tokens: rl.max_tokens,
                seq_len,
            });
        }
        Ok(Rollouts {
            commitment: commitment(&problems, recipe.seed, &rl, stop_id),
            problems,
            rl,
            seed: recipe.seed,
            seq_len,
            batch_tokens: recipe.train.seq_len * recipe.train.rows_per_micro_step,
            stop_id,
            reward,
        })
    }

    /// How many questions there are.
    pub fn num_problems(&self) -> usize {
        self.problems.len()
    }

    /// Answers to the questions of a step, `group_size` to each, one group after another.
    fn draw(&self, trainer: &Trainer, problems: &[&Problem]) -> Vec<Completion> {
        let seeds = Philox::new(self.seed, "rl.answers");
        let step = trainer.step;
        let requests = problems.iter().enumerate().flat_map(|(question, problem)| {
            (0..self.rl.group_size).map(move |idx| {
                let counter = [
                    step as u32,
                    (step >> 32) as u32,
                    question as u32,
                    idx as u32,
                ];
                let words = seeds.block(counter);
                Request {
                    prompt_ids: problem.prompt_ids.clone(),
                    max_tokens: self.rl.max_tokens,
                    sampling: SamplingParams {
                        temperature: 1.0,
                        seed: u64::from(words[0]) << 32 | u64::from(words[1]),
                        ..SamplingParams::greedy()
                    },
                    stop_ids: vec![self.stop_id],
                    budget: None,
                }
            })
        });
        let requests: Vec<Request> = requests.collect();
        let params = trainer.model.params.host();
        let mut engine = engine(trainer, params, num_seqs(&self.rl), self.seq_len);
        generate_all(&mut engine, requests).expect("questions that leave room for an answer")
    }
}

/// Sequences that are drawn at once, at most.
const MAX_NUM_SEQS: usize = 64;

/// Sequences that are drawn at once: each has keys and values for a row.
pub fn num_seqs(rl: &Rl) -> usize {
    (rl.prompts_per_step * rl.group_size).min(MAX_NUM_SEQS)
}

/// SHA-256 of everything that determines the answers of a step besides its weights; docs/formats/data.md has the form.
fn commitment(problems: &[Problem], seed: u64, rl: &Rl, stop_id: u32) -> String {
    let Rl {
        prompts_per_step,
        group_size,
        max_tokens,
        ..
    } = rl;
    let lines =
        format!("{ORDER}\n{seed}\n{prompts_per_step}\n{group_size}\n{max_tokens}\n{stop_id}\n");
    let mut bytes = lines.into_bytes();
    for problem in problems {
        bytes.extend((problem.prompt_ids.len() as u64).to_le_bytes());
        bytes.extend(problem.prompt_ids.iter().flat_map(|id| id.to_le_bytes()));
        bytes.extend((problem.reference.len() as u64).to_le_bytes());
        bytes.extend(problem.reference.as_bytes());
    }
    formats::hash::sha256_hex(&bytes)
}

const ORDER: &str = "dokja-rl-order-1: questions shuffled by (seed, epoch); answers drawn at temperature 1 by the \
                     weights of the step, seeds by (seed, step, question, answer); advantages less the group's mean";

impl Batches for Rollouts<'_> {
    fn batches(&self, trainer: &Trainer) -> StepBatches {
        let (count, per_step) = (self.problems.len(), self.rl.prompts_per_step);
        let asked = of_step(self.seed, "rl.questions", count, per_step, trainer.step);
        let problems: Vec<&Problem> = asked.into_iter().map(|idx| &self.problems[idx]).collect();
        let completions = self.draw(trainer, &problems);
        let (mut answers, mut total) = (Vec::new(), 0.0);
        let groups = completions.chunks(self.rl.group_size);
        for (problem, group) in problems.iter().zip(groups) {
            let rewards: Vec<f64> = group
                .iter()
                .map(|c| (self.reward)(problem, &c.ids))
                .collect();
            let mean = rewards.iter().sum::<f64>() / rewards.len() as f64;
            total += mean;
            for (completion, reward) in group.iter().zip(rewards) {
                let mut ids = completion.ids.clone();
                if completion.finish_reason == FinishReason::Stop {
                    ids.push(self.stop_id);
                }
                answers.push(Weighted {
                    prompt_ids: &problem.prompt_ids,
                    ids,
                    weight: (reward - mean) as f32,
                });
            }
        }
        // Nothing was drawn where logits were no numbers.
        answers.retain(|answer| !answer.ids.is_empty());
        StepBatches {
            batches: pack(&answers, self.batch_tokens),
            reward: Some(total / problems.len() as f64),
        }
    }

    fn commitment(&self) -> &str {
        &self.commitment
    }

    fn order(&self) -> &'static str {
        ORDER
    }
}
