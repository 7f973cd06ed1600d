//! Byte-pair encoding by scores: the SentencePiece kind, as vocabularies in GGUF files have it.
//!
//! There is no list of merges. The definition: start with one symbol per character; while some two
//! neighbours together are a token, join those whose token has the highest score, the leftmost of equal
//! ones. A character that is no token at the end becomes the tokens of its bytes, `<0x00>` to `<0xFF>`,
//! or, where one of these is missing, the unknown token.
//!
//! Spaces are not special here: the normaliser has made them U+2581. Control tokens, the unknown token
//! and bytes are never made by joining, as in SentencePiece; llama.cpp does not exclude them, which no
//! vocabulary that SentencePiece has learned can show.
//! Sources: llama.cpp (`llm_tokenizer_spm`); Kudo and Richardson 2018, arXiv 1808.06226.

use crate::bpe::{NO_TOKEN, PIECE_MAX_BYTES};
use crate::fast_hash::FastMap;
use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

/// No neighbour.
const NONE: u32 = u32::MAX;

/// Tokens by their text, with scores.
#[derive(Debug)]
pub(crate) struct Spm {
    tokens: FastMap<Box<str>, (u32, f32)>,
    longest: usize, // token, in bytes
    byte_ids: Box<[u32; 256]>,
    unk: Option<u32>,
}

/// A character or what was joined to it: a range of the text, in a linked list.
#[derive(Clone, Copy)]
struct Symbol {
    start: u32,
    len: u32, // 0 once it is part of its left neighbour
    previous: u32,
    next: u32,
}

/// Two neighbours that together are a token.
struct Join {
    score: f32,
    left: u32,
    len: u32, // of both, to tell when one of them has changed
}

impl Ord for Join {
    /// The greatest is the next to be made.
    fn cmp(&self, other: &Self) -> Ordering {
        let by_score = self.score.total_cmp(&other.score);
        by_score.then(Reverse(self.left).cmp(&Reverse(other.left)))
    }
}

impl PartialOrd for Join {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Join {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Join {}

impl Spm {
    /// `tokens` are those that text may become, with finite scores. `byte_ids` holds `NO_TOKEN` for a
    /// byte without a token.
    pub(crate) fn new<'a>(
        tokens: impl Iterator<Item = (&'a str, u32, f32)>,
        byte_ids: Box<[u32; 256]>,
        unk: Option<u32>,
    ) -> Self {
        let tokens: FastMap<Box<str>, (u32, f32)> = tokens
            // -0.0 and 0.0 are one score.
            .map(|(token, id, score)| (token.into(), (id, score + 0.0)))
            .collect();
        let longest = tokens.keys().map(|token| token.len()).max().unwrap_or(0);
        Spm {
            tokens,
            longest,
            byte_ids,
            unk,
        }
    }

    /// Appends the ids of a text.
    pub(crate) fn encode(&self, text: &str, ids: &mut Vec<u32>) {
        let mut rest = text;
        while !rest.is_empty() {
            let (text, tail) = rest.split_at(rest.floor_char_boundary(PIECE_MAX_BYTES));
            self.encode_part(text, ids);
            rest = tail;
        }
    }

    fn encode_part(&self, text: &str, ids: &mut Vec<u32>) {
        let mut symbols: Vec<Symbol> = text
            .char_indices()
            .zip(0_u32..)
            .map(|((start, c), index)| Symbol {
                start: start as u32,
                len: c.len_utf8() as u32,
                previous: index.checked_sub(1).unwrap_or(NONE),
                next: index + 1,
            })
            .collect();
        if let Some(last) = symbols.last_mut() {
            last.next = NONE;
        }
        let mut heap: BinaryHeap<Join> = (0..symbols.len() as u32)
            .filter_map(|left| self.join(text, &symbols, left))
            .collect();
        while let Some(Join { left, len, .. }) = heap.pop() {
            let Symbol { len: own, next, .. } = symbols[left as usize];
            // Out of date: one of the two has been joined to something else.
            if own == 0 || next == NONE || own + symbols[next as usize].len != len {
                continue;
            }
            let after = symbols[next as usize].next;
            symbols[next as usize].len = 0;
            symbols[left as usize].len = len;
            symbols[left as usize].next = after;
            if after != NONE {
                symbols[after as usize].previous = left;
            }
            heap.extend(self.join(text, &symbols, left));
            let previous = symbols[left as usize].previous;
            if previous != NONE {
                heap.extend(self.join(text, &symbols, previous));
            }
        }
        for symbol in symbols.iter().filter(|symbol| symbol.len > 0) {
            self.push_symbol(slice(text, symbol.start, symbol.len), ids);
        }
    }

