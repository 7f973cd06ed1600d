//! Learning from a model's own answers: the engine draws them, the trainer learns from them.
//!
//! - [`rollout`]: the answers of a step, and what each counts
//! - [`preference`]: of two answers, which is preferred
//! - [`reward`]: is an answer right?
//!
//! Training and serving multiply alike: the logits from which the engine draws a token are, to the bit, those from which
//! the trainer computes its loss. So answers are exactly those of the weights that learn from them, no ratio between the
//! two has to be kept within bounds, and a step is a function of the weights, the questions and the seed: a run can be
//! interrupted, resumed and repeated to the bit, its answers included.
//!
//! Ids only: what text is right is asked of the caller.

mod answers;

pub mod preference;

pub mod reward;

pub mod rollout;

pub use preference::{Choice, NoChoice, Preferences};
pub use rollout::{Problem, Rollouts, RolloutsError};
