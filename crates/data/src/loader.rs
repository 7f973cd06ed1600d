//! Which tokens are in the batch of step s: a function of (token files, options, s), and nothing else.
//!
//! Legend: B sequences (rows) a batch, T = `seq_len` inputs a row.
//!
//! **The stream.** An epoch is all documents in a shuffled order, each as `separator, id, id, ...`.
//! The separator starts a document: from it the first id is predicted; and the separator is what the
//! last id predicts: so every input of a document has a target, and a model learns both to begin and
//! to stop. The stream is cut into rows of T inputs, and the rows are shuffled too (a long document's
//! rows then lie in different batches). What is left over at the end of an epoch, less than a row, is
//! not used in that epoch.
//!
//! **Segments.** Documents of a row do not see each other: `cu_seqlens` has a border wherever a document
//! begins and wherever a row begins, and positions restart there. A document that is cut by the end of
//! a row goes on in another row as a segment of its own, without what came before; its last input
//! before the cut keeps its true target. Packing without borders lets attention read across unrelated
//! texts; packing without cuts (best fit) wastes a share of each row: this is the middle way.
//!
//! **Order.** Documents are shuffled by Fisher-Yates from the stream (seed, epoch); rows by a keyed
//! bijection on `0..rows` (four Feistel rounds of Philox, walked until the value is in range), so that
//! finding a row of any step takes no pass over the ones before. Only the order of the documents of an
//! epoch is held in memory: 12 bytes a document.
//!
//! **Mixture.** With weights, every language is a stream of its own, and rows take turns by a pattern
//! of [`PATTERN`] rows in which each language has its share, spread evenly; a small language then
//! comes round more often.
//!
//! Does not read text, nor decide learning rates, nor keep any state that matters.

use std::{collections::BTreeMap, path::PathBuf, sync::Mutex};

use numerics::{Philox, Rng};
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::{
    manifest::Split,
    tokens::{TokenData, TokenFile},
};

/// A position without a target; the value that the loss kernels pass over.
pub const IGNORE: u32 = u32::MAX;

/// Rows after which a mixture repeats: shares are exact to 1/1024.
pub const PATTERN: usize = 1024;

/// The inputs and targets of one step, packed: T_total = sum of the segments.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Inputs (T_total).
    pub ids: Vec<u32>,
    /// The next id of each input, or [`IGNORE`] where there is none or none to be learnt (T_total).
    pub targets: Vec<u32>,
    /// The id after the next, likewise (T_total): for multi-token prediction.
    pub targets2: Vec<u32>,
    /// The next id whether or not it is to be learnt (T_total): what multi-token prediction embeds.
    pub next_ids: Vec<u32>,
    /// Borders of the segments, from 0 to T_total.
    pub cu_seqlens: Vec<u32>,
}

impl Batch {
    /// Number of inputs.
    pub fn num_tokens(&self) -> usize {
        self.ids.len()
    }

    /// Number of inputs with a target.
    pub fn num_targets(&self) -> usize {
        self.targets
            .iter()
            .filter(|target| **target != IGNORE)
            .count()
    }

    /// Position of each input in its segment (T_total).
    pub fn positions(&self) -> Vec<u32> {
        self.cu_seqlens
            .windows(2)
            .flat_map(|w| 0..w[1] - w[0])
            .collect()
    }

    /// SHA-256 of all that a training step sees.
    pub fn sha256(&self) -> String {
        let mut hasher = Sha256::new();
        for part in [
            &self.ids,
            &self.targets,
            &self.targets2,
            &self.next_ids,
            &self.cu_seqlens,
        ] {
            hasher.update((part.len() as u64).to_le_bytes());
            for value in part {
                hasher.update(value.to_le_bytes());
            }
        }
        hex::encode(hasher.finalize())
    }

    pub(crate) fn begin_segment(&mut self) {
        let here = self.ids.len() as u32;
        if self.cu_seqlens.last() != Some(&here) {
            self.cu_seqlens.push(here);
        }
    }

