//! Training: from a recipe and batches to checkpoints, each of them recorded in the ledger.
//!
//! In reading order:
//! - [`recipe`]: everything that determines a stage, as written in TOML, checked and filled up
//! - [`schedule`]: the learning rate of a step
//! - [`optim`]: Muon for the matrices, AdamW for the rest
//! - [`trainer`]: one step: losses, gradients, clipping, update, router biases
//! - [`checkpoint`]: a directory from which the next step is computed as if nothing had happened
//! - [`batches`]: where a stage's batches come from: documents, dialogues, or (in `posttrain`) the model's own answers
//! - [`stage`]: the loop around it, with ledger, metrics, evaluation, and resumption
//! - [`mod@replay`]: parts of it again, held against what was recorded
//! - [`mod@plan`]: what it would take on a cluster that is not here
//!
//! **Determinism.** Weights after step n are a function of (recipe, data, tokenizer, instruction set):
//! not of the number of threads, nor of where a run was interrupted. A batch is a function of its step (and
//! perhaps of the weights), and a checkpoint holds all that a step depends on besides.
//!
//! The crate does not print, read the environment, or know text.

pub mod recipe;

pub mod schedule;

pub mod optim;

pub mod trainer;

pub mod checkpoint;

pub mod batches;

mod recorded;

pub mod stage;

pub mod replay;

pub mod plan;

pub use batches::{Batches, Dialogues, Documents, Heldout, StepBatches};
pub use recipe::Recipe;
pub use stage::{Outcome, Recording, Report, StageError, StageInputs, run};
pub use trainer::Trainer;
