//! The engine: requests in, one event for each generated token out.
//!
//! A step is schedule -> pack rows -> forward -> draw -> guess what comes next (`speculative.rs`). The
//! engine is driven: it has no thread and no clock, and does nothing outside [`Engine::step`]. It knows token
//! ids only; stop strings and text belong to its callers.
//!
//! Promise: greedy output, and sampled output at a fixed seed, depend only on the request, not on
//! what else runs, how the prompt was chunked, whether the sequence was preempted, or what was guessed. A
//! token that a budget forces depends on the number of tokens before it and on nothing else.
//! Tested against a scripted model in `tests/it`.
//!
//! Deliberately absent: beam search and several answers to one prompt; text.

use crate::kv_blocks::{KV_BLOCK, KvBlocks, MAX_KV_BLOCKS};
use crate::runner::{Runner, StepBatch};
use crate::sampler::{Logprobs, SampledToken, Sampler, SamplingError, SamplingParams, TokenCounts};
use crate::scheduler::{Scheduled, Scheduler};
use crate::sequence::{Budget, RequestId, Sequence, Speculation};
use crate::speculative::{Drafter, LAG, MAX_DRAFTS};
use model::experts::ExpertCacheStats;
use thiserror::Error;

/// The engine's limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineConfig {
    /// Sequences that run at once.
    pub max_num_seqs: usize,
    /// Rows of a step: the chunk of a long prompt, and the bound of a step's memory.
    pub max_num_batched_tokens: usize,
    /// Blocks of 64 positions in each global layer. More than all sequences at full length could use
    /// are not made, so `usize::MAX` means: never preempt.
    pub num_kv_blocks: usize,
    /// Requests that wait; one more is refused.
    pub max_num_waiting: usize,
    /// Tokens that the model's draft layer guesses ahead at most, each verified by the model; 0 leaves the
    /// layer out, more than 32 is as 32. It changes the speed, never the tokens.
    pub num_speculative_tokens: usize,
}

impl Default for EngineConfig {
    fn default() -> EngineConfig {
        EngineConfig {
            max_num_seqs: 16,
            max_num_batched_tokens: 512,
            num_kv_blocks: usize::MAX,
            max_num_waiting: 64,
            num_speculative_tokens: 0,
        }
    }
}

impl EngineConfig {
    /// The blocks of a model with these windows and positions, of which no more are made than useful.
    pub(crate) fn kv_blocks(&self, runner: &dyn Runner) -> KvBlocks {
        let mut windows = runner.layer_windows().to_vec();
        let draft_layer = runner.draft_layer().filter(|_| self.speculates());
        let slack = if draft_layer.is_some() { LAG } else { 0 };
        windows.extend(draft_layer.map(|layer| layer.window));
        KvBlocks::new(
            &windows,
            self.num_useful_blocks(runner.max_positions()),
            self.max_num_seqs,
            slack,
            self.max_num_batched_tokens,
        )
    }

    fn speculates(&self) -> bool {
        self.num_speculative_tokens > 0
    }

    pub(crate) fn num_useful_blocks(&self, max_positions: usize) -> usize {
        let useful = max_positions.div_ceil(KV_BLOCK);
        let useful = self.max_num_seqs.saturating_mul(useful);
        self.num_kv_blocks.min(useful).clamp(1, MAX_KV_BLOCKS)
    }
}

/// What is wanted of the engine.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// The prompt; at least one token.
    pub prompt_ids: Vec<u32>,
    /// Tokens to generate at most; what the model's positions or the cache leave, if that is less.
    pub max_tokens: usize,
    /// How they are drawn.
    pub sampling: SamplingParams,
    /// Tokens that end the answer, such as the end of a turn. Empty: only the length ends it.
    pub stop_ids: Vec<u32>,
    /// What the first part of the answer may take, such as reasoning.
    pub budget: Option<TokenBudget>,
}

/// Ends the first part of an answer in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenBudget {
    /// Tokens of the part at most; its end is not one of them.
    pub max_tokens: usize,
    /// The token that ends the part. Where it has not been drawn after `max_tokens`, it is the next token,
    /// whatever the model says; then, or once it has been drawn, the budget is over.
    pub end_id: u32,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The last token is one of the request's `stop_ids`.
    Stop,
    /// `max_tokens`, or no position is left.
    Length,
    /// The model's logits held a NaN or an infinity: no token was drawn.
    NotFinite,
}

/// A token of a request; a step may bring several, in their order.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Whose.
    pub id: RequestId,
    /// The token; `None` only with [`FinishReason::NotFinite`].
    pub token: Option<SampledToken>,
    /// Present on the last event of a request.
    pub finish_reason: Option<FinishReason>,
}