    pub(crate) fn end(&mut self) {
        self.begin_segment();
    }
}

/// What determines the order of batches.
#[derive(Clone, Debug, PartialEq)]
pub struct LoaderOptions {
    /// Inputs a row, T.
    pub seq_len: usize,
    /// Rows a batch, B.
    pub rows_per_batch: usize,
    /// Seed of the order.
    pub seed: u64,
    /// Share of the rows by language; empty: all documents in one stream.
    pub mixture: BTreeMap<String, f64>,
}

/// Data that cannot be batched as asked.
#[derive(Debug, Error)]
pub enum LoaderError {
    /// A size of nothing.
    #[error("seq_len is {seq_len} and rows_per_batch {rows_per_batch}; both must be at least 1")]
    Size {
        /// As given.
        seq_len: usize,
        /// As given.
        rows_per_batch: usize,
    },
    /// Fewer tokens than a row has.
    #[error(
        "{what} holds {tokens} tokens, less than one row of {seq_len}; give more data or a smaller \
         seq_len"
    )]
    TooSmall {
        /// The training split, or a language of it.
        what: String,
        /// Tokens and separators.
        tokens: u64,
        /// Asked for.
        seq_len: usize,
    },
    /// A language that the data does not have.
    #[error(
        "data.mixture names {lang:?}, the data has {have}; change it, or take documents as they come with \
         --set data.mixture={{}}"
    )]
    Language {
        /// As given.
        lang: String,
        /// What there is.
        have: String,
    },
    /// A weight that is no share.
    #[error("the mixture weighs {lang:?} with {weight}; weights are at least 0 and one is above")]
    Weight {
        /// The language.
        lang: String,
        /// As given.
        weight: f64,
    },
}

/// Documents of one epoch in their order.
struct Epoch {
    number: u64,
    order: Vec<u32>,  // document of each place
    starts: Vec<u64>, // first input of each place, and the end
}

/// Documents that are shuffled together.
struct Stream<'a> {
    name: String,
    /// File of each document by its first number.
    files: Vec<(u32, &'a TokenFile)>,
    num_documents: u32,
    num_rows: u64,
    /// At most two: a batch may reach over the end of an epoch.
    epochs: Mutex<Vec<std::sync::Arc<Epoch>>>,
}

/// The batches of training.
pub struct Loader<'a> {
    options: LoaderOptions,
    separator: u32,
    streams: Vec<Stream<'a>>,
    /// Stream of each row of the pattern, and how many rows of the same stream came before it.
    pattern: Vec<(usize, u64)>,
    /// Rows of each stream in a pattern.
    per_pattern: Vec<u64>,
    commitment: String,
    paths: Vec<PathBuf>,
}

