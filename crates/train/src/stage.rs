//! A stage of a run: from its start, or from where it was interrupted, to its final weights.
//!
//! Files and records are made in this order, so that a kill at any moment loses at most the steps since the
//! last checkpoint: directory of the checkpoint, then its record. A checkpoint without a record (killed in
//! between) is removed on resumption and computed again, to the same bits.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use formats::atomic;
use formats::error::FileError;
use formats::json::JsonError;
use formats::keys::Key;
use formats::ledger::records::{
    Checkpoint as CheckpointRecord, Data, Final, Genesis, Resume, Tokenizer,
};
use formats::ledger::{Event, Ledger, LedgerError, Record};
use formats::metrics::{self, MetricsWriter, StepMetrics};
use formats::run_dir::{RunDir, RunDirError, Stage};
use model::{Layout, ModelConfig, init};
use tensor::Device;
use thiserror::Error;

use crate::batches::{Batches, Heldout, StepBatches};
use crate::checkpoint::{self, CheckpointError, Saved};
use crate::recipe::Recipe;
use crate::recorded;
use crate::trainer::{StepResult, Trainer};

/// What a stage is made from.
pub struct StageInputs<'a> {
    /// The run.
    pub run: RunDir,
    /// Which stage.
    pub stage: Stage,
    /// What determines it.
    pub recipe: &'a Recipe,
    /// The architecture.
    pub config: ModelConfig,
    /// Its batches.
    pub batches: &'a dyn Batches,
    /// What it is measured on.
    pub heldout: &'a Heldout,
    /// The text of tokenizer.json.
    pub tokenizer_json: &'a [u8],
    /// For the ledger.
    pub data: Data,
    /// For the ledger.
    pub tokenizer: Tokenizer,
}

/// How a stage is entered into the ledger of its run.
pub struct Recording {
    /// Continue what is there; otherwise a stage that was begun is refused.
    pub resume: bool,
    /// The first record, if the run has none yet.
    pub genesis: Genesis,
    /// Signs the ledger.
    pub key: Key,
}

/// A stage that did not come to its end.
#[derive(Debug, Error)]
pub enum StageError {
    /// The run directory.
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The file system.
    #[error(transparent)]
    File(#[from] FileError),
    /// The metrics.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// A checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The stage was begun, and resumption was not asked for.
    #[error(
        "{} already has a {stage} stage; continue it with --resume or choose another directory",
        path.display()
    )]
    Begun {
        /// The run directory.
        path: PathBuf,
        /// The stage.
        stage: Stage,
    },
    /// What is to be continued was begun with something else.
    #[error(
        "{} was begun with another {what} (then {recorded}, now {found}); resume it with the same, or \
         start a new run",
        path.display()
    )]
    Changed {
        /// The run directory.
        path: PathBuf,
        /// What differs.
        what: &'static str,
        /// As recorded.
        recorded: String,
        /// As given.
        found: String,
    },
    /// What is to be repeated was never recorded.
    #[error("the ledger of {} has no record of the kind {kind:?} for it", path.display())]
    NotRecorded {
        /// The run directory.
        path: PathBuf,
        /// The kind of record.
        kind: String,
    },
    /// The stage before is missing.
    #[error("{} has no finished stage to start {stage} from", path.display())]
    NoParent {
        /// The run directory.
        path: PathBuf,
        /// The stage.
        stage: Stage,
    },
    /// Numbers became infinite.
    #[error(
        "training diverged at step {step}: the loss or the gradient is no number; lower optim.lr or \
         lengthen schedule.warmup_steps (checkpoints up to step {last_saved} are kept)"
    )]
    Diverged {
        /// The step.
        step: u64,
        /// The last good checkpoint.
        last_saved: u64,
    },
}

/// What the caller is told while a stage runs.
#[derive(Debug)]
pub enum Report<'a> {
    /// Training begins after `step` of `steps`.
    Begin {
        /// Steps done.
        step: u64,
        /// Steps in all.
        steps: u64,
    },
    /// A step is done.
    Step(&'a StepMetrics),
    /// A checkpoint was written.
    Saved {
        /// After so many steps.
        step: u64,
        /// Where.
        path: &'a Path,
    },
}

/// What came out.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// False when it was asked to stop.
    pub is_finished: bool,
    /// Steps done.
    pub steps: u64,
    /// Tokens read.
    pub tokens: u64,
    /// Mean next-token loss of the last steps, in nats per token.
    pub loss: f64,
    /// Of the held-out text, as last measured.
    pub bits_per_byte: Option<f64>,
    /// Tokens per second of the steps done by this process; 0 if none.
    pub tokens_per_sec: f64,
    /// Of the last checkpoint.
    pub weights_sha256: String,
    /// The last checkpoint.
    pub checkpoint: PathBuf,
}

