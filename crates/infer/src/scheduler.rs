//! Which sequences run in the next step, and with how many rows.
//!
//! Continuous batching: every step takes the running sequences in the order of their arrival and gives
//! each what is left of the token budget, at most what it still has to compute: one row for a
//! sequence that is decoding, a chunk for one whose prompt is not finished. Guessed tokens are rows more,
//! as far as every other running sequence keeps a row. What remains admits waiting sequences, oldest first,
//! when there is room for the whole of them.
//!
//! When blocks run out the youngest running sequence is preempted: its blocks are freed, and it goes
//! back to the head of the queue to be computed again, prompt and generated tokens alike. The oldest
//! always advances, because alone it fits (the engine refuses requests that do not).
//!
//! Pure: no threads, no clock, no model. Source of the idea: Kwon et al. 2023, arXiv:2309.06180
//! (blocks, preemption by recomputation); Agrawal et al. 2023, arXiv:2308.16369 (chunked prefill).

use crate::kv_blocks::KvBlocks;
use crate::sequence::{RequestId, Sequence};
use std::collections::VecDeque;

/// One running sequence's part of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scheduled {
    pub(crate) seq: usize,        // index into `running`
    pub(crate) num_tokens: usize, // rows, from `num_computed` on
    pub(crate) num_drafts: usize, // rows after them, of guessed tokens
}

#[derive(Debug)]
pub(crate) struct Scheduler {
    pub(crate) kv: KvBlocks,
    pub(crate) waiting: VecDeque<Sequence>,
    pub(crate) running: Vec<Sequence>, // in the order of arrival
    pub(crate) num_preemptions: u64,
    max_num_seqs: usize,
    max_num_batched_tokens: usize,
}

impl Scheduler {
    pub(crate) fn new(
        kv: KvBlocks,
        max_num_seqs: usize,
        max_num_batched_tokens: usize,
    ) -> Scheduler {
        Scheduler {
            kv,
            waiting: VecDeque::new(),
            running: Vec::new(),
            num_preemptions: 0,
            max_num_seqs,
            max_num_batched_tokens,
        }
    }

    /// Fills `step` with the next step's work and gives every part of it its blocks.
    pub(crate) fn schedule(&mut self, step: &mut Vec<Scheduled>) {
        step.clear();
        let mut budget = self.max_num_batched_tokens;
        let mut was_preempted = false;
        let mut seq = 0;
        while seq < self.running.len() && budget > 0 {
            let others = self.running.len() - seq - 1;
            let sequence = &mut self.running[seq];
            let num_tokens = sequence.num_uncomputed().min(budget);
            let num_drafts = match num_tokens == sequence.num_uncomputed() {
                true => (budget - num_tokens).saturating_sub(others),
                false => 0,
            };
            let num_drafts = num_drafts.min(sequence.drafts().len());
            let end = sequence.num_computed + num_tokens + num_drafts;
            if self.kv.grow(&mut sequence.tables, end) {
                step.push(Scheduled {
                    seq,
                    num_tokens,
                    num_drafts,
                });
                budget -= num_tokens + num_drafts;
                seq += 1;
            } else {
                // The youngest may be the sequence at hand; then the loop ends here.
                self.preempt_youngest();
                was_preempted = true;
            }
        }
        if was_preempted {
            return;
        }
        while budget > 0 && self.running.len() < self.max_num_seqs {
            let Some(sequence) = self.waiting.front_mut() else {
                break;
            };
            if !self.kv.has_room_for_all(sequence.ids.len()) {
                break;
            }
            let num_tokens = sequence.num_uncomputed().min(budget);
            if !self.kv.grow(&mut sequence.tables, num_tokens) {
                break;
            }
            step.push(Scheduled {
                seq: self.running.len(),
                num_tokens,
                num_drafts: 0,
            });
            budget -= num_tokens;
            self.running.extend(self.waiting.pop_front());
        }
    }

    /// Takes a request out of the engine wherever it is, and frees its blocks.
    pub(crate) fn remove(&mut self, id: RequestId) -> bool {
        let removed = match self.running.iter().position(|sequence| sequence.id == id) {
            Some(at) => Some(self.running.remove(at)),
            None => {
                let at = self.waiting.iter().position(|sequence| sequence.id == id);
                at.and_then(|at| self.waiting.remove(at))
            }
        };
        match removed {
            Some(mut sequence) => {
                self.kv.release_all(&mut sequence.tables);
                true
            }
            None => false,
        }
    }

