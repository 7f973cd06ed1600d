//! The engine against a scripted model: what a request gets depends on the request alone.

use crate::hashing_model::{Draft, HashingModel, VOCAB, expected_logits};
use dokja_infer::*;
use proptest::prelude::*;
use std::collections::HashMap;

const WINDOWS: &[Option<usize>] = &[Some(5), Some(70), None, Some(5), None];
const MAX_POSITIONS: usize = 512;

fn engine(config: EngineConfig) -> Engine {
    let model = HashingModel::new(WINDOWS, MAX_POSITIONS);
    Engine::new(Box::new(model), config).expect("limits above zero")
}

fn engine_with(config: EngineConfig, draft: Draft) -> Engine {
    let model = HashingModel::new(WINDOWS, MAX_POSITIONS).with_draft(draft);
    Engine::new(Box::new(model), config).expect("limits above zero")
}

fn request(prompt_ids: Vec<u32>, max_tokens: usize) -> Request {
    Request {
        prompt_ids,
        max_tokens,
        sampling: SamplingParams::greedy(),
        stop_ids: vec![0],
        budget: None,
    }
}

/// Greedy decoding without an engine.
fn expected(request: &Request) -> (Vec<u32>, FinishReason) {
    let mut ids = request.prompt_ids.clone();
    let max_len = MAX_POSITIONS.min(ids.len() + request.max_tokens);
    loop {
        let logits = expected_logits(&ids, WINDOWS);
        let mut best = (0..VOCAB).fold(0, |a, b| if logits[b] > logits[a] { b } else { a }) as u32;
        let answer = &ids[request.prompt_ids.len()..];
        if let Some(TokenBudget { max_tokens, end_id }) = request.budget
            && answer.len() >= max_tokens
            && !answer.contains(&end_id)
        {
            best = end_id;
        }
        if request.stop_ids.contains(&best) {
            return (ids.split_off(request.prompt_ids.len()), FinishReason::Stop);
        }
        ids.push(best);
        if ids.len() >= max_len {
            return (
                ids.split_off(request.prompt_ids.len()),
                FinishReason::Length,
            );
        }
    }
}

fn assert_nothing_is_owned(engine: &Engine) {
    let stats = engine.stats();
    assert!(engine.is_idle());
    assert!(
        stats.kv_blocks.iter().all(|(free, total)| free == total),
        "leak: {stats:?}"
    );
}

/// What happens before a step.
#[derive(Clone, Debug)]
enum Action {
    Submit {
        prompt: Vec<u32>,
        max_tokens: usize,
        temperature: f32,
        seed: u64,
        penalty: f32,
        budget: Option<TokenBudget>,
    },
    Abort {
        nth: usize,
    },
    Step {
        times: usize,
    },
}

fn action() -> impl Strategy<Value = Action> {
    let prompt = prop_oneof![
        3 => prop::collection::vec(1..VOCAB as u32, 1..20),
        1 => prop::collection::vec(1..VOCAB as u32, 60..300),
    ];
    let budget = prop::option::of(
        (0..40usize, 0..VOCAB as u32)
            .prop_map(|(max_tokens, end_id)| TokenBudget { max_tokens, end_id }),
    );
    let temperature = prop_oneof![Just(0.0f32), Just(0.8)];
    let penalty = prop_oneof![Just(0.0f32), Just(0.4)];
    prop_oneof![
        4 => (prompt, 1..150usize, temperature, any::<u64>(), penalty, budget).prop_map(
            |(prompt, max_tokens, temperature, seed, penalty, budget)| {
                Action::Submit { prompt, max_tokens, temperature, seed, penalty, budget }
            }
        ),
        1 => (0..8usize).prop_map(|nth| Action::Abort { nth }),
        4 => (1..40usize).prop_map(|times| Action::Step { times }),
    ]
}

fn config() -> impl Strategy<Value = EngineConfig> {
    (1..6usize, 1..200usize, 7..20usize, 0..6usize).prop_map(
        |(max_num_seqs, max_num_batched_tokens, num_kv_blocks, num_speculative_tokens)| {
            EngineConfig {
                max_num_seqs,
                max_num_batched_tokens,
                num_kv_blocks,
                max_num_waiting: 16,
                num_speculative_tokens,
            }
        },
    )
}

