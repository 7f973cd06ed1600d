//! A `config.json` of any of the family's layouts, checked, with every list written out.
//!
//! Defaults are those of the published configuration classes (`transformers` 5.23; for `exaone` the code
//! that comes with its checkpoints). A key that is neither used nor known to leave the result alone is
//! refused: what it means is not known here, and a model that computes something else looks like one
//! that works.

use super::{Architecture, Compute, ConfigError, MlpType, ModelConfig, RopeScaling, wrong};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::cell::RefCell;
use std::collections::HashSet;

/// Keys that say nothing about what a forward pass computes: training, bookkeeping, generation, and
/// what `transformers` once wrote into every file.
const HARMLESS: &[&str] = &[
    "_attn_implementation_autoset",
    "_name_or_path",
    "add_cross_attention",
    "architectures",
    "attention_dropout",
    "attn_implementation",
    "auto_map",
    "bad_words_ids",
    "begin_suppress_tokens",
    "cache_implementation",
    "chunk_size_feed_forward",
    "cross_attention_hidden_size",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "embed_dropout",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "id2label",
    "is_decoder",
    "is_encoder_decoder",
    "is_llama_config",
    "is_moe_layer", // says again what mlp_layer_types says
    "label2id",
    "length_penalty",
    "max_length",
    "min_length",
    "mtp_loss_scaling_factor",
    "mtp_num_speculative_steps",
    "mtp_share_layers",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "output_scores",
    "prefix",
    "presence_penalty",
    "pretraining_tp", // of how the first Llama was trained; `transformers` no longer reads it
    "problem_type",
    "pruned_heads",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict",
    "return_dict_in_generate",
    "router_aux_loss_coef",
    "sep_token_id",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tie_encoder_decoder",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torchscript",
    "transformers_version",
    "transformers.js_config",
    "typical_p",
    "dtype", // what the weights are stored in; read where nothing says what to multiply in
    "torch_dtype",
    "use_bfloat16",
    "use_cache",
];

/// The keys of one object; remembers which were asked for.
struct Keys<'a> {
    map: &'a Map<String, Value>,
    asked: RefCell<HashSet<&'static str>>,
}

