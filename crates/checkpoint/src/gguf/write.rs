//! Writes a model as a GGUF file that llama.cpp loads.
//!
//! Matrices take the type that is asked for; vectors and routers are F32, as llama.cpp's converter has them.
//! A row must be whole blocks: where its length is no multiple of 256 a K type gives way to Q8_0, where it
//! is none of 32 to F16.

use super::rope::divisors;
use super::{ROPE_FREQS, name_of, stored_row};
use crate::write::{PIECE, Written};
use crate::{Checkpoint, CheckpointError};
use formats::gguf::{Array, BoxError, GgufTensorSource, Value, write_gguf};
use model::config::{Architecture, MlpType, ModelConfig};
use model::names::{self, LayerPart, Part};
use model::weights::{Role, TensorSpec};
use numerics::BlockType;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

/// Writes the file `path`. `extra` are further metadata: name, tokenizer, chat template. `progress` is told
/// the bytes of weights written so far, and may stop the work by an error.
///
/// # Errors
/// When the format has no way to say something of the model, the type is one that is only read, the disk is
/// full, or the source cannot be read.
pub fn write_gguf_model(
    from: &Checkpoint,
    path: &Path,
    block_type: BlockType,
    extra: Vec<(String, Value)>,
    progress: &dyn Fn(u64) -> io::Result<()>,
) -> Result<Written, CheckpointError> {
    let config = &from.config;
    let mut metadata = metadata(config, block_type).map_err(|what| CheckpointError::NoWay {
        path: path.to_path_buf(),
        what,
    })?;
    metadata.extend(extra);
    let before = std::cell::Cell::new(0);
    let count = |bytes: usize| {
        before.set(before.get() + bytes as u64);
        progress(before.get())
    };
    let (stacks, rope_shape) = (stacks(from), [config.head_dim / 2]);
    let rope = config
        .rope_scaling
        .map(|s| divisors(&s, config.rope_theta, config.head_dim));
    let mut sources: Vec<GgufTensorSource> = stacks
        .iter()
        .map(|stack| {
            let block_type = type_of(stack, block_type);
            GgufTensorSource {
                name: &stack.name,
                shape: &stack.shape,
                block_type,
                data: Box::new(move |w| write_stack(from, stack, block_type, w, &count)),
            }
        })
        .collect();
    if let Some(rope) = &rope {
        sources.push(GgufTensorSource {
            name: ROPE_FREQS,
            shape: &rope_shape,
            block_type: BlockType::F32,
            data: Box::new(move |w| {
                let bytes: Vec<u8> = rope.iter().flat_map(|x| x.to_le_bytes()).collect();
                Ok(w.write_all(&bytes)?)
            }),
        });
    }
    let hash = write_gguf(path, &metadata, &sources)?;
    Ok(Written {
        tensors: sources.len(),
        bytes: hash.bytes,
    })
}

/// A tensor of the file: one of the model's, or those of all experts of a layer.
struct Stack<'a> {
    name: String,
    shape: Vec<usize>,
    specs: BTreeMap<usize, &'a TensorSpec>, // by their first element
}

/// The tensors of the file, in the order of the layout.
fn stacks(from: &Checkpoint) -> Vec<Stack<'_>> {
    let mut stacks: Vec<Stack> = Vec::new();
    let mut of_name: BTreeMap<String, usize> = BTreeMap::new();
    for spec in &from.layout.tensors {
        let place = names::gguf(&from.config, spec.part, &spec.shape);
        let at = *of_name.entry(place.name.clone()).or_insert(stacks.len());
        if at == stacks.len() {
            stacks.push(Stack {
                name: place.name,
                shape: place.shape,
                specs: BTreeMap::new(),
            });
        }
        stacks[at].specs.insert(place.start, spec);
    }
    stacks
}

fn type_of(stack: &Stack, wanted: BlockType) -> BlockType {
    let is_plain = |spec: &&TensorSpec| {
        matches!(spec.role, Role::Gain | Role::RouterBias)
            || matches!(spec.part, Part::Layer(_, LayerPart::Router))
    };
    if stack.specs.values().any(is_plain) {
        return BlockType::F32;
    }
    let width = stack.shape.last().copied().unwrap_or(1);
    [wanted, BlockType::Q8_0, BlockType::F16]
        .into_iter()
        .find(|t| width % t.block_values() == 0)
        .unwrap_or(BlockType::F32)
}

fn write_stack(
    from: &Checkpoint,
    stack: &Stack,
    block_type: BlockType,
    w: &mut dyn Write,
    count: &dyn Fn(usize) -> io::Result<()>,
) -> Result<(), BoxError> {
    for spec in stack.specs.values() {
        let (len, width) = (spec.span.len, spec.width());
        let rows_total = len / width;
        // Whole heads at a time, so that rows that change places do so within a piece.
        let rows = (PIECE / width)
            .max(1)
            .next_multiple_of(from.config.head_dim);
        let mut values = vec![0.0; len.min(rows * width)];
        let mut moved = vec![0.0; values.len()];
        for row in (0..rows_total).step_by(rows) {
            let n = (rows_total - row).min(rows);
            let values = &mut values[..n * width];
            from.read(spec, row, values)?;
            let moved = &mut moved[..n * width];
            for (i, from_row) in values.chunks_exact(width).enumerate() {
                let at = stored_row(&from.config, spec.part, row + i) - row;
                moved[at * width..(at + 1) * width].copy_from_slice(from_row);
            }
            let mut bytes = vec![0; block_type.bytes_for(moved.len())?];
            block_type.quantise(moved, &mut bytes)?;
            w.write_all(&bytes)?;
            count(bytes.len())?;
        }
    }
    Ok(())
}

