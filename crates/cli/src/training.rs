//! What the training commands share: the inputs of a stage, its progress, its result.

use crate::interrupt::{self, Interrupted};
use crate::progress::{Progress, Unit, bytes, grouped, tell};
use crate::sources::Sources;
use crate::{env, memory};
use anyhow::{Context, Result, bail};
use data::{DialoguePacker, Loader, LoaderOptions, TokenData};
use formats::keys::Key;
use formats::ledger::records::{self, Genesis, Machine};
use formats::ledger::{self, Record};
use formats::run_dir::{RunDir, Stage};
use kernels_cpu::peak::{self, Factor};
use model::config::Compute;
use model::{Layout, ModelConfig, flops};
use posttrain::{Preferences, Problem, Rollouts};
use serde_json::json;
use std::path::Path;
use tensor::Device;
use train::{
    Batches, Dialogues, Documents, Heldout, Outcome, Recipe, Recording, Report, StageInputs,
};

/// A stage about to be trained.
pub(crate) struct Job<'a> {
    pub(crate) run: RunDir,
    pub(crate) stage: Stage,
    pub(crate) recipe: &'a Recipe,
    pub(crate) resume: bool,
    /// Whether the tokenizer is known to have been learned from the data.
    pub(crate) is_tokenizer_ours: bool,
}

/// Reads a recipe; `sets` are the overrides of the command line.
pub(crate) fn read_recipe(path: &Path, sets: &[String]) -> Result<Recipe> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the recipe {}", path.display()))?;
    Recipe::from_toml(&text, sets).with_context(|| format!("the recipe {}", path.display()))
}

/// What a recipe comes to before anything is done.
pub(crate) struct Estimate {
    pub(crate) counts: flops::Counts,
    pub(crate) tokens_per_step: u64,
    pub(crate) memory_bytes: u64,
}

impl Estimate {
    pub(crate) fn new(config: &ModelConfig, recipe: &Recipe) -> Estimate {
        let train = &recipe.train;
        let layout = Layout::new(config);
        let with_mtp = recipe.loss.mtp_weight > 0.0;
        let counts = flops::count(config, &layout, train.seq_len, with_mtp);
        let rows = (train.rows_per_micro_step * train.seq_len) as u64;
        // What draws or judges answers has the weights, packed and not, and keys and values.
        let of_row = flops::kv_bytes(config, train.seq_len);
        let engine = |seqs: usize| layout.len as u64 * (4 + 4) + seqs as u64 * of_row;
        let drawing = match (&recipe.prefer, &recipe.rl) {
            // Of the weights, and of those of the start, which are kept too.
            (Some(_), _) => 2 * engine(1) + layout.len as u64 * 4,
            (None, Some(rl)) => engine(posttrain::rollout::num_seqs(rl)),
            (None, None) => 0,
        };
        // Weights, gradients, two moments; the packed copies of the matrices both ways.
        let learning = layout.len as u64 * (4 * 4 + 2 * 4) + rows * flops::kept_bytes(config);
        // Of answers, at most; questions come on top.
        let tokens = match (&recipe.prefer, &recipe.rl) {
            (Some(prefer), _) => 2 * prefer.pairs_per_step * train.seq_len,
            (None, Some(rl)) => rl.prompts_per_step * rl.group_size * rl.max_tokens,
            (None, None) => train.rows_per_step * train.seq_len,
        };
        Estimate {
            tokens_per_step: tokens as u64,
            memory_bytes: learning + drawing,
            counts,
        }
    }

    /// Floating-point operations of a training step: the backward pass costs twice the forward.
    pub(crate) fn flops_per_token(&self) -> f64 {
        3.0 * self.counts.forward_flops_per_token
    }

    pub(crate) fn describe(&self, recipe: &Recipe) -> String {
        let total = self.tokens_per_step * recipe.train.steps;
        format!(
            "{} parameters, {} active for a token; {} steps of {} tokens, {} in all;\n\
             {:.2e} floating-point operations; about {} of memory",
            grouped(self.counts.parameters as u64),
            grouped(self.counts.active_parameters as u64),
            grouped(recipe.train.steps),
            grouped(self.tokens_per_step),
            grouped(total),
            self.flops_per_token() * total as f64,
            bytes(self.memory_bytes)
        )
    }
}

