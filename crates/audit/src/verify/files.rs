//! The files that the records are about, and files that no record is about.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use formats::atomic::TEMPORARY_PREFIX;
use formats::hash::hash_prefix;
use formats::ledger::{Artefact, Chain};

use crate::finding::{At, Claim, Findings};

pub(super) fn check(run_dir: &Path, chain: &Chain, findings: &mut Findings) {
    // The last record that names a path is about the file that is there now.
    let mut latest: BTreeMap<&str, u64> = BTreeMap::new();
    for check in &chain.records {
        for artefact in check.record.iter().flat_map(|record| &record.artefacts) {
            latest.insert(&artefact.path, check.position);
        }
    }
    for check in &chain.records {
        let Some(record) = &check.record else {
            continue;
        };
        let mut sound = Vec::new();
        for artefact in &record.artefacts {
            if latest.get(artefact.path.as_str()) != Some(&check.position) {
                continue;
            }
            let evidence = [artefact.path.clone()];
            let component = artefact.path.as_str();
            let at = At {
                claim: Claim::Files,
                component,
                evidence: &evidence,
            };
            match compare(run_dir, artefact) {
                Ok(()) => sound.push(artefact.path.clone()),
                Err(what) => {
                    let (seq, kind) = (check.position, &record.kind);
                    findings.failed(&at, format!("{what}, against record {seq} ({kind})"));
                }
            }
        }
        if !sound.is_empty() {
            let component = format!("record {} ({})", check.position, record.kind);
            let at = At {
                claim: Claim::Files,
                component: &component,
                evidence: &sound,
            };
            let detail = match sound.len() {
                1 => "its file has the recorded size and digest".to_string(),
                n => format!("its {n} files have the recorded sizes and digests"),
            };
            findings.ok(&at, detail);
        }
    }
    unrecorded(run_dir, &latest, findings);
}

fn compare(run_dir: &Path, artefact: &Artefact) -> Result<(), String> {
    let Artefact {
        path,
        bytes,
        sha256,
        grows,
    } = artefact;
    if !artefact.is_path_inside() {
        return Err(format!("{path:?} leads out of the run directory"));
    }
    // No more is read than was recorded: a file that was blown up shows by its size.
    let full = run_dir.join(path);
    let found_bytes = match fs::metadata(&full) {
        Ok(found) => found.len(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(format!("the file {path} is missing"));
        }
        Err(e) => return Err(format!("the file {path} cannot be read: {e}")),
    };
    if found_bytes < *bytes || (found_bytes > *bytes && !grows) {
        return Err(format!(
            "the file {path} has {found_bytes} bytes instead of {bytes}"
        ));
    }
    let found = hash_prefix(&full, *bytes).map_err(|e| e.to_string())?;
    if found.sha256 != *sha256 {
        let found = found.sha256;
        return Err(format!(
            "the file {path} was changed: its SHA-256 is {found} instead of {sha256}"
        ));
    }
    Ok(())
}

/// Files that a run writes together with a record, and that have none: removed records at the end
/// of the ledger show so, or a kill between file and record.
fn unrecorded(run_dir: &Path, latest: &BTreeMap<&str, u64>, findings: &mut Findings) {
    let (mut expected, mut other) = (Vec::new(), Vec::new());
    let mut open = vec![String::new()];
    while let Some(dir) = open.pop() {
        let Ok(entries) = fs::read_dir(run_dir.join(&dir)) else {
            continue;
        };
        for entry in entries.flatten() {
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            let path = if dir.is_empty() {
                name.clone()
            } else {
                format!("{dir}/{name}")
            };
            if name.starts_with(TEMPORARY_PREFIX) || latest.contains_key(path.as_str()) {
                continue;
            }
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                open.push(path);
            } else if is_written_with_a_record(&path) {
                expected.push(path);
            } else if !is_no_evidence(&path) {
                other.push(path);
            }
        }
    }
    expected.sort();
    other.sort();
    let at = At {
        claim: Claim::Files,
        component: "files without a record",
        evidence: &expected,
    };
    if !expected.is_empty() {
        let first = &expected[0];
        let n = expected.len();
        findings.missing(
            &at,
            format!(
                "{n} files that a run writes together with a record have none, the first {first}: \
                 records were removed from the end of the ledger, or the run was killed just then"
            ),
        );
    }
    if !other.is_empty() {
        let n = other.len();
        let detail = format!("{n} more files in the run directory are in no record");
        findings.not_tested(
            &At {
                evidence: &other,
                ..at
            },
            detail,
        );
    }
}

/// Results of an audit, and what the data's manifest (which is recorded) speaks for.
fn is_no_evidence(path: &str) -> bool {
    matches!(
        path,
        "ledger.jsonl" | "certificate.json" | "certificate.html" | "report.html"
    ) || path.starts_with("data/")
}

fn is_written_with_a_record(path: &str) -> bool {
    let parts: Vec<&str> = path.split('/').collect();
    matches!(
        parts[..],
        ["tokenizer.json"] | ["eval", _] | [_, "recipe.toml"] | [_, "checkpoints", ..]
    )
}