/// The keys of the architecture, as llama.cpp's converter writes them.
fn metadata(config: &ModelConfig, block_type: BlockType) -> Result<Vec<(String, Value)>, String> {
    let prefix = name_of(config.architecture);
    let mut all: Vec<(String, Value)> = vec![
        ("general.architecture".into(), Value::String(prefix.into())),
        ("general.type".into(), Value::String("model".into())),
        ("general.quantization_version".into(), Value::U32(2)),
        (
            "general.file_type".into(),
            Value::U32(file_type(block_type)?),
        ),
    ];
    let mut add = |name: &str, value: Value| all.push((format!("{prefix}.{name}"), value));
    let number = |n: usize| {
        u32::try_from(n)
            .map(Value::U32)
            .map_err(|_| format!("{n} does not fit into 32 bits"))
    };
    let mtp = config.num_nextn_predict_layers;
    add("block_count", number(config.num_hidden_layers + mtp)?);
    add("context_length", number(config.max_position_embeddings)?);
    add("embedding_length", number(config.hidden_size)?);
    add("feed_forward_length", number(config.intermediate_size)?);
    add("attention.head_count", number(config.num_attention_heads)?);
    add(
        "attention.head_count_kv",
        number(config.num_key_value_heads)?,
    );
    add("attention.key_length", number(config.head_dim)?);
    add("attention.value_length", number(config.head_dim)?);
    add(
        "attention.layer_norm_rms_epsilon",
        Value::F32(config.rms_norm_eps),
    );
    add("rope.dimension_count", number(config.head_dim)?);
    add("rope.freq_base", Value::F32(config.rope_theta as f32));
    add("vocab_size", number(config.vocab_size)?);
    if mtp > 0 {
        add("nextn_predict_layers", number(mtp)?);
        if config.mtp_sliding_window.is_some() {
            return Err("the format has no key for the window of the prediction layer".into());
        }
    }
    if config.swiglu_limits.iter().any(Option::is_some) {
        return Err("the format has no key for the limits of the SwiGLUs (`swiglu_limits`)".into());
    }
    if config.architecture.has_sliding_layers() && !config.full_attention_rope {
        let mut windows: Vec<usize> = config.sliding_windows.iter().flatten().copied().collect();
        windows.dedup();
        let window = match windows.as_slice() {
            [] => {
                return Err(
                    "the format cannot say that no layer slides and none has positions".into(),
                );
            }
            [window] => *window,
            windows => {
                return Err(format!(
                    "the format has one window for all layers, not {windows:?}"
                ));
            }
        };
        add("attention.sliding_window", number(window)?);
        let slides = config.sliding_windows.iter().map(Option::is_some).collect();
        let slides = Value::Array(Array::Bool(slides));
        add("attention.sliding_window_pattern", slides);
    }
    if config.architecture == Architecture::ExaoneMoe {
        if config.full_attention_rope {
            return Err(
                "the format has no experts in a model whose global layers have positions".into(),
            );
        }
        let types = &config.mlp_layer_types;
        let dense = types.iter().take_while(|t| **t == MlpType::Dense).count();
        if types[dense..].contains(&MlpType::Dense) {
            return Err("the format has dense layers only before all sparse ones".into());
        }
        add("leading_dense_block_count", number(dense)?);
        add("expert_count", number(config.num_experts)?);
        add("expert_used_count", number(config.num_experts_per_tok)?);
        add("expert_group_count", Value::U32(1));
        add("expert_group_used_count", Value::U32(1));
        add("expert_gating_func", Value::U32(2));
        add(
            "expert_feed_forward_length",
            number(config.moe_intermediate_size)?,
        );
        add("expert_shared_count", number(config.num_shared_experts)?);
        add(
            "expert_shared_feed_forward_length",
            number(config.shared_size())?,
        );
        add(
            "expert_weights_scale",
            Value::F32(config.routed_scaling_factor),
        );
        add("expert_weights_norm", Value::Bool(config.norm_topk_prob));
    }
    Ok(all)
}

/// The number that llama.cpp gives a file whose matrices are mostly of that type.
fn file_type(block_type: BlockType) -> Result<u32, String> {
    Ok(match block_type {
        BlockType::F32 => 0,
        BlockType::F16 => 1,
        BlockType::Q4_0 => 2,
        BlockType::Q4_1 => 3,
        BlockType::Q8_0 => 7,
        BlockType::Q4K => 14,
        BlockType::Q5K => 16,
        BlockType::Q6K => 18,
        BlockType::Bf16 => 32,
        other => return Err(format!("{} is read but not written", other.name())),
    })
}
