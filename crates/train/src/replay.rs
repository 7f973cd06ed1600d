//! Segments of a stage trained again: does each recorded checkpoint follow from the one before, to the bit?
//!
//! A segment runs from one recorded checkpoint to the next; the first starts where the stage does. Its start is read
//! (or, for the random start, computed), held against the ledger, and trained with the batches that were promised.
//! What comes out must have the recorded digests, and each step the recorded losses.
//!
//! It shows that this start, this data and this code give these weights. It does not show that nobody knew the weights
//! before: that is what the promise of the batches, and a head of the ledger that was published early, are for.

use std::ops::ControlFlow;
use std::path::PathBuf;

use formats::ledger::records::{Checkpoint, Data};
use formats::ledger::{self, Event, Record};
use formats::metrics::{self, StepMetrics};
use formats::run_dir::{RunDir, Stage};
use model::Layout;
use tensor::Device;

use crate::batches::StepBatches;
use crate::checkpoint::{self, CheckpointError};
use crate::recorded;
use crate::stage::{self, StageError, StageInputs};
use crate::trainer::Trainer;

/// From one recorded checkpoint of a stage to the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The checkpoint that it starts from; none where the stage starts.
    pub start: Option<Checkpoint>,
    /// The checkpoint that it ends with.
    pub end: Checkpoint,
}

impl Segment {
    /// Steps done before it.
    pub fn first_step(&self) -> u64 {
        self.start.as_ref().map_or(0, |start| start.step)
    }

    /// How many steps it has.
    pub fn steps(&self) -> u64 {
        self.end.step - self.first_step()
    }

    /// The checkpoint that it starts from and that is no longer there, if so.
    pub fn missing(&self, run: &RunDir) -> Option<PathBuf> {
        let start = self.start.as_ref()?;
        let path = run.checkpoint(start.stage, start.step);
        (!path.join(checkpoint::OPTIMIZER_FILE).is_file()).then_some(path)
    }
}

/// The segments of a stage that its ledger has, in order, without checkpoints that were abandoned: those after the one
/// that a resumption went on from.
pub fn segments(records: &[Record], stage: Stage) -> Vec<Segment> {
    let mut ends: Vec<Checkpoint> = Vec::new();
    for event in records.iter().filter_map(|record| record.event().ok()) {
        match event {
            Event::Resume(resume) if resume.stage == stage => {
                ends.retain(|end| end.step <= resume.step);
            }
            Event::Checkpoint(checkpoint) if checkpoint.stage == stage => {
                ends.retain(|end| end.step < checkpoint.step);
                ends.push(checkpoint);
            }
            _ => {}
        }
    }
    let mut start = None;
    let segment = |end: Checkpoint| {
        let start = start.replace(end.clone());
        Segment { start, end }
    };
    ends.into_iter().map(segment).collect()
}

/// The first thing in which a segment differs from its record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// What it starts from.
    Start {
        /// Weights, state of the optimizer, or counters.
        what: &'static str,
        /// As recorded.
        recorded: String,
        /// As found.
        found: String,
    },
    /// A step has other figures than metrics.jsonl, or none are there.
    Step {
        /// The step, counted from 1.
        step: u64,
        /// Which figure.
        what: &'static str,
    },
    /// What it ends with.
    End {
        /// Weights, or state of the optimizer.
        what: &'static str,
        /// As recorded.
        recorded: String,
        /// As computed.
        computed: String,
    },
}

