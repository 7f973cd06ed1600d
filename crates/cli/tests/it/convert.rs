//! `dokja convert` and `dokja inspect` on what it writes.

use crate::{dokja, fixture};
use serde_json::Value;
use std::path::Path;

fn run(args: &[&str]) -> (bool, String, String) {
    let output = dokja(args, &[]);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.success(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

fn ok(args: &[&str]) -> Value {
    let (success, out, err) = run(args);
    assert!(success, "{args:?}: {err}");
    serde_json::from_str(&out).unwrap_or_else(|e| panic!("{args:?}: {e}: {out}"))
}

#[test]
fn a_model_goes_to_gguf_and_back_bit_by_bit_and_speaks_the_same() {
    let dir = tempfile::tempdir().unwrap();
    fixture(dir.path());
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    let (hf, gguf, back) = (path(""), path("model.gguf"), path("back"));
    let written = ok(&["convert", &hf, &gguf, "--json"]);
    assert_eq!(written["bytes"], std::fs::metadata(&gguf).unwrap().len());
    let written = ok(&["convert", &gguf, &back, "--json"]);
    let tensors = ok(&["inspect", &path("model.safetensors"), "--json"]);
    assert_eq!(
        written["tensors"],
        tensors["tensors"].as_array().unwrap().len()
    );
    let inspected = ok(&["inspect", &gguf, "--json"]);
    assert_eq!(inspected["kind"], "gguf");
    assert_eq!(inspected["problems"], serde_json::json!([]));
    assert!(inspected["stored"]["F32"]["tensors"].as_u64().unwrap() > 0);

    let ids = |model: &str| {
        let args = [
            "generate",
            model,
            "--ids",
            "1,2,3",
            "--max-tokens",
            "8",
            "--json",
        ];
        ok(&args)["ids"].clone()
    };
    assert!(ids(&hf) == ids(&gguf) && ids(&hf) == ids(&back));
    let weights = |dir: &str| std::fs::read(Path::new(dir).join("model.safetensors")).unwrap();
    // The same tensors in the same order; the header says who wrote them.
    assert!(weights(&hf).ends_with(&weights(&back)[weights(&back).len() - 4096..]));
}

#[test]
fn what_cannot_be_converted_is_told() {
    let dir = tempfile::tempdir().unwrap();
    fixture(dir.path());
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    let fails = |args: &[&str], expected: &str| {
        let (success, _, err) = run(args);
        assert!(!success && err.contains(expected), "{args:?}: {err}");
    };
    let hf = path("");
    fails(
        &["convert", &hf, &path("out"), "--type", "q4_k"],
        "is a type of GGUF files",
    );
    fails(
        &["convert", &hf, &path("model.safetensors"), "--type", "f32"],
        "already there",
    );
    let broken = path("broken.gguf");
    std::fs::write(&broken, b"GGUF\x03\0\0\0").unwrap();
    fails(&["convert", &broken, &path("out")], "broken.gguf");
    fails(&["inspect", &broken], "broken.gguf");
    assert!(!Path::new(&path("out")).exists());
}

#[test]
fn inspect_tells_where_layers_cut_and_gguf_is_refused_for_it() {
    let dir = tempfile::tempdir().unwrap();
    fixture(dir.path());
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    let text = std::fs::read_to_string(path("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
    let layers = config["num_hidden_layers"].as_u64().unwrap() as usize;
    let mut limits = vec![0.0; layers];
    limits[layers - 1] = 7.5;
    config["swiglu_limits"] = serde_json::json!(limits);
    std::fs::write(path("config.json"), config.to_string()).unwrap();

    let (_, text, _) = run(&["inspect", &path("config.json")]);
    assert_eq!(text.matches("cut at 7.5").count(), 1, "{text}");
    let (converted, _, err) = run(&["convert", &path(""), &path("model.gguf")]);
    assert!(!converted && err.contains("swiglu_limits"), "{err}");
}

#[test]
fn inspect_tells_what_is_wrong_with_a_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    fixture(dir.path());
    let file = dir.path().join("config.json");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(
        &file,
        text.replace("\"num_experts\":4", "\"num_experts\":5"),
    )
    .unwrap();
    let inspected = ok(&["inspect", dir.path().to_str().unwrap(), "--json"]);
    let problem = inspected["problems"][0].as_str().unwrap();
    assert!(problem.contains("mlp.gate.weight is [4, 16]"), "{problem}");
}
