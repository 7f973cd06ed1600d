//! How likely a model finds a given text: the log-probability of each of its tokens.
//!
//! The sequence goes through the engine's cache in chunks, as a prompt does, but every row is asked for
//! the probability of the token that follows. A sequence longer than the context is taken in windows:
//!
//! ```text
//! max_context 6, stride 4:   0 1 2 3 4 5            predicts 1..=6
//!                                    4 5 6 7 8 9    predicts 7..=10, each from at least 3 tokens
//! ```
//! Every token is predicted once. With `stride == max_context` windows do not overlap, which is the cheapest and
//! gives the first token of a window a context of one.

use crate::engine::Engine;
use crate::kv_blocks::{BlockTable, KV_BLOCK};
use thiserror::Error;

/// Rows whose logits exist at a time.
const LOGIT_ROWS: usize = 256;

/// How long sequences are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScoreWindow {
    /// Tokens that a prediction sees at most.
    pub max_context: usize,
    /// Tokens from the start of a window to the start of the next; at most `max_context`.
    pub stride: usize,
}

/// Why a sequence was not scored.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ScoreError {
    /// The cache belongs to requests.
    #[error("the engine is running requests; score before or after them")]
    Busy,
    /// More than the model or the cache can hold.
    #[error("max_context is {got}; it takes 1 to {max}")]
    Context {
        /// What was given.
        got: usize,
        /// The longest that is possible.
        max: usize,
    },
    /// A window that would skip tokens, or never advance.
    #[error("stride is {got}; it takes 1 to max_context, {max}")]
    Stride {
        /// What was given.
        got: usize,
        /// The longest that skips nothing.
        max: usize,
    },
    /// An id that the model has no embedding for.
    #[error("token {id} at position {position} is outside the vocabulary of {vocab_size}")]
    TokenOutOfRange {
        /// The id.
        id: u32,
        /// Its index.
        position: usize,
        /// Ids are below.
        vocab_size: usize,
    },
    /// The model is broken: a NaN or an infinity in its logits.
    #[error("the model gives no finite probability to the token at position {position}")]
    NotFinite {
        /// Its index.
        position: usize,
    },
}

impl Engine {
    /// Tokens that [`Engine::score`] can let a prediction see at most.
    pub fn max_context(&self) -> usize {
        let in_cache = self.config.num_kv_blocks * KV_BLOCK;
        self.runner.max_positions().min(in_cache)
    }

    /// ln p(ids[t + 1] | ids[..=t]) in nats, for t from 0: one fewer than there are ids, since the first
    /// has nothing before it. Start with a token that begins documents to have all the others scored.
    ///
    /// # Errors
    /// When the engine is not idle, the window cannot be, or an id is not in the vocabulary.
    pub fn score(&mut self, ids: &[u32], window: ScoreWindow) -> Result<Vec<f64>, ScoreError> {
        self.check_score(ids, window)?;
        let ScoreWindow {
            max_context,
            stride,
        } = window;
        let num_targets = ids.len().saturating_sub(1);
        let mut scores = Vec::with_capacity(num_targets);
        let mut start = 0;
        while scores.len() < num_targets {
            let end = num_targets.min(start + max_context);
            let mut tables = self.scheduler.kv.new_tables();
            let result = self.score_window(ids, start..end, &mut tables, &mut scores);
            self.scheduler.kv.release_all(&mut tables);
            result?;
            start += stride;
        }
        Ok(scores)
    }

    /// The logits (T, V) after each token of a sequence of its own.
    ///
    /// # Errors
    /// When the engine is not idle, the sequence is longer than [`Engine::max_context`], or an id is not in
    /// the vocabulary.
    pub fn logits(&mut self, ids: &[u32]) -> Result<Vec<f32>, ScoreError> {
        let len = ids.len().max(1);
        let window = ScoreWindow {
            max_context: len,
            stride: len,
        };
        self.check_score(ids, window)?;
        let vocab_size = self.runner.vocab_size();
        let mut logits = vec![0.0; ids.len() * vocab_size];
        let mut tables = self.scheduler.kv.new_tables();
        let chunk = LOGIT_ROWS.min(self.config.max_num_batched_tokens);
        for (i, part) in ids.chunks(chunk).enumerate() {
            let (first, last) = (i * chunk, i * chunk + part.len());
            let kv = &mut self.scheduler.kv;
            let has_room = kv.grow(&mut tables, last);
            assert!(has_room, "an idle engine has room for max_context");
            self.batch.clear(kv.groups().len());
            let blocks = tables.iter().map(|table| table.blocks());
            self.batch.push(part, &[], first, part.len(), blocks);
            let rows = &mut logits[first * vocab_size..last * vocab_size];
            self.runner.forward(&self.batch, rows);
            self.scheduler.kv.release_passed(&mut tables, last);
        }
        self.scheduler.kv.release_all(&mut tables);
        Ok(logits)
    }

    fn check_score(&self, ids: &[u32], window: ScoreWindow) -> Result<(), ScoreError> {
        if !self.is_idle() {
            return Err(ScoreError::Busy);
        }
        let (got, max) = (window.max_context, self.max_context());
        if !(1..=max).contains(&got) {
            return Err(ScoreError::Context { got, max });
        }
        let (got, max) = (window.stride, window.max_context);
        if !(1..=max).contains(&got) {
            return Err(ScoreError::Stride { got, max });
        }
        let vocab_size = self.runner.vocab_size();
        match ids.iter().position(|&id| id as usize >= vocab_size) {
            Some(position) => Err(ScoreError::TokenOutOfRange {
                id: ids[position],
                position,
                vocab_size,
            }),
            None => Ok(()),
        }
    }

    /// Runs `inputs` as a sequence of its own and appends the scores of the tokens after them that have
    /// none yet.
    fn score_window(
        &mut self,
        ids: &[u32],
        inputs: std::ops::Range<usize>,
        tables: &mut [BlockTable],
        scores: &mut Vec<f64>,
    ) -> Result<(), ScoreError> {
        let chunk = LOGIT_ROWS.min(self.config.max_num_batched_tokens);
        let mut losses = [0.0; LOGIT_ROWS];
        let mut first = inputs.start;
        while first < inputs.end {
            let last = inputs.end.min(first + chunk);
            let kv = &mut self.scheduler.kv;
            let has_room = kv.grow(tables, last - inputs.start);
            assert!(has_room, "an idle engine has room for max_context");
            // `scores` holds those of the targets 1..=scores.len().
            let wanted = last.saturating_sub(first.max(scores.len()));
            self.batch.clear(kv.groups().len());
            self.batch.push(
                &ids[first..last],
                &[],
                first - inputs.start,
                wanted,
                tables.iter().map(|table| table.blocks()),
            );
            let targets = &ids[last - wanted + 1..=last];
            let losses = &mut losses[..wanted];
            self.runner.losses(&self.batch, targets, losses);
            self.scheduler
                .kv
                .release_passed(tables, last - inputs.start);
            if let Some(at) = losses.iter().position(|loss| !loss.is_finite()) {
                let position = last - wanted + 1 + at;
                return Err(ScoreError::NotFinite { position });
            }
            scores.extend(losses.iter().map(|&loss| -f64::from(loss)));
            first = last;
        }
        Ok(())
    }
}