/// A whole answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// The generated tokens, without the stop id.
    pub ids: Vec<u32>,
    /// One for each of `ids` where the request asked for them, otherwise empty.
    pub logprobs: Vec<Logprobs>,
    /// Why it ended.
    pub finish_reason: FinishReason,
}

/// The engine's load at a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineStats {
    /// Sequences that take part in steps.
    pub num_running: usize,
    /// Requests that have not started, or were preempted.
    pub num_waiting: usize,
    /// Preemptions since the engine was made.
    pub num_preemptions: u64,
    /// Guessed tokens that were rows of steps since then.
    pub draft_proposed: u64,
    /// Those of them that became part of an answer.
    pub draft_accepted: u64,
    /// For each group: free blocks, all blocks.
    pub kv_blocks: Vec<(usize, usize)>,
}

/// A limit that cannot work.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{key} is 0; it must be at least 1")]
pub struct ConfigError {
    /// The field of [`EngineConfig`].
    pub key: &'static str,
}

/// Why a request was not accepted.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum SubmitError {
    /// Nothing to start from.
    #[error("the prompt is empty; give at least one token")]
    EmptyPrompt,
    /// Nothing to do.
    #[error("max_tokens is 0; ask for at least one token")]
    NoTokens,
    /// No position is left for an answer.
    #[error("the prompt has {len} tokens, the model takes at most {max}; shorten it")]
    PromptTooLong {
        /// Tokens of the prompt.
        len: usize,
        /// The longest prompt that leaves room for one token.
        max: usize,
    },
    /// An id that the model has no embedding for.
    #[error(
        "token {id} at position {position} of the prompt is outside the vocabulary of {vocab_size}"
    )]
    TokenOutOfRange {
        /// The id.
        id: u32,
        /// Its index in the prompt.
        position: usize,
        /// Ids are below.
        vocab_size: usize,
    },
    /// A budget that ends with an id that the model has no embedding for.
    #[error("token {id}, the end of a budget, is outside the vocabulary of {vocab_size}")]
    BudgetEndOutOfRange {
        /// The id.
        id: u32,
        /// Ids are below.
        vocab_size: usize,
    },
    /// A sampling parameter out of range.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// Too many requests wait.
    #[error("the queue is full: {num_waiting} requests are waiting; try again later")]
    QueueFull {
        /// Requests that wait.
        num_waiting: usize,
    },
}

/// Runs requests on a model, many at a time.
pub struct Engine {
    pub(crate) runner: Box<dyn Runner + Send>,
    pub(crate) config: EngineConfig,
    pub(crate) scheduler: Scheduler,
    next_id: u64,
    pub(crate) sampler: Sampler,
    step: Vec<Scheduled>,
    pub(crate) batch: StepBatch,
    pub(crate) logits: Vec<f32>, // (R, V)
    pub(crate) drafter: Option<Drafter>,
}

impl Engine {
    /// An engine with an empty cache.
    ///
    /// # Errors
    /// When a limit is zero.
    pub fn new(
        mut runner: Box<dyn Runner + Send>,
        mut config: EngineConfig,
    ) -> Result<Engine, ConfigError> {
        for (key, value) in [
            ("max_num_seqs", config.max_num_seqs),
            ("max_num_batched_tokens", config.max_num_batched_tokens),
            ("num_kv_blocks", config.num_kv_blocks),
            ("max_num_waiting", config.max_num_waiting),
        ] {
            if value == 0 {
                return Err(ConfigError { key });
            }
        }
        let kv = config.kv_blocks(&*runner);
        config.num_kv_blocks = config.num_useful_blocks(runner.max_positions());
        runner.init_kv(kv.groups());
        let max_depth = config.num_speculative_tokens.min(MAX_DRAFTS);
        let layer = runner.draft_layer().filter(|_| config.speculates());
        let drafter = layer.map(|layer| Drafter::new(layer, max_depth));
        let scheduler = Scheduler::new(kv, config.max_num_seqs, config.max_num_batched_tokens);
        Ok(Engine {
            runner,
            config,
            scheduler,
            next_id: 0,
            sampler: Sampler::default(),
            step: Vec::new(),
            batch: StepBatch::default(),
            logits: Vec::new(),
            drafter,
        })
    }

    /// Positions that a prompt and its answer may take together.
    pub fn max_len(&self) -> usize {
        // The last generated token is never written to the cache, so it needs no block.
        let in_cache = self.config.num_kv_blocks * KV_BLOCK + 1;
        self.runner.max_positions().min(in_cache)
    }

    /// What the cache of experts has done, where the model has one.
    pub fn expert_cache(&self) -> Option<ExpertCacheStats> {
        self.runner.expert_cache()
    }

    /// Ids are below.
    pub fn vocab_size(&self) -> usize {
        self.runner.vocab_size()
    }

