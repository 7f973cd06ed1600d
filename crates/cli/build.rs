//! Tells the binary the commit of its source, for the ledger; nothing where there is no repository.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=../../.git/HEAD");
    println!("cargo::rerun-if-changed=../../.git/index");
    let git = |args: &[&str]| {
        let output = Command::new("git").args(args).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?.trim().to_string();
        output.status.success().then_some(text)
    };
    if let Some(commit) = git(&["rev-parse", "HEAD"]) {
        let is_changed = git(&["status", "--porcelain", "--untracked-files=no"])
            .is_some_and(|changes| !changes.is_empty());
        let suffix = if is_changed { "+changes" } else { "" };
        println!("cargo::rustc-env=DOKJA_COMMIT={commit}{suffix}");
    }
}
