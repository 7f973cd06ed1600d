//! Byte-pair encoding of one pre-token: from bytes to token ids.
//!
//! The definition: start with one symbol per byte; while some adjacent pair has a merge, apply the
//! merge of lowest rank, the leftmost first. Two facts make it fast without changing the result.
//!
//! 1. A pre-token may be a whole sentence, so long inputs use a heap of (rank, position) over a linked
//!    list: O(n log n). Short ones are scanned for their lowest rank.
//! 2. Let R be the rank of the first merge whose product crosses words (`pretokenize::words`). No merge
//!    below R touches two words, so with the merges below R each word is encoded on its own, from a
//!    cache, and the merges from R on then work on the few symbols that are left.
//!
//! Source: Sennrich et al. 2016 (BPE); Liu et al. 2025, arXiv 2503.13423 (tokens across words).

use crate::fast_hash::{FastMap, hash_bytes, pair_key};
use crate::pretokenize::{crosses_words, words};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::{Mutex, PoisonError};

/// No merge; also the end of the linked list.
const NONE: u32 = u32::MAX;

/// Up to this many symbols the quadratic scan is used; above, the heap.
const SCAN_MAX_SYMBOLS: usize = 40;

/// Longer pieces are cut, so that positions fit the heap's 32 bits.
const PIECE_MAX_BYTES: usize = 1 << 30;

/// One merge: the pair `left`, `right` becomes `product`. Its rank is its place in the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Merge {
    pub(crate) left: u32,
    pub(crate) right: u32,
    pub(crate) product: u32,
}

/// The merge table with working memory that calls lend each other.
#[derive(Debug)]
pub(crate) struct Bpe {
    byte_ids: [u32; 256],
    merges: FastMap<u64, (u32, u32)>, // pair -> (rank, product)
    first_crossing: u32,              // rank R of the module header; NONE if no merge crosses words
    scratches: Mutex<Vec<Scratch>>,
}

