//! `config.json`, with its keys as published.
//!
//! [`ModelConfig::from_json`] (`config/read.rs`) accepts the newer and the older layouts of the family and
//! refuses what would change the result without being supported. The normalised form has no options left
//! that a default would fill: per-layer lists are always written out.
//! [`ModelConfig::to_json`] (`config/write.rs`) is what this project writes and `transformers` reads.
//!
//! Four published architectures are the same network with other answers to a few questions:
//!
//! | | norms | norm of q and k | RoPE | experts |
//! |---|---|---|---|---|
//! | `exaone_moe` | before | yes | sliding layers | yes |
//! | `exaone4` | after | yes | sliding layers; all, where none slides | no |
//! | `exaone`, `llama` | before | no | all | no |
//!
//! Source of the keys: the published configurations of K-EXAONE-236B-A23B and of its siblings.

mod read;
mod write;

use crate::flops;
use serde::{Deserialize, Serialize};

/// Most tensors of a model; the largest published one of the family has 59,396.
const MAX_TENSORS: u128 = 1 << 18;

/// Most parameters: their bytes, in any type, can be counted.
const MAX_PARAMETERS: u128 = 1 << 56;

/// What keeps a configuration from being used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not JSON.
    #[error("config.json is not valid JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// A key is absent.
    #[error("config.json: key `{0}` is missing")]
    Missing(&'static str),
    /// A key has a value of the wrong kind or out of range.
    #[error("config.json: `{key}` is {got}, expected {expected}")]
    Value {
        /// The key.
        key: String,
        /// What it holds.
        got: String,
        /// What it may hold.
        expected: String,
    },
    /// A key that this project does not know.
    #[error(
        "config.json: `{key}` ({got}) is not a key of {architecture} that is known here; it may change \
         what the model computes. Remove it if you know that it does not"
    )]
    Unknown {
        /// The key.
        key: String,
        /// What it holds.
        got: String,
        /// The `model_type`.
        architecture: &'static str,
    },
}

fn wrong(key: &str, got: impl ToString, expected: impl ToString) -> ConfigError {
    ConfigError::Value {
        key: key.into(),
        got: got.to_string(),
        expected: expected.to_string(),
    }
}

/// A published architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// K-EXAONE.
    ExaoneMoe,
    /// EXAONE 4.0, and the text part of 4.5.
    Exaone4,
    /// EXAONE 3.0, 3.5 and Deep: `llama` under other names.
    Exaone,
    /// Llama 2 and 3.
    Llama,
}

impl Architecture {
    /// The `model_type` of config.json.
    pub fn model_type(self) -> &'static str {
        match self {
            Architecture::ExaoneMoe => "exaone_moe",
            Architecture::Exaone4 => "exaone4",
            Architecture::Exaone => "exaone",
            Architecture::Llama => "llama",
        }
    }

    /// Its class in `transformers`.
    pub fn class(self) -> &'static str {
        match self {
            Architecture::ExaoneMoe => "ExaoneMoeForCausalLM",
            Architecture::Exaone4 => "Exaone4ForCausalLM",
            Architecture::Exaone => "ExaoneForCausalLM",
            Architecture::Llama => "LlamaForCausalLM",
        }
    }

    /// Where the two norms of a layer stand.
    pub fn norm_placement(self) -> NormPlacement {
        match self {
            Architecture::Exaone4 => NormPlacement::After,
            _ => NormPlacement::Before,
        }
    }

    /// Whether each head's query and key are normed before they are rotated.
    pub fn has_qk_norm(self) -> bool {
        matches!(self, Architecture::ExaoneMoe | Architecture::Exaone4)
    }

    /// Whether layers may have a window, and layers without one no positions.
    pub fn has_sliding_layers(self) -> bool {
        self.has_qk_norm()
    }
}

/// Where the two norms of a layer stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormPlacement {
    /// On what attention and the feed-forward part read.
    Before,
    /// On what they add to the stream.
    After,
}

