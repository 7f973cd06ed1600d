//! A model on disk, whatever its layout: what it is, and its weights in the order of
//! [`model::weights::Layout`].
//!
//! A [`Checkpoint`] is a directory in the Hugging Face layout (`hugging_face.rs`) or a GGUF file
//! (`gguf.rs`). Opening maps the files and checks that every tensor of the architecture has its place with its shape, and that there is no tensor
//! that the architecture does not have; no weight is read before it is asked for.
//!
//! Which names a tensor has in which layout is in [`model::names`]. Training state (optimizer, counters)
//! is `train`'s; this crate reads what others wrote as well.

pub mod gguf;
mod hugging_face;
pub mod write;

use formats::error::FileError;
use formats::gguf::{Gguf, GgufError};
use formats::json::JsonError;
use formats::mmap::Advice;
use formats::safetensors::SafeTensorsError;
use gguf::GgufModel;
use hugging_face::HuggingFace;
use model::config::ConfigError;
use model::weights::{Blocks, Source, TensorSpec};
use model::{Layout, ModelConfig};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Why a model on disk cannot be used.
#[derive(Debug, Error)]
pub enum CheckpointError {
    /// A file of tensors.
    #[error(transparent)]
    Tensors(#[from] SafeTensorsError),
    /// A GGUF file.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The file system.
    #[error(transparent)]
    File(#[from] FileError),
    /// A JSON file.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// The configuration.
    #[error("cannot use {}: {source}", path.display())]
    Config {
        /// Its file.
        path: PathBuf,
        /// Why.
        source: ConfigError,
    },
    /// The metadata of a GGUF file.
    #[error("{}: {key} is {found}, expected {expected}", path.display())]
    Metadata {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// Its value.
        found: String,
        /// What it may be.
        expected: String,
    },
    /// A tensor of the architecture is not there.
    #[error("{} has no tensor {name}, which the architecture of config.json needs", path.display())]
    Missing {
        /// The files.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// Weights of another architecture.
    #[error("{}: tensor {name} is {found:?}, but {expected:?} is expected", path.display())]
    Shape {
        /// The files.
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
        /// The files.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// A configuration of far more than the files hold.
    #[error(
        "{} describes {parameters} parameters in {layers} layers, but has {elements} in {tensors} tensors; \
         it belongs to another model, or is cut short",
        path.display()
    )]
    Sizes {
        /// The files.
        path: PathBuf,
        /// As the configuration implies.
        parameters: u128,
        /// As the configuration says.
        layers: usize,
        /// Elements of all tensors.
        elements: u128,
        /// Their number.
        tensors: usize,
    },
    /// A layout cannot hold the model.
    #[error("cannot write {}: {what}", path.display())]
    NoWay {
        /// What was to be written.
        path: PathBuf,
        /// What the layout lacks.
        what: String,
    },
    /// FP8 weights whose scales do not fit.
    #[error("{}: tensor {name} {what}", path.display())]
    Scale {
        /// The files.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What is wrong.
        what: String,
    },
}

/// A model whose files have been opened.
pub struct Checkpoint {
    /// The directory, or the GGUF file.
    pub path: PathBuf,
    /// The architecture.
    pub config: ModelConfig,
    /// Its tensors.
    pub layout: Layout,
    files: Files,
}

enum Files {
    HuggingFace(HuggingFace),
    Gguf(GgufModel),
}

impl Files {
    fn stored(&self) -> Vec<(String, usize, u64)> {
        match self {
            Files::HuggingFace(files) => files.stored(),
            Files::Gguf(file) => file.stored(),
        }
    }

    /// The number of tensors, and of their elements.
    fn held(&self) -> (usize, u128) {
        match self {
            Files::HuggingFace(files) => files.held(),
            Files::Gguf(file) => file.held(),
        }
    }
}

impl Checkpoint {
    /// Opens a checkpoint directory or a GGUF file.
    ///
    /// # Errors
    /// When a file is missing or damaged, or files and architecture do not fit together.
    pub fn open(path: &Path) -> Result<Checkpoint, CheckpointError> {
        let checkpoint = Checkpoint::open_unchecked(path)?;
        checkpoint.check()?;
        Ok(checkpoint)
    }

    /// Every tensor of the architecture has its place, and there is no other.
    ///
    /// # Errors
    /// Names the first tensor for which that is not so.
    pub fn check(&self) -> Result<(), CheckpointError> {
        match &self.files {
            Files::HuggingFace(files) => files.check(&self.config, &self.layout),
            Files::Gguf(file) => file.check(&self.config, &self.layout),
        }
    }

    /// Types of the stored tensors, with their number and bytes.
    pub fn stored(&self) -> Vec<(String, usize, u64)> {
        self.files.stored()
    }

    /// The GGUF file, where it is one: for its tokenizer.
    pub fn gguf(&self) -> Option<&Gguf> {
        match &self.files {
            Files::HuggingFace(_) => None,
            Files::Gguf(model) => Some(&model.file),
        }
    }

    /// As [`Checkpoint::open`], without the check: to tell what is wrong.
    ///
    /// # Errors
    /// When a file is missing or damaged.
    pub fn open_unchecked(path: &Path) -> Result<Checkpoint, CheckpointError> {
        if path.is_file() {
            return Checkpoint::of_gguf(Gguf::open(path)?);
        }
        let file = path.join("config.json");
        let text = std::fs::read_to_string(&file).map_err(|e| FileError::io("read", &file, e))?;
        let config = ModelConfig::from_json(&text)
            .map_err(|source| CheckpointError::Config { path: file, source })?;
        let files = Files::HuggingFace(HuggingFace::open(path, &text)?);
        Checkpoint::new(path, config, files)
    }

    /// As [`Checkpoint::open_unchecked`], of a GGUF file that has been read.
    ///
    /// # Errors
    /// When its metadata describe no model that is known here.
    pub fn of_gguf(file: Gguf) -> Result<Checkpoint, CheckpointError> {
        let file = GgufModel { file };
        let config = file.config()?;
        let path = file.file.path().to_path_buf();
        Checkpoint::new(&path, config, Files::Gguf(file))
    }

    /// Lists the tensors, where the files could hold them: a small file may describe a huge model.
    fn new(path: &Path, config: ModelConfig, files: Files) -> Result<Checkpoint, CheckpointError> {
        let (tensors, elements) = files.held();
        let ((_, parameters), layers) = (model::flops::size(&config), config.num_hidden_layers);
        // Where little is missing, `check` names it.
        if parameters / 8 > elements || layers / 8 > tensors {
            return Err(CheckpointError::Sizes {
                path: path.to_path_buf(),
                parameters,
                layers,
                elements,
                tensors,
            });
        }
        Ok(Checkpoint {
            path: path.to_path_buf(),
            layout: Layout::new(&config),
            config,
            files,
        })
    }

    /// Values of one tensor in f32, from row `row` on; `out` has room for whole rows.
    ///
    /// # Panics
    /// When the tensor has no such rows.
    ///
    /// # Errors
    /// When the file has it in a form that is not read.
    pub fn read(
        &self,
        spec: &TensorSpec,
        row: usize,
        out: &mut [f32],
    ) -> Result<(), CheckpointError> {
        let whole = out.len() % spec.width() == 0;
        let fits = row * spec.width() + out.len() <= spec.span.len;
        assert!(whole && fits, "the tensor has these rows");
        match &self.files {
            Files::HuggingFace(files) => files.read(&self.config, spec, row, out),
            Files::Gguf(file) => file.read(&self.config, spec, row, out),
        }
    }

    fn advise(&self, spec: &TensorSpec, advice: Advice) {
        match &self.files {
            Files::HuggingFace(files) => files.advise(&self.config, spec, advice),
            Files::Gguf(file) => file.advise(&self.config, spec, advice),
        }
    }

    /// All parameters in f32, in the order of the layout.
    ///
    /// # Errors
    /// As [`Checkpoint::read`].
    pub fn weights(&self) -> Result<Vec<f32>, CheckpointError> {
        let mut weights = vec![0.0; self.layout.len];
        for spec in &self.layout.tensors {
            self.read(spec, 0, &mut weights[spec.span.range()])?;
        }
        Ok(weights)
    }
}

impl Source for Checkpoint {
    type Error = CheckpointError;

    fn read(&self, spec: &TensorSpec, row: usize, out: &mut [f32]) -> Result<(), CheckpointError> {
        Checkpoint::read(self, spec, row, out)
    }

    fn blocks(&self, spec: &TensorSpec) -> Result<Option<Blocks<'_>>, CheckpointError> {
        match &self.files {
            Files::HuggingFace(_) => Ok(None),
            Files::Gguf(file) => file.blocks(&self.config, spec),
        }
    }

    fn prefetch(&self, spec: &TensorSpec) {
        self.advise(spec, Advice::WillNeed);
    }

    fn release(&self, spec: &TensorSpec) {
        self.advise(spec, Advice::Release);
    }
}

/// Types with the number of tensors and the bytes of each, from the type and the bytes of every tensor.
fn tally(tensors: impl Iterator<Item = (String, usize)>) -> Vec<(String, usize, u64)> {
    let mut types: BTreeMap<String, (usize, u64)> = BTreeMap::new();
    for (name, bytes) in tensors {
        let entry = types.entry(name).or_default();
        *entry = (entry.0 + 1, entry.1 + bytes as u64);
    }
    let flat = types.into_iter().map(|(name, (n, bytes))| (name, n, bytes));
    flat.collect()
}
