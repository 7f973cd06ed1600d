//! A config.json of any text is refused in one error, or what it says can be written and read again without
//! a change, and its tensors can be listed: their number and their elements can be counted.

#![no_main]

use libfuzzer_sys::fuzz_target;
use model::{Layout, ModelConfig};
use serde_json::json;

/// What the list of the tensors of the largest configuration takes, whatever the length of its text.
const LIST_BYTES: usize = 256 << 20;

fuzz_target!(init: dokja_fuzz::plant(&seeds()), |bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    dokja_fuzz::budget::within(LIST_BYTES, bytes.len(), || read(text));
});

fn read(text: &str) {
    let Ok(config) = ModelConfig::from_json(text) else {
        return;
    };
    let written = config.to_json().to_string();
    let again = ModelConfig::from_json(&written).expect("what is written can be read");
    assert_eq!(again, config);
    let layout = Layout::new(&config);
    let last = layout.tensors.last().expect("there is an embedding");
    assert_eq!(last.span.range().end, layout.len);
}

fn seeds() -> Vec<Vec<u8>> {
    let moe = json!({
        "model_type": "exaone_moe", "vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 10, "intermediate_size": 20,
        "sliding_window": 5, "sliding_window_pattern": "LLLG", "first_k_dense_replace": 1,
        "num_experts": 7, "num_experts_per_tok": 3, "moe_intermediate_size": 9,
        "num_shared_experts": 1, "scoring_func": "sigmoid", "norm_topk_prob": true,
        "routed_scaling_factor": 2.5, "num_nextn_predict_layers": 1,
        "mtp_layer_types": ["full_attention"], "mtp_sliding_windows": [0],
        "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"],
        "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
        "rope_parameters": {"rope_theta": 1000000, "rope_type": "default"},
        "bos_token_id": 1, "eos_token_id": [2, 3], "pad_token_id": 0, "dtype": "bfloat16",
    });
    let exaone4 = json!({
        "model_type": "exaone4", "vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 4, "intermediate_size": 20, "sliding_window": null,
        "rope_theta": 1e6, "rope_scaling": {"rope_type": "llama3", "factor": 16.0,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
        "tie_word_embeddings": true,
    });
    let llama = json!({
        "model_type": "llama", "vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 4, "intermediate_size": 20, "rms_norm_eps": 1e-5,
    });
    // At the limits of each size.
    let mut huge = moe.clone();
    for (key, value) in [
        ("num_hidden_layers", 10_000),
        ("num_experts", 65_536),
        ("hidden_size", 1 << 28),
        ("intermediate_size", 1 << 28),
        ("head_dim", 1 << 28),
    ] {
        huge[key] = value.into();
    }
    for key in ["layer_types", "mlp_layer_types"] {
        huge.as_object_mut().expect("an object").remove(key);
    }
    // Numbers that 32 bits hold, and that they do not.
    let mut large = moe.clone();
    large["routed_scaling_factor"] = 3e38.into();
    let mut too_large = large.clone();
    too_large["routed_scaling_factor"] = 3e39.into();
    let exaone45 = json!({ "model_type": "exaone4_5", "text_config": exaone4.clone() });
    [moe, exaone4, llama, exaone45, huge, large, too_large]
        .map(|config| config.to_string().into_bytes())
        .into()
}
