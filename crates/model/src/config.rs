//! `config.json`, with its keys as published.
//!
//! [`ModelConfig::from_json`] accepts the newer and the older layout of the `exaone_moe` family and
//! refuses what would change the result without being supported. The normalised form has no options
//! left: per-layer lists are always written out.
//! Source of the keys: the published configuration of K-EXAONE-236B-A23B.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

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
}

fn wrong(key: &str, got: impl ToString, expected: impl ToString) -> ConfigError {
    ConfigError::Value {
        key: key.into(),
        got: got.to_string(),
        expected: expected.to_string(),
    }
}

/// How a layer attends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttentionType {
    /// The last `sliding_window` positions, with rotary embedding.
    SlidingAttention,
    /// All positions, without positional encoding.
    FullAttention,
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

/// The architecture in numbers. Field names are the published keys.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
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
    /// Longest sequence the model is meant for.
    pub max_position_embeddings: usize,
    /// Keys a sliding layer sees, the query's own included.
    pub sliding_window: usize,
    /// One entry per layer.
    pub layer_types: Vec<AttentionType>,
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
    /// 0 or 1 multi-token-prediction layers.
    pub num_nextn_predict_layers: usize,
    /// Standard deviation of initial weights.
    pub initializer_range: f32,
    /// Token ids; `None` where the file has none.
    pub bos_token_id: Option<u32>,
    /// Ends an answer.
    pub eos_token_id: Option<u32>,
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

struct Keys<'a>(&'a Map<String, Value>);

impl Keys<'_> {
    fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key).filter(|v| !v.is_null())
    }
    fn usize_or(&self, key: &'static str, default: Option<usize>) -> Result<usize, ConfigError> {
        match (self.get(key), default) {
            (Some(v), _) => v
                .as_u64()
                .filter(|&n| n < 1 << 40)
                .map(|n| n as usize)
                .ok_or_else(|| wrong(key, v, "a whole number")),
            (None, Some(default)) => Ok(default),
            (None, None) => Err(ConfigError::Missing(key)),
        }
    }
    fn usize(&self, key: &'static str) -> Result<usize, ConfigError> {
        self.usize_or(key, None)
    }
    fn f64_or(&self, key: &'static str, default: f64) -> Result<f64, ConfigError> {
        self.get(key).map_or(Ok(default), |v| {
            v.as_f64().ok_or_else(|| wrong(key, v, "a number"))
        })
    }
    fn bool_or(&self, key: &'static str, default: bool) -> Result<bool, ConfigError> {
        self.get(key).map_or(Ok(default), |v| {
            v.as_bool().ok_or_else(|| wrong(key, v, "true or false"))
        })
    }
    fn id(&self, key: &'static str) -> Result<Option<u32>, ConfigError> {
        Ok(match self.get(key) {
            None => None,
            Some(v) => Some(
                v.as_u64()
                    .and_then(|n| u32::try_from(n).ok())
                    .ok_or_else(|| wrong(key, v, "a token id"))?,
            ),
        })
    }
    fn list<T: for<'d> Deserialize<'d>>(
        &self,
        key: &'static str,
        expected: &str,
    ) -> Result<Option<Vec<T>>, ConfigError> {
        self.get(key)
            .map(|v| serde_json::from_value(v.clone()).map_err(|_| wrong(key, v, expected)))
            .transpose()
    }
    /// Refuses a key whose value would change the result in a way that is not supported.
    fn only(&self, key: &'static str, allowed: &[Value]) -> Result<(), ConfigError> {
        match self.get(key) {
            Some(v) if !allowed.contains(v) => {
                let list: Vec<String> = allowed.iter().map(Value::to_string).collect();
                Err(wrong(
                    key,
                    v,
                    format!("{} (others are not supported)", list.join(" or ")),
                ))
            }
            _ => Ok(()),
        }
    }
}

