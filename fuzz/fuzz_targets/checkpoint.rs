//! A GGUF file of any bytes opens as a model or is refused in one error; where every tensor of the
//! architecture has its place, the first and the last row of each can be read.

#![no_main]

use checkpoint::Checkpoint;
use checkpoint::gguf::write_gguf_model;
use formats::gguf::Gguf;
use formats::safetensors::{TensorData, TensorSource, write_safetensors};
use libfuzzer_sys::fuzz_target;
use model::{Layout, ModelConfig};
use numerics::BlockType;
use serde_json::{Value, json};
use std::path::Path;

/// Experts of one element each are listed one by one: some hundred bytes for two.
const LIST_BYTES: usize = 64 << 20;

fuzz_target!(init: dokja_fuzz::plant(&seeds()), |bytes: &[u8]| {
    dokja_fuzz::budget::within(LIST_BYTES, bytes.len(), || read(bytes));
});

fn read(bytes: &[u8]) {
    let Ok(file) = Gguf::from_bytes(Path::new("fuzzed"), bytes) else {
        return;
    };
    let Ok(model) = Checkpoint::of_gguf(file) else {
        return;
    };
    let stored = model.stored();
    assert!(stored.iter().map(|(_, _, bytes)| bytes).sum::<u64>() <= bytes.len() as u64);
    if model.check().is_err() {
        return;
    }
    for spec in &model.layout.tensors {
        let mut row = vec![0.0; spec.width()];
        let last = spec.span.len / spec.width() - 1;
        for at in [0, last] {
            let read = model.read(spec, at, &mut row);
            read.expect("a tensor in its place can be read");
        }
    }
}

/// Models of every architecture, as this project writes them.
fn seeds() -> Vec<Vec<u8>> {
    let sizes = |model_type: &str, others: Value| {
        let mut config = json!({
            "model_type": model_type, "vocab_size": 3, "hidden_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4,
            "intermediate_size": 2, "max_position_embeddings": 64, "tie_word_embeddings": true,
        });
        for (key, value) in others.as_object().expect("an object") {
            config[key] = value.clone();
        }
        config
    };
    let moe = json!({
        "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 2, "sliding_window": 5,
        "num_nextn_predict_layers": 1,
    });
    let scaled = json!({
        "sliding_window": null, "rope_scaling": {"rope_type": "llama3", "factor": 16.0,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
    });
    vec![
        seed(&sizes("exaone_moe", moe), BlockType::F32),
        seed(&sizes("exaone4", scaled), BlockType::Q8_0),
        seed(&sizes("exaone", json!({})), BlockType::F16),
        seed(&sizes("llama", json!({})), BlockType::Q4_0),
    ]
}

fn seed(config: &Value, block_type: BlockType) -> Vec<u8> {
    let dir = tempfile::tempdir().expect("a scratch folder");
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("config.json"), config.to_string()).expect("a scratch file");
    let layout =
        Layout::new(&ModelConfig::from_json(&config.to_string()).expect("a configuration"));
    let weights = vec![0.25; layout.len];
    let sources = layout.tensors.iter().map(|spec| TensorSource {
        name: &spec.name,
        shape: &spec.shape,
        data: TensorData::F32(&weights[spec.span.range()]),
    });
    let sources: Vec<TensorSource> = sources.collect();
    write_safetensors(&path("model.safetensors"), &sources, &Default::default())
        .expect("a valid file");
    let model = Checkpoint::open(dir.path()).expect("the model just written");
    let seed = path("seed.gguf");
    write_gguf_model(&model, &seed, block_type, vec![], &|_| Ok(())).expect("a valid file");
    std::fs::read(seed).expect("the file just written")
}
