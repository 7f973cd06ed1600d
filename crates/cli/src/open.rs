//! Opens a model to run it: its configuration, its tokenizer, and an engine over its weights.
//!
//! Shared by every command that makes a model speak (generate, chat, serve, eval). Opening reads only the
//! small files; the weights are read by [`OpenModel::engine`], which may be called again.

use crate::progress::{bytes, tell};
use crate::{env, memory};
use anyhow::{Context, Result, bail};
use checkpoint::Checkpoint;
use formats::hash;
use infer::{Engine, EngineConfig, ModelRunner};
use model::config::Compute;
use model::weights::TensorSpec;
use model::{Layout, ModelConfig, Transformer};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokenizer::Tokenizer;

/// A context that is worth having: where the memory holds less, and the model could take more, it is
/// refused.
const MIN_CONTEXT: usize = 4096;

/// A model whose configuration and tokenizer have been read.
pub(crate) struct OpenModel {
    /// The checkpoint directory that the path meant.
    pub(crate) dir: PathBuf,
    /// Its `config.json`.
    pub(crate) config: ModelConfig,
    checkpoint: Checkpoint,
    tokenizer: Option<Arc<Tokenizer>>,
    eos_token_ids: Vec<u32>,
}

/// Opens the files of what a command calls MODEL: a run directory's last checkpoint, or a checkpoint. Reads
/// none of the weights.
pub(crate) fn checkpoint(path: &Path) -> Result<Checkpoint> {
    Ok(Checkpoint::open(&formats::run_dir::resolve_model(path)?)?)
}

/// What opening a model to run it takes: embedding, norms and biases in f32, the matrices packed, and one of
/// them as it is read.
pub(crate) fn memory_needed(config: &ModelConfig) -> u64 {
    let layout = Layout::for_serving(config);
    let packed = match config.compute {
        Compute::F32 => 4,
        Compute::Bf16 => 2,
    };
    let matrices = (layout.len - layout.kept_len) as u64;
    let (q, f) = (
        config.q_size() + 2 * config.kv_size(),
        config.intermediate_size,
    );
    let rows = config.vocab_size.max(q).max(2 * f);
    4 * layout.kept_len as u64 + packed * matrices + 4 * (rows * config.hidden_size) as u64
}

/// Opens a model to run it.
pub(crate) fn model(path: &Path) -> Result<OpenModel> {
    let checkpoint = checkpoint(path)?;
    let (dir, config) = (checkpoint.path.clone(), checkpoint.config.clone());
    Ok(OpenModel {
        tokenizer: read_tokenizer(&dir, &config)?.map(Arc::new),
        eos_token_ids: read_eos_token_ids(&dir, &config)?,
        dir,
        config,
        checkpoint,
    })
}

impl OpenModel {
    /// The tokenizer; an error that says what to do where the directory has none.
    pub(crate) fn tokenizer(&self) -> Result<Arc<Tokenizer>> {
        self.tokenizer.clone().with_context(|| {
            format!(
                "{} has no tokenizer.json, which text needs; copy the one the model was trained with \
                 there, or give token ids",
                self.dir.display()
            )
        })
    }

    /// The tokenizer where there is one; token ids can do without.
    pub(crate) fn tokenizer_if_any(&self) -> Option<Arc<Tokenizer>> {
        self.tokenizer.clone()
    }

