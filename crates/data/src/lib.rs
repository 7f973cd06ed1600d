//! Data: files become documents, documents become shards, shards become batches.
//!
//! In reading order:
//! - [`document`]: a text with its language and source
//! - [`extract`]: text, Markdown, HTML, JSON Lines, Parquet, each also compressed, as documents
//! - [`mod@normalise`], [`language`], [`dedup`]: clean, named, once
//! - [`mod@build`]: all of it, and the built-in world, into a data directory; [`manifest`] says what is in it
//! - [`shard`]: reading the directory's documents back
//! - [`tokens`]: documents as token ids, cached beside them
//! - [`loader`]: which tokens are in the batch of step s, as a function of (data, seed, s) alone
//! - [`pack`]: the same for instruction dialogues, with the prompts masked out of the loss
//!
//! A data directory:
//! ```text
//! manifest.json
//! train-00000.jsonl.zst ...      documents, one JSON object a line
//! heldout-00000.jsonl.zst ...    the share held out by the hash of the text
//! dialogues-00000.jsonl.zst ...  instruction dialogues, where there are any
//! tokens/<tokenizer>/            token files, made on demand
//! ```
//! The crate does not print, read the environment, or know how text becomes ids: it is handed a
//! function for that.

mod sample;

pub mod build;
pub mod dedup;
pub mod document;
pub mod extract;
pub mod language;
pub mod loader;
pub mod manifest;
pub mod normalise;
pub mod pack;
pub mod shard;
pub mod tokens;

pub use build::{BuildError, BuildOptions, Builtin, Progress, build};
pub use document::{Dialogue, Document, Message, Record};
pub use loader::{Batch, IGNORE, Loader, LoaderOptions};
pub use manifest::{Manifest, inspect, verify};
pub use normalise::normalise;
pub use pack::DialoguePacker;
pub use tokens::{Encoder, TokenData, tokenize};
