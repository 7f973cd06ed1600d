//! A stage as a whole: the same weights whatever the threads and the interruptions.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod replay;

use std::ops::ControlFlow;

use data::build::{BuildOptions, Builtin, Options};
use data::{DialoguePacker, Encoder, Loader, LoaderOptions, TokenData};
use dokja_train::recipe::SpecialIds;
use dokja_train::{
    Batches, Dialogues, Documents, Heldout, Outcome, Recipe, Recording, Report, StageError,
    StageInputs, run,
};
use formats::keys::Key;
use formats::ledger::records::{Data, Genesis, Machine, Tokenizer};
use formats::run_dir::{RunDir, Stage};
use kernels_cpu::Isa;
use tensor::Device;

const RECIPE: &str = "[model]\nhidden_size = 16\nintermediate_size = 24\nnum_hidden_layers = 4\n\
    num_attention_heads = 4\nnum_key_value_heads = 2\nhead_dim = 4\nsliding_window = 8\n\
    num_experts = 4\nnum_experts_per_tok = 2\nmoe_intermediate_size = 8\n\
    [train]\nsteps = 12\nseq_len = 24\nrows_per_step = 4\nrows_per_micro_step = 2\n\
    [schedule]\nwarmup_steps = 2\n[checkpoint]\nevery = 5\n[eval]\nevery = 4\ntokens = 200\n";

/// One token a byte, after the special ones.
const VOCAB_SIZE: u32 = 256 + 4;

struct World {
    dir: tempfile::TempDir,
    tokens: TokenData,
}

impl World {
    fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = dir.path().join("data");
        let what = BuildOptions {
            corpus: Vec::new(),
            builtin: Some(Builtin {
                world_seed: 1,
                text_seed: 1,
                bytes: 30_000,
                dialogues: 0,
            }),
            options: Options {
                heldout_fraction: 0.1,
                ..Options::default()
            },
        };
        data::build(&data_dir, &what, &mut |_| ControlFlow::Continue(())).unwrap();
        let encode = |text: &str| text.bytes().map(|byte| u32::from(byte) + 4).collect();
        let encoder = Encoder {
            encode: &encode,
            vocab_size: VOCAB_SIZE,
            sha256: formats::hash::sha256_hex(b"bytes"),
            separator: 2,
        };
        let go_on = &mut |_, _| ControlFlow::Continue(());
        let tokens = data::tokenize(&data_dir, &encoder, 1, go_on).unwrap();
        World { dir, tokens }
    }

    /// Trains in `run`, stopping after `stop_after` steps of this call.
    fn train(
        &self,
        name: &str,
        threads: usize,
        resume: bool,
        stop_after: usize,
        sets: &[&str],
    ) -> Result<Outcome, StageError> {
        let mut steps = 0;
        self.with_inputs(name, sets, |inputs| {
            let recording = Recording {
                resume,
                genesis: Genesis {
                    dokja_version: "test".into(),
                    code_commit: None,
                    machine: Machine {
                        cpu: "test".into(),
                        isa: "test".into(),
                        cores: 1,
                        memory_bytes: 0,
                    },
                    created: String::new(),
                },
                key: Key::from_secret([3; 32]),
            };
            let device = Device::cpu(Isa::detect(), threads);
            run(device, inputs, recording, &mut |report| {
                steps += usize::from(matches!(report, Report::Step(_)));
                match steps >= stop_after {
                    true => ControlFlow::Break(()),
                    false => ControlFlow::Continue(()),
                }
            })
        })
    }

    fn with_inputs<R>(&self, name: &str, sets: &[&str], f: impl FnOnce(&StageInputs) -> R) -> R {
        let sets: Vec<String> = sets.iter().map(ToString::to_string).collect();
        let recipe = Recipe::from_toml(RECIPE, &sets).unwrap();
        let ids = SpecialIds {
            bos: 1,
            eos: 3,
            pad: 0,
        };
        let options = LoaderOptions {
            seq_len: recipe.train.seq_len,
            rows_per_batch: recipe.train.rows_per_micro_step,
            seed: recipe.seed,
            mixture: recipe.data.mixture.clone(),
        };
        let token_bytes: Vec<u32> = (0..VOCAB_SIZE).map(|id| u32::from(id >= 4)).collect();
        let inputs = StageInputs {
            run: RunDir::new(&self.dir.path().join(name)),
            stage: Stage::Pretrain,
            recipe: &recipe,
            config: recipe.config(VOCAB_SIZE as usize, &ids).unwrap(),
            batches: &Documents(Loader::new(&self.tokens, options).unwrap()),
            heldout: &Heldout::new(&self.tokens, 24, 2, 200, &token_bytes),
            tokenizer_json: b"{}\n",
            data: Data {
                manifest_sha256: self.tokens.manifest_sha256.clone(),
                location: self.dir.path().join("data").to_str().unwrap().into(),
                train_documents: 1,
                heldout_documents: 1,
            },
            tokenizer: Tokenizer {
                sha256: formats::hash::sha256_hex(b"{}\n"),
                vocab_size: u64::from(VOCAB_SIZE),
                trained_on_manifest_sha256: None,
            },
        };
        f(&inputs)
    }

    fn weights(&self, outcome: &Outcome) -> Vec<u8> {
        std::fs::read(outcome.checkpoint.join("model.safetensors")).unwrap()
    }
}

const WHOLE: usize = usize::MAX;