/// Refuses what would not fit.
pub(crate) fn check_memory(estimate: &Estimate) -> Result<()> {
    if let Some(free) = memory::available_bytes().filter(|&free| free < estimate.memory_bytes) {
        bail!(
            "training takes about {} of memory, {} are available; lower train.rows_per_micro_step, or use a \
             machine with more",
            bytes(estimate.memory_bytes),
            bytes(free)
        );
    }
    Ok(())
}

/// What came of a stage.
pub(crate) struct Trained {
    pub(crate) outcome: Outcome,
    /// The model's operations a second, as a fraction of what the machine reaches at most.
    pub(crate) mfu: f64,
}

/// Trains a stage to its end, with progress on stderr.
///
/// # Errors
/// Also when interrupted, after a checkpoint.
pub(crate) fn train(job: &Job) -> Result<Trained> {
    interrupt::listen()?;
    let sources = Sources::open(&job.run, job.recipe)?;
    with_inputs(job, &sources, |inputs, estimate| {
        train_from(job, inputs, estimate)
    })
}

/// The architecture of the model that a stage trains.
pub(crate) fn config(job: &Job, sources: &Sources) -> Result<ModelConfig> {
    match job.stage {
        Stage::Pretrain => sources.config(job.recipe),
        Stage::Sft | Stage::Prefer | Stage::Rl => parent_config(&job.run, job.stage, job.recipe),
    }
}

/// Calls `f` with what a stage is made from, and what it comes to.
pub(crate) fn with_inputs<R>(
    job: &Job,
    sources: &Sources,
    f: impl FnOnce(&StageInputs, &Estimate) -> Result<R>,
) -> Result<R> {
    let (run, recipe) = (&job.run, job.recipe);
    let config = config(job, sources)?;
    let estimate = Estimate::new(&config, recipe);
    check_memory(&estimate)?;
    let tokens = sources.tokens()?;
    let train = &recipe.train;
    let heldout = Heldout::new(
        &tokens,
        train.seq_len,
        train.rows_per_micro_step,
        recipe.eval.tokens,
        &sources.token_bytes(),
    );
    let documents;
    let dialogues;
    let preferences;
    let rollouts;
    let reward = |problem: &Problem, ids: &[u32]| {
        let answer = sources.tokenizer.decode(ids, true);
        f64::from(u8::from(posttrain::reward::is_right(
            &problem.reference,
            &answer,
        )))
    };
    let loader = |rows_per_batch| {
        let options = LoaderOptions {
            seq_len: train.seq_len,
            rows_per_batch,
            seed: recipe.seed,
            mixture: recipe.data.mixture.clone(),
        };
        Loader::new(&tokens, options)
    };
    let replay_rows = recipe.data.replay_rows;
    if recipe.rl.is_some() && job.stage != Stage::Rl {
        bail!("[rl] is for `dokja rl`: {} asks no questions", job.stage);
    }
    if recipe.prefer.is_some() && job.stage != Stage::Prefer {
        bail!(
            "[prefer] is for `dokja prefer`: {} prefers no answers",
            job.stage
        );
    }
    let batches: &dyn Batches = match job.stage {
        Stage::Pretrain | Stage::Prefer | Stage::Rl if replay_rows > 0 => {
            bail!("data.replay_rows is for instruction tuning; remove it");
        }
        Stage::Pretrain => {
            documents = Documents(loader(train.rows_per_micro_step)?);
            &documents
        }
        Stage::Sft => {
            let batch_tokens = train.seq_len * (train.rows_per_micro_step - replay_rows);
            let packer = DialoguePacker::new(
                sources.dialogues()?,
                train.seq_len,
                batch_tokens,
                recipe.seed,
            )?;
            let replay = (replay_rows > 0).then(|| loader(replay_rows)).transpose()?;
            dialogues = Dialogues::new(packer, replay);
            &dialogues
        }
        Stage::Prefer => {
            let layout = Layout::new(&config);
            let records = ledger::verify_chain(run.root())?.records.into_iter();
            let records: Vec<Record> = records.filter_map(|check| check.record).collect();
            let parent = train::stage::parent(run, &records, job.stage, &layout)?;
            let (reference, _) = parent.context("the run has no finished stage to start from")?;
            preferences = Preferences::new(sources.choices()?, recipe, &config, reference)?;
            &preferences
        }
        Stage::Rl => {
            let of = recipe.rl.as_ref().map_or(&[][..], |rl| &rl.sources);
            let problems = sources.problems(of)?;
            let stop_id = sources.specials.endofturn;
            rollouts = Rollouts::new(problems, recipe, &config, stop_id, &reward)?;
            &rollouts
        }
    };
    let inputs = StageInputs {
        run: run.clone(),
        stage: job.stage,
        recipe,
        config,
        batches,
        heldout: &heldout,
        tokenizer_json: &sources.tokenizer_json,
        data: data_record(run, sources, &tokens)?,
        tokenizer: records::Tokenizer {
            sha256: tokens.tokenizer_sha256.clone(),
            vocab_size: sources.tokenizer.vocab_size() as u64,
            trained_on_manifest_sha256: job
                .is_tokenizer_ours
                .then(|| tokens.manifest_sha256.clone()),
        },
    };
    f(&inputs, &estimate)
}

