//! `config.json` as this project writes it and `transformers` reads it.

use super::{Architecture, MlpType, ModelConfig};
use serde_json::{Map, Value, json};

impl ModelConfig {
    /// The file. What [`ModelConfig::from_json`] makes of it is the same configuration.
    pub fn to_json(&self) -> Value {
        let mut keys = json!({
            "architectures": [self.architecture.class()],
            "model_type": self.architecture.model_type(),
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
            "tie_word_embeddings": self.tie_word_embeddings,
            "max_position_embeddings": self.max_position_embeddings,
            "rope_parameters": self.rope_parameters(),
        });
        let keys = keys.as_object_mut().expect("an object was written");
        if self.architecture.has_sliding_layers() {
            self.add_layer_types(keys);
        }
        if self.architecture == Architecture::ExaoneMoe {
            self.add_experts(keys);
        }
        if self.swiglu_limits.iter().any(Option::is_some) {
            let limit = |limit: &Option<f32>| shortest(limit.unwrap_or(0.0));
            let limits: Vec<f64> = self.swiglu_limits.iter().map(limit).collect();
            keys.insert("swiglu_limits".into(), json!(limits));
        }
        if self.num_nextn_predict_layers == 1 || self.architecture == Architecture::ExaoneMoe {
            let mtp = self.num_nextn_predict_layers;
            let window = self.mtp_sliding_window;
            keys.insert("num_nextn_predict_layers".into(), json!(mtp));
            keys.insert(
                "mtp_layer_types".into(),
                json!(vec![layer_type(window); mtp]),
            );
            let windows = vec![window.unwrap_or(0); mtp];
            keys.insert("mtp_sliding_windows".into(), json!(windows));
            if let Some(steps) = self.mtp_num_speculative_steps {
                keys.insert("mtp_num_speculative_steps".into(), json!(steps));
            }
        }
        if self.architecture == Architecture::Exaone {
            // The names under which EXAONE 3.x has them; its code asks for these.
            for (name, theirs) in [
                ("num_hidden_layers", "num_layers"),
                ("hidden_act", "activation_function"),
                ("rms_norm_eps", "layer_norm_epsilon"),
            ] {
                let value = keys[name].clone();
                keys.insert(theirs.into(), value);
            }
            keys.insert("rope_theta".into(), json!(self.rope_theta));
            let scaling = self.rope_scaling.map(|_| self.rope_parameters());
            keys.insert("rope_scaling".into(), json!(scaling));
        }
        keys.insert("bos_token_id".into(), json!(self.bos_token_id));
        keys.insert("eos_token_id".into(), self.eos_json());
        keys.insert("pad_token_id".into(), json!(self.pad_token_id));
        keys.insert("dtype".into(), json!("float32"));
        keys.insert("use_cache".into(), json!(true));
        keys.insert("compute".into(), json!(self.compute));
        Value::Object(std::mem::take(keys))
    }

    /// `eos_token_id` as it is written: one id as a number.
    pub fn eos_json(&self) -> Value {
        match self.eos_token_id.as_slice() {
            [] => Value::Null,
            [id] => json!(id),
            ids => json!(ids),
        }
    }

    fn rope_parameters(&self) -> Value {
        match self.rope_scaling {
            None => json!({ "rope_theta": self.rope_theta, "rope_type": "default" }),
            Some(s) => json!({
                "rope_theta": self.rope_theta,
                "rope_type": "llama3",
                "factor": shortest(s.factor),
                "low_freq_factor": shortest(s.low_freq_factor),
                "high_freq_factor": shortest(s.high_freq_factor),
                "original_max_position_embeddings": s.original_max_position_embeddings,
            }),
        }
    }

    fn add_layer_types(&self, keys: &mut Map<String, Value>) {
        let windows = &self.sliding_windows;
        // One window for all sliding layers where they agree. Without sliding layers the key decides
        // whether the others have positions: those of a model that has no window do.
        let first = windows.iter().flatten().next();
        let window = match self.full_attention_rope {
            true => None,
            false => Some(first.unwrap_or(&self.max_position_embeddings)),
        };
        let types: Vec<&str> = windows.iter().map(|&window| layer_type(window)).collect();
        let each: Vec<usize> = windows.iter().map(|window| window.unwrap_or(0)).collect();
        keys.insert("sliding_window".into(), json!(window));
        let pattern = if window.is_some() { 4 } else { 0 };
        keys.insert("sliding_window_pattern".into(), json!(pattern));
        keys.insert("layer_types".into(), json!(types));
        keys.insert("sliding_windows".into(), json!(each));
    }

    fn add_experts(&self, keys: &mut Map<String, Value>) {
        let types = &self.mlp_layer_types;
        let is_moe: Vec<bool> = types.iter().map(|t| *t == MlpType::Sparse).collect();
        let dense = is_moe.iter().take_while(|is_moe| !**is_moe).count();
        let experts = json!({
            "first_k_dense_replace": dense,
            "mlp_layer_types": types,
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
        });
        if let Value::Object(experts) = experts {
            keys.extend(experts);
        }
    }
}

fn layer_type(window: Option<usize>) -> &'static str {
    match window {
        Some(_) => "sliding_attention",
        None => "full_attention",
    }
}

/// The f64 whose shortest decimal is that of the f32, so that 1e-5 is written as 1e-5.
fn shortest(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::from(x))
}
