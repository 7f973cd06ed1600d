//! Guessing tokens with the model's draft layer, to have several of them verified by one step.
//!
//! A step leaves a hidden state of every row. The draft layer joins that of a token with the *next* token, and
//! guesses the one after it; applied to its own output, one further. The guesses are rows of the next step, and
//! as many tokens are drawn there as guesses turn out to be the tokens that are drawn anyway, and one more.
//! So the answer is that without guesses, token by token, draws and all: a row's logits do not depend on the
//! rows after it, and the draw of a position depends on the position alone. A guess is drawn as the token will
//! be, with the same randomness, from the layer's logits: where both distributions agree the draws do.
//!
//! The layer lags behind the model: it runs for a sequence when there is something to guess, or when many rows
//! wait. Its keys and values, like the model's, of wrong guesses are written over by the rows that come in
//! their place; nothing is taken back.
//!
//! How many tokens are guessed is decided in [`crate::draft_cost`].
//!
//! Sources: Leviathan et al. 2022, arXiv:2211.17192 (verification in one pass); Li et al. 2024,
//! arXiv:2401.15077 (a layer applied to its own output). Not here: trees of guesses, other draft models.

use crate::draft_cost::{DepthChoice, Load};
use crate::engine::Engine;
use crate::runner::DraftLayer;
use crate::sampler::SamplingParams;
use crate::scheduler::Scheduler;
use crate::sequence::Sequence;
use std::ops::Range;

/// Guesses of a sequence at most.
pub(crate) const MAX_DRAFTS: usize = 32;

/// Rows that wait for the layer at most, once a step is over.
const MAX_WAITING_ROWS: usize = 64;

/// Positions by which a sequence may hold more blocks than the model's window needs: of rows that wait, and of
/// guesses.
pub(crate) const LAG: usize = MAX_WAITING_ROWS + MAX_DRAFTS;

/// The draft layer as the engine runs it.
pub(crate) struct Drafter {
    layer: DraftLayer,
    choice: DepthChoice,
    pub(crate) num_proposed: u64,
    pub(crate) num_accepted: u64,
    hidden: Vec<f32>,     // (T, D) of a pass
    hidden_out: Vec<f32>, // (R, D)
    parts: Vec<Part>,
}

/// A sequence that guesses.
#[derive(Clone, Copy, Debug)]
struct Part {
    seq: usize,   // index into `running`
    depth: usize, // guesses wanted
}

impl Drafter {
    pub(crate) fn new(layer: DraftLayer, max_depth: usize) -> Drafter {
        Drafter {
            choice: DepthChoice::new(layer.cost.clone(), max_depth),
            layer,
            num_proposed: 0,
            num_accepted: 0,
            hidden: Vec::new(),
            hidden_out: Vec::new(),
            parts: Vec::new(),
        }
    }

    /// Of the guesses that took part in a step, so many had their turn, and so many of them were right.
    pub(crate) fn note(&mut self, num_drafts: usize, num_tried: usize, num_right: usize) {
        self.num_proposed += num_drafts as u64;
        self.num_accepted += num_right as u64;
        self.choice.note(num_tried, num_right);
    }

    /// Keeps the hidden states of the rows of a step that hold; what was guessed is verified.
    pub(crate) fn keep(&self, sequence: &mut Sequence, hidden: &[f32], rows: Range<usize>) {
        if let Some(speculation) = &mut sequence.speculation {
            let d = self.layer.hidden_size;
            let kept = &hidden[rows.start * d..rows.end * d];
            speculation.hidden.extend_from_slice(kept);
            speculation.drafts.clear();
        }
    }
}

/// Tokens that may be guessed now: none before the prompt is read, and none that could not be used.
fn room(sequence: &Sequence) -> usize {
    let waits = |s: &crate::sequence::Speculation| !s.hidden.is_empty();
    if sequence.num_uncomputed() == 1 && sequence.speculation.as_ref().is_some_and(waits) {
        (sequence.max_len - sequence.ids.len()).saturating_sub(1)
    } else {
        0
    }
}

impl Engine {
    /// After a step: brings the draft layer up to date where that is due, and guesses.
    pub(crate) fn draft(&mut self) {
        let vocab_size = self.runner.vocab_size();
        let Some(drafter) = &mut self.drafter else {
            return;
        };
        let Scheduler { kv, running, .. } = &mut self.scheduler;
        let mut load = Load::default();
        for sequence in running.iter() {
            if room(sequence) > 0 {
                load.num_seqs += 1;
                load.num_positions += sequence.ids.len();
            } else {
                load.other_rows += sequence.num_uncomputed();
            }
        }
        load.other_rows = load.other_rows.min(self.config.max_num_batched_tokens);
        let depth = drafter.choice.choose(&load);

        let (batch, d) = (&mut self.batch, drafter.layer.hidden_size);
        let num_groups = kv.groups().len();
        batch.clear(num_groups);
        drafter.hidden.clear();
        drafter.parts.clear();
        for (seq, sequence) in running.iter_mut().enumerate() {
            let mut depth = depth.min(room(sequence));
            // Nobody is preempted for a guess.
            while depth > 0 && !kv.grow(&mut sequence.tables, sequence.ids.len() + depth) {
                depth -= 1;
            }
            let Some(speculation) = &mut sequence.speculation else {
                continue;
            };
            let (first, end) = (speculation.num_predicted, sequence.num_computed);
            if depth == 0 && end - first < MAX_WAITING_ROWS {
                continue;
            }
            batch.push(
                &sequence.ids[first + 1..=end],
                &[],
                first,
                usize::from(depth > 0),
                sequence.tables.iter().map(|table| table.blocks()),
            );
            drafter.hidden.append(&mut speculation.hidden);
            speculation.num_predicted = end;
            if depth > 0 {
                drafter.parts.push(Part { seq, depth });
            }
        }
        while !batch.ids.is_empty() {
            let num_logits = batch.logit_rows.len();
            self.logits.resize(num_logits * vocab_size, 0.0);
            drafter.hidden_out.resize(num_logits * d, 0.0);
            let (logits, out) = (&mut self.logits, &mut drafter.hidden_out);
            self.runner.draft(batch, &drafter.hidden, logits, out);
            batch.clear(num_groups);
            drafter.hidden.clear();
            let mut rows = logits.chunks_exact(vocab_size).zip(out.chunks_exact(d));
            drafter.parts.retain(|part| {
                let (logits, out) = rows.next().expect("a row of logits for each sequence");
                let sequence = &mut running[part.seq];
                let position = sequence.ids.len() + sequence.drafts().len();
                let forced = sequence.forced(position);
                let params = SamplingParams {
                    logprobs: None,
                    ..sequence.sampling.clone()
                };
                let counts = &sequence.counts;
                let guess = self
                    .sampler
                    .sample(logits, &params, counts, position, forced);
                let (Some(guess), Some(speculation)) = (guess, &mut sequence.speculation) else {
                    return false;
                };
                let drafts = &mut speculation.drafts;
                drafts.push(guess.id);
                let goes_on = drafts.len() < part.depth && !sequence.stop_ids.contains(&guess.id);
                if goes_on {
                    let at = sequence.num_computed - 1 + drafts.len();
                    let tables = sequence.tables.iter().map(|table| table.blocks());
                    batch.push(&[guess.id], &[], at, 1, tables);
                    drafter.hidden.extend_from_slice(out);
                }
                goes_on
            });
        }
    }
}
