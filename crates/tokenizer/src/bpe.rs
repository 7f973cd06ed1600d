//! Byte-pair encoding of one pre-token: from text to token ids.
//!
//! The definition: start with one symbol per byte (or per character, see `Alphabet`); while some
//! adjacent pair has a merge, apply the merge of lowest rank, the leftmost first. Two facts make it
//! fast without changing the result.
//!
//! 1. A pre-token may be a whole sentence, so long inputs use a heap of (rank, position) over a linked
//!    list: O(n log n). Short ones are scanned for their lowest rank.
//! 2. Let R be the rank of the first merge whose product crosses words (`pretokenize::words`). No merge
//!    below R touches two words, so with the merges below R each word is encoded on its own, from a
//!    cache, and the merges from R on then work on the few symbols that are left.
//!
//! Where a vocabulary says `ignore_merges`, a pre-token that is itself a token is that token.
//!
//! Source: Sennrich et al. 2016 (BPE); Liu et al. 2025, arXiv 2503.13423 (tokens across words); the
//! Hugging Face `tokenizers` library (unknown characters, fallback to bytes).

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
pub(crate) const PIECE_MAX_BYTES: usize = 1 << 30;

/// One merge: the pair `left`, `right` becomes `product`. Its rank is its place in the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Merge {
    pub(crate) left: u32,
    pub(crate) right: u32,
    pub(crate) product: u32,
}

/// What a text is before anything is merged.
#[derive(Debug)]
pub(crate) enum Alphabet {
    /// One symbol per byte, by the id of the byte. `NO_TOKEN` only for bytes that UTF-8 never has.
    Bytes(Box<[u32; 256]>),
    /// One symbol per character.
    Chars(Chars),
}

/// No token for a byte.
pub(crate) const NO_TOKEN: u32 = NONE;

/// Symbols of characters, and what stands for a character without one.
#[derive(Debug, Default)]
pub(crate) struct Chars {
    pub(crate) ids: FastMap<char, u32>,
    /// For `byte_fallback`: the tokens `<0x00>` to `<0xFF>`, `NO_TOKEN` where one is missing. A
    /// character falls back only if all its bytes have one.
    pub(crate) byte_ids: Option<Box<[u32; 256]>>,
    pub(crate) unk: Option<u32>,
    /// One unknown symbol for a run of unknown characters rather than for each.
    pub(crate) fuse_unk: bool,
}

impl Chars {
    fn push_symbols(&self, piece: &str, ids: &mut Vec<u32>) {
        // An unknown symbol waits for one that is known; bytes that a character falls back to are not,
        // so they come before it (as in the library).
        let mut waiting: Option<u32> = None;
        for c in piece.chars() {
            if let Some(id) = self.ids.get(&c) {
                ids.extend(waiting.take());
                ids.push(*id);
                continue;
            }
            if let Some(byte_ids) = &self.byte_ids {
                let mut buffer = [0; 4];
                let bytes = c.encode_utf8(&mut buffer).bytes();
                let found = bytes.map(|byte| byte_ids[usize::from(byte)]);
                if found.clone().all(|id| id != NO_TOKEN) {
                    ids.extend(found);
                    continue;
                }
            }
            if waiting.is_some() && !self.fuse_unk {
                ids.extend(waiting.take());
            }
            waiting = waiting.or(self.unk);
        }
        ids.extend(waiting);
    }
}

/// The merge table with working memory that calls lend each other.
#[derive(Debug)]
pub(crate) struct Bpe {
    alphabet: Alphabet,
    merges: FastMap<u64, (u32, u32)>, // pair -> (rank, product)
    first_crossing: u32,              // rank R of the module header; NONE if no merge crosses words
    whole: FastMap<Box<[u8]>, u32>,   // pre-tokens that are tokens whatever the merges say
    scratches: Mutex<Vec<Scratch>>,
}

impl Bpe {
    /// Symbols are bytes. `merges` are pairs (rank, merge); `bytes_of` gives the bytes of a token.
    pub(crate) fn over_bytes<B: AsRef<[u8]>>(
        byte_ids: [u32; 256],
        merges: impl Iterator<Item = (u32, Merge)>,
        bytes_of: impl Fn(u32) -> B,
    ) -> Self {
        let mut first_crossing = NONE;
        let merges = merges.inspect(|(rank, merge)| {
            if *rank < first_crossing && crosses_words(bytes_of(merge.product).as_ref()) {
                first_crossing = *rank;
            }
        });
        let merges = merge_table(merges);
        Bpe {
            alphabet: Alphabet::Bytes(Box::new(byte_ids)),
            merges,
            first_crossing,
            whole: FastMap::default(),
            scratches: Mutex::new(Vec::new()),
        }
    }

    /// Symbols are characters.
    pub(crate) fn over_chars(chars: Chars, merges: impl Iterator<Item = (u32, Merge)>) -> Self {
        Bpe {
            alphabet: Alphabet::Chars(chars),
            merges: merge_table(merges),
            first_crossing: NONE,
            whole: FastMap::default(),
            scratches: Mutex::new(Vec::new()),
        }
    }

