//! Removing what is there twice.

pub mod exact;

pub use exact::ExactDedup;
