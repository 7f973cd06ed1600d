//! The binary as its users run it.

#![expect(clippy::unwrap_used, reason = "a failed test is told by its panic")]

mod audit;
mod convert;
mod kill;
mod machine;
mod score;
mod speak;
mod text;

use formats::safetensors::{SafeTensors, TensorData, TensorSource, write_safetensors};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};

fn dokja(args: &[&str], env: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dokja"));
    command
        .args(args)
        .envs(env.iter().copied())
        .output()
        .expect("the binary starts")
}

/// A small checkpoint with weights from a seed, and a file of ids.
fn fixture(dir: &Path) {
    let config = model::ModelConfig::from_json(
        r#"{"model_type": "exaone_moe", "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24,
        "num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
        "sliding_window": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8,
        "num_nextn_predict_layers": 1}"#,
    )
    .unwrap();
    let layout = model::Layout::new(&config);
    let weights = model::init::initial_weights(&config, &layout, 7);
    let tensors: Vec<TensorSource> = layout
        .tensors
        .iter()
        .map(|t| TensorSource {
            name: &t.name,
            shape: &t.shape,
            data: TensorData::F32(&weights[t.span.range()]),
        })
        .collect();
    std::fs::write(dir.join("config.json"), config.to_json().to_string()).unwrap();
    write_safetensors(&dir.join("model.safetensors"), &tensors, &BTreeMap::new()).unwrap();
    let ids: Vec<i64> = (0..24).map(|i| i * 7 % 40).collect();
    let ids = [TensorSource {
        name: "ids",
        shape: &[2, 12],
        data: TensorData::I64(&ids),
    }];
    write_safetensors(&dir.join("ids.safetensors"), &ids, &BTreeMap::new()).unwrap();
}

#[test]
fn logits_writes_what_it_promises_with_the_same_bits_on_any_number_of_threads() {
    let dir = tempfile::tempdir().unwrap();
    fixture(dir.path());
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    for threads in ["1", "2"] {
        let out = path(&format!("out-{threads}.safetensors"));
        let args = [
            "logits",
            &path(""),
            "--ids",
            &path("ids.safetensors"),
            "--out",
            &out,
            "--grad",
            "--json",
        ];
        let output = dokja(&args, &[("DOKJA_THREADS", threads)]);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        // Weights of standard deviation 0.02 know nothing: the loss is that of a guess.
        assert!((result["loss"].as_f64().unwrap() - 40f64.ln()).abs() < 0.05);
    }
    let file = SafeTensors::open(Path::new(&path("out-1.safetensors"))).unwrap();
    assert_eq!(file.get("logits").unwrap().shape, [2, 12, 40]);
    assert_eq!(file.get("mtp_logits").unwrap().shape, [2, 11, 40]);
    assert_eq!(file.get("router.3").unwrap().shape, [2, 12, 2]);
    assert_eq!(file.get("grad.lm_head.weight").unwrap().shape, [40, 16]);
    assert!(file.get("loss").unwrap().shape.is_empty() && file.contains("mtp_loss"));
    let bytes = |t: &str| std::fs::read(path(&format!("out-{t}.safetensors"))).unwrap();
    assert!(bytes("1") == bytes("2"));
}

#[test]
fn inspect_counts_the_parameters() {
    let dir = tempfile::tempdir().unwrap();
    fixture(dir.path());
    let output = dokja(&["inspect", dir.path().to_str().unwrap(), "--json"], &[]);
    let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(result["kind"], "checkpoint");
    let config = model::ModelConfig::from_json(&result["config"].to_string()).unwrap();
    assert_eq!(result["parameters"], model::Layout::new(&config).len);
}

#[test]
fn wrong_use_and_bad_input_are_told_in_one_sentence() {
    let dir = tempfile::tempdir().unwrap();
    fixture(dir.path());
    let model = dir.path().to_str().unwrap();
    let missing = dokja(&["inspect", "/nonexistent"], &[]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("/nonexistent"));
    assert_eq!(dokja(&["logits"], &[]).status.code(), Some(2));
    let ids = [TensorSource {
        name: "ids",
        shape: &[1, 2],
        data: TensorData::I64(&[1, 40]),
    }];
    let path = dir.path().join("bad.safetensors");
    write_safetensors(&path, &ids, &BTreeMap::new()).unwrap();
    let bad = path.to_str().unwrap();
    let output = dokja(&["logits", model, "--ids", bad, "--out", "/dev/null"], &[]);
    let text = String::from_utf8_lossy(&output.stderr).to_string();
    assert!(
        text.contains("ids[0, 1] is 40, outside the vocabulary of 40"),
        "{text}"
    );
    let isa = dokja(
        &["logits", model, "--ids", bad, "--out", "x"],
        &[("DOKJA_ISA", "z80")],
    );
    assert_eq!(isa.status.code(), Some(1));
}
