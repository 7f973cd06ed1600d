//! The tokenizer: text to ids and back.
//!
//! ```text
//! encode:  text -> added tokens apart -> NFC -> added tokens of normalised text apart
//!               -> pre-tokens -> byte-pair merges -> ids
//! decode:  ids -> bytes of each token -> text, with U+FFFD for what is not UTF-8
//! ```
//!
//! It adds no tokens of its own (K-EXAONE writes no BOS) and never truncates or pads.
//! Tested against the Hugging Face `tokenizers` library in `tests/`.

use crate::added::{AddedMatcher, Part};
use crate::bpe::{Bpe, Merge, Scratch};
use crate::byte_alphabet::{char_of_byte, unspell};
use crate::error::{LoadError, MissingSpecial, SaveError};
use crate::json;
use crate::pretokenize::PreTokenizer;
use crate::special::{AddedToken, Specials};
use std::borrow::Cow;
use std::collections::HashMap;
use std::io::Write;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick};

/// Ids must be below this: four times the largest published vocabulary (262,144).
pub const MAX_VOCAB_SIZE: u32 = 1 << 20;

/// Four times the size of the largest published `tokenizer.json` files (about 33 MB), rounded up.
const MAX_FILE_BYTES: u64 = 1 << 27;

/// A byte-level BPE tokenizer. Share it between threads behind a reference or an `Arc`.
#[derive(Debug)]
pub struct Tokenizer {
    pub(crate) parts: TokenizerParts,
    ids: HashMap<Box<str>, u32>,
    bytes: Vec<Vec<u8>>, // per id; empty for an id without a token
    is_added: Vec<bool>,
    is_special: Vec<bool>,
    bpe: Bpe,
    // Without the merges that would produce an added token; only where there are such merges.
    bpe_ordinary: Option<Bpe>,
    added_raw: AddedMatcher,
    added_normalized: AddedMatcher,
}

/// What a `tokenizer.json` says, checked for form but not for consistency.
#[derive(Debug)]
pub(crate) struct TokenizerParts {
    pub(crate) vocab: Vec<(String, u32)>, // as spelled in the byte alphabet
    pub(crate) merges: Vec<(String, String)>, // lowest rank first
    pub(crate) added: Vec<(AddedToken, u32)>,
    pub(crate) has_nfc: bool,
    pub(crate) pre_tokenizer: PreTokenizer,
    pub(crate) unk_token: Option<String>,
    pub(crate) post_processor: serde_json::Value, // kept for writing; encoding adds no tokens
}

impl Tokenizer {
    /// Reads the text of a `tokenizer.json`.
    ///
    /// # Errors
    /// If it is malformed, inconsistent, beyond the limits, or uses what this crate does not implement.
    pub fn from_json(text: &str) -> Result<Self, LoadError> {
        check_size(text.len() as u64)?;
        Self::from_parts(json::read(text)?)
    }

