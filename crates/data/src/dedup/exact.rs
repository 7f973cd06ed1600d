//! Exact duplicates: documents whose normalised text has the same SHA-256.
//!
//! Sixteen bytes of the digest are kept a document (and the hash table's slack), so that memory does
//! not depend on the size of documents: 10 million documents need some 350 MB. Two different texts
//! share sixteen bytes with probability n^2 / 2^129.

use std::collections::HashSet;

use sha2::{Digest, Sha256};

/// SHA-256 of a normalised text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextHash([u8; 32]);

impl TextHash {
    /// The digest of `text`.
    pub fn of(text: &str) -> TextHash {
        TextHash(Sha256::digest(text.as_bytes()).into())
    }

    /// True for the share `fraction` of all texts: the split is a function of the text alone, so that
    /// the same text is on the same side in every data set.
    pub fn is_below(&self, fraction: f64) -> bool {
        // The last eight bytes: independent of the sixteen by which duplicates are found.
        let tail: [u8; 8] = self.0[24..].try_into().expect("eight of thirty-two bytes");
        // 53 bits, as many as an f64 holds exactly.
        ((u64::from_be_bytes(tail) >> 11) as f64) < fraction * (1u64 << 53) as f64
    }

    /// A number by which a sample of texts is drawn; independent of the split and of duplicates.
    pub fn rank(&self) -> u64 {
        let middle: [u8; 8] = self.0[16..24]
            .try_into()
            .expect("eight of thirty-two bytes");
        u64::from_be_bytes(middle)
    }

    fn key(&self) -> u128 {
        u128::from_be_bytes(
            self.0[..16]
                .try_into()
                .expect("sixteen of thirty-two bytes"),
        )
    }
}

/// The texts seen so far.
#[derive(Default)]
pub struct ExactDedup {
    seen: HashSet<u128>,
}

impl ExactDedup {
    /// True the first time a text is seen.
    pub fn insert(&mut self, hash: &TextHash) -> bool {
        self.seen.insert(hash.key())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_new_once() {
        let mut dedup = ExactDedup::default();
        assert!(dedup.insert(&TextHash::of("a")));
        assert!(dedup.insert(&TextHash::of("b")));
        assert!(!dedup.insert(&TextHash::of("a")));
    }

    #[test]
    fn the_split_takes_about_its_share_and_nests() {
        let hashes: Vec<TextHash> = (0..20_000).map(|i| TextHash::of(&format!("{i}"))).collect();
        let count = |f| hashes.iter().filter(|h| h.is_below(f)).count();
        assert_eq!((count(0.0), count(1.0)), (0, 20_000));
        assert!((800..1200).contains(&count(0.05)));
        assert!(hashes.iter().all(|h| !h.is_below(0.05) || h.is_below(0.1)));
    }
}
