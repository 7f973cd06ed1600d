//! The merge loop: the most frequent pair, again and again, with counts kept up to date.
//!
//! For each pair its count and the words it may stand in; a heap of (count, pair) whose entries may be
//! out of date. A merge visits the words of its pair only, and changes the counts of the pairs left and
//! right of each place where it applies. Entries with a count too high are put back with the right one;
//! entries with a count too low have a higher one elsewhere in the heap.

use super::{Growing, Progress, Stage, Trainer};
use crate::fast_hash::{FastMap, pair_key, pair_of_key};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

const PROGRESS_EVERY_MERGES: usize = 64;

/// Distinct pre-tokens as symbols, one after the other.
#[derive(Default)]
pub(super) struct Words {
    symbols: Vec<u32>,
    spans: Vec<Span>,
}

struct Span {
    start: usize, // in `symbols`
    len: u32,     // shrinks as pairs are merged
    count: u64,   // of the pre-token in the text
}

impl Words {
    pub(super) fn push(&mut self, symbols: &[u32], count: u64) {
        let start = self.symbols.len();
        self.symbols.extend_from_slice(symbols);
        self.spans.push(Span {
            start,
            len: symbols.len() as u32,
            count,
        });
    }
}

#[derive(Default)]
struct Pair {
    count: u64,
    words: Vec<u32>, // where it stands or once stood; a word may be named twice
    is_raised: bool, // in the merge under way
}

/// Counts of pairs with the words they stand in.
struct Pairs {
    index: FastMap<u64, u32>, // pair -> place in `pairs`
    pairs: Vec<Pair>,
    raised: Vec<(u64, u32)>, // pairs whose count rose in the merge under way
    max_token_bytes: usize,
}

impl Pairs {
    fn is_counted(&self, growing: &Growing, left: u32, right: u32) -> bool {
        let len = |id: u32| growing.tokens[id as usize].len();
        len(left) + len(right) <= self.max_token_bytes
    }

    fn add(&mut self, growing: &Growing, left: u32, right: u32, word: u32, count: u64) {
        if !self.is_counted(growing, left, right) {
            return;
        }
        let key = pair_key(left, right);
        let next = self.pairs.len() as u32;
        let place = *self.index.entry(key).or_insert(next);
        if place == next {
            self.pairs.push(Pair::default());
        }
        let pair = &mut self.pairs[place as usize];
        pair.count += count;
        if pair.words.last() != Some(&word) {
            pair.words.push(word);
        }
        if !pair.is_raised {
            pair.is_raised = true;
            self.raised.push((key, place));
        }
    }

    fn subtract(&mut self, growing: &Growing, left: u32, right: u32, count: u64) {
        if !self.is_counted(growing, left, right) {
            return;
        }
        if let Some(&place) = self.index.get(&pair_key(left, right)) {
            let pair = &mut self.pairs[place as usize];
            pair.count -= count;
        }
    }

    /// Puts the pairs whose count rose into the heap.
    fn queue(&mut self, heap: &mut BinaryHeap<(u64, Reverse<u64>)>, min_frequency: u64) {
        for (key, place) in self.raised.drain(..) {
            let pair = &mut self.pairs[place as usize];
            pair.is_raised = false;
            if pair.count >= min_frequency {
                heap.push((pair.count, Reverse(key)));
            }
        }
    }
}

/// Merges until the vocabulary has the size of the stage or no pair is frequent enough.
pub(super) fn learn(
    trainer: &Trainer,
    stage: &Stage,
    mut words: Words,
    growing: &mut Growing,
    progress: &mut dyn FnMut(Progress),
) {
    let min_frequency = trainer.min_frequency.max(1);
    let mut pairs = Pairs {
        index: FastMap::default(),
        pairs: Vec::new(),
        raised: Vec::new(),
        max_token_bytes: trainer.max_token_bytes,
    };
    for (word, span) in words.spans.iter().enumerate() {
        for pair in words.symbols[span.start..][..span.len as usize].windows(2) {
            pairs.add(growing, pair[0], pair[1], word as u32, span.count);
        }
    }
    let mut heap = BinaryHeap::new();
    pairs.queue(&mut heap, min_frequency);

    let mut told = 0;
    while growing.tokens.len() < stage.target
        && let Some((count, Reverse(key))) = heap.pop()
    {
        let Some(&place) = pairs.index.get(&key) else {
            continue;
        };
        let pair = &mut pairs.pairs[place as usize];
        if pair.count != count {
            if pair.count < count && pair.count >= min_frequency {
                heap.push((pair.count, Reverse(key)));
            }
            continue;
        }
        pair.count = 0;
        let places = std::mem::take(&mut pair.words);
        let Some(product) = growing.merge(key) else {
            continue;
        };
        for word in places {
            let span = &mut words.spans[word as usize];
            let symbols = &mut words.symbols[span.start..][..span.len as usize];
            span.len = apply(key, product, symbols, word, span.count, growing, &mut pairs);
        }
        pairs.queue(&mut heap, min_frequency);

        if growing.merges.len() - told >= PROGRESS_EVERY_MERGES {
            told = growing.merges.len();
            let (vocab_size, target) = (growing.tokens.len(), stage.target);
            progress(Progress::Merging {
                stage: stage.number,
                vocab_size,
                target,
            });
        }
    }
    let (vocab_size, target) = (growing.tokens.len(), stage.target);
    progress(Progress::Merging {
        stage: stage.number,
        vocab_size,
        target,
    });
}

/// Merges the pair wherever it stands in one word, from left to right; gives the new length.
fn apply(
    key: u64,
    product: u32,
    symbols: &mut [u32],
    word: u32,
    count: u64,
    growing: &Growing,
    pairs: &mut Pairs,
) -> u32 {
    let (left, right) = pair_of_key(key);
    let (mut from, mut to) = (0, 0);
    while from < symbols.len() {
        if symbols[from] != left || symbols.get(from + 1) != Some(&right) {
            symbols[to] = symbols[from];
            from += 1;
            to += 1;
            continue;
        }
        // The pair itself has given up its count already, also where it stands beside itself.
        if to > 0 {
            let before = symbols[to - 1];
            if pair_key(before, left) != key {
                pairs.subtract(growing, before, left, count);
            }
            pairs.add(growing, before, product, word, count);
        }
        if let Some(&after) = symbols.get(from + 2) {
            if pair_key(right, after) != key {
                pairs.subtract(growing, right, after, count);
            }
            pairs.add(growing, product, after, word, count);
        }
        symbols[to] = product;
        from += 2;
        to += 1;
    }
    to as u32
}
