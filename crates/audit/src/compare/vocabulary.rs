//! The tokens of a model, and how many of them another one has.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;

use formats::error::FileError;
use formats::gguf::Gguf;
use serde::Serialize;
use serde_json::Value;

use super::CompareError;

/// Tokens and merges, as they are spelled in a file.
pub(super) struct Vocabulary {
    ids: HashMap<String, u32>,
    merges: HashSet<String>,
}

/// What two tokenizers share. It is no evidence for or against shared weights: vocabularies learned from public text
/// have much in common, and anyone may use the tokenizer of another model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Overlap {
    /// Tokens of the first.
    pub tokens_a: usize,
    /// Tokens of the second.
    pub tokens_b: usize,
    /// Tokens that both have.
    pub shared: usize,
    /// Of these, under the same id.
    pub same_id: usize,
    /// Of the tokens of the first.
    pub share_of_a: f64,
    /// Of the tokens of the second.
    pub share_of_b: f64,
    /// Of the tokens of either.
    pub jaccard: f64,
    /// Merges that both have, of those of the first and of the second; where both have merges.
    pub merges: Option<[usize; 3]>,
}

impl Vocabulary {
    /// Of a tokenizer.json; nothing where there is none, or where it has no list of tokens.
    pub(super) fn of_json(path: &Path) -> Result<Option<Vocabulary>, CompareError> {
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(FileError::io("read", path, error).into()),
        };
        let json: Value =
            serde_json::from_slice(&bytes).map_err(|source| CompareError::Config {
                path: path.to_path_buf(),
                source,
            })?;
        let Some(vocab) = json["model"]["vocab"].as_object() else {
            return Ok(None);
        };
        let id = |value: &Value| u32::try_from(value.as_u64()?).ok();
        let tokens = (vocab.iter()).filter_map(|(token, value)| Some((token.clone(), id(value)?)));
        let mut ids: HashMap<String, u32> = tokens.collect();
        for added in json["added_tokens"].as_array().into_iter().flatten() {
            if let (Some(token), Some(id)) = (added["content"].as_str(), id(&added["id"])) {
                ids.insert(token.to_owned(), id);
            }
        }
        let merges = json["model"]["merges"].as_array().into_iter().flatten();
        // Both spellings of a merge: one text, or a pair.
        let merges = merges.filter_map(|merge| match merge {
            Value::String(text) => Some(text.clone()),
            pair => Some(format!("{} {}", pair[0].as_str()?, pair[1].as_str()?)),
        });
        Ok(Some(Vocabulary {
            ids,
            merges: merges.collect(),
        }))
    }

    /// Of a GGUF file; nothing where it has no list of tokens.
    pub(super) fn of_gguf(gguf: &Gguf) -> Option<Vocabulary> {
        let tokens = gguf.strings("tokenizer.ggml.tokens").ok()?;
        let merges = gguf.strings("tokenizer.ggml.merges");
        let merges = merges.into_iter().flat_map(|merges| merges.iter());
        Some(Vocabulary {
            ids: (tokens.iter().zip(0u32..))
                .map(|(token, id)| (token.to_owned(), id))
                .collect(),
            merges: merges.map(str::to_owned).collect(),
        })
    }

    /// The ids of tokens that both have, in the order of the first.
    pub(super) fn shared(&self, other: &Vocabulary) -> Vec<(u32, u32)> {
        let mut shared: Vec<(u32, u32)> = (self.ids.iter())
            .filter_map(|(token, id)| Some((*id, *other.ids.get(token)?)))
            .collect();
        shared.sort_unstable();
        shared
    }

    /// What both have, in figures.
    pub(super) fn overlap(&self, other: &Vocabulary) -> Overlap {
        let shared = self.shared(other);
        let (a, b, both) = (self.ids.len(), other.ids.len(), shared.len());
        let share = |of: usize| both as f64 / of.max(1) as f64;
        let merges = [
            self.merges.intersection(&other.merges).count(),
            self.merges.len(),
            other.merges.len(),
        ];
        Overlap {
            tokens_a: a,
            tokens_b: b,
            shared: both,
            same_id: shared.iter().filter(|(a, b)| a == b).count(),
            share_of_a: share(a),
            share_of_b: share(b),
            jaccard: share(a + b - both),
            merges: (merges[1] > 0 && merges[2] > 0).then_some(merges),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vocabulary(json: &str) -> Vocabulary {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("tokenizer.json");
        fs::write(&path, json).unwrap();
        Vocabulary::of_json(&path).unwrap().unwrap()
    }

    #[test]
    fn tokens_and_merges_are_counted_in_both_spellings() {
        let a = vocabulary(
            r#"{"model": {"vocab": {"a": 0, "b": 1, "ab": 2, "c": 3}, "merges": ["a b", "b c"]},
                "added_tokens": [{"content": "<s>", "id": 4}]}"#,
        );
        let b = vocabulary(
            r#"{"model": {"vocab": {"b": 1, "a": 2, "ab": 3}, "merges": [["a", "b"]]}, "added_tokens": []}"#,
        );
        let overlap = a.overlap(&b);
        assert_eq!((overlap.tokens_a, overlap.tokens_b), (5, 3));
        assert_eq!((overlap.shared, overlap.same_id), (3, 1));
        assert_eq!((overlap.share_of_a, overlap.share_of_b), (0.6, 1.0));
        assert_eq!(overlap.jaccard, 0.6);
        assert_eq!(overlap.merges, Some([1, 2, 1]));
        assert_eq!(a.shared(&b), [(0, 2), (1, 1), (2, 3)]);
    }

    #[test]
    fn a_file_that_is_not_there_is_no_error_and_one_that_is_damaged_is() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("tokenizer.json");
        assert!(Vocabulary::of_json(&path).unwrap().is_none());
        fs::write(&path, "{\"model\": {}}").unwrap();
        assert!(Vocabulary::of_json(&path).unwrap().is_none());
        fs::write(&path, "{").unwrap();
        assert!(Vocabulary::of_json(&path).is_err());
    }

    #[test]
    fn a_file_with_any_byte_changed_is_read_or_refused() {
        let json = r#"{"model": {"vocab": {"a": 0, "b": 1}, "merges": ["a b", ["a", "b"]]},
            "added_tokens": [{"content": "<s>", "id": 4}]}"#;
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("tokenizer.json");
        for at in 0..json.len() {
            for change in [1u8, 4, 0x20, 0x80] {
                let mut bytes = json.as_bytes().to_vec();
                bytes[at] ^= change;
                fs::write(&path, bytes).unwrap();
                let _ = Vocabulary::of_json(&path);
            }
        }
    }
}
