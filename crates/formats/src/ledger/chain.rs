//! Reading and checking a ledger, line by line, without trust.
//!
//! A wrong line does not end the check: what follows is compared with the bytes that stand before
//! it, so that each fault is told where it is and one changed byte does not hide another.

use std::fmt;
use std::path::Path;

use super::{NO_PREVIOUS, Record};
use crate::error::FileError;
use crate::hash;
use crate::json;
use crate::run_dir::RunDir;

/// A ledger as it was found.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    /// One for every complete line.
    pub records: Vec<RecordCheck>,
    /// Bytes after the last newline.
    pub tail: Option<Tail>,
    /// Length of the complete lines.
    pub complete_bytes: u64,
}

/// One line and what is wrong with it.
#[derive(Clone, Debug)]
pub struct RecordCheck {
    /// Its place among the lines, counted from 0: what `seq` should be in an unbroken ledger.
    pub position: u64,
    /// `position + 1`.
    pub line: usize,
    /// Where it begins.
    pub offset: u64,
    /// Digest of its bytes, without the newline.
    pub sha256: String,
    /// The record, if it is one.
    pub record: Option<Record>,
    /// Empty when all is well.
    pub faults: Vec<Fault>,
}

/// What can be wrong with a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is no record.
    NotARecord {
        /// The parser's words.
        what: String,
    },
    /// A record in another spelling than the only accepted one.
    NotCanonical {
        /// The first byte of the line that differs.
        column: usize,
    },
    /// A record is missing, repeated, or out of order.
    Seq {
        /// What follows from the line before.
        expected: u64,
        /// What it says.
        found: u64,
    },
    /// The line before is not the one that this record was appended to.
    Prev {
        /// Digest of the line before.
        expected: String,
        /// What it says.
        found: String,
    },
    /// Not signed by the key it names, or changed since.
    Signature,
    /// Signed by another key than the first record.
    OtherKey {
        /// Of the first record.
        first: String,
        /// Of this one.
        found: String,
    },
    /// An artefact whose path leads out of the run directory, or whose digest is none.
    Artefact {
        /// Its path.
        path: String,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::NotARecord { what } => write!(f, "it is not a record ({what})"),
            Fault::NotCanonical { column } => {
                write!(
                    f,
                    "it is not in the canonical form, from byte {column} of the line on"
                )
            }
            Fault::Seq { expected, found } => write!(
                f,
                "its number is {found} where {expected} should follow: records are missing, \
                 repeated or out of order"
            ),
            Fault::Prev { expected, found } => write!(
                f,
                "it was appended to a line with digest {found}, but the line before it has \
                 {expected}: one of them was changed"
            ),
            Fault::Signature => {
                f.write_str("its signature does not fit: it was changed, or not signed by its key")
            }
            Fault::OtherKey { first, found } => {
                write!(
                    f,
                    "it is signed by the key {found}, the ledger was begun with {first}"
                )
            }
            Fault::Artefact { path } => {
                write!(f, "its artefact {path:?} cannot be a file of the run")
            }
        }
    }
}

/// Bytes after the last newline: a line that was cut off, or whose newline was changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tail {
    /// Where it begins.
    pub offset: u64,
    /// Its length.
    pub bytes: u64,
    /// True when it begins with a whole JSON object, which a line cut off while it was written does
    /// only if exactly its newline is missing.
    pub holds_record: bool,
}

impl Chain {
    /// Digest of the last complete line.
    pub fn head(&self) -> &str {
        self.records
            .last()
            .map_or(NO_PREVIOUS, |check| check.sha256.as_str())
    }

    /// The first thing that is wrong; the tail is not a fault.
    pub fn first_fault(&self) -> Option<(&RecordCheck, &Fault)> {
        self.records
            .iter()
            .find_map(|check| Some((check, check.faults.first()?)))
    }
}

/// Checks the ledger of a run directory.
///
/// # Errors
/// Only when the file cannot be read; what is wrong in it is in the [`Chain`].
pub fn verify_chain(run_dir: &Path) -> Result<Chain, FileError> {
    Ok(verify_bytes(&json::read_bytes(
        &RunDir::new(run_dir).ledger(),
    )?))
}

/// Checks the bytes of a ledger.
pub fn verify_bytes(bytes: &[u8]) -> Chain {
    let mut chain = Chain::default();
    let mut expected_seq = 0;
    let mut first_key: Option<String> = None;
    for (idx, line) in bytes.split_inclusive(|b| *b == b'\n').enumerate() {
        let offset = chain.complete_bytes;
        let Some(text) = line.strip_suffix(b"\n") else {
            let mut values =
                serde_json::Deserializer::from_slice(line).into_iter::<serde_json::Value>();
            let holds_record = values
                .next()
                .is_some_and(|v| v.is_ok_and(|v| v.is_object()));
            chain.tail = Some(Tail {
                offset,
                bytes: line.len() as u64,
                holds_record,
            });
            break;
        };
        let mut faults = Vec::new();
        let record = match serde_json::from_slice::<Record>(text) {
            Ok(record) => {
                check(
                    &record,
                    text,
                    expected_seq,
                    chain.head(),
                    &mut first_key,
                    &mut faults,
                );
                Some(record)
            }
            Err(e) => {
                faults.push(Fault::NotARecord {
                    what: e.to_string(),
                });
                None
            }
        };
        expected_seq = record
            .as_ref()
            .map_or(expected_seq, |r| r.seq)
            .saturating_add(1);
        chain.records.push(RecordCheck {
            position: idx as u64,
            line: idx + 1,
            offset,
            sha256: hash::sha256_hex(text),
            record,
            faults,
        });
        chain.complete_bytes += line.len() as u64;
    }
    chain
}

fn check(
    record: &Record,
    text: &[u8],
    expected_seq: u64,
    head: &str,
    first_key: &mut Option<String>,
    faults: &mut Vec<Fault>,
) {
    let canonical = record.to_line();
    if canonical.as_bytes() != text {
        let same = canonical
            .as_bytes()
            .iter()
            .zip(text)
            .take_while(|(a, b)| a == b)
            .count();
        faults.push(Fault::NotCanonical { column: same });
    }
    if !record.is_signed() {
        faults.push(Fault::Signature);
    }
    let first = first_key.get_or_insert_with(|| record.key.clone());
    if *first != record.key {
        faults.push(Fault::OtherKey {
            first: first.clone(),
            found: record.key.clone(),
        });
    }
    if record.seq != expected_seq {
        faults.push(Fault::Seq {
            expected: expected_seq,
            found: record.seq,
        });
    }
    if record.prev != head {
        faults.push(Fault::Prev {
            expected: head.to_string(),
            found: record.prev.clone(),
        });
    }
    for artefact in &record.artefacts {
        if !artefact.is_path_inside() || !hash::is_sha256_hex(&artefact.sha256) {
            faults.push(Fault::Artefact {
                path: artefact.path.clone(),
            });
        }
    }
}
