//! Configurations that are read, written back, or refused.

use super::*;

fn minimal() -> Value {
    json!({
        "model_type": "exaone_moe", "vocab_size": 32, "hidden_size": 8, "intermediate_size": 16,
        "num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 1,
        "head_dim": 4, "sliding_window": 4, "num_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 4, "rms_norm_eps": 1e-5
    })
}

fn with(changes: Value) -> Value {
    let mut config = minimal();
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

fn read(config: &Value) -> ModelConfig {
    ModelConfig::from_json(&config.to_string()).unwrap()
}

#[test]
fn lists_follow_from_the_pattern_when_absent() {
    let config = read(&minimal());
    assert_eq!(config.sliding_windows, [Some(4), Some(4), Some(4), None]);
    assert_eq!(config.mlp_layer_types[0], MlpType::Dense);
    assert_eq!(config.mlp_layer_types[1], MlpType::Sparse);
    let config = read(&with(json!({"sliding_window_pattern": "LG"})));
    assert_eq!(config.sliding_windows, [Some(4), None, Some(4), None]);
    let config = read(&with(json!({"sliding_window_pattern": 2})));
    assert_eq!(config.sliding_windows, [Some(4), None, Some(4), None]);
}

#[test]
fn older_and_newer_spellings_say_the_same() {
    let older = with(json!({
        "first_last_k_dense_replace": 1, "topk_method": "noaux_tc", "rope_theta": 5e5,
        "rope_scaling": null, "torch_dtype": "bfloat16"
    }));
    let newer = with(json!({
        "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"], "dtype": "bfloat16",
        "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}
    }));
    assert_eq!(read(&older), read(&newer));
}

#[test]
fn exaone_3_has_names_of_its_own_and_a_tied_head() {
    let config = read(&json!({
        "model_type": "exaone", "vocab_size": 32, "hidden_size": 8, "intermediate_size": 16,
        "num_layers": 2, "num_attention_heads": 2, "activation_function": "silu",
        "layer_norm_epsilon": 1e-3, "rope_theta": 5e5,
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    }));
    assert_eq!(config.num_hidden_layers, 2);
    assert_eq!(config.rms_norm_eps, 1e-3);
    assert_eq!((config.head_dim, config.num_key_value_heads), (4, 2));
    assert!(config.tie_word_embeddings && config.full_attention_rope);
    assert_eq!(config.rope_scaling.unwrap().factor, 8.0);
}

#[test]
fn a_null_window_gives_every_layer_positions() {
    let mut exaone4 = json!({
        "model_type": "exaone4", "vocab_size": 32, "hidden_size": 8, "intermediate_size": 16,
        "num_hidden_layers": 4, "num_attention_heads": 2, "sliding_window": null
    });
    let config = read(&exaone4);
    assert!(config.full_attention_rope && config.sliding_windows == [None; 4]);
    exaone4["sliding_window"] = json!(16);
    let config = read(&exaone4);
    assert!(!config.full_attention_rope && config.window(0) == Some(16));
}

#[test]
fn the_text_part_of_a_model_with_eyes_is_read() {
    let config = read(&json!({
        "model_type": "exaone4_5", "image_token_id": 67, "vision_config": {"depth": 32},
        "tie_word_embeddings": false, "eos_token_id": 53,
        "text_config": {
            "model_type": "exaone4_5_text", "vocab_size": 32, "hidden_size": 8,
            "intermediate_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2,
            "sliding_window": 16, "eos_token_id": 1, "num_nextn_predict_layers": 1
        }
    }));
    assert_eq!(config.architecture, Architecture::Exaone4);
    assert_eq!(
        config.num_nextn_predict_layers, 0,
        "nobody says how it attends"
    );
    assert_eq!(config.eos_token_id, [53]);
}

#[test]
fn windows_may_differ_from_layer_to_layer() {
    let config = read(&with(json!({
        "sliding_windows": [4, 128, 4096, 0], "num_nextn_predict_layers": 1,
        "mtp_layer_types": ["sliding_attention"], "mtp_sliding_windows": [64],
        "mtp_num_speculative_steps": 4
    })));
    assert_eq!(
        config.sliding_windows,
        [Some(4), Some(128), Some(4096), None]
    );
    assert_eq!(config.mtp_sliding_window, Some(64));
    assert_eq!(config.mtp_num_speculative_steps, Some(4));
    assert_eq!(read(&config.to_json()), config);
}

