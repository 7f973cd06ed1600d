//! Shards: zstd-compressed JSON Lines, a new file every so many bytes of text.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read, Write},
    marker::PhantomData,
    path::{Path, PathBuf},
};

use formats::{FileError, atomic::AtomicFile, hash::HashingWriter};
use serde::{Serialize, de::DeserializeOwned};
use thiserror::Error;

use crate::manifest::{Manifest, ManifestError, ShardEntry, Split};

/// Level 9: about a tenth smaller than the default at a speed that is still above the tokenizer's.
const ZSTD_LEVEL: i32 = 9;

/// A shard that cannot be read or written.
#[derive(Debug, Error)]
pub enum ShardError {
    /// The manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The file system.
    #[error(transparent)]
    File(#[from] FileError),
    /// A line that the builder did not write.
    #[error("{} line {line} is damaged: {what}; build the data again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: u64,
        /// What is wrong.
        what: String,
    },
}

type Encoder = zstd::stream::write::Encoder<'static, HashingWriter<AtomicFile>>;

/// Writes the shards of one split.
pub(crate) struct SplitWriter {
    dir: PathBuf,
    split: Split,
    shard_bytes: u64,
    open: Option<(PathBuf, Encoder, ShardEntry)>,
    finished: Vec<ShardEntry>,
}

impl SplitWriter {
    pub(crate) fn new(dir: &Path, split: Split, shard_bytes: u64) -> SplitWriter {
        SplitWriter {
            dir: dir.to_path_buf(),
            split,
            shard_bytes,
            open: None,
            finished: vec![],
        }
    }

    /// Appends one record with `text_bytes` of text.
    pub(crate) fn push(
        &mut self,
        record: &impl Serialize,
        text_bytes: u64,
    ) -> Result<(), FileError> {
        if self
            .open
            .as_ref()
            .is_some_and(|(.., entry)| entry.text_bytes >= self.shard_bytes)
        {
            self.close()?;
        }
        let (path, encoder, entry) = match &mut self.open {
            Some(open) => open,
            none => {
                let file = format!("{}-{:05}.jsonl.zst", self.split.name(), self.finished.len());
                let path = self.dir.join(&file);
                let out = HashingWriter::new(AtomicFile::create(&path)?);
                let failed = |e| FileError::io("write", &path, e);
                let mut encoder = Encoder::new(out, ZSTD_LEVEL).map_err(failed)?;
                encoder.include_checksum(true).map_err(failed)?;
                let entry = ShardEntry {
                    file,
                    split: self.split,
                    documents: 0,
                    text_bytes: 0,
                    bytes: 0,
                    sha256: String::new(),
                };
                none.insert((path, encoder, entry))
            }
        };
        let mut line = serde_json::to_vec(record).expect("records are plain strings");
        line.push(b'\n');
        encoder
            .write_all(&line)
            .map_err(|e| FileError::io("write", path, e))?;
        entry.documents += 1;
        entry.text_bytes += text_bytes;
        Ok(())
    }

    fn close(&mut self) -> Result<(), FileError> {
        if let Some((path, encoder, mut entry)) = self.open.take() {
            let out = encoder
                .finish()
                .map_err(|e| FileError::io("write", &path, e))?;
            let (file, hash) = out.finish();
            file.commit()?;
            (entry.bytes, entry.sha256) = (hash.bytes, hash.sha256);
            self.finished.push(entry);
        }
        Ok(())
    }

    pub(crate) fn finish(mut self) -> Result<Vec<ShardEntry>, FileError> {
        self.close()?;
        Ok(self.finished)
    }
}

/// The records of one split of a data directory, in order.
pub struct Records<T> {
    dir: PathBuf,
    left: std::vec::IntoIter<ShardEntry>,
    open: Option<(PathBuf, Box<dyn BufRead>, u64)>,
    line: Vec<u8>,
    kind: PhantomData<T>,
}

/// A longer line was not written by the builder.
const MAX_LINE_BYTES: u64 = 1 << 30;

/// The documents (or dialogues) of one split.
pub fn records<T: DeserializeOwned>(dir: &Path, split: Split) -> Result<Records<T>, ShardError> {
    let manifest = Manifest::open(dir)?;
    let left: Vec<ShardEntry> = manifest.shards_of(split).cloned().collect();
    Ok(Records {
        dir: dir.to_path_buf(),
        left: left.into_iter(),
        open: None,
        line: Vec::new(),
        kind: PhantomData,
    })
}

impl<T: DeserializeOwned> Records<T> {
    fn read(&mut self) -> Result<Option<T>, ShardError> {
        loop {
            let Some((path, reader, number)) = &mut self.open else {
                let Some(entry) = self.left.next() else {
                    return Ok(None);
                };
                let path = self.dir.join(&entry.file);
                let failed = |e| FileError::io("read", &path, e);
                let file = File::open(&path).map_err(failed)?;
                let decoder = zstd::stream::read::Decoder::new(file).map_err(failed)?;
                self.open = Some((
                    path,
                    Box::new(BufReader::with_capacity(1 << 18, decoder)),
                    0,
                ));
                continue;
            };
            self.line.clear();
            *number += 1;
            let damaged = |what: String| ShardError::Damaged {
                path: path.clone(),
                line: *number,
                what,
            };
            let got = (&mut *reader)
                .take(MAX_LINE_BYTES)
                .read_until(b'\n', &mut self.line)
                .map_err(|e: io::Error| damaged(e.to_string()))?;
            if got == 0 {
                self.open = None;
                continue;
            }
            return serde_json::from_slice(&self.line)
                .map(Some)
                .map_err(|e| damaged(e.to_string()));
        }
    }
}

impl<T: DeserializeOwned> Iterator for Records<T> {
    type Item = Result<T, ShardError>;

    fn next(&mut self) -> Option<Self::Item> {
        let result = self.read().transpose();
        if matches!(result, Some(Err(_))) {
            // One error, then the end.
            self.open = None;
            self.left = Vec::new().into_iter();
        }
        result
    }
}
