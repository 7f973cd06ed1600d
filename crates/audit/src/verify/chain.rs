//! The ledger itself: signatures, links, the expected key, heads noted earlier.

use std::path::Path;

use formats::json;
use formats::ledger::{Chain, verify_chain};
use formats::run_dir::RunDir;
use serde::Deserialize;

use super::VerifyOptions;
use crate::finding::{At, Claim, Findings};

pub(super) fn check(run_dir: &Path, options: &VerifyOptions<'_>, findings: &mut Findings) -> Chain {
    let evidence = ["ledger.jsonl".to_string()];
    let at = At {
        claim: Claim::Ledger,
        component: "ledger.jsonl",
        evidence: &evidence,
    };
    let chain = match verify_chain(run_dir) {
        Ok(chain) => chain,
        Err(e) => {
            findings.failed(&at, e.to_string());
            return Chain::default();
        }
    };
    for check in &chain.records {
        let kind = check
            .record
            .as_ref()
            .map_or("unreadable", |record| record.kind.as_str());
        let component = format!("record {} ({kind})", check.position);
        for fault in &check.faults {
            let place = format!("line {}, byte {} of ledger.jsonl", check.line, check.offset);
            findings.failed(
                &At {
                    component: &component,
                    ..at
                },
                format!("{place}: {fault}"),
            );
        }
    }
    if let Some(tail) = &chain.tail {
        let component = format!("record {}", chain.records.len());
        let at = At {
            component: &component,
            ..at
        };
        let place = format!("byte {} of ledger.jsonl", tail.offset);
        if tail.holds_record {
            let bytes = tail.bytes;
            findings.failed(
                &at,
                format!(
                    "{place}: the last {bytes} bytes hold a record but do not end with its newline"
                ),
            );
        } else {
            findings.missing(
                &at,
                format!(
                    "{place}: the last line is cut off, as when a process is killed while it \
                     writes; resuming the run removes it"
                ),
            );
        }
    }
    if chain.records.is_empty() {
        findings.missing(&at, "it has no records".to_string());
    } else if chain.first_fault().is_none() {
        let n = chain.records.len();
        findings.ok(
            &at,
            format!("{n} records, each signed and linked to the one before"),
        );
    }
    check_key(&chain, options, &at, findings);
    check_heads(run_dir, &chain, options, &at, findings);
    chain
}

fn check_key(chain: &Chain, options: &VerifyOptions<'_>, at: &At<'_>, findings: &mut Findings) {
    let found = chain
        .records
        .iter()
        .find_map(|c| c.record.as_ref())
        .map(|r| r.key.as_str());
    match (options.key, found) {
        (None, _) | (_, None) => {}
        (Some(expected), Some(found)) if expected == found => {
            findings.ok(at, format!("it was begun with the expected key {found}"));
        }
        (Some(expected), Some(found)) => {
            findings.failed(
                at,
                format!("it was begun with the key {found}, not with {expected}"),
            );
        }
    }
}

/// Records cut off at the end leave no gap; only a head noted elsewhere shows that they are gone.
fn check_heads(
    run_dir: &Path,
    chain: &Chain,
    options: &VerifyOptions<'_>,
    at: &At<'_>,
    findings: &mut Findings,
) {
    #[derive(Deserialize)]
    struct Noted {
        ledger_head: String,
    }
    let path = RunDir::new(run_dir).certificate();
    let noted = match json::read::<Noted>(&path) {
        Ok(noted) => Some(noted.ledger_head),
        Err(json::JsonError::File(e)) if e.is_not_found() => None,
        Err(e) => {
            let evidence = ["certificate.json".to_string()];
            let at = At {
                component: "certificate.json",
                evidence: &evidence,
                ..*at
            };
            findings.not_tested(&at, format!("it cannot be read: {e}"));
            None
        }
    };
    for (head, source) in [
        (
            options.head.map(str::to_string),
            "the head given to the auditor",
        ),
        (noted, "the head in certificate.json"),
    ] {
        let Some(head) = head else { continue };
        match chain.records.iter().find(|check| check.sha256 == head) {
            Some(check) => {
                findings.ok(at, format!("{source} is record {}", check.position));
            }
            None => findings.failed(
                at,
                format!(
                    "{source}, {head}, is no record of this ledger: records were changed or removed"
                ),
            ),
        }
    }
}
