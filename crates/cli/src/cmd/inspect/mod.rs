//! `dokja inspect`: what a file or directory is, and what is wrong with it.

mod files;
mod model;

use anyhow::{Context, Result, bail};
use formats::run_dir::RunDir;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Explains a file or directory that this program reads or writes: a model (its layers, parameters, bytes, and
/// whether it fits on this machine), weights, a tokenizer, data, tokens, a run.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A run directory, a checkpoint directory, a data directory, a .gguf file, or a file of one of them.
    path: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// What was found, for people and for programs.
struct Told {
    text: String,
    json: Value,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let told = look(&args.path)?;
    crate::print(&match args.json {
        true => told.json.to_string(),
        false => told.text.trim_end().to_string(),
    });
    Ok(())
}

fn look(path: &Path) -> Result<Told> {
    let metadata =
        std::fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
    if metadata.is_dir() {
        return match () {
            () if path.join("config.json").exists() => model::inspect(path),
            () if RunDir::new(path).is_run() => files::run(path),
            () if path.join(data::manifest::FILE_NAME).exists() => files::data(path),
            () => bail!(
                "{} is neither a run (ledger.jsonl), nor a checkpoint (config.json), nor data \
                 ({}); give one of these or a file",
                path.display(),
                data::manifest::FILE_NAME
            ),
        };
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    match path.extension().and_then(|e| e.to_str()) {
        Some("gguf") => model::inspect(path),
        Some("safetensors") => files::safetensors(path),
        Some("tokens") => files::tokens(path),
        Some("json") if name == "tokenizer.json" => files::tokenizer(path),
        Some("json") if name == "config.json" => model::inspect_config(path),
        _ => bail!(
            "{} is of no kind that is known: .gguf, .safetensors, .tokens, tokenizer.json, config.json, or a \
             directory",
            path.display()
        ),
    }
}
