//! Numbers: a counter-based random generator, block types of few bits, and error measures.
//!
//! Everything random in the project (initial weights, batch order, sampling, the built-in world) is drawn
//! from [`Philox`], so that any value can be recomputed from a seed and a position, without a state.

pub mod blocks;
pub mod error_stats;
pub mod philox;

pub use blocks::{BlockError, BlockType};
pub use error_stats::{max_abs_diff, nmse};
pub use philox::{Philox, Rng};