impl Bpe {
    /// `merges` are pairs (rank, merge); `bytes_of` gives the bytes of a token.
    pub(crate) fn new<'a>(
        byte_ids: [u32; 256],
        merges: impl Iterator<Item = (u32, Merge)>,
        bytes_of: impl Fn(u32) -> &'a [u8],
    ) -> Self {
        let mut first_crossing = NONE;
        let merges = merges
            .map(|(rank, merge)| {
                if rank < first_crossing && crosses_words(bytes_of(merge.product)) {
                    first_crossing = rank;
                }
                (pair_key(merge.left, merge.right), (rank, merge.product))
            })
            .collect();
        Bpe {
            byte_ids,
            merges,
            first_crossing,
            scratches: Mutex::new(Vec::new()),
        }
    }

    /// Runs `f` with working memory that no other thread holds.
    pub(crate) fn with_scratch<R>(&self, f: impl FnOnce(&mut Scratch) -> R) -> R {
        let lock = || {
            self.scratches
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
        };
        let mut scratch = lock().pop().unwrap_or_default();
        let result = f(&mut scratch);
        lock().push(scratch);
        result
    }

    /// Appends the ids of one pre-token.
    pub(crate) fn encode(&self, piece: &[u8], scratch: &mut Scratch, ids: &mut Vec<u32>) {
        for piece in piece.chunks(PIECE_MAX_BYTES) {
            let start = ids.len();
            for word in words(piece) {
                self.encode_word(word, scratch, ids);
            }
            if self.first_crossing != NONE {
                self.merge(ids, start, NONE, scratch);
            }
        }
    }

    /// Appends the symbols of one word after all merges below `first_crossing`.
    fn encode_word(&self, word: &[u8], scratch: &mut Scratch, ids: &mut Vec<u32>) {
        if word.len() > CACHED_WORD_BYTES {
            return self.encode_word_uncached(word, scratch, ids);
        }
        let slot = hash_bytes(word) as usize % CACHE_SLOTS;
        if let Some(cached) = scratch.cache.get(slot)
            && cached.word[..usize::from(cached.len)] == *word
        {
            ids.extend_from_slice(&cached.ids[..usize::from(cached.num_ids)]);
            return;
        }
        let start = ids.len();
        self.encode_word_uncached(word, scratch, ids);
        let num_ids = ids.len() - start;
        if num_ids <= CACHED_WORD_IDS {
            scratch.cache.resize(CACHE_SLOTS, CachedWord::default());
            let cached = &mut scratch.cache[slot];
            cached.len = word.len() as u8;
            cached.num_ids = num_ids as u8;
            cached.word[..word.len()].copy_from_slice(word);
            cached.ids[..num_ids].copy_from_slice(&ids[start..]);
        }
    }

    fn encode_word_uncached(&self, word: &[u8], scratch: &mut Scratch, ids: &mut Vec<u32>) {
        let start = ids.len();
        ids.extend(word.iter().map(|&byte| self.byte_ids[usize::from(byte)]));
        self.merge(ids, start, self.first_crossing, scratch);
    }

    /// The rank below `limit` and the product of a pair; rank `NONE` if it has none.
    #[inline]
    fn rank(&self, left: u32, right: u32, limit: u32) -> (u32, u32) {
        match self.merges.get(&pair_key(left, right)) {
            Some(&(rank, product)) if rank < limit => (rank, product),
            _ => (NONE, 0),
        }
    }

    /// Merges the symbols `ids[start..]` in place with the merges of rank below `limit`.
    fn merge(&self, ids: &mut Vec<u32>, start: usize, limit: u32, scratch: &mut Scratch) {
        match ids.len() - start {
            0 | 1 => {}
            2..=SCAN_MAX_SYMBOLS => self.merge_by_scan(ids, start, limit),
            _ => self.merge_by_heap(ids, start, limit, scratch),
        }
    }

    fn merge_by_scan(&self, ids: &mut Vec<u32>, start: usize, limit: u32) {
        let symbols = &mut ids[start..];
        let mut len = symbols.len();
        // The pair (i, i + 1) has ranks[i].
        let mut ranks = [(NONE, 0); SCAN_MAX_SYMBOLS];
        for i in 0..len - 1 {
            ranks[i] = self.rank(symbols[i], symbols[i + 1], limit);
        }
        loop {
            let mut best = 0;
            for i in 1..len - 1 {
                if ranks[i].0 < ranks[best].0 {
                    best = i;
                }
            }
            let (rank, product) = ranks[best];
            if rank == NONE {
                break;
            }
            symbols[best] = product;
            symbols.copy_within(best + 2..len, best + 1);
            ranks.copy_within(best + 1..len - 1, best);
            len -= 1;
            if best > 0 {
                ranks[best - 1] = self.rank(symbols[best - 1], product, limit);
            }
            if best + 1 < len {
                ranks[best] = self.rank(product, symbols[best + 1], limit);
            } else if len == 1 {
                break;
            }
        }
        ids.truncate(start + len);
    }

    fn merge_by_heap(&self, ids: &mut Vec<u32>, start: usize, limit: u32, scratch: &mut Scratch) {
        let symbols = &mut ids[start..];
        let len = symbols.len() as u32;
        let Scratch {
            next,
            previous,
            heap,
            ..
        } = scratch;
        next.clear();
        next.extend((1..len).chain([NONE]));
        previous.clear();
        previous.extend([NONE].into_iter().chain(0..len - 1));
        heap.clear();
        // Rank above position: the smallest entry is the lowest rank, the leftmost among equals.
        let entry = |rank: u32, position: u32| Reverse(pair_key(rank, position));
        heap.extend((0..len - 1).filter_map(|i| {
            let (rank, _) = self.rank(symbols[i as usize], symbols[i as usize + 1], limit);
            (rank != NONE).then(|| entry(rank, i))
        }));

        while let Some(Reverse(key)) = heap.pop() {
            let (rank, left) = ((key >> 32) as u32, key as u32);
            let right = next[left as usize];
            // An entry is out of date if its symbols have been merged away; a rank names one pair, so
            // an entry whose rank still fits is right whenever it was made.
            if right == NONE || symbols[left as usize] == NONE {
                continue;
            }
            let (now, product) = self.rank(symbols[left as usize], symbols[right as usize], limit);
            if now != rank {
                continue;
            }
            let after = next[right as usize];
            symbols[left as usize] = product;
            symbols[right as usize] = NONE;
            next[left as usize] = after;
            if after != NONE {
                previous[after as usize] = left;
                let (rank, _) = self.rank(product, symbols[after as usize], limit);
                if rank != NONE {
                    heap.push(entry(rank, left));
                }
            }
            let before = previous[left as usize];
            if before != NONE {
                let (rank, _) = self.rank(symbols[before as usize], product, limit);
                if rank != NONE {
                    heap.push(entry(rank, before));
                }
            }
        }
        let mut kept = start;
        for i in start..ids.len() {
            if ids[i] != NONE {
                ids[kept] = ids[i];
                kept += 1;
            }
        }
        ids.truncate(kept);
    }
}