fn draft() -> impl Strategy<Value = Draft> {
    let window = prop_oneof![3 => Just(None), 1 => Just(Some(5)), 1 => Just(Some(70))];
    (window, 0..6u64).prop_map(|(window, wrong_every)| Draft {
        window,
        wrong_every,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn every_request_ends_as_if_it_had_run_alone(
        script in prop::collection::vec(action(), 1..24),
        config in config(),
        draft in draft(),
    ) {
        let mut engine = engine_with(config.clone(), draft);
        let mut submitted: Vec<(RequestId, Request)> = Vec::new();
        type Answer = (Vec<SampledToken>, Option<FinishReason>);
        let mut answers: HashMap<RequestId, Answer> = HashMap::new();
        let mut aborted = Vec::new();
        let collect = |engine: &mut Engine, answers: &mut HashMap<_, Answer>| {
            for event in engine.step() {
                let answer = answers.entry(event.id).or_insert((Vec::new(), None));
                assert_eq!(answer.1, None, "an event after the last");
                if event.finish_reason != Some(FinishReason::Stop) {
                    answer.0.push(event.token.expect("the logits are finite"));
                }
                answer.1 = event.finish_reason;
            }
        };
        for action in script {
            match action {
                Action::Submit { prompt, max_tokens, temperature, seed, penalty, budget } => {
                    let stop_ids = if seed % 2 == 0 { vec![0] } else { vec![] };
                    let mut request = Request { stop_ids, budget, ..request(prompt, max_tokens) };
                    request.sampling.temperature = temperature;
                    request.sampling.seed = seed;
                    request.sampling.presence_penalty = penalty;
                    request.sampling.logprobs = (seed % 3 == 0).then_some(2);
                    match engine.submit(request.clone()) {
                        Ok(id) => submitted.push((id, request)),
                        Err(error) => {
                            prop_assert_eq!(error, SubmitError::QueueFull { num_waiting: 16 });
                        }
                    }
                }
                Action::Abort { nth } => if let Some((id, _)) = submitted.get(nth) {
                    let is_finished =
                        answers.get(id).is_some_and(|(_, reason)| reason.is_some());
                    let is_live = !is_finished && !aborted.contains(id);
                    prop_assert_eq!(engine.abort(*id), is_live);
                    if is_live {
                        aborted.push(*id);
                    }
                },
                Action::Step { times } => {
                    (0..times).for_each(|_| collect(&mut engine, &mut answers));
                }
            }
        }
        let mut steps = 0;
        while !engine.is_idle() {
            collect(&mut engine, &mut answers);
            steps += 1;
            prop_assert!(steps < 100_000, "the engine makes no progress: {:?}", engine.stats());
        }
        assert_nothing_is_owned(&engine);
        for (id, request) in submitted {
            if aborted.contains(&id) {
                continue;
            }
            let (tokens, reason) = answers.remove(&id).expect("every request yields events");
            let ids: Vec<u32> = tokens.iter().map(|token| token.id).collect();
            if request.sampling.temperature == 0.0 && request.sampling.presence_penalty == 0.0 {
                prop_assert_eq!((ids.clone(), reason.expect("a last event")), expected(&request));
            }
            let mut alone = self::engine(EngineConfig::default());
            let completion = generate(&mut alone, request).expect("was accepted before");
            prop_assert_eq!(ids, completion.ids);
            prop_assert_eq!(reason, Some(completion.finish_reason));
            let logprobs: Vec<_> = tokens.into_iter().filter_map(|token| token.logprobs).collect();
            prop_assert_eq!(logprobs, completion.logprobs);
        }
    }
}

/// Steps that an answer of 101 tokens takes, and the guesses proposed and accepted.
fn steps_of(num_speculative_tokens: usize, draft: Draft, temperature: f32) -> (usize, u64, u64) {
    let config = EngineConfig {
        num_speculative_tokens,
        ..EngineConfig::default()
    };
    let mut request = Request {
        stop_ids: vec![],
        ..request(vec![7, 8, 9], 101)
    };
    request.sampling.temperature = temperature;
    let mut plain = engine(EngineConfig::default());
    let expected = generate(&mut plain, request.clone()).expect("accepted");
    let mut engine = engine_with(config, draft);
    engine.submit(request).expect("accepted");
    let (mut steps, mut ids) = (0, Vec::new());
    while !engine.is_idle() {
        let events = engine.step();
        ids.extend(events.into_iter().filter_map(|event| Some(event.token?.id)));
        steps += 1;
    }
    assert_eq!(ids, expected.ids);
    assert_nothing_is_owned(&engine);
    let stats = engine.stats();
    (steps, stats.draft_proposed, stats.draft_accepted)
}

#[test]
fn right_guesses_save_steps_and_wrong_ones_cost_none() {
    let right = Draft {
        window: None,
        wrong_every: 0,
    };
    for temperature in [0.0, 0.9] {
        // One token with the prompt, and then one more than is guessed, each time.
        assert_eq!(steps_of(0, right, temperature), (101, 0, 0));
        assert_eq!(steps_of(1, right, temperature), (51, 50, 50));
        assert_eq!(steps_of(3, right, temperature), (26, 75, 75));
        assert_eq!(steps_of(4, right, temperature), (21, 80, 80));
        let half = Draft {
            wrong_every: 2,
            ..right
        };
        let (steps, proposed, accepted) = steps_of(2, half, temperature);
        assert_eq!(steps as u64 + accepted, 101);
        assert!(
            20 < accepted && accepted < proposed,
            "{accepted} {proposed}"
        );
        let never = Draft {
            wrong_every: 1,
            ..right
        };
        let (steps, proposed, accepted) = steps_of(2, never, temperature);
        assert_eq!(steps as u64 + accepted, 101);
        // It is given up, and tried again a few times.
        assert!(accepted < 10 && proposed < 100, "{accepted} {proposed}");
    }
}

#[test]
fn preemption_happens_and_changes_nothing() {
    // Seven blocks hold 448 positions; four sequences grow to 200 each.
    let config = EngineConfig {
        max_num_seqs: 4,
        max_num_batched_tokens: 64,
        num_kv_blocks: 7,
        max_num_waiting: 8,
        num_speculative_tokens: 3,
    };
    let draft = Draft {
        window: None,
        wrong_every: 3,
    };
    let mut engine = engine_with(config, draft);
    let requests: Vec<Request> = (1..=4u32)
        .map(|i| Request {
            stop_ids: vec![],
            ..request(vec![i; 40], 160)
        })
        .collect();
    let completions = generate_all(&mut engine, requests.clone()).expect("all fit");
    let stats = engine.stats();
    assert!(stats.num_preemptions > 0 && stats.draft_accepted > 0);
    for (request, completion) in requests.iter().zip(completions) {
        assert_eq!(
            (completion.ids, completion.finish_reason),
            expected(request)
        );
    }
    assert_nothing_is_owned(&engine);
}

#[test]
fn the_cache_of_a_sliding_layer_does_not_grow_with_the_sequence() {
    let model = HashingModel::new(&[Some(70), Some(70), Some(5)], 4096);
    let config = EngineConfig {
        max_num_seqs: 1,
        max_num_batched_tokens: 32,
        num_kv_blocks: 64,
        max_num_waiting: 1,
        num_speculative_tokens: 0,
    };
    let mut engine = Engine::new(Box::new(model), config).expect("limits above zero");
    let id = engine.submit(Request {
        stop_ids: vec![],
        ..request(vec![1; 2000], 2000)
    });
    let id = id.expect("a long prompt is accepted");
    let mut most = 0;
    while !engine.is_idle() {
        engine.step();
        let stats = engine.stats();
        most = most.max(
            stats
                .kv_blocks
                .iter()
                .map(|(free, total)| total - free)
                .max()
                .unwrap_or(0),
        );
    }
    assert!(!engine.abort(id));
    assert_eq!(most, 3, "a window of 70 touches at most three blocks");
}

#[test]
fn refusals_say_what_is_wrong() {
    let mut engine = engine(EngineConfig {
        num_kv_blocks: 2,
        ..EngineConfig::default()
    });
    assert_eq!(engine.max_len(), 129);
    let mut refusal = |request| engine.submit(request).expect_err("refused").to_string();
    assert_eq!(
        refusal(request(vec![], 1)),
        "the prompt is empty; give at least one token"
    );
    assert_eq!(
        refusal(request(vec![1], 0)),
        "max_tokens is 0; ask for at least one token"
    );
    assert_eq!(
        refusal(request(vec![1; 129], 1)),
        "the prompt has 129 tokens, the model takes at most 128; shorten it"
    );
    assert_eq!(
        refusal(request(vec![1, 37], 1)),
        "token 37 at position 1 of the prompt is outside the vocabulary of 37"
    );
    let beyond = Request {
        budget: Some(TokenBudget {
            max_tokens: 3,
            end_id: VOCAB as u32,
        }),
        ..request(vec![1], 1)
    };
    let message =
        format!("token {VOCAB}, the end of a budget, is outside the vocabulary of {VOCAB}");
    assert_eq!(refusal(beyond), message);
    let mut hot = request(vec![1], 1);
    hot.sampling.temperature = -1.0;
    assert_eq!(refusal(hot), "temperature is -1, allowed is 0 to 100");
    engine
        .submit(request(vec![1; 128], 9))
        .expect("a prompt of the longest length fits");
}

#[test]
fn a_budget_puts_its_end_where_the_part_has_to_end_and_nowhere_else() {
    let answer_with = |budget| {
        let request = Request {
            stop_ids: vec![],
            budget,
            sampling: SamplingParams {
                temperature: 0.8,
                seed: 3,
                logprobs: Some(1),
                ..SamplingParams::greedy()
            },
            ..request(vec![5, 6, 7], 30)
        };
        let mut engine = engine(EngineConfig::default());
        generate(&mut engine, request).expect("accepted")
    };
    let drawn = answer_with(None).ids;
    let end_id = (0..VOCAB as u32)
        .find(|id| !drawn.contains(id))
        .expect("an id left");
    for max_tokens in [0, 1, 9] {
        let answer = answer_with(Some(TokenBudget { max_tokens, end_id }));
        assert_eq!(answer.ids[..max_tokens], drawn[..max_tokens]);
        assert_eq!(answer.ids[max_tokens], end_id);
        // Its log-probability is the model's.
        let logprobs = &answer.logprobs[max_tokens];
        assert!(logprobs.logprob < logprobs.top[0].1 && logprobs.top[0].0 != end_id);
    }
    // An end that comes by itself in time is not repeated, and length goes first.
    let end_id = drawn[4];
    let first = drawn.iter().position(|&id| id == end_id).expect("drawn");
    let budget = |max_tokens| Some(TokenBudget { max_tokens, end_id });
    assert_eq!(answer_with(budget(first)).ids, drawn);
    assert_eq!(answer_with(budget(29)).ids, drawn);
    assert_eq!(answer_with(budget(usize::MAX)).ids, drawn);
}

#[test]
fn a_full_queue_refuses_and_recovers() {
    let mut engine = engine(EngineConfig {
        max_num_waiting: 2,
        ..EngineConfig::default()
    });
    for _ in 0..2 {
        engine
            .submit(request(vec![1], 3))
            .expect("the queue has room");
    }
    assert_eq!(
        engine.submit(request(vec![1], 3)),
        Err(SubmitError::QueueFull { num_waiting: 2 })
    );
    engine.step();
    engine
        .submit(request(vec![1], 3))
        .expect("the first two are running");
}

#[test]
fn an_answer_stops_where_the_positions_end() {
    let mut engine = engine(EngineConfig::default());
    let request = Request {
        stop_ids: vec![],
        ..request(vec![3; 500], 1000)
    };
    let completion = generate(&mut engine, request).expect("the prompt fits");
    assert_eq!(completion.ids.len(), 12);
    assert_eq!(completion.finish_reason, FinishReason::Length);
}

#[test]
fn logits_that_are_no_numbers_end_the_request() {
    struct Broken;
    impl Runner for Broken {
        fn vocab_size(&self) -> usize {
            4
        }
        fn max_positions(&self) -> usize {
            64
        }
        fn layer_windows(&self) -> &[Option<usize>] {
            &[None]
        }
        fn init_kv(&mut self, _groups: &[KvGroup]) {}
        fn forward(&mut self, _batch: &StepBatch, logits: &mut [f32]) {
            logits.fill(f32::NAN);
        }
    }
    let mut engine = Engine::new(Box::new(Broken), EngineConfig::default()).expect("limits");
    let completion = generate(&mut engine, request(vec![1], 5)).expect("accepted");
    assert_eq!(completion.finish_reason, FinishReason::NotFinite);
    assert!(completion.ids.is_empty());
    assert_nothing_is_owned(&engine);
}

#[test]
fn a_limit_of_zero_is_named() {
    let config = EngineConfig {
        num_kv_blocks: 0,
        ..EngineConfig::default()
    };
    let model = HashingModel::new(WINDOWS, MAX_POSITIONS);
    let error = Engine::new(Box::new(model), config).err().expect("refused");
    assert_eq!(
        error.to_string(),
        "num_kv_blocks is 0; it must be at least 1"
    );
}

#[test]
fn a_score_adds_up_the_rows_of_the_chunks() {
    let mut engine = engine(EngineConfig {
        max_num_batched_tokens: 9,
        ..EngineConfig::default()
    });
    let ids: Vec<u32> = (0..200).map(|i| i * i % VOCAB as u32).collect();
    for (max_context, stride) in [(200, 200), (64, 64), (100, 1), (5, 3), (1, 1)] {
        let window = ScoreWindow {
            max_context,
            stride,
        };
        let scores = engine.score(&ids, window).expect("a window that can be");
        assert_eq!(scores.len(), 199);
        for (t, score) in scores.iter().enumerate() {
            // The first window that predicts the token after `t`.
            let start = (t + 1).saturating_sub(max_context).div_ceil(stride) * stride;
            let logits = expected_logits(&ids[start..=t], WINDOWS);
            let sum: f64 = logits.iter().map(|&z| f64::from(z).exp()).sum();
            let expected = f64::from(logits[ids[t + 1] as usize]) - sum.ln();
            assert!(
                (score - expected).abs() < 1e-6,
                "{max_context} {stride} {t}"
            );
        }
        assert_nothing_is_owned(&engine);
    }
}