/// Steps whose losses make the figure that a stage ends with.
const LOSS_WINDOW: usize = 20;
/// Steps between two records of the experts' loads.
const LOAD_EVERY: u64 = 10;

/// Runs a stage to its end, or until `report` breaks: then a checkpoint is written first.
///
/// # Errors
/// See [`StageError`]; what was recorded before stays.
pub fn run(
    device: Device,
    inputs: &StageInputs,
    recording: Recording,
    report: &mut dyn FnMut(Report) -> ControlFlow<()>,
) -> Result<Outcome, StageError> {
    let mut stage = Running::open(device, inputs, recording)?;
    let steps = inputs.recipe.train.steps;
    let begin = Report::Begin {
        step: stage.trainer.step,
        steps,
    };
    let mut is_asked_to_stop = report(begin).is_break();
    let (first_token, mut seconds) = (stage.trainer.tokens, 0.0);
    while stage.trainer.step < steps && !is_asked_to_stop {
        let start = Instant::now();
        let metrics = stage.step(start)?;
        seconds += start.elapsed().as_secs_f64();
        is_asked_to_stop = report(Report::Step(&metrics)).is_break();
        let (step, every) = (stage.trainer.step, inputs.recipe.checkpoint.every);
        let is_due = every > 0 && step.is_multiple_of(every);
        if is_due || step == steps || is_asked_to_stop {
            let path = stage.save()?;
            is_asked_to_stop |= report(Report::Saved { step, path: &path }).is_break();
        }
    }
    let is_finished = stage.trainer.step == steps;
    if is_finished {
        stage.finish()?;
    }
    let read = (stage.trainer.tokens - first_token) as f64;
    let all = metrics::read(&inputs.run.metrics(inputs.stage))?;
    let last = &all[all.len().saturating_sub(LOSS_WINDOW)..];
    let losses = last.iter().map(|metrics| metrics.next_token_loss);
    Ok(Outcome {
        is_finished,
        steps: stage.trainer.step,
        tokens: stage.trainer.tokens,
        loss: losses.sum::<f64>() / last.len().max(1) as f64,
        bits_per_byte: all.iter().rev().find_map(|metrics| metrics.bits_per_byte),
        tokens_per_sec: if seconds > 0.0 { read / seconds } else { 0.0 },
        weights_sha256: stage.parent_sha256.clone(),
        checkpoint: inputs.run.checkpoint(inputs.stage, stage.trainer.step),
    })
}

struct Running<'a> {
    inputs: &'a StageInputs<'a>,
    ledger: Ledger,
    metrics: MetricsWriter,
    trainer: Trainer,
    parent_sha256: String, // the weights that the next checkpoint was trained from
    last_saved: u64,
}

impl<'a> Running<'a> {
    /// Writes what a stage begins with, as far as it is not there, and finds the weights to go on from.
    fn open(
        device: Device,
        inputs: &'a StageInputs<'a>,
        recording: Recording,
    ) -> Result<Running<'a>, StageError> {
        let StageInputs {
            run, stage, config, ..
        } = inputs;
        let (stage, path) = (*stage, run.root().to_path_buf());
        formats::run_dir::make_dir(run.root())?;
        if stage == Stage::Pretrain && !recording.resume {
            RunDir::create(run.root())?;
        }
        let mut ledger = Ledger::open_or_create(run.root(), recording.key)?;
        let is_begun = recorded::find(ledger.records(), stage, "recipe").is_some();
        if is_begun && !recording.resume {
            return Err(StageError::Begun { path, stage });
        }
        let layout = Layout::new(config);
        let (mut weights, mut parent_sha256) = start(inputs, ledger.records(), &layout)?;
        match stage {
            Stage::Pretrain => {
                record_start(&mut ledger, inputs, recording.genesis, &parent_sha256)?;
            }
            // A later stage is given what the run began with.
            Stage::Sft | Stage::Prefer | Stage::Rl => {
                for event in recorded::inputs(inputs) {
                    recorded::compare(ledger.records(), inputs, &event)?;
                }
            }
        }
        run.create_stage(stage)?;
        record_stage(&mut ledger, inputs)?;

