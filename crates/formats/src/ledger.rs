//! The ledger: what happened to a model, from random numbers to final weights, one record a line.
//!
//! ```text
//! {"seq":0,"time":"2026-01-31T23:59:59Z","kind":"genesis","prev":"00..","payload":{..},
//!  "artefacts":[{"path":"tokenizer.json","bytes":9,"sha256":".."}],"key":"..","sig":".."}
//! ```
//! A record names the digest of the line before it (`prev`), the sizes and digests of files it is
//! about, and the key that signs it. A line is accepted in exactly one spelling
//! ([`Record::to_line`]), so that no byte can be changed without being found. The format:
//! `docs/formats/ledger.md`.
//!
//! - [`records`]: the kinds of records and what each says
//! - [`chain`]: reading and checking, without trust
//! - [`Ledger`]: appending, by one process at a time
//!
//! It proves what the holder of the key recorded, and in which order; not that it is true. That is
//! for `audit`, which recomputes.

pub mod chain;
pub mod records;
mod time;

use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;

use crate::atomic;
use crate::error::FileError;
use crate::hash::{self, FileHash};
use crate::json;
use crate::keys::{self, Key};
use crate::run_dir::RunDir;

pub use chain::{Chain, Fault, RecordCheck, verify_chain};
pub use records::Event;

/// `prev` of the first record.
pub const NO_PREVIOUS: &str = "0000000000000000000000000000000000000000000000000000000000000000";
/// What is signed: these bytes, then the line without its signature.
const SIGNATURE_CONTEXT: &[u8] = b"dokja-ledger-1\n";

/// A ledger could not be opened or written.
#[derive(Debug, Error)]
pub enum LedgerError {
    /// The file system failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// Another process holds it.
    #[error(
        "another process is writing into the run of {}; wait for it to end or stop it",
        path.display()
    )]
    Locked {
        /// The ledger.
        path: PathBuf,
    },
    /// It does not pass its own check.
    #[error(
        "{}: record {seq} (line {line}, byte {offset}): {fault}; nothing can be added to a broken \
         ledger, `dokja audit verify` shows all of it",
        path.display()
    )]
    Broken {
        /// The ledger.
        path: PathBuf,
        /// The record, by position.
        seq: u64,
        /// Counted from 1.
        line: usize,
        /// Where the line begins.
        offset: u64,
        /// What is wrong with it.
        fault: Fault,
    },
    /// The run belongs to another key.
    #[error(
        "the run of {} was begun with the key {began}, but yours is {yours}; use the key it was \
         begun with, or begin a run of your own from its weights",
        path.display()
    )]
    OtherKey {
        /// The ledger.
        path: PathBuf,
        /// Of its first record.
        began: String,
        /// Of the key at hand.
        yours: String,
    },
    /// A file that the ledger cannot name.
    #[error("{} is not inside the run directory {}", path.display(), root.display())]
    Outside {
        /// The file.
        path: PathBuf,
        /// The run directory.
        root: PathBuf,
    },
}

/// A file that a record is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Artefact {
    /// Relative to the run directory, parts separated by `/`.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// Its digest.
    pub sha256: String,
    /// True for a file that may have grown since: the digest is of its first `bytes` bytes.
    #[serde(default, skip_serializing_if = "is_false")]
    pub grows: bool,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde asks for this signature"
)]
fn is_false(value: &bool) -> bool {
    !*value
}

impl Artefact {
    /// From a digest that the writer of the file took; `path` is relative to the run directory.
    pub fn new(path: &str, hash: FileHash) -> Artefact {
        Artefact {
            path: path.to_string(),
            bytes: hash.bytes,
            sha256: hash.sha256,
            grows: false,
        }
    }

    /// True when `path` is relative, has no empty, `.` or `..` parts, and so stays inside the run.
    pub fn is_path_inside(&self) -> bool {
        !self.path.is_empty()
            && !self.path.contains(['\\', '\0'])
            && self
                .path
                .split('/')
                .all(|part| !matches!(part, "" | "." | ".."))
    }
}

/// One line of the ledger.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Its place, counted from 0.
    pub seq: u64,
    /// RFC 3339, UTC, by the recorder's clock: informative.
    pub time: String,
    /// Which [`Event`].
    pub kind: String,
    /// Digest of the line before (without its newline), or [`NO_PREVIOUS`].
    pub prev: String,
    /// What the event says.
    pub payload: Value,
    /// The files it is about.
    pub artefacts: Vec<Artefact>,
    /// The public key of the signer.
    pub key: String,
    /// The signature.
    pub sig: String,
}

impl Record {
    /// The only accepted spelling: members in the order of the struct, no white space, payload keys
    /// sorted, without the newline.
    pub fn to_line(&self) -> String {
        let mut sorted = self.clone();
        sorted.payload = json::sort_keys(&self.payload);
        serde_json::to_string(&sorted).expect("strings, numbers and JSON values have a JSON form")
    }

    /// The line without the member `sig`, which is what is signed (after a fixed prefix).
    fn unsigned_line(&self) -> Vec<u8> {
        let line = self.to_line();
        let end = line.len() - format!(",\"sig\":{}}}", Value::from(self.sig.as_str())).len();
        [SIGNATURE_CONTEXT, &line.as_bytes()[..end], b"}"].concat()
    }

    /// True when `sig` is the signature of everything else by `key`.
    pub fn is_signed(&self) -> bool {
        keys::is_signed_by(&self.key, &self.unsigned_line(), &self.sig)
    }

    /// What it says, in types.
    pub fn event(&self) -> Result<Event, serde_json::Error> {
        serde_json::from_value(serde_json::json!({ "kind": self.kind, "payload": self.payload }))
    }
}

