//! A small random model that learns which answers are preferred.

use crate::{STOP, trainer};
use dokja_posttrain::{Choice, Preferences};
use formats::run_dir::Stage;
use infer::{Engine, EngineConfig, ModelRunner, ScoreWindow};
use kernels_cpu::Isa;
use model::Transformer;
use model::transformer::{Batch, Objective};
use numerics::Philox;
use tensor::Device;
use testkit::tiny_model::tiny;
use train::{Batches, Recipe, Trainer};

const BETA: f64 = 0.5;

fn recipe() -> Recipe {
    let text = "seed = 5\n[prefer]\npairs_per_step = 3\nbeta = 0.5\n[train]\nsteps = 40\nseq_len = 16\n\
        rows_per_step = 2\nrows_per_micro_step = 2\ncompute = \"f32\"\n[optim]\nmatrices = \"adamw\"\nlr = 1e-3\n\
        [schedule]\nwarmup_steps = 0\n";
    Recipe::from_toml(text, &[])
        .unwrap()
        .of_stage(Stage::Prefer)
}

fn choices() -> Vec<Choice> {
    let choice = |prompt_ids: &[u32], chosen: &[u32], rejected: &[u32]| Choice {
        prompt_ids: prompt_ids.to_vec(),
        chosen: [chosen, &[STOP]].concat(),
        rejected: [rejected, &[STOP]].concat(),
    };
    vec![
        choice(&[3, 4], &[10, 12], &[11]),
        choice(&[5], &[14, 16, 18], &[15, 17, 19, 21]),
        choice(&[9, 8, 7], &[20], &[23, 25]),
    ]
}

fn preferences(reference: &[f32]) -> Preferences {
    Preferences::new(choices(), &recipe(), &tiny(), reference.to_vec()).unwrap()
}

#[test]
fn chosen_answers_become_likelier_than_rejected_ones() {
    let mut trainer = trainer(2, &recipe());
    let preferences = preferences(trainer.model.params.host());
    let first = preferences.batches(&trainer);
    // Nothing has been learned: to the bit as likely as at the start, so no pair is told apart.
    assert_eq!(first.reward, Some(0.0));
    let weights: Vec<f32> = first
        .batches
        .iter()
        .flat_map(|b| b.weights.clone())
        .collect();
    // 19 tokens of answers in three pairs: half of beta for each pair, times what the trainer divides by.
    let half = (19.0 / 3.0 * BETA / 2.0) as f32;
    assert!(
        weights.iter().all(|w| *w == half || *w == -half),
        "{weights:?}"
    );
    let mut last = Some(0.0);
    for _ in 0..20 {
        let step = preferences.batches(&trainer);
        assert!(trainer.step(step.batches).is_finite());
        last = step.reward;
    }
    assert_eq!(last, Some(1.0));
}

#[test]
fn a_step_is_the_same_on_any_number_of_threads_and_after_an_interruption() {
    let weights = |threads: &[usize]| {
        let mut trainer = trainer(threads[0], &recipe());
        let reference = trainer.model.params.host().to_vec();
        for &threads in threads {
            trainer.device = Device::cpu(Isa::detect(), threads);
            let step = preferences(&reference).batches(&trainer);
            trainer.step(step.batches);
        }
        trainer.model.params.host().to_vec()
    };
    assert!(weights(&[1, 1, 1]) == weights(&[3, 2, 3]), "the same bits");
}

/// The loss as it is defined, from the likelihoods of all answers.
fn loss(params: &[f32], reference: &[f32]) -> f64 {
    let likelihoods = |params: &[f32]| -> Vec<f64> {
        let device = Device::cpu(Isa::detect(), 2);
        let model = Transformer::new(&device, tiny(), params, false);
        let runner = Box::new(ModelRunner::new(device, model));
        let mut engine = Engine::new(runner, EngineConfig::default()).unwrap();
        let window = ScoreWindow {
            max_context: 16,
            stride: 16,
        };
        let mut of = |prompt: &[u32], answer: &[u32]| -> f64 {
            let scores = engine.score(&[prompt, answer].concat(), window).unwrap();
            scores[prompt.len() - 1..].iter().sum()
        };
        let all = choices().into_iter();
        all.map(|c| of(&c.prompt_ids, &c.chosen) - of(&c.prompt_ids, &c.rejected))
            .collect()
    };
    let (now, before) = (likelihoods(params), likelihoods(reference));
    let losses = now
        .iter()
        .zip(&before)
        .map(|(now, before)| (1.0 + (-BETA * (now - before)).exp()).ln());
    losses.sum::<f64>() / now.len() as f64
}

#[test]
fn the_gradient_is_that_of_the_loss() {
    let mut trainer: Trainer = trainer(2, &recipe());
    let reference = trainer.model.params.host().to_vec();
    // Some way from the start, so that pairs differ in what is left to learn.
    let fixed = preferences(&reference);
    for _ in 0..3 {
        let step = fixed.batches(&trainer);
        trainer.step(step.batches);
    }
    let params = trainer.model.params.host().to_vec();
    let batches = fixed.batches(&trainer).batches;
    let device = Device::cpu(Isa::detect(), 2);
    let mut model = Transformer::new(&device, tiny(), &params, true);
    let mut state = model.train_state(&device, 32);
    state.grads.clear();
    for mut batch in batches.clone() {
        batch.pad_to(32, 0);
        let objective = Objective {
            mtp_loss_weight: 0.0,
            balance_alpha: 0.0,
            num_targets: batches.iter().map(Batch::num_targets).sum(),
            num_mtp_targets: 0,
            micro_steps: batches.len(),
        };
        model.forward_backward(&device, &mut state, &batch, &objective);
    }
    let grads = state.grads.host();
    for seed in 0..4 {
        let direction = Philox::new(seed, "direction");
        let (mut along, mut ahead, mut behind) = (0.0, params.clone(), params.clone());
        let h = 1e-3f32;
        // Router biases choose experts and have no gradient; moved, they would choose others.
        let biases = model.layout.router_biases();
        for (idx, grad) in grads.iter().enumerate() {
            if biases.iter().any(|span| span.range().contains(&idx)) {
                continue;
            }
            let v = direction.normal(idx as u64) * 0.1;
            along += f64::from(v) * f64::from(*grad);
            ahead[idx] += h * v;
            behind[idx] -= h * v;
        }
        let difference =
            (loss(&ahead, &reference) - loss(&behind, &reference)) / (2.0 * f64::from(h));
        assert!(
            (difference - along).abs() < 1e-3 + 0.02 * along.abs(),
            "seed {seed}: {along} by the gradient, {difference} by differences"
        );
    }
}

#[test]
fn pairs_that_do_not_fit_are_left_out_and_none_is_told() {
    let reference = trainer(1, &recipe()).model.params.host().to_vec();
    let new = |choices, config| Preferences::new(choices, &recipe(), &config, reference.clone());
    assert!(new(choices(), tiny()).is_ok());
    let told = new(Vec::new(), tiny()).err().unwrap().to_string();
    assert!(
        told.contains("none of 0 dialogues with a rejected answer"),
        "{told}"
    );
    let mut config = tiny();
    config.max_position_embeddings = 4;
    let told = new(choices(), config).err().unwrap().to_string();
    assert!(
        told.contains("none of 3") && told.contains("into 4 tokens"),
        "{told}"
    );
}
