//! What the name of a pattern stands for: `tokenizer.ggml.pre`.
//!
//! A GGUF file names the pattern that cuts text and not the normal form, and llama.cpp applies none. Here the
//! name stands for both, so that text becomes the ids that the model was trained on: NFC for `exaone-moe` and
//! `qwen2`, NFKC for `exaone` and `exaone4`.
//!
//! Sources: llama.cpp (`llama-vocab.cpp`: patterns, defaults); the K-EXAONE technical report, arXiv
//! 2601.01739, section 2.2 (NFC, and NFKC before); the published `tokenizer.json` of Qwen 2.

use crate::error::LoadError;
use crate::normalize::Normalizer;
use crate::pretokenize::{Behavior, ByteLevel, GPT2_PATTERN, Pattern, PatternSource, PreTokenizer};

/// The names of patterns that are understood.
pub(super) const PRE_NAMES: [&str; 8] = [
    "exaone-moe",
    "exaone",
    "exaone4",
    "gpt-2",
    "llama-bpe",
    "smollm",
    "qwen2",
    "default",
];

/// What the name of a pattern stands for.
pub(super) struct Pre {
    pub(super) normalizer: Option<Normalizer>,
    pub(super) pre_tokenizer: PreTokenizer,
    pub(super) ignore_merges: bool,
    pub(super) add_bos: bool, // unless the file says otherwise
}

impl Pre {
    /// None for a name that is not known.
    pub(super) fn find(name: &str) -> Result<Option<Self>, LoadError> {
        let byte_level = |use_regex| {
            PreTokenizer::ByteLevel(ByteLevel {
                use_regex,
                ..ByteLevel::PLAIN
            })
        };
        let split = |regex: &str| -> Result<PreTokenizer, LoadError> {
            Ok(PreTokenizer::Split {
                pattern: Pattern::new(PatternSource::Regex(regex.to_owned()))?,
                behavior: Behavior::Isolated,
                invert: false,
            })
        };
        let digits = PreTokenizer::Digits {
            individual_digits: true,
        };
        let (normalizer, mut steps) = match name {
            "exaone-moe" => (Some(Normalizer::Nfc), vec![PreTokenizer::k_exaone()]),
            "exaone" => (Some(Normalizer::Nfkc), vec![digits, byte_level(true)]),
            "exaone4" => (Some(Normalizer::Nfkc), vec![byte_level(true)]),
            "gpt-2" => (None, vec![byte_level(true)]),
            "smollm" => (None, vec![digits, byte_level(true)]),
            "llama-bpe" => (
                None,
                vec![split(&worded(r"\p{N}{1,3}"))?, byte_level(false)],
            ),
            "qwen2" => (
                Some(Normalizer::Nfc),
                vec![split(&worded(r"\p{N}"))?, byte_level(false)],
            ),
            "default" => {
                let steps = vec![
                    split(r"[\p{P}\$\+<=>\^~\|]+")?,
                    split(GPT2_PATTERN)?,
                    split(r"\p{N}+")?,
                    split("[0-9][0-9][0-9]")?,
                    byte_level(false),
                ];
                (None, steps)
            }
            _ => return Ok(None),
        };
        let is_llama = name == "llama-bpe";
        let only = match steps.len() {
            1 => steps.pop(),
            _ => None,
        };
        Ok(Some(Pre {
            normalizer,
            pre_tokenizer: only.unwrap_or(PreTokenizer::Sequence(steps)),
            ignore_merges: is_llama,
            add_bos: is_llama,
        }))
    }
}

/// The pattern that Llama 3 and Qwen 2 share but for their numbers.
fn worded(numbers: &str) -> String {
    let start = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|";
    let end = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    format!("{start}{numbers}{end}")
}