/// How the run began, as its ledger says.
pub fn genesis(records: &[Record]) -> Option<records::Genesis> {
    let mut events = records.iter().filter_map(|record| record.event().ok());
    events.find_map(|event| match event {
        Event::Genesis(genesis) => Some(genesis),
        _ => None,
    })
}

/// The training data, as the ledger says.
pub fn data(records: &[Record]) -> Option<records::Data> {
    let mut events = records.iter().filter_map(|record| record.event().ok());
    events.find_map(|event| match event {
        Event::Data(data) => Some(data),
        _ => None,
    })
}

/// What opening a ledger had to put in order after a process was killed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Temporary files and directories that were removed.
    pub removed: Vec<PathBuf>,
    /// Length of a half-written last line that was removed; 0 if there was none.
    pub torn_bytes: u64,
}

/// A ledger held open for appending, locked against other processes until it is dropped.
#[derive(Debug)]
pub struct Ledger {
    run: RunDir,
    path: PathBuf,
    file: File,
    key: Key,
    records: Vec<Record>,
    head: String, // digest of the last line
    len: u64,
    recovery: Recovery,
}

impl Ledger {
    /// Opens the ledger of a run, or begins one; checks it; clears up after a killed process.
    ///
    /// Removes the temporaries of [`crate::atomic`] below `run_dir`, so open it before writing
    /// there.
    pub fn open_or_create(run_dir: &Path, key: Key) -> Result<Ledger, LedgerError> {
        let run = RunDir::new(run_dir);
        let path = run.ledger();
        let failed = |e| FileError::io("write", &path, e);
        let is_new = !path.exists();
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(&path);
        let file = file.map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(LedgerError::Locked { path }),
            Err(TryLockError::Error(e)) => return Err(FileError::io("lock", &path, e).into()),
        }
        if is_new {
            atomic::sync_dir(run_dir)?;
        }
        let chain = verify_chain(run_dir)?;
        if let Some((check, fault)) = chain.first_fault() {
            return Err(LedgerError::Broken {
                path,
                seq: check.position,
                line: check.line,
                offset: check.offset,
                fault: fault.clone(),
            });
        }
        let (head, len) = (chain.head().to_string(), chain.complete_bytes);
        let torn_bytes = chain.tail.as_ref().map_or(0, |tail| tail.bytes);
        let records: Vec<Record> = chain.records.into_iter().filter_map(|c| c.record).collect();
        if let Some(first) = records.first().filter(|r| r.key != key.public_hex()) {
            let (began, yours) = (first.key.clone(), key.public_hex());
            return Err(LedgerError::OtherKey { path, began, yours });
        }
        if torn_bytes > 0 {
            file.set_len(len)
                .and_then(|()| file.sync_all())
                .map_err(failed)?;
        }
        let removed = atomic::clean_leftovers(run_dir)?;
        let recovery = Recovery {
            removed,
            torn_bytes,
        };
        Ok(Ledger {
            run,
            path,
            file,
            key,
            records,
            head,
            len,
            recovery,
        })
    }

    /// Appends a record; it is on the disk when this returns, or not in the ledger at all.
    pub fn append(
        &mut self,
        event: &Event,
        artefacts: Vec<Artefact>,
    ) -> Result<&Record, LedgerError> {
        let (kind, payload) = event.parts();
        let mut record = Record {
            seq: self.records.len() as u64,
            time: time::now_rfc3339(),
            kind,
            prev: self.head.clone(),
            payload,
            artefacts,
            key: self.key.public_hex(),
            sig: String::new(),
        };
        record.sig = self.key.sign_hex(&record.unsigned_line());
        let mut line = record.to_line();
        let head = hash::sha256_hex(line.as_bytes());
        line.push('\n');
        let written = self
            .file
            .write_all(line.as_bytes())
            .and_then(|()| self.file.sync_data());
        if let Err(e) = written {
            // What is left of the line must not stand in front of the next one. If even that fails,
            // the next open removes it.
            let _ = self.file.set_len(self.len);
            return Err(FileError::io("write", &self.path, e).into());
        }
        self.len += line.len() as u64;
        self.head = head;
        self.records.push(record);
        Ok(self.records.last().expect("just pushed"))
    }

    /// Measures a file of the run, which will not change again.
    pub fn artefact(&self, path: &Path) -> Result<Artefact, LedgerError> {
        Ok(Artefact::new(&self.relative(path)?, hash::hash_file(path)?))
    }

    /// Measures a file of the run that will only grow (metrics).
    pub fn growing_artefact(&self, path: &Path) -> Result<Artefact, LedgerError> {
        Ok(Artefact {
            grows: true,
            ..self.artefact(path)?
        })
    }

    /// Measures every file of a directory of the run, such as a checkpoint, by name.
    pub fn artefacts_in(&self, dir: &Path) -> Result<Vec<Artefact>, LedgerError> {
        let entries = atomic::list(dir)?;
        let files = entries
            .iter()
            .map(std::fs::DirEntry::path)
            .filter(|path| path.is_file());
        files.map(|path| self.artefact(&path)).collect()
    }

    fn relative(&self, path: &Path) -> Result<String, LedgerError> {
        self.run.relative(path).ok_or_else(|| LedgerError::Outside {
            path: path.to_path_buf(),
            root: self.run.root().to_path_buf(),
        })
    }

    /// All records so far.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// Digest of the last line: whoever keeps it can later tell that nothing before it was changed.
    pub fn head(&self) -> &str {
        &self.head
    }

    /// What opening had to put in order.
    pub fn recovery(&self) -> &Recovery {
        &self.recovery
    }
}
