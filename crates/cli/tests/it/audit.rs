//! `dokja audit`: a small run made of the real parts, whole and then changed byte by byte.

use crate::text::{dokja, fails, json, ok, shown};
use formats::hash::{sha256_file, sha256_hex};
use formats::keys::Key;
use formats::ledger::records::{
    Batches, Checkpoint, Data, Final, Genesis, Init, Machine, Recipe, Tokenizer,
};
use formats::ledger::{Event, Ledger};
use formats::run_dir::{RunDir, Stage};
use formats::safetensors::{TensorData, TensorSource, write_safetensors};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const CONFIG: &str = r#"{"model_type": "exaone_moe", "vocab_size": 300, "hidden_size": 16, "intermediate_size": 24,
    "num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
    "sliding_window": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8,
    "num_nextn_predict_layers": 1}"#;
const SEED: u64 = 11;
const STAGE: Stage = Stage::Pretrain;

/// Data, tokenizer and random start by the program's own parts; "training" adds one to every weight.
fn make_run(dir: &Path) -> RunDir {
    let run = RunDir::new(dir);
    fs::create_dir_all(dir).unwrap();
    let key = Key::from_secret([3; 32]);
    let mut ledger = Ledger::open_or_create(dir, key).unwrap();
    let machine = Machine {
        cpu: "test".into(),
        isa: "avx2".into(),
        cores: 2,
        memory_bytes: 8_000_000_000,
    };
    let genesis = Genesis {
        dokja_version: "0.1.0".into(),
        code_commit: None,
        machine,
        created: String::new(),
    };
    ledger.append(&Event::Genesis(genesis), vec![]).unwrap();

    let data = run.data();
    let build = [
        "data",
        "build",
        "--out",
        shown(&data),
        "--builtin",
        "--builtin-bytes",
        "60000",
    ];
    ok(&[&build[..], &["--builtin-dialogues", "5"]].concat(), b"");
    let manifest = data.join("manifest.json");
    let manifest_sha256 = sha256_file(&manifest).unwrap();
    let event = Event::Data(Data {
        manifest_sha256: manifest_sha256.clone(),
        location: "data".into(),
        train_documents: 1,
        heldout_documents: 1,
    });
    let artefact = ledger.artefact(&manifest).unwrap();
    ledger.append(&event, vec![artefact]).unwrap();

    let tokenizer = run.tokenizer();
    let train = [
        "tokenizer",
        "train",
        "--data",
        shown(&data),
        "--vocab-size",
        "300",
    ];
    ok(&[&train[..], &["--out", shown(&tokenizer)]].concat(), b"");
    let event = Event::Tokenizer(Tokenizer {
        sha256: sha256_file(&tokenizer).unwrap(),
        vocab_size: 300,
        trained_on_manifest_sha256: Some(manifest_sha256),
    });
    let artefact = ledger.artefact(&tokenizer).unwrap();
    ledger.append(&event, vec![artefact]).unwrap();

    let config = model::ModelConfig::from_json(CONFIG).unwrap();
    let layout = model::Layout::new(&config);
    let mut weights = model::init::initial_weights(&config, &layout, SEED);
    let mut sha256 = train::checkpoint::weights_sha256(&layout, &weights).unwrap();
    let event = Event::Init(Init {
        seed: SEED,
        generator: model::init::GENERATOR.into(),
        weights_sha256: sha256.clone(),
        config_sha256: sha256_hex(CONFIG.as_bytes()),
    });
    ledger.append(&event, vec![]).unwrap();

    run.create_stage(STAGE).unwrap();
    fs::write(run.recipe(STAGE), "steps = 1\n").unwrap();
    let event = Event::Recipe(Recipe {
        stage: STAGE,
        sha256: sha256_file(&run.recipe(STAGE)).unwrap(),
    });
    let artefact = ledger.artefact(&run.recipe(STAGE)).unwrap();
    ledger.append(&event, vec![artefact]).unwrap();
    let event = Event::Batches(Batches {
        stage: STAGE,
        commitment_sha256: sha256_hex(b"order"),
        seed: SEED,
        order: "in order".into(),
    });
    ledger.append(&event, vec![]).unwrap();

    for step in 1..=2 {
        weights.iter_mut().for_each(|w| *w += 1.0);
        let checkpoint = run.checkpoint(STAGE, step);
        fs::create_dir_all(&checkpoint).unwrap();
        fs::write(checkpoint.join("config.json"), CONFIG).unwrap();
        fs::copy(&tokenizer, checkpoint.join("tokenizer.json")).unwrap();
        fs::write(checkpoint.join("optimizer.safetensors"), "moments").unwrap();
        fs::write(checkpoint.join("trainer.json"), "{}").unwrap();
        let tensors: Vec<TensorSource> = layout
            .tensors
            .iter()
            .map(|t| TensorSource {
                name: &t.name,
                shape: &t.shape,
                data: TensorData::F32(&weights[t.span.range()]),
            })
            .collect();
        let path = checkpoint.join("model.safetensors");
        let written = write_safetensors(&path, &tensors, &BTreeMap::new()).unwrap();
        // The digest computed in memory is that of the file, whatever the weights.
        let computed = train::checkpoint::weights_sha256(&layout, &weights).unwrap();
        assert_eq!(written.sha256, computed);
        let event = Event::Checkpoint(Checkpoint {
            stage: STAGE,
            step,
            tokens: step * 64,
            weights_sha256: written.sha256.clone(),
            optimizer_sha256: sha256_hex(b"moments"),
            parent_weights_sha256: std::mem::replace(&mut sha256, written.sha256),
        });
        let artefacts = ledger.artefacts_in(&checkpoint).unwrap();
        ledger.append(&event, artefacts).unwrap();
    }
    let event = Event::Final(Final {
        stage: STAGE,
        step: 2,
        weights_sha256: sha256,
    });
    ledger.append(&event, vec![]).unwrap();
    run
}