    /// Tokens that end an answer: those the model's files name, the end of a turn, the end of a document.
    pub(crate) fn stop_ids(&self) -> Vec<u32> {
        let mut ids = self.eos_token_ids.clone();
        if let Some(special) = self.tokenizer.as_ref().and_then(|t| t.specials().ok()) {
            ids.extend([special.endofturn, special.eos]);
        }
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// SHA-256 of `model.safetensors`; of weights in several files, that of the lines
    /// `<sha256>  <file name>` of all of them in the order of their names.
    pub(crate) fn weights_sha256(&self) -> Result<String> {
        let single = self.dir.join("model.safetensors");
        if single.is_file() {
            return Ok(hash::sha256_file(&single)?);
        }
        let entries = std::fs::read_dir(&self.dir)
            .and_then(Iterator::collect::<std::io::Result<Vec<_>>>)
            .with_context(|| format!("cannot read {}", self.dir.display()))?;
        let mut files: Vec<PathBuf> = entries.iter().map(std::fs::DirEntry::path).collect();
        files.retain(|path| path.extension().is_some_and(|e| e == "safetensors"));
        files.sort();
        let mut lines = String::new();
        for file in &files {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            lines.push_str(&format!("{}  {name}\n", hash::sha256_file(file)?));
        }
        Ok(hash::sha256_hex(lines.as_bytes()))
    }

    /// Reads the weights and makes an engine with an empty cache. The cache takes at most
    /// `config.num_kv_blocks` blocks, and no more than half of the memory that the weights leave.
    ///
    /// The cache of the default configuration is never short where memory is not.
    pub(crate) fn engine(&self, config: EngineConfig) -> Result<Engine> {
        let runner = self.runner()?;
        let config = self.fit_kv(&runner, config)?;
        Ok(Engine::new(Box::new(runner), config)?)
    }

    fn runner(&self) -> Result<ModelRunner> {
        let needed = memory_needed(&self.config);
        if let Some(free) = memory::available_bytes().filter(|&free| free < needed) {
            bail!(
                "opening {} takes {} of memory, {} are available; close other programs or use a machine \
                 with more",
                self.dir.display(),
                bytes(needed),
                bytes(free)
            );
        }
        let device = env::device()?;
        let mut read = |spec: &TensorSpec, out: &mut [f32]| self.checkpoint.read(spec, 0, out);
        let model = Transformer::load(&device, self.config.clone(), &mut read)?;
        Ok(ModelRunner::new(device, model))
    }

    fn fit_kv(&self, runner: &ModelRunner, config: EngineConfig) -> Result<EngineConfig> {
        let Some(free) = memory::available_bytes() else {
            return Ok(config);
        };
        let positions = self.config.max_position_embeddings;
        let blocks_of = |positions: usize| positions.div_ceil(infer::KV_BLOCK);
        let fitted = runner.fit_kv(&config, free / 2);
        let num_kv_blocks = fitted.as_ref().map_or(0, |fitted| fitted.num_kv_blocks);
        let wanted = config.num_kv_blocks.min(blocks_of(positions));
        if num_kv_blocks < wanted.min(blocks_of(MIN_CONTEXT)) {
            let least = EngineConfig {
                num_kv_blocks: wanted.min(blocks_of(MIN_CONTEXT)),
                ..config
            };
            bail!(
                "the keys and values of one text of {} tokens take {} of memory, and {} are left beside \
                 the weights, of which half may be used; close other programs or use a machine with more",
                least.num_kv_blocks * infer::KV_BLOCK,
                bytes(runner.kv_bytes(&least)),
                bytes(free)
            );
        }
        if num_kv_blocks < wanted {
            tell(&format!(
                "note: the memory holds texts of {} tokens; the model could take {positions}",
                num_kv_blocks * infer::KV_BLOCK
            ));
        }
        Ok(fitted.unwrap_or(config))
    }
}

/// `tokenizer.json`, where there is one. Every id that it may give must have an embedding.
fn read_tokenizer(dir: &Path, config: &ModelConfig) -> Result<Option<Tokenizer>> {
    let file = dir.join("tokenizer.json");
    if !file.exists() {
        return Ok(None);
    }
    let tokenizer =
        Tokenizer::load(&file).with_context(|| format!("cannot use {}", file.display()))?;
    let (tokens, rows) = (tokenizer.vocab_size(), config.vocab_size);
    if tokens > rows {
        bail!(
            "{} has {tokens} tokens, but the model has embeddings for {rows}; it belongs to another model",
            file.display()
        );
    }
    Ok(Some(tokenizer))
}

/// `eos_token_id` of `generation_config.json`, one or several; where that says nothing, of `config.json`.
fn read_eos_token_ids(dir: &Path, config: &ModelConfig) -> Result<Vec<u32>> {
    let file = dir.join("generation_config.json");
    let of_config = || config.eos_token_id.clone();
    let text = match std::fs::read_to_string(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(of_config()),
        Err(error) => {
            return Err(error).with_context(|| format!("cannot read {}", file.display()));
        }
    };
    let value: Value = serde_json::from_str(&text)
        .with_context(|| format!("{} is not valid JSON", file.display()))?;
    let ids = match &value["eos_token_id"] {
        Value::Null => return Ok(of_config()),
        Value::Array(ids) => ids.iter().collect(),
        id => vec![id],
    };
    let ids = ids
        .iter()
        .map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok()));
    ids.collect::<Option<Vec<u32>>>().with_context(|| {
        format!(
            "{}: eos_token_id is {}, expected a token id or a list of them",
            file.display(),
            value["eos_token_id"]
        )
    })
}