impl<'a> Loader<'a> {
    /// Batches of the training split.
    pub fn new(data: &'a TokenData, options: LoaderOptions) -> Result<Loader<'a>, LoaderError> {
        let (seq_len, rows_per_batch) = (options.seq_len, options.rows_per_batch);
        if seq_len == 0 || rows_per_batch == 0 {
            return Err(LoaderError::Size {
                seq_len,
                rows_per_batch,
            });
        }
        let train: Vec<&TokenFile> = data.of(Split::Train).collect();
        let mut streams = Vec::new();
        let mut weights = Vec::new();
        if options.mixture.is_empty() {
            streams.push(Stream::new(
                "the training split".to_owned(),
                &train,
                seq_len,
            )?);
            weights.push(1.0);
        }
        for (lang, &weight) in &options.mixture {
            let files: Vec<&TokenFile> = train
                .iter()
                .copied()
                .filter(|file| file.lang == *lang)
                .collect();
            if files.is_empty() {
                let have: Vec<&str> = train.iter().map(|file| file.lang.as_str()).collect();
                let (lang, have) = (lang.clone(), have.join(", "));
                return Err(LoaderError::Language { lang, have });
            }
            if !weight.is_finite() || weight < 0.0 {
                return Err(LoaderError::Weight {
                    lang: lang.clone(),
                    weight,
                });
            }
            if weight > 0.0 {
                streams.push(Stream::new(format!("language {lang}"), &files, seq_len)?);
                weights.push(weight);
            }
        }
        if streams.is_empty() {
            let lang = options.mixture.keys().next().cloned().unwrap_or_default();
            return Err(LoaderError::Weight { lang, weight: 0.0 });
        }
        let (pattern, per_pattern) = pattern(&weights);
        let commitment = commitment(data, &options, &train);
        let separator = data.separator;
        Ok(Loader {
            options,
            separator,
            streams,
            pattern,
            per_pattern,
            commitment,
            paths: data.paths(),
        })
    }

    /// SHA-256 over everything that determines the order of batches: the token files' digests (hence
    /// every document), the seed, the sizes, the mixture, the separator and the version of the method.
    pub fn commitment(&self) -> &str {
        &self.commitment
    }

    /// The files that the batches are read from: what a run that holds them records.
    pub fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// Rows in one pass over all streams, each once.
    pub fn rows_per_epoch(&self) -> u64 {
        self.streams.iter().map(|stream| stream.num_rows).sum()
    }

    /// Inputs of one batch.
    pub fn batch_tokens(&self) -> usize {
        self.options.seq_len * self.options.rows_per_batch
    }

    /// The batch of a step.
    pub fn batch(&self, step: u64) -> Batch {
        let (rows, seq_len) = (self.options.rows_per_batch, self.options.seq_len);
        let mut batch = Batch::default();
        for part in [
            &mut batch.ids,
            &mut batch.targets,
            &mut batch.targets2,
            &mut batch.next_ids,
        ] {
            part.reserve(rows * seq_len);
        }
        for row in 0..rows as u64 {
            self.push_row(&mut batch, step * rows as u64 + row);
        }
        batch.end();
        batch
    }

    fn push_row(&self, batch: &mut Batch, row: u64) {
        let length = self.pattern.len() as u64;
        let (stream_idx, before) = self.pattern[(row % length) as usize];
        let stream = &self.streams[stream_idx];
        let own = row / length * self.per_pattern[stream_idx] + before;
        let epoch = stream.epoch(self.options.seed, own / stream.num_rows);
        let key = Philox::new(
            self.options.seed,
            &format!("rows/{}/{}", stream.name, epoch.number),
        );
        let place = permute(&key, own % stream.num_rows, stream.num_rows);
        let seq_len = self.options.seq_len as u64;
        stream.push_row(
            &epoch,
            batch,
            place * seq_len,
            seq_len as usize,
            self.separator,
        );
    }
}

impl<'a> Stream<'a> {
    fn new(name: String, files: &[&'a TokenFile], seq_len: usize) -> Result<Self, LoaderError> {
        let mut first = 0u32;
        let mut placed = Vec::with_capacity(files.len());
        let mut tokens = 0;
        for &file in files {
            placed.push((first, file));
            let documents = file.shard.num_documents();
            first += u32::try_from(documents).expect("a file of 2^32 documents has 2^35 borders");
            tokens += (file.shard.ids().len() + documents) as u64;
        }
        let num_rows = tokens / seq_len as u64;
        if num_rows == 0 {
            return Err(LoaderError::TooSmall {
                what: name,
                tokens,
                seq_len,
            });
        }
        let epochs = Mutex::new(Vec::new());
        Ok(Stream {
            name,
            files: placed,
            num_documents: first,
            num_rows,
            epochs,
        })
    }

    fn document(&self, number: u32) -> &'a [u32] {
        let idx = self.files.partition_point(|(first, _)| *first <= number) - 1;
        let (first, file) = self.files[idx];
        file.shard
            .document((number - first) as usize)
            .expect("numbers come from the files")
    }