    /// The same, with pre-tokens that are tokens whatever the merges say.
    pub(crate) fn with_whole(self, whole: FastMap<Box<[u8]>, u32>) -> Self {
        Bpe { whole, ..self }
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
    pub(crate) fn encode(&self, piece: &str, scratch: &mut Scratch, ids: &mut Vec<u32>) {
        if !self.whole.is_empty()
            && let Some(id) = self.whole.get(piece.as_bytes())
        {
            return ids.push(*id);
        }
        match &self.alphabet {
            Alphabet::Bytes(byte_ids) => {
                for piece in piece.as_bytes().chunks(PIECE_MAX_BYTES) {
                    let start = ids.len();
                    for word in words(piece) {
                        self.encode_word(byte_ids, word, scratch, ids);
                    }
                    if self.first_crossing != NONE {
                        self.merge(ids, start, NONE, scratch);
                    }
                }
            }
            Alphabet::Chars(chars) => {
                let mut rest = piece;
                while !rest.is_empty() {
                    let (piece, tail) = rest.split_at(rest.floor_char_boundary(PIECE_MAX_BYTES));
                    let start = ids.len();
                    chars.push_symbols(piece, ids);
                    self.merge(ids, start, NONE, scratch);
                    rest = tail;
                }
            }
        }
    }

    /// Appends the symbols of one word after all merges below `first_crossing`.
    fn encode_word(
        &self,
        byte_ids: &[u32; 256],
        word: &[u8],
        scratch: &mut Scratch,
        ids: &mut Vec<u32>,
    ) {
        if word.len() > CACHED_WORD_BYTES {
            return self.encode_word_uncached(byte_ids, word, scratch, ids);
        }
        let slot = hash_bytes(word) as usize % CACHE_SLOTS;
        if let Some(cached) = scratch.cache.get(slot)
            && cached.word[..usize::from(cached.len)] == *word
        {
            ids.extend_from_slice(&cached.ids[..usize::from(cached.num_ids)]);
            return;
        }
        let start = ids.len();
        self.encode_word_uncached(byte_ids, word, scratch, ids);
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

    fn encode_word_uncached(
        &self,
        byte_ids: &[u32; 256],
        word: &[u8],
        scratch: &mut Scratch,
        ids: &mut Vec<u32>,
    ) {
        let start = ids.len();
        ids.extend(word.iter().map(|&byte| byte_ids[usize::from(byte)]));
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

fn merge_table(merges: impl Iterator<Item = (u32, Merge)>) -> FastMap<u64, (u32, u32)> {
    merges
        .map(|(rank, merge)| (pair_key(merge.left, merge.right), (rank, merge.product)))
        .collect()
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
        Bpe::over_bytes(std::array::from_fn(|byte| byte as u32), ranked, |id| {
            &tokens[id as usize]
        })
    }

    fn encode(bpe: &Bpe, text: &str) -> Vec<u32> {
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
            prop_assert_eq!(&encode(&bpe, &text), &expected);
            // Again, from the cache.
            prop_assert_eq!(&encode(&bpe, &text), &expected);
            // The same with a symbol per character, which here is the same.
            let chars = Chars {
                ids: "abc ".chars().map(|c| (c, u32::from(c))).collect(),
                ..Chars::default()
            };
            let by_chars = Bpe::over_chars(chars, (0..).zip(merges.iter().copied()));
            prop_assert_eq!(&encode(&by_chars, &text), &expected);
        }
    }

    #[test]
    fn unknown_characters_fall_back_to_bytes_or_become_the_unknown_token() {
        let byte_ids = |missing: Option<u8>| {
            let id = |byte: usize| match missing == Some(byte as u8) {
                true => NO_TOKEN,
                false => 1000 + byte as u32,
            };
            Some(Box::new(std::array::from_fn(id)))
        };
        let symbols = |byte_ids, unk, fuse_unk| {
            let chars = Chars {
                ids: [('a', 1)].into_iter().collect(),
                byte_ids,
                unk,
                fuse_unk,
            };
            let mut ids = Vec::new();
            chars.push_symbols("\u{E9}\u{E8}a\u{E9}", &mut ids);
            ids
        };
        let bytes = [1195, 1169, 1195, 1168, 1, 1195, 1169];
        assert_eq!(symbols(byte_ids(None), Some(0), false), bytes);
        assert_eq!(symbols(None, Some(0), false), [0, 0, 1, 0]);
        assert_eq!(symbols(None, Some(0), true), [0, 1, 0]);
        assert_eq!(symbols(None, None, false), [1]);
        // Half a character has no byte token: the whole is unknown, and waits behind bytes.
        let missing = symbols(byte_ids(Some(0xA9)), Some(0), false);
        assert_eq!(missing, [1195, 1168, 0, 1, 0]);
    }

    #[test]
    fn a_pre_token_that_is_a_token_needs_no_merges() {
        let (merges, tokens) = table(&[(0, 1)]);
        let whole = [(Box::from(b"cab".as_slice()), 7)].into_iter().collect();
        let bpe = bpe(&merges, &tokens).with_whole(whole);
        assert_eq!(encode(&bpe, "cab"), [7]);
        assert_eq!(encode(&bpe, "cabc"), [99, 256, 99]);
    }

    #[test]
    fn a_sentence_of_a_million_letters_is_encoded() {
        let choices: Vec<(usize, usize)> = (0..12).map(|i| (i + 4 * i.min(1), i + 3)).collect();
        let (merges, tokens) = table(&choices);
        let bpe = bpe(&merges, &tokens);
        let text = "abcab cba".repeat(120_000);
        // In quadratic time this would take minutes.
        let ids = encode(&bpe, &text);
        let decoded: Vec<u8> = ids
            .iter()
            .flat_map(|&id| tokens[id as usize].clone())
            .collect();
        assert_eq!(decoded, text.as_bytes());
    }
}
