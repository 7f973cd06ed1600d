//! Token files: documents as u32 ids, one after another, with the borders between them.
//!
//! ```text
//! 0   8   magic "DOKJATOK"
//! 8   4   version, 1
//! 12  4   vocab_size: every id is below it
//! 16  8   number of tokens, N
//! 24  8   number of documents, M
//! 32  32  SHA-256 of the tokenizer.json that made the ids
//! 64      N ids, u32, then zeros up to a multiple of 8 bytes
//! ...     M + 1 borders, u64: document i is ids border[i]..border[i+1]
//! ```
//! All little-endian. [`Shard::open`] checks everything, every id and border included, so that a
//! loader need not.

use std::io::{Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::atomic::AtomicFile;
use crate::error::FileError;
use crate::hash::{self, FileHash};
use crate::mmap::Mmap;

const MAGIC: &[u8; 8] = b"DOKJATOK";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 64;

/// A token file could not be read or written.
#[derive(Debug, Error)]
pub enum TokensError {
    /// The file itself failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// Not such a file, or a damaged one.
    #[error("{} is no valid token file: {what} (byte {offset}); build it again", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Where.
        offset: u64,
        /// What is wrong there.
        what: &'static str,
    },
    /// An id that the tokenizer cannot have made.
    #[error("{}: token id {id} is not below the vocabulary size {vocab_size}", path.display())]
    Id {
        /// The file.
        path: PathBuf,
        /// The id.
        id: u32,
        /// The bound.
        vocab_size: u32,
    },
    /// The tokenizer's digest is not 64 hexadecimal digits.
    #[error("{text:?} is no SHA-256 digest of a tokenizer")]
    Digest {
        /// What was given.
        text: String,
    },
}

/// What a finished token file holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardInfo {
    /// Number of tokens.
    pub tokens: u64,
    /// Number of documents.
    pub documents: u64,
    /// Size and digest of the file.
    pub hash: FileHash,
}

/// Writes a token file; it appears at its path on [`ShardWriter::finish`].
pub struct ShardWriter {
    path: PathBuf,
    file: AtomicFile,
    vocab_size: u32,
    tokenizer: [u8; 32],
    borders: Vec<u64>, // M + 1
}

impl ShardWriter {
    /// Begins a file of ids below `vocab_size`, made by the tokenizer of this digest.
    pub fn create(
        path: &Path,
        vocab_size: u32,
        tokenizer_sha256: &str,
    ) -> Result<ShardWriter, TokensError> {
        let mut tokenizer = [0u8; 32];
        hex::decode_to_slice(tokenizer_sha256, &mut tokenizer).map_err(|_| {
            TokensError::Digest {
                text: tokenizer_sha256.to_string(),
            }
        })?;
        let mut file = AtomicFile::create(path)?;
        file.write_all(&[0; HEADER_BYTES])
            .map_err(|e| FileError::io("write", path, e))?;
        let borders = vec![0];
        Ok(ShardWriter {
            path: path.to_path_buf(),
            file,
            vocab_size,
            tokenizer,
            borders,
        })
    }

    /// Appends one document, which may be empty.
    pub fn push_document(&mut self, ids: &[u32]) -> Result<(), TokensError> {
        if let Some(&id) = ids.iter().find(|id| **id >= self.vocab_size) {
            let (path, vocab_size) = (self.path.clone(), self.vocab_size);
            return Err(TokensError::Id {
                path,
                id,
                vocab_size,
            });
        }
        let mut block = Vec::with_capacity(4 << 12);
        for chunk in ids.chunks(1 << 12) {
            block.clear();
            block.extend(chunk.iter().flat_map(|id| id.to_le_bytes()));
            self.file
                .write_all(&block)
                .map_err(|e| FileError::io("write", &self.path, e))?;
        }
        self.borders.push(self.tokens() + ids.len() as u64);
        Ok(())
    }

    /// Tokens so far.
    pub fn tokens(&self) -> u64 {
        self.borders.last().copied().unwrap_or(0)
    }

