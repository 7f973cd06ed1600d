//! Batches of instruction dialogues: several to a row, each a segment of its own, with only the marked
//! tokens (the assistant's) as targets.
//!
//! An epoch is all dialogues in a shuffled order, packed in that order: a batch takes dialogues as long
//! as `batch_tokens` allows, so that batches differ a little in size and nothing is cut or padded.
//! The batch of a step is a function of (dialogues, options, step). A dialogue longer than `seq_len` is
//! left out and counted: cutting it would teach answers to questions that were cut off.

use std::sync::Mutex;

use numerics::Rng;
use thiserror::Error;

use crate::loader::{Batch, IGNORE};

/// A dialogue as ids, and which of them are to be learnt (same length).
pub type TokenizedDialogue = (Vec<u32>, Vec<bool>);

/// Dialogues that cannot be packed.
#[derive(Debug, Error)]
pub enum PackError {
    /// Ids and mask do not belong together.
    #[error("dialogue {idx} has {ids} ids and a mask of {mask}")]
    Mask {
        /// Which, from 0.
        idx: usize,
        /// Number of ids.
        ids: usize,
        /// Length of the mask.
        mask: usize,
    },
    /// Nothing to learn from.
    #[error(
        "no dialogue is left: {too_long} of {given} are longer than seq_len {seq_len}, the others \
         have nothing to learn"
    )]
    Empty {
        /// Dialogues given.
        given: usize,
        /// Of them too long.
        too_long: usize,
        /// The bound.
        seq_len: usize,
    },
}

/// The batches of instruction tuning.
#[derive(Debug)]
pub struct DialoguePacker {
    dialogues: Vec<TokenizedDialogue>,
    batch_tokens: usize,
    seed: u64,
    too_long: usize,
    commitment: String,
    /// Epochs packed so far: the order, and the place in it at which each batch begins.
    epochs: Mutex<Vec<(Vec<u32>, Vec<u32>)>>,
}

impl DialoguePacker {
    /// Packs dialogues of at most `seq_len` ids into batches of at most `batch_tokens` (at least one
    /// dialogue a batch).
    pub fn new(
        dialogues: Vec<TokenizedDialogue>,
        seq_len: usize,
        batch_tokens: usize,
        seed: u64,
    ) -> Result<DialoguePacker, PackError> {
        let given = dialogues.len();
        for (idx, (ids, mask)) in dialogues.iter().enumerate() {
            if ids.len() != mask.len() {
                return Err(PackError::Mask {
                    idx,
                    ids: ids.len(),
                    mask: mask.len(),
                });
            }
        }
        let mut hashed = format!("dokja-dialogue-order-1\nseed {seed}\nseq_len {seq_len}\n");
        hashed.push_str(&format!("batch_tokens {batch_tokens}\n"));
        let mut bytes = hashed.into_bytes();
        for (ids, mask) in &dialogues {
            bytes.extend_from_slice(&(ids.len() as u64).to_le_bytes());
            bytes.extend(ids.iter().flat_map(|id| id.to_le_bytes()));
            bytes.extend(mask.iter().map(|is_learnt| u8::from(*is_learnt)));
        }
        let commitment = formats::hash::sha256_hex(&bytes);
        let too_long = dialogues
            .iter()
            .filter(|(ids, _)| ids.len() > seq_len)
            .count();
        let dialogues: Vec<TokenizedDialogue> = dialogues
            .into_iter()
            .filter(|(ids, mask)| ids.len() <= seq_len && mask.iter().skip(1).any(|m| *m))
            .collect();
        if dialogues.is_empty() {
            return Err(PackError::Empty {
                given,
                too_long,
                seq_len,
            });
        }
        let epochs = Mutex::new(Vec::new());
        Ok(DialoguePacker {
            dialogues,
            batch_tokens,
            seed,
            too_long,
            commitment,
            epochs,
        })
    }

    /// Dialogues left out because they are longer than `seq_len`.
    pub fn too_long(&self) -> usize {
        self.too_long
    }

    /// SHA-256 over everything that determines the batches.
    pub fn commitment(&self) -> &str {
        &self.commitment
    }

    /// Number of batches in the first `epochs` epochs: the steps of a run that reads everything so often.
    pub fn num_batches(&self, epochs: u64) -> u64 {
        let mut packed = self.epochs.lock().expect("nothing panics while it is held");
        (0..epochs as usize)
            .map(|number| self.epoch(&mut packed, number).1.len() as u64)
            .sum()
    }

    /// The batch of a step; epochs follow each other without end.
    pub fn batch(&self, step: u64) -> Batch {
        let mut packed = self.epochs.lock().expect("nothing panics while it is held");
        let (mut step, mut number) = (step as usize, 0);
        loop {
            let (order, starts) = self.epoch(&mut packed, number);
            if step < starts.len() {
                let end = starts
                    .get(step + 1)
                    .map_or(order.len(), |end| *end as usize);
                return self.pack(&order[starts[step] as usize..end]);
            }
            step -= starts.len();
            number += 1;
        }
    }

