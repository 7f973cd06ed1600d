//! Counting pre-tokens on several threads. Sums of integers: the order of threads leaves no trace.

use crate::fast_hash::FastMap;
use crate::normalize::compose;
use crate::pretokenize::{Pieces, words};
use std::borrow::Cow;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Longer pre-tokens are counted in parts. A merge passes over every pre-token that it changes, so that
/// time would grow with the square of the longest; few in any language are longer, and what lies
/// across a cut is one pair in hundreds.
const MAX_PIECE_BYTES: usize = 512;

/// The distinct pre-tokens of the documents with their counts, in the order of their bytes; cut at
/// spaces if `by_words`.
pub(super) fn pieces(documents: &[String], by_words: bool, threads: usize) -> Vec<(Box<str>, u64)> {
    let next = AtomicUsize::new(0);
    let count = || {
        let mut counts: FastMap<Box<str>, u64> = FastMap::default();
        while let Some(document) = documents.get(next.fetch_add(1, Ordering::Relaxed)) {
            let text = compose(Cow::Borrowed(document.as_str()));
            for piece in Pieces::new(&text) {
                if !by_words {
                    parts(piece, |part| add(&mut counts, part, 1));
                    continue;
                }
                for word in words(piece.as_bytes()) {
                    // A cut before a space is between characters.
                    let word = std::str::from_utf8(word).expect("cut at an ASCII space");
                    parts(word, |part| add(&mut counts, part, 1));
                }
            }
        }
        counts
    };
    let mut counts = std::thread::scope(|scope| {
        let spawn = |_| scope.spawn(count);
        let workers: Vec<_> = (1..threads.clamp(1, documents.len().max(1)))
            .map(spawn)
            .collect();
        let mut counts = count();
        for worker in workers {
            let others = worker.join().expect("counting does not panic");
            others
                .into_iter()
                .for_each(|(piece, count)| add(&mut counts, &piece, count));
        }
        counts.into_iter().collect::<Vec<_>>()
    });
    counts.sort_unstable();
    counts
}

/// Calls `f` with parts of at most `MAX_PIECE_BYTES`, cut before a space where there is one.
fn parts(mut piece: &str, mut f: impl FnMut(&str)) {
    while piece.len() > MAX_PIECE_BYTES {
        let start = &piece[..piece.floor_char_boundary(MAX_PIECE_BYTES)];
        let cut = start.rfind(' ').filter(|&at| at > 0);
        let (part, rest) = piece.split_at(cut.unwrap_or(start.len()));
        f(part);
        piece = rest;
    }
    f(piece);
}

fn add(counts: &mut FastMap<Box<str>, u64>, piece: &str, count: u64) {
    match counts.get_mut(piece) {
        Some(sum) => *sum += count,
        None => {
            counts.insert(piece.into(), count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_pieces_are_counted_in_parts_that_join_to_them() {
        for piece in [
            "a".repeat(1500),
            "\u{AC00}".repeat(700),
            "of the sea ".repeat(200),
            " ".repeat(1025),
            "short".to_owned(),
        ] {
            let mut joined = String::new();
            parts(&piece, |part| {
                assert!(!part.is_empty() && part.len() <= MAX_PIECE_BYTES);
                joined.push_str(part);
            });
            assert_eq!(joined, piece);
        }
    }

    #[test]
    fn counts_are_the_same_on_any_number_of_threads() {
        let documents: Vec<String> = (0..50)
            .map(|i| format!("the sea e\u{301} {} the sea.", i % 3))
            .collect();
        for by_words in [true, false] {
            let expected = pieces(&documents, by_words, 1);
            assert_eq!(pieces(&documents, by_words, 3), expected);
        }
        let runs = pieces(&documents, false, 2);
        let count = |piece: &str| {
            runs.iter()
                .find(|(p, _)| **p == *piece)
                .map(|(_, count)| *count)
        };
        assert_eq!(count("the sea \u{E9}"), Some(50));
        assert_eq!(count(" the sea"), Some(50));
        assert_eq!(count("the"), None);
        let words = pieces(&documents, true, 2);
        let sea = words.iter().find(|(piece, _)| **piece == *" sea");
        assert_eq!(sea.map(|(_, count)| *count), Some(100));
    }
}
