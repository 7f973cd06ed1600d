//! From the final weights of a run back to its random start.
//!
//! 1. `chain`: every record is signed, in its only accepted spelling, and linked to the one
//!    before
//! 2. `files`: every recorded file has its recorded size and digest; nothing stands beside them
//!    that a record should name
//! 3. `lineage`: final -> checkpoints -> init, with recipe, batches, tokenizer and data; the
//!    initial weights are computed again from their seed
//!
//! A failure does not end the walk: everything that can still be tested is. Hostile files cannot
//! make it panic or use more memory than a small multiple of the ledger or of one JSON file.

mod chain;
mod files;
mod lineage;
mod story;

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::finding::{Finding, Findings, Verdict};

pub use story::Milestone;

/// The digest of the initial weights: from the text of config.json, the seed, and the name of the
/// generator; an error says why it cannot be computed (an unknown generator, a wrong config).
pub type InitialWeights<'a> = dyn Fn(&str, u64, &str) -> Result<String, String> + 'a;

/// What the auditor brings along.
#[derive(Default)]
pub struct VerifyOptions<'a> {
    /// Computes the initial weights again; without it, that claim is not tested.
    pub initial_weights: Option<&'a InitialWeights<'a>>,
    /// The public key that is expected (64 hexadecimal digits), known from elsewhere.
    pub key: Option<&'a str>,
    /// A digest of a record, noted or published earlier: it must be in the ledger still.
    pub head: Option<&'a str>,
    /// Where the data lies, if not in the run and not where the ledger says.
    pub data_dir: Option<&'a Path>,
}

/// What came out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Of the whole.
    pub verdict: Verdict,
    /// Failures first, else in the order of the walk.
    pub findings: Vec<Finding>,
    /// What the records say happened.
    pub story: Vec<Milestone>,
    /// The number of records.
    pub records: u64,
    /// Digest of the last record.
    pub ledger_head: String,
    /// The public key of the first record.
    pub key: Option<String>,
    /// When the last record was written, by the recorder's clock.
    pub recorded_until: Option<String>,
    /// The final weights, if the run came to an end.
    pub weights_sha256: Option<String>,
}

/// Walks through a run directory. See the module header.
pub fn verify(run_dir: &Path, options: &VerifyOptions<'_>) -> Report {
    let mut findings = Findings::default();
    let ledger = chain::check(run_dir, options, &mut findings);
    files::check(run_dir, &ledger, &mut findings);
    let weights_sha256 = lineage::check(run_dir, &ledger, options, &mut findings);

    let verdict = findings.verdict();
    let mut list = findings.list;
    list.sort_by_key(|finding| finding.result != crate::Outcome::Failed);
    let first = ledger
        .records
        .iter()
        .find_map(|check| check.record.as_ref());
    let last = ledger
        .records
        .iter()
        .rev()
        .find_map(|check| check.record.as_ref());
    Report {
        verdict,
        findings: list,
        story: story::tell(&ledger),
        records: ledger.records.len() as u64,
        ledger_head: ledger.head().to_string(),
        key: first.map(|record| record.key.clone()),
        recorded_until: last.map(|record| record.time.clone()),
        weights_sha256,
    }
}