#[test]
fn limits_are_of_layers_and_may_be_of_the_prediction_layer() {
    let of = |limits: Value| {
        read(&with(
            json!({"swiglu_limits": limits, "num_nextn_predict_layers": 1}),
        ))
    };
    let config = of(json!([0.0, null, 0, 7.0]));
    assert_eq!(config.swiglu_limits, [None, None, None, Some(7.0)]);
    assert_eq!(config.swiglu_limit(3), Some(7.0));
    assert_eq!(config.swiglu_limit(4), None, "the prediction layer");
    assert_eq!(read(&config.to_json()), config);
    let config = of(json!([null, 7, 7, 7, 0.1]));
    assert_eq!(config.swiglu_limit(4), Some(0.1));
    assert_eq!(read(&config.to_json()), config);
    let json = config.to_json();
    assert_eq!(json["swiglu_limits"], json!([0.0, 7.0, 7.0, 7.0, 0.1]));

    for limits in [Value::Null, json!([0, 0, 0, 0])] {
        let config = of(limits);
        assert_eq!(config.swiglu_limits, [None; 4]);
        assert_eq!(config.to_json().get("swiglu_limits"), None);
    }
}

#[test]
fn limits_are_of_the_one_architecture_that_has_them() {
    let error = ModelConfig::from_json(
        &json!({
            "model_type": "llama", "vocab_size": 32, "hidden_size": 8, "intermediate_size": 16,
            "num_hidden_layers": 2, "num_attention_heads": 2, "swiglu_limits": [0, 7.0]
        })
        .to_string(),
    );
    let error = error.unwrap_err().to_string();
    assert!(error.contains("no limits in llama"), "{error}");
}

#[test]
fn what_is_written_reads_back_equal() {
    let llama3 = json!({"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0,
        "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64});
    let dense = |model_type: &str| {
        json!({
            "model_type": model_type, "vocab_size": 32, "hidden_size": 8,
            "intermediate_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2,
            "rope_parameters": llama3, "eos_token_id": [2, 3]
        })
    };
    let mut all = vec![minimal(), dense("exaone4"), dense("exaone"), dense("llama")];
    all.push(with(json!({"num_nextn_predict_layers": 1})));
    all.push(with(
        json!({"layer_types": ["full_attention", "full_attention",
        "full_attention", "full_attention"]}),
    ));
    all.push(dense("exaone4"));
    if let Some(last) = all.last_mut() {
        last["sliding_window"] = Value::Null;
        last["tie_word_embeddings"] = json!(true);
    }
    for config in all {
        let config = read(&config);
        assert_eq!(config, read(&config.to_json()));
    }
}

#[test]
fn an_unsupported_value_is_named() {
    for (key, value) in [
        ("hidden_act", json!("gelu")),
        ("n_group", json!(4)),
        ("attention_bias", json!(true)),
        ("swiglu_limits", json!([7.0])),
        ("swiglu_limits", json!([0, 0, 0, 7.0, 0, 0])),
        ("swiglu_limits", json!([0, 0, 0, -7.0])),
        ("swiglu_limits", json!([0, 0, 0, 1e39])),
        ("swiglu_limits", json!([0, 0, 0, "7"])),
        ("swiglu_limits", json!(7.0)),
        ("quantization_config", json!({"quant_method": "awq"})),
        ("head_gating", json!(true)),
        (
            "rope_parameters",
            json!({"rope_type": "yarn", "rope_theta": 1e6}),
        ),
        ("sliding_windows", json!([4, 4, 8, 1])),
        ("sliding_window", Value::Null),
        ("num_key_value_heads", json!(3)),
        ("num_experts_per_tok", json!(9)),
        ("vocab_size", json!(-1)),
        ("layer_types", json!(["full_attention"])),
        ("mtp_sliding_windows", json!([5])),
    ] {
        let mut config = with(json!({"num_nextn_predict_layers": 1}));
        if key == "sliding_window" {
            config["layer_types"] = json!(vec!["sliding_attention"; 4]);
        }
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

#[test]
fn numbers_that_32_bits_cannot_hold_are_refused() {
    for (key, value) in [
        ("routed_scaling_factor", json!(5.5e57)),
        ("initializer_range", json!(-1e39)),
        ("rms_norm_eps", json!(1e39)),
        ("rms_norm_eps", json!(1e-60)),
        ("rope_theta", json!(1e39)),
        ("rope_theta", json!(1e-60)),
    ] {
        let config = with(json!({ key: value }));
        let error = ModelConfig::from_json(&config.to_string()).unwrap_err();
        let error = error.to_string();
        assert!(error.contains(key) && error.contains("32 bits"), "{error}");
    }
}

#[test]
fn sizes_that_cannot_be_counted_are_refused() {
    let huge = 1u64 << 28;
    let cases = [
        (
            json!({"num_hidden_layers": 10_000, "num_experts": 65_536}),
            "tensors)",
        ),
        (
            json!({"vocab_size": huge, "hidden_size": huge, "intermediate_size": huge}),
            "parameters)",
        ),
        (
            json!({"num_attention_heads": huge, "num_key_value_heads": huge, "head_dim": huge}),
            "parameters)",
        ),
        (
            json!({"num_shared_experts": u64::MAX, "first_k_dense_replace": 4}),
            "num_shared_experts",
        ),
        (
            json!({"moe_intermediate_size": u64::MAX}),
            "moe_intermediate_size",
        ),
    ];
    for (changes, expected) in cases {
        let error = ModelConfig::from_json(&with(changes).to_string()).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}
