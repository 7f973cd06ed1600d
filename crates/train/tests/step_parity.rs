//! Steps of the trainer against steps of `reference`: gradients of micro-steps, clipping, Muon, AdamW,
//! router biases and schedule at once.

use dokja_train::recipe::{Loss, Optim, Recipe, Schedule, Train};
use dokja_train::{Trainer, schedule};
use kernels_cpu::Isa;
use model::config::Compute;
use model::{Layout, ModelConfig};
use reference::loss::{Objective, Sequence};
use reference::optim::{self, AdamW, Muon, Settings, State};
use reference::{Config, Tensors, model::forward_backward};
use tensor::Device;
use testkit::compare::{Tolerance, close_f32};
use testkit::tiny_model::{
    batch, conversations, params, reference_config, reference_tensors, tiny,
};

/// Tokens of a micro-step, in sequences of odd lengths.
const LENGTHS: [usize; 5] = [13, 1, 70, 2, 10];
const STEPS: u64 = 4;

fn recipe() -> Recipe {
    Recipe {
        train: Train {
            steps: STEPS,
            seq_len: 48,
            rows_per_step: 4,
            rows_per_micro_step: 2,
            compute: Compute::F32,
        },
        loss: Loss {
            mtp_weight: 0.3,
            balance_alpha: 0.1,
            router_bias_rate: 0.01,
        },
        optim: Optim {
            lr: 1e-2,
            adamw_lr_ratio: 0.5,
            // AdamW's first step has the sign of the gradient; this keeps that of rounding out of it.
            eps: 1e-4,
            max_grad_norm: 0.2,
            ..Optim::default()
        },
        schedule: Schedule {
            warmup_steps: 2,
            decay_frac: 0.5,
            final_lr_frac: 0.1,
        },
        ..Recipe::default()
    }
}

/// The reference's side.
struct Reference {
    cfg: Config,
    weights: Tensors,
    state: State,
}

impl Reference {
    fn new(config: &ModelConfig, layout: &Layout, params: &[f32]) -> Reference {
        let zeros = reference_tensors(layout, &vec![0.0; params.len()]);
        Reference {
            cfg: reference_config(config),
            weights: reference_tensors(layout, params),
            state: State {
                m: zeros.clone(),
                v: zeros,
            },
        }
    }

    /// One step, counted from 1. -> the norm of the gradient.
    fn step(&mut self, recipe: &Recipe, sequences: &[Sequence], step: u64) -> f64 {
        let (o, of) = (&recipe.optim, |x: f32| f64::from(x));
        let objective = Objective {
            mtp_weight: of(recipe.loss.mtp_weight),
            balance_alpha: of(recipe.loss.balance_alpha),
        };
        let (output, mut grads) = forward_backward(&self.cfg, &self.weights, sequences, &objective);
        let load = |layer: usize| {
            let mut load = vec![0; self.cfg.num_experts];
            for sequence in &output.sequences {
                for &id in &sequence.router_ids[&layer] {
                    load[id as usize] += 1;
                }
            }
            (
                format!("model.layers.{layer}.mlp.e_score_correction_bias"),
                load,
            )
        };
        let layers = output.sequences[0].router_ids.keys();
        let loads: Vec<_> = layers.map(|&layer| load(layer)).collect();
        let shape = optim::Schedule {
            lr: o.lr,
            warmup_steps: recipe.schedule.warmup_steps as usize,
            decay_steps: (recipe.schedule.decay_frac * recipe.train.steps as f64) as usize,
            steps: recipe.train.steps as usize,
            final_lr_frac: recipe.schedule.final_lr_frac,
        };
        let lr = shape.lr_at(step as usize - 1);
        let settings = Settings {
            max_grad_norm: o.max_grad_norm,
            muon: Muon {
                lr,
                momentum: of(o.muon_momentum),
                nesterov: true,
                weight_decay: of(o.weight_decay),
                ns_steps: o.muon_ns_steps,
            },
            adamw: AdamW {
                lr: lr * o.adamw_lr_ratio,
                beta1: of(o.beta1),
                beta2: of(o.beta2),
                eps: of(o.eps),
                weight_decay: of(o.weight_decay),
            },
            expert_bias_rate: of(recipe.loss.router_bias_rate),
        };
        let (weights, state) = (&mut self.weights, &mut self.state);
        optim::step(weights, state, &mut grads, &loads, &settings, step as i32)
    }
}

/// A weight near one is rounded to 6e-8, by which a change of a thousandth is off by a relative 6e-5; the
/// errors of the gradient, some 1e-6, grow to as much in Newton-Schulz, which multiplies what belongs to
/// small singular values by up to 485. Smaller changes count as a thousandth.
const CHANGE: Tolerance = Tolerance::NmseOfTerms {
    bound: 1e-8,
    size: 1e-3,
};

#[test]
fn every_step_moves_every_weight_as_the_reference_does() {
    let (config, recipe) = (tiny(), recipe());
    let layout = Layout::new(&config);
    let start = params(&config, &layout);
    let both = conversations(&config, &[LENGTHS, LENGTHS].concat());
    for isa in Isa::available() {
        let mut trainer = Trainer::new(Device::cpu(isa, 2), config.clone(), &start, &recipe);
        let mut reference = Reference::new(&config, &layout, &start);
        for step in 1..=STEPS {
            let before = trainer.model.params.host().to_vec();
            let before64 = reference.weights.clone();
            let (first, second) = both.split_at(LENGTHS.len());
            let result = trainer.step(vec![batch(first), batch(second)]);
            let norm = reference.step(&recipe, &both, step);
            let what = format!("step {step} on {}", isa.name());
            assert!(norm > recipe.optim.max_grad_norm, "the gradient is clipped");
            assert!(
                (result.grad_norm - norm).abs() < 1e-5 * norm,
                "{what}: {norm}"
            );
            let after = trainer.model.params.host();
            for tensor in &layout.tensors {
                let span = tensor.span.range();
                let moved = after[span.clone()].iter().zip(&before[span]);
                let moved: Vec<f32> = moved.map(|(after, before)| after - before).collect();
                let expected = reference.weights[&tensor.name].data.iter();
                let expected = expected.zip(&before64[&tensor.name].data);
                let expected: Vec<f64> = expected.map(|(after, before)| after - before).collect();
                if let Err(mismatch) = close_f32(&moved, &expected, CHANGE) {
                    panic!("{what}: {} moved otherwise: {mismatch}", tensor.name);
                }
            }
        }
    }
}

#[test]
fn the_learning_rate_follows_the_curve_of_the_reference() {
    for (warmup_steps, decay_frac, final_lr_frac) in
        [(10, 0.2, 0.1), (0, 1.0, 0.0), (7, 0.0, 0.5), (90, 0.5, 0.0)]
    {
        let ours = Schedule {
            warmup_steps,
            decay_frac,
            final_lr_frac,
        };
        let theirs = optim::Schedule {
            lr: 1.0,
            warmup_steps: warmup_steps as usize,
            decay_steps: (decay_frac * 100.0) as usize,
            steps: 100,
            final_lr_frac,
        };
        for step in 0..100 {
            let factor = schedule::factor(&ours, step, 100);
            let expected = theirs.lr_at(step as usize);
            assert!((factor - expected).abs() < 1e-12, "{ours:?}, step {step}");
        }
    }
}