    /// Completes the file.
    pub fn finish(mut self) -> Result<ShardInfo, TokensError> {
        let (tokens, documents) = (self.tokens(), self.borders.len() as u64 - 1);
        let mut header = Vec::with_capacity(HEADER_BYTES);
        header.extend_from_slice(MAGIC);
        header.extend_from_slice(&VERSION.to_le_bytes());
        header.extend_from_slice(&self.vocab_size.to_le_bytes());
        header.extend_from_slice(&tokens.to_le_bytes());
        header.extend_from_slice(&documents.to_le_bytes());
        header.extend_from_slice(&self.tokenizer);
        let mut tail = vec![0u8; if tokens % 2 == 1 { 4 } else { 0 }];
        tail.extend(self.borders.iter().flat_map(|b| b.to_le_bytes()));
        let file = &mut self.file;
        file.write_all(&tail)
            .and_then(|()| file.seek(SeekFrom::Start(0)))
            .and_then(|_| file.write_all(&header))
            .map_err(|e| FileError::io("write", &self.path, e))?;
        self.file.commit()?;
        Ok(ShardInfo {
            tokens,
            documents,
            hash: hash::hash_file(&self.path)?,
        })
    }
}

/// A mapped token file.
#[derive(Debug)]
pub struct Shard {
    map: Mmap,
    tokens: Range<usize>,  // in bytes
    borders: Range<usize>, // in bytes
    vocab_size: u32,
    tokenizer_sha256: String,
}

impl Shard {
    /// Maps and checks a file.
    pub fn open(path: &Path) -> Result<Shard, TokensError> {
        let map = Mmap::open(path)?;
        let invalid = |offset: usize, what| TokensError::Invalid {
            path: path.to_path_buf(),
            offset: offset as u64,
            what,
        };
        let bytes = map.bytes();
        let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else {
            return Err(invalid(bytes.len(), "it ends within the header"));
        };
        let u32_at =
            |at: usize| u32::from_le_bytes(*header[at..].first_chunk().expect("in header"));
        let u64_at =
            |at: usize| u64::from_le_bytes(*header[at..].first_chunk().expect("in header"));
        if &header[..8] != MAGIC {
            return Err(invalid(0, "it does not begin with DOKJATOK"));
        }
        if u32_at(8) != VERSION {
            return Err(invalid(8, "its version is not 1"));
        }
        let vocab_size = u32_at(12);
        let layout = || {
            let tokens = usize::try_from(u64_at(16)).ok()?.checked_mul(4)?;
            let tokens_end = tokens.checked_add(HEADER_BYTES)?;
            let borders_start = tokens_end.checked_next_multiple_of(8)?;
            let borders = usize::try_from(u64_at(24))
                .ok()?
                .checked_add(1)?
                .checked_mul(8)?;
            Some((
                tokens_end,
                borders_start,
                borders_start.checked_add(borders)?,
            ))
        };
        let (tokens_end, borders_start, end) =
            layout().ok_or_else(|| invalid(16, "its counts are impossible"))?;
        if end != bytes.len() {
            return Err(invalid(
                bytes.len(),
                "its length is not what its counts demand",
            ));
        }
        if bytes[tokens_end..borders_start].iter().any(|b| *b != 0) {
            return Err(invalid(tokens_end, "the padding is not zero"));
        }
        let tokenizer_sha256 = hex::encode(&header[32..64]);
        let (tokens, borders) = (HEADER_BYTES..tokens_end, borders_start..end);
        let shard = Shard {
            map,
            tokens,
            borders,
            vocab_size,
            tokenizer_sha256,
        };

        if let Some(id) = shard
            .ids()
            .iter()
            .copied()
            .max()
            .filter(|id| *id >= vocab_size)
        {
            return Err(TokensError::Id {
                path: path.to_path_buf(),
                id,
                vocab_size,
            });
        }
        let borders = shard.borders();
        if borders.first() != Some(&0) || borders.last() != Some(&(shard.ids().len() as u64)) {
            return Err(invalid(borders_start, "the borders do not span the tokens"));
        }
        if let Some(i) = borders.windows(2).position(|pair| pair[0] > pair[1]) {
            return Err(invalid(
                borders_start + 8 * (i + 1),
                "a document ends before it begins",
            ));
        }
        Ok(shard)
    }

