//! Opens a model to run it: its configuration, its tokenizer, and an engine over its weights.
//!
//! Shared by every command that makes a model speak (generate, chat, serve, eval). Opening reads only the
//! small files; the weights are read by [`OpenModel::engine`], which may be called again.

use crate::fit::{Fit, packed_bytes};
use crate::{env, memory};
use anyhow::{Context, Result, bail};
use checkpoint::Checkpoint;
use formats::gguf::Gguf;
use formats::hash;
use infer::{Engine, EngineConfig, ModelRunner};
use model::config::Architecture;
use model::flops::kv_bytes;
use model::names::{LayerPart, Part};
use model::weights::Source;
use model::{Layout, ModelConfig, Transformer};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tensor::Activations;
use tokenizer::{ChatFamily, ChatFormat, ChatTemplate, GgufVocab, Tokenizer};

/// How a model is run, for every command that runs one.
#[derive(clap::Args, Clone, Debug, Default)]
pub(crate) struct RunArgs {
    /// To how many bits activations are rounded before they are multiplied with blocks of integers (Q8_0,
    /// Q4_K and the like). With 16 the result is that of the stored weights. 8 is what llama.cpp does: a long
    /// prompt is read faster, and answers may differ.
    #[arg(long, value_enum, value_name = "BITS", default_value_t)]
    activation_bits: ActivationBits,
    /// The most memory to hold, such as 8GB or 500MB; without it, what is available. Where not all experts fit,
    /// the busiest are kept and the others read from disk when they are needed.
    #[arg(long, value_name = "SIZE", value_parser = memory::parse_bytes)]
    memory: Option<u64>,
    /// Do not let the model's prediction layer guess tokens. (It changes the speed, never the tokens.)
    #[arg(long, conflicts_with = "num_speculative_tokens")]
    no_mtp: bool,
    /// Tokens that the prediction layer guesses ahead at most; fewer where more would not pay [default: as
    /// many as the model's configuration says, or 3].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=32))]
    num_speculative_tokens: Option<u32>,
}

/// Guesses at a time where neither the command nor the model says how many.
const SPECULATIVE_TOKENS: usize = 3;

/// Choices of `--activation-bits`.
#[derive(clap::ValueEnum, Clone, Copy, Debug, Default)]
enum ActivationBits {
    #[value(name = "8")]
    Eight,
    #[default]
    #[value(name = "16")]
    Sixteen,
}

impl RunArgs {
    /// Bytes of each of the buffers with which the memory is measured before a model is run.
    pub(crate) fn measuring_bytes(&self) -> usize {
        memory::measuring_bytes(self.memory)
    }

    /// The same without the prediction layer.
    pub(crate) fn without_mtp(&self) -> RunArgs {
        RunArgs {
            no_mtp: true,
            num_speculative_tokens: None,
            ..self.clone()
        }
    }

    fn num_speculative_tokens(&self, config: &ModelConfig) -> usize {
        match (self.no_mtp, self.num_speculative_tokens) {
            (true, _) => 0,
            (false, Some(tokens)) => tokens as usize,
            (false, None) => config
                .mtp_num_speculative_steps
                .unwrap_or(SPECULATIVE_TOKENS),
        }
    }

    fn activations(&self) -> Activations {
        match self.activation_bits {
            ActivationBits::Eight => Activations::Int8,
            ActivationBits::Sixteen => Activations::Int16,
        }
    }
}

/// A model whose configuration and tokenizer have been read.
pub(crate) struct OpenModel {
    /// The checkpoint directory or GGUF file that was meant.
    pub(crate) path: PathBuf,
    /// Its architecture.
    pub(crate) config: ModelConfig,
    checkpoint: Arc<Checkpoint>,
    tokenizer: Option<Arc<Tokenizer>>,
    eos_token_ids: Vec<u32>,
    run: RunArgs,
}

/// Files of a checkpoint directory beside configuration and weights.
pub(crate) const MODEL_FILES: [&str; 5] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
];

/// Opens the files of what a command calls MODEL: a run directory's last checkpoint, a checkpoint, or a GGUF
/// file. Reads none of the weights.
pub(crate) fn checkpoint(path: &Path) -> Result<Checkpoint> {
    Ok(Checkpoint::open(&formats::run_dir::resolve_model(path)?)?)
}

/// Opens a model to run it.
pub(crate) fn model(path: &Path, run: &RunArgs) -> Result<OpenModel> {
    let checkpoint = checkpoint(path)?;
    Ok(OpenModel {
        tokenizer: read_tokenizer(&checkpoint)?.map(Arc::new),
        eos_token_ids: read_eos_token_ids(&checkpoint)?,
        path: checkpoint.path.clone(),
        config: checkpoint.config.clone(),
        checkpoint: Arc::new(checkpoint),
        run: run.clone(),
    })
}

