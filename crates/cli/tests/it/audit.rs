//! `dokja audit`: a small run made by the program itself, whole and then changed byte by byte.

use crate::text::{MODEL, dokja, fails, json, ok, shown};
use formats::run_dir::{RunDir, Stage};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const TRAIN: &str = "[train]\nsteps = 4\nseq_len = 64\nrows_per_step = 2\nrows_per_micro_step = 2\n\
    [schedule]\nwarmup_steps = 2\n[checkpoint]\nevery = 2\n[eval]\nevery = 4\ntokens = 128\n";

/// A run with its data and its tokenizer inside, pretrained for four steps.
fn make_run(dir: &Path) -> RunDir {
    let run = RunDir::new(&dir.join("run"));
    let (data, tokenizer) = (run.data(), run.tokenizer());
    let (data, tokenizer) = (shown(&data), shown(&tokenizer));
    let build = [
        "data",
        "build",
        "--out",
        data,
        "--builtin",
        "--builtin-bytes",
        "60000",
    ];
    ok(&[&build[..], &["--builtin-dialogues", "5"]].concat(), b"");
    let learn = ["tokenizer", "train", "--data", data, "--vocab-size", "300"];
    ok(&[&learn[..], &["--out", tokenizer]].concat(), b"");
    fs::write(dir.join("recipe.toml"), format!("{MODEL}{TRAIN}")).unwrap();
    let trained = Command::new(env!("CARGO_BIN_EXE_dokja"))
        .current_dir(dir)
        .env("DOKJA_KEY", dir.join("signing.key"))
        .args(["pretrain", "recipe.toml", "--run-dir", "run"])
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&trained.stderr);
    assert!(trained.status.success(), "{told}");
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
    let run = make_run(scratch.path());
    let dir = shown(run.root());
    let report = json(&["audit", "verify", dir]);
    assert_eq!(report["verdict"], "valid", "{report:#}");
    assert!(report["findings"].as_array().unwrap().len() > 8);
    let told = ok(&["audit", "verify", dir, "--all"], b"");
    assert!(told.starts_with("valid\n") && told.contains("gives the recorded"));

    let mut paths = Vec::new();
    files(run.root(), &mut paths);
    // The ledger, data, token files, tokenizer, recipe, metrics, and two checkpoints.
    assert!(paths.len() >= 20, "{paths:?}");
    assert!(paths.contains(&run.metrics(Stage::Pretrain)));
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

    // Nothing can be added to what is finished.
    let metrics = run.metrics(Stage::Pretrain);
    let bytes = fs::read(&metrics).unwrap();
    fs::write(&metrics, [&bytes[..], b"{}\n"].concat()).unwrap();
    assert_eq!(dokja(&["audit", "verify", dir], b"").status.code(), Some(1));
}

#[test]
fn a_certificate_is_written_for_people_and_machines() {
    let scratch = tempfile::tempdir().unwrap();
    let run = make_run(scratch.path());
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

#[test]
fn segments_are_trained_again_and_a_start_that_was_changed_is_found() {
    let scratch = tempfile::tempdir().unwrap();
    let run = make_run(scratch.path());
    let dir = shown(run.root());
    let replay = ["audit", "replay", dir, "--segments", "9"];
    let told = json(&replay);
    assert_eq!(
        (&told["verdict"], &told["recorded_segments"]),
        (&"valid".into(), &2.into())
    );
    let steps: Vec<_> = (told["segments"].as_array().unwrap().iter())
        .map(|segment| {
            assert_eq!(segment["result"], "same");
            (
                segment["first_step"].as_u64().unwrap(),
                segment["last_step"].as_u64().unwrap(),
            )
        })
        .collect();
    assert_eq!(steps, [(1, 2), (3, 4)]);
    // One of them, drawn; the same one for the same seed.
    let one = |seed: &str| json(&["audit", "replay", dir, "--seed", seed])["segments"].clone();
    assert_eq!(one("1").as_array().unwrap().len(), 1);
    assert_eq!(one("1"), one("1"));

    let start = run.checkpoint(Stage::Pretrain, 2);
    let path = start.join("optimizer.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 4;
    bytes[last] ^= 1;
    fs::write(&path, bytes).unwrap();
    let output = dokja(&[&replay[..], &["--json"]].concat(), b"");
    assert_eq!(output.status.code(), Some(1));
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["verdict"], "broken");
    assert_eq!(told["segments"][0]["result"], "same");
    let difference = told["segments"][1]["difference"].as_str().unwrap();
    assert!(
        difference.starts_with("the state of the optimizer it starts from"),
        "{difference}"
    );

    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("the run was begun by dokja"), "{told}");

    // Without what it starts from, a segment is left out, and that is said.
    fs::remove_dir_all(&start).unwrap();
    let output = dokja(&replay, b"");
    assert!(output.status.success());
    let notes = String::from_utf8_lossy(&output.stderr);
    assert!(
        notes.contains("1 of 2 segments cannot be repeated"),
        "{notes}"
    );

    fs::write(run.ledger(), b"{}\n").unwrap();
    assert!(fails(&replay, b"").contains("`dokja audit verify` shows all of it"));
    assert!(fails(&["audit", "replay", shown(scratch.path())], b"").contains("holds no run"));
}