#[test]
fn the_final_weights_are_the_same_bytes_for_any_threads_and_interruptions() {
    let world = World::new();
    let whole = world.train("whole", 1, false, WHOLE, &[]).unwrap();
    assert!(whole.is_finished && whole.steps == 12);
    assert!(
        whole
            .bits_per_byte
            .is_some_and(|bits| bits > 0.0 && bits < 9.0)
    );
    let expected = world.weights(&whole);
    for threads in [2, 3] {
        let other = world.train(&format!("t{threads}"), threads, false, WHOLE, &[]);
        assert!(
            world.weights(&other.unwrap()) == expected,
            "{threads} threads"
        );
    }
    // Stopped after steps 1, 4 and 11, on another number of threads each time.
    let mut outcome = world.train("parts", 2, false, 1, &[]).unwrap();
    for (threads, steps) in [(1, 3), (3, 7), (1, WHOLE)] {
        assert!(!outcome.is_finished);
        outcome = world.train("parts", threads, true, steps, &[]).unwrap();
    }
    assert!(outcome.is_finished);
    assert!(world.weights(&outcome) == expected);
    assert_eq!(outcome.weights_sha256, whole.weights_sha256);
    let steps = formats::metrics::read(
        &RunDir::new(&world.dir.path().join("parts")).metrics(Stage::Pretrain),
    );
    let steps: Vec<u64> = steps.unwrap().iter().map(|metrics| metrics.step).collect();
    assert_eq!(steps, (1..=12).collect::<Vec<_>>());
}

#[test]
fn a_checkpoint_that_was_never_recorded_is_made_again() {
    let world = World::new();
    let whole = world.train("whole", 1, false, WHOLE, &[]).unwrap();
    world.train("killed", 1, false, 7, &[]).unwrap();
    // As after a kill between the directory of a checkpoint and its record.
    let run = RunDir::new(&world.dir.path().join("killed"));
    let text = std::fs::read_to_string(run.ledger()).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    std::fs::write(run.ledger(), lines[..lines.len() - 1].join("\n") + "\n").unwrap();
    let resumed = world.train("killed", 1, true, WHOLE, &[]).unwrap();
    assert!(world.weights(&resumed) == world.weights(&whole));
}

#[test]
fn a_finished_stage_resumed_stays_as_it_is() {
    let world = World::new();
    let whole = world.train("whole", 1, false, WHOLE, &[]).unwrap();
    let ledger =
        |world: &World| std::fs::read(world.dir.path().join("whole/ledger.jsonl")).unwrap();
    let before = ledger(&world);
    let again = world.train("whole", 2, true, WHOLE, &[]).unwrap();
    assert_eq!(
        (again.weights_sha256, again.steps),
        (whole.weights_sha256, 12)
    );
    assert!(ledger(&world) == before);
}

#[test]
fn a_run_is_neither_overwritten_nor_continued_with_another_recipe() {
    let world = World::new();
    world.train("run", 1, false, 2, &[]).unwrap();
    let error = world
        .train("run", 1, false, 2, &[])
        .unwrap_err()
        .to_string();
    assert!(error.contains("--resume"), "{error}");
    let error = world
        .train("run", 1, true, 2, &["optim.lr=0.1"])
        .unwrap_err()
        .to_string();
    assert!(error.contains("another recipe"), "{error}");
    let error = world
        .train("run", 1, true, 2, &["seed=9"])
        .unwrap_err()
        .to_string();
    assert!(error.contains("another seed or architecture"), "{error}");
}

#[test]
fn divergence_is_told_and_what_was_recorded_kept() {
    let world = World::new();
    let sets = ["model.initializer_range=1e30"];
    match world.train("run", 1, false, WHOLE, &sets) {
        Err(StageError::Diverged { step, last_saved }) => assert_eq!((step, last_saved), (1, 0)),
        other => panic!("{other:?}"),
    }
    assert!(RunDir::new(&world.dir.path().join("run")).is_run());
}

#[test]
fn rows_of_documents_follow_the_dialogues_of_a_micro_step() {
    let world = World::new();
    let packer = || {
        let dialogue = |n: u32| ((0..n).map(|i| 100 + i).collect(), vec![true; n as usize]);
        DialoguePacker::new((3..9).map(dialogue).collect(), 16, 20, 7).unwrap()
    };
    let options = LoaderOptions {
        seq_len: 16,
        rows_per_batch: 2,
        seed: 7,
        mixture: Default::default(),
    };
    let loader = || Loader::new(&world.tokens, options.clone()).unwrap();
    let (alone, documents) = (Dialogues::new(packer(), None), Documents(loader()));
    let both = Dialogues::new(packer(), Some(loader()));
    for (step, micro) in [(0, 1), (3, 2)] {
        let parts = alone.of_step(step, micro).into_iter();
        for ((mut first, second), got) in parts
            .zip(documents.of_step(step, micro))
            .zip(both.of_step(step, micro))
        {
            first.append(&second);
            assert_eq!(got.ids, first.ids);
            assert_eq!(got.targets, first.targets);
            assert_eq!(got.cu_seqlens, first.cu_seqlens);
            assert_eq!(*got.cu_seqlens.last().unwrap() as usize, got.ids.len());
            assert!(got.cu_seqlens.is_sorted());
        }
    }
    // What the ledger says tells them apart.
    assert_ne!(alone.commitment(), both.commitment());
    assert_ne!(alone.order(), both.order());
    assert!(alone.files().is_empty() && !both.files().is_empty());
}
