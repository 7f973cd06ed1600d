//! One request inside the engine: its tokens, how many of them are in the cache, its blocks, and what is
//! guessed of its next tokens.

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
    pub(crate) speculation: Option<Speculation>, // where the draft layer takes part
}

/// The draft layer's side of a sequence. It lags behind: rows of the model wait for it in `hidden`.
#[derive(Debug, Default)]
pub(crate) struct Speculation {
    pub(crate) num_predicted: usize, // leading ids of which the layer has keys and values
    pub(crate) hidden: Vec<f32>,     // (n, D), of the ids from there to `num_computed`
    pub(crate) drafts: Vec<u32>,     // guesses of the tokens after `ids`, to be verified
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

    /// The token that must come at a position, if any must and none before has ended the budget.
    pub(crate) fn forced(&self, position: usize) -> Option<u32> {
        let due = |budget: &Budget| position >= budget.forced_at;
        self.budget.filter(due).map(|budget| budget.end_id)
    }

    /// What is guessed of the tokens after `ids`.
    pub(crate) fn drafts(&self) -> &[u32] {
        self.speculation.as_ref().map_or(&[], |s| &s.drafts)
    }

    /// Position of the first query that is still to come, of any layer.
    pub(crate) fn next_query(&self) -> usize {
        let layer = self.speculation.as_ref().map(|s| s.num_predicted);
        self.num_computed.min(layer.unwrap_or(usize::MAX))
    }

    /// Back to the start: nothing is in the cache any more.
    pub(crate) fn forget_computed(&mut self) {
        self.num_computed = 0;
        if let Some(speculation) = &mut self.speculation {
            *speculation = Speculation::default();
        }
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
