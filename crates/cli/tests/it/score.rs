//! `dokja eval`: a small model with weights from a seed, in a run and outside of one.

use crate::speak::checkpoint;
use crate::text::{ok, shown};
use crate::{dokja, text};
use formats::keys::Key;
use formats::ledger::records::{Genesis, Machine};
use formats::ledger::{Event, Ledger, verify_chain};
use formats::run_dir::{RunDir, Stage};
use model::transformer::{Batch, Transformer};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Output;

/// A run that is ours (its key lies beside it), with one checkpoint, trained at 32 tokens on world 5.
fn make_run(dir: &Path) -> (RunDir, PathBuf) {
    let (run, key) = (RunDir::new(&dir.join("run")), dir.join("key"));
    std::fs::create_dir_all(run.root()).unwrap();
    let data = run.data();
    let build = [
        "data",
        "build",
        "--out",
        shown(&data),
        "--builtin",
        "--seed",
        "5",
    ];
    ok(
        &[
            &build[..],
            &["--builtin-bytes", "60000", "--builtin-dialogues", "5"],
        ]
        .concat(),
        b"",
    );
    let mut ledger =
        Ledger::open_or_create(run.root(), Key::load_or_create(&key).unwrap()).unwrap();
    let genesis = Genesis {
        dokja_version: "0.1.0".into(),
        code_commit: None,
        machine: Machine {
            cpu: "test".into(),
            isa: "avx2".into(),
            cores: 2,
            memory_bytes: 8_000_000_000,
        },
        created: String::new(),
    };
    ledger.append(&Event::Genesis(genesis), vec![]).unwrap();
    run.create_stage(Stage::Pretrain).unwrap();
    let recipe = train::Recipe::from_toml("", &["train.seq_len=32".to_owned()]).unwrap();
    std::fs::write(run.recipe(Stage::Pretrain), recipe.to_toml()).unwrap();
    let step = run.checkpoint(Stage::Pretrain, 1);
    std::fs::create_dir_all(&step).unwrap();
    checkpoint(&step, 512);
    std::fs::write(step.join("optimizer.safetensors"), "moments").unwrap();
    std::fs::write(step.join("trainer.json"), "{}").unwrap();
    (run, key)
}

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{}", errors(output));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_run_is_asked_about_its_own_world_and_its_score_is_recorded_once() {
    let dir = tempfile::tempdir().unwrap();
    let (run, key) = make_run(dir.path());
    let args = [
        "eval",
        shown(run.root()),
        "--suite",
        "builtin",
        "--set",
        "per_area=2",
    ];
    let settings = ["--set", "max_tokens=4", "--json"];
    let args = [&args[..], &settings[..]].concat();
    let first = dokja(&args, &[("DOKJA_KEY", shown(&key))]);
    let result = json(&first);
    for known in [
        "score",
        "points",
        "tracks",
        "items",
        "ci95",
        "weights_sha256",
    ] {
        assert!(!result[known].is_null(), "{known}");
    }
    assert_eq!(result["settings"]["world"], "5");
    assert_eq!(result["items"].as_array().unwrap().len(), 8);
    assert_eq!(result["tracks"].as_object().unwrap().len(), 4);
    // A passage is longer than this model's 512 positions: told, and wrong.
    let long = result["items"].as_array().unwrap().iter();
    let mut long = long.filter(|item| item["area"] == "long_document");
    assert!(long.all(|item| item["problem"].as_str().unwrap().starts_with("not asked")));
    let path = Path::new(result["path"].as_str().unwrap());
    assert!(path.starts_with(run.root().join("eval")) && path.is_file());
    let recorded = || {
        let chain = verify_chain(run.root()).unwrap();
        assert!(chain.first_fault().is_none());
        let records = chain.records.into_iter().filter_map(|check| check.record);
        records
            .filter(|record| record.kind == "eval")
            .collect::<Vec<_>>()
    };
    assert_eq!(recorded().len(), 1);
    assert_eq!(recorded()[0].payload["score"], result["score"]);
    // The same model and settings: the same document, and no second record.
    let again = dokja(&args, &[("DOKJA_KEY", shown(&key)), ("DOKJA_THREADS", "1")]);
    assert_eq!(json(&again), result);
    assert_eq!(recorded().len(), 1);
    // Without the key the run stays as it is, and the score is told all the same.
    let other = dokja(
        &[&args[..args.len() - 1], &["--set", "per_area=1", "--json"]].concat(),
        &[("DOKJA_KEY", "/nonexistent/key")],
    );
    assert!(errors(&other).contains("is not recorded"));
    assert!(json(&other)["path"].is_null());
    assert_eq!(recorded().len(), 1);
    let table = ok(
        &[&args[..args.len() - 1], &["--out", shown(dir.path())]].concat(),
        b"",
    );
    assert!(
        table.contains("reliability_safety") && table.contains("guesser"),
        "{table}"
    );
    let same = [
        &args[..args.len() - 1],
        &["--against", shown(path), "--out", shown(dir.path())],
    ];
    assert!(ok(&same.concat(), b"").contains("0 gained, 0 lost, p = 1.000"));
}