        let recorded = recorded::checkpoints(ledger.records(), stage);
        for checkpoint in run.checkpoints(stage)? {
            if !recorded.iter().any(|r| r.step == checkpoint.step) {
                atomic::remove_dir(&checkpoint.path)?;
            }
        }
        let latest = run.latest_checkpoint(stage)?;
        if latest.is_some() {
            weights.clear(); // They come from the checkpoint; no second copy is kept.
            weights.resize(layout.len, 0.0);
        }
        let mut trainer = Trainer::new(device, config.clone(), &weights, inputs.recipe);
        drop(weights);
        let mut last_saved = 0;
        if let Some(latest) = &latest {
            checkpoint::restore(&latest.path, &mut trainer)?;
            last_saved = latest.step;
            let at_step = recorded.iter().rev().find(|r| r.step == latest.step);
            parent_sha256 = at_step.map_or(parent_sha256, |r| r.weights_sha256.clone());
        }
        let is_final = recorded::find(ledger.records(), stage, "final").is_some();
        let has_steps = fs::metadata(run.metrics(stage)).is_ok();
        if has_steps && !is_final {
            metrics::truncate_after_step(&run.metrics(stage), last_saved)?;
            let event = Event::Resume(Resume {
                stage,
                step: last_saved,
            });
            ledger.append(&event, Vec::new())?;
        }
        Ok(Running {
            inputs,
            ledger,
            metrics: MetricsWriter::open(&run.metrics(stage))?,
            trainer,
            parent_sha256,
            last_saved,
        })
    }

    fn step(&mut self, start: Instant) -> Result<StepMetrics, StageError> {
        let (inputs, trainer) = (self.inputs, &mut self.trainer);
        let (step, before) = (trainer.step, trainer.tokens);
        let StepBatches { batches, reward } = inputs.batches.batches(trainer);
        let result = trainer.step(batches);
        if !result.is_finite() {
            return Err(StageError::Diverged {
                step: step + 1,
                last_saved: self.last_saved,
            });
        }
        let tokens_per_sec = (trainer.tokens - before) as f64 / start.elapsed().as_secs_f64();
        let done = trainer.step;
        let every = inputs.recipe.eval.every;
        let is_due = done == inputs.recipe.train.steps || (every > 0 && done % every == 0);
        let bits_per_byte = is_due
            .then(|| trainer.evaluate(&inputs.heldout.batches))
            .and_then(|nats| inputs.heldout.bits_per_byte(nats));
        let metrics = StepMetrics {
            tokens_per_sec,
            bits_per_byte,
            reward,
            ..step_metrics(trainer, &result, inputs.recipe)
        };
        self.metrics.append(&metrics)?;
        Ok(metrics)
    }

    /// A checkpoint, then its record.
    fn save(&mut self) -> Result<PathBuf, StageError> {
        let (inputs, trainer) = (self.inputs, &self.trainer);
        let path = inputs.run.checkpoint(inputs.stage, trainer.step);
        self.metrics.sync()?;
        let Saved { weights, optimizer } =
            checkpoint::save(&path, trainer, inputs.stage, inputs.tokenizer_json)?;
        let event = Event::Checkpoint(CheckpointRecord {
            stage: inputs.stage,
            step: trainer.step,
            tokens: trainer.tokens,
            weights_sha256: weights.sha256.clone(),
            optimizer_sha256: optimizer.sha256,
            parent_weights_sha256: std::mem::replace(&mut self.parent_sha256, weights.sha256),
        });
        let artefacts = self.ledger.artefacts_in(&path)?;
        self.ledger.append(&event, artefacts)?;
        self.last_saved = trainer.step;
        Ok(path)
    }

    fn finish(&mut self) -> Result<(), StageError> {
        let stage = self.inputs.stage;
        if recorded::find(self.ledger.records(), stage, "final").is_some() {
            return Ok(());
        }
        self.metrics.sync()?;
        let event = Event::Final(Final {
            stage,
            step: self.trainer.step,
            weights_sha256: self.parent_sha256.clone(),
        });
        let metrics = self.ledger.artefact(&self.inputs.run.metrics(stage))?;
        self.ledger.append(&event, vec![metrics])?;
        Ok(())
    }
}

/// Genesis, data, tokenizer and random start, as far as they are not recorded.
fn record_start(
    ledger: &mut Ledger,
    inputs: &StageInputs,
    genesis: Genesis,
    weights_sha256: &str,
) -> Result<(), StageError> {
    let run = &inputs.run;
    if ledger.records().is_empty() {
        ledger.append(&Event::Genesis(genesis), Vec::new())?;
    }
    let manifest = run.root().join(&inputs.data.location).join("manifest.json");
    let is_inside = Path::new(&inputs.data.location).is_relative();
    let [data, tokenizer] = recorded::inputs(inputs);
    record(ledger, inputs, &data, || {
        Ok(is_inside.then_some(manifest).into_iter().collect())
    })?;
    record(ledger, inputs, &tokenizer, || {
        let path = run.tokenizer();
        let is_there = fs::read(&path).is_ok_and(|found| found == inputs.tokenizer_json);
        if !is_there {
            atomic::write_bytes(&path, inputs.tokenizer_json)?;
        }
        Ok(vec![path])
    })?;
    record(
        ledger,
        inputs,
        &recorded::init(inputs, weights_sha256),
        || Ok(Vec::new()),
    )
}