fn train_from(job: &Job, inputs: &StageInputs, estimate: &Estimate) -> Result<Trained> {
    let recipe = job.recipe;
    let device = env::device()?;
    let peak = peak_flops(&device, recipe.train.compute);
    let recording = Recording {
        resume: job.resume,
        genesis: genesis(&device)?,
        key: key()?,
    };
    let name = match job.stage {
        Stage::Pretrain => "pretraining",
        Stage::Sft => "tuning",
        Stage::Prefer => "preferring",
        Stage::Rl => "reinforcing",
    };
    let mut bar: Option<Progress> = None;
    let outcome = train::run(device, inputs, recording, &mut |report| {
        match report {
            Report::Begin { step, steps } => {
                bar = Some(Progress::new(name, Unit::Of("steps"), step, steps));
            }
            Report::Step(metrics) => {
                if let Some(bar) = &mut bar {
                    let mut note = match metrics.reward {
                        Some(reward) => format!("reward {reward:.3}"),
                        None => format!("loss {:.3}", metrics.next_token_loss),
                    };
                    let per_sec = grouped(metrics.tokens_per_sec as u64);
                    note.push_str(&format!(", {per_sec} tokens/s"));
                    if let Some(bits) = metrics.bits_per_byte {
                        note.push_str(&format!(", {bits:.3} bits per byte"));
                    }
                    bar.note(note);
                    bar.set(metrics.step);
                }
            }
            Report::Saved { .. } => {}
        }
        interrupt::stop_if_asked()
    })?;
    match (outcome.is_finished, bar) {
        (true, Some(bar)) => {
            bar.finish();
            let mfu = outcome.tokens_per_sec * estimate.flops_per_token() / peak;
            Ok(Trained { outcome, mfu })
        }
        (_, bar) => {
            drop(bar);
            let kept = format!(
                "step {} of {} is saved in {}; go on with --resume",
                outcome.steps,
                recipe.train.steps,
                outcome.checkpoint.display()
            );
            Err(Interrupted(kept).into())
        }
    }
}

/// Operations per second that this machine reaches at most on factors of a type.
pub(crate) fn peak_flops(device: &Device, compute: Compute) -> f64 {
    let Device::Cpu(cpu) = device;
    let factor = match compute {
        Compute::F32 => Factor::F32,
        Compute::Bf16 => Factor::Bf16,
    };
    peak::flops(cpu, factor)
}