#[test]
fn bits_per_byte_are_those_of_the_training_pass() {
    let dir = tempfile::tempdir().unwrap();
    let (config, weights) = checkpoint(dir.path(), 256);
    let files = [
        ("a.txt", "the sea, the sea"),
        ("b.txt", "\u{1112}\u{1161}\u{11ab} see"),
    ];
    for (name, text) in files {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    let path = |name: &str| dir.path().join(name).display().to_string();
    let set = format!("files={},{}", path("a.txt"), path("b.txt"));
    let args = [
        "eval",
        shown(dir.path()),
        "--suite",
        "bits-per-byte",
        "--set",
        &set,
        "--json",
    ];
    let result = json(&dokja(&args, &[]));
    let tokenizer = tokenizer::Tokenizer::load(path("tokenizer.json")).unwrap();
    let device = tensor::Device::cpu(kernels_cpu::Isa::detect(), 1);
    let mut model = Transformer::new(&device, config, &weights, false);
    let mut sum = 0.0;
    for (idx, (name, text)) in files.iter().enumerate() {
        let mut ids = vec![tokenizer.specials().unwrap().eos];
        ids.extend(tokenizer.encode_ordinary(text));
        let batch = Batch::from_sequences(&[ids.clone()]);
        let mut state = model.train_state(&device, ids.len());
        let (logits, ..) = model.logits(&device, &mut state, &batch);
        let rows = logits.host().chunks_exact(model.config.vocab_size);
        let nats: f64 = rows
            .zip(&ids[1..])
            .map(|(row, id)| {
                let sum: f64 = row.iter().map(|z| f64::from(*z).exp()).sum();
                sum.ln() - f64::from(row[*id as usize])
            })
            .sum();
        // The bytes are those of the file, not of its composed form.
        let expected = nats / std::f64::consts::LN_2 / text.len() as f64;
        let got = result["files"][path(name)].as_f64().unwrap();
        assert!(
            (got / expected - 1.0).abs() < 1e-4,
            "{name}: {got} {expected}"
        );
        assert_eq!(result["items"][idx]["is_changed"], idx == 1);
        sum += got;
    }
    assert_eq!(result["score"].as_f64().unwrap(), sum / 2.0);
    assert!(result["points"].is_null() && result["path"].is_null());
}

#[test]
fn a_smaller_precision_drifts_and_the_same_one_does_not() {
    let dir = tempfile::tempdir().unwrap();
    checkpoint(dir.path(), 256);
    let path = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(
        path("a.txt"),
        "The sea is calm. The boats are out. ".repeat(9),
    )
    .unwrap();
    let model = shown(dir.path());
    let drift = |precision: &str| {
        let file = path(&format!("{precision}.gguf"));
        let args = ["convert", model, &file, "--type", precision];
        assert!(dokja(&args, &[]).status.success());
        let sets = [
            format!("reference={model}"),
            format!("files={}", path("a.txt")),
        ];
        let mut args = vec!["eval", &file, "--suite", "drift", "--json"];
        args.extend(["--set", &sets[0], "--set", &sets[1], "--set", "window=64"]);
        json(&dokja(&args, &[]))
    };
    let same = drift("f32");
    assert_eq!(same["kl_divergence"], 0.0);
    assert_eq!(same["top1_agreement"], 100.0);
    let item = &same["items"][0];
    assert_eq!(item["perplexity"], item["reference_perplexity"]);
    let half = drift("bf16");
    assert!(half["kl_divergence"].as_f64().unwrap() > 0.0);
    assert!(half["score"].as_f64().unwrap() < 1e-2);
}

#[test]
fn what_cannot_be_scored_is_told() {
    let dir = tempfile::tempdir().unwrap();
    checkpoint(dir.path(), 256);
    let model = shown(dir.path());
    let told = |args: &[&str], status: i32| {
        let output = dokja(&[&["eval"], args].concat(), &[]);
        assert_eq!(output.status.code(), Some(status), "{}", errors(&output));
        errors(&output)
    };
    let unknown = told(&[model, "--suite", "builtin", "--set", "per_aera=1"], 2);
    assert!(unknown.contains("it has: areas, per_area"), "{unknown}");
    assert!(told(&[model, "--suite", "mmlu"], 2).contains("bits-per-byte"));
    assert!(told(&[model, "--suite", "bits-per-byte"], 2).contains("--set files="));
    let missing = told(
        &[
            model,
            "--suite",
            "bits-per-byte",
            "--set",
            "files=/no/such.txt",
        ],
        1,
    );
    assert!(missing.contains("/no/such.txt"), "{missing}");
    let deaf = told(&["http://127.0.0.1:1/v1", "--suite", "builtin"], 1);
    assert!(deaf.contains("check the address"), "{deaf}");
    let help = text::ok(&["eval", "--help"], b"");
    assert!(help.contains("dokja eval run --suite builtin") && help.contains("max_tokens"));
}