/// Recipe and order of batches of the stage.
fn record_stage(ledger: &mut Ledger, inputs: &StageInputs) -> Result<(), StageError> {
    let [recipe, batches] = recorded::order(inputs);
    record(ledger, inputs, &recipe, || {
        let path = inputs.run.recipe(inputs.stage);
        atomic::write_bytes(&path, inputs.recipe.to_toml().as_bytes())?;
        Ok(vec![path])
    })?;
    // Token files outside the run are made again from its data; the commitment has their digests.
    let files = inputs.batches.files().iter();
    let inside = files.filter(|file| inputs.run.relative(file).is_some());
    record(ledger, inputs, &batches, || Ok(inside.cloned().collect()))
}

/// Appends an event unless it is there; one that says something else is an error.
fn record(
    ledger: &mut Ledger,
    inputs: &StageInputs,
    event: &Event,
    write: impl FnOnce() -> Result<Vec<PathBuf>, FileError>,
) -> Result<(), StageError> {
    if recorded::compare(ledger.records(), inputs, event)? {
        return Ok(());
    }
    let files = write()?;
    let artefacts = files.iter().map(|file| ledger.artefact(file));
    let artefacts = artefacts.collect::<Result<Vec<_>, _>>()?;
    ledger.append(event, artefacts)?;
    Ok(())
}

/// The weights that a stage starts from, and their digest.
pub(crate) fn start(
    inputs: &StageInputs,
    records: &[Record],
    layout: &Layout,
) -> Result<(Vec<f32>, String), StageError> {
    let (run, stage) = (&inputs.run, inputs.stage);
    match stage {
        Stage::Pretrain => {
            let weights = init::initial_weights(&inputs.config, layout, inputs.recipe.seed);
            let sha256 = checkpoint::weights_sha256(layout, &weights)?;
            Ok((weights, sha256))
        }
        Stage::Sft | Stage::Prefer | Stage::Rl => match parent(run, records, stage, layout)? {
            Some(parent) => Ok(parent),
            None => Err(StageError::NoParent {
                path: run.root().to_path_buf(),
                stage,
            }),
        },
    }
}

/// The final weights of the last stage before `stage` that has come to its end, and their digest.
///
/// # Errors
/// When its checkpoint cannot be read.
pub fn parent(
    run: &RunDir,
    records: &[Record],
    stage: Stage,
    layout: &Layout,
) -> Result<Option<(Vec<f32>, String)>, CheckpointError> {
    let before = Stage::ALL.into_iter().rev().filter(|s| *s < stage);
    let mut ends = before.filter_map(|s| match recorded::find(records, s, "final") {
        Some(Event::Final(end)) => Some(end),
        _ => None,
    });
    let Some(end) = ends.next() else {
        return Ok(None);
    };
    let dir = run.checkpoint(end.stage, end.step);
    Ok(Some((
        checkpoint::read_weights(&dir, layout)?,
        end.weights_sha256,
    )))
}

/// What a step comes to, but for its speed and the held-out text.
pub(crate) fn step_metrics(trainer: &Trainer, result: &StepResult, recipe: &Recipe) -> StepMetrics {
    let done = trainer.step;
    let has_loads = done % LOAD_EVERY == 0 || done == 1 || done == recipe.train.steps;
    StepMetrics {
        step: done,
        tokens: trainer.tokens,
        loss: total(result, recipe),
        next_token_loss: result.losses.next_token,
        mtp_loss: result.losses.mtp,
        balance_loss: unweighted(result.losses.balance, recipe.loss.balance_alpha),
        lr: result.lr,
        grad_norm: result.grad_norm,
        tokens_per_sec: 0.0,
        bits_per_byte: None,
        reward: None,
        expert_load: has_loads.then(|| shares(&result.tokens_per_expert)),
    }
}

fn total(result: &StepResult, recipe: &Recipe) -> f64 {
    let mtp = f64::from(recipe.loss.mtp_weight) * result.losses.mtp;
    result.losses.next_token + mtp + result.losses.balance
}

fn unweighted(balance: f64, alpha: f32) -> f64 {
    match alpha > 0.0 {
        true => balance / f64::from(alpha),
        false => 0.0,
    }
}

/// Each expert's share of its layer's rows.
fn shares(tokens_per_expert: &[Vec<u32>]) -> Vec<Vec<f32>> {
    let layers = tokens_per_expert.iter();
    layers
        .map(|loads| {
            let total = loads.iter().sum::<u32>().max(1) as f32;
            loads.iter().map(|&load| load as f32 / total).collect()
        })
        .collect()
}
