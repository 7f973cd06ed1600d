//! Small random models that learn from answers: from their own, and from which of two is preferred.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod preference;

use dokja_posttrain::{Problem, Rollouts, RolloutsError};
use formats::run_dir::Stage;
use infer::{Engine, EngineConfig, ModelRunner, Request, SamplingParams, generate};
use kernels_cpu::Isa;
use model::transformer::Batch;
use model::{Layout, Transformer};
use tensor::Device;
use tensor::ops::cross_entropy::IGNORE;
use testkit::tiny_model::{params, tiny};
use train::{Batches, Recipe, Trainer};

const STOP: u32 = 2;

fn recipe() -> Recipe {
    let text = "seed = 5\n[rl]\nprompts_per_step = 3\ngroup_size = 4\nmax_tokens = 6\n[train]\nsteps = 40\nseq_len = 16\n\
        rows_per_step = 2\nrows_per_micro_step = 2\ncompute = \"f32\"\n[optim]\nmatrices = \"adamw\"\nlr = 1e-2\n\
        [schedule]\nwarmup_steps = 0\n";
    Recipe::from_toml(text, &[]).unwrap().of_stage(Stage::Rl)
}

fn trainer(threads: usize, recipe: &Recipe) -> Trainer {
    let config = tiny();
    let weights = params(&config, &Layout::new(&config));
    let device = Device::cpu(Isa::detect(), threads);
    Trainer::new(device, config, &weights, recipe)
}

fn problems() -> Vec<Problem> {
    let problem = |ids: &[u32]| Problem {
        prompt_ids: ids.to_vec(),
        reference: String::new(),
    };
    vec![
        problem(&[3, 4]),
        problem(&[5]),
        problem(&[9, 8, 7, 6]),
        problem(&[11; 9]),
    ]
}

/// How much of an answer is even ids.
fn even(_: &Problem, ids: &[u32]) -> f64 {
    let even = ids.iter().filter(|id| **id % 2 == 0).count();
    even as f64 / ids.len().max(1) as f64
}

#[test]
fn answers_are_learned_from_and_questions_are_not() {
    let (recipe, trainer) = (recipe(), trainer(2, &recipe()));
    let rollouts = Rollouts::new(problems(), &recipe, &tiny(), STOP, &even).unwrap();
    let step = rollouts.batches(&trainer);
    assert!((0.0..=1.0).contains(&step.reward.unwrap()));
    let mut groups: Vec<(usize, f64)> = Vec::new();
    for batch in &step.batches {
        assert!(batch.ids.len() <= 32, "a micro-step has two rows of 16");
        for bounds in batch.cu_seqlens.windows(2) {
            let rows = bounds[0] as usize..bounds[1] as usize;
            let (ids, targets) = (&batch.ids[rows.clone()], &batch.targets[rows.clone()]);
            let prompt = problems()
                .into_iter()
                .find(|p| ids.starts_with(&p.prompt_ids))
                .unwrap();
            let asked = prompt.prompt_ids.len() - 1;
            assert!(targets[..asked].iter().all(|t| *t == IGNORE));
            assert!(targets[asked..].iter().all(|t| *t != IGNORE));
            assert_eq!(ids[asked + 1..], targets[asked..targets.len() - 1]);
            assert!(targets.len() - asked <= 6);
            let weights = &batch.weights[rows];
            assert!(weights.iter().all(|w| w == &weights[0]));
            groups.push((asked, f64::from(weights[0])));
        }
    }
    assert_eq!(groups.len(), 12);
    for group in groups.chunks(4) {
        assert!(group.iter().all(|(asked, _)| *asked == group[0].0));
        assert!(
            group
                .iter()
                .map(|(_, advantage)| advantage)
                .sum::<f64>()
                .abs()
                < 1e-6
        );
    }
}

#[test]
fn what_is_rewarded_becomes_likelier() {
    let (recipe, mut trainer) = (recipe(), trainer(2, &recipe()));
    let rollouts = Rollouts::new(problems(), &recipe, &tiny(), STOP, &even).unwrap();
    let rewards: Vec<f64> = (0..40)
        .map(|_| {
            let step = rollouts.batches(&trainer);
            assert!(trainer.step(step.batches).is_finite());
            step.reward.unwrap()
        })
        .collect();
    let mean = |rewards: &[f64]| rewards.iter().sum::<f64>() / rewards.len() as f64;
    let (first, last) = (mean(&rewards[..8]), mean(&rewards[32..]));
    assert!(last > first + 0.25, "{first} to {last}: {rewards:?}");
}

