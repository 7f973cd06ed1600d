//! The project's chores: `cargo xtask test` passes the tests, `cargo xtask ci` runs every check.

mod figures;
mod fuzz;
mod instructions;
mod neon;
mod tidy;

use anyhow::{Context, Result, bail};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

const HELP: &str = "usage: cargo xtask <command>

  test   every test of the workspace (what the README names)
  tidy   layout rules: file sizes, crate arrows, allowed documents, unsafe where allowed, the README's figures
  figures
         the README's figures, from the newest results under bench/results
  neon   the tests of kernels and models on an emulated aarch64; says what it needs
  instructions
         [--write]: what products and steps execute, against bench/instructions.toml; needs valgrind
  fuzz   [target] [--seconds N]: the fuzz targets, or one of them, for 300 seconds each
  ci     formatting, tidy, clippy, tests, NEON, instruction counts, fuzzing for a minute; each stage timed";

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some("test") => test(),
        Some("tidy") => tidy::run(),
        Some("figures") => figures::write(root()?),
        Some("neon") => neon::run(),
        Some("instructions") => instructions::run(&args[1..]),
        Some("fuzz") => fuzz::run(&fuzz::from_args(&args[1..])?),
        Some("ci") => ci(),
        _ => bail!("{HELP}"),
    }
}

/// The folder of the workspace.
fn root() -> Result<&'static Path> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    root.context("xtask has a parent")
}

fn ci() -> Result<()> {
    type Stage = (&'static str, fn() -> Result<()>);
    let stages: [Stage; 7] = [
        ("format", || {
            cargo(&["fmt", "--all", "--check"])?;
            cargo(&["fmt", "--manifest-path", "fuzz/Cargo.toml", "--check"])
        }),
        ("tidy", tidy::run),
        ("clippy", || {
            cargo(&[
                "clippy",
                "--workspace",
                "--all-targets",
                "--quiet",
                "--",
                "-D",
                "warnings",
            ])
        }),
        ("test", test),
        ("neon", neon::run),
        ("instructions", instructions::check),
        ("fuzz", fuzz::check),
    ];
    for (name, stage) in stages {
        let start = Instant::now();
        stage().with_context(|| format!("stage `{name}` failed"))?;
        report(&format!("{name}: {:.0} s", start.elapsed().as_secs_f64()));
    }
    Ok(())
}

fn test() -> Result<()> {
    cargo(&["test", "--workspace"])
}

fn cargo(args: &[&str]) -> Result<()> {
    succeed(Command::new(env!("CARGO")).args(args))
}

/// Runs cargo.
fn succeed(command: &mut Command) -> Result<()> {
    let status = command.status().context("starting cargo")?;
    if !status.success() {
        let args: Vec<_> = command
            .get_args()
            .map(|arg| arg.to_string_lossy())
            .collect();
        bail!("cargo {} failed", args.join(" "));
    }
    Ok(())
}

/// What cargo tells of the workspace.
fn metadata() -> Result<serde_json::Value> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps"])
        .current_dir(root()?)
        .output()
        .context("running cargo metadata")?;
    Ok(serde_json::from_slice(&output.stdout)?)
}

#[expect(clippy::print_stderr, reason = "progress of a chore")]
fn report(line: &str) {
    eprintln!("xtask: {line}");
}
