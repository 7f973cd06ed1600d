//! A checkpoint directory: a Hugging Face layout, and what training needs to go on.
//!
//! ```text
//! config.json  generation_config.json  tokenizer.json  model.safetensors      the model, f32
//! optimizer.safetensors  trainer.json                                         the rest of the state
//! ```
//! It appears whole or not at all. Everything that a later step depends on is in it, so that training
//! resumed from it computes the same bits as training that never stopped.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use formats::atomic;
use formats::error::FileError;
use formats::hash::FileHash;
use formats::json::{self, JsonError};
use formats::run_dir::Stage;
use formats::safetensors::{
    SINGLE_FILE, SafeTensors, SafeTensorsError, TensorData, TensorSource, sha256_of_tensors,
    write_safetensors,
};
use model::{Layout, ModelConfig};
use serde::{Deserialize, Serialize};
use serde_json::json;
use thiserror::Error;

use crate::optim::StateTensor;
use crate::trainer::Trainer;

/// The optimizer's state.
pub const OPTIMIZER_FILE: &str = "optimizer.safetensors";
/// Counters.
pub const TRAINER_FILE: &str = "trainer.json";

/// A checkpoint could not be written or read.
#[derive(Debug, Error)]
pub enum CheckpointError {
    /// A file of tensors.
    #[error(transparent)]
    Tensors(#[from] SafeTensorsError),
    /// The file system.
    #[error(transparent)]
    File(#[from] FileError),
    /// A JSON file.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// Weights of another architecture.
    #[error("{}: tensor {name} is {found:?}, but {expected:?} is expected", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// As stored.
        found: Vec<usize>,
        /// As the configuration implies.
        expected: Vec<usize>,
    },
    /// A tensor without a place.
    #[error("{}: tensor {name} has no place in the architecture of config.json", path.display())]
    Unknown {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
}

/// `trainer.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainerState {
    /// Of this file's form.
    pub version: u32,
    /// The stage.
    pub stage: Stage,
    /// Steps done in it.
    pub step: u64,
    /// Tokens read in it.
    pub tokens: u64,
}

/// Digests of a written checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    /// Of model.safetensors.
    pub weights: FileHash,
    /// Of optimizer.safetensors.
    pub optimizer: FileHash,
}

/// Digests of what a checkpoint of a trainer would hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digests {
    /// Of model.safetensors.
    pub weights: String,
    /// Of optimizer.safetensors.
    pub optimizer: String,
}

/// The digests of the checkpoint that [`save`] would write.
///
/// # Errors
/// Never for a trainer: of tensors that have no place in one file.
pub fn digests(trainer: &Trainer) -> Result<Digests, CheckpointError> {
    let layout = &trainer.model.layout;
    let state = trainer.optimizer.state(layout);
    Ok(Digests {
        weights: weights_sha256(layout, trainer.model.params.host())?,
        optimizer: sha256_of_tensors(&optimizer_sources(&state), &BTreeMap::new())?,
    })
}

/// Writes the directory `path`. `tokenizer` is the text of tokenizer.json.
///
/// # Errors
/// When `path` is taken, or the disk is full: then nothing is left of it.
pub fn save(
    path: &Path,
    trainer: &Trainer,
    stage: Stage,
    tokenizer: &[u8],
) -> Result<Saved, CheckpointError> {
    let layout = &trainer.model.layout;
    let weights = sources(layout, trainer.model.params.host());
    let state = trainer.optimizer.state(layout);
    let optimizer = optimizer_sources(&state);
    let floats = layout.len
        + state
            .iter()
            .map(|tensor| tensor.values.len())
            .sum::<usize>();
    let size_bytes = (4 * floats + tokenizer.len() + (1 << 16)) as u64;
    atomic::write_dir(path, size_bytes, |dir| {
        let none = BTreeMap::new();
        let saved = Saved {
            weights: write_safetensors(&dir.join(SINGLE_FILE), &weights, &none)?,
            optimizer: write_safetensors(&dir.join(OPTIMIZER_FILE), &optimizer, &none)?,
        };
        let config = &trainer.model.config;
        atomic::write_bytes(&dir.join("config.json"), config_text(config).as_bytes())?;
        json::write(&dir.join("generation_config.json"), &generation(config))?;
        atomic::write_bytes(&dir.join("tokenizer.json"), tokenizer)?;
        let state = TrainerState {
            version: 1,
            stage,
            step: trainer.step,
            tokens: trainer.tokens,
        };
        json::write(&dir.join(TRAINER_FILE), &state)?;
        Ok(saved)
    })
}

