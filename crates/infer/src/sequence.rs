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
    pub(crate) counts: TokenCounts,
}

impl Sequence {
    /// Ids that the next steps have to run through the model before a token can be drawn.
    pub(crate) fn num_uncomputed(&self) -> usize {
        self.ids.len() - self.num_computed
    }

    /// Appends a generated token.
    pub(crate) fn push(&mut self, id: u32) {
        self.ids.push(id);
        if self.sampling.presence_penalty != 0.0 || self.sampling.frequency_penalty != 0.0 {
            *self.counts.entry(id).or_insert(0) += 1;
        }
    }
}