impl ModelConfig {
    /// Reads and checks a `config.json`.
    ///
    /// # Errors
    /// A missing key, a value out of range, or a feature that is not supported; the key is named.
    pub fn from_json(text: &str) -> Result<ModelConfig, ConfigError> {
        let value: Value = serde_json::from_str(text)?;
        let map = value
            .as_object()
            .ok_or_else(|| wrong("(root)", &value, "an object"))?;
        let keys = Keys(map);
        match keys.get("model_type").and_then(Value::as_str) {
            Some("exaone_moe") => {}
            other => {
                return Err(wrong(
                    "model_type",
                    other.unwrap_or("absent"),
                    "\"exaone_moe\"",
                ));
            }
        }
        keys.only("hidden_act", &[json!("silu")])?;
        keys.only("scoring_func", &[json!("sigmoid")])?;
        keys.only("n_group", &[json!(1)])?;
        keys.only("topk_group", &[json!(1)])?;
        keys.only("tie_word_embeddings", &[json!(false)])?;
        keys.only("attention_bias", &[json!(false)])?;
        keys.only("mtp_layer_types", &[json!(["full_attention"]), json!([])])?;
        keys.only("swiglu_limits", &[])?;
        keys.only("rope_scaling", &[])?;
        let rope = keys.get("rope_parameters").and_then(Value::as_object);
        if let Some(rope) = rope {
            Keys(rope).only("rope_type", &[json!("default")])?;
        }
        let rope_theta = match rope {
            Some(rope) => Keys(rope).f64_or("rope_theta", 1e6)?,
            None => keys.f64_or("rope_theta", 1e6)?,
        };
        let num_hidden_layers = keys.usize("num_hidden_layers")?;
        if num_hidden_layers == 0 || num_hidden_layers > 10_000 {
            return Err(wrong("num_hidden_layers", num_hidden_layers, "1 to 10000"));
        }
        let hidden_size = keys.usize("hidden_size")?;
        let num_attention_heads = keys.usize("num_attention_heads")?;
        let sliding_window = keys.usize_or("sliding_window", Some(0))?;
        let layer_types = match keys.list("layer_types", "a list of attention types")? {
            Some(list) => list,
            None => {
                let pattern = match keys.get("sliding_window_pattern") {
                    Some(Value::Number(n)) => n.as_u64().unwrap_or(4).max(1) as usize,
                    Some(Value::String(s)) => s.len().max(1),
                    _ => 4,
                };
                (0..num_hidden_layers)
                    .map(|l| match (l + 1) % pattern {
                        0 => AttentionType::FullAttention,
                        _ => AttentionType::SlidingAttention,
                    })
                    .collect()
            }
        };
        if let Some(windows) = keys.list::<usize>("sliding_windows", "a list of numbers")? {
            let agrees = windows.len() == layer_types.len()
                && windows.iter().zip(&layer_types).all(|(&w, t)| match t {
                    AttentionType::SlidingAttention => w == sliding_window,
                    AttentionType::FullAttention => w == 0,
                });
            if !agrees {
                return Err(wrong(
                    "sliding_windows",
                    json!(windows),
                    "sliding_window on sliding layers and 0 on the others (per-layer windows are not supported)",
                ));
            }
        }
        let num_experts = keys.usize_or("num_experts", Some(0))?;
        let mlp_layer_types =
            match keys.list("mlp_layer_types", "a list of \"dense\" or \"sparse\"")? {
                Some(list) => list,
                None => {
                    let older = keys.usize_or("first_last_k_dense_replace", Some(1))?;
                    let dense = keys.usize_or("first_k_dense_replace", Some(older))?;
                    (0..num_hidden_layers)
                        .map(|l| {
                            if l < dense || num_experts == 0 {
                                MlpType::Dense
                            } else {
                                MlpType::Sparse
                            }
                        })
                        .collect()
                }
            };
        let config = ModelConfig {
            vocab_size: keys.usize("vocab_size")?,
            hidden_size,
            intermediate_size: keys.usize("intermediate_size")?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads: keys.usize_or("num_key_value_heads", Some(num_attention_heads))?,
            head_dim: keys.usize_or("head_dim", Some(hidden_size / num_attention_heads.max(1)))?,
            rms_norm_eps: keys.f64_or("rms_norm_eps", 1e-5)? as f32,
            rope_theta,
            max_position_embeddings: keys.usize_or("max_position_embeddings", Some(4096))?,
            sliding_window,
            layer_types,
            mlp_layer_types,
            num_experts,
            num_experts_per_tok: keys.usize_or("num_experts_per_tok", Some(0))?,
            moe_intermediate_size: keys.usize_or("moe_intermediate_size", Some(0))?,
            num_shared_experts: keys.usize_or("num_shared_experts", Some(1))?,
            norm_topk_prob: keys.bool_or("norm_topk_prob", true)?,
            routed_scaling_factor: keys.f64_or("routed_scaling_factor", 1.0)? as f32,
            num_nextn_predict_layers: keys.usize_or("num_nextn_predict_layers", Some(0))?,
            initializer_range: keys.f64_or("initializer_range", 0.02)? as f32,
            bos_token_id: keys.id("bos_token_id")?,
            eos_token_id: keys.id("eos_token_id")?,
            pad_token_id: keys.id("pad_token_id")?,
            compute: match keys.get("compute") {
                None => match keys
                    .get("dtype")
                    .or(keys.get("torch_dtype"))
                    .and_then(Value::as_str)
                {
                    Some("bfloat16") => Compute::Bf16,
                    _ => Compute::F32,
                },
                Some(v) => serde_json::from_value(v.clone())
                    .map_err(|_| wrong("compute", v, "\"f32\" or \"bf16\""))?,
            },
        };
        config.validate()?;
        Ok(config)
    }

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
            return Err(wrong(
                "num_key_value_heads",
                self.num_key_value_heads,
                format!(
                    "a divisor of num_attention_heads ({})",
                    self.num_attention_heads
                ),
            ));
        }
        if self.head_dim % 2 != 0 {
            return Err(wrong("head_dim", self.head_dim, "an even number"));
        }
        let lists = [
            ("layer_types", self.layer_types.len()),
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
        if self.layer_types.contains(&AttentionType::SlidingAttention) && self.sliding_window == 0 {
            return Err(wrong(
                "sliding_window",
                0,
                "at least 1, since there are sliding layers",
            ));
        }
        if self.mlp_layer_types.contains(&MlpType::Sparse) {
            let sparse = [
                ("num_experts", self.num_experts, 65_536),
                (
                    "num_experts_per_tok",
                    self.num_experts_per_tok,
                    self.num_experts,
                ),
                ("moe_intermediate_size", self.moe_intermediate_size, 1 << 24),
                ("num_shared_experts", self.num_shared_experts, 1024),
            ];
            for (key, value, max) in sparse {
                if value == 0 || value > max {
                    return Err(wrong(key, value, format!("1 to {max}")));
                }
            }
        }
        if self.num_nextn_predict_layers > 1 {
            return Err(wrong(
                "num_nextn_predict_layers",
                self.num_nextn_predict_layers,
                "0 or 1",
            ));
        }
        if self.rms_norm_eps.is_nan() || self.rms_norm_eps <= 0.0 {
            return Err(wrong(
                "rms_norm_eps",
                self.rms_norm_eps,
                "a positive number",
            ));
        }
        if self.rope_theta.is_nan() || self.rope_theta <= 0.0 {
            return Err(wrong("rope_theta", self.rope_theta, "a positive number"));
        }
        Ok(())
    }

    /// The file as this project writes it and `transformers` reads it.
    pub fn to_json(&self) -> Value {
        let is_moe: Vec<bool> = self
            .mlp_layer_types
            .iter()
            .map(|t| *t == MlpType::Sparse)
            .collect();
        let windows: Vec<usize> = self
            .layer_types
            .iter()
            .map(|t| match t {
                AttentionType::SlidingAttention => self.sliding_window,
                AttentionType::FullAttention => 0,
            })
            .collect();
        let mtp = self.num_nextn_predict_layers;
        json!({
            "architectures": ["ExaoneMoeForCausalLM"],
            "model_type": "exaone_moe",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "rms_norm_eps": shortest(self.rms_norm_eps),
            "attention_dropout": 0.0,
            "initializer_range": shortest(self.initializer_range),
            "tie_word_embeddings": false,
            "max_position_embeddings": self.max_position_embeddings,
            "rope_parameters": { "rope_theta": self.rope_theta, "rope_type": "default" },
            "sliding_window": self.sliding_window,
            "sliding_window_pattern": 4,
            "layer_types": self.layer_types,
            "sliding_windows": windows,
            "first_k_dense_replace":
                self.mlp_layer_types.iter().take_while(|t| **t == MlpType::Dense).count(),
            "mlp_layer_types": self.mlp_layer_types,
            "is_moe_layer": is_moe,
            "num_experts": self.num_experts,
            "num_experts_per_tok": self.num_experts_per_tok,
            "moe_intermediate_size": self.moe_intermediate_size,
            "num_shared_experts": self.num_shared_experts,
            "scoring_func": "sigmoid",
            "norm_topk_prob": self.norm_topk_prob,
            "routed_scaling_factor": shortest(self.routed_scaling_factor),
            "n_group": 1,
            "topk_group": 1,
            "num_nextn_predict_layers": mtp,
            "mtp_layer_types": vec!["full_attention"; mtp],
            "mtp_sliding_windows": vec![0; mtp],
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_id,
            "pad_token_id": self.pad_token_id,
            "dtype": "float32",
            "use_cache": true,
            "compute": self.compute,
        })
    }

    /// The window of a layer: `None` sees everything before it.
    pub fn window(&self, layer: usize) -> Option<usize> {
        (self.layer_types[layer] == AttentionType::SlidingAttention).then_some(self.sliding_window)
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
    pub fn inv_freq(&self) -> Vec<f32> {
        let d = self.head_dim as f32;
        (0..self.head_dim / 2)
            .map(|i| 1.0 / (self.rope_theta as f32).powf((2 * i) as f32 / d))
            .collect()
    }
}

