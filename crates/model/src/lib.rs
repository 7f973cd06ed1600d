//! The EXAONE family of architectures: configuration, weights, forward and hand-written backward.
//!
//! Reading order: [`config`], [`weights`] (which tensors there are and where they lie), [`names`] (what
//! they are called on disk), [`init`], [`linear`], [`mlp`], [`experts`], [`moe`], [`block`] (one decoder layer),
//! [`batch`], [`transformer`] (the whole model in training), [`decode`] (the same in serving), [`mtp`] (its prediction layer
//! in serving), [`flops`].
//!
//! The model does no IO, reads no clock, no environment and no text. What it computes is defined by
//! the crate `reference` and checked against it and against other implementations in `tests/`.
//!
//! Shape letters: T tokens, D hidden_size, H query heads, G key-value heads, K head_dim, F intermediate
//! size, E experts, A experts per token, N = T * A routed rows, V vocab_size, L layers, B sequences.

pub mod batch;
pub mod block;
pub mod config;
pub mod decode;
mod embedding;
pub mod experts;
pub mod flops;
pub mod init;
pub mod linear;
pub mod mlp;
pub mod moe;
pub mod mtp;
pub mod names;
pub mod transformer;
pub mod weights;

pub use config::ModelConfig;
pub use transformer::Transformer;
pub use weights::Layout;
