//! What a run's ledger says of a stage, and whether a stage is made from that.

use formats::hash;
use formats::ledger::records::{Batches, Checkpoint, Init, Recipe};
use formats::ledger::{Event, Record};
use formats::run_dir::Stage;
use model::init;

use crate::checkpoint;
use crate::stage::{StageError, StageInputs};

/// Data and tokenizer, of which a run has one each.
pub(crate) fn inputs(inputs: &StageInputs) -> [Event; 2] {
    [
        Event::Data(inputs.data.clone()),
        Event::Tokenizer(inputs.tokenizer.clone()),
    ]
}

/// The random start, whose weights have this digest.
pub(crate) fn init(inputs: &StageInputs, weights_sha256: &str) -> Event {
    Event::Init(Init {
        seed: inputs.recipe.seed,
        generator: init::GENERATOR.to_string(),
        weights_sha256: weights_sha256.to_string(),
        config_sha256: hash::sha256_hex(checkpoint::config_text(&inputs.config).as_bytes()),
    })
}

/// Recipe and order of batches of the stage.
pub(crate) fn order(inputs: &StageInputs) -> [Event; 2] {
    let stage = inputs.stage;
    [
        Event::Recipe(Recipe {
            stage,
            sha256: hash::sha256_hex(inputs.recipe.to_toml().as_bytes()),
        }),
        Event::Batches(Batches {
            stage,
            commitment_sha256: inputs.batches.commitment().to_string(),
            seed: inputs.recipe.seed,
            order: inputs.batches.order().to_string(),
        }),
    ]
}

/// Whether an event is recorded; an error when another of its kind (and stage) is.
pub(crate) fn compare(
    records: &[Record],
    inputs: &StageInputs,
    event: &Event,
) -> Result<bool, StageError> {
    let (kind, payload) = event.parts();
    let stage = payload.get("stage").cloned();
    let same_kind = |r: &&Record| r.kind == kind && r.payload.get("stage").cloned() == stage;
    let Some(before) = records.iter().find(same_kind) else {
        return Ok(false);
    };
    // A tokenizer is its file; what is known of its origin may have been said once.
    let is_same = match event {
        Event::Tokenizer(tokenizer) => before.payload["sha256"] == tokenizer.sha256.as_str(),
        _ => before.payload == payload,
    };
    if is_same {
        return Ok(true);
    }
    let what = match event {
        Event::Data(_) => "data directory",
        Event::Tokenizer(_) => "tokenizer",
        Event::Init(_) => "seed or architecture",
        Event::Recipe(_) => "recipe",
        _ => "order of batches",
    };
    Err(StageError::Changed {
        path: inputs.run.root().to_path_buf(),
        what,
        recorded: before.payload.to_string(),
        found: payload.to_string(),
    })
}

/// The first record of a kind and stage.
pub(crate) fn find(records: &[Record], stage: Stage, kind: &str) -> Option<Event> {
    records
        .iter()
        .filter(|r| r.kind == kind && r.payload["stage"] == stage.name())
        .find_map(|r| r.event().ok())
}

/// The checkpoints of a stage, in the order in which they were made.
pub(crate) fn checkpoints(records: &[Record], stage: Stage) -> Vec<Checkpoint> {
    let events = records.iter().filter_map(|r| r.event().ok());
    events
        .filter_map(|event| match event {
            Event::Checkpoint(checkpoint) if checkpoint.stage == stage => Some(checkpoint),
            _ => None,
        })
        .collect()
}
