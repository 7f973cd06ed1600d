//! The findings as a document: each claim apart, with what was tested and what cannot be concluded.
//!
//! A certificate sums up; it is not evidence itself. Whoever wants to rely on it runs `verify`.
//! It holds the head of the ledger, so that records removed later are missed.
//! `page` shows it to people.

use std::path::Path;

use formats::atomic;
use formats::json::{self, JsonError};
use formats::run_dir::RunDir;
use serde::{Deserialize, Serialize};

use crate::finding::{Claim, Finding, Outcome, Verdict};
use crate::verify::{Milestone, Report};

mod page;

/// The version of the document.
const VERSION: u32 = 1;

/// The certificate as a page.
pub const PAGE_NAME: &str = "certificate.html";

/// What was tested of one claim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimResult {
    /// Which.
    pub claim: Claim,
    /// In words.
    pub statement: String,
    /// Failed if any finding failed; ok if one is ok and none failed; else not tested.
    pub result: Outcome,
    /// What was seen.
    pub findings: Vec<Finding>,
    /// What remains open, however it came out.
    pub cannot_conclude: String,
}

/// `certificate.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// Of this document's form.
    pub version: u32,
    /// Of the whole.
    pub verdict: Verdict,
    /// The final weights.
    pub weights_sha256: Option<String>,
    /// Who recorded.
    pub key: Option<String>,
    /// Digest of the last record.
    pub ledger_head: String,
    /// The number of records.
    pub records: u64,
    /// When the last record was written, by the recorder's clock.
    pub recorded_until: Option<String>,
    /// What the records say happened, in order.
    pub story: Vec<Milestone>,
    /// Every claim, tested or not.
    pub claims: Vec<ClaimResult>,
}

impl Certificate {
    /// Sorts the findings of a report by claim.
    pub fn new(report: &Report) -> Certificate {
        let claims = Claim::ALL.iter().map(|claim| {
            let of_claim = report
                .findings
                .iter()
                .filter(|finding| finding.claim == *claim);
            let findings: Vec<Finding> = of_claim.cloned().collect();
            let any = |result| findings.iter().any(|finding| finding.result == result);
            let result = if any(Outcome::Failed) {
                Outcome::Failed
            } else if any(Outcome::Ok) {
                Outcome::Ok
            } else {
                Outcome::NotTested
            };
            ClaimResult {
                claim: *claim,
                statement: claim.statement().to_string(),
                result,
                findings,
                cannot_conclude: claim.cannot_conclude().to_string(),
            }
        });
        Certificate {
            version: VERSION,
            verdict: report.verdict,
            weights_sha256: report.weights_sha256.clone(),
            key: report.key.clone(),
            ledger_head: report.ledger_head.clone(),
            records: report.records,
            recorded_until: report.recorded_until.clone(),
            story: report.story.clone(),
            claims: claims.collect(),
        }
    }

    /// Writes `certificate.json` and, for people, `certificate.html` into a directory (the run's own,
    /// or any), in place of earlier ones.
    pub fn write(&self, dir: &Path) -> Result<(), JsonError> {
        json::write(&RunDir::new(dir).certificate(), self)?;
        let page = page::html(self);
        Ok(atomic::write_bytes(&dir.join(PAGE_NAME), page.as_bytes())?)
    }

    /// Reads the one in the run directory.
    pub fn read(run_dir: &Path) -> Result<Certificate, JsonError> {
        json::read(&RunDir::new(run_dir).certificate())
    }
}
