//! Files become documents: plain text, Markdown, HTML, JSON Lines, Parquet, each also gzip- or
//! zstd-compressed (recognised by their first bytes, whatever the name says).
//!
//! | kind | by name | documents |
//! |---|---|---|
//! | text | .txt .text | one a file; longer than [`Limits::max_document_bytes`], cut at line ends |
//! | Markdown | .md .markdown | one a file, its text without the markup |
//! | HTML | .html .htm .xhtml | one a file, its text without scripts, styles and navigation |
//! | JSON Lines | .jsonl .ndjson | one a line: `text`, and `lang`, `source` if given; or a dialogue: `messages`, perhaps `rejected` |
//! | Parquet | .parquet | one a row: column `text`, and `lang`, `source` if there |
//!
//! Everything streams, and no input makes memory grow beyond the limits (of Parquet, a page is held in
//! memory, whatever its size). A record that cannot be used
//! (invalid UTF-8, broken JSON, an over-long line) is skipped and counted with file and line; a
//! file that cannot be read on (truncated, not what it claims to be, a decompression bomb) is an error.

mod html;
mod input;
mod jsonl;
mod markdown;
mod parquet;
mod text;

use std::{
    cell::Cell,
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    rc::Rc,
};

use formats::FileError;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{Document, Record};

/// Bounds on what one input may make the extractors do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// A longer line of JSON Lines is skipped; a longer plain text is cut; a longer Markdown or HTML
    /// file is skipped.
    pub max_document_bytes: usize,
    /// A compressed file may grow to so many times its size, and 64 MiB.
    pub max_expansion: u64,
    /// A compressed Parquet file may grow to so many bytes: it must be held in memory to be read.
    pub max_in_memory_bytes: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            max_document_bytes: 8 << 20,
            max_expansion: 1000,
            max_in_memory_bytes: 512 << 20,
        }
    }
}

/// A file from which no documents can be taken, or no more of them.
#[derive(Debug, Error)]
pub enum ExtractError {
    /// The file system.
    #[error(transparent)]
    File(#[from] FileError),
    /// The bytes end early or do not decompress.
    #[error(
        "{} cannot be read on after {offset} bytes of its contents: {cause}; check that it was \
         copied whole",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Decompressed bytes read before.
        offset: u64,
        /// What the reader said.
        cause: io::Error,
    },
    /// A decompression bomb, or an extraordinary file.
    #[error(
        "{} decompresses to more than {limit_bytes} bytes; raise the limit if it is meant to",
        path.display()
    )]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Where reading stopped.
        limit_bytes: u64,
    },
    /// The name says no kind of file that can be read.
    #[error(
        "{} is of no kind that can be read; give .txt, .md, .html, .jsonl or .parquet, plain or \
         with .gz or .zst",
        path.display()
    )]
    UnknownKind {
        /// The file.
        path: PathBuf,
    },
    /// Parquet structures that do not hold together.
    #[error("{} is no Parquet file that can be read: {what}", path.display())]
    Parquet {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// Nothing usable in the columns.
    #[error(
        "{} has no string column named text; its columns are {columns}",
        path.display()
    )]
    NoTextColumn {
        /// The file.
        path: PathBuf,
        /// The names, joined by commas.
        columns: String,
    },
}

/// Why a record was not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SkipReason {
    /// The bytes are no UTF-8.
    InvalidUtf8,
    /// A line that is no JSON object with a string `text`, or with `messages`.
    InvalidJson,
    /// Messages that are no dialogue: perhaps a system turn, then user and assistant in turns, none of them empty; or a
    /// rejected answer that is the last one.
    NoDialogue,
    /// Longer than [`Limits::max_document_bytes`].
    TooLong,
    /// HTML whose elements are nested absurdly deep.
    TooDeep,
    /// A row without text.
    NoText,
}

/// A record that was not used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skip {
    /// The file.
    pub path: String,
    /// Line (from 1) in JSON Lines and text, row (from 1) in Parquet, 1 otherwise.
    pub line: u64,
    /// Why.
    pub reason: SkipReason,
}

/// How many records were not used, with the first few.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skips {
    /// Number by reason.
    pub counts: BTreeMap<SkipReason, u64>,
    /// The first of them.
    pub examples: Vec<Skip>,
}

pub(crate) const MAX_EXAMPLES: usize = 20;

impl Skips {
    pub(crate) fn add(&mut self, path: &Path, line: u64, reason: SkipReason) {
        *self.counts.entry(reason).or_default() += 1;
        if self.examples.len() < MAX_EXAMPLES {
            let path = path.display().to_string();
            self.examples.push(Skip { path, line, reason });
        }
    }

    /// Number of skipped records.
    pub fn total(&self) -> u64 {
        self.counts.values().sum()
    }
}

/// What the extractors hand records to; an error ends the extraction.
pub(crate) type Sink<'a, E> = dyn FnMut(Record) -> Result<(), E> + 'a;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    Markdown,
    Html,
    JsonLines,
    Parquet,
}