const CACHE_SLOTS: usize = 1 << 14; // 1 MiB a thread
const CACHED_WORD_BYTES: usize = 30;
const CACHED_WORD_IDS: usize = 8;

/// A remembered word in 64 bytes. The empty slot is the (right) answer for the empty word.
#[derive(Clone, Copy, Debug, Default)]
struct CachedWord {
    ids: [u32; CACHED_WORD_IDS],
    word: [u8; CACHED_WORD_BYTES],
    len: u8,
    num_ids: u8,
}

/// Working memory of encoding: the word cache (each slot holds its latest word) and the lists of the
/// heap method.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    cache: Vec<CachedWord>,
    next: Vec<u32>,
    previous: Vec<u32>,
    heap: BinaryHeap<Reverse<u64>>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A table over the bytes `a`, `b`, `c` and the space with arbitrary merges; ids of bytes are
    /// their values. The bytes of each token come with it.
    fn table(choices: &[(usize, usize)]) -> (Vec<Merge>, Vec<Vec<u8>>) {
        let mut tokens: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
        let mut usable: Vec<u32> = b"abc ".iter().map(|&byte| u32::from(byte)).collect();
        let mut merges: Vec<Merge> = Vec::new();
        for &(left, right) in choices {
            let (left, right) = (usable[left % usable.len()], usable[right % usable.len()]);
            if merges
                .iter()
                .any(|merge| (merge.left, merge.right) == (left, right))
            {
                continue;
            }
            let bytes = [&tokens[left as usize][..], &tokens[right as usize]].concat();
            if bytes.len() > 64 {
                continue;
            }
            let product = tokens
                .iter()
                .position(|token| *token == bytes)
                .unwrap_or(tokens.len());
            if product == tokens.len() {
                tokens.push(bytes);
                usable.push(product as u32);
            }
            merges.push(Merge {
                left,
                right,
                product: product as u32,
            });
        }
        (merges, tokens)
    }

    /// The definition, word for word.
    fn naive(merges: &[Merge], text: &[u8]) -> Vec<u32> {
        let mut symbols: Vec<u32> = text.iter().map(|&byte| u32::from(byte)).collect();
        loop {
            let best = (0..symbols.len().saturating_sub(1))
                .filter_map(|i| {
                    let is_pair = |m: &Merge| (m.left, m.right) == (symbols[i], symbols[i + 1]);
                    merges.iter().position(is_pair).map(|rank| (rank, i))
                })
                .min();
            let Some((rank, i)) = best else {
                return symbols;
            };
            symbols[i] = merges[rank].product;
            symbols.remove(i + 1);
        }
    }

    fn bpe(merges: &[Merge], tokens: &[Vec<u8>]) -> Bpe {
        let ranked = (0..).zip(merges.iter().copied());
        Bpe::new(std::array::from_fn(|byte| byte as u32), ranked, |id| {
            &tokens[id as usize]
        })
    }

    fn encode(bpe: &Bpe, text: &[u8]) -> Vec<u32> {
        let mut ids = Vec::new();
        bpe.with_scratch(|scratch| bpe.encode(text, scratch, &mut ids));
        ids
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn encoding_is_the_definition_for_any_merges_and_any_length(
            choices in proptest::collection::vec((0_usize..60, 0_usize..60), 0..60),
            text in "[abc ]{0,140}",
        ) {
            let (merges, tokens) = table(&choices);
            let bpe = bpe(&merges, &tokens);
            let expected = naive(&merges, text.as_bytes());
            prop_assert_eq!(&encode(&bpe, text.as_bytes()), &expected);
            // Again, from the cache.
            prop_assert_eq!(&encode(&bpe, text.as_bytes()), &expected);
        }
    }

    #[test]
    fn a_sentence_of_a_million_letters_is_encoded() {
        let choices: Vec<(usize, usize)> = (0..12).map(|i| (i + 4 * i.min(1), i + 3)).collect();
        let (merges, tokens) = table(&choices);
        let bpe = bpe(&merges, &tokens);
        let text = b"abcab cba".repeat(120_000);
        // In quadratic time this would take minutes.
        let ids = encode(&bpe, &text);
        let decoded: Vec<u8> = ids
            .iter()
            .flat_map(|&id| tokens[id as usize].clone())
            .collect();
        assert_eq!(decoded, text);
    }
}