    /// Queues a request.
    ///
    /// # Errors
    /// When it can never run, or when the queue is full.
    pub fn submit(&mut self, request: Request) -> Result<RequestId, SubmitError> {
        let Request {
            prompt_ids,
            max_tokens,
            sampling,
            stop_ids,
            budget,
        } = request;
        let (len, max) = (prompt_ids.len(), self.max_len() - 1);
        if len == 0 {
            return Err(SubmitError::EmptyPrompt);
        }
        if max_tokens == 0 {
            return Err(SubmitError::NoTokens);
        }
        if len > max {
            return Err(SubmitError::PromptTooLong { len, max });
        }
        let vocab_size = self.runner.vocab_size();
        if let Some(position) = prompt_ids.iter().position(|&id| id as usize >= vocab_size) {
            let id = prompt_ids[position];
            return Err(SubmitError::TokenOutOfRange {
                id,
                position,
                vocab_size,
            });
        }
        if let Some(TokenBudget { end_id: id, .. }) = budget
            && id as usize >= vocab_size
        {
            return Err(SubmitError::BudgetEndOutOfRange { id, vocab_size });
        }
        sampling.validate()?;
        let num_waiting = self.scheduler.waiting.len();
        if num_waiting >= self.config.max_num_waiting {
            return Err(SubmitError::QueueFull { num_waiting });
        }
        let id = RequestId(self.next_id);
        self.next_id += 1;
        let max_len = self.max_len().min(len.saturating_add(max_tokens));
        // The first token comes with the prompt, and the last alone.
        let speculates = self.drafter.is_some() && max_len >= len + 3;
        self.scheduler.waiting.push_back(Sequence {
            id,
            max_len,
            speculation: speculates.then(Speculation::default),
            budget: budget.map(|budget| Budget {
                forced_at: len.saturating_add(budget.max_tokens),
                end_id: budget.end_id,
            }),
            ids: prompt_ids,
            num_computed: 0,
            tables: self.scheduler.kv.new_tables(),
            sampling,
            stop_ids,
            counts: TokenCounts::new(),
        });
        Ok(id)
    }

    /// Forgets a request and frees its blocks; false when there is no such request any more.
    pub fn abort(&mut self, id: RequestId) -> bool {
        self.scheduler.remove(id)
    }

    /// Whether nothing runs and nothing waits.
    pub fn is_idle(&self) -> bool {
        self.scheduler.running.is_empty() && self.scheduler.waiting.is_empty()
    }

    /// The load at this moment.
    pub fn stats(&self) -> EngineStats {
        let pools = self.scheduler.kv.pools();
        EngineStats {
            num_running: self.scheduler.running.len(),
            num_waiting: self.scheduler.waiting.len(),
            num_preemptions: self.scheduler.num_preemptions,
            draft_proposed: self.drafter.as_ref().map_or(0, |d| d.num_proposed),
            draft_accepted: self.drafter.as_ref().map_or(0, |d| d.num_accepted),
            kv_blocks: pools
                .iter()
                .map(|pool| (pool.num_free(), pool.num_blocks()))
                .collect(),
        }
    }

    /// One forward pass. A request whose prompt is not finished yields no event, one whose next tokens were
    /// guessed right several. Empty when idle.
    pub fn step(&mut self) -> Vec<Event> {
        self.scheduler.schedule(&mut self.step);
        if self.step.is_empty() {
            assert!(
                self.is_idle(),
                "scheduler: the oldest request has no room although it fits alone"
            );
            return Vec::new();
        }
        self.pack();
        let vocab_size = self.runner.vocab_size();
        self.logits
            .resize(self.batch.logit_rows.len() * vocab_size, 0.0);
        self.runner.forward(&self.batch, &mut self.logits);
        let events = self.advance(vocab_size);
        self.keep_hidden();
        for event in events.iter().filter(|event| event.finish_reason.is_some()) {
            self.scheduler.remove(event.id);
        }
        self.draft();
        let Scheduler { kv, running, .. } = &mut self.scheduler;
        for sequence in running {
            let next = sequence.next_query();
            kv.release_passed(&mut sequence.tables, next);
        }
        events
    }

    /// The rows of the step, in the order of `running`.
    fn pack(&mut self) {
        self.batch.clear(self.scheduler.kv.groups().len());
        for part in &self.step {
            let sequence = &self.scheduler.running[part.seq];
            let first = sequence.num_computed;
            let is_finished = part.num_tokens == sequence.num_uncomputed();
            self.batch.push(
                &sequence.ids[first..first + part.num_tokens],
                &sequence.drafts()[..part.num_drafts],
                first,
                if is_finished { 1 + part.num_drafts } else { 0 },
                sequence.tables.iter().map(|table| table.blocks()),
            );
        }
    }

