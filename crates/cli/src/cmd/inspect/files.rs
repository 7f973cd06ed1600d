//! Files and directories that are no models: weights, tokens, tokenizers, data, runs.

use super::Told;
use crate::progress::bytes;
use anyhow::{Context, Result};
use data::Manifest;
use formats::run_dir::{RunDir, Stage};
use formats::safetensors::SafeTensors;
use formats::tokens::Shard;
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::Path;
use tokenizer::Tokenizer;

/// A run: its stages and their checkpoints.
pub(super) fn run(path: &Path) -> Result<Told> {
    let run = RunDir::new(path);
    let mut text = format!("run {}\n\n", path.display());
    let mut stages = serde_json::Map::new();
    for stage in Stage::ALL {
        let checkpoints = run.checkpoints(stage)?;
        let Some(last) = checkpoints.last() else {
            continue;
        };
        let _ = writeln!(
            text,
            "  {:<14} {} checkpoints, the last at step {}",
            stage.name(),
            checkpoints.len(),
            last.step
        );
        let entry = json!({ "checkpoints": checkpoints.len(), "last_step": last.step });
        stages.insert(stage.name().to_string(), entry);
    }
    let ledger = std::fs::read_to_string(run.ledger())
        .with_context(|| format!("cannot read {}", run.ledger().display()))?;
    let records = ledger.lines().count();
    let _ = writeln!(
        text,
        "  {:<14} {records} records; `dokja audit verify {}` walks them back",
        "ledger",
        path.display()
    );
    let mut json = json!({
        "kind": "run", "path": path, "stages": stages, "ledger_records": records,
    });
    if let Ok(model) = formats::run_dir::resolve_model(path) {
        let model = super::model::inspect(&model)?;
        text.push('\n');
        text.push_str(&model.text);
        json["model"] = model.json;
    }
    Ok(Told { text, json })
}

/// Documents.
pub(super) fn data(path: &Path) -> Result<Told> {
    let manifest = Manifest::open(path)?;
    let mut json = serde_json::to_value(&manifest)?;
    json["kind"] = json!("data");
    json["path"] = json!(path);
    let text = format!(
        "data {}\n\n  `dokja data inspect {}` tells languages, sources and samples\n",
        path.display(),
        path.display()
    );
    Ok(Told { text, json })
}

/// Named tensors.
pub(super) fn safetensors(path: &Path) -> Result<Told> {
    let file = SafeTensors::open(path)?;
    let mut text = format!("safetensors {}\n\n", path.display());
    let mut tensors = Vec::new();
    for name in file.names() {
        let (dtype, shape, size) = file.describe(name)?;
        let _ = writeln!(text, "  {dtype:<8} {shape:?} {name}");
        tensors.push(json!({ "name": name, "dtype": dtype, "shape": shape, "bytes": size }));
    }
    let metadata: Value = json!(file.metadata());
    Ok(Told {
        text,
        json: json!({
            "kind": "safetensors", "path": path, "tensors": tensors, "metadata": metadata,
        }),
    })
}

/// Documents as token ids.
pub(super) fn tokens(path: &Path) -> Result<Told> {
    let shard = Shard::open(path)?;
    let (tokens, documents) = (shard.ids().len(), shard.num_documents());
    let text = format!(
        "tokens {}\n\n  {tokens} tokens of {documents} documents, vocabulary {}, {}\n  by the tokenizer \
         with SHA-256 {}\n",
        path.display(),
        shard.vocab_size(),
        bytes(4 * tokens as u64),
        shard.tokenizer_sha256()
    );
    Ok(Told {
        text,
        json: json!({
            "kind": "tokens", "path": path, "tokens": tokens, "documents": documents,
            "vocab_size": shard.vocab_size(), "tokenizer_sha256": shard.tokenizer_sha256(),
        }),
    })
}

/// A tokenizer.
pub(super) fn tokenizer(path: &Path) -> Result<Told> {
    let tokenizer =
        Tokenizer::load(path).with_context(|| format!("cannot use {}", path.display()))?;
    let size = tokenizer.vocab_size();
    let ids = 0..size as u32;
    let added: Vec<String> = ids
        .filter(|&id| tokenizer.is_added(id))
        .filter_map(|id| tokenizer.token_bytes(id))
        .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
        .collect();
    let missing = tokenizer.specials().err().map(|e| e.to_string());
    let mut text = format!(
        "tokenizer {}\n\n  {size} tokens, {} of them added\n",
        path.display(),
        added.len()
    );
    if let Some(missing) = &missing {
        let _ = writeln!(text, "  no built-in chat format: {missing}");
    }
    Ok(Told {
        text,
        json: json!({
            "kind": "tokenizer", "path": path, "vocab_size": size, "added_tokens": added,
            "chat_format": missing.is_none(),
        }),
    })
}