    /// All ids, in order.
    pub fn ids(&self) -> &[u32] {
        self.map
            .u32s(self.tokens.clone())
            .expect("open checked bounds; 64 is a multiple of 4")
    }

    fn borders(&self) -> &[u64] {
        self.map
            .u64s(self.borders.clone())
            .expect("open checked bounds; rounded up to 8")
    }

    /// The number of documents.
    pub fn num_documents(&self) -> usize {
        self.borders().len() - 1
    }

    /// The ids of one document; None when there is no such document.
    pub fn document(&self, idx: usize) -> Option<&[u32]> {
        self.ids().get(self.document_range(idx)?)
    }

    /// Where in [`Shard::ids`] a document lies.
    pub fn document_range(&self, idx: usize) -> Option<Range<usize>> {
        let borders = self.borders();
        let (start, end) = (borders.get(idx)?, borders.get(idx.checked_add(1)?)?);
        Some(*start as usize..*end as usize)
    }

    /// Every id is below it.
    pub fn vocab_size(&self) -> u32 {
        self.vocab_size
    }

    /// The digest of the tokenizer that made the ids.
    pub fn tokenizer_sha256(&self) -> &str {
        &self.tokenizer_sha256
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(documents: &[Vec<u32>]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("train-00000.tokens");
        let mut writer = ShardWriter::create(&path, 1000, &"ab".repeat(32)).unwrap();
        for ids in documents {
            writer.push_document(ids).unwrap();
        }
        let info = writer.finish().unwrap();
        assert_eq!(info.documents as usize, documents.len());
        assert_eq!(
            info.tokens as usize,
            documents.iter().map(Vec::len).sum::<usize>()
        );
        assert_eq!(info.hash, hash::hash_file(&path).unwrap());
        (dir, path)
    }

    #[test]
    fn documents_read_back_empty_ones_too() {
        let documents = vec![vec![1, 2, 3], vec![], vec![999], vec![]];
        let (_dir, path) = written(&documents);
        let shard = Shard::open(&path).unwrap();
        let read: Vec<Vec<u32>> = (0..shard.num_documents())
            .map(|i| shard.document(i).unwrap().to_vec())
            .collect();
        assert_eq!(read, documents);
        assert_eq!(shard.ids(), [1, 2, 3, 999]);
        assert!(shard.document(4).is_none() && shard.document(usize::MAX).is_none());
        assert_eq!(
            (shard.vocab_size(), shard.tokenizer_sha256()),
            (1000, &*"ab".repeat(32))
        );
    }

    #[test]
    fn no_document_is_a_valid_file() {
        let (_dir, path) = written(&[]);
        let shard = Shard::open(&path).unwrap();
        assert_eq!((shard.num_documents(), shard.ids().len()), (0, 0));
    }

    #[test]
    fn an_id_beyond_the_vocabulary_is_refused_on_both_sides() {
        let (_dir, path) = written(&[vec![5]]);
        let mut writer = ShardWriter::create(&path, 1000, &"ab".repeat(32)).unwrap();
        assert!(matches!(
            writer.push_document(&[1000]),
            Err(TokensError::Id { id: 1000, .. })
        ));
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[64..68].copy_from_slice(&1000u32.to_le_bytes());
        std::fs::write(&path, bytes).unwrap();
        assert!(matches!(
            Shard::open(&path),
            Err(TokensError::Id { id: 1000, .. })
        ));
    }

    proptest! {
        #[test]
        fn damaged_files_are_errors_or_stay_in_bounds(
            documents in prop::collection::vec(prop::collection::vec(0u32..1000, 0..9), 0..5),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
            cut in any::<prop::sample::Index>(),
            cuts in any::<bool>(),
        ) {
            let (_dir, path) = written(&documents);
            let mut bytes = std::fs::read(&path).unwrap();
            for (at, value) in changes {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            if cuts {
                bytes.truncate(cut.index(bytes.len()));
            }
            std::fs::write(&path, &bytes).unwrap();
            if let Ok(shard) = Shard::open(&path) {
                let total: usize = (0..shard.num_documents())
                    .map(|i| shard.document(i).unwrap().len())
                    .sum();
                prop_assert_eq!(total, shard.ids().len());
            }
        }
    }
}