    fn epoch(&self, seed: u64, number: u64) -> std::sync::Arc<Epoch> {
        let mut epochs = self.epochs.lock().expect("nothing panics while it is held");
        if let Some(epoch) = epochs.iter().find(|epoch| epoch.number == number) {
            return epoch.clone();
        }
        let mut order: Vec<u32> = (0..self.num_documents).collect();
        Rng::new(seed, &format!("documents/{}/{number}", self.name)).shuffle(&mut order);
        let mut starts = Vec::with_capacity(order.len() + 1);
        let mut at = 0u64;
        for &document in &order {
            starts.push(at);
            at += 1 + self.document(document).len() as u64;
        }
        starts.push(at);
        let epoch = std::sync::Arc::new(Epoch {
            number,
            order,
            starts,
        });
        if epochs.len() > 1 {
            epochs.remove(0);
        }
        epochs.push(epoch.clone());
        epoch
    }

    /// Appends the `seq_len` inputs from place `start` of the epoch's stream.
    fn push_row(
        &self,
        epoch: &Epoch,
        batch: &mut Batch,
        start: u64,
        seq_len: usize,
        separator: u32,
    ) {
        batch.begin_segment();
        let mut left = seq_len;
        let mut place = epoch.starts.partition_point(|s| *s <= start) - 1;
        let mut skip = (start - epoch.starts[place]) as usize;
        while left > 0 {
            let ids = self.document(epoch.order[place]);
            let take = left.min(ids.len() + 1 - skip);
            batch.begin_segment();
            push_document(batch, ids, skip..skip + take, separator);
            left -= take;
            skip = 0;
            place += 1;
        }
    }
}

/// Appends a range of a document's inputs, `separator, ids...`, with their targets `ids..., separator`.
fn push_document(batch: &mut Batch, ids: &[u32], range: std::ops::Range<usize>, separator: u32) {
    for at in range {
        let next = ids.get(at).copied().unwrap_or(separator);
        batch
            .ids
            .push(if at == 0 { separator } else { ids[at - 1] });
        batch.targets.push(next);
        batch.next_ids.push(next);
        batch.targets2.push(match (at + 1).cmp(&ids.len()) {
            std::cmp::Ordering::Less => ids[at + 1],
            std::cmp::Ordering::Equal => separator,
            std::cmp::Ordering::Greater => IGNORE,
        });
    }
}

/// The documents of one split in order, each input once, in rows of at most `seq_len` and batches of at
/// most `rows`: for measuring. Every id and each document's closing separator is a target exactly once.
pub fn sequential<'a>(
    files: impl Iterator<Item = &'a TokenFile> + 'a,
    seq_len: usize,
    rows: usize,
    separator: u32,
) -> impl Iterator<Item = Batch> + 'a {
    let seq_len = seq_len.max(1);
    let mut segments = files
        .flat_map(|file| (0..file.shard.num_documents()).filter_map(|idx| file.shard.document(idx)))
        .flat_map(move |ids| {
            (0..ids.len() + 1)
                .step_by(seq_len)
                .map(move |start| (ids, start..(start + seq_len).min(ids.len() + 1)))
        })
        .peekable();
    std::iter::from_fn(move || {
        segments.peek()?;
        let mut batch = Batch::default();
        while let Some((ids, range)) =
            segments.next_if(|(_, range)| batch.ids.len() + range.len() <= seq_len * rows.max(1))
        {
            batch.begin_segment();
            push_document(&mut batch, ids, range, separator);
        }
        batch.end();
        Some(batch)
    })
}