impl OpenModel {
    /// Bytes that one token of a sequence must touch with `positions` before it: of its experts and all other
    /// matrices, each as it is stored; and of keys and values.
    pub(crate) fn bytes_per_token(&self, positions: usize) -> u64 {
        let config = &self.config;
        let layout = Layout::for_serving(config);
        let mut bytes = kv_bytes(config, positions);
        for spec in &layout.tensors {
            let is_mtp = matches!(spec.part, Part::MtpFc | Part::MtpLayer(_));
            if spec.span.start < layout.kept_len || is_mtp {
                continue;
            }
            let stored = match self.checkpoint.blocks(spec) {
                Ok(Some((_, bytes))) => bytes.len() as u64,
                _ => packed_bytes(config, None, spec).0,
            };
            bytes += match spec.part {
                // One row, unless it is the head as well.
                Part::EmbedTokens if !config.tie_word_embeddings => {
                    stored / config.vocab_size as u64
                }
                Part::Layer(_, LayerPart::Expert(..)) => {
                    stored * config.num_experts_per_tok as u64 / config.num_experts as u64
                }
                _ => stored,
            };
        }
        bytes
    }

    /// The GGUF file, where it is one.
    pub(crate) fn gguf(&self) -> Option<&Gguf> {
        self.checkpoint.gguf()
    }

