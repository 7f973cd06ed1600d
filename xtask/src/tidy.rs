//! Layout rules that a compiler does not know. Each is an invariant of ARCHITECTURE.md.

use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

/// Longest file of ours without a written reason.
const MAX_LINES: usize = 1000;

/// Crate directories that may contain `unsafe`.
const UNSAFE_ALLOWED: [&str; 3] = [
    "crates/kernels-cpu/",
    "crates/formats/src/mmap.rs",
    "fuzz/src/budget.rs",
];

/// Arrows that must not exist: training cannot see test sets, engines do not know text.
const FORBIDDEN: [(&str, &str); 8] = [
    ("dokja-train", "dokja-infer"),
    ("dokja-train", "dokja-eval"),
    ("dokja-posttrain", "dokja-eval"),
    ("dokja-data", "dokja-eval"),
    ("dokja-infer", "dokja-tokenizer"),
    ("dokja-model", "dokja-data"),
    ("dokja-model", "dokja-tokenizer"),
    ("dokja-formats", "dokja-tensor"),
];

/// Documents at the root; everything else in Markdown belongs under docs/.
const ROOT_DOCUMENTS: [&str; 5] = [
    "README.md",
    "ARCHITECTURE.md",
    "STYLE.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
];

/// Words that make a document a report of a state.
const STATUS_WORDS: [&str; 5] = ["status", "summary", "progress", "complete", "plan"];

pub(crate) fn run() -> Result<()> {
    let root = crate::root()?;
    let mut problems = Vec::new();
    let files = tracked(root)?;
    check_ops(&files, &mut problems);
    for file in files {
        let Ok(text) = std::fs::read_to_string(root.join(&file)) else {
            continue;
        };
        check_file(&file, &text, &mut problems);
    }
    check_arrows(&mut problems)?;
    crate::figures::check(root, &mut problems)?;
    if !problems.is_empty() {
        bail!("{} problems:\n  {}", problems.len(), problems.join("\n  "));
    }
    Ok(())
}

fn tracked(root: &Path) -> Result<Vec<String>> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()
        .context("running git ls-files")?;
    Ok(String::from_utf8(output.stdout)?
        .lines()
        .map(String::from)
        .collect())
}

fn check_file(file: &str, text: &str, problems: &mut Vec<String>) {
    let lines = text.lines().count();
    let own = !file.ends_with("Cargo.lock") && !file.ends_with(".json");
    if own && lines > MAX_LINES {
        problems.push(format!("{file}: {lines} lines, at most {MAX_LINES}"));
    }
    if file.ends_with(".md") {
        let stem = file.to_lowercase();
        if !file.contains('/') && !ROOT_DOCUMENTS.contains(&file) {
            problems.push(format!(
                "{file}: documents other than {ROOT_DOCUMENTS:?} go to docs/"
            ));
        }
        if STATUS_WORDS.iter().any(|w| stem.contains(w)) {
            problems.push(format!(
                "{file}: facts live in code, tests, log or changelog"
            ));
        }
    }
    if !file.ends_with(".rs") || file.starts_with("xtask/") {
        return;
    }
    if !text.starts_with("//!") {
        problems.push(format!("{file}: starts without a `//!` header"));
    }
    let allowed = UNSAFE_ALLOWED.iter().any(|p| file.starts_with(p));
    if !allowed
        && text
            .lines()
            .any(|l| !l.trim_start().starts_with("//") && has_unsafe(l))
    {
        problems.push(format!("{file}: unsafe belongs in {UNSAFE_ALLOWED:?}"));
    }
    for (i, line) in text.lines().enumerate() {
        if ["TODO", "FIXME", "XXX", "HACK"]
            .iter()
            .any(|w| line.contains(&format!("// {w}")))
        {
            problems.push(format!(
                "{file}:{}: an unfinished thing belongs in an issue",
                i + 1
            ));
        }
    }
}

/// An op has its kernel and its case table, of one name.
fn check_ops(files: &[String], problems: &mut Vec<String>) {
    let ops = files
        .iter()
        .filter_map(|file| {
            file.strip_prefix("crates/tensor/src/ops/")?
                .strip_suffix(".rs")
        })
        .filter(|op| *op != "mod");
    for op in ops {
        let kernel = format!("crates/kernels-cpu/src/{op}");
        let places = [
            vec![format!("{kernel}.rs"), format!("{kernel}/mod.rs")],
            vec![format!("crates/testkit/src/cases/{op}.rs")],
        ];
        for place in places {
            if !place.iter().any(|file| files.contains(file)) {
                problems.push(format!("op {op}: no {}", place.join(" or ")));
            }
        }
    }
}

fn has_unsafe(line: &str) -> bool {
    ["unsafe {", "unsafe fn", "unsafe impl"]
        .iter()
        .any(|w| line.contains(w))
}

fn check_arrows(problems: &mut Vec<String>) -> Result<()> {
    let metadata = crate::metadata()?;
    let mut arrows = BTreeSet::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            if dependency["kind"].is_null() {
                arrows.insert((
                    package["name"].as_str().unwrap_or_default().to_string(),
                    dependency["name"].as_str().unwrap_or_default().to_string(),
                ));
            }
        }
    }
    for (from, to) in &arrows {
        let leaf = ["dokja-cli", "dokja-audit", "dokja-serve", "dokja-testkit"];
        let forbidden = FORBIDDEN.contains(&(from.as_str(), to.as_str()))
            || (leaf.contains(&to.as_str()) && from != "dokja-cli" && from != "dokja-testkit");
        if forbidden {
            problems.push(format!("{from} must not depend on {to}"));
        }
    }
    Ok(())
}