/// Rows of a pattern by smooth weighted turns: stream of each row, rows of the same stream before it,
/// and rows of each stream in all. One stream needs a pattern of one row.
fn pattern(weights: &[f64]) -> (Vec<(usize, u64)>, Vec<u64>) {
    let length = if weights.len() == 1 { 1 } else { PATTERN };
    let total: f64 = weights.iter().sum();
    let mut counts = vec![0u64; weights.len()];
    let mut rows = Vec::with_capacity(length);
    for row in 1..=length {
        // The stream that is furthest behind its share; the first of equals.
        let behind = |idx: usize| weights[idx] / total * row as f64 - counts[idx] as f64;
        let idx = (0..weights.len())
            .max_by(|&a, &b| behind(a).total_cmp(&behind(b)).then(b.cmp(&a)))
            .expect("there is a stream");
        rows.push((idx, counts[idx]));
        counts[idx] += 1;
    }
    (rows, counts)
}

/// A bijection of `0..n`: a Feistel network on the smallest even number of bits that holds n, applied
/// until the value is below n (a walk along a cycle of a bijection is a bijection of what is below).
fn permute(key: &Philox, value: u64, n: u64) -> u64 {
    let bits = u64::BITS - (n - 1).leading_zeros();
    let half = bits.div_ceil(2).max(1);
    let mask = (1u64 << half) - 1;
    let mut value = value;
    loop {
        let (mut left, mut right) = (value >> half, value & mask);
        for round in 0..4 {
            let mixed = key.block([right as u32, (right >> 32) as u32, round, 0x726f_7773]);
            let mixed = u64::from(mixed[0]) << 32 | u64::from(mixed[1]);
            (left, right) = (right, left ^ (mixed & mask));
        }
        value = left << half | right;
        if value < n {
            return value;
        }
    }
}

fn commitment(data: &TokenData, options: &LoaderOptions, train: &[&TokenFile]) -> String {
    let mut text = format!(
        "dokja-batch-order-1\nmanifest {}\ntokenizer {}\nseparator {}\nseq_len {}\nrows {}\nseed {}\n",
        data.manifest_sha256,
        data.tokenizer_sha256,
        data.separator,
        options.seq_len,
        options.rows_per_batch,
        options.seed
    );
    for (lang, weight) in &options.mixture {
        text.push_str(&format!("weight {lang} {:016x}\n", weight.to_bits()));
    }
    for file in train {
        text.push_str(&format!("file {} {}\n", file.lang, file.sha256));
    }
    formats::hash::sha256_hex(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_permuted_without_loss() {
        for n in [1u64, 2, 3, 7, 64, 1000, 4097] {
            let key = Philox::new(n, "test");
            let mut seen: Vec<u64> = (0..n).map(|v| permute(&key, v, n)).collect();
            if n > 60 {
                assert!(!seen.is_sorted());
            }
            seen.sort_unstable();
            assert_eq!(seen, (0..n).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_pattern_keeps_the_shares_at_every_row() {
        let weights = [3.0, 1.0, 0.5];
        let (rows, counts) = pattern(&weights);
        assert_eq!(counts.iter().sum::<u64>(), PATTERN as u64);
        let mut so_far = [0u64; 3];
        for (row, (stream, before)) in rows.iter().enumerate() {
            assert_eq!(*before, so_far[*stream]);
            so_far[*stream] += 1;
            for idx in 0..3 {
                let due = weights[idx] / 4.5 * (row + 1) as f64;
                assert!((so_far[idx] as f64 - due).abs() <= 2.0);
            }
        }
        assert_eq!(pattern(&[0.3]).0, [(0, 0)]);
    }

    #[test]
    fn every_input_of_a_document_has_its_target() {
        let mut batch = Batch::default();
        batch.begin_segment();
        push_document(&mut batch, &[5, 6, 7], 0..4, 1);
        batch.end();
        assert_eq!(batch.ids, [1, 5, 6, 7]);
        assert_eq!(batch.targets, [5, 6, 7, 1]);
        assert_eq!(batch.targets2, [6, 7, 1, IGNORE]);
        assert_eq!(batch.cu_seqlens, [0, 4]);
    }
}
