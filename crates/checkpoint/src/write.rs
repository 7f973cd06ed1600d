//! Writes a model in the Hugging Face layout: config.json, generation_config.json, and safetensors in
//! files of at most [`MAX_SHARD_BYTES`], with the index that several need.
//!
//! Values go from the source to the disk a few megabytes at a time. Router biases stay F32, as published:
//! rounded, they would choose other experts.

use crate::{Checkpoint, CheckpointError};
use formats::atomic;
use formats::json;
use formats::safetensors::{
    Dtype, INDEX_FILE, SINGLE_FILE, TensorData, TensorSource, write_safetensors,
};
use half::{bf16, f16};
use model::config::Compute;
use model::weights::{Role, TensorSpec};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

/// Bytes of a file of weights at most, unless one tensor alone is larger; what `transformers` writes.
pub const MAX_SHARD_BYTES: usize = 5_000_000_000;

/// Values in memory at a time.
pub(crate) const PIECE: usize = 1 << 20;

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Tensors.
    pub tensors: usize,
    /// Bytes of all files of weights.
    pub bytes: u64,
}

/// A type that weights are written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Float {
    /// 32-bit.
    F32,
    /// bfloat16, rounded to nearest even.
    Bf16,
    /// IEEE half precision, rounded to nearest even.
    F16,
}

impl Float {
    fn dtype(self) -> Dtype {
        match self {
            Float::F32 => Dtype::F32,
            Float::Bf16 => Dtype::Bf16,
            Float::F16 => Dtype::F16,
        }
    }

    /// As `dtype` of config.json.
    fn name(self) -> &'static str {
        match self {
            Float::F32 => "float32",
            Float::Bf16 => "bfloat16",
            Float::F16 => "float16",
        }
    }
}

/// Writes the directory `dir`, which appears whole or not at all; `extra` are further files of it.
/// `progress` is told the bytes of weights written so far, and may stop the work by an error.
///
/// # Errors
/// When `dir` is taken, the disk is full, or the source cannot be read.
pub fn write_hugging_face(
    from: &Checkpoint,
    dir: &Path,
    float: Float,
    extra: &[(&str, Vec<u8>)],
    progress: &dyn Fn(u64) -> io::Result<()>,
) -> Result<Written, CheckpointError> {
    let shards = shards(from, float, MAX_SHARD_BYTES);
    let bytes_of = |spec: &TensorSpec| (spec.span.len * type_of(spec, float).size()) as u64;
    let total: u64 = from.layout.tensors.iter().map(bytes_of).sum();
    let mut written = Written {
        tensors: from.layout.tensors.len(),
        bytes: 0,
    };
    atomic::write_dir(dir, total + (1 << 24), |dir| {
        let mut config = from.config.clone();
        if float == Float::Bf16 {
            // As every bf16 file is taken, whatever its layout.
            config.compute = Compute::Bf16;
        }
        let mut config = config.to_json();
        config["dtype"] = json!(float.name());
        json::write(&dir.join("config.json"), &config)?;
        for (name, bytes) in extra {
            atomic::write_bytes(&dir.join(name), bytes)?;
        }
        let mut weight_map = Map::new();
        let before = std::cell::Cell::new(0);
        for (i, shard) in shards.iter().enumerate() {
            let name = match shards.len() {
                1 => SINGLE_FILE.to_string(),
                n => format!("model-{:05}-of-{n:05}.safetensors", i + 1),
            };
            for spec in shard {
                weight_map.insert(spec.name.clone(), json!(name));
            }
            write_shard(from, &dir.join(&name), shard, float, &|bytes| {
                before.set(before.get() + bytes);
                progress(before.get())
            })?;
            written.bytes += std::fs::metadata(dir.join(&name)).map_or(0, |m| m.len());
        }
        if shards.len() > 1 {
            let index = json!({
                "metadata": { "total_size": total },
                "weight_map": Value::Object(weight_map),
            });
            json::write(&dir.join(INDEX_FILE), &index)?;
        }
        Ok(written)
    })
}

fn type_of(spec: &TensorSpec, float: Float) -> Dtype {
    match spec.role {
        Role::RouterBias => Dtype::F32,
        _ => float.dtype(),
    }
}

/// The tensors of each file, in the order of the layout.
fn shards(from: &Checkpoint, float: Float, max_bytes: usize) -> Vec<Vec<&TensorSpec>> {
    let mut shards: Vec<Vec<&TensorSpec>> = vec![vec![]];
    let mut bytes = 0;
    for spec in &from.layout.tensors {
        let size = spec.span.len * type_of(spec, float).size();
        if bytes > 0 && bytes + size > max_bytes {
            shards.push(vec![]);
            bytes = 0;
        }
        bytes += size;
        if let Some(shard) = shards.last_mut() {
            shard.push(spec);
        }
    }
    shards
}

fn write_shard(
    from: &Checkpoint,
    path: &Path,
    specs: &[&TensorSpec],
    float: Float,
    progress: &dyn Fn(u64) -> io::Result<()>,
) -> Result<(), CheckpointError> {
    let writers: Vec<_> = specs
        .iter()
        .map(|&spec| {
            move |w: &mut dyn Write| {
                for_pieces(from, spec, |values| {
                    let bytes = encode(type_of(spec, float), values);
                    w.write_all(&bytes)?;
                    progress(bytes.len() as u64)
                })
            }
        })
        .collect();
    let sources: Vec<TensorSource> = specs
        .iter()
        .zip(&writers)
        .map(|(spec, write)| TensorSource {
            name: &spec.name,
            shape: &spec.shape,
            data: TensorData::Made {
                dtype: type_of(spec, float),
                len: spec.span.len,
                write,
            },
        })
        .collect();
    // What `transformers` looks for before it trusts a file.
    let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    write_safetensors(path, &sources, &metadata)?;
    Ok(())
}

/// Calls `f` with the values of a tensor, whole rows at a time.
pub(crate) fn for_pieces(
    from: &Checkpoint,
    spec: &TensorSpec,
    mut f: impl FnMut(&[f32]) -> io::Result<()>,
) -> io::Result<()> {
    let (len, width) = (spec.span.len, spec.width());
    let rows = (PIECE / width).max(1);
    let mut values = vec![0.0; len.min(rows * width)];
    for row in (0..len / width).step_by(rows) {
        let n = (len / width - row).min(rows);
        let values = &mut values[..n * width];
        from.read(spec, row, values).map_err(io::Error::other)?;
        f(values)?;
    }
    Ok(())
}

fn encode(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    match dtype {
        Dtype::Bf16 => bytes_of(values, |x| bf16::from_f32(x).to_le_bytes()),
        Dtype::F16 => bytes_of(values, |x| f16::from_f32(x).to_le_bytes()),
        _ => bytes_of(values, f32::to_le_bytes),
    }
}

fn bytes_of<const N: usize>(values: &[f32], of: impl Fn(f32) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(|&x| of(x)).collect()
}
