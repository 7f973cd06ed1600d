//! Taking documents up to a number of bytes: a uniform sample of them, in one pass.
//!
//! Each document gets a pseudo-random number from its place; those with the smallest numbers that fit
//! are kept. The sample therefore depends on the number of documents and their sizes only, and it does
//! not matter that a corpus comes sorted by language.

use super::Progress;
use std::collections::BinaryHeap;

const PROGRESS_EVERY_BYTES: u64 = 1 << 24;

/// Reads all documents and keeps at most `max_bytes` of text.
pub(super) fn read<S: AsRef<str>>(
    documents: impl IntoIterator<Item = S>,
    max_bytes: usize,
    progress: &mut dyn FnMut(Progress),
) -> Vec<String> {
    // The entry with the largest number is the first to go.
    let mut kept: BinaryHeap<(u64, u64, String)> = BinaryHeap::new();
    let mut kept_bytes = 0;
    let mut threshold = u64::MAX; // numbers from here on are out
    let (mut index, mut bytes, mut told_bytes) = (0_u64, 0_u64, 0_u64);
    for document in documents {
        let text = document.as_ref();
        let number = scramble(index);
        index += 1;
        bytes += text.len() as u64;
        if bytes - told_bytes >= PROGRESS_EVERY_BYTES {
            told_bytes = bytes;
            progress(Progress::Reading {
                documents: index,
                bytes,
            });
        }
        if text.is_empty() || number >= threshold {
            continue;
        }
        // A document larger than the budget counts with its beginning.
        let text = &text[..text.floor_char_boundary(max_bytes)];
        kept_bytes += text.len();
        kept.push((number, index, text.to_owned()));
        while kept_bytes > max_bytes
            && let Some((number, _, text)) = kept.pop()
        {
            kept_bytes -= text.len();
            threshold = number;
        }
    }
    progress(Progress::Reading {
        documents: index,
        bytes,
    });
    kept.into_iter()
        .map(|(_, _, text)| text)
        .filter(|text| !text.is_empty())
        .collect()
}

/// A one-to-one map of 64 bits that leaves no pattern (the finalizer of SplitMix64, Steele et al. 2014).
fn scramble(index: u64) -> u64 {
    let mut z = index.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(documents: &[&str], max_bytes: usize) -> Vec<String> {
        let mut kept = read(documents, max_bytes, &mut |_| {});
        kept.sort();
        kept
    }

    #[test]
    fn everything_is_kept_within_the_budget() {
        assert_eq!(sorted(&["b", "", "a"], 2), ["a", "b"]);
        assert!(sorted(&["", ""], 2).is_empty());
    }

    #[test]
    fn a_sample_fills_the_budget_from_all_over_the_corpus() {
        let documents: Vec<String> = (0..10_000).map(|i| format!("{i:010}")).collect();
        let kept = read(&documents, 10_000, &mut |_| {});
        assert_eq!(kept.len(), 1000);
        let late = kept
            .iter()
            .filter(|text| text.parse::<u32>().unwrap() >= 5000)
            .count();
        assert!(
            (440..560).contains(&late),
            "{late} of 1000 from the second half"
        );
    }

    #[test]
    fn a_document_larger_than_the_budget_is_cut_at_a_character() {
        assert_eq!(sorted(&["a\u{D55C}\u{AD6D}"], 5), ["a\u{D55C}"]);
    }

    #[test]
    fn progress_ends_with_the_totals() {
        let mut last = None;
        read(["ab", "c"], 9, &mut |progress| last = Some(progress));
        assert_eq!(
            last,
            Some(Progress::Reading {
                documents: 2,
                bytes: 3
            })
        );
    }
}
