//! A model: its layers, what it holds and costs, and what is wrong with it.

use super::Told;
use crate::fit::Needed;
use crate::progress::bytes;
use crate::{env, memory};
use anyhow::{Context, Result};
use checkpoint::Checkpoint;
use model::config::{MlpType, ModelConfig, NormPlacement};
use model::flops::{Counts, count, kv_bytes};
use model::weights::Role;
use model::{Layout, config};
use serde_json::json;
use std::fmt::Write;
use std::path::Path;

/// Bytes of the weights in a precision with so many bits a weight of its matrices, vectors in f32.
fn stored_bytes(layout: &Layout, bits: f64) -> u64 {
    let size = |t: &model::weights::TensorSpec| match t.role {
        Role::Gain | Role::RouterBias => 4.0 * t.span.len as f64,
        Role::Matrix | Role::Embedding => t.span.len as f64 * bits / 8.0,
    };
    layout.tensors.iter().map(size).sum::<f64>() as u64
}

/// Precisions and the bits that a weight takes in them, scales included.
const PRECISIONS: [(&str, f64); 7] = [
    ("f32", 32.0),
    ("bf16", 16.0),
    ("q8_0", 8.5),
    ("q6_k", 6.5625),
    ("q5_k", 5.5),
    ("q4_k", 4.5),
    ("q4_0", 4.5),
];

/// A checkpoint directory or a GGUF file.
pub(super) fn inspect(path: &Path) -> Result<Told> {
    let checkpoint = Checkpoint::open_unchecked(path)?;
    let problem = checkpoint.check().err().map(|e| e.to_string());
    let mut told = describe(&checkpoint.config, &checkpoint.layout, Some(&checkpoint))?;
    let stored = checkpoint.stored();
    let mut line = String::new();
    for (name, tensors, bytes_of) in &stored {
        let _ = write!(line, "{tensors} tensors of {name} ({}), ", bytes(*bytes_of));
    }
    let kind = if checkpoint.gguf().is_some() {
        "gguf"
    } else {
        "checkpoint"
    };
    told.text = format!(
        "{kind} {}\n\n{}  stored         {}\n",
        path.display(),
        told.text,
        line.trim_end_matches(", ")
    );
    told.json["kind"] = json!(kind);
    told.json["path"] = json!(path);
    let types = stored.iter().map(|(name, tensors, bytes)| {
        let entry = json!({ "tensors": tensors, "bytes": bytes });
        (name.clone(), entry)
    });
    told.json["stored"] = types.collect::<serde_json::Map<_, _>>().into();
    let problems: Vec<String> = problem.into_iter().collect();
    for problem in &problems {
        let _ = writeln!(told.text, "\nwrong: {problem}");
    }
    told.json["problems"] = json!(problems);
    Ok(told)
}

/// A configuration without weights.
pub(super) fn inspect_config(path: &Path) -> Result<Told> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let config =
        ModelConfig::from_json(&text).with_context(|| format!("cannot use {}", path.display()))?;
    let mut told = describe(&config, &Layout::new(&config), None)?;
    told.text = format!("configuration {}\n\n{}", path.display(), told.text);
    told.json["kind"] = json!("config");
    told.json["path"] = json!(path);
    Ok(told)
}

fn describe(
    config: &ModelConfig,
    layout: &Layout,
    checkpoint: Option<&Checkpoint>,
) -> Result<Told> {
    let counts = count(config, layout, 1, false);
    let context = config.max_position_embeddings;
    let kv_full = kv_bytes(config, context);
    // What one more token adds once every window is full.
    let kv_token = kv_bytes(config, context) - kv_bytes(config, context - 1);
    let (device, threads) = (env::device()?, env::threads()?);
    let needed = Needed::of(config, checkpoint);
    let available = memory::available_bytes();
    let fits = |needed: u64| available.is_none_or(|available| needed <= available);
    let least = needed.rest + needed.least_cache;
    let (fits, fits_paged) = (fits(needed.all()), needed.experts > 0 && fits(least));
    let needed = needed.all();
    let precisions = PRECISIONS.map(|(name, bits)| (name, stored_bytes(layout, bits)));

    let mut text = layers(config);
    let Counts {
        parameters,
        active_parameters,
        ..
    } = counts;
    let share = 100.0 * active_parameters as f64 / parameters as f64;
    let _ = writeln!(
        text,
        "\n  heads          {} query, {} key-value, of {}",
        config.num_attention_heads, config.num_key_value_heads, config.head_dim
    );
    let _ = writeln!(
        text,
        "  parameters     {}, of which a token is multiplied with {} ({share:.1} %)",
        thousands(parameters),
        thousands(active_parameters)
    );
    let sizes = precisions.map(|(name, size)| format!("{} in {name}", bytes(size)));
    let _ = writeln!(text, "  weights        {}", sizes.join(", "));
    let _ = writeln!(
        text,
        "  keys, values   {} a token, {} at {} tokens (bf16)",
        bytes(kv_token),
        bytes(kv_full),
        thousands(context)
    );
    let _ = writeln!(
        text,
        "  here           {}, {threads} threads; {} of memory, {} available: {}",
        device.name(),
        bytes(needed),
        available.map_or("an unknown amount".to_string(), bytes),
        match (fits, fits_paged) {
            (true, _) => "it fits".to_string(),
            (_, true) => format!(
                "with {} it runs, experts read from disk when they are needed",
                bytes(least)
            ),
            _ => "it does not fit".to_string(),
        }
    );
    let by_precision = precisions.map(|(name, size)| (name.to_string(), json!(size)));
    let json = json!({
        "architecture": config.architecture.model_type(),
        "config": config.to_json(),
        "parameters": parameters,
        "active_parameters": active_parameters,
        "weight_bytes": serde_json::Map::from_iter(by_precision),
        "kv_bytes_per_token": kv_token,
        "kv_bytes_at_full_context": kv_full,
        "here": {
            "device": device.name(),
            "threads": threads,
            "memory_needed": needed,
            "memory_available": available,
            "fits": fits,
            "fits_paged": fits_paged,
        },
    });
    Ok(Told { text, json })
}

