//! Is a model its maker's own, and how does one know? Evidence read, recomputed and told claim by
//! claim.
//!
//! - [`finding`]: one thing looked at, and what came out
//! - [`mod@verify`]: from the final weights of a run back to its random start, over the signed ledger
//! - [`certificate`]: the findings for people and machines, with what they cannot show
//! - [`mod@compare`]: are the weights of two models related, and which of their components?
//!
//! The audit only reads. Evidence is made by the run itself, through `formats`; nothing but `cli`
//! depends on this crate. It does not compute weights: the function from a seed to the digest of
//! initial weights is handed in, so that an auditor may bring one of his own.

pub mod finding;

pub mod verify;

pub mod certificate;

pub mod compare;

pub use certificate::Certificate;
pub use compare::compare;
pub use finding::{Claim, Finding, Outcome, Verdict};
pub use verify::{Milestone, Report, VerifyOptions, verify};
