//! What is on disk: checkpoints, token files, run directories, metrics, and the signed ledger.
//!
//! In reading order:
//! - [`error`]: how a failure at a file is told (path, cause, what to do)
//! - [`mmap`]: memory maps and free disk space; the only `unsafe` of the crate
//! - [`hash`], [`atomic`], [`json`]: digests; files and directories that appear whole or not at all
//! - [`safetensors`], [`gguf`], [`tokens`]: weights, weights with their metadata, and documents as
//!   token ids
//! - [`run_dir`], [`metrics`]: the layout of a run, one line a training step
//! - [`keys`], [`ledger`]: who recorded what, in which order, in a chain that shows every change
//!
//! Bytes are judged, never trusted: no input makes this crate panic or allocate more than a small
//! multiple of the size of the file at hand. Format specifications: `docs/formats/`.
//!
//! The crate does not print, read the environment, or know what a model is.

#[cfg(not(target_endian = "little"))]
compile_error!("token files and checkpoints are mapped as little-endian words");

pub mod error;
pub mod mmap;

pub mod atomic;
pub mod hash;
pub mod json;

pub mod gguf;
pub mod safetensors;
pub mod tokens;

pub mod metrics;
pub mod run_dir;

pub mod keys;
pub mod ledger;

pub use error::FileError;
