//! A run that is killed again and again ends with the bytes of one that was not, and its record holds.

use crate::text::MODEL;
use formats::run_dir::{RunDir, Stage};
use numerics::Rng;
use serde_json::json;
use std::path::Path;
use std::process::{Command, Stdio};

const TRAIN: &str = "[train]\nsteps = 60\nseq_len = 128\nrows_per_step = 4\nrows_per_micro_step = 2\n\
    [schedule]\nwarmup_steps = 2\n[checkpoint]\nevery = 7\n[eval]\nevery = 10\ntokens = 256\n";

fn dokja(dir: &Path, threads: usize) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dokja"));
    command
        .current_dir(dir)
        .env("DOKJA_KEY", dir.join("signing.key"))
        .env("DOKJA_THREADS", threads.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

fn succeed(dir: &Path, threads: usize, args: &[&str]) {
    assert!(
        dokja(dir, threads).args(args).status().unwrap().success(),
        "{args:?}"
    );
}

/// Trains a stage of `run`, killing it after some more steps each time, on other threads each time.
fn train_with_kills(dir: &Path, run: &RunDir, stage: Stage, recipe: &str, rng: &mut Rng) {
    let name = run.root().to_str().unwrap();
    let args = [stage.name(), recipe, "--run-dir", name, "--resume"];
    let steps_done = || formats::metrics::read(&run.metrics(stage)).map_or(0, |steps| steps.len());
    for threads in [1, 2, 1] {
        let mut child = dokja(dir, threads).args(args).spawn().unwrap();
        let until = steps_done() + 1 + rng.below(12);
        while steps_done() < until && child.try_wait().unwrap().is_none() {
            std::thread::yield_now();
        }
        child.kill().unwrap(); // SIGKILL
        child.wait().unwrap();
    }
    succeed(dir, 2, &args);
}

#[test]
fn a_run_killed_at_any_moment_ends_with_the_same_bytes_and_a_record_that_holds() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let write = |name: &str, text: String| std::fs::write(dir.join(name), text).unwrap();
    let data = "[data]\ndir = \"data\"\ntokenizer = \"tokenizer.json\"\n";
    write("pretrain.toml", format!("{MODEL}{data}{TRAIN}"));
    write("sft.toml", format!("{data}{TRAIN}"));
    // What the model answers, or prefers, is drawn or judged again after every kill.
    let rl = "[rl]\nprompts_per_step = 2\ngroup_size = 2\nmax_tokens = 8\n";
    let wider = TRAIN.replace("seq_len = 128", "seq_len = 256");
    write("rl.toml", format!("{data}{rl}{wider}"));
    write(
        "prefer.toml",
        format!("{data}[prefer]\npairs_per_step = 2\n{wider}"),
    );
    let pair = |(question, chosen, rejected): (&str, &str, &str)| {
        let turn = |role, content| json!({"role": role, "content": content});
        let messages = [turn("user", question), turn("assistant", chosen)];
        json!({"messages": messages, "rejected": rejected}).to_string() + "\n"
    };
    let pairs = [
        ("What is 2 + 3?", "5", "6"),
        ("등대지기는 누구인가요?", "미나예요.", "몰라요."),
        ("Is the bakery open?", "Yes, until six.", "No."),
    ];
    write("pairs.jsonl", pairs.map(pair).concat());
    let build = "data build --out data --builtin --builtin-bytes 60000 --builtin-dialogues 300 --corpus pairs.jsonl";
    let learn = "tokenizer train --data data --vocab-size 400 --out tokenizer.json";
    for line in [build, learn] {
        succeed(dir, 1, &line.split(' ').collect::<Vec<_>>());
    }
    let weights = |run: &RunDir, stage: Stage| {
        std::fs::read(run.checkpoint(stage, 60).join("model.safetensors")).unwrap()
    };
    let (whole, killed) = (
        RunDir::new(&dir.join("whole")),
        RunDir::new(&dir.join("killed")),
    );
    let mut rng = Rng::new(1, "kills");
    for stage in Stage::ALL {
        let recipe = format!("{stage}.toml");
        succeed(dir, 1, &[stage.name(), &recipe, "--run-dir", "whole"]);
        train_with_kills(dir, &killed, stage, &recipe, &mut rng);
        assert!(weights(&whole, stage) == weights(&killed, stage), "{stage}");
    }
    for run in ["whole", "killed"] {
        succeed(dir, 1, &["audit", "verify", run]);
    }
    succeed(dir, 2, &["audit", "replay", "killed", "--segments", "99"]);
    // One changed byte in the weights between the start and the end, and the record no longer holds.
    let file = killed
        .checkpoint(Stage::Pretrain, 28)
        .join("model.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let status = dokja(dir, 1).args(["audit", "verify", "killed"]).status();
    assert_eq!(status.unwrap().code(), Some(1));
}
