//! Packed sequences, with what is to be predicted in them and what that counts.

use tensor::ops::cross_entropy::IGNORE;

/// Packed sequences with what is to be predicted.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// (T), sequences one after another.
    pub ids: Vec<u32>,
    /// (T), the token after each, or [`IGNORE`].
    pub targets: Vec<u32>,
    /// (T), what the loss of each target counts, perhaps less than nothing; empty: one each.
    pub weights: Vec<f32>,
    /// (T), the token after that, or [`IGNORE`].
    pub mtp_targets: Vec<u32>,
    /// (T), the token after each whether or not it is to be predicted: what the prediction layer embeds.
    /// Any id where there is none; its prediction is then ignored.
    pub next_ids: Vec<u32>,
    /// (B+1), first row of each sequence and the end.
    pub cu_seqlens: Vec<u32>,
}

impl Batch {
    /// Sequences whose every token but the first is to be predicted.
    pub fn from_sequences(sequences: &[Vec<u32>]) -> Batch {
        let mut batch = Batch {
            cu_seqlens: vec![0],
            ..Batch::default()
        };
        for ids in sequences {
            batch.ids.extend(ids);
            let at = |i: usize| ids.get(i).copied().unwrap_or(IGNORE);
            batch.targets.extend((0..ids.len()).map(|t| at(t + 1)));
            batch.mtp_targets.extend((0..ids.len()).map(|t| at(t + 2)));
            let next = |t: usize| ids.get(t + 1).copied().unwrap_or(0);
            batch.next_ids.extend((0..ids.len()).map(next));
            batch.cu_seqlens.push(batch.ids.len() as u32);
        }
        batch
    }

    /// Rows with a target.
    pub fn num_targets(&self) -> usize {
        self.targets.iter().filter(|&&t| t != IGNORE).count()
    }

    /// Rows with a target for the prediction layer.
    pub fn num_mtp_targets(&self) -> usize {
        self.mtp_targets.iter().filter(|&&t| t != IGNORE).count()
    }

    /// Adds the sequences of another batch.
    pub fn append(&mut self, other: &Batch) {
        let rows = self.ids.len() as u32;
        if !self.weights.is_empty() || !other.weights.is_empty() {
            self.weights.resize(self.targets.len(), 1.0);
            self.weights.extend(&other.weights);
            let targets = self.targets.len() + other.targets.len();
            self.weights.resize(targets, 1.0);
        }
        self.ids.extend(&other.ids);
        self.targets.extend(&other.targets);
        self.mtp_targets.extend(&other.mtp_targets);
        self.next_ids.extend(&other.next_ids);
        let ends = other.cu_seqlens.iter().skip(1).map(|end| end + rows);
        self.cu_seqlens.extend(ends);
    }

    /// Fills up to `tokens` rows with a sequence of `pad_id` from which nothing is learnt.
    pub fn pad_to(&mut self, tokens: usize, pad_id: u32) {
        if self.ids.len() < tokens {
            self.ids.resize(tokens, pad_id);
            self.targets.resize(tokens, IGNORE);
            if !self.weights.is_empty() {
                self.weights.resize(tokens, 0.0);
            }
            self.mtp_targets.resize(tokens, IGNORE);
            self.next_ids.resize(tokens, pad_id);
            self.cu_seqlens.push(tokens as u32);
        }
    }

    /// Positions, from 0 in each sequence.
    pub(crate) fn positions(&self) -> Vec<u32> {
        self.cu_seqlens
            .windows(2)
            .flat_map(|s| 0..s[1] - s[0])
            .collect()
    }
}