    /// The join of a symbol with the next, if together they are a token.
    fn join(&self, text: &str, symbols: &[Symbol], left: u32) -> Option<Join> {
        let symbol = symbols[left as usize];
        let next = symbols.get(symbol.next as usize)?;
        let len = symbol.len + next.len;
        if len as usize > self.longest {
            return None;
        }
        let (_, score) = *self.tokens.get(slice(text, symbol.start, len))?;
        Some(Join { score, left, len })
    }

    fn push_symbol(&self, symbol: &str, ids: &mut Vec<u32>) {
        if let Some((id, _)) = self.tokens.get(symbol) {
            return ids.push(*id);
        }
        let bytes = symbol.bytes().map(|byte| self.byte_ids[usize::from(byte)]);
        match bytes.clone().all(|id| id != NO_TOKEN) {
            true => ids.extend(bytes),
            false => ids.extend(self.unk),
        }
    }
}

fn slice(text: &str, start: u32, len: u32) -> &str {
    &text[start as usize..][..len as usize]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Tokens with scores; ids are places in the list, bytes have the ids from 1000 on.
    fn spm(tokens: &[(&str, f32)]) -> Spm {
        let tokens = tokens
            .iter()
            .zip(0..)
            .map(|((t, score), id)| (*t, id, *score));
        let byte_ids = Box::new(std::array::from_fn(|byte| 1000 + byte as u32));
        Spm::new(tokens, byte_ids, None)
    }

    fn encode(spm: &Spm, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        spm.encode(text, &mut ids);
        ids
    }

    /// The definition, word for word.
    fn naive(tokens: &[(&str, f32)], text: &str) -> Vec<u32> {
        let mut symbols: Vec<String> = text.chars().map(String::from).collect();
        let find = |text: &str| tokens.iter().position(|(token, _)| *token == text);
        loop {
            let mut best: Option<(f32, usize)> = None;
            for i in 0..symbols.len().saturating_sub(1) {
                if let Some(place) = find(&[&symbols[i][..], &symbols[i + 1]].concat())
                    && best.is_none_or(|(score, _)| tokens[place].1 > score)
                {
                    best = Some((tokens[place].1, i));
                }
            }
            let Some((_, i)) = best else { break };
            let right = symbols.remove(i + 1);
            symbols[i].push_str(&right);
        }
        let ids = symbols.iter().flat_map(|symbol| match find(symbol) {
            Some(id) => vec![id as u32],
            None => symbol.bytes().map(|byte| 1000 + u32::from(byte)).collect(),
        });
        ids.collect()
    }

    const TOKENS: [(&str, f32); 12] = [
        ("a", -9.0),
        ("b", -9.5),
        ("ab", -2.0),
        ("ba", -1.0),
        ("aba", -1.5),
        ("aa", -3.0),
        ("aaa", -3.0),
        ("\u{2581}", -5.0),
        ("\u{2581}a", -0.5),
        ("b\u{2581}", -0.5),
        ("c\u{2581}", -7.0),
        ("abab", -0.25),
    ];

    #[test]
    fn the_highest_score_is_joined_first_and_the_leftmost_of_equal_ones() {
        let spm = spm(&TOKENS);
        assert_eq!(encode(&spm, "abab"), [11]);
        assert_eq!(encode(&spm, "abaa"), [4, 0]);
        assert_eq!(encode(&spm, "aaaa"), [6, 0]);
        assert_eq!(encode(&spm, "b\u{2581}a"), [9, 0]);
        assert_eq!(encode(&spm, ""), [0; 0]);
    }

    #[test]
    fn a_character_without_a_token_becomes_its_bytes_and_may_still_be_part_of_one() {
        let spm = spm(&TOKENS);
        assert_eq!(encode(&spm, "c\u{E9}"), [1099, 1195, 1169]);
        assert_eq!(encode(&spm, "c\u{2581}"), [10]);
        let mut byte_ids = Box::new(std::array::from_fn(|byte| 1000 + byte as u32));
        byte_ids[0xA9] = NO_TOKEN;
        let partial = Spm::new(std::iter::empty(), byte_ids, Some(7));
        assert_eq!(encode(&partial, "\u{E9}\u{E8}"), [7, 1195, 1168]);
    }

    #[test]
    fn a_megabyte_of_one_letter_is_encoded() {
        let spm = spm(&TOKENS);
        let ids = encode(&spm, &"a".repeat(1 << 20));
        // In quadratic time this would take minutes.
        let (last, threes) = ids.split_last().unwrap();
        assert!(*last == 0 && threes.len() == 349_525 && threes.iter().all(|id| *id == 6));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn encoding_is_the_definition_for_any_scores_and_any_length(
            text in "[abc\u{2581}\u{E9}]{0,100}",
            scores in proptest::collection::vec(-4_i8..0, 12),
        ) {
            let tokens: Vec<(&str, f32)> = TOKENS
                .iter()
                .zip(scores)
                .map(|((token, _), score)| (*token, f32::from(score)))
                .collect();
            prop_assert_eq!(encode(&spm(&tokens), &text), naive(&tokens, &text));
        }
    }
}