    fn epoch<'p>(
        &self,
        packed: &'p mut Vec<(Vec<u32>, Vec<u32>)>,
        number: usize,
    ) -> &'p (Vec<u32>, Vec<u32>) {
        while packed.len() <= number {
            let mut order: Vec<u32> = (0..self.dialogues.len() as u32).collect();
            Rng::new(self.seed, &format!("dialogues/{}", packed.len())).shuffle(&mut order);
            let mut starts = Vec::new();
            let mut used = 0;
            for (place, idx) in order.iter().enumerate() {
                let tokens = self.dialogues[*idx as usize].0.len();
                if starts.is_empty() || used + tokens > self.batch_tokens {
                    starts.push(place as u32);
                    used = 0;
                }
                used += tokens;
            }
            packed.push((order, starts));
        }
        &packed[number]
    }

    fn pack(&self, order: &[u32]) -> Batch {
        let mut batch = Batch::default();
        for idx in order {
            let (ids, mask) = &self.dialogues[*idx as usize];
            batch.begin_segment();
            for at in 0..ids.len() {
                let next = ids.get(at + 1).copied().unwrap_or(IGNORE);
                let learnt = |ahead: usize| match mask.get(at + ahead) {
                    Some(true) => ids[at + ahead],
                    _ => IGNORE,
                };
                batch.ids.push(ids[at]);
                batch.next_ids.push(next);
                batch.targets.push(learnt(1));
                batch.targets2.push(learnt(2));
            }
        }
        batch.end();
        batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dialogue(len: usize, prompt: usize, base: u32) -> TokenizedDialogue {
        (
            (0..len as u32).map(|i| base + i).collect(),
            (0..len).map(|i| i >= prompt).collect(),
        )
    }

    #[test]
    fn the_prompt_is_no_target_and_dialogues_do_not_touch() {
        let packer =
            DialoguePacker::new(vec![dialogue(4, 2, 10), dialogue(3, 1, 20)], 8, 8, 1).unwrap();
        let batch = packer.batch(0);
        assert_eq!(batch.cu_seqlens.len(), 3);
        let first = if batch.ids[0] == 10 { 0 } else { 3 };
        assert_eq!(batch.ids[first..first + 4], [10, 11, 12, 13]);
        assert_eq!(batch.targets[first..first + 4], [IGNORE, 12, 13, IGNORE]);
        assert_eq!(batch.targets2[first..first + 4], [12, 13, IGNORE, IGNORE]);
        assert_eq!(batch.next_ids[first..first + 4], [11, 12, 13, IGNORE]);
    }

    #[test]
    fn an_epoch_holds_every_dialogue_once_and_seeks_without_state() {
        let dialogues: Vec<_> = (0..100)
            .map(|i| dialogue(5 + i % 7, 2, i as u32 * 20))
            .collect();
        let packer = DialoguePacker::new(dialogues.clone(), 16, 64, 3).unwrap();
        let steps = packer.num_batches(1);
        let mut firsts: Vec<u32> = (0..steps)
            .flat_map(|step| {
                let batch = packer.batch(step);
                assert!(batch.num_tokens() <= 64);
                let starts = batch.cu_seqlens[..batch.cu_seqlens.len() - 1].to_vec();
                starts
                    .into_iter()
                    .map(move |s| batch.ids[s as usize])
                    .collect::<Vec<_>>()
            })
            .collect();
        firsts.sort_unstable();
        assert_eq!(firsts, (0..100).map(|i| i * 20).collect::<Vec<u32>>());
        let again = DialoguePacker::new(dialogues.clone(), 16, 64, 3).unwrap();
        assert_eq!(again.batch(steps + 4), packer.batch(steps + 4));
        assert_eq!(again.commitment(), packer.commitment());
        let other = DialoguePacker::new(dialogues, 16, 64, 4).unwrap();
        assert_ne!(other.batch(0), packer.batch(0));
        assert_ne!(other.commitment(), packer.commitment());
    }

    #[test]
    fn what_is_too_long_or_unmarked_is_left_out() {
        let given = vec![dialogue(9, 2, 0), dialogue(4, 4, 50), dialogue(4, 1, 90)];
        let packer = DialoguePacker::new(given, 8, 4, 0).unwrap();
        assert_eq!((packer.too_long(), packer.num_batches(2)), (1, 2));
        assert!(DialoguePacker::new(vec![dialogue(9, 2, 0)], 8, 4, 0).is_err());
        assert!(DialoguePacker::new(vec![(vec![1], vec![])], 8, 4, 0).is_err());
    }
}
