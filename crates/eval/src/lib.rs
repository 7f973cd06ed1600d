//! What is a model worth? Suites of questions and texts, put to a model at hand or to a server, and scored.
//!
//! In reading order:
//! - [`target`]: what is put to the test: it answers prompts, and may say how likely a text is
//! - [`local`], [`server`]: the two kinds of it: an engine with its tokenizer, an OpenAI-compatible URL
//! - [`suite`]: the suites by name, and their settings
//! - [`builtin`]: questions about the built-in world in the four areas of the national evaluation
//! - [`bits_per_byte`]: how well texts are predicted; [`drift`]: how far a smaller precision has moved
//! - [`evaluation`]: the result as one document; [`mod@compare`]: two of them, item by item
//! - [`stats`]: intervals and tests
//!
//! A suite makes items, a target answers them, a checker says right or wrong, and what is right becomes
//! scores with intervals, then points. Which weight a score has in points is a setting, not a constant:
//! the national evaluation has not published its formula.
//!
//! No clock, no environment, no printing; the same model gives the same document, byte for byte.

pub mod target;

pub mod local;
pub mod server;

pub mod suite;

pub mod bits_per_byte;
pub mod builtin;
pub mod drift;

pub mod compare;
pub mod evaluation;
pub mod stats;

pub use compare::{Comparison, compare};
pub use evaluation::{Answered, Evaluation, FileBits, FileDrift, Track};
pub use suite::{SUITES, Settings, SuiteInfo};
pub use target::{AnswerOptions, Identity, Problem, Reply, Target, TargetError};