/// The f64 whose shortest decimal is that of the f32, so that 1e-5 is written as 1e-5.
fn shortest(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::from(x))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn minimal() -> Value {
        json!({
            "model_type": "exaone_moe", "vocab_size": 32, "hidden_size": 8, "intermediate_size": 16,
            "num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 1,
            "head_dim": 4, "sliding_window": 4, "num_experts": 4, "num_experts_per_tok": 2,
            "moe_intermediate_size": 4, "rms_norm_eps": 1e-5
        })
    }

    #[test]
    fn lists_follow_from_the_pattern_when_absent() {
        let config = ModelConfig::from_json(&minimal().to_string()).unwrap();
        use AttentionType::{FullAttention as G, SlidingAttention as L};
        assert_eq!(config.layer_types, [L, L, L, G]);
        assert_eq!(config.mlp_layer_types[0], MlpType::Dense);
        assert_eq!(config.mlp_layer_types[1], MlpType::Sparse);
    }

    #[test]
    fn what_is_written_reads_back_equal() {
        let config = ModelConfig::from_json(&minimal().to_string()).unwrap();
        let again = ModelConfig::from_json(&config.to_json().to_string()).unwrap();
        assert_eq!(config, again);
    }

    #[test]
    fn an_unsupported_value_is_named() {
        for (key, value) in [
            ("hidden_act", json!("gelu")),
            ("n_group", json!(4)),
            ("tie_word_embeddings", json!(true)),
            (
                "rope_parameters",
                json!({"rope_type": "yarn", "rope_theta": 1e6}),
            ),
            ("sliding_windows", json!([4, 4, 8, 0])),
            ("num_key_value_heads", json!(3)),
            ("num_experts_per_tok", json!(9)),
            ("vocab_size", json!(-1)),
            ("layer_types", json!(["full_attention"])),
        ] {
            let mut config = minimal();
            config[key] = value;
            let error = ModelConfig::from_json(&config.to_string())
                .unwrap_err()
                .to_string();
            let name = if key == "rope_parameters" {
                "rope_type"
            } else {
                key
            };
            assert!(error.contains(name), "{error}");
        }
    }
}