/// The object that training commands print with --json.
pub(crate) fn outcome_json(Trained { outcome, mfu }: &Trained) -> serde_json::Value {
    json!({
        "steps": outcome.steps,
        "tokens": outcome.tokens,
        "loss": outcome.loss,
        "bits_per_byte": outcome.bits_per_byte,
        "tokens_per_sec": outcome.tokens_per_sec,
        "mfu": mfu,
        "weights_sha256": outcome.weights_sha256,
        "checkpoint": outcome.checkpoint,
    })
}

/// The same for people.
pub(crate) fn outcome_text(Trained { outcome, mfu }: &Trained) -> String {
    let bits = outcome.bits_per_byte;
    format!(
        "{} steps, {} tokens, {} a second ({:.0} % of the machine's peak); loss {:.4}{}; weights {}\n{}",
        grouped(outcome.steps),
        grouped(outcome.tokens),
        grouped(outcome.tokens_per_sec as u64),
        100.0 * mfu,
        outcome.loss,
        bits.map_or(String::new(), |b| format!(
            ", {b:.4} bits per byte of held-out text"
        )),
        &outcome.weights_sha256[..16],
        outcome.checkpoint.display()
    )
}

/// The architecture of the pretrained model, multiplied in the type that the recipe of this stage names.
fn parent_config(run: &RunDir, stage: Stage, recipe: &Recipe) -> Result<ModelConfig> {
    if recipe.model.is_some() {
        let is_missing = false;
        return Err(train::recipe::RecipeError::ModelSection { stage, is_missing }.into());
    }
    let Some(parent) = run.latest_checkpoint(Stage::Pretrain)? else {
        bail!(
            "{} has no pretrained model; run `dokja pretrain` into it first",
            run.root().display()
        );
    };
    let path = parent.path.join("config.json");
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}", path.display()))?;
    let config =
        ModelConfig::from_json(&text).with_context(|| format!("cannot use {}", path.display()))?;
    if config.compute != recipe.train.compute {
        bail!(
            "the model was pretrained with train.compute {:?}; a stage after it must use the same, so that \
             training and serving multiply alike",
            config.compute
        );
    }
    Ok(config)
}

fn data_record(run: &RunDir, sources: &Sources, tokens: &TokenData) -> Result<records::Data> {
    let location = match run.relative(&sources.dir) {
        Some(inside) => inside,
        None => std::fs::canonicalize(&sources.dir)
            .with_context(|| format!("cannot read {}", sources.dir.display()))?
            .to_string_lossy()
            .into_owned(),
    };
    let languages = sources.manifest.languages.values();
    let heldout: u64 = languages.map(|tally| tally.heldout_documents).sum();
    Ok(records::Data {
        manifest_sha256: tokens.manifest_sha256.clone(),
        location,
        train_documents: sources.manifest.kept_documents - heldout,
        heldout_documents: heldout,
    })
}

/// The signing key, made at first use.
pub(crate) fn key() -> Result<Key> {
    let path = env::key_path()?;
    let is_new = !path.exists();
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)
            .with_context(|| format!("cannot create {}", parent.display()))?;
    }
    let key = Key::load_or_create(&path)?;
    if is_new {
        tell(&format!(
            "made a signing key, {}; keep it: what it signs is yours",
            path.display()
        ));
    }
    Ok(key)
}

fn genesis(device: &Device) -> Result<Genesis> {
    Ok(Genesis {
        dokja_version: env!("CARGO_PKG_VERSION").to_string(),
        code_commit: option_env!("DOKJA_COMMIT").map(str::to_string),
        machine: Machine {
            cpu: cpu_name(),
            isa: device.name().to_string(),
            cores: std::thread::available_parallelism().map_or(1, |n| n.get() as u64),
            memory_bytes: memory::total_bytes().unwrap_or(0),
        },
        created: String::new(),
    })
}

/// As the processor names itself; "unknown" where the system does not tell.
fn cpu_name() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("model name"));
    let name = line.and_then(|line| line.split_once(':'));
    name.map_or("unknown".to_string(), |(_, name)| name.trim().to_string())
}
