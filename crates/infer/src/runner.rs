//! What the engine asks of a model: one forward pass over the rows of a step.
//!
//! Rows of several sequences are packed one after another; a sequence brings one row (decode) or many
//! (a chunk of its prompt). The runner writes the keys and values of each row at its slot, attends
//! through the block tables, and returns logits for the rows that are asked for.
//!
//! A model may have a layer more that guesses further tokens ([`DraftLayer`]); the engine runs it after a
//! step, on what the step left, and has the guesses verified by the model in the next.
//!
//! Legend: T rows of the step, B sequences of the step, R rows whose logits are wanted, V vocab, D width.

use crate::draft_cost::StepCost;
use crate::kv_blocks::{KV_BLOCK, KvGroup, NO_BLOCK};
use model::experts::ExpertCacheStats;
use std::ops::Range;

/// A model with a blocked key-value cache. The engine drives it; it knows nothing of requests.
///
/// The logits of a row must depend only on the tokens visible to it, not on the other rows of the
/// step: the engine promises the same greedy output whatever the batch, and keeps it only if the
/// runner does.
pub trait Runner {
    /// V, the length of a row of logits.
    fn vocab_size(&self) -> usize;

    /// Positions that a sequence may have at most.
    fn max_positions(&self) -> usize;

    /// What the cache of experts has done, where the model has one.
    fn expert_cache(&self) -> Option<ExpertCacheStats> {
        None
    }

    /// For each layer the number of keys a query sees, itself included; `None` sees all.
    fn layer_windows(&self) -> &[Option<usize>];

    /// Makes the caches: every layer of a group gets storage for the group's blocks. Called once,
    /// before the first step.
    fn init_kv(&mut self, groups: &[KvGroup]);

    /// logits (R, V), one row for each entry of `batch.logit_rows`. Every entry is overwritten.
    fn forward(&mut self, batch: &StepBatch, logits: &mut [f32]);

    /// The layer that guesses further tokens, where there is one. In [`KvGroup::layers`] it has the index
    /// after the last; where it is in no group it is not run.
    fn draft_layer(&self) -> Option<DraftLayer> {
        None
    }

    /// (T, D): what the last [`Runner::forward`] left of each of its rows for the draft layer.
    fn hidden(&mut self) -> &[f32] {
        &[]
    }

    /// One pass of the draft layer: row t has the position of a token, `hidden` (T, D) of it, and as its id
    /// the token *after* it. logits (R, V) are those of the token after that; `hidden_out` (R, D) takes the
    /// place of `hidden` for a guess one further.
    fn draft(
        &mut self,
        _batch: &StepBatch,
        _hidden: &[f32],
        _logits: &mut [f32],
        _hidden_out: &mut [f32],
    ) {
    }

    /// losses (R): -ln p(target) in each row that [`Runner::forward`] would give logits for.
    fn losses(&mut self, batch: &StepBatch, targets: &[u32], losses: &mut [f32]) {
        let vocab_size = self.vocab_size();
        let mut logits = vec![0.0; targets.len() * vocab_size];
        self.forward(batch, &mut logits);
        let rows = logits.chunks_exact(vocab_size).zip(targets);
        for (loss, (row, &target)) in losses.iter_mut().zip(rows) {
            *loss = (log_sum_exp(row) - f64::from(row[target as usize])) as f32;
        }
    }
}

/// A layer that guesses the token after next.
#[derive(Clone, Debug, PartialEq)]
pub struct DraftLayer {
    /// Keys that a query of it sees, itself included; `None` sees all.
    pub window: Option<usize>,
    /// D.
    pub hidden_size: usize,
    /// What steps of the model, and passes of the layer, are worth.
    pub cost: StepCost,
}

/// ln of the sum of exp(z), in f64.
pub(crate) fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = f64::from(logits.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b)));
    let sum: f64 = logits.iter().map(|&z| (f64::from(z) - max).exp()).sum();
    max + sum.ln()
}

/// The rows of one sequence in a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeqRows {
    /// Its rows among the T of the step, in the order of their positions.
    pub rows: Range<usize>,
    /// Position of the first of them.
    pub first_pos: u32,
}

/// Where the rows and sequences of a step live in the cache of one group.
#[derive(Clone, Debug, Default)]
pub struct GroupRows {
    /// (T) where the key and value of each row are written: block * 64 + offset.
    pub slots: Vec<u32>,
    block_tables: Vec<u32>, // the tables of all sequences, one after another
    ranges: Vec<Range<usize>>, // (B)
}

/// One step's work. The engine reuses it, so that a step allocates only while it grows.
#[derive(Clone, Debug, Default)]
pub struct StepBatch {
    /// (T)
    pub ids: Vec<u32>,
    /// (T)
    pub positions: Vec<u32>,
    /// (B) ascending and disjoint, covering all rows.
    pub sequences: Vec<SeqRows>,
    /// (R) rows whose logits are wanted, ascending.
    pub logit_rows: Vec<u32>,
    /// One for each [`KvGroup`], in the order given to [`Runner::init_kv`].
    pub groups: Vec<GroupRows>,
}

impl StepBatch {
    /// Physical block of each logical block of sequence `seq` in `group`; [`NO_BLOCK`] where the
    /// window has passed.
    pub fn block_table(&self, seq: usize, group: usize) -> &[u32] {
        let group = &self.groups[group];
        &group.block_tables[group.ranges[seq].clone()]
    }

    pub(crate) fn clear(&mut self, num_groups: usize) {
        self.ids.clear();
        self.positions.clear();
        self.sequences.clear();
        self.logit_rows.clear();
        self.groups.resize_with(num_groups, GroupRows::default);
        for group in &mut self.groups {
            group.slots.clear();
            group.block_tables.clear();
            group.ranges.clear();
        }
    }

    /// Appends the rows of one sequence, known ids and then guessed ones, of which the last `num_logit_rows`
    /// want logits; `tables` has one block table for each group.
    pub(crate) fn push<'a>(
        &mut self,
        ids: &[u32],
        drafts: &[u32],
        first_pos: usize,
        num_logit_rows: usize,
        tables: impl Iterator<Item = &'a [u32]>,
    ) {
        let start = self.ids.len();
        let last_pos = first_pos + ids.len() + drafts.len();
        self.ids.extend_from_slice(ids);
        self.ids.extend_from_slice(drafts);
        self.positions
            .extend((first_pos..last_pos).map(|pos| pos as u32));
        let rows = start..self.ids.len();
        self.logit_rows
            .extend((rows.end - num_logit_rows..rows.end).map(|row| row as u32));
        self.sequences.push(SeqRows {
            rows,
            first_pos: first_pos as u32,
        });
        for (group, table) in self.groups.iter_mut().zip(tables) {
            group.slots.extend((first_pos..last_pos).map(|pos| {
                let block = table[pos / KV_BLOCK];
                debug_assert_ne!(block, NO_BLOCK, "a row is written into a block it owns");
                block * KV_BLOCK as u32 + (pos % KV_BLOCK) as u32
            }));
            let at = group.block_tables.len();
            group.block_tables.extend_from_slice(table);
            group.ranges.push(at..group.block_tables.len());
        }
    }
}
