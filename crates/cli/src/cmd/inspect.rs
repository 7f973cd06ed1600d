//! `dokja inspect`: what a checkpoint is, in numbers.

use crate::checkpoint::Checkpoint;
use crate::print;
use anyhow::Result;
use model::config::{AttentionType, MlpType, ModelConfig};
use model::flops::count;
use serde_json::json;
use std::fmt::Write;
use std::path::PathBuf;

/// Explains a checkpoint: its layers, its parameters, and what a token costs.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A run directory or a checkpoint directory.
    path: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Bytes of keys and values per position in bf16: of all global layers, and of one sliding layer.
fn kv_bytes(config: &ModelConfig) -> (usize, usize) {
    let layer = 2 * config.kv_size() * 2;
    let global = config
        .layer_types
        .iter()
        .filter(|t| **t == AttentionType::FullAttention)
        .count();
    (global * layer, layer)
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let checkpoint = Checkpoint::open(&args.path)?;
    let config = &checkpoint.config;
    let counts = count(config, &checkpoint.layout, 1, false);
    let (kv_global, kv_layer) = kv_bytes(config);
    let sliding = config.num_hidden_layers - kv_global / kv_layer;
    let kv_full = kv_global * config.max_position_embeddings
        + sliding * kv_layer * config.sliding_window.min(config.max_position_embeddings);
    if args.json {
        print(
            &json!({
                "kind": "checkpoint",
                "path": checkpoint.dir,
                "config": config.to_json(),
                "parameters": counts.parameters,
                "active_parameters": counts.active_parameters,
                "kv_bytes_per_token": kv_global,
                "kv_bytes_at_full_context": kv_full,
            })
            .to_string(),
        );
        return Ok(());
    }
    let mut text = format!("checkpoint {}\n\n", checkpoint.dir.display());
    let _ = writeln!(
        text,
        "  embedding      {} x {}",
        config.vocab_size, config.hidden_size
    );
    for l in 0..config.num_hidden_layers {
        let attention = match config.layer_types[l] {
            AttentionType::SlidingAttention => format!("window {}, rope", config.sliding_window),
            AttentionType::FullAttention => "global, no position".into(),
        };
        let mlp = match config.mlp_layer_types[l] {
            MlpType::Dense => format!("swiglu {}", config.intermediate_size),
            MlpType::Sparse => format!(
                "{} of {} experts of {}, {} shared",
                config.num_experts_per_tok,
                config.num_experts,
                config.moe_intermediate_size,
                config.num_shared_experts
            ),
        };
        let _ = writeln!(text, "  layer {l:<8} {attention:<22} {mlp}");
    }
    if config.num_nextn_predict_layers == 1 {
        let _ = writeln!(
            text,
            "  prediction     {:<22} swiglu {}",
            "global, no position", config.intermediate_size
        );
    }
    let _ = write!(
        text,
        "\n  heads          {} query, {} key-value, of {}\n  parameters     {}, {} multiplied per token\n  \
         bytes          {} in f32, {} in bf16\n  keys, values   {kv_global} bytes per token, {kv_full} at \
         {} tokens (bf16)",
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
        counts.parameters,
        counts.active_parameters,
        4 * counts.parameters,
        2 * counts.parameters,
        config.max_position_embeddings
    );
    print(&text);
    Ok(())
}