/// What follows attention in a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MlpType {
    /// One SwiGLU.
    Dense,
    /// Routed experts and a shared one.
    Sparse,
}

/// Rotary frequencies stretched for texts longer than those of the first training: `rope_type` `llama3`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RopeScaling {
    /// Long waves become this many times longer.
    pub factor: f32,
    /// A wave is long that turns fewer times than this within the original length.
    pub low_freq_factor: f32,
    /// A wave is short, and stays, that turns more often than this.
    pub high_freq_factor: f32,
    /// The original length.
    pub original_max_position_embeddings: usize,
}

/// The architecture in numbers. Field names are the published keys.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Which of the published architectures it is.
    pub architecture: Architecture,
    /// V: rows of the embedding and of the head.
    pub vocab_size: usize,
    /// D: width of the residual stream.
    pub hidden_size: usize,
    /// F: width of a dense SwiGLU.
    pub intermediate_size: usize,
    /// L.
    pub num_hidden_layers: usize,
    /// H.
    pub num_attention_heads: usize,
    /// G; H is a multiple of it.
    pub num_key_value_heads: usize,
    /// K; H * K need not be D.
    pub head_dim: usize,
    /// Added to the mean square in every norm.
    pub rms_norm_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// How the frequencies are stretched.
    pub rope_scaling: Option<RopeScaling>,
    /// Whether layers without a window have rotary positions; those with one always have.
    pub full_attention_rope: bool,
    /// Longest sequence the model is meant for.
    pub max_position_embeddings: usize,
    /// One entry per layer: the keys that a query sees, its own included; `None` sees all before it.
    pub sliding_windows: Vec<Option<usize>>,
    /// One entry per layer.
    pub mlp_layer_types: Vec<MlpType>,
    /// E.
    pub num_experts: usize,
    /// A.
    pub num_experts_per_tok: usize,
    /// Width of one routed expert.
    pub moe_intermediate_size: usize,
    /// The shared expert is `num_shared_experts * moe_intermediate_size` wide.
    pub num_shared_experts: usize,
    /// Whether the chosen experts' weights are normalised to sum one.
    pub norm_topk_prob: bool,
    /// Factor on the chosen experts' weights.
    pub routed_scaling_factor: f32,
    /// Whether the embedding is the head too.
    pub tie_word_embeddings: bool,
    /// 0 or 1 multi-token-prediction layers.
    pub num_nextn_predict_layers: usize,
    /// The window of that layer.
    pub mtp_sliding_window: Option<usize>,
    /// Tokens that the layer is meant to guess ahead when the model is served; `None` where nobody says.
    pub mtp_num_speculative_steps: Option<usize>,
    /// Where the SwiGLUs of a layer, dense, routed and shared, cut gate and up: one entry per layer, and
    /// perhaps one for each prediction layer. `None` cuts nothing.
    pub swiglu_limits: Vec<Option<f32>>,
    /// Standard deviation of initial weights.
    pub initializer_range: f32,
    /// Token ids; `None` where the file has none.
    pub bos_token_id: Option<u32>,
    /// What ends an answer: none, one or several.
    pub eos_token_id: Vec<u32>,
    /// Fills a batch.
    pub pad_token_id: Option<u32>,
    /// Type in which this project multiplied when it trained the model; its own key in the file.
    pub compute: Compute,
}

/// Type of the factors of matrix products; sums are always f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compute {
    /// 32-bit floating point.
    F32,
    /// bfloat16.
    Bf16,
}

