//! The kinds of records. Digests are SHA-256 in 64 lower-case hexadecimal digits.
//!
//! The walk of an audit from the end to the start:
//! final -> checkpoint -> (parent) checkpoint ... -> init, with recipe, batches, tokenizer and data
//! as the inputs of each stage. `inherit` stands in place of `init` in a run that starts from the
//! weights of another.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::run_dir::Stage;

/// What a record says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "payload", rename_all = "snake_case")]
pub enum Event {
    /// The first record of every ledger.
    Genesis(Genesis),
    /// The documents.
    Data(Data),
    /// The tokenizer.
    Tokenizer(Tokenizer),
    /// The random start.
    Init(Init),
    /// A start from another run's weights, instead of `init`.
    Inherit(Inherit),
    /// What determines a stage.
    Recipe(Recipe),
    /// The order of the training data, promised before it is used.
    Batches(Batches),
    /// Weights on the way.
    Checkpoint(Checkpoint),
    /// Training went on after an interruption.
    Resume(Resume),
    /// The weights that a stage ends with.
    Final(Final),
    /// A measurement.
    Eval(Eval),
}

impl Event {
    /// Every `kind` that this version knows.
    pub const KINDS: [&str; 11] = [
        "genesis",
        "data",
        "tokenizer",
        "init",
        "inherit",
        "recipe",
        "batches",
        "checkpoint",
        "resume",
        "final",
        "eval",
    ];

    /// The `kind` and `payload` of its record.
    pub fn parts(&self) -> (String, Value) {
        let value = serde_json::to_value(self).expect("plain structs with string keys");
        let kind = value["kind"]
            .as_str()
            .expect("the tag of the enum")
            .to_string();
        (kind, value["payload"].clone())
    }
}

/// Who began the run, with which program, on what machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Genesis {
    /// Version of this program.
    pub dokja_version: String,
    /// Commit of its source, if known.
    pub code_commit: Option<String>,
    /// Where it runs.
    pub machine: Machine,
    /// RFC 3339, or empty where the time of the record says it.
    pub created: String,
}

/// A machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// As the processor names itself.
    pub cpu: String,
    /// Instruction set that was chosen.
    pub isa: String,
    /// Cores used.
    pub cores: u64,
    /// Main memory.
    pub memory_bytes: u64,
}

/// The training data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Data {
    /// Of manifest.json, which has the digest of every shard.
    pub manifest_sha256: String,
    /// The directory of the manifest: relative to the run directory, or absolute if it is
    /// elsewhere.
    pub location: String,
    /// Documents trained on.
    pub train_documents: u64,
    /// Documents kept apart.
    pub heldout_documents: u64,
}

/// The tokenizer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tokenizer {
    /// Of tokenizer.json.
    pub sha256: String,
    /// Ids are below it.
    pub vocab_size: u64,
    /// The data it was trained on; None when it was brought along.
    pub trained_on_manifest_sha256: Option<String>,
}

/// The random start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Init {
    /// Of the initial weights.
    pub seed: u64,
    /// Name and version of the function from seed to weights.
    pub generator: String,
    /// Of the initial weights, as the generator's file would have them.
    pub weights_sha256: String,
    /// Of config.json, the bytes that every checkpoint carries.
    pub config_sha256: String,
}

/// A start from another run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inherit {
    /// Where it lay: informative.
    pub path: String,
    /// Digest of the last line of its ledger.
    pub ledger_head: String,
    /// The weights taken over.
    pub weights_sha256: String,
}

/// What determines a stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipe {
    /// The stage.
    pub stage: Stage,
    /// Of `<stage>/recipe.toml`, fully resolved.
    pub sha256: String,
}

/// The order of the training data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batches {
    /// The stage.
    pub stage: Stage,
    /// Digest over the documents of every batch, in order.
    pub commitment_sha256: String,
    /// Of the shuffle.
    pub seed: u64,
    /// How the order follows from seed and data, in words, with the version of the method.
    pub order: String,
}

/// Weights on the way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The stage.
    pub stage: Stage,
    /// Steps done in it.
    pub step: u64,
    /// Tokens trained on in it.
    pub tokens: u64,
    /// Of model.safetensors.
    pub weights_sha256: String,
    /// Of optimizer.safetensors.
    pub optimizer_sha256: String,
    /// The weights training came from: the checkpoint before, the final weights of the stage
    /// before, or the random start.
    pub parent_weights_sha256: String,
}

/// Training went on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resume {
    /// The stage.
    pub stage: Stage,
    /// The checkpoint it went on from; 0 when from the start of the stage.
    pub step: u64,
}

/// The end of a stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Final {
    /// The stage.
    pub stage: Stage,
    /// Steps done in it.
    pub step: u64,
    /// Of the last checkpoint's model.safetensors.
    pub weights_sha256: String,
}

/// A measurement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Eval {
    /// What was measured.
    pub suite: String,
    /// The model: digest of its weights.
    pub weights_sha256: String,
    /// The result.
    pub score: f64,
    /// Its confidence interval, where there is one.
    pub ci95: Option<[f64; 2]>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_its_kind_and_payload() {
        let event = Event::Resume(Resume {
            stage: Stage::Sft,
            step: 3,
        });
        let (kind, payload) = event.parts();
        assert_eq!(kind, "resume");
        assert!(Event::KINDS.contains(&kind.as_str()));
        assert_eq!(payload, serde_json::json!({"stage": "sft", "step": 3}));
        let again = serde_json::json!({"kind": kind, "payload": payload});
        assert_eq!(serde_json::from_value::<Event>(again).unwrap(), event);
    }
}
