//! What can go wrong with a vocabulary, and with the special tokens a caller relies on.

use std::path::PathBuf;

/// A `tokenizer.json`, or the vocabulary of a GGUF file, could not be read, or is not one that this
/// crate encodes exactly.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The file could not be opened or read.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The text is longer than any tokenizer.
    #[error("tokenizer has {bytes} bytes, more than the limit of {limit}; is it the right file?")]
    TooLarge {
        /// Size found.
        bytes: u64,
        /// Size allowed.
        limit: u64,
    },
    /// Not JSON, or not of the expected form.
    #[error("tokenizer is not a valid tokenizer.json: {0}")]
    Json(#[from] serde_json::Error),
    /// A part that this crate does not implement; encoding without it would give other ids.
    #[error("`{field}` is {found}, which is not supported; expected {expected}")]
    Unsupported {
        /// Path of the key in the file.
        field: String,
        /// What stands there, shortened.
        found: String,
        /// What is understood.
        expected: &'static str,
    },
    /// The pattern of the pre-tokenizer does not compile.
    #[error("pre-tokenizer pattern {pattern:?} is not a regular expression: {source}")]
    BadPattern {
        /// The pattern.
        pattern: String,
        /// Where and why.
        source: Box<fancy_regex::Error>,
    },
    /// The pattern of the pre-tokenizer has something that would match other text here than in the
    /// library that it was written for.
    #[error("pre-tokenizer pattern {pattern:?} has {what} at byte {at}, which is not supported")]
    UnsupportedPattern {
        /// The pattern.
        pattern: String,
        /// Where the construct stands.
        at: usize,
        /// The construct.
        what: String,
    },
    /// A setting names a token that is not there.
    #[error("`{field}` names the token {token:?}, which is not in the vocabulary")]
    MissingToken {
        /// Path of the key in the file.
        field: String,
        /// The token as spelled.
        token: String,
    },
    /// A setting names an id that no token has.
    #[error("`{field}` names the id {id}, which no token has")]
    MissingId {
        /// Path of the key in the file.
        field: String,
        /// The id.
        id: u32,
    },
    /// The same token stands twice.
    #[error("token {token:?} stands in the vocabulary twice, with ids {first} and {second}")]
    DuplicateToken {
        /// The token as spelled.
        token: String,
        /// The id met first.
        first: u32,
        /// The id met second.
        second: u32,
    },
    /// Two tokens claim one id.
    #[error("tokens {first:?} and {second:?} share the id {id}")]
    DuplicateId {
        /// The id.
        id: u32,
        /// The token met first.
        first: String,
        /// The token met second.
        second: String,
    },
    /// An id beyond the largest vocabulary this crate accepts.
    #[error("token {token:?} has id {id}; ids must be below {limit}")]
    IdTooLarge {
        /// The token as spelled.
        token: String,
        /// Its id.
        id: u64,
        /// The first id that is refused.
        limit: u32,
    },
    /// A token without characters; merges through it would never end.
    #[error("token with id {id} is empty")]
    EmptyToken {
        /// Its id.
        id: u32,
    },
    /// A byte that no token stands for, so that some text could not be encoded.
    #[error(
        "no token for byte {byte:#04x} (spelled {spelling:?}); byte-level BPE without unk_token needs all 256"
    )]
    MissingByte {
        /// The byte.
        byte: u8,
        /// Its character in the byte alphabet.
        spelling: char,
    },
    /// A merge that is not two tokens.
    #[error("merge {index} is {text:?}, not two tokens separated by one space")]
    MalformedMerge {
        /// Place in the list, from 0.
        index: usize,
        /// What stands there.
        text: String,
    },
    /// A merge whose part or product is not in the vocabulary.
    #[error("merge {index} needs the token {token:?}, which is not in the vocabulary")]
    UnknownMergeToken {
        /// Place in the list, from 0.
        index: usize,
        /// The missing token.
        token: String,
    },
    /// Two lists of a GGUF file that belong together have different lengths.
    #[error("`{field}` has {found} entries for {expected} tokens")]
    Length {
        /// Key in the file.
        field: &'static str,
        /// Entries found.
        found: usize,
        /// Number of tokens.
        expected: usize,
    },
    /// A score that is no number to compare.
    #[error("token {token:?} has the score {score}; scores must be finite numbers")]
    BadScore {
        /// The token as spelled.
        token: String,
        /// Its score.
        score: f32,
    },
    /// A character that could not be encoded: there is neither a token for the byte nor an unknown
    /// token.
    #[error("no token {token:?} and no unknown token; some text could not be encoded")]
    NoFallback {
        /// The token of the byte.
        token: String,
    },
    /// The same pair stands twice, so that its rank is unclear.
    #[error("merge {index} repeats the pair {left:?} {right:?}")]
    DuplicateMerge {
        /// Place in the list, from 0.
        index: usize,
        /// Left part.
        left: String,
        /// Right part.
        right: String,
    },
}

/// A tokenizer could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}", path.display())]
pub struct SaveError {
    /// The file.
    pub path: PathBuf,
    /// The system's answer.
    pub source: std::io::Error,
}

/// A special token that the caller needs is not in the tokenizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("tokenizer has no special token {0:?}; the K-EXAONE chat format needs it")]
pub struct MissingSpecial(
    /// The token's content.
    pub &'static str,
);