#[test]
fn a_model_is_found_to_be_related_to_what_was_made_from_it_in_another_layout() {
    let scratch = tempfile::tempdir().unwrap();
    let run = make_run(scratch.path());
    let gguf = scratch.path().join("model.gguf");
    let (dir, file) = (shown(run.root()), shown(&gguf));
    ok(
        &["convert", dir, file, "--to", "gguf", "--type", "bf16"],
        b"",
    );
    let comparison = json(&["audit", "compare", dir, file, "--reference", dir]);
    assert_eq!(comparison["verdict"], "related", "{comparison:#}");
    let findings = comparison["findings"].as_array().unwrap();
    let mlp = findings.iter().find(|f| f["component"] == "mlp").unwrap();
    assert_eq!(mlp["result"], "related");
    let in_place = &mlp["in_place"];
    assert_eq!(in_place["matches"], in_place["units"]);
    assert!(in_place["p_value"].as_f64().unwrap() < 0.001);
    assert_eq!(comparison["references"].as_array().unwrap().len(), 2);
    assert_eq!(comparison["tokenizers"]["jaccard"], 1.0);
    assert!(!comparison["cannot_conclude"].as_array().unwrap().is_empty());

    let told = ok(&["audit", "compare", dir, file], b"");
    assert!(
        told.starts_with("related: ") && told.contains("\n  mlp "),
        "{told}"
    );
    let wrong = dokja(&["audit", "compare", dir, file, "--alpha", "2"], b"");
    assert_eq!(wrong.status.code(), Some(2));
    let told = fails(&["audit", "compare", dir, "/no/such/model"], b"");
    assert!(told.contains("/no/such/model"), "{told}");
}

#[test]
fn a_model_that_learned_from_its_own_answers_is_walked_back_and_draws_the_same_ones_again() {
    let scratch = tempfile::tempdir().unwrap();
    let run = make_run(scratch.path());
    let (dir, recipe) = (shown(run.root()), scratch.path().join("rl.toml"));
    let text = "[rl]\nprompts_per_step = 2\ngroup_size = 3\nmax_tokens = 6\n[train]\nsteps = 4\nseq_len = 512\n\
        rows_per_step = 1\nrows_per_micro_step = 1\n[checkpoint]\nevery = 2\n[eval]\nevery = 4\ntokens = 128\n";
    fs::write(&recipe, text).unwrap();
    let rl = |more: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_dokja"))
            .env("DOKJA_KEY", scratch.path().join("signing.key"))
            .args(["rl", shown(&recipe), "--run-dir", dir, "--json"])
            .args(more)
            .output()
            .unwrap()
    };
    let refused = rl(&["--set", "rl.sources=[\"nowhere\"]"]);
    let told = String::from_utf8_lossy(&refused.stderr);
    assert!(
        told.contains("no dialogue to ask about from the sources nowhere"),
        "{told}"
    );
    let refused = rl(&["--set", "rl.group_size=0"]);
    let told = String::from_utf8_lossy(&refused.stderr);
    assert!(
        told.contains("rl.group_size is 0; it must be from"),
        "{told}"
    );
    let planned = rl(&["--dry-run"]);
    let planned: serde_json::Value = serde_json::from_slice(&planned.stdout).unwrap();
    // Four steps of two questions, three answers each, six tokens at most.
    assert_eq!(planned["tokens"], 144);
    assert_eq!(planned["recipe"]["loss"]["mtp_weight"], 0.0);
    assert!(!run.stage(Stage::Rl).exists(), "nothing is begun");
    let trained = rl(&[]);
    let told = String::from_utf8_lossy(&trained.stderr);
    assert!(trained.status.success(), "{told}");
    let trained: serde_json::Value = serde_json::from_slice(&trained.stdout).unwrap();
    assert_eq!(trained["steps"], 4);

    // The model of the run is the one that learned last.
    let report = json(&["audit", "verify", dir]);
    assert_eq!(report["verdict"], "valid", "{report:#}");
    assert_eq!(report["weights_sha256"], trained["weights_sha256"]);
    let replay = ["audit", "replay", dir, "--segments", "9"];
    let told = json(&replay);
    assert_eq!(told["recorded_segments"], 4);
    assert_eq!(told["verdict"], "valid", "{told:#}");
    let segments = told["segments"].as_array().unwrap();
    let of_rl = segments.iter().filter(|segment| segment["stage"] == "rl");
    assert_eq!(of_rl.count(), 2);

    // A reward that was not had is found, though no weight was changed.
    let metrics = run.metrics(Stage::Rl);
    let lines = fs::read_to_string(&metrics).unwrap();
    assert!(lines.lines().all(|line| line.contains("\"reward\":")));
    let better = lines.replace("\"reward\":0.0", "\"reward\":1.0");
    assert_ne!(lines, better, "a random model is right nowhere");
    fs::write(&metrics, better).unwrap();
    let output = dokja(&[&replay[..], &["--json"]].concat(), b"");
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["verdict"], "broken");
    let named = |segment: &serde_json::Value| segment["difference"].to_string().contains("reward");
    assert!(
        told["segments"].as_array().unwrap().iter().any(named),
        "{told:#}"
    );
}