    /// Reads a `tokenizer.json` file.
    ///
    /// # Errors
    /// As `from_json`, and if the file cannot be read.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, LoadError> {
        let path = path.as_ref();
        let io_error = |source| LoadError::Io {
            path: path.to_owned(),
            source,
        };
        check_size(std::fs::metadata(path).map_err(io_error)?.len())?;
        Self::from_json(&std::fs::read_to_string(path).map_err(io_error)?)
    }

    /// The text of the `tokenizer.json`, in the form that the Hugging Face library writes.
    pub fn to_json(&self) -> String {
        json::write(&self.parts)
    }

    /// Writes a `tokenizer.json` file; what was there before stays whole until the new one is.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), SaveError> {
        let path = path.as_ref();
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        let write = || {
            let mut file = std::fs::File::create(&partial)?;
            file.write_all(self.to_json().as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&partial, path)
        };
        write().map_err(|source| {
            // The first error is the one to report; a leftover is harmless.
            let _ = std::fs::remove_file(&partial);
            SaveError {
                path: path.to_owned(),
                source,
            }
        })
    }

    pub(crate) fn from_parts(parts: TokenizerParts) -> Result<Self, LoadError> {
        let mut ids: HashMap<Box<str>, u32> = HashMap::with_capacity(parts.vocab.len());
        let mut owners: Vec<Option<&str>> = Vec::new();
        let mut claim = |token: &str, id: u32| -> Result<(), LoadError> {
            if token.is_empty() {
                return Err(LoadError::EmptyToken { id });
            }
            if id >= MAX_VOCAB_SIZE {
                let (token, id) = (shorten(token), u64::from(id));
                return Err(LoadError::IdTooLarge {
                    token,
                    id,
                    limit: MAX_VOCAB_SIZE,
                });
            }
            match ids.insert(token.into(), id) {
                Some(first) if first != id => {
                    let token = shorten(token);
                    Err(LoadError::DuplicateToken {
                        token,
                        first,
                        second: id,
                    })
                }
                _ => Ok(()),
            }
        };
        for (token, id) in &parts.vocab {
            claim(token, *id)?;
        }
        for (token, id) in &parts.added {
            claim(&token.content, *id)?;
        }
        let contents = parts.vocab.iter().map(|(token, id)| (token.as_str(), *id));
        let added = parts
            .added
            .iter()
            .map(|(token, id)| (token.content.as_str(), *id));
        for (token, id) in contents.chain(added) {
            if owners.len() <= id as usize {
                owners.resize(id as usize + 1, None);
            }
            match owners[id as usize].replace(token) {
                Some(first) if first != token => {
                    let (first, second) = (shorten(first), shorten(token));
                    return Err(LoadError::DuplicateId { id, first, second });
                }
                _ => {}
            }
        }
        let vocab_size = owners.len();
        let bytes: Vec<Vec<u8>> = owners
            .iter()
            .map(|token| token.map(unspell).unwrap_or_default())
            .collect();
        let (mut is_added, mut is_special) = (vec![false; vocab_size], vec![false; vocab_size]);
        for (token, id) in &parts.added {
            is_added[*id as usize] = true;
            is_special[*id as usize] |= token.is_special;
        }

        let mut byte_ids = [0; 256];
        for byte in 0..=255 {
            let spelling = char_of_byte(byte);
            byte_ids[usize::from(byte)] = *ids
                .get(spelling.encode_utf8(&mut [0; 4]) as &str)
                .ok_or(LoadError::MissingByte { byte, spelling })?;
        }
        let merges = resolve_merges(&parts.merges, &ids)?;
        let ranked = || (0..).zip(merges.iter().copied());
        let bytes_of = |id: u32| bytes[id as usize].as_slice();
        let bpe = Bpe::new(byte_ids, ranked(), bytes_of);
        let makes_added = |merge: &Merge| is_added[merge.product as usize];
        let bpe_ordinary = merges.iter().any(makes_added).then(|| {
            Bpe::new(
                byte_ids,
                ranked().filter(|(_, merge)| !makes_added(merge)),
                bytes_of,
            )
        });

        let with = |is_normalized: bool| {
            let chosen =
                move |(token, _): &&(AddedToken, u32)| token.is_normalized == is_normalized;
            parts.added.iter().filter(chosen)
        };
        let added_raw =
            AddedMatcher::new(with(false).map(|(token, id)| (token.content.as_str(), *id)));
        // Looked for in normalised text, so in normalised form.
        let normalized: Vec<(Cow<'_, str>, u32)> = with(true)
            .map(|(token, id)| (normalize(&token.content, parts.has_nfc), *id))
            .collect();
        let added_normalized = AddedMatcher::new(
            normalized
                .iter()
                .map(|(content, id)| (content.as_ref(), *id)),
        );
        drop(normalized);
        Ok(Tokenizer {
            ids,
            bytes,
            is_added,
            is_special,
            bpe,
            bpe_ordinary,
            added_raw,
            added_normalized,
            parts,
        })
    }

    /// One more than the highest id.
    pub fn vocab_size(&self) -> usize {
        self.bytes.len()
    }

    /// The id of a token: an added token by its content, any other as spelled in the byte alphabet.
    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.ids.get(token).copied()
    }

    /// The bytes that a token stands for; `None` for an id that no token has.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.bytes
            .get(id as usize)
            .map(Vec::as_slice)
            .filter(|bytes| !bytes.is_empty())
    }

    /// Whether `decode` leaves the token out when asked to skip special tokens.
    pub fn is_special(&self, id: u32) -> bool {
        self.is_special.get(id as usize).copied().unwrap_or(false)
    }

    /// Whether the token is an added one: found in text as a whole, never made by merges of
    /// `encode_ordinary`.
    pub fn is_added(&self, id: u32) -> bool {
        self.is_added.get(id as usize).copied().unwrap_or(false)
    }

    /// The special tokens by role.
    ///
    /// # Errors
    /// Names the first one that the tokenizer lacks.
    pub fn specials(&self) -> Result<Specials, MissingSpecial> {
        Specials::find(|content| self.id_of(content))
    }

    /// Encodes a text in which added tokens may be written out: trusted text only.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::with_capacity(text.len() / 3);
        self.bpe.with_scratch(|scratch| {
            self.added_raw.for_each(text, |part| match part {
                Part::Token(id) => ids.push(id),
                Part::Text(text) => {
                    let text = normalize(text, self.parts.has_nfc);
                    self.added_normalized.for_each(&text, |part| match part {
                        Part::Token(id) => ids.push(id),
                        Part::Text(text) => self.encode_text(&self.bpe, text, scratch, &mut ids),
                    });
                }
            });
        });
        ids
    }

    /// Encodes a text as nothing but text: what looks like a special token becomes ordinary tokens.
    ///
    /// For every text from outside (documents, messages of users). No id of an added token of two or
    /// more bytes is ever returned.
    pub fn encode_ordinary(&self, text: &str) -> Vec<u32> {
        let bpe = self.bpe_ordinary.as_ref().unwrap_or(&self.bpe);
        let mut ids = Vec::with_capacity(text.len() / 3);
        let text = normalize(text, self.parts.has_nfc);
        bpe.with_scratch(|scratch| self.encode_text(bpe, &text, scratch, &mut ids));
        ids
    }

    /// `encode` of each text, on `threads` threads.
    pub fn encode_batch<S: AsRef<str> + Sync>(&self, texts: &[S], threads: usize) -> Vec<Vec<u32>> {
        in_parallel(texts, threads, |text| self.encode(text))
    }

    /// `encode_ordinary` of each text, on `threads` threads.
    pub fn encode_ordinary_batch<S: AsRef<str> + Sync>(
        &self,
        texts: &[S],
        threads: usize,
    ) -> Vec<Vec<u32>> {
        in_parallel(texts, threads, |text| self.encode_ordinary(text))
    }

    fn encode_text(&self, bpe: &Bpe, text: &str, scratch: &mut Scratch, ids: &mut Vec<u32>) {
        let encode = |piece: &str| bpe.encode(piece.as_bytes(), scratch, ids);
        self.parts.pre_tokenizer.for_each(text, encode);
    }

    /// The text of the ids; bytes that are not UTF-8 become U+FFFD, unknown ids are left out.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let kept = ids
            .iter()
            .filter(|&&id| !(skip_special && self.is_special(id)));
        let bytes: Vec<u8> = kept
            .filter_map(|&id| self.token_bytes(id))
            .flatten()
            .copied()
            .collect();
        match String::from_utf8_lossy(&bytes) {
            Cow::Owned(text) => text,
            Cow::Borrowed(text) => text.to_owned(),
        }
    }
}