/// The layers from the embedding to the head; equal neighbours share a line.
fn layers(config: &ModelConfig) -> String {
    let mut text = String::new();
    let d = config.hidden_size;
    let _ = writeln!(
        text,
        "  {:<14} {} x {}{}",
        "embedding",
        thousands(config.vocab_size),
        thousands(d),
        if config.tie_word_embeddings {
            ", which is the head too"
        } else {
            ""
        }
    );
    let norms = match config.architecture.norm_placement() {
        NormPlacement::Before => ["norm > ", "", " > norm > ", ""],
        NormPlacement::After => ["", " > norm", " > ", " > norm"],
    };
    let layer = |idx: usize, window: Option<usize>, mlp: MlpType| {
        let [before, after, before_mlp, after_mlp] = norms;
        let limit = config.swiglu_limit(idx);
        let (attention, mlp) = (attention(config, window), feed_forward(config, mlp, limit));
        format!("{before}{attention}{after}{before_mlp}{mlp}{after_mlp}")
    };
    let all: Vec<String> = (0..config.num_hidden_layers)
        .map(|l| layer(l, config.window(l), config.mlp_layer_types[l]))
        .collect();
    let mut first = 0;
    for same in all.chunk_by(|a, b| a == b) {
        let last = first + same.len() - 1;
        let name = match same.len() {
            1 => format!("layer {first}"),
            _ => format!("layers {first}-{last}"),
        };
        let _ = writeln!(text, "  {name:<14} {}", same[0]);
        first = last + 1;
    }
    let _ = writeln!(
        text,
        "  {:<14} norm > {} x {}",
        "head",
        thousands(d),
        thousands(config.vocab_size)
    );
    if config.num_nextn_predict_layers == 1 {
        let _ = writeln!(
            text,
            "  {:<14} [next token; output] > {} x {} > {} > norm > head",
            "prediction",
            thousands(2 * d),
            thousands(d),
            layer(
                config.num_hidden_layers,
                config.mtp_sliding_window,
                MlpType::Dense
            )
        );
    }
    text
}

fn attention(config: &ModelConfig, window: Option<usize>) -> String {
    let sees = window.map_or("all".to_string(), |window| {
        format!("window {}", thousands(window))
    });
    let norm = if config.architecture.has_qk_norm() {
        "qk-norm, "
    } else {
        ""
    };
    let positions = match (config.has_rope(window), config.rope_scaling) {
        (false, _) => "no positions".to_string(),
        (true, None) => "rope".to_string(),
        (true, Some(config::RopeScaling { factor, .. })) => format!("rope x {factor}"),
    };
    format!("attention ({sees}, {norm}{positions})")
}

fn feed_forward(config: &ModelConfig, mlp: MlpType, limit: Option<f32>) -> String {
    let cut = limit.map_or(String::new(), |limit| format!(", cut at {limit}"));
    let what = match mlp {
        MlpType::Dense => format!("swiglu {}", thousands(config.intermediate_size)),
        MlpType::Sparse => format!(
            "{} of {} experts of {} + {} shared",
            config.num_experts_per_tok,
            config.num_experts,
            thousands(config.moe_intermediate_size),
            config.num_shared_experts
        ),
    };
    what + &cut
}

/// 12,345.
fn thousands(n: usize) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