/// Brings a new trainer to where the checkpoint in `path` was saved, its weights included.
///
/// # Errors
/// When the checkpoint is damaged or of another architecture.
pub fn restore(path: &Path, trainer: &mut Trainer) -> Result<(), CheckpointError> {
    let state: TrainerState = json::read(&path.join(TRAINER_FILE))?;
    let weights = read_weights(path, &trainer.model.layout)?;
    trainer.model.params.write(&weights);
    trainer.model.refresh(&trainer.device);
    let file_path = path.join(OPTIMIZER_FILE);
    let file = SafeTensors::open(&file_path)?;
    let layout = &trainer.model.layout;
    trainer.optimizer.restore(layout, |name, shape, out| {
        read(&file, &file_path, name, shape, out)
    })?;
    (trainer.step, trainer.tokens) = (state.step, state.tokens);
    Ok(())
}

/// All parameters of a checkpoint directory in f32, in the order of the layout.
///
/// # Errors
/// When a tensor is missing, has another shape, or has no place in the layout.
pub fn read_weights(dir: &Path, layout: &Layout) -> Result<Vec<f32>, CheckpointError> {
    let file = SafeTensors::open(dir)?;
    let mut weights = vec![0.0; layout.len];
    for tensor in &layout.tensors {
        let out = &mut weights[tensor.span.range()];
        read(&file, dir, &tensor.name, &tensor.shape, out)?;
    }
    let known: std::collections::HashSet<&str> =
        layout.tensors.iter().map(|t| t.name.as_str()).collect();
    match file.names().find(|name| !known.contains(name)) {
        None => Ok(weights),
        Some(name) => Err(CheckpointError::Unknown {
            path: dir.to_path_buf(),
            name: name.to_string(),
        }),
    }
}

fn read(
    file: &SafeTensors,
    path: &Path,
    name: &str,
    shape: &[usize],
    out: &mut [f32],
) -> Result<(), CheckpointError> {
    let view = file.get(name)?;
    if view.shape != shape {
        return Err(CheckpointError::Shape {
            path: path.to_path_buf(),
            name: name.to_string(),
            found: view.shape.to_vec(),
            expected: shape.to_vec(),
        });
    }
    Ok(view.copy_to_f32(out)?)
}

/// SHA-256 of the model.safetensors that holds these weights: what the ledger calls `weights_sha256`.
pub fn weights_sha256(layout: &Layout, weights: &[f32]) -> Result<String, CheckpointError> {
    Ok(sha256_of_tensors(
        &sources(layout, weights),
        &BTreeMap::new(),
    )?)
}

/// The text of config.json in every checkpoint of a run.
pub fn config_text(config: &ModelConfig) -> String {
    let mut text = format!("{:#}", config.to_json());
    text.push('\n');
    text
}

fn sources<'a>(layout: &'a Layout, weights: &'a [f32]) -> Vec<TensorSource<'a>> {
    let tensors = layout.tensors.iter();
    tensors
        .map(|tensor| TensorSource {
            name: &tensor.name,
            shape: &tensor.shape,
            data: TensorData::F32(&weights[tensor.span.range()]),
        })
        .collect()
}

fn optimizer_sources<'a>(state: &'a [StateTensor<'a>]) -> Vec<TensorSource<'a>> {
    let tensors = state.iter();
    tensors
        .map(|tensor| TensorSource {
            name: &tensor.name,
            shape: tensor.shape,
            data: TensorData::F32(tensor.values),
        })
        .collect()
}

/// How text is drawn where nobody says: the likeliest token, which small models answer best with.
fn generation(config: &ModelConfig) -> serde_json::Value {
    json!({
        "do_sample": false,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_json(),
        "pad_token_id": config.pad_token_id,
    })
}
