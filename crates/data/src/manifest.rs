//! What is in a data directory: `manifest.json`.
//!
//! Holds no times and no absolute paths of the output, so that the same inputs and options give the
//! same bytes, and the manifest's SHA-256 names the data set.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use formats::{FileError, hash, json::JsonError};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{build::Options, extract::Skips};

/// Version of the layout that this code writes and reads.
pub const FORMAT_VERSION: u32 = 1;

/// Name of the file in a data directory.
pub const FILE_NAME: &str = "manifest.json";

/// Which side of the split a shard is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// Documents to train on.
    Train,
    /// Documents to measure on.
    Heldout,
    /// Instruction dialogues.
    Dialogues,
}

impl Split {
    /// How its files begin.
    pub fn name(self) -> &'static str {
        match self {
            Split::Train => "train",
            Split::Heldout => "heldout",
            Split::Dialogues => "dialogues",
        }
    }
}

/// A file of documents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardEntry {
    /// Name in the data directory.
    pub file: String,
    /// What it holds.
    pub split: Split,
    /// Number of documents.
    pub documents: u64,
    /// Bytes of their texts in UTF-8.
    pub text_bytes: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// SHA-256 of the file.
    pub sha256: String,
}

/// A file that documents were taken from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputEntry {
    /// As it was given or found.
    pub path: String,
    /// Bytes of the file.
    pub bytes: u64,
    /// SHA-256 of the file.
    pub sha256: String,
    /// Documents taken from it.
    pub documents: u64,
}

/// The built-in world, where it is part of the data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GeneratorEntry {
    /// Name of the generator.
    pub generator: String,
    /// Its version.
    pub version: String,
    /// Seed of the world's facts.
    pub world_seed: u64,
    /// Seed of the texts.
    pub text_seed: u64,
    /// Bytes of text that were asked for.
    pub bytes: u64,
    /// Dialogues that were asked for.
    pub dialogues: u64,
}

/// Documents and bytes of kept text, on both sides of the split.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Documents to train on.
    pub documents: u64,
    /// Their bytes in UTF-8.
    pub bytes: u64,
    /// Documents held out.
    pub heldout_documents: u64,
    /// Their bytes in UTF-8.
    pub heldout_bytes: u64,
}

impl Tally {
    pub(crate) fn add(&mut self, bytes: u64, split: Split) {
        if split == Split::Heldout {
            self.heldout_documents += 1;
            self.heldout_bytes += bytes;
        } else {
            self.documents += 1;
            self.bytes += bytes;
        }
    }
}

/// Documents that were read and not kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    /// Texts that were there before.
    pub duplicates: u64,
    /// Bytes of those.
    pub duplicate_bytes: u64,
    /// Texts under the least size.
    pub too_short: u64,
    /// Texts beyond the limit of their language.
    #[serde(default)]
    pub over_limit: u64,
    /// Records that could not be used at all.
    pub skipped: Skips,
}

/// The contents of `manifest.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// How it was built.
    pub options: Options,
    /// The built-in part.
    pub builtin: Option<GeneratorEntry>,
    /// The other inputs.
    pub inputs: Vec<InputEntry>,
    /// Documents read, before anything was dropped.
    pub documents: u64,
    /// Bytes of their texts as read.
    pub bytes: u64,
    /// Documents kept, both splits.
    pub kept_documents: u64,
    /// Bytes of their texts.
    pub kept_bytes: u64,
    /// Number of dialogues.
    pub dialogues: u64,
    /// What was not kept.
    pub dropped: Dropped,
    /// Kept text by language.
    pub languages: BTreeMap<String, Tally>,
    /// Kept text by source.
    pub sources: BTreeMap<String, Tally>,
    /// The files.
    pub shards: Vec<ShardEntry>,
}

/// A data directory that cannot be used.
#[derive(Debug, Error)]
pub enum ManifestError {
    /// No manifest, or none that can be read.
    #[error(
        "{} is no data directory: {cause}; build one with `dokja data build`",
        dir.display()
    )]
    Unreadable {
        /// The directory.
        dir: PathBuf,
        /// What failed.
        cause: JsonError,
    },
    /// Written by another version.
    #[error(
        "{} has data format version {found}, this program reads version {FORMAT_VERSION}; build it \
         again",
        dir.display()
    )]
    Version {
        /// The directory.
        dir: PathBuf,
        /// Its version.
        found: u32,
    },
    /// A name that would lead out of the directory.
    #[error("{} lists a shard named {name:?}, which is no plain file name", dir.display())]
    ShardName {
        /// The directory.
        dir: PathBuf,
        /// The name.
        name: String,
    },
    /// A file that is not what the manifest says.
    #[error(
        "{} has SHA-256 {found}, its manifest says {expected}; the file was changed: build the \
         data again",
        path.display()
    )]
    Changed {
        /// The file.
        path: PathBuf,
        /// By the manifest.
        expected: String,
        /// By its bytes.
        found: String,
    },
    /// The file system.
    #[error(transparent)]
    File(#[from] FileError),
}

impl Manifest {
    /// Reads the manifest of a data directory.
    pub fn open(dir: &Path) -> Result<Manifest, ManifestError> {
        let dir = dir.to_path_buf();
        let manifest: Manifest = match formats::json::read(&dir.join(FILE_NAME)) {
            Ok(manifest) => manifest,
            Err(cause) => return Err(ManifestError::Unreadable { dir, cause }),
        };
        if manifest.format_version != FORMAT_VERSION {
            let found = manifest.format_version;
            return Err(ManifestError::Version { dir, found });
        }
        for shard in &manifest.shards {
            let name = &shard.file;
            if name.contains(['/', '\\', '\0']) || name.starts_with('.') || name.is_empty() {
                return Err(ManifestError::ShardName {
                    dir,
                    name: name.clone(),
                });
            }
        }
        Ok(manifest)
    }

    /// SHA-256 of the manifest's file: the name of the data set.
    pub fn sha256(dir: &Path) -> Result<String, FileError> {
        hash::sha256_file(&dir.join(FILE_NAME))
    }

    /// The shards of one split, in order.
    pub fn shards_of(&self, split: Split) -> impl Iterator<Item = &ShardEntry> {
        self.shards.iter().filter(move |shard| shard.split == split)
    }
}

/// What is in a data directory, by its manifest.
pub fn inspect(dir: &Path) -> Result<Manifest, ManifestError> {
    Manifest::open(dir)
}

/// Reads every shard and compares its digest with the manifest's.
pub fn verify(dir: &Path) -> Result<Manifest, ManifestError> {
    let manifest = Manifest::open(dir)?;
    for shard in &manifest.shards {
        let path = dir.join(&shard.file);
        let found = hash::sha256_file(&path)?;
        if found != shard.sha256 {
            return Err(ManifestError::Changed {
                path,
                expected: shard.sha256.clone(),
                found,
            });
        }
    }
    Ok(manifest)
}
