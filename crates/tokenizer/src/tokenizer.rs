//! The tokenizer: text to ids and back.
//!
//! ```text
//! encode:  text -> added tokens apart -> normal form -> added tokens of normalised text apart
//!               -> pre-tokens -> joined by the model -> ids
//! decode:  ids -> text of each token -> text, with U+FFFD for what is not UTF-8
//! ```
//!
//! It adds no tokens of its own unless asked by `encode_with_special_tokens` (K-EXAONE writes no BOS),
//! and never truncates or pads. Tested against the Hugging Face `tokenizers` library in `tests/`.

use crate::added::{AddedMatcher, Part};
use crate::assemble::{ModelParts, TokenizerParts, assemble};
use crate::bpe::Bpe;
use crate::decode::{Plan, TextState, TokenText};
use crate::error::{LoadError, MissingSpecial, SaveError};
use crate::fast_hash::FastMap;
use crate::json;
use crate::pretokenize::Cutter;
use crate::special::Specials;
use crate::spm::Spm;
use std::borrow::Cow;
use std::collections::HashMap;
use std::io::Write;
use std::ops::Range;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Ids must be below this: four times the largest published vocabulary (262,144).
pub const MAX_VOCAB_SIZE: u32 = 1 << 20;

/// Four times the size of the largest published `tokenizer.json` files (about 33 MB), rounded up.
const MAX_FILE_BYTES: u64 = 1 << 27;

/// A tokenizer. Share it between threads behind a reference or an `Arc`.
#[derive(Debug)]
pub struct Tokenizer {
    pub(crate) parts: TokenizerParts,
    pub(crate) ids: HashMap<Box<str>, u32>,
    pub(crate) texts: Vec<Option<TokenText>>, // per id; none for an id without a token
    pub(crate) first_texts: FastMap<u32, Box<[u8]>>, // of tokens that are others at the start of a text
    pub(crate) is_added: Vec<bool>,
    pub(crate) is_special: Vec<bool>,
    pub(crate) model: Model,
    pub(crate) cutter: Cutter,
    pub(crate) plan: Plan,
    pub(crate) added_raw: AddedMatcher,
    pub(crate) added_normalized: AddedMatcher,
}

/// How a pre-token becomes ids.
#[derive(Debug)]
pub(crate) enum Model {
    /// By a list of merges.
    Bpe {
        all: Box<Bpe>,
        /// Without the merges that would produce an added token; only where there are such merges.
        ordinary: Option<Box<Bpe>>,
    },
    /// By scores.
    Spm(Spm),
}