impl<'a> Keys<'a> {
    fn new(map: &'a Map<String, Value>) -> Keys<'a> {
        Keys {
            map,
            asked: RefCell::default(),
        }
    }

    /// A key that is there and not null.
    fn get(&self, key: &'static str) -> Option<&'a Value> {
        self.asked.borrow_mut().insert(key);
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// The value of a thing that has several names; two that disagree are refused.
    fn one_of(
        &self,
        names: &[&'static str],
    ) -> Result<Option<(&'static str, &'a Value)>, ConfigError> {
        let found = names.iter().filter_map(|&key| Some((key, self.get(key)?)));
        let found: Vec<_> = found.collect();
        match found.as_slice() {
            [(first, value), (other, v), ..] if value != v => {
                Err(wrong(other, v, format!("what `{first}` says ({value})")))
            }
            found => Ok(found.first().copied()),
        }
    }

    fn usize_of(
        &self,
        names: &[&'static str],
        default: Option<usize>,
    ) -> Result<usize, ConfigError> {
        match (self.one_of(names)?, default) {
            (Some((key, v)), _) => v
                .as_u64()
                .filter(|&n| n < 1 << 40)
                .map(|n| n as usize)
                .ok_or_else(|| wrong(key, v, "a whole number")),
            (None, Some(default)) => Ok(default),
            (None, None) => Err(ConfigError::Missing(names[0])),
        }
    }

    fn usize_or(&self, key: &'static str, default: usize) -> Result<usize, ConfigError> {
        self.usize_of(&[key], Some(default))
    }

    fn usize(&self, key: &'static str) -> Result<usize, ConfigError> {
        self.usize_of(&[key], None)
    }

    fn f64_of(&self, names: &[&'static str], default: f64) -> Result<f64, ConfigError> {
        match self.one_of(names)? {
            Some((key, v)) => v.as_f64().ok_or_else(|| wrong(key, v, "a number")),
            None => Ok(default),
        }
    }

    fn bool_or(&self, key: &'static str, default: bool) -> Result<bool, ConfigError> {
        self.get(key).map_or(Ok(default), |v| {
            v.as_bool().ok_or_else(|| wrong(key, v, "true or false"))
        })
    }

    /// One token id, or a list of them.
    fn ids(&self, key: &'static str) -> Result<Vec<u32>, ConfigError> {
        let values = match self.get(key) {
            None => return Ok(vec![]),
            Some(Value::Array(list)) => list.iter().collect(),
            Some(v) => vec![v],
        };
        let id = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
        let ids: Option<Vec<u32>> = values.into_iter().map(id).collect();
        ids.ok_or_else(|| wrong(key, &self.map[key], "a token id or a list of them"))
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
                let expected = match list.is_empty() {
                    true => "to be absent (it is not supported)".to_string(),
                    false => format!("{} (others are not supported)", list.join(" or ")),
                };
                Err(wrong(key, v, expected))
            }
            _ => Ok(()),
        }
    }

    /// Refuses what was not asked for, unless it is known to be harmless or says nothing.
    fn no_others(&self, architecture: Architecture) -> Result<(), ConfigError> {
        let asked = self.asked.borrow();
        let known = |key: &str| asked.contains(key) || HARMLESS.contains(&key);
        let mut unknown = self.map.iter().filter(|(key, _)| !known(key));
        match unknown.find(|(_, value)| !value.is_null()) {
            None => Ok(()),
            Some((key, value)) => Err(ConfigError::Unknown {
                key: key.clone(),
                got: crop(value),
                architecture: architecture.model_type(),
            }),
        }
    }
}

/// A value as a message shows it.
fn crop(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
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
            .ok_or_else(|| wrong("(root)", crop(&value), "an object"))?;
        let config = match map.get("model_type").and_then(Value::as_str) {
            Some("exaone4_5") => read(&text_part(map)?)?,
            _ => read(map)?,
        };
        config.validate()?;
        Ok(config)
    }
}

/// The text model of EXAONE 4.5: `text_config`, and what the outer object says in its place.
fn text_part(map: &Map<String, Value>) -> Result<Map<String, Value>, ConfigError> {
    let text = map
        .get("text_config")
        .and_then(Value::as_object)
        .ok_or(ConfigError::Missing("text_config"))?;
    let mut merged = text.clone();
    for key in [
        "tie_word_embeddings",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "compute",
    ] {
        if let Some(value) = map.get(key) {
            merged.insert(key.into(), value.clone());
        }
    }
    Ok(merged)
}

fn read(map: &Map<String, Value>) -> Result<ModelConfig, ConfigError> {
    let keys = Keys::new(map);
    let architecture = match keys.get("model_type").and_then(Value::as_str) {
        Some("exaone_moe") => Architecture::ExaoneMoe,
        Some("exaone4" | "exaone4_5_text") => Architecture::Exaone4,
        Some("exaone") => Architecture::Exaone,
        Some("llama") => Architecture::Llama,
        other => {
            return Err(wrong(
                "model_type",
                other.unwrap_or("absent"),
                "\"exaone_moe\", \"exaone4\", \"exaone4_5\", \"exaone\" or \"llama\"",
            ));
        }
    };
    let is_moe = architecture == Architecture::ExaoneMoe;
    for key in ["hidden_act", "activation_function"] {
        keys.only(key, &[json!("silu")])?;
    }
    for key in ["attention_bias", "mlp_bias", "rope_interleaved"] {
        keys.only(key, &[json!(false)])?;
    }
    keys.only("partial_rotary_factor", &[json!(1), json!(1.0)])?;
    check_quantization(keys.get("quantization_config"))?;

    let num_hidden_layers = keys.usize_of(&["num_hidden_layers", "num_layers"], None)?;
    if num_hidden_layers == 0 || num_hidden_layers > 10_000 {
        return Err(wrong("num_hidden_layers", num_hidden_layers, "1 to 10000"));
    }
    let hidden_size = keys.usize("hidden_size")?;
    let num_attention_heads = keys.usize("num_attention_heads")?;
    let (rope_theta, rope_scaling) = rope(&keys)?;
    let (sliding_windows, full_attention_rope) = match architecture.has_sliding_layers() {
        true => windows(&keys, num_hidden_layers)?,
        false => (vec![None; num_hidden_layers], true),
    };
    let mtp = mtp_layers(&keys, architecture)?;
    let num_experts = if is_moe {
        keys.only("scoring_func", &[json!("sigmoid")])?;
        keys.only("topk_method", &[json!("noaux_tc")])?;
        keys.only("n_group", &[json!(1)])?;
        keys.only("topk_group", &[json!(1)])?;
        keys.usize_or("num_experts", 0)?
    } else {
        0
    };
    let experts_or = |key: &'static str, default: usize| match is_moe {
        true => keys.usize_or(key, default),
        false => Ok(0),
    };
    let config = ModelConfig {
        architecture,
        vocab_size: keys.usize("vocab_size")?,
        hidden_size,
        intermediate_size: keys.usize("intermediate_size")?,
        num_hidden_layers,
        num_attention_heads,
        num_key_value_heads: keys.usize_or("num_key_value_heads", num_attention_heads)?,
        head_dim: keys.usize_or("head_dim", hidden_size / num_attention_heads.max(1))?,
        rms_norm_eps: keys.f64_of(
            &["rms_norm_eps", "layer_norm_epsilon"],
            match architecture {
                Architecture::Llama => 1e-6,
                _ => 1e-5,
            },
        )? as f32,
        rope_theta,
        rope_scaling,
        full_attention_rope,
        max_position_embeddings: keys.usize_or("max_position_embeddings", 2048)?,
        sliding_windows,
        mlp_layer_types: match is_moe {
            true => mlp_layer_types(&keys, num_hidden_layers, num_experts)?,
            false => vec![MlpType::Dense; num_hidden_layers],
        },
        num_experts,
        num_experts_per_tok: experts_or("num_experts_per_tok", 0)?,
        moe_intermediate_size: experts_or("moe_intermediate_size", 0)?,
        num_shared_experts: experts_or("num_shared_experts", 1)?,
        norm_topk_prob: !is_moe || keys.bool_or("norm_topk_prob", true)?,
        routed_scaling_factor: match is_moe {
            true => keys.f64_of(&["routed_scaling_factor"], 1.0)? as f32,
            false => 1.0,
        },
        // Left out of the file where it has the default of all configurations, which is true; the
        // classes of the other architectures have another default.
        tie_word_embeddings: keys
            .bool_or("tie_word_embeddings", architecture == Architecture::Exaone)?,
        num_nextn_predict_layers: mtp,
        mtp_sliding_window: mtp_window(&keys, mtp)?,
        mtp_num_speculative_steps: match keys.get("mtp_num_speculative_steps") {
            Some(_) if mtp > 0 => Some(keys.usize("mtp_num_speculative_steps")?),
            _ => None,
        },
        swiglu_limits: swiglu_limits(&keys, num_hidden_layers)?,
        initializer_range: keys.f64_of(&["initializer_range"], 0.02)? as f32,
        bos_token_id: keys.ids("bos_token_id")?.first().copied(),
        eos_token_id: keys.ids("eos_token_id")?,
        pad_token_id: keys.ids("pad_token_id")?.first().copied(),
        compute: compute(&keys)?,
    };
    keys.no_others(architecture)?;
    Ok(config)
}

/// Weights may be stored in FP8 with scales; other ways of storing them are refused.
fn check_quantization(config: Option<&Value>) -> Result<(), ConfigError> {
    let Some(config) = config else { return Ok(()) };
    let is_fp8 = match config["quant_method"].as_str() {
        Some("fp8") => true,
        Some("compressed-tensors") => {
            let groups = config["config_groups"].as_object();
            groups.is_some_and(|groups| {
                groups.values().all(|group| {
                    group["weights"]["type"] == "float" && group["weights"]["num_bits"] == 8
                })
            })
        }
        _ => false,
    };
    match is_fp8 {
        true => Ok(()),
        false => Err(wrong(
            "quantization_config",
            crop(config),
            "FP8 weights of quant_method \"fp8\" or \"compressed-tensors\" (others are not supported)",
        )),
    }
}

fn compute(keys: &Keys) -> Result<Compute, ConfigError> {
    if let Some(v) = keys.get("compute") {
        return serde_json::from_value(v.clone())
            .map_err(|_| wrong("compute", v, "\"f32\" or \"bf16\""));
    }
    let dtype = keys.get("dtype").or(keys.get("torch_dtype"));
    Ok(match dtype.and_then(Value::as_str) {
        Some("bfloat16") => Compute::Bf16,
        _ => Compute::F32,
    })
}

/// The base of the rotary frequencies and how they are stretched: `rope_parameters`, or in older files
/// `rope_theta` and `rope_scaling`.
fn rope(keys: &Keys) -> Result<(f64, Option<RopeScaling>), ConfigError> {
    let theta = keys.f64_of(&["rope_theta"], 10_000.0)?;
    let parameters = keys.get("rope_parameters").or(keys.get("rope_scaling"));
    let Some(parameters) = parameters else {
        return Ok((theta, None));
    };
    let map = parameters
        .as_object()
        .ok_or_else(|| wrong("rope_parameters", parameters, "an object"))?;
    let inner = Keys::new(map);
    let theta = inner.f64_of(&["rope_theta"], theta)?;
    inner.only("partial_rotary_factor", &[json!(1), json!(1.0)])?;
    let (rope_type, older) = (inner.get("rope_type"), inner.get("type"));
    let scaling = match rope_type.or(older).map(|v| (v, v.as_str())) {
        None | Some((_, Some("default"))) => None,
        Some((_, Some("llama3"))) => {
            let number = |key: &'static str| {
                let value = inner.get(key).ok_or(ConfigError::Missing(key))?;
                value.as_f64().ok_or_else(|| wrong(key, value, "a number"))
            };
            Some(RopeScaling {
                factor: number("factor")? as f32,
                low_freq_factor: number("low_freq_factor")? as f32,
                high_freq_factor: number("high_freq_factor")? as f32,
                original_max_position_embeddings: inner
                    .usize("original_max_position_embeddings")?,
            })
        }
        Some((v, _)) => {
            let expected = "\"default\" or \"llama3\" (others are not supported)";
            return Err(wrong("rope_type", v, expected));
        }
    };
    Ok((theta, scaling))
}

/// The window of each layer, and whether layers without one have positions: as published, they do in a
/// model whose `sliding_window` is null.
fn windows(keys: &Keys, layers: usize) -> Result<(Vec<Option<usize>>, bool), ConfigError> {
    let is_null = keys.map.get("sliding_window").is_some_and(Value::is_null);
    let window = match keys.usize_or("sliding_window", 4096)? {
        _ if is_null => None,
        window => Some(window),
    };
    let pattern = keys.get("sliding_window_pattern");
    let slides: Vec<bool> = match keys.list::<String>("layer_types", "a list of attention types")? {
        Some(list) => list
            .iter()
            .map(|kind| match kind.as_str() {
                "sliding_attention" => Ok(true),
                "full_attention" => Ok(false),
                other => Err(wrong(
                    "layer_types",
                    other,
                    "\"sliding_attention\" or \"full_attention\"",
                )),
            })
            .collect::<Result<_, _>>()?,
        None if window.is_none() => vec![false; layers],
        None => (0..layers)
            .map(|l| match pattern {
                None => Ok((l + 1) % 4 != 0),
                Some(Value::String(s))
                    if !s.is_empty() && s.bytes().all(|c| b"LG".contains(&c)) =>
                {
                    Ok(s.as_bytes()[l % s.len()] == b'L')
                }
                Some(v) => match v.as_u64() {
                    Some(0) => Ok(false),
                    Some(period) => Ok((l as u64 + 1) % period != 0),
                    None => Err(wrong(
                        "sliding_window_pattern",
                        v,
                        "a period, or a string of L and G",
                    )),
                },
            })
            .collect::<Result<_, _>>()?,
    };
    if slides.len() != layers {
        let entries = format!("{} entries", slides.len());
        let expected = format!("num_hidden_layers ({layers})");
        return Err(wrong("layer_types", entries, expected));
    }
    let each = keys.list::<Option<usize>>("sliding_windows", "a list of numbers")?;
    let window_of = |(l, &slides): (usize, &bool)| {
        let own = each.as_ref().map(|each| each.get(l).copied().flatten());
        match (slides, own) {
            (false, None | Some(None | Some(0))) => Ok(None),
            (true, None) => window
                .ok_or_else(|| {
                    let expected = "a number, since there are sliding layers";
                    wrong("sliding_window", "null", expected)
                })
                .map(Some),
            (true, Some(Some(own))) if own > 0 => Ok(Some(own)),
            (_, Some(own)) => Err(wrong(
                "sliding_windows",
                format!("{own:?} at layer {l}"),
                "a window where layer_types says sliding_attention and 0 elsewhere",
            )),
        }
    };
    let windows: Vec<Option<usize>> = slides
        .iter()
        .enumerate()
        .map(window_of)
        .collect::<Result<_, _>>()?;
    Ok((windows, window.is_none()))
}

fn mlp_layer_types(
    keys: &Keys,
    layers: usize,
    num_experts: usize,
) -> Result<Vec<MlpType>, ConfigError> {
    let names = ["first_k_dense_replace", "first_last_k_dense_replace"];
    let dense = keys.usize_of(&names, Some(1))?;
    let expected = "a list of \"dense\" or \"sparse\"";
    let of = |l: usize| match l < dense || num_experts == 0 {
        true => MlpType::Dense,
        false => MlpType::Sparse,
    };
    Ok(keys
        .list("mlp_layer_types", expected)?
        .unwrap_or_else(|| (0..layers).map(of).collect()))
}

/// Of each layer, 0 and null saying that it has none; without the key, no layer has one.
fn swiglu_limits(keys: &Keys, layers: usize) -> Result<Vec<Option<f32>>, ConfigError> {
    let expected = "a list of numbers, 0 or null for layers without a limit";
    let limits = keys.list::<Option<f32>>("swiglu_limits", expected)?;
    let limits = limits.unwrap_or_else(|| vec![None; layers]);
    let positive = |limit: Option<f32>| limit.filter(|&limit| limit != 0.0);
    Ok(limits.into_iter().map(positive).collect())
}

/// Prediction layers. That of EXAONE 4.5 is left out where its file does not say how it attends: the model
/// itself does not depend on it, and a guess might.
fn mtp_layers(keys: &Keys, architecture: Architecture) -> Result<usize, ConfigError> {
    let says_how = keys.get("mtp_layer_types").is_some();
    match keys.usize_or("num_nextn_predict_layers", 0)? {
        _ if architecture == Architecture::Exaone4 && !says_how => Ok(0),
        layers => Ok(layers),
    }
}

/// The window of the prediction layer.
fn mtp_window(keys: &Keys, num_layers: usize) -> Result<Option<usize>, ConfigError> {
    let types = keys.list::<String>("mtp_layer_types", "a list of attention types")?;
    let windows = keys.list::<Option<usize>>("mtp_sliding_windows", "a list of numbers")?;
    if num_layers == 0 {
        return Ok(None);
    }
    let kind = match types.as_deref() {
        Some([kind]) => kind.as_str(),
        // K-EXAONE's first files do not say; its layer attends to everything.
        None => "full_attention",
        Some(types) => {
            return Err(wrong("mtp_layer_types", json!(types), "one attention type"));
        }
    };
    match (kind, windows.as_deref()) {
        ("full_attention", None | Some([None | Some(0)])) => Ok(None),
        ("sliding_attention", Some(&[Some(window)])) if window > 0 => Ok(Some(window)),
        (kind, windows) => Err(wrong(
            "mtp_sliding_windows",
            json!(windows),
            format!("one window that agrees with mtp_layer_types ({kind})"),
        )),
    }
}

#[cfg(test)]
mod tests;
