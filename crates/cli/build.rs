//! Tells the binary the commit of its source, for the ledger; nothing where there is no repository.
//!
//! Runs again when anything changes that the binary is made of, or when the repository's head moves: a
//! commit must not be claimed for sources that are not its own.

use std::path::Path;
use std::process::Command;

/// What the binary is made of, from the root of the repository.
const SOURCES: [&str; 4] = ["Cargo.toml", "Cargo.lock", "crates", "recipes"];

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let git = |args: &[&str]| {
        let output = Command::new("git").current_dir(&root).args(args).output();
        let output = output.ok().filter(|output| output.status.success())?;
        Some(String::from_utf8(output.stdout).ok()?.trim().to_string())
    };
    for path in SOURCES {
        println!("cargo::rerun-if-changed={}", root.join(path).display());
    }
    // The log of the head has a line for every commit, the head itself may name a branch for ever.
    for name in ["HEAD", "logs/HEAD"] {
        if let Some(path) = git(&["rev-parse", "--git-path", name]) {
            let path = root.join(path);
            if path.exists() {
                println!("cargo::rerun-if-changed={}", path.display());
            }
        }
    }
    if let Some(commit) = git(&["rev-parse", "HEAD"]) {
        let status = ["status", "--porcelain", "--untracked-files=no", "--"];
        let is_changed = git(&[&status[..], &SOURCES[..]].concat());
        let suffix = match is_changed {
            Some(changes) if changes.is_empty() => "",
            _ => "+changes",
        };
        println!("cargo::rustc-env=DOKJA_COMMIT={commit}{suffix}");
    }
}