/// Canonical composition, or the text itself where that changes nothing.
pub(crate) fn normalize(text: &str, has_nfc: bool) -> Cow<'_, str> {
    if !has_nfc || text.is_ascii() || is_nfc_quick(text.chars()) == IsNormalized::Yes {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.nfc().collect())
}

fn check_size(bytes: u64) -> Result<(), LoadError> {
    match bytes > MAX_FILE_BYTES {
        true => Err(LoadError::TooLarge {
            bytes,
            limit: MAX_FILE_BYTES,
        }),
        false => Ok(()),
    }
}

/// The start of a token for a message: hostile tokens may be megabytes long.
pub(crate) fn shorten(token: &str) -> String {
    match token.char_indices().nth(60) {
        Some((end, _)) => format!("{}...", &token[..end]),
        None => token.to_owned(),
    }
}

fn resolve_merges(
    merges: &[(String, String)],
    ids: &HashMap<Box<str>, u32>,
) -> Result<Vec<Merge>, LoadError> {
    let mut seen = std::collections::HashSet::with_capacity(merges.len());
    let mut product = String::new();
    let resolve = |(index, (left, right)): (usize, &(String, String))| {
        let id_of = |token: &str| match ids.get(token) {
            Some(id) => Ok(*id),
            None => Err(LoadError::UnknownMergeToken {
                index,
                token: shorten(token),
            }),
        };
        product.clear();
        product.push_str(left);
        product.push_str(right);
        let merge = Merge {
            left: id_of(left)?,
            right: id_of(right)?,
            product: id_of(&product)?,
        };
        if !seen.insert((merge.left, merge.right)) {
            let (left, right) = (shorten(left), shorten(right));
            return Err(LoadError::DuplicateMerge { index, left, right });
        }
        Ok(merge)
    };
    merges.iter().enumerate().map(resolve).collect()
}

/// `f` of each text; threads take the next text when they are done with one.
fn in_parallel<S: AsRef<str> + Sync>(
    texts: &[S],
    threads: usize,
    f: impl Fn(&str) -> Vec<u32> + Sync,
) -> Vec<Vec<u32>> {
    let threads = threads.clamp(1, texts.len().max(1));
    if threads == 1 {
        return texts.iter().map(|text| f(text.as_ref())).collect();
    }
    let next = AtomicUsize::new(0);
    let results = Mutex::new(vec![Vec::new(); texts.len()]);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(text) = texts.get(index) else { break };
                    let ids = f(text.as_ref());
                    results
                        .lock()
                        .expect("no thread panics while it holds the lock")[index] = ids;
                }
            });
        }
    });
    results
        .into_inner()
        .expect("no thread panics while it holds the lock")
}