fn kind_of(path: &Path) -> Option<Kind> {
    let name = path.file_name()?.to_string_lossy().to_ascii_lowercase();
    let mut name = name.as_str();
    for ending in [".gz", ".zst", ".zstd"] {
        name = name.strip_suffix(ending).unwrap_or(name);
    }
    Some(match name.rsplit_once('.')?.1 {
        "txt" | "text" => Kind::Text,
        "md" | "markdown" => Kind::Markdown,
        "html" | "htm" | "xhtml" => Kind::Html,
        "jsonl" | "ndjson" => Kind::JsonLines,
        "parquet" => Kind::Parquet,
        _ => return None,
    })
}

/// How many bytes of a file have been read, for whoever waits; shared by its clones.
#[derive(Clone, Debug, Default)]
pub struct Position(Rc<Cell<u64>>);

impl Position {
    /// Bytes of the file, as it lies on the disk.
    pub fn bytes(&self) -> u64 {
        self.0.get()
    }

    fn advance(&self, bytes: u64) {
        self.0.set(self.0.get() + bytes);
    }

    fn set(&self, bytes: u64) {
        self.0.set(bytes);
    }
}

/// Hands every record of the file at `path` to `sink`; returns what was skipped. `position` is kept
/// up to date meanwhile.
///
/// # Errors
/// [`ExtractError`] when the file cannot be read on, or whatever `sink` returns.
pub fn extract<E: From<ExtractError>>(
    path: &Path,
    limits: &Limits,
    position: &Position,
    sink: &mut dyn FnMut(Record) -> Result<(), E>,
) -> Result<Skips, E> {
    let kind = kind_of(path).ok_or_else(|| ExtractError::UnknownKind {
        path: path.to_path_buf(),
    })?;
    let mut skips = Skips::default();
    match kind {
        Kind::Parquet => parquet::extract(path, limits, position, &mut skips, sink)?,
        Kind::JsonLines => jsonl::extract(path, limits, position, &mut skips, sink)?,
        Kind::Text => text::extract(path, limits, position, &mut skips, sink)?,
        Kind::Markdown => {
            if let Some(source) = text::whole(path, limits, position, &mut skips)? {
                let text = markdown::text(&source);
                sink(
                    Document {
                        text,
                        lang: String::new(),
                        source: "markdown".to_owned(),
                    }
                    .into(),
                )?;
            }
        }
        Kind::Html => {
            if let Some(source) = text::whole(path, limits, position, &mut skips)? {
                match html::text(&source) {
                    Some((text, lang)) => {
                        sink(
                            Document {
                                text,
                                lang,
                                source: "html".to_owned(),
                            }
                            .into(),
                        )?;
                    }
                    None => skips.add(path, 1, SkipReason::TooDeep),
                }
            }
        }
    }
    Ok(skips)
}

/// The files below the given paths, in an order that depends on names alone.
///
/// A file is taken whatever its name (and [`extract`] may then refuse it); of a directory, every file
/// of a known kind, but nothing hidden, nothing behind a link to a directory, and nothing in a
/// directory named `heldout`: that name marks text on which models are measured.
pub fn files(paths: &[PathBuf]) -> Result<Vec<PathBuf>, FileError> {
    let mut found = Vec::new();
    for path in paths {
        let meta = fs::metadata(path).map_err(|e| FileError::io("read", path, e))?;
        if meta.is_dir() {
            walk(path, &mut found)?;
        } else {
            found.push(path.clone());
        }
    }
    Ok(found)
}

fn walk(dir: &Path, found: &mut Vec<PathBuf>) -> Result<(), FileError> {
    let failed = |e| FileError::io("read", dir, e);
    let mut entries = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        entries.push((entry.path(), entry.file_type().map_err(failed)?));
    }
    entries.sort_by(|a, b| a.0.cmp(&b.0));
    for (path, kind) in entries {
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned());
        let name = name.unwrap_or_default();
        if name.starts_with('.') {
            continue;
        }
        if kind.is_dir() {
            if name != "heldout" {
                walk(&path, found)?;
            }
        } else if kind_of(&path).is_some() && path.is_file() {
            found.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_known_by_name_under_a_compression() {
        let kind = |name: &str| kind_of(Path::new(name));
        assert_eq!(kind("a/b.TXT"), Some(Kind::Text));
        assert_eq!(kind("b.jsonl.zst"), Some(Kind::JsonLines));
        assert_eq!(kind("b.md.gz"), Some(Kind::Markdown));
        assert_eq!(kind("b.parquet"), Some(Kind::Parquet));
        assert_eq!(kind("b.zst"), None);
        assert_eq!(kind("README"), None);
    }

    #[test]
    fn a_directory_is_walked_in_order_without_its_held_out_part() {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            "b.txt",
            "a/z.md",
            "a/.hidden.md",
            "heldout/ko.txt",
            "c.json",
            "a/y.jsonl.gz",
        ] {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        let found = files(&[dir.path().to_path_buf()]).unwrap();
        let names: Vec<_> = found
            .iter()
            .map(|p| p.strip_prefix(dir.path()).unwrap().to_str().unwrap())
            .collect();
        assert_eq!(names, ["a/y.jsonl.gz", "a/z.md", "b.txt"]);
        assert!(files(&[dir.path().join("absent")]).is_err());
    }
}
