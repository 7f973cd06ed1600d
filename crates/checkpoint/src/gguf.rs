//! Models in GGUF files: the configuration from metadata, the weights from blocks.
//!
//! Keys and tensor names are llama.cpp's. Two things are stored in another form than in the Hugging Face
//! layout. A `llama` file has the rows of queries and keys in the order in which ggml rotates neighbours
//! instead of halves: row 2i + s of a head is row i + s K/2. And stretched rotary frequencies are a tensor
//! of divisors, `rope_freqs.weight`, from which the published parameters are found again ([`rope`]).
//!
//! A key of the architecture that is not known here is refused, as in a config.json.
//! Source: gguf-py 0.19 (constants.py), llama.cpp's converters and loaders.

pub(crate) mod rope;
mod write;

use crate::{CheckpointError, tally};
use formats::gguf::{Gguf, GgufError, GgufTensor, Value};
use formats::mmap::Advice;
use model::config::{Architecture, Compute, MlpType, ModelConfig};
use model::names::{self, LayerPart, Part, Stored};
use model::weights::{Blocks, TensorSpec};
use model::{Layout, config::ConfigError};
use numerics::BlockType;
use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashSet;

pub use write::write_gguf_model;

/// The tensor of the divisors of rotary frequencies.
pub(crate) const ROPE_FREQS: &str = "rope_freqs.weight";

/// A GGUF file that holds a model.
pub(crate) struct GgufModel {
    pub(crate) file: Gguf,
}

impl GgufModel {
    /// The architecture that the metadata describe.
    pub(crate) fn config(&self) -> Result<ModelConfig, CheckpointError> {
        let config = Keys::new(&self.file)?.config()?;
        let invalid = |source: ConfigError| CheckpointError::Config {
            path: self.file.path().to_path_buf(),
            source,
        };
        config.validate().map_err(invalid)?;
        Ok(config)
    }

    /// Types with the number of tensors and the bytes of each.
    pub(crate) fn stored(&self) -> Vec<(String, usize, u64)> {
        tally(self.file.tensors().map(|tensor| {
            let name = match tensor.block_type {
                Some(block_type) => block_type.name().to_string(),
                None => format!("ggml type {}", tensor.ggml_type),
            };
            (name, tensor.bytes.len())
        }))
    }

    /// The number of tensors, and of their elements; of a type that is not read as many as its bytes could
    /// hold, since nothing else vouches for its shape.
    pub(crate) fn held(&self) -> (usize, u128) {
        let elements = self.file.tensors().map(|tensor| match tensor.block_type {
            Some(_) => tensor.num_elements() as u128,
            None => 8 * tensor.bytes.len() as u128,
        });
        (self.file.len(), elements.sum())
    }

    /// Every tensor of the layout has its place, and every tensor of the file is one of them.
    pub(crate) fn check(
        &self,
        config: &ModelConfig,
        layout: &Layout,
    ) -> Result<(), CheckpointError> {
        let mut used: HashSet<String> = HashSet::from([ROPE_FREQS.to_string()]);
        for spec in &layout.tensors {
            let (place, tensor) = self.place(config, spec)?;
            tensor.known_type()?;
            used.insert(place.name);
        }
        let mut names = self.file.tensors().map(|tensor| tensor.name);
        match names.find(|name| !used.contains(*name)) {
            None => Ok(()),
            Some(name) => Err(CheckpointError::Unknown {
                path: self.file.path().to_path_buf(),
                name: name.to_string(),
            }),
        }
    }

    fn place(
        &self,
        config: &ModelConfig,
        spec: &TensorSpec,
    ) -> Result<(Stored, GgufTensor<'_>), CheckpointError> {
        let place = names::gguf(config, spec.part, &spec.shape);
        let tensor = self.file.get(&place.name)?;
        if tensor.shape != place.shape {
            return Err(CheckpointError::Shape {
                path: self.file.path().to_path_buf(),
                name: place.name,
                found: tensor.shape.to_vec(),
                expected: place.shape,
            });
        }
        Ok((place, tensor))
    }

    /// Values of a tensor in f32, from row `row` on; `out` has room for whole rows.
    pub(crate) fn read(
        &self,
        config: &ModelConfig,
        spec: &TensorSpec,
        row: usize,
        out: &mut [f32],
    ) -> Result<(), CheckpointError> {
        let (place, tensor) = self.place(config, spec)?;
        let (block_type, width) = (tensor.known_type()?, spec.width());
        let row_bytes = row_bytes(&place.name, block_type, width)?;
        let first = place.start / width;
        for (i, values) in out.chunks_exact_mut(width).enumerate() {
            let at = first + stored_row(config, spec.part, row + i);
            let bytes = &tensor.bytes[at * row_bytes..(at + 1) * row_bytes];
            let read = block_type.dequantise(bytes, values);
            read.map_err(|cause| GgufError::Tensor {
                name: place.name.clone(),
                cause,
            })?;
        }
        Ok(())
    }

