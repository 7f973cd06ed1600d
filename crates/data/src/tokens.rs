//! Documents as token ids, cached beside the data.
//!
//! `tokens/<first 16 digits of the tokenizer's SHA-256>/` holds one token file a split and language
//! (`train.ko.tokens`), in the order of the shards, and `index.json`, which ties them to the manifest
//! and the tokenizer by their digests. The ids are the text's alone: separators are the loader's.

use std::{
    collections::BTreeMap,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use formats::{
    FileError, atomic, hash,
    json::{self, JsonError},
    tokens::{Shard, ShardWriter, TokensError},
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    Document,
    manifest::{Manifest, ManifestError, Split},
    shard::{self, ShardError},
};

/// How text becomes ids: what this crate needs to know of a tokenizer.
pub struct Encoder<'a> {
    /// Ids of a text, without special tokens.
    pub encode: &'a (dyn Fn(&str) -> Vec<u32> + Sync),
    /// Every id is below this.
    pub vocab_size: u32,
    /// SHA-256 of the tokenizer's file, in hexadecimal.
    pub sha256: String,
    /// The id that stands between documents.
    pub separator: u32,
}

/// Token files that cannot be made or used.
#[derive(Debug, Error)]
pub enum TokenizeError {
    /// The data directory.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Its documents.
    #[error(transparent)]
    Shard(#[from] ShardError),
    /// The token files.
    #[error(transparent)]
    Tokens(#[from] TokensError),
    /// The index of the token files.
    #[error(transparent)]
    Index(#[from] JsonError),
    /// The file system.
    #[error(transparent)]
    File(#[from] FileError),
    /// Cached files that belong to other data or another tokenizer.
    #[error(
        "{} does not belong to this data and tokenizer: its {what} differs; delete that directory, \
         it is made again from the data",
        dir.display()
    )]
    Stale {
        /// The directory of the cache.
        dir: PathBuf,
        /// What differs.
        what: &'static str,
    },
    /// A cached file whose bytes are not those that were written.
    #[error(
        "{} was changed since it was made; delete the directory it lies in, it is made again from \
         the data",
        path.display()
    )]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// The caller asked to stop.
    #[error("stopped as asked; nothing was written")]
    Interrupted,
}

#[derive(Serialize, Deserialize)]
struct Index {
    manifest_sha256: String,
    tokenizer_sha256: String,
    files: Vec<IndexEntry>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct IndexEntry {
    file: String,
    split: Split,
    lang: String,
    documents: u64,
    tokens: u64,
    text_bytes: u64,
    sha256: String,
}

/// The documents of one split and language.
pub struct TokenFile {
    /// Where it lies.
    pub path: PathBuf,
    /// Side of the split.
    pub split: Split,
    /// Language.
    pub lang: String,
    /// Bytes of the texts.
    pub text_bytes: u64,
    /// SHA-256 of the file.
    pub sha256: String,
    /// The ids.
    pub shard: Shard,
}

/// All documents of a data directory as ids.
pub struct TokenData {
    /// The directory of the token files.
    pub dir: PathBuf,
    /// SHA-256 of the data directory's manifest.
    pub manifest_sha256: String,
    /// SHA-256 of the tokenizer's file.
    pub tokenizer_sha256: String,
    /// The id that stands between documents.
    pub separator: u32,
    /// By split, then by language.
    pub files: Vec<TokenFile>,
}

impl TokenData {
    /// Number of tokens of one split, separators not counted.
    pub fn num_tokens(&self, split: Split) -> u64 {
        self.of(split)
            .map(|file| file.shard.ids().len() as u64)
            .sum()
    }

    /// Bytes of text of one split.
    pub fn text_bytes(&self, split: Split) -> u64 {
        self.of(split).map(|file| file.text_bytes).sum()
    }

    /// The files that the ids are read from, and their index: what a run records together with the
    /// order of its batches.
    pub fn paths(&self) -> Vec<PathBuf> {
        let index = self.dir.join(INDEX);
        let files = self.files.iter().map(|file| file.path.clone());
        std::iter::once(index).chain(files).collect()
    }

