//! Inference: an engine that generates tokens for many requests at once. Token ids only, never text.
//!
//! Map, in reading order: [`Engine`] (requests in, events out), the scheduler (who runs in a step), the
//! sequence (one request's state), the block bookkeeping of the key-value cache, [`Runner`] (the model as
//! the engine sees it) and [`ModelRunner`] (the real one), the sampler (logits to a token), speculative
//! decoding (tokens guessed by a draft layer, and whether that pays), and [`Engine::score`] (the likelihood
//! of a given text).
//!
//! The engine with a model of six tokens that always continues with the next id:
//! ```
//! use dokja_infer::*;
//!
//! struct Counting;
//! impl Runner for Counting {
//!     fn vocab_size(&self) -> usize {
//!         6
//!     }
//!     fn max_positions(&self) -> usize {
//!         32
//!     }
//!     fn layer_windows(&self) -> &[Option<usize>] {
//!         &[None]
//!     }
//!     fn init_kv(&mut self, _groups: &[KvGroup]) {}
//!     fn forward(&mut self, batch: &StepBatch, logits: &mut [f32]) {
//!         logits.fill(0.0);
//!         for (row, z) in batch.logit_rows.iter().zip(logits.chunks_exact_mut(6)) {
//!             z[(batch.ids[*row as usize] as usize + 1) % 6] = 1.0;
//!         }
//!     }
//! }
//!
//! let mut engine = Engine::new(Box::new(Counting), EngineConfig::default())?;
//! let request = Request {
//!     prompt_ids: vec![1, 2],
//!     max_tokens: 10,
//!     sampling: SamplingParams::greedy(),
//!     stop_ids: vec![5],
//!     budget: None,
//! };
//! let completion = generate(&mut engine, request)?;
//! assert_eq!(completion.ids, [3, 4]);
//! assert_eq!(completion.finish_reason, FinishReason::Stop);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod draft_cost;
mod engine;
mod kv_blocks;
mod model_runner;
mod runner;
mod sampler;
mod scheduler;
mod score;
mod sequence;
mod speculative;

pub use draft_cost::StepCost;
pub use engine::{
    Completion, ConfigError, Engine, EngineConfig, EngineStats, Event, FinishReason, Request,
    SubmitError, TokenBudget, generate, generate_all,
};
pub use kv_blocks::{KV_BLOCK, KvGroup, NO_BLOCK};
pub use model_runner::ModelRunner;
pub use runner::{DraftLayer, GroupRows, Runner, SeqRows, StepBatch};
pub use sampler::{Logprobs, SampledToken, SamplingError, SamplingParams};
pub use score::{ScoreError, ScoreWindow};
pub use sequence::RequestId;