impl ModelConfig {
    /// Checks that the sizes fit together.
    ///
    /// # Errors
    /// Names the key that does not fit.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let positive = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("head_dim", self.head_dim),
            ("max_position_embeddings", self.max_position_embeddings),
        ];
        for (key, value) in positive {
            if value == 0 || value > 1 << 28 {
                return Err(wrong(key, value, "at least 1 and at most 268435456"));
            }
        }
        if self.num_attention_heads % self.num_key_value_heads != 0 {
            let heads = self.num_attention_heads;
            return Err(wrong(
                "num_key_value_heads",
                self.num_key_value_heads,
                format!("a divisor of num_attention_heads ({heads})"),
            ));
        }
        if self.head_dim % 2 != 0 {
            return Err(wrong("head_dim", self.head_dim, "an even number"));
        }
        let lists = [
            ("layer_types", self.sliding_windows.len()),
            ("mlp_layer_types", self.mlp_layer_types.len()),
        ];
        for (key, len) in lists {
            if len != self.num_hidden_layers {
                return Err(wrong(
                    key,
                    format!("{len} entries"),
                    format!("num_hidden_layers ({})", self.num_hidden_layers),
                ));
            }
        }
        self.validate_swiglu_limits()?;
        let slides = self.sliding_windows.iter().any(Option::is_some);
        let (may_slide, is_moe) = (
            self.architecture.has_sliding_layers(),
            self.architecture == Architecture::ExaoneMoe,
        );
        if slides && (!may_slide || self.full_attention_rope) {
            let expected = "no sliding layers in a model whose other layers have positions";
            return Err(wrong("layer_types", "sliding_attention", expected));
        }
        if !may_slide && !self.full_attention_rope {
            let expected = format!(
                "positions in every layer of {}",
                self.architecture.model_type()
            );
            return Err(wrong("sliding_window", "given", expected));
        }
        if !is_moe && self.mlp_layer_types.contains(&MlpType::Sparse) {
            let expected = format!("only \"dense\" in {}", self.architecture.model_type());
            return Err(wrong("mlp_layer_types", "\"sparse\"", expected));
        }
        // Counts that no layer may use stay within bounds too: sums and products are made of them.
        let bounded = [
            ("num_experts", self.num_experts, 65_536),
            ("moe_intermediate_size", self.moe_intermediate_size, 1 << 24),
            ("num_shared_experts", self.num_shared_experts, 1024),
        ];
        for (key, value, max) in bounded {
            if value > max {
                return Err(wrong(key, value, format!("at most {max}")));
            }
        }
        let windows = self
            .sliding_windows
            .iter()
            .chain([&self.mtp_sliding_window]);
        if windows.flatten().any(|&window| window == 0) {
            return Err(wrong(
                "sliding_window",
                0,
                "at least 1, since there are sliding layers",
            ));
        }
        if self.mlp_layer_types.contains(&MlpType::Sparse) {
            let sparse = [
                ("num_experts", self.num_experts),
                ("moe_intermediate_size", self.moe_intermediate_size),
                ("num_shared_experts", self.num_shared_experts),
            ];
            for (key, value) in sparse {
                if value == 0 {
                    return Err(wrong(
                        key,
                        value,
                        "at least 1, since there are sparse layers",
                    ));
                }
            }
            if !(1..=self.num_experts).contains(&self.num_experts_per_tok) {
                let expected = format!("1 to num_experts ({})", self.num_experts);
                return Err(wrong(
                    "num_experts_per_tok",
                    self.num_experts_per_tok,
                    expected,
                ));
            }
        }
        if self.num_nextn_predict_layers > 1 {
            return Err(wrong(
                "num_nextn_predict_layers",
                self.num_nextn_predict_layers,
                "0 or 1",
            ));
        }
        let (tensors, parameters) = flops::size(self);
        if tensors > MAX_TENSORS {
            let expected = format!("layers and experts that make at most {MAX_TENSORS} tensors");
            let got = format!("{} ({tensors} tensors)", self.num_hidden_layers);
            return Err(wrong("num_hidden_layers", got, expected));
        }
        if parameters > MAX_PARAMETERS {
            let expected = format!("sizes that make at most {MAX_PARAMETERS} parameters");
            let got = format!("{} ({parameters} parameters)", self.hidden_size);
            return Err(wrong("hidden_size", got, expected));
        }
        let scaling = self.rope_scaling;
        let positive = [
            ("rms_norm_eps", f64::from(self.rms_norm_eps)),
            ("rope_theta", f64::from(self.rope_theta as f32)),
            ("factor", scaling.map_or(1.0, |s| f64::from(s.factor))),
            (
                "high_freq_factor - low_freq_factor",
                scaling.map_or(1.0, |s| f64::from(s.high_freq_factor - s.low_freq_factor)),
            ),
            (
                "original_max_position_embeddings",
                scaling.map_or(1.0, |s| s.original_max_position_embeddings as f64),
            ),
        ];
        for (key, value) in positive {
            if !value.is_finite() || value <= 0.0 {
                return Err(wrong(key, value, "a positive number in 32 bits"));
            }
        }
        for (key, value) in [
            ("routed_scaling_factor", self.routed_scaling_factor),
            ("initializer_range", self.initializer_range),
        ] {
            if !value.is_finite() {
                return Err(wrong(key, value, "a number in 32 bits"));
            }
        }
        Ok(())
    }

    fn validate_swiglu_limits(&self) -> Result<(), ConfigError> {
        let (layers, limits) = (self.num_hidden_layers, &self.swiglu_limits);
        let with_mtp = layers.saturating_add(self.num_nextn_predict_layers);
        if ![layers, with_mtp].contains(&limits.len()) {
            return Err(wrong(
                "swiglu_limits",
                format!("{} entries", limits.len()),
                format!("num_hidden_layers ({layers}), or one more for each prediction layer"),
            ));
        }
        for limit in limits.iter().flatten() {
            if !limit.is_finite() || *limit <= 0.0 {
                let expected = "positive numbers, and 0 or null for layers without a limit";
                return Err(wrong("swiglu_limits", limit, expected));
            }
            if self.architecture != Architecture::ExaoneMoe {
                let expected = format!("no limits in {}", self.architecture.model_type());
                return Err(wrong("swiglu_limits", limit, expected));
            }
        }
        Ok(())
    }

    /// Where the SwiGLUs of a layer cut; the prediction layer comes after the last.
    pub fn swiglu_limit(&self, layer: usize) -> Option<f32> {
        self.swiglu_limits.get(layer).copied().flatten()
    }

    /// The window of a layer: `None` sees everything before it.
    pub fn window(&self, layer: usize) -> Option<usize> {
        self.sliding_windows[layer]
    }

    /// Whether a layer of that window has rotary positions.
    pub fn has_rope(&self, window: Option<usize>) -> bool {
        window.is_some() || self.full_attention_rope
    }

    /// H * K, the width of the queries.
    pub fn q_size(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// G * K, the width of the keys and of the values.
    pub fn kv_size(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }

    /// Width of the shared expert.
    pub fn shared_size(&self) -> usize {
        self.num_shared_experts * self.moe_intermediate_size
    }

    /// Inverse frequencies of the rotary embedding, (K/2), rounded to f32 as the published code does.
    ///
    /// Scaled, the frequency of a wave that turns s times within the original length goes over from
    /// divided by `factor` (s at most `low_freq_factor`) to itself (at least `high_freq_factor`).
    /// Source: Llama 3.1 as released.
    pub fn inv_freq(&self) -> Vec<f32> {
        let d = self.head_dim as f32;
        let scaled = |plain: f32| {
            let Some(s) = self.rope_scaling else {
                return plain;
            };
            let original = s.original_max_position_embeddings as f32;
            let wavelength = std::f32::consts::TAU / plain;
            if wavelength > original / s.low_freq_factor {
                plain / s.factor
            } else if wavelength < original / s.high_freq_factor {
                plain
            } else {
                let turns = original / wavelength;
                let share = (turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor);
                (1.0 - share) * plain / s.factor + share * plain
            }
        };
        (0..self.head_dim / 2)
            .map(|i| scaled(1.0 / (self.rope_theta as f32).powf((2 * i) as f32 / d)))
            .collect()
    }
}
