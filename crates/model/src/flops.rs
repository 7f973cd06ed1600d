//! Counts: parameters, floating-point operations per token, bytes beside the weights.

use crate::config::{MlpType, ModelConfig};
use crate::weights::Layout;

/// What a model holds and what a token costs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Counts {
    /// All parameters, the router biases included.
    pub parameters: usize,
    /// Parameters that one token is multiplied with (embedding rows not counted).
    pub active_parameters: usize,
    /// Multiply-adds times two of a forward pass per token, attention over `context` keys included.
    pub forward_flops_per_token: f64,
}

/// Tensors of the Hugging Face layout, and their elements, without listing them: whatever the sizes, neither
/// can overflow. [`Layout::new`] of a configuration with too many of either would.
pub fn size(config: &ModelConfig) -> (u128, u128) {
    let wide = |n: usize| n as u128;
    let (d, k, v) = (
        wide(config.hidden_size),
        wide(config.head_dim),
        wide(config.vocab_size),
    );
    let (h, g) = (
        wide(config.num_attention_heads),
        wide(config.num_key_value_heads),
    );
    let qk_norm = wide(usize::from(config.architecture.has_qk_norm()) * 2);
    let attention = (6 + qk_norm, 2 * d * k * (h + g) + 2 * d + qk_norm * k);
    let dense = (3, 3 * d * wide(config.intermediate_size));
    let (e, f) = (wide(config.num_experts), wide(config.moe_intermediate_size));
    let shared = wide(config.num_shared_experts);
    // A router and its bias, three matrices of each expert and of the shared one.
    let sparse = (5 + 3 * e, e * (d + 1) + 3 * d * f * (e + shared));
    let mtp = (
        5 + attention.0 + dense.0 - 1,
        2 * d * d + 3 * d + attention.1 + dense.1,
    );
    let heads = wide(2 - usize::from(config.tie_word_embeddings));
    let mut sum = (heads + 1, heads * v * d + d);
    let add =
        |sum: (u128, u128), part: (u128, u128)| (sum.0 + part.0, sum.1.saturating_add(part.1));
    for mlp in &config.mlp_layer_types {
        let mlp = match mlp {
            MlpType::Dense => dense,
            MlpType::Sparse => sparse,
        };
        sum = add(add(sum, attention), mlp);
    }
    for _ in 0..config.num_nextn_predict_layers {
        sum = add(sum, mtp);
    }
    sum
}

/// Counts for sequences of `seq_len` tokens, with or without the multi-token-prediction layer.
pub fn count(config: &ModelConfig, layout: &Layout, seq_len: usize, with_mtp: bool) -> Counts {
    let d = config.hidden_size;
    let attention = d * (2 * config.q_size() + 2 * config.kv_size());
    let dense = 3 * d * config.intermediate_size;
    let sparse =
        3 * d * (config.num_experts_per_tok * config.moe_intermediate_size + config.shared_size())
            + d * config.num_experts;
    let mut active = d * config.vocab_size;
    let mut keys = 0.0;
    // A query at position p sees min(p + 1, window) keys; this is the mean over the sequence.
    let mean_keys = |window: Option<usize>| {
        let n = seq_len as f64;
        let w = window.unwrap_or(seq_len).min(seq_len) as f64;
        (w * (w + 1.0) / 2.0 + (n - w) * w) / n
    };
    for l in 0..config.num_hidden_layers {
        active += attention;
        active += match config.mlp_layer_types[l] {
            MlpType::Dense => dense,
            MlpType::Sparse => sparse,
        };
        keys += mean_keys(config.window(l));
    }
    if with_mtp && config.num_nextn_predict_layers == 1 {
        active += 2 * d * d + attention + dense + d * config.vocab_size;
        keys += mean_keys(config.mtp_sliding_window);
    }
    Counts {
        parameters: layout.len,
        active_parameters: active,
        forward_flops_per_token: 2.0 * active as f64 + 4.0 * keys * config.q_size() as f64,
    }
}

/// Bytes of the activations that a row of a training step keeps for its backward pass, at most.
pub fn kept_bytes(config: &ModelConfig) -> u64 {
    let (d, q, kv) = (config.hidden_size, config.q_size(), config.kv_size());
    let attention = 4 * d + 3 * q + 3 * kv;
    let dense = 3 * config.intermediate_size;
    let routed = config.num_experts_per_tok * (3 * config.moe_intermediate_size + 2 * d);
    let sparse = routed + 3 * config.shared_size() + 3 * config.num_experts;
    let layers = config.num_hidden_layers + config.num_nextn_predict_layers;
    4 * (layers * (attention + dense.max(sparse)) + 20 * d) as u64
}

/// Bytes of keys and values in bf16 of all layers after that many tokens.
pub fn kv_bytes(config: &ModelConfig, tokens: usize) -> u64 {
    let kept = |window: &Option<usize>| window.unwrap_or(tokens).min(tokens) as u64;
    let rows: u64 = config.sliding_windows.iter().map(kept).sum();
    rows * 2 * config.kv_size() as u64 * 2
}

/// Bytes of activations of a serving step of `rows` rows, logits wanted of `logit_rows` of them.
pub fn step_bytes(config: &ModelConfig, rows: usize, logit_rows: usize) -> u64 {
    let (d, f) = (config.hidden_size, config.moe_intermediate_size);
    let attention = 4 * d + 3 * config.q_size() + 4 * config.kv_size();
    let a = config.num_experts_per_tok;
    let sparse = 2 * config.num_experts + a * (3 * f + d) + 3 * config.shared_size();
    let has = |kind: MlpType| usize::from(config.mlp_layer_types.contains(&kind));
    let of_row = 2 * d
        + has(MlpType::Dense) * (attention + 3 * config.intermediate_size)
        + has(MlpType::Sparse) * (attention + sparse);
    // The engine has a copy of the logits.
    let of_logits = 3 * d + 2 * config.vocab_size;
    4 * (rows * of_row + logit_rows * of_logits) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_model_has_the_published_number_of_parameters() {
        let config = ModelConfig::from_json(
            r#"{"model_type": "exaone_moe", "vocab_size": 153600, "hidden_size": 6144,
            "num_hidden_layers": 48, "num_attention_heads": 64, "num_key_value_heads": 8,
            "head_dim": 128, "intermediate_size": 18432, "sliding_window": 128,
            "first_k_dense_replace": 1, "num_experts": 128, "num_experts_per_tok": 8,
            "moe_intermediate_size": 2048, "num_shared_experts": 1, "num_nextn_predict_layers": 1}"#,
        )
        .unwrap();
        let layout = Layout::new(&config);
        assert_eq!(layout.len, 237_099_669_632);
        assert_eq!(layout.tensors.len(), 18_688);
        assert_eq!(size(&config), (18_688, 237_099_669_632));
        let counts = count(&config, &layout, 1, false);
        // 22.72 B active, from the same source as the total.
        assert!((counts.active_parameters as f64 / 1e9 - 22.72).abs() < 0.01);
    }
}