    /// Tells what will become of a tensor.
    pub(crate) fn advise(&self, config: &ModelConfig, spec: &TensorSpec, advice: Advice) {
        let Ok((place, tensor)) = self.place(config, spec) else {
            return;
        };
        let bytes = |values: usize| tensor.known_type().ok()?.bytes_for(values).ok();
        if let (Some(start), Some(len)) = (bytes(place.start), bytes(spec.span.len)) {
            self.file.advise(&place.name, start..start + len, advice);
        }
    }

    /// The rows of a matrix as they are stored, in our order, where that is in blocks of integers.
    pub(crate) fn blocks(
        &self,
        config: &ModelConfig,
        spec: &TensorSpec,
    ) -> Result<Option<Blocks<'_>>, CheckpointError> {
        let (place, tensor) = self.place(config, spec)?;
        let (block_type, width) = (tensor.known_type()?, spec.width());
        if spec.shape.len() != 2 || !block_type.is_quantised() {
            return Ok(None);
        }
        let row_bytes = row_bytes(&place.name, block_type, width)?;
        let rows = spec.shape[0];
        let bytes = &tensor.bytes[place.start / width * row_bytes..][..rows * row_bytes];
        if (0..rows).all(|row| stored_row(config, spec.part, row) == row) {
            return Ok(Some((block_type, Cow::Borrowed(bytes))));
        }
        let row = |row| &bytes[stored_row(config, spec.part, row) * row_bytes..][..row_bytes];
        let ours: Vec<u8> = (0..rows).flat_map(row).copied().collect();
        Ok(Some((block_type, Cow::Owned(ours))))
    }
}

/// How many bytes a row of a tensor takes.
fn row_bytes(name: &str, block_type: BlockType, width: usize) -> Result<usize, GgufError> {
    block_type
        .bytes_for(width)
        .map_err(|cause| GgufError::Tensor {
            name: name.to_string(),
            cause,
        })
}

/// The row of a GGUF tensor that is row `row` of ours.
pub(crate) fn stored_row(config: &ModelConfig, part: Part, row: usize) -> usize {
    let is_rotated = matches!(part, Part::Layer(_, LayerPart::Q | LayerPart::K));
    if config.architecture != Architecture::Llama || !is_rotated {
        return row;
    }
    let (k, half) = (config.head_dim, config.head_dim / 2);
    let (head, at) = (row / k, row % k);
    head * k + 2 * (at % half) + at / half
}

/// What the architectures are called in GGUF files.
pub(crate) fn name_of(architecture: Architecture) -> &'static str {
    match architecture {
        Architecture::ExaoneMoe => "exaone-moe",
        Architecture::Exaone4 => "exaone4",
        Architecture::Exaone => "exaone",
        Architecture::Llama => "llama",
    }
}

/// The metadata of the architecture; remembers which were asked for.
struct Keys<'a> {
    file: &'a Gguf,
    architecture: Architecture,
    prefix: &'static str,
    asked: RefCell<HashSet<String>>,
}

/// Keys of an architecture that leave the result alone.
const HARMLESS: [&str; 4] = [
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
    "attention.causal",
    "vocab_size",
];