/// Trains a segment again; `report` is told each step. `None` when it breaks.
///
/// # Errors
/// When data, tokenizer, recipe or order of batches are not the recorded ones ([`StageError::Changed`],
/// [`StageError::NotRecorded`]), or files cannot be read.
pub fn replay(
    device: Device,
    inputs: &StageInputs,
    records: &[Record],
    segment: &Segment,
    report: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> Result<Option<Result<(), Difference>>, StageError> {
    let layout = Layout::new(&inputs.config);
    let (weights, sha256) = match &segment.start {
        // They come from the checkpoint.
        Some(_) => (vec![0.0; layout.len], None),
        None => {
            let (weights, sha256) = stage::start(inputs, records, &layout)?;
            (weights, Some(sha256))
        }
    };
    check_inputs(inputs, records, sha256.as_deref())?;
    let mut trainer = Trainer::new(device, inputs.config.clone(), &weights, inputs.recipe);
    drop(weights);
    if let Some(start) = &segment.start {
        checkpoint::restore(
            &inputs.run.checkpoint(start.stage, start.step),
            &mut trainer,
        )?;
    }
    if let Some(difference) = start_difference(segment, &trainer)? {
        return Ok(Some(Err(difference)));
    }
    let recorded = metrics::read(&inputs.run.metrics(inputs.stage))?;
    while trainer.step < segment.end.step {
        let StepBatches { batches, reward } = inputs.batches.batches(&trainer);
        let result = trainer.step(batches);
        let computed = StepMetrics {
            reward,
            ..stage::step_metrics(&trainer, &result, inputs.recipe)
        };
        let recorded = recorded.iter().find(|line| line.step == computed.step);
        if let Some(what) = step_difference(recorded, &computed) {
            let step = computed.step;
            return Ok(Some(Err(Difference::Step { step, what })));
        }
        if report(trainer.step).is_break() {
            return Ok(None);
        }
    }
    let computed = checkpoint::digests(&trainer)?;
    let end = &segment.end;
    let difference = [
        ("weights", &end.weights_sha256, computed.weights),
        (
            "state of the optimizer",
            &end.optimizer_sha256,
            computed.optimizer,
        ),
    ]
    .into_iter()
    .find(|(_, recorded, computed)| *recorded != computed)
    .map(|(what, recorded, computed)| Difference::End {
        what,
        recorded: recorded.clone(),
        computed,
    });
    Ok(Some(difference.map_or(Ok(()), Err)))
}

/// That data, tokenizer, recipe, order of batches and the random start (if given) are the recorded ones.
fn check_inputs(
    inputs: &StageInputs,
    records: &[Record],
    init_sha256: Option<&str>,
) -> Result<(), StageError> {
    let init = match (inputs.stage, init_sha256) {
        (Stage::Pretrain, Some(sha256)) => Some(recorded::init(inputs, sha256)),
        _ => None,
    };
    let [data, tokenizer] = recorded::inputs(inputs);
    let events = [recorded_place(data, records), tokenizer].into_iter();
    for event in events.chain(recorded::order(inputs)).chain(init) {
        if !recorded::compare(records, inputs, &event)? {
            return Err(StageError::NotRecorded {
                path: inputs.run.root().to_path_buf(),
                kind: event.parts().0,
            });
        }
    }
    Ok(())
}

/// Data are what their manifest says, wherever they lie.
fn recorded_place(data: Event, records: &[Record]) -> Event {
    match (data, ledger::data(records)) {
        (Event::Data(data), Some(Data { location, .. })) => Event::Data(Data { location, ..data }),
        (data, _) => data,
    }
}

fn start_difference(
    segment: &Segment,
    trainer: &Trainer,
) -> Result<Option<Difference>, CheckpointError> {
    let found = checkpoint::digests(trainer)?;
    let mut parts = vec![(
        "weights",
        segment.end.parent_weights_sha256.clone(),
        found.weights,
    )];
    if let Some(start) = &segment.start {
        parts.push((
            "state of the optimizer",
            start.optimizer_sha256.clone(),
            found.optimizer,
        ));
        let counters = |step, tokens| format!("{step} steps, {tokens} tokens");
        let recorded = counters(start.step, start.tokens);
        parts.push(("counters", recorded, counters(trainer.step, trainer.tokens)));
    }
    let differs = |(_, recorded, found): &(_, String, String)| recorded != found;
    let difference = |(what, recorded, found)| Difference::Start {
        what,
        recorded,
        found,
    };
    Ok(parts.into_iter().find(differs).map(difference))
}

/// The first figure that differs, of those that the weights and batches determine.
fn step_difference(recorded: Option<&StepMetrics>, computed: &StepMetrics) -> Option<&'static str> {
    let Some(recorded) = recorded else {
        return Some("line in metrics.jsonl");
    };
    let same = |a: f64, b: f64| a.to_bits() == b.to_bits();
    [
        ("tokens", recorded.tokens == computed.tokens),
        ("lr", same(recorded.lr, computed.lr)),
        (
            "next_token_loss",
            same(recorded.next_token_loss, computed.next_token_loss),
        ),
        ("mtp_loss", same(recorded.mtp_loss, computed.mtp_loss)),
        (
            "balance_loss",
            same(recorded.balance_loss, computed.balance_loss),
        ),
        ("loss", same(recorded.loss, computed.loss)),
        ("grad_norm", same(recorded.grad_norm, computed.grad_norm)),
        ("reward", recorded.reward == computed.reward),
        ("expert_load", recorded.expert_load == computed.expert_load),
    ]
    .into_iter()
    .find_map(|(what, is_same)| (!is_same).then_some(what))
}
