//! One request inside the engine: its tokens, how many of them are in the cache, and its blocks.

use crate::kv_blocks::BlockTable;
use crate::sampler::{SamplingParams, TokenCounts};

/// Names a request for the lifetime of an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// A request and everything the engine knows about it.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) id: RequestId,
    pub(crate) ids: Vec<u32>,           // prompt, then what was generated
    pub(crate) max_len: usize,          // `ids` never grows beyond
    pub(crate) num_computed: usize,     // leading ids whose keys and values are in the cache
    pub(crate) tables: Vec<BlockTable>, // one for each group
    pub(crate) sampling: SamplingParams,
    pub(crate) stop_ids: Vec<u32>,
    pub(crate) budget: Option<Budget>, // until its end has come
    pub(crate) counts: TokenCounts,
}

/// A token that comes at a position at the latest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    pub(crate) forced_at: usize, // index into `ids`
    pub(crate) end_id: u32,
}

impl Sequence {
    /// Ids that the next steps have to run through the model before a token can be drawn.
    pub(crate) fn num_uncomputed(&self) -> usize {
        self.ids.len() - self.num_computed
    }

    /// The token that must come next, if any must.
    pub(crate) fn forced(&self) -> Option<u32> {
        let due = |budget: &Budget| self.ids.len() >= budget.forced_at;
        self.budget.filter(due).map(|budget| budget.end_id)
    }

    /// Appends a generated token.
    pub(crate) fn push(&mut self, id: u32) {
        self.ids.push(id);
        self.budget = self.budget.filter(|budget| budget.end_id != id);
        if self.sampling.presence_penalty != 0.0 || self.sampling.frequency_penalty != 0.0 {
            *self.counts.entry(id).or_insert(0) += 1;
        }
    }
}