#[test]
fn a_step_is_the_same_on_any_number_of_threads_and_after_an_interruption() {
    let recipe = recipe();
    let weights = |threads: &[usize]| {
        let mut trainer = trainer(threads[0], &recipe);
        for &threads in threads {
            // Another process: what it knows is the weights and the step.
            trainer.device = Device::cpu(Isa::detect(), threads);
            let rollouts = Rollouts::new(problems(), &recipe, &tiny(), STOP, &even).unwrap();
            let step = rollouts.batches(&trainer);
            trainer.step(step.batches);
        }
        trainer.model.params.host().to_vec()
    };
    assert!(weights(&[1, 1, 1]) == weights(&[3, 2, 3]), "the same bits");
}

#[test]
fn the_probabilities_of_what_is_drawn_are_those_that_are_learned_from() {
    let mut trainer = trainer(2, &recipe());
    let config = trainer.model.config.clone();
    let device = trainer.device.again();
    let weights = trainer.model.params.host();
    let model = Transformer::new(&device, config, weights, false);
    let runner = Box::new(ModelRunner::new(device, model));
    let mut engine = Engine::new(runner, EngineConfig::default()).unwrap();
    let prompt_ids = vec![9, 8, 7, 6];
    let request = Request {
        prompt_ids: prompt_ids.clone(),
        max_tokens: 12,
        sampling: SamplingParams {
            temperature: 1.0,
            seed: 11,
            logprobs: Some(0),
            ..SamplingParams::greedy()
        },
        stop_ids: Vec::new(),
        budget: None,
    };
    let drawn = generate(&mut engine, request).unwrap();
    for (idx, logprobs) in drawn.logprobs.iter().enumerate() {
        // Everything up to this token is read, and it alone is to be predicted.
        let read = [&prompt_ids[..], &drawn.ids[..=idx]].concat();
        let mut batch = Batch::from_sequences(&[read]);
        let last = batch.targets.len() - 2;
        batch.targets[..last].fill(IGNORE);
        let nats = trainer.evaluate(&[batch]);
        // The logits have the same bits; the logarithm of their sum is taken in f64 here and in f32 there.
        let difference = (f64::from(-logprobs.logprob) - nats).abs();
        assert!(
            difference < 1e-6 * nats.max(1.0),
            "token {idx}: {difference}"
        );
    }
}

#[test]
fn the_promise_holds_everything_that_answers_follow_from_but_the_weights() {
    let recipe = recipe();
    let commitment = |problems, recipe: &Recipe| {
        let rollouts = Rollouts::new(problems, recipe, &tiny(), STOP, &even).unwrap();
        rollouts.commitment().to_owned()
    };
    let own = commitment(problems(), &recipe);
    assert_eq!(own, commitment(problems(), &recipe));
    let mut other = problems();
    other[1].reference = "another".into();
    assert_ne!(own, commitment(other, &recipe));
    let mut other = recipe.clone();
    other.seed = 6;
    assert_ne!(own, commitment(problems(), &other));
    let mut other = recipe;
    other.rl.as_mut().unwrap().group_size = 5;
    assert_ne!(own, commitment(problems(), &other));
}

#[test]
fn without_a_question_that_leaves_room_there_is_nothing_to_learn() {
    let new =
        |problems, recipe: &Recipe| Rollouts::new(problems, recipe, &tiny(), STOP, &even).err();
    let none = new(Vec::new(), &recipe()).unwrap();
    assert!(matches!(none, RolloutsError::NoProblems { .. }), "{none}");
    let mut narrow = recipe();
    narrow.rl.as_mut().unwrap().max_tokens = 16;
    let none = new(problems(), &narrow).unwrap();
    assert!(
        none.to_string().contains("none of 4 questions leaves room"),
        "{none}"
    );
    let mut config = tiny();
    config.max_position_embeddings = 10;
    let few = Rollouts::new(problems(), &recipe(), &config, STOP, &even).unwrap();
    assert_eq!(few.num_problems(), 3);
    narrow.rl.as_mut().unwrap().max_tokens = 8;
    let left = Rollouts::new(problems(), &narrow, &tiny(), STOP, &even).unwrap();
    assert_eq!(left.num_problems(), 3);
}
