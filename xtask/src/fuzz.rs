//! `cargo xtask fuzz`: the targets of `fuzz/`, each for a bounded time, with what it needs of memory and time
//! per input. Seeds come from the targets themselves.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Every target, with the seconds that one input of it may take.
///
/// A template may run into its limit of 10 seconds, and is rendered twice.
const TARGETS: [(&str, u32); 7] = [
    ("safetensors", 5),
    ("gguf", 5),
    ("checkpoint", 5),
    ("config_json", 5),
    ("tokenizer_json", 20),
    ("gguf_vocab", 20),
    ("chat_template", 40),
];

/// The version of `cargo-fuzz` that the checks install.
const INSTALL: &str = "cargo install cargo-fuzz --locked --version 0.13.2";

/// What `cargo fuzz` is called with: a stable compiler has no sanitizers, and the code fuzzed no `unsafe`
/// but maps.
const BUILD: [&str; 4] = ["--sanitizer", "none", "--codegen-units", "16"];

/// Memory of the whole process; that of one input has its own budget in the targets.
const RSS_LIMIT_MB: u32 = 3000;

/// Of a run that found something: the lines from the panic on, and the last ones (the input, how to repeat it).
const TOLD_LINES: (usize, usize) = (4, 60);

/// How the targets run.
pub(crate) struct Run {
    /// One target, or all.
    pub(crate) target: Option<String>,
    /// Seconds for each.
    pub(crate) seconds: u32,
    /// The start of the fuzzer's random numbers; None: another at every run.
    pub(crate) seed: Option<u32>,
    /// Whether the fuzzer's own lines are shown, or only where it found something.
    pub(crate) is_shown: bool,
}

/// What the checks do: every target for some seconds, from a fixed seed.
pub(crate) fn check() -> Result<()> {
    run(&Run {
        target: None,
        seconds: 10,
        seed: Some(1),
        is_shown: false,
    })
}

/// `[target] [--seconds N]`.
pub(crate) fn from_args(args: &[String]) -> Result<Run> {
    let mut run = Run {
        target: None,
        seconds: 300,
        seed: None,
        is_shown: true,
    };
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--seconds" => {
                let seconds = args.next().and_then(|n| n.parse().ok());
                run.seconds = seconds
                    .filter(|n| *n > 0)
                    .context("--seconds takes a number of seconds, at least 1")?;
            }
            name if TARGETS.iter().any(|(target, _)| *target == name) => {
                run.target = Some(name.to_string());
            }
            other => {
                let names = TARGETS.map(|(name, _)| name).join(", ");
                bail!("no target {other}; there are {names}");
            }
        }
    }
    Ok(run)
}

pub(crate) fn run(run: &Run) -> Result<()> {
    let root = crate::root()?;
    require_cargo_fuzz()?;
    fuzz(root, &["build"], &[], true)?;
    let is_chosen = |name: &str| run.target.as_ref().is_none_or(|target| target == name);
    let mut chosen = TARGETS.to_vec();
    chosen.retain(|(name, _)| is_chosen(name));
    // Where nobody watches two go at a time: a target has one thread.
    let at_a_time = if run.is_shown { 1 } else { 2 };
    for targets in chosen.chunks(at_a_time) {
        let found: Vec<Result<()>> = std::thread::scope(|scope| {
            let started = targets.iter();
            let started = started.map(|target| scope.spawn(|| run_target(root, run, target)));
            let started: Vec<_> = started.collect();
            let ended = started.into_iter().map(|thread| thread.join());
            ended
                .map(|result| result.unwrap_or_else(|_| bail!("a thread panicked")))
                .collect()
        });
        found.into_iter().collect::<Result<()>>()?;
    }
    Ok(())
}

fn run_target(root: &Path, run: &Run, (name, timeout): &(&str, u32)) -> Result<()> {
    let corpus = PathBuf::from("fuzz/corpus").join(name);
    std::fs::create_dir_all(root.join(&corpus))
        .with_context(|| format!("creating {}", corpus.display()))?;
    let mut args = vec![
        format!("-max_total_time={}", run.seconds),
        format!("-timeout={timeout}"),
        format!("-rss_limit_mb={RSS_LIMIT_MB}"),
    ];
    args.extend(run.seed.map(|seed| format!("-seed={seed}")));
    crate::report(&format!("fuzzing {name} for {} s", run.seconds));
    fuzz(root, &["run", name], &args, run.is_shown).with_context(|| {
        format!("target {name} found an input (fuzz/artifacts/{name}) that breaks what its header claims")
    })
}

fn fuzz(root: &Path, what: &[&str], args: &[String], is_shown: bool) -> Result<()> {
    let mut command = Command::new(env!("CARGO"));
    command.arg("fuzz").args(what).args(BUILD).current_dir(root);
    if !args.is_empty() {
        command.arg("--").args(args);
    }
    let succeeded = match is_shown {
        true => command.status().context("starting cargo fuzz")?.success(),
        false => {
            let output = command.output().context("starting cargo fuzz")?;
            if !output.status.success() {
                let told = String::from_utf8_lossy(&output.stderr);
                let lines: Vec<&str> = told.lines().collect();
                let (of_panic, last) = TOLD_LINES;
                let (before, end) = lines.split_at(lines.len().saturating_sub(last));
                let panic = before.iter().position(|line| line.contains("panicked at"));
                let panic = panic.map_or(&[][..], |at| &before[at..]);
                let told = [&panic[..panic.len().min(of_panic)], end].concat();
                crate::report(&told.join("\n"));
            }
            output.status.success()
        }
    };
    if !succeeded {
        bail!("cargo fuzz {} failed", what.join(" "));
    }
    Ok(())
}

fn require_cargo_fuzz() -> Result<()> {
    let found = Command::new(env!("CARGO"))
        .args(["fuzz", "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .context("starting cargo fuzz")?;
    if !found.success() {
        bail!("cargo fuzz is not installed; install it with `{INSTALL}` (it needs a C++ compiler)");
    }
    Ok(())
}