    /// Accounts for the rows that were computed and draws the tokens that are due: one, and one more for
    /// each guess that is the token drawn.
    fn advance(&mut self, vocab_size: usize) -> Vec<Event> {
        let mut events = Vec::with_capacity(self.batch.logit_rows.len());
        let mut first_logits = 0;
        for part in &mut self.step {
            let sequence = &mut self.scheduler.running[part.seq];
            sequence.num_computed += part.num_tokens;
            if sequence.num_uncomputed() > 0 {
                continue;
            }
            let rows = &self.logits[first_logits * vocab_size..];
            first_logits += 1 + part.num_drafts;
            let (mut num_tried, mut num_right) = (0, 0);
            for logits in rows.chunks_exact(vocab_size).take(1 + part.num_drafts) {
                let position = sequence.ids.len();
                let forced = sequence.forced(position);
                let (sampling, counts) = (&sequence.sampling, &sequence.counts);
                let token = self
                    .sampler
                    .sample(logits, sampling, counts, position, forced);
                let drawn = token.as_ref().map(|token| token.id);
                let finish_reason = match drawn {
                    None => Some(FinishReason::NotFinite),
                    Some(id) => {
                        sequence.push(id);
                        if sequence.stop_ids.contains(&id) {
                            Some(FinishReason::Stop)
                        } else if sequence.ids.len() >= sequence.max_len {
                            Some(FinishReason::Length)
                        } else {
                            None
                        }
                    }
                };
                let is_last = finish_reason.is_some();
                events.push(Event {
                    id: sequence.id,
                    token,
                    finish_reason,
                });
                let draft = sequence.drafts()[..part.num_drafts].get(num_right);
                let is_right = draft.is_some() && draft.copied() == drawn;
                num_tried += usize::from(draft.is_some());
                num_right += usize::from(is_right);
                if is_last || !is_right {
                    break;
                }
            }
            if let Some(drafter) = &mut self.drafter {
                drafter.note(part.num_drafts, num_tried, num_right);
            }
            // What was computed for wrong guesses is written over by what comes in their place. (After the
            // last token there is nothing to come.)
            part.num_drafts = num_right.min(sequence.num_uncomputed().saturating_sub(1));
            sequence.num_computed += part.num_drafts;
        }
        events
    }

    /// Keeps for the draft layer what the step left of the rows that hold.
    fn keep_hidden(&mut self) {
        let Some(drafter) = &mut self.drafter else {
            return;
        };
        let running = &self.scheduler.running;
        if (self.step.iter()).all(|part| running[part.seq].speculation.is_none()) {
            return;
        }
        let hidden = self.runner.hidden();
        for (part, packed) in self.step.iter().zip(&self.batch.sequences) {
            let sequence = &mut self.scheduler.running[part.seq];
            let rows = packed.rows.start..packed.rows.start + part.num_tokens + part.num_drafts;
            drafter.keep(sequence, hidden, rows);
        }
    }
}

/// Runs one request to its end on an engine that has nothing else to do.
///
/// # Errors
/// When the request is refused.
///
/// # Panics
/// When the engine is not idle: the events of other requests would be lost.
pub fn generate(engine: &mut Engine, request: Request) -> Result<Completion, SubmitError> {
    let mut completions = generate_all(engine, vec![request])?;
    Ok(completions.pop().expect("one completion for one request"))
}

/// Runs requests to their ends, as many at a time as the engine takes; completions in their order.
///
/// # Errors
/// When a request is refused for a reason other than a full queue; the others are aborted.
///
/// # Panics
/// When the engine is not idle: the events of other requests would be lost.
pub fn generate_all(
    engine: &mut Engine,
    requests: Vec<Request>,
) -> Result<Vec<Completion>, SubmitError> {
    assert!(engine.is_idle(), "generate needs an engine of its own");
    let empty = Completion {
        ids: Vec::new(),
        logprobs: Vec::new(),
        finish_reason: FinishReason::Length,
    };
    let mut completions = vec![empty; requests.len()];
    let mut index_of = std::collections::HashMap::new();
    let mut requests = requests.into_iter().enumerate();
    loop {
        while engine.scheduler.waiting.len() < engine.config.max_num_waiting
            && let Some((index, request)) = requests.next()
        {
            match engine.submit(request) {
                Ok(id) => {
                    index_of.insert(id, index);
                }
                Err(error) => {
                    for &id in index_of.keys() {
                        engine.abort(id);
                    }
                    return Err(error);
                }
            }
        }
        if engine.is_idle() {
            return Ok(completions);
        }
        for event in engine.step() {
            let completion = &mut completions[index_of[&event.id]];
            if let Some(token) = event.token
                && event.finish_reason != Some(FinishReason::Stop)
            {
                completion.ids.push(token.id);
                completion.logprobs.extend(token.logprobs);
            }
            if let Some(reason) = event.finish_reason {
                completion.finish_reason = reason;
                index_of.remove(&event.id);
            }
        }
    }
}