impl<'a> Keys<'a> {
    fn new(file: &'a Gguf) -> Result<Keys<'a>, CheckpointError> {
        let all = [
            Architecture::ExaoneMoe,
            Architecture::Exaone4,
            Architecture::Exaone,
            Architecture::Llama,
        ];
        let name = file.str("general.architecture")?;
        let architecture = all.into_iter().find(|a| name_of(*a) == name);
        let architecture = architecture.ok_or_else(|| CheckpointError::Metadata {
            path: file.path().to_path_buf(),
            key: "general.architecture".into(),
            found: name.to_string(),
            expected: "exaone-moe, exaone4, exaone or llama".into(),
        })?;
        Ok(Keys {
            file,
            architecture,
            prefix: name_of(architecture),
            asked: RefCell::default(),
        })
    }

    fn key(&self, name: &str) -> String {
        let key = format!("{}.{name}", self.prefix);
        self.asked.borrow_mut().insert(key.clone());
        key
    }

    fn has(&self, name: &str) -> bool {
        self.file.value(&self.key(name)).is_some()
    }

    fn usize(&self, name: &str) -> Result<usize, CheckpointError> {
        let key = self.key(name);
        let value = self.file.u64(&key)?;
        usize::try_from(value).map_err(|_| self.wrong(name, value, "a number that can be counted"))
    }

    fn usize_or(&self, name: &str, default: usize) -> Result<usize, CheckpointError> {
        match self.has(name) {
            true => self.usize(name),
            false => Ok(default),
        }
    }

    fn f64_or(&self, name: &str, default: f64) -> Result<f64, CheckpointError> {
        match self.has(name) {
            true => Ok(self.file.f64(&self.key(name))?),
            false => Ok(default),
        }
    }

    fn wrong(&self, name: &str, found: impl ToString, expected: impl ToString) -> CheckpointError {
        CheckpointError::Metadata {
            path: self.file.path().to_path_buf(),
            key: self.key(name),
            found: found.to_string(),
            expected: expected.to_string(),
        }
    }

    /// Refuses any other number than `only`, where there is one.
    fn only(&self, name: &str, only: usize) -> Result<(), CheckpointError> {
        match self.usize_or(name, only)? {
            n if n == only => Ok(()),
            n => Err(self.wrong(name, n, format!("{only} (others are not supported)"))),
        }
    }

    fn config(&self) -> Result<ModelConfig, CheckpointError> {
        let is_moe = self.architecture == Architecture::ExaoneMoe;
        let mtp = self.usize_or("nextn_predict_layers", 0)?;
        let blocks = self.usize("block_count")?;
        let layers = match blocks.checked_sub(mtp) {
            Some(layers) if (1..=10_000).contains(&layers) => layers,
            _ => return Err(self.wrong("block_count", blocks, "1 to 10000 layers")),
        };
        let (hidden_size, heads) = (
            self.usize("embedding_length")?,
            self.usize("attention.head_count")?,
        );
        let head_dim = self.usize_or("attention.key_length", hidden_size / heads.max(1))?;
        self.only("attention.value_length", head_dim)?;
        self.only("rope.dimension_count", head_dim)?;
        let rope_theta = self.f64_or("rope.freq_base", 10_000.0)?;
        self.check_rope_scaling()?;
        let (sliding_windows, full_attention_rope) = self.windows(layers)?;
        let embedding = self.file.get("token_embd.weight")?;
        let id = |name: &str| -> Result<Option<u32>, CheckpointError> {
            let key = format!("tokenizer.ggml.{name}_token_id");
            match self.file.value(&key) {
                None => Ok(None),
                Some(_) => Ok(u32::try_from(self.file.u64(&key)?).ok()),
            }
        };
        let mut eos: Vec<u32> = ["eos", "eot", "eom"]
            .iter()
            .filter_map(|name| id(name).transpose())
            .collect::<Result<_, _>>()?;
        eos.dedup();
        let matrices = self.file.tensors().filter(|t| t.shape.len() > 1);
        let types: HashSet<u32> = matrices.map(|t| t.ggml_type).collect();
        let of = |t: BlockType| t.ggml_type();
        let is_bf16 = types.contains(&of(BlockType::Bf16))
            && (types.iter()).all(|t| [of(BlockType::Bf16), of(BlockType::F32)].contains(t));
        let mut config = ModelConfig {
            architecture: self.architecture,
            vocab_size: embedding.shape[0],
            hidden_size,
            intermediate_size: self.usize("feed_forward_length")?,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: self.usize_or("attention.head_count_kv", heads)?,
            head_dim,
            rms_norm_eps: self.f64_or("attention.layer_norm_rms_epsilon", 1e-5)? as f32,
            rope_theta,
            rope_scaling: None,
            full_attention_rope,
            max_position_embeddings: self.usize("context_length")?,
            sliding_windows,
            mlp_layer_types: vec![MlpType::Dense; layers],
            num_experts: 0,
            num_experts_per_tok: 0,
            moe_intermediate_size: 0,
            num_shared_experts: 0,
            norm_topk_prob: true,
            routed_scaling_factor: 1.0,
            tie_word_embeddings: !self.file.contains("output.weight"),
            num_nextn_predict_layers: mtp,
            // The format has no key for it; that of the published model sees everything.
            mtp_sliding_window: None,
            mtp_num_speculative_steps: None,
            swiglu_limits: vec![None; layers],
            initializer_range: 0.02,
            bos_token_id: id("bos")?,
            eos_token_id: eos,
            pad_token_id: id("padding")?,
            compute: if is_bf16 { Compute::Bf16 } else { Compute::F32 },
        };
        if is_moe {
            self.experts(&mut config)?;
        }
        if self.file.contains(ROPE_FREQS) {
            let divisors = self.file.get(ROPE_FREQS)?.to_f32()?;
            let fitted = rope::scaling_of(&divisors, config.rope_theta, head_dim);
            config.rope_scaling = fitted.map_err(|what| CheckpointError::Metadata {
                path: self.file.path().to_path_buf(),
                key: ROPE_FREQS.into(),
                found: what,
                expected: "the divisors of a llama3 scaling".into(),
            })?;
        }
        self.no_others()?;
        Ok(config)
    }

    fn check_rope_scaling(&self) -> Result<(), CheckpointError> {
        let name = "rope.scaling.type";
        if self.has(name) {
            let kind = self.file.str(&self.key(name))?;
            if kind != "none" {
                return Err(self.wrong(name, kind, "none (others are not supported)"));
            }
        }
        match self.f64_or("rope.scaling.factor", 1.0)? {
            1.0 => Ok(()),
            factor => Err(self.wrong(
                "rope.scaling.factor",
                factor,
                "1 (others are not supported)",
            )),
        }
    }

    /// As in config.json: a model without `sliding_window` has positions in every layer.
    fn windows(&self, layers: usize) -> Result<(Vec<Option<usize>>, bool), CheckpointError> {
        let (name, pattern) = (
            "attention.sliding_window",
            "attention.sliding_window_pattern",
        );
        if !self.architecture.has_sliding_layers() || !self.has(name) {
            if self.architecture == Architecture::ExaoneMoe {
                self.usize(name)?;
            }
            return Ok((vec![None; layers], true));
        }
        let window = self.usize(name)?;
        let key = self.key(pattern);
        let slides: Vec<bool> = match self.file.value(&key) {
            None => (0..layers).map(|l| (l + 1) % 4 != 0).collect(),
            Some(Value::Array(_)) => {
                let pattern = self.file.bools(&key)?;
                if pattern.len() < layers {
                    let found = format!("{} entries", pattern.len());
                    return Err(self.wrong("attention.sliding_window_pattern", found, layers));
                }
                pattern[..layers].to_vec()
            }
            Some(_) => {
                let period = self.file.u64(&key)?.max(1);
                (0..layers as u64).map(|l| (l + 1) % period != 0).collect()
            }
        };
        let windows = slides.iter().map(|&slides| slides.then_some(window));
        Ok((windows.collect(), false))
    }

    fn experts(&self, config: &mut ModelConfig) -> Result<(), CheckpointError> {
        self.only("expert_gating_func", 2)?; // sigmoid
        self.only("expert_group_count", 1)?;
        self.only("expert_group_used_count", 1)?;
        let dense = self.usize_or("leading_dense_block_count", 0)?;
        let layers = config.num_hidden_layers;
        config.mlp_layer_types = (0..layers)
            .map(|l| match l < dense {
                true => MlpType::Dense,
                false => MlpType::Sparse,
            })
            .collect();
        config.num_experts = self.usize("expert_count")?;
        config.num_experts_per_tok = self.usize("expert_used_count")?;
        config.moe_intermediate_size = self.usize("expert_feed_forward_length")?;
        config.num_shared_experts = self.usize_or("expert_shared_count", 1)?;
        // Not yet validated, so of any size.
        let shared = config
            .num_shared_experts
            .saturating_mul(config.moe_intermediate_size);
        self.only("expert_shared_feed_forward_length", shared)?;
        config.routed_scaling_factor = self.f64_or("expert_weights_scale", 1.0)? as f32;
        let norm = self.key("expert_weights_norm");
        config.norm_topk_prob = self.file.value(&norm).is_some() && self.file.bool(&norm)?;
        Ok(())
    }

    fn no_others(&self) -> Result<(), CheckpointError> {
        let asked = self.asked.borrow();
        let unknown = self.file.metadata().iter().find(|(key, _)| {
            let name = key
                .strip_prefix(self.prefix)
                .and_then(|rest| rest.strip_prefix('.'));
            name.is_some_and(|name| !asked.contains(key) && !HARMLESS.contains(&name))
        });
        match unknown {
            None => Ok(()),
            Some((key, value)) => Err(CheckpointError::Metadata {
                path: self.file.path().to_path_buf(),
                key: key.clone(),
                found: value.described(),
                expected: "to be absent: the key is not known here and may change the result"
                    .into(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use testkit::tiny_model;

    #[test]
    fn the_halves_of_a_llama_head_are_interleaved() {
        let config = ModelConfig {
            head_dim: 6,
            ..tiny_model::llama(Architecture::Llama)
        };
        let rows = |config: &ModelConfig, part| -> Vec<usize> {
            let part = Part::Layer(0, part);
            (6..12).map(|row| stored_row(config, part, row)).collect()
        };
        // ggml rotates rows 2i and 2i + 1 of a head together, this project rows i and i + K/2.
        let interleaved = [6, 8, 10, 7, 9, 11];
        assert_eq!(rows(&config, LayerPart::Q), interleaved);
        assert_eq!(rows(&config, LayerPart::K), interleaved);
        assert_eq!(rows(&config, LayerPart::V), [6, 7, 8, 9, 10, 11]);
        let exaone = ModelConfig {
            architecture: Architecture::Exaone,
            ..config
        };
        assert_eq!(rows(&exaone, LayerPart::Q), [6, 7, 8, 9, 10, 11]);
    }
}
