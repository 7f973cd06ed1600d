//! At most so many bytes of text of each language: a uniform sample of its documents, in one pass.
//!
//! The documents with the smallest hashes are kept, so that the sample is a function of the set of texts, and a
//! larger one holds a smaller one. They wait in memory, within the limit of each language, and keep
//! their order.

use std::collections::{BTreeMap, BinaryHeap};

use crate::{Document, dedup::exact::TextHash};

pub(crate) struct Sample {
    limit_bytes: u64,
    languages: BTreeMap<String, Language>,
    count: u64,
    dropped: u64,
}

#[derive(Default)]
struct Language {
    kept: BinaryHeap<Waiting>, // the largest hash is the first to go
    kept_bytes: u64,
    /// Hashes from here on are out.
    threshold: Option<u64>,
}

struct Waiting {
    rank: u64,
    place: u64,
    hash: TextHash,
    document: Document,
}

impl Sample {
    pub(crate) fn new(limit_bytes: u64) -> Sample {
        Sample {
            limit_bytes,
            languages: BTreeMap::new(),
            count: 0,
            dropped: 0,
        }
    }

    pub(crate) fn add(&mut self, hash: &TextHash, document: Document) {
        self.count += 1;
        let language = self.languages.entry(document.lang.clone()).or_default();
        let rank = hash.rank();
        if language
            .threshold
            .is_some_and(|threshold| rank >= threshold)
        {
            self.dropped += 1;
            return;
        }
        language.kept_bytes += document.text.len() as u64;
        language.kept.push(Waiting {
            rank,
            place: self.count,
            hash: *hash,
            document,
        });
        while language.kept_bytes > self.limit_bytes
            && let Some(out) = language.kept.pop()
        {
            language.kept_bytes -= out.document.text.len() as u64;
            language.threshold = Some(out.rank);
            self.dropped += 1;
        }
    }

    /// The sample in the order in which it came, and the number of documents left out.
    pub(crate) fn finish(self) -> (impl Iterator<Item = (TextHash, Document)>, u64) {
        let kept = self.languages.into_values().flat_map(|l| l.kept);
        let mut kept: Vec<Waiting> = kept.collect();
        kept.sort_by_key(|waiting| waiting.place);
        let kept = kept.into_iter();
        (kept.map(|w| (w.hash, w.document)), self.dropped)
    }
}

impl Ord for Waiting {
    fn cmp(&self, other: &Waiting) -> std::cmp::Ordering {
        (self.rank, self.place).cmp(&(other.rank, other.place))
    }
}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Waiting) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Waiting) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Waiting {}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(limit_bytes: u64, texts: &[String]) -> Vec<String> {
        let mut sample = Sample::new(limit_bytes);
        for (number, text) in texts.iter().enumerate() {
            let document = Document {
                text: text.clone(),
                lang: ["en", "ko"][number % 2].to_owned(),
                source: String::new(),
            };
            sample.add(&TextHash::of(text), document);
        }
        let (kept, dropped) = sample.finish();
        let kept: Vec<String> = kept.map(|(_, document)| document.text).collect();
        assert_eq!(kept.len() as u64 + dropped, texts.len() as u64);
        kept
    }

    #[test]
    fn each_language_fills_its_limit_with_texts_from_everywhere_in_their_order() {
        let texts: Vec<String> = (0..20_000).map(|i| format!("{i:010}")).collect();
        let kept = sample(10_000, &texts);
        assert_eq!(kept.len(), 2000);
        assert!(kept.is_sorted());
        let late = kept.iter().filter(|text| ***text >= *"0000010000").count();
        assert!(
            (900..1100).contains(&late),
            "{late} of 2000 from the second half"
        );
        let korean = kept
            .iter()
            .filter(|text| text.ends_with(['1', '3', '5', '7', '9']));
        assert_eq!(korean.count(), 1000);
        // A smaller sample is part of it.
        let fewer = sample(1000, &texts);
        assert!(fewer.len() == 200 && fewer.iter().all(|text| kept.contains(text)));
        assert_eq!(sample(u64::MAX, &texts), texts);
    }
}