    /// The files of one split.
    pub fn of(&self, split: Split) -> impl Iterator<Item = &TokenFile> {
        self.files.iter().filter(move |file| file.split == split)
    }
}

const INDEX: &str = "index.json";

/// Documents encoded at a time, spread over the threads, and the bytes after which no more are taken.
const CHUNK: usize = 2048;
const CHUNK_BYTES: usize = 16 << 20;

/// Opens the token files of a data directory, making them first if they are not there. `progress` is
/// told the documents done and all there are, and may stop it.
pub fn tokenize(
    dir: &Path,
    encoder: &Encoder<'_>,
    num_threads: usize,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<TokenData, TokenizeError> {
    let name = encoder.sha256.get(..16).unwrap_or(&encoder.sha256);
    let tokens_dir = dir.join("tokens");
    let cache = tokens_dir.join(name);
    let manifest = Manifest::open(dir)?;
    let manifest_sha256 = Manifest::sha256(dir)?;
    if !cache.exists() {
        formats::run_dir::make_dir(&tokens_dir)?;
        atomic::write_dir(&cache, 0, |tmp| {
            write(
                dir,
                tmp,
                &manifest,
                &manifest_sha256,
                encoder,
                num_threads,
                progress,
            )
        })?;
    }
    open(&cache, manifest_sha256, encoder)
}

fn write(
    dir: &Path,
    out: &Path,
    manifest: &Manifest,
    manifest_sha256: &str,
    encoder: &Encoder<'_>,
    num_threads: usize,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<(), TokenizeError> {
    let mut files = Vec::new();
    let mut done = 0;
    for split in [Split::Train, Split::Heldout] {
        let mut writers: BTreeMap<String, (ShardWriter, u64)> = BTreeMap::new();
        let mut records = shard::records::<Document>(dir, split)?;
        loop {
            let chunk = next_chunk(&mut records)?;
            if chunk.is_empty() {
                break;
            }
            let ids = encode_all(&chunk, encoder, num_threads);
            for (document, ids) in chunk.iter().zip(&ids) {
                // The language names a file: anything that is no plain code goes to one of its own.
                let lang = &document.lang;
                let is_code = !lang.is_empty()
                    && lang.len() <= 8
                    && lang.bytes().all(|b| b.is_ascii_lowercase());
                let lang = if is_code {
                    lang
                } else {
                    crate::language::UNKNOWN
                };
                if !writers.contains_key(lang) {
                    let path = out.join(file_name(split, lang));
                    let writer = ShardWriter::create(&path, encoder.vocab_size, &encoder.sha256)?;
                    writers.insert(lang.to_owned(), (writer, 0));
                }
                let (writer, bytes) = writers.get_mut(lang).expect("it was put there above");
                writer.push_document(ids)?;
                *bytes += document.text.len() as u64;
            }
            done += chunk.len() as u64;
            if progress(done, manifest.kept_documents).is_break() {
                return Err(TokenizeError::Interrupted);
            }
        }
        for (lang, (writer, text_bytes)) in writers {
            let info = writer.finish()?;
            files.push(IndexEntry {
                file: file_name(split, &lang),
                split,
                lang,
                documents: info.documents,
                tokens: info.tokens,
                text_bytes,
                sha256: info.hash.sha256,
            });
        }
    }
    let index = Index {
        manifest_sha256: manifest_sha256.to_owned(),
        tokenizer_sha256: encoder.sha256.clone(),
        files,
    };
    json::write(&out.join(INDEX), &index)?;
    Ok(())
}

fn file_name(split: Split, lang: &str) -> String {
    format!("{}.{lang}.tokens", split.name())
}

fn next_chunk(
    records: &mut impl Iterator<Item = Result<Document, ShardError>>,
) -> Result<Vec<Document>, ShardError> {
    let mut chunk = Vec::new();
    let mut bytes = 0;
    while chunk.len() < CHUNK
        && bytes < CHUNK_BYTES
        && let Some(document) = records.next().transpose()?
    {
        bytes += document.text.len();
        chunk.push(document);
    }
    Ok(chunk)
}

/// The ids of each document; the same whatever the number of threads. A thread takes the next document
/// when it is done with one: they differ in length a thousandfold.
fn encode_all(documents: &[Document], encoder: &Encoder<'_>, num_threads: usize) -> Vec<Vec<u32>> {
    let next = AtomicUsize::new(0);
    let encode = encoder.encode;
    let work = || {
        let mut done = Vec::new();
        loop {
            let idx = next.fetch_add(1, Ordering::Relaxed);
            match documents.get(idx) {
                Some(document) => done.push((idx, encode(&document.text))),
                None => return done,
            }
        }
    };
    let mut ids = vec![Vec::new(); documents.len()];
    thread::scope(|scope| {
        let others: Vec<_> = (1..num_threads.min(documents.len()))
            .map(|_| scope.spawn(work))
            .collect();
        let mut done = work();
        for worker in others {
            match worker.join() {
                Ok(part) => done.extend(part),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        done.into_iter().for_each(|(idx, part)| ids[idx] = part);
    });
    ids
}

fn open(
    cache: &Path,
    manifest_sha256: String,
    encoder: &Encoder<'_>,
) -> Result<TokenData, TokenizeError> {
    let stale = |what| TokenizeError::Stale {
        dir: cache.to_path_buf(),
        what,
    };
    let index: Index = json::read(&cache.join(INDEX))?;
    if index.manifest_sha256 != manifest_sha256 {
        return Err(stale("manifest"));
    }
    if index.tokenizer_sha256 != encoder.sha256 {
        return Err(stale("tokenizer"));
    }
    let mut files = Vec::with_capacity(index.files.len());
    for entry in index.files {
        if entry.file != file_name(entry.split, &entry.lang) || entry.lang.contains(['/', '.']) {
            return Err(stale("list of files"));
        }
        let path = cache.join(&entry.file);
        // The order of batches is committed by these digests, so they must be true.
        if hash::sha256_file(&path)? != entry.sha256 {
            return Err(TokenizeError::Changed { path });
        }
        let shard = Shard::open(&path)?;
        if shard.tokenizer_sha256() != encoder.sha256 || shard.vocab_size() != encoder.vocab_size {
            return Err(stale("tokenizer"));
        }
        if shard.ids().len() as u64 != entry.tokens
            || shard.num_documents() as u64 != entry.documents
        {
            return Err(stale("number of tokens"));
        }
        files.push(TokenFile {
            path,
            split: entry.split,
            lang: entry.lang,
            text_bytes: entry.text_bytes,
            sha256: entry.sha256,
            shard,
        });
    }
    Ok(TokenData {
        dir: cache.to_path_buf(),
        manifest_sha256,
        tokenizer_sha256: encoder.sha256.clone(),
        separator: encoder.separator,
        files,
    })
}
