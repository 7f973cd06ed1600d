//! The engine over the real model: its answers and scores against training's forward pass.

use dokja_infer::*;
use model::config::ModelConfig;
use model::init::initial_weights;
use model::transformer::{Batch, Transformer};
use model::weights::Layout;
use numerics::Rng;
use tensor::Device;
use tensor::ops::cross_entropy;

fn config() -> ModelConfig {
    config_of(61, 0)
}

/// With a vocabulary of another size, and a window of the prediction layer unless it is 0.
fn config_of(vocab_size: usize, mtp_window: usize) -> ModelConfig {
    let config = ModelConfig::from_json(
        r#"{"model_type": "exaone_moe", "vocab_size": 61, "hidden_size": 24, "compute": "bf16",
        "intermediate_size": 20, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 6, "sliding_window": 70, "num_experts": 5,
        "num_experts_per_tok": 2, "moe_intermediate_size": 7, "num_shared_experts": 1,
        "max_position_embeddings": 300, "num_nextn_predict_layers": 1, "initializer_range": 0.3}"#,
    )
    .expect("a valid configuration");
    ModelConfig {
        vocab_size,
        mtp_sliding_window: (mtp_window > 0).then_some(mtp_window),
        ..config
    }
}

fn device(threads: usize) -> Device {
    Device::cpu(kernels_cpu::Isa::detect(), threads)
}

fn transformer(device: &Device) -> Transformer {
    let config = config();
    let params = initial_weights(&config, &Layout::new(&config), 6);
    Transformer::new(device, config, &params, true)
}

fn engine(config: EngineConfig, threads: usize) -> Engine {
    let device = device(threads);
    let model = transformer(&device);
    Engine::new(Box::new(ModelRunner::new(device, model)), config).expect("limits above zero")
}

fn ids(n: usize, name: &str) -> Vec<u32> {
    let mut rng = Rng::new(8, name);
    (0..n).map(|_| rng.below(61) as u32).collect()
}

/// Training's loss at every row that has a next token.
fn training_losses(ids: &[u32]) -> Vec<f32> {
    let device = device(1);
    let mut model = transformer(&device);
    let batch = Batch::from_sequences(&[ids.to_vec()]);
    let mut state = model.train_state(&device, ids.len());
    let (logits, ..) = model.logits(&device, &mut state, &batch);
    let mut losses = tensor::Tensor::zeros(&device, &[ids.len()]);
    let mut targets = tensor::Tensor::zeros(&device, &[ids.len()]);
    targets.write(&batch.targets);
    cross_entropy::forward(&device, losses.view_mut(), logits.view(), targets.view());
    losses.host()[..ids.len() - 1].to_vec()
}

#[test]
fn scores_are_the_losses_of_training_in_every_window() {
    let text = ids(290, "text");
    let negated = |losses: Vec<f32>| losses.iter().map(|&l| -f64::from(l)).collect::<Vec<_>>();
    for max_num_batched_tokens in [7, 64, 512] {
        let mut engine = engine(
            EngineConfig {
                max_num_batched_tokens,
                ..EngineConfig::default()
            },
            2,
        );
        let mut score = |max_context, stride| {
            let window = ScoreWindow {
                max_context,
                stride,
            };
            engine.score(&text, window).expect("a window that can be")
        };
        // The whole text fits.
        assert!(score(300, 300) == negated(training_losses(&text)));
        assert!(score(289, 1) == score(300, 300));
        // Windows side by side: each token sees what its window holds before it.
        let apart: Vec<f64> = (0..289)
            .step_by(100)
            .flat_map(|start| negated(training_losses(&text[start..290.min(start + 101)])))
            .collect();
        assert!(score(100, 100) == apart);
        // Overlapping ones: all but the first predict only their last 30.
        let overlapping: Vec<f64> = (0..7)
            .flat_map(|n| {
                let losses = negated(training_losses(&text[30 * n..290.min(30 * n + 101)]));
                losses[if n == 0 { 0 } else { 70 }..].to_vec()
            })
            .collect();
        assert_eq!(overlapping.len(), 280);
        assert!(score(100, 30)[..280] == overlapping);
    }
}

#[test]
fn a_score_that_cannot_be_is_refused_and_the_engine_stays_usable() {
    let mut engine = engine(EngineConfig::default(), 1);
    assert_eq!(engine.max_context(), 300);
    let window = |max_context, stride| ScoreWindow {
        max_context,
        stride,
    };
    let mut refusal = |ids: &[u32], w| engine.score(ids, w).expect_err("refused").to_string();
    assert_eq!(
        refusal(&[1, 2], window(301, 1)),
        "max_context is 301; it takes 1 to 300"
    );
    assert_eq!(
        refusal(&[1, 2], window(0, 0)),
        "max_context is 0; it takes 1 to 300"
    );
    assert_eq!(
        refusal(&[1, 2], window(10, 11)),
        "stride is 11; it takes 1 to max_context, 10"
    );
    assert_eq!(
        refusal(&[1, 61], window(10, 10)),
        "token 61 at position 1 is outside the vocabulary of 61"
    );
    assert_eq!(engine.score(&[], window(10, 10)), Ok(vec![]));
    assert_eq!(engine.score(&[3], window(10, 10)), Ok(vec![]));
    let request = Request {
        prompt_ids: vec![1],
        max_tokens: 2,
        sampling: SamplingParams::greedy(),
        stop_ids: vec![],
        budget: None,
    };
    let id = engine.submit(request).expect("accepted");
    assert_eq!(engine.score(&[1, 2], window(10, 10)), Err(ScoreError::Busy));
    engine.abort(id);
    let stats = engine.stats();
    assert!(stats.kv_blocks.iter().all(|(free, total)| free == total));
}

