//! `dokja convert`: a model from one layout and precision to another.

use crate::interrupt::{self, Interrupted};
use crate::open::{self, MODEL_FILES};
use crate::print;
use crate::progress::{Progress, Unit, bytes};
use anyhow::{Context, Result, bail};
use checkpoint::Checkpoint;
use checkpoint::gguf::write_gguf_model;
use checkpoint::write::{Float, Written, write_hugging_face};
use clap::ValueEnum;
use formats::gguf::{Array, Strings, Value};
use numerics::BlockType;
use serde_json::json;
use std::cell::RefCell;
use std::io;
use std::path::{Path, PathBuf};
use tokenizer::Tokenizer;

/// Converts a model between the Hugging Face layout and GGUF, and between precisions.
///
/// Weights go from file to file a few megabytes at a time, so that a model larger than memory can be
/// converted. Tokenizer and chat template go along. What is written appears whole or not at all.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A run directory, a checkpoint directory or a .gguf file.
    input: PathBuf,
    /// The directory to make, or for gguf the file; it must not be there yet.
    output: PathBuf,
    /// Layout; by default gguf where the output's name ends in .gguf, else hf.
    #[arg(long)]
    to: Option<Layout>,
    /// Precision of the matrices; by default that of the input.
    #[arg(long = "type")]
    precision: Option<Precision>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Layout {
    /// config.json, safetensors, tokenizer.json in a directory.
    Hf,
    /// One file, as llama.cpp reads it.
    Gguf,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Precision {
    F32,
    Bf16,
    F16,
    #[value(name = "q8_0")]
    Q8_0,
    #[value(name = "q6_k")]
    Q6K,
    #[value(name = "q5_k")]
    Q5K,
    #[value(name = "q4_k")]
    Q4K,
    #[value(name = "q4_1")]
    Q4_1,
    #[value(name = "q4_0")]
    Q4_0,
}

impl Precision {
    fn block_type(self) -> BlockType {
        match self {
            Precision::F32 => BlockType::F32,
            Precision::Bf16 => BlockType::Bf16,
            Precision::F16 => BlockType::F16,
            Precision::Q8_0 => BlockType::Q8_0,
            Precision::Q6K => BlockType::Q6K,
            Precision::Q5K => BlockType::Q5K,
            Precision::Q4K => BlockType::Q4K,
            Precision::Q4_1 => BlockType::Q4_1,
            Precision::Q4_0 => BlockType::Q4_0,
        }
    }

    /// The type of safetensors; they have none in blocks.
    fn float(self) -> Result<Float> {
        Ok(match self {
            Precision::F32 => Float::F32,
            Precision::Bf16 => Float::Bf16,
            Precision::F16 => Float::F16,
            other => bail!(
                "--type {} is a type of GGUF files; the Hugging Face layout takes f32, bf16 or f16 \
                 (or add --to gguf)",
                other.block_type().name().to_lowercase()
            ),
        })
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let input = open::checkpoint(&args.input)?;
    let layout = args.to.unwrap_or(match args.output.extension() {
        Some(e) if e == "gguf" => Layout::Gguf,
        _ => Layout::Hf,
    });
    if std::fs::symlink_metadata(&args.output).is_ok() {
        bail!(
            "{} is already there and is never overwritten; choose another name",
            args.output.display()
        );
    }
    let precision = args.precision.unwrap_or_else(|| precision_of(&input));
    interrupt::listen()?;
    let total: u64 = input.stored().iter().map(|(_, _, bytes)| bytes).sum();
    let bar = RefCell::new(Progress::new("converting", Unit::Bytes, 0, total));
    let progress = |done: u64| {
        let mut bar = bar.borrow_mut();
        bar.set_total(total.max(done));
        bar.set(done);
        match interrupt::is_asked() {
            true => Err(io::Error::from(io::ErrorKind::Interrupted)),
            false => Ok(()),
        }
    };
    let written = match layout {
        Layout::Hf => to_hugging_face(&input, &args.output, precision.float()?, &progress),
        Layout::Gguf => to_gguf(&input, &args.output, precision.block_type(), &progress),
    };
    if interrupt::is_asked() {
        let kept = format!("nothing was written to {}", args.output.display());
        return Err(Interrupted(kept).into());
    }
    let written = written?;
    bar.into_inner().finish();
    print(&match args.json {
        true => json!({
            "tensors": written.tensors, "bytes": written.bytes, "path": args.output,
        })
        .to_string(),
        false => format!(
            "{} tensors, {}, in {}",
            written.tensors,
            bytes(written.bytes),
            args.output.display()
        ),
    });
    Ok(())
}

/// The type that most bytes of the input have; of those that are not written, the nearest larger one.
fn precision_of(input: &Checkpoint) -> Precision {
    let stored = input.stored();
    let most = stored.iter().max_by_key(|(_, _, bytes)| *bytes);
    match most.map_or("", |(name, _, _)| name.as_str()) {
        "F32" => Precision::F32,
        "F16" => Precision::F16,
        "Q8_0" => Precision::Q8_0,
        "Q6_K" => Precision::Q6K,
        "Q5_K" => Precision::Q5K,
        "Q4_K" | "Q3_K" | "Q2_K" => Precision::Q4K,
        "Q4_1" => Precision::Q4_1,
        "Q4_0" => Precision::Q4_0,
        _ => Precision::Bf16,
    }
}

fn to_hugging_face(
    input: &Checkpoint,
    output: &Path,
    float: Float,
    progress: &dyn Fn(u64) -> io::Result<()>,
) -> Result<Written> {
    let mut extra: Vec<(&str, Vec<u8>)> = Vec::new();
    if let Some(file) = input.gguf() {
        if let Some(tokenizer) = open::gguf_tokenizer(file)? {
            extra.push(("tokenizer.json", tokenizer.to_json().into_bytes()));
        }
        if let Ok(template) = file.str("tokenizer.chat_template") {
            extra.push(("chat_template.jinja", template.as_bytes().to_vec()));
        }
        let generation = json!({
            "bos_token_id": input.config.bos_token_id,
            "eos_token_id": input.config.eos_json(),
            "pad_token_id": input.config.pad_token_id,
        });
        let text = format!("{generation:#}\n");
        extra.push(("generation_config.json", text.into_bytes()));
    } else {
        for name in MODEL_FILES {
            let file = input.path.join(name);
            if file.is_file() {
                let bytes = std::fs::read(&file)
                    .with_context(|| format!("cannot read {}", file.display()))?;
                extra.push((name, bytes));
            }
        }
    }
    Ok(write_hugging_face(input, output, float, &extra, progress)?)
}

fn to_gguf(
    input: &Checkpoint,
    output: &Path,
    block_type: BlockType,
    progress: &dyn Fn(u64) -> io::Result<()>,
) -> Result<Written> {
    let stem = input.path.file_stem().unwrap_or_default().to_string_lossy();
    let mut extra = vec![("general.name".to_string(), Value::String(stem.into_owned()))];
    match input.gguf() {
        // What a GGUF file says of its tokenizer stays as it is.
        Some(file) => {
            let of_tokenizer = file.metadata().iter();
            let of_tokenizer = of_tokenizer.filter(|(key, _)| key.starts_with("tokenizer."));
            extra.extend(of_tokenizer.cloned());
        }
        None => {
            match open::read_tokenizer(input)? {
                Some(tokenizer) => extra.extend(tokenizer_metadata(&tokenizer, input)?),
                // How llama.cpp is told that there is none.
                None => extra.push(("tokenizer.ggml.model".into(), Value::String("none".into()))),
            }
            if let Some(template) = open::chat_template(input)? {
                extra.push(("tokenizer.chat_template".into(), Value::String(template)));
            }
        }
    }
    let written = write_gguf_model(input, output, block_type, extra, progress)?;
    Ok(written)
}

/// A tokenizer as GGUF files have it.
fn tokenizer_metadata(tokenizer: &Tokenizer, input: &Checkpoint) -> Result<Vec<(String, Value)>> {
    let config = &input.config;
    let mut data = tokenizer
        .gguf_vocab()
        .context("cannot write the tokenizer into a GGUF file")?;
    data.pad_to(config.vocab_size);
    let mut all: Vec<(String, Value)> = Vec::new();
    let mut add = |name: &str, value: Value| all.push((format!("tokenizer.ggml.{name}"), value));
    let texts = |texts: &[String]| {
        let mut strings = Strings::default();
        texts.iter().for_each(|text| strings.push(text));
        Value::Array(Array::String(strings))
    };
    add("model", Value::String(data.model.into()));
    if let Some(pre) = data.pre {
        add("pre", Value::String(pre.into()));
    }
    add("tokens", texts(&data.tokens));
    add("token_type", Value::Array(Array::I32(data.token_types)));
    if let Some(scores) = data.scores {
        add("scores", Value::Array(Array::F32(scores)));
    }
    if !data.merges.is_empty() {
        add("merges", texts(&data.merges));
    }
    let ids = [
        ("bos", config.bos_token_id.or(data.bos)),
        ("eos", config.eos_token_id.first().copied().or(data.eos)),
        ("unknown", data.unk),
        ("padding", config.pad_token_id),
    ];
    for (name, id) in ids {
        if let Some(id) = id {
            add(&format!("{name}_token_id"), Value::U32(id));
        }
    }
    add("add_bos_token", Value::Bool(data.bos.is_some()));
    add("add_eos_token", Value::Bool(data.eos.is_some()));
    if let Some(prefix) = data.add_space_prefix {
        add("add_space_prefix", Value::Bool(prefix));
    }
    Ok(all)
}