/// Appends the ids of a pre-token.
type EncodePiece<'a> = dyn FnMut(&str, &mut Vec<u32>) + 'a;

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
    ///
    /// It reads back as the same tokenizer. That library reads it too, but for one kind: a vocabulary
    /// joined by scores (from a GGUF file) has a model of the type `Scored`, which the library does not
    /// know and refuses.
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
        assemble(parts)
    }

    /// One more than the highest id.
    pub fn vocab_size(&self) -> usize {
        self.texts.len()
    }

    /// The id of a token: an added token by its content, any other as spelled in the vocabulary (for a
    /// byte-level one, in the byte alphabet).
    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.ids.get(token).copied()
    }

    /// The bytes that a token stands for; `None` for an id that no token has.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.token_text(id).map(|text| &*text.bytes)
    }

    pub(crate) fn token_text(&self, id: u32) -> Option<&TokenText> {
        self.texts.get(id as usize)?.as_ref()
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

    /// Whether the token stands for text that the vocabulary does not know.
    pub fn is_unknown(&self, id: u32) -> bool {
        let unknown = match &self.parts.model {
            ModelParts::Bpe(bpe) => bpe.unk_token.as_deref().and_then(|token| self.id_of(token)),
            ModelParts::Scored(scored) => scored.unk_id,
        };
        unknown == Some(id)
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
        self.with_encoder(false, &mut |encode| {
            self.added_raw.for_each(text, |part| match part {
                Part::Token(id) => ids.push(id),
                Part::Text(at, text) => self.encode_trusted(text, at == 0, encode, &mut ids),
            });
        });
        ids
    }

    /// `encode`, and around it the tokens that the vocabulary asks for (a start, an end): what the
    /// Hugging Face library does for `add_special_tokens=True`. Chat rendering and training data never
    /// have them.
    pub fn encode_with_special_tokens(&self, text: &str) -> Vec<u32> {
        let ids = self.encode(text);
        match &self.parts.post_processor {
            Some(post_processor) => post_processor.apply(ids),
            None => ids,
        }
    }

    /// Encodes a text as nothing but text: what looks like a special token becomes ordinary tokens.
    ///
    /// For every text from outside (documents, messages of users). No id of an added token of two or
    /// more bytes (characters, where a vocabulary spells bytes as those) is ever returned, but that of
    /// the unknown token where a vocabulary needs one.
    pub fn encode_ordinary(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::with_capacity(text.len() / 3);
        self.with_encoder(true, &mut |encode| {
            self.encode_joined(text, true, encode, &mut ids)
        });
        ids
    }

    /// Encodes a text of which some ranges are from outside: added tokens are found in what lies
    /// between them, and none shares a byte with a range. Text is otherwise encoded as it stands, across
    /// the ends of ranges too: where no content spells a token the ids are those of `encode`. (Not so
    /// beside an added token of normalised text: the trusted stretch that it stands in is a text apart.)
    ///
    /// `untrusted` are ranges of bytes, in order and apart, at the ends of characters. A range that is
    /// not makes all of the text untrusted.
    pub fn encode_guarded(&self, text: &str, untrusted: &[Range<usize>]) -> Vec<u32> {
        let mut end = 0;
        let is_sound = untrusted.iter().all(|range| {
            let is_next = end <= range.start && range.start <= range.end;
            end = range.end;
            is_next && text.is_char_boundary(range.start) && text.is_char_boundary(range.end)
        });
        if !is_sound {
            return self.encode_ordinary(text);
        }
        let closed: Vec<Range<usize>> = untrusted
            .iter()
            .filter(|range| !range.is_empty())
            .cloned()
            .collect();
        let mut ids = Vec::with_capacity(text.len() / 3);
        self.with_encoder(true, &mut |encode| {
            self.added_raw
                .for_each_outside(text, &closed, |part| match part {
                    Part::Token(id) => ids.push(id),
                    Part::Text(at, part) => {
                        let first = closed.partition_point(|range| range.end <= at);
                        self.encode_part(part, at, &closed[first..], encode, &mut ids);
                    }
                });
        });
        ids
    }

    /// A stretch between added tokens of raw text that starts at the byte `at`; `closed` are the
    /// untrusted ranges from there on.
    ///
    /// It is one text, but for trusted stretches in which added tokens of normalised text stand: those
    /// are encoded apart, since what is normalised has no places to tell which bytes are trusted.
    fn encode_part(
        &self,
        part: &str,
        at: usize,
        closed: &[Range<usize>],
        encode: &mut EncodePiece<'_>,
        ids: &mut Vec<u32>,
    ) {
        let end = at + part.len();
        let closed = closed
            .iter()
            .take_while(|range| range.start < end)
            .map(|range| range.start.max(at) - at..range.end.min(end) - at);
        let mut joined = 0; // up to here all is encoded
        let mut open = 0;
        let last = part.len()..part.len();
        for range in closed.chain(std::iter::once(last)) {
            let trusted = open..range.start;
            open = range.end;
            if self.has_normalized_token(&part[trusted.clone()]) {
                self.encode_joined(&part[joined..trusted.start], at + joined == 0, encode, ids);
                let is_start = at + trusted.start == 0;
                self.encode_trusted(&part[trusted.clone()], is_start, encode, ids);
                joined = trusted.end;
            }
        }
        self.encode_joined(&part[joined..], at + joined == 0, encode, ids);
    }

    fn has_normalized_token(&self, text: &str) -> bool {
        let mut has_token = false;
        if !self.added_normalized.is_empty() {
            self.added_normalized
                .for_each(&self.normalize(text), |part| {
                    has_token |= matches!(part, Part::Token(_));
                });
        }
        has_token
    }

    /// Text without a look for added tokens.
    fn encode_joined(
        &self,
        text: &str,
        is_start: bool,
        encode: &mut EncodePiece<'_>,
        ids: &mut Vec<u32>,
    ) {
        let text = self.normalize(text);
        let cut = &self.cutter;
        cut.for_each(&text, is_start, &mut |piece| encode(piece, ids));
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

    /// A stretch between added tokens of raw text.
    fn encode_trusted(
        &self,
        text: &str,
        is_start: bool,
        encode: &mut EncodePiece<'_>,
        ids: &mut Vec<u32>,
    ) {
        let text = self.normalize(text);
        self.added_normalized.for_each(&text, |part| match part {
            Part::Token(id) => ids.push(id),
            Part::Text(at, text) => {
                let is_start = is_start && at == 0;
                let cut = &self.cutter;
                cut.for_each(text, is_start, &mut |piece| encode(piece, ids));
            }
        });
    }

    /// The text as it is before it is cut.
    pub(crate) fn normalize<'a>(&self, text: &'a str) -> Cow<'a, str> {
        match &self.parts.normalizer {
            Some(normalizer) => normalizer.apply(Cow::Borrowed(text)),
            None => Cow::Borrowed(text),
        }
    }

    /// Runs `f` with the model as a function; with `is_ordinary`, it never makes an added token.
    fn with_encoder(&self, is_ordinary: bool, f: &mut dyn FnMut(&mut EncodePiece<'_>)) {
        match &self.model {
            Model::Bpe { all, ordinary } => {
                let bpe = ordinary.as_ref().filter(|_| is_ordinary).unwrap_or(all);
                bpe.with_scratch(|scratch| f(&mut |piece, ids| bpe.encode(piece, scratch, ids)));
            }
            Model::Spm(spm) => f(&mut |piece, ids| spm.encode(piece, ids)),
        }
    }

    /// The text of the ids; bytes that are not UTF-8 become U+FFFD, unknown ids are left out.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let kept = ids
            .iter()
            .filter(|&&id| !(skip_special && self.is_special(id)));
        if self.plan.is_plain() {
            let bytes: Vec<u8> = kept
                .filter_map(|&id| self.token_bytes(id))
                .flatten()
                .copied()
                .collect();
            return match String::from_utf8_lossy(&bytes) {
                Cow::Owned(text) => text,
                Cow::Borrowed(text) => text.to_owned(),
            };
        }
        let mut state = TextState::default();
        let mut text: String = kept.map(|&id| self.push_text(&mut state, id)).collect();
        text.push_str(&state.finish());
        text
    }

    /// The text that is certain when a token follows those of `state`.
    pub(crate) fn push_text(&self, state: &mut TextState, id: u32) -> String {
        match self.token_text(id) {
            Some(token) => {
                let first = self.first_texts.get(&id).map(|bytes| &**bytes);
                state.push(&self.plan, token, first)
            }
            None => String::new(),
        }
    }
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