/// Greedy continuation by training's forward pass over the whole text for each token.
fn greedy(prompt: &[u32], max_tokens: usize) -> Vec<u32> {
    let device = device(1);
    let mut model = transformer(&device);
    let mut ids = prompt.to_vec();
    for _ in 0..max_tokens {
        let batch = Batch::from_sequences(&[ids.clone()]);
        let mut state = model.train_state(&device, ids.len());
        let (logits, ..) = model.logits(&device, &mut state, &batch);
        let last = &logits.host()[(ids.len() - 1) * 61..];
        let best = (0..61).fold(0, |a, b| if last[b] > last[a] { b } else { a });
        ids.push(best as u32);
    }
    ids.split_off(prompt.len())
}

#[test]
fn answers_are_those_of_training_whatever_runs_beside_them() {
    let lengths = [60, 62, 150, 1];
    let requests: Vec<Request> = lengths
        .iter()
        .map(|&n| Request {
            prompt_ids: ids(n, "prompt"),
            max_tokens: 20,
            sampling: SamplingParams::greedy(),
            stop_ids: vec![],
            budget: None,
        })
        .collect();
    let expected: Vec<Vec<u32>> = lengths
        .iter()
        .map(|&n| greedy(&ids(n, "prompt"), 20))
        .collect();
    // A few blocks, so that somebody is preempted; chunks of 33 rows; three threads.
    let scarce = EngineConfig {
        num_kv_blocks: 6,
        max_num_batched_tokens: 33,
        ..EngineConfig::default()
    };
    for (config, threads) in [(EngineConfig::default(), 1), (scarce, 3)] {
        let is_scarce = config.num_kv_blocks == 6;
        let mut engine = engine(config, threads);
        let completions = generate_all(&mut engine, requests.clone()).expect("all fit");
        assert_eq!(engine.stats().num_preemptions > 0, is_scarce);
        for (completion, expected) in completions.iter().zip(&expected) {
            assert_eq!(completion.ids, *expected);
        }
    }
}

#[test]
fn answers_are_the_same_with_and_without_guesses() {
    // Of three tokens a model of random weights guesses every third right.
    for mtp_window in [0, 70] {
        let config = config_of(3, mtp_window);
        let params = initial_weights(&config, &Layout::new(&config), 6);
        let requests: Vec<Request> = [60, 62, 150, 1]
            .iter()
            .enumerate()
            .map(|(i, &n)| Request {
                prompt_ids: ids(n, "prompt").iter().map(|id| id % 3).collect(),
                max_tokens: 130,
                sampling: SamplingParams {
                    temperature: if i % 2 == 0 { 0.0 } else { 0.8 },
                    frequency_penalty: if i == 2 { 0.01 } else { 0.0 },
                    seed: i as u64,
                    logprobs: Some(1),
                    ..SamplingParams::greedy()
                },
                stop_ids: vec![],
                budget: (i == 3).then_some(TokenBudget {
                    max_tokens: 20,
                    end_id: 2,
                }),
            })
            .collect();
        let run = |engine_config: EngineConfig, threads| {
            let device = device(threads);
            let model = Transformer::new(&device, config.clone(), &params, false);
            let runner = ModelRunner::new(device, model);
            let mut engine = Engine::new(Box::new(runner), engine_config).expect("limits");
            let completions = generate_all(&mut engine, requests.clone()).expect("all fit");
            (completions, engine.stats())
        };
        let (expected, stats) = run(EngineConfig::default(), 1);
        assert_eq!((stats.draft_proposed, stats.draft_accepted), (0, 0));
        for num_speculative_tokens in [1, 2, 5] {
            let many = EngineConfig {
                num_speculative_tokens,
                ..EngineConfig::default()
            };
            let scarce = EngineConfig {
                num_kv_blocks: 6,
                max_num_batched_tokens: 33,
                ..many.clone()
            };
            for (engine_config, threads) in [(many, 2), (scarce, 1)] {
                let (got, stats) = run(engine_config, threads);
                assert!(got == expected, "{num_speculative_tokens} guesses");
                let (right, all) = (stats.draft_accepted, stats.draft_proposed);
                assert!(0 < right && right < all, "{right} of {all}");
            }
        }
    }
}

#[test]
fn the_bytes_of_the_cache_follow_the_blocks() {
    let device = device(1);
    let model = transformer(&device);
    let runner = ModelRunner::new(device, model);
    let config = EngineConfig::default();
    // 300 positions are 5 blocks, 16 sequences take 80: three layers keep a window, one keeps all.
    let block = runner.kv_bytes(&EngineConfig {
        num_kv_blocks: 1,
        ..config.clone()
    }) / 4;
    assert!(
        block >= 2 * 64 * 2 * 6 * 2,
        "keys and values of two heads of six, in bf16"
    );
    let sliding = 16 * (70u64.div_ceil(64) + 2) + 512 / 64;
    assert_eq!(runner.kv_bytes(&config), (3 * sliding + 80) * block);

    let blocks = |bytes| Some(runner.fit_kv(&config, bytes)?.num_kv_blocks);
    assert_eq!(blocks(u64::MAX), Some(80));
    assert_eq!(blocks(4 * 7 * block), Some(7));
    assert_eq!(blocks(4 * 7 * block + 4 * block - 1), Some(7));
    assert_eq!(blocks(4 * block - 1), None);
}
