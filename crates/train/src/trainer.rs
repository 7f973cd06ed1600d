//! One step of training: micro-steps add up a gradient, which is clipped and followed.
//!
//! loss = next-token cross-entropy + mtp_weight * that of the prediction layer + balance loss
//! g <- g * min(1, max_grad_norm / |g|)
//! b_e <- b_e + router_bias_rate * sign(mean load - load_e), for each expert e of each layer
//!
//! Source of the bias update: Wang et al. 2024, arXiv 2408.15664; of the losses: `model::transformer`.

use model::transformer::{Batch, Losses, Objective, TrainState};
use model::{ModelConfig, Transformer};
use tensor::Device;
use tensor::ops::elementwise::sum_squares;

use crate::optim::Optimizer;
use crate::recipe::Recipe;
use crate::schedule;

/// A model in training.
pub struct Trainer {
    /// Where it computes.
    pub device: Device,
    /// The model.
    pub model: Transformer,
    /// Steps done.
    pub step: u64,
    /// Tokens read.
    pub tokens: u64,
    pub(crate) optimizer: Optimizer,
    recipe: Recipe,
    state: TrainState,
    batch_tokens: usize, // of a micro-step
    pad_id: u32,
}

/// What is known after a step.
#[derive(Clone, Debug, PartialEq)]
pub struct StepResult {
    /// Parts of the loss.
    pub losses: Losses,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Learning rate.
    pub lr: f64,
    /// Rows per expert (E) of each sparse layer.
    pub tokens_per_expert: Vec<Vec<u32>>,
}

impl StepResult {
    /// False when the loss or the gradient is no longer a number; the weights were then left alone.
    pub fn is_finite(&self) -> bool {
        self.losses.next_token.is_finite() && self.grad_norm.is_finite()
    }
}

impl Trainer {
    /// A model with the given weights, at step 0.
    pub fn new(device: Device, config: ModelConfig, weights: &[f32], recipe: &Recipe) -> Trainer {
        let pad_id = config.pad_token_id.unwrap_or(0);
        let model = Transformer::new(&device, config, weights, true);
        let batch_tokens = recipe.train.seq_len * recipe.train.rows_per_micro_step;
        Trainer {
            optimizer: Optimizer::new(&device, &model.layout, recipe.optim.clone()),
            state: model.train_state(&device, batch_tokens),
            recipe: recipe.clone(),
            step: 0,
            tokens: 0,
            model,
            device,
            batch_tokens,
            pad_id,
        }
    }

    /// Micro-steps of a step.
    pub fn micro_steps(&self) -> u64 {
        (self.recipe.train.rows_per_step / self.recipe.train.rows_per_micro_step) as u64
    }

    /// One update from the batches of its micro-steps.
    ///
    /// # Panics
    /// When a batch has more tokens than a micro-step.
    pub fn step(&mut self, mut batches: Vec<Batch>) -> StepResult {
        let tokens: usize = batches.iter().map(|batch| batch.ids.len()).sum();
        let loss = &self.recipe.loss;
        let objective = Objective {
            mtp_loss_weight: loss.mtp_weight,
            balance_alpha: loss.balance_alpha,
            num_targets: batches.iter().map(Batch::num_targets).sum(),
            num_mtp_targets: batches.iter().map(Batch::num_mtp_targets).sum(),
            micro_steps: batches.len(),
        };
        self.state.grads.clear();
        let mut losses = Losses::default();
        let mut tokens_per_expert: Vec<Vec<u32>> = Vec::new();
        for batch in &mut batches {
            batch.pad_to(self.batch_tokens, self.pad_id);
            let state = &mut self.state;
            let part = self
                .model
                .forward_backward(&self.device, state, batch, &objective);
            losses.next_token += part.next_token;
            losses.mtp += part.mtp;
            losses.balance += part.balance;
            add_loads(&mut tokens_per_expert, self.model.tokens_per_expert(state));
        }
        let grad_norm = sum_squares(&self.device, self.state.grads.view()).sqrt();
        let lr = self.recipe.optim.lr
            * schedule::factor(&self.recipe.schedule, self.step, self.recipe.train.steps);
        let result = StepResult {
            losses,
            grad_norm,
            lr,
            tokens_per_expert,
        };
        self.step += 1;
        self.tokens += tokens as u64;
        if result.is_finite() {
            self.update(&result);
        }
        result
    }

    fn update(&mut self, result: &StepResult) {
        let max_norm = self.recipe.optim.max_grad_norm;
        let grad_scale = (max_norm / result.grad_norm).min(1.0) as f32;
        let model = &mut self.model;
        self.optimizer.step(
            &self.device,
            &model.layout,
            &mut model.params,
            &self.state.grads,
            result.lr,
            grad_scale,
            self.step,
        );
        let rate = self.recipe.loss.router_bias_rate;
        let biases = model.layout.router_biases();
        for (span, loads) in biases.into_iter().zip(&result.tokens_per_expert) {
            let total: u64 = loads.iter().map(|&load| u64::from(load)).sum();
            let params = &mut model.params.host_mut()[span.range()];
            for (bias, &load) in params.iter_mut().zip(loads) {
                // Compared as load * E with the total, in whole numbers: exact.
                *bias += match total.cmp(&(u64::from(load) * loads.len() as u64)) {
                    std::cmp::Ordering::Greater => rate,
                    std::cmp::Ordering::Equal => 0.0,
                    std::cmp::Ordering::Less => -rate,
                };
            }
        }
        model.refresh(&self.device);
    }

    /// Summed cross-entropy in nats of the next tokens of batches that are not learnt from.
    pub fn evaluate(&mut self, batches: &[Batch]) -> f64 {
        let mut nats = 0.0;
        for batch in batches {
            let mut batch = batch.clone();
            batch.pad_to(self.batch_tokens, self.pad_id);
            nats += self.model.evaluate(&self.device, &mut self.state, &batch);
        }
        nats
    }
}

fn add_loads(sum: &mut Vec<Vec<u32>>, loads: Vec<Vec<u32>>) {
    if sum.is_empty() {
        *sum = loads;
        return;
    }
    for (sum, loads) in sum.iter_mut().flatten().zip(loads.into_iter().flatten()) {
        *sum += loads;
    }
}