/// Every file below a directory.
fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files(&path, found),
            false => found.push(path),
        }
    }
}

#[test]
fn a_run_is_verified_from_its_weights_to_its_seed_and_any_changed_file_is_named() {
    let scratch = tempfile::tempdir().unwrap();
    let run = make_run(&scratch.path().join("run"));
    let dir = shown(run.root());
    let report = json(&["audit", "verify", dir]);
    assert_eq!(report["verdict"], "valid", "{report:#}");
    assert!(report["findings"].as_array().unwrap().len() > 8);
    let told = ok(&["audit", "verify", dir, "--all"], b"");
    assert!(told.starts_with("valid\n") && told.contains("with seed 11 gives the recorded"));

    let mut paths = Vec::new();
    files(run.root(), &mut paths);
    assert!(paths.len() >= 15);
    for path in paths {
        let bytes = fs::read(&path).unwrap();
        let name = path.strip_prefix(run.root()).unwrap();
        let mut changed = bytes.clone();
        changed[bytes.len() / 2] ^= 1;
        fs::write(&path, changed).unwrap();
        let output = dokja(&["audit", "verify", dir, "--json"], b"");
        assert_eq!(output.status.code(), Some(1), "{}", name.display());
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["verdict"], "broken", "{}", name.display());
        let findings = report["findings"].as_array().unwrap();
        let is_named = findings.iter().any(|finding| {
            finding["result"] == "failed"
                && finding["evidence"]
                    .as_array()
                    .unwrap()
                    .contains(&shown(name).into())
        });
        assert!(is_named, "{}: {findings:#?}", name.display());
        fs::write(&path, bytes).unwrap();
    }
    ok(&["audit", "verify", dir], b"");
}

#[test]
fn a_certificate_is_written_for_people_and_machines() {
    let scratch = tempfile::tempdir().unwrap();
    let run = make_run(&scratch.path().join("run"));
    let (dir, out) = (shown(run.root()), scratch.path().join("certificate"));
    let written = json(&["audit", "report", dir, "--out", shown(&out)]);
    assert_eq!(written["verdict"], "valid");
    let certificate = fs::read_to_string(out.join("certificate.json")).unwrap();
    let certificate: serde_json::Value = serde_json::from_str(&certificate).unwrap();
    assert_eq!(certificate["claims"].as_array().unwrap().len(), 8);
    let page = fs::read_to_string(out.join("certificate.html")).unwrap();
    let weights = certificate["weights_sha256"].as_str().unwrap();
    assert!(page.contains("Trained from a random start") && page.contains(weights));

    // The head that it holds is missed when the ledger is cut; a broken run has a certificate too.
    let head = certificate["ledger_head"].as_str().unwrap();
    let verify = ["audit", "verify", dir, "--head", head];
    ok(&verify, b"");
    let ledger = fs::read_to_string(run.ledger()).unwrap();
    let last = ledger.trim_end().rfind('\n').unwrap() + 1;
    fs::write(run.ledger(), &ledger[..last]).unwrap();
    assert!(fails(&verify, b"").contains("error: the run is not what its ledger says"));
    fs::write(run.tokenizer(), "{}").unwrap();
    let written = json(&["audit", "report", dir, "--out", shown(&out)]);
    assert_eq!(written["verdict"], "broken");
}

#[test]
fn what_is_no_run_or_no_digest_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let told = fails(&["audit", "verify", "/no/such/run"], b"");
    assert!(told.contains("/no/such/run is no directory"), "{told}");
    let output = dokja(&["audit", "verify", shown(dir.path())], b"");
    assert_eq!(output.status.code(), Some(1));
    assert!(
        String::from_utf8(output.stdout)
            .unwrap()
            .contains("ledger.jsonl")
    );
    let wrong = ["audit", "verify", shown(dir.path()), "--key", "12ab"];
    assert_eq!(dokja(&wrong, b"").status.code(), Some(2));
}