    /// The tokenizer; an error that says what to do where the directory has none.
    pub(crate) fn tokenizer(&self) -> Result<Arc<Tokenizer>> {
        self.tokenizer.clone().with_context(|| {
            format!(
                "{} has no tokenizer.json, which text needs; copy the one the model was trained with \
                 there, or give token ids",
                self.path.display()
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
        let tokenizer = self.tokenizer.as_ref();
        ids.extend(tokenizer.and_then(|t| t.id_of(tokenizer::chat_family::END_OF_TURN)));
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// How the model is spoken to: by the template of its files, else in the built-in format of its architecture.
    pub(crate) fn chat_format(&self) -> Result<ChatFormat> {
        let Some(source) = chat_template(&self.checkpoint)? else {
            return Ok(ChatFormat::of_family(match self.config.architecture {
                Architecture::ExaoneMoe | Architecture::Llama => ChatFamily::KExaone,
                Architecture::Exaone4 => ChatFamily::Exaone4,
                Architecture::Exaone => ChatFamily::Exaone3,
            }));
        };
        let template = ChatTemplate::new(&source)
            .with_context(|| format!("cannot use the chat template of {}", self.path.display()))?;
        let text = |id: Option<u32>| {
            let bytes = self.tokenizer.as_ref()?.token_bytes(id?)?;
            Some(String::from_utf8_lossy(bytes).into_owned())
        };
        let config = &self.config;
        let variables = [
            ("bos_token", text(config.bos_token_id)),
            ("eos_token", text(self.eos_token_ids.first().copied())),
            ("pad_token", text(config.pad_token_id)),
        ];
        let variables = variables
            .into_iter()
            .map(|(name, token)| (name.to_string(), Value::from(token.unwrap_or_default())));
        Ok(ChatFormat::of_template(template, variables.collect()))
    }

    /// The token that begins a document: the separator of training, or what the model's files name.
    pub(crate) fn document_start(&self) -> Result<u32> {
        let separator = self.tokenizer.as_ref().and_then(|t| t.specials().ok());
        separator
            .map(|special| special.eos)
            .or(self.config.bos_token_id)
            .or(self.eos_token_ids.first().copied())
            .with_context(|| {
                format!(
                    "{} names no token that begins a document (bos_token_id)",
                    self.path.display()
                )
            })
    }

    /// SHA-256 of the GGUF file or of `model.safetensors`; of weights in several files, that of the lines
    /// `<sha256>  <file name>` of all of them in the order of their names.
    pub(crate) fn weights_sha256(&self) -> Result<String> {
        if self.path.is_file() {
            return Ok(hash::sha256_file(&self.path)?);
        }
        let single = self.path.join("model.safetensors");
        if single.is_file() {
            return Ok(hash::sha256_file(&single)?);
        }
        let entries = std::fs::read_dir(&self.path)
            .and_then(Iterator::collect::<std::io::Result<Vec<_>>>)
            .with_context(|| format!("cannot read {}", self.path.display()))?;
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

    /// Reads the weights and makes an engine with an empty cache, within the memory there is ([`crate::fit`]).
    /// How many tokens are guessed is taken from the command's options, not from `config`.
    pub(crate) fn engine(&self, config: EngineConfig) -> Result<Engine> {
        let config = EngineConfig {
            num_speculative_tokens: self.run.num_speculative_tokens(&self.config),
            ..config
        };
        let (what, bound) = (self.path.display().to_string(), self.run.memory);
        let fit = Fit::plan(&what, &self.checkpoint, &config, bound)?;
        let device = env::device()?;
        let model = Transformer::load(
            &device,
            self.config.clone(),
            self.run.activations(),
            &self.checkpoint,
            fit.pages_experts().then_some(0),
        )?;
        let runner = ModelRunner::new(device, model);
        let config = fit.share_out(&runner, config)?;
        Ok(Engine::new(Box::new(runner), config)?)
    }
}

/// `tokenizer.json` or the vocabulary of the GGUF file, where there is one. Every id that it may give must
/// have an embedding.
pub(crate) fn read_tokenizer(checkpoint: &Checkpoint) -> Result<Option<Tokenizer>> {
    let tokenizer = match checkpoint.gguf() {
        Some(file) => gguf_tokenizer(file)?,
        None => {
            let file = checkpoint.path.join("tokenizer.json");
            let load =
                || Tokenizer::load(&file).with_context(|| format!("cannot use {}", file.display()));
            file.exists().then(load).transpose()?
        }
    };
    let rows = checkpoint.config.vocab_size;
    if let Some(tokens) = tokenizer.as_ref().map(Tokenizer::vocab_size)
        && tokens > rows
    {
        bail!(
            "the tokenizer of {} has {tokens} tokens, but the model has embeddings for {rows}; it belongs \
             to another model",
            checkpoint.path.display()
        );
    }
    Ok(tokenizer)
}

/// The vocabulary of a GGUF file, where it has one.
pub(crate) fn gguf_tokenizer(file: &Gguf) -> Result<Option<Tokenizer>> {
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let has = |name: &str| file.value(&key(name)).is_some();
    if !has("model") || !has("tokens") {
        return Ok(None);
    }
    let text = |name: &str| has(name).then(|| file.str(&key(name))).transpose();
    let truth = |name: &str| has(name).then(|| file.bool(&key(name))).transpose();
    let id = |name: &str| -> Result<Option<u32>> {
        let id = has(name).then(|| file.u64(&key(name))).transpose()?;
        Ok(id.and_then(|id| u32::try_from(id).ok()))
    };
    let list = |name: &str| -> Result<Vec<&str>> {
        Ok(match has(name) {
            true => file.strings(&key(name))?.iter().collect(),
            false => vec![],
        })
    };
    let (tokens, merges) = (list("tokens")?, list("merges")?);
    let token_types = has("token_type")
        .then(|| file.i32s(&key("token_type")))
        .transpose()?;
    let scores = has("scores")
        .then(|| file.f32s(&key("scores")))
        .transpose()?;
    let vocab = GgufVocab {
        model: file.str(&key("model"))?,
        pre: text("pre")?,
        tokens: &tokens,
        token_types: token_types.as_deref(),
        scores,
        merges: &merges,
        bos: id("bos_token_id")?,
        eos: id("eos_token_id")?,
        unk: id("unknown_token_id")?,
        pad: id("padding_token_id")?,
        add_bos: truth("add_bos_token")?,
        add_eos: truth("add_eos_token")?,
        add_space_prefix: truth("add_space_prefix")?,
    };
    let tokenizer = Tokenizer::from_gguf(&vocab);
    let tokenizer = tokenizer
        .with_context(|| format!("cannot use the tokenizer of {}", file.path().display()))?;
    Ok(Some(tokenizer))
}

/// The model's own chat template: in Jinja, from the GGUF file, `chat_template.jinja`, or
/// `tokenizer_config.json`.
pub(crate) fn chat_template(checkpoint: &Checkpoint) -> Result<Option<String>> {
    if let Some(file) = checkpoint.gguf() {
        let template = file.str("tokenizer.chat_template");
        return Ok(template.ok().map(str::to_string));
    }
    let read = |name: &str| -> Result<Option<String>> {
        let file = checkpoint.path.join(name);
        match std::fs::read_to_string(&file) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", file.display())),
        }
    };
    if let Some(template) = read("chat_template.jinja")? {
        return Ok(Some(template));
    }
    let Some(text) = read("tokenizer_config.json")? else {
        return Ok(None);
    };
    let config: Value = serde_json::from_str(&text).with_context(|| {
        let file = checkpoint.path.join("tokenizer_config.json");
        format!("{} is not valid JSON", file.display())
    })?;
    Ok(config["chat_template"].as_str().map(str::to_string))
}

/// `eos_token_id` of `generation_config.json`, one or several; where that says nothing, of `config.json` or the
/// GGUF file.
fn read_eos_token_ids(checkpoint: &Checkpoint) -> Result<Vec<u32>> {
    let of_config = || checkpoint.config.eos_token_id.clone();
    if checkpoint.gguf().is_some() {
        return Ok(of_config());
    }
    let file = checkpoint.path.join("generation_config.json");
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