    fn preempt_youngest(&mut self) {
        let mut sequence = self.running.pop().expect("called for a running sequence");
        self.kv.release_all(&mut sequence.tables);
        sequence.forget_computed();
        tracing::debug!(request = sequence.id.0, len = sequence.ids.len(), "preempt");
        self.waiting.push_front(sequence);
        self.num_preemptions += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampler::SamplingParams;

    fn scheduler(num_blocks: usize, max_num_seqs: usize, budget: usize) -> Scheduler {
        let kv = KvBlocks::new(&[None], num_blocks, max_num_seqs, 0, budget);
        Scheduler::new(kv, max_num_seqs, budget)
    }

    fn wait(scheduler: &mut Scheduler, id: u64, len: usize) {
        scheduler.waiting.push_back(Sequence {
            id: RequestId(id),
            ids: vec![0; len],
            max_len: usize::MAX,
            num_computed: 0,
            tables: scheduler.kv.new_tables(),
            sampling: SamplingParams::greedy(),
            stop_ids: Vec::new(),
            budget: None,
            counts: Default::default(),
            speculation: None,
        });
    }

    /// One step in which every finished row yields a token: (request, rows) of the step.
    fn step(scheduler: &mut Scheduler) -> Vec<(u64, usize)> {
        let mut scheduled = Vec::new();
        scheduler.schedule(&mut scheduled);
        scheduled
            .iter()
            .map(|part| {
                let sequence = &mut scheduler.running[part.seq];
                sequence.num_computed += part.num_tokens;
                if sequence.num_uncomputed() == 0 {
                    sequence.push(0);
                }
                (sequence.id.0, part.num_tokens)
            })
            .collect()
    }

    #[test]
    fn a_long_prompt_is_chunked_and_decoding_goes_on() {
        let mut s = scheduler(100, 4, 32);
        wait(&mut s, 1, 10);
        assert_eq!(step(&mut s), [(1, 10)]);
        wait(&mut s, 2, 70);
        assert_eq!(step(&mut s), [(1, 1), (2, 31)]);
        assert_eq!(step(&mut s), [(1, 1), (2, 31)]);
        assert_eq!(step(&mut s), [(1, 1), (2, 8)]);
        assert_eq!(step(&mut s), [(1, 1), (2, 1)]);
    }

    #[test]
    fn guesses_take_only_rows_that_nobody_else_needs() {
        let mut s = scheduler(100, 4, 6);
        (1..=3).for_each(|id| wait(&mut s, id, 2));
        assert_eq!(step(&mut s), [(1, 2), (2, 2), (3, 2)]);
        for sequence in &mut s.running {
            sequence.speculation.get_or_insert_default().drafts = vec![0; 3];
        }
        let mut scheduled = Vec::new();
        s.schedule(&mut scheduled);
        let rows = scheduled.iter().map(|p| (p.num_tokens, p.num_drafts));
        let rows: Vec<_> = rows.collect();
        assert_eq!(rows, [(1, 3), (1, 0), (1, 0)]);
    }

    #[test]
    fn no_more_sequences_run_than_allowed() {
        let mut s = scheduler(100, 2, 64);
        (1..=3).for_each(|id| wait(&mut s, id, 4));
        assert_eq!(step(&mut s), [(1, 4), (2, 4)]);
        assert!(s.remove(RequestId(1)));
        assert_eq!(step(&mut s), [(2, 1), (3, 4)]);
        assert!(!s.remove(RequestId(1)));
    }

    #[test]
    fn the_youngest_is_preempted_and_comes_back_first() {
        let mut s = scheduler(2, 4, 256);
        wait(&mut s, 1, 64);
        wait(&mut s, 2, 60);
        wait(&mut s, 3, 4);
        assert_eq!(step(&mut s), [(1, 64), (2, 60)]);
        // Request 1 needs a second block; 2 gives up its own, ahead of 3 in the queue.
        assert_eq!(step(&mut s), [(1, 1)]);
        assert_eq!(s.num_preemptions, 1);
        assert_eq!(s.waiting.iter().map(|q| q.id.0).collect::<Vec<_>>(), [2, 3]);
        assert_eq!(step(&mut s), [(1, 1)]);
        assert!(s.remove(RequestId(1)));
        // 60 of the prompt and one generated.
        assert_eq!(step(&mut s), [(2, 61), (3, 4)]);
    }
}
