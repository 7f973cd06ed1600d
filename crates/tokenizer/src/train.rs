//! Training: which pairs to merge, learned from text.
//!
//! Repeatedly the most frequent adjacent pair of symbols within pre-tokens becomes a token; among
//! equals the pair with the lower ids (the rule of the Hugging Face trainer). All 256 bytes are tokens
//! from the start, after the special tokens.
//!
//! Two stages: in the first, pre-tokens are cut at spaces, so that tokens are words and their parts; in
//! the second they are the whole runs of words, and tokens come to span words ("superwords").
//! `superword_fraction` is the share of the merges that the second stage learns: 0 for words only, 1
//! for plain BPE on the K-EXAONE pattern. About 20 % of K-EXAONE's vocabulary are superwords; the place
//! of the transition is not published. What is the default here, and why: [`superword_share`].
//!
//! The result depends on the texts and the settings only, not on the number of threads. Memory: the
//! sampled text (`max_bytes`), the distinct pre-tokens of the stage, and its pairs.
//!
//! Sources: Sennrich et al. 2016 (BPE); Liu et al. 2025, arXiv 2503.13423 (two stages).

mod count;
mod learn;
mod sample;

use crate::assemble::{BpeParts, ModelParts, TokenizerParts};
use crate::bpe::{Bpe, Merge};
use crate::byte_alphabet::{char_of_byte, spell};
use crate::decode::Decoder;
use crate::error::LoadError;
use crate::fast_hash::{FastMap, pair_of_key};
use crate::normalize::Normalizer;
use crate::pretokenize::{ByteLevel, PreTokenizer};
use crate::special::{self, AddedToken};
use crate::tokenizer::{MAX_VOCAB_SIZE, Tokenizer};
use learn::Words;

/// The default share of merges that may span words.
///
/// On text in six languages a tenth brings nearly all that superwords can bring to a vocabulary of
/// 8,192 to 32,768: later shares learn the same tokens, because the second stage takes words too where
/// those are more frequent. A vocabulary too small for its words gains nothing. From 65,536 on it is
/// about the share that K-EXAONE publishes. The figures are in docs/LOG-models.md.
pub fn superword_share(vocab_size: usize) -> f64 {
    match vocab_size {
        0..4096 => 0.0,
        4096..65_536 => 0.1,
        _ => 0.2,
    }
}

/// What to learn from how much.
#[derive(Clone, Debug)]
pub struct Trainer {
    /// Size of the vocabulary, special tokens and bytes included. Text with fewer frequent pairs than
    /// that gives a smaller one.
    pub vocab_size: usize,
    /// Tokens that take the first ids; `None` for `special::layout` of the size.
    pub special_tokens: Option<Vec<AddedToken>>,
    /// Share of the merges learned on whole runs of words, 0 to 1; `None` for [`superword_share`] of
    /// the size.
    pub superword_fraction: Option<f64>,
    /// Pairs seen less often are not merged.
    pub min_frequency: u64,
    /// Longest token in bytes.
    pub max_token_bytes: usize,
    /// Text to learn from; of more, a sample of whole documents is taken that depends only on their
    /// number and sizes.
    pub max_bytes: usize,
    /// Threads that count pre-tokens.
    pub threads: usize,
}

impl Default for Trainer {
    fn default() -> Self {
        Trainer {
            vocab_size: 32_768,
            special_tokens: None,
            superword_fraction: None,
            min_frequency: 2,
            // The longest token of K-EXAONE's vocabulary, as llama.cpp reports it.
            max_token_bytes: 103,
            max_bytes: 100_000_000,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

/// How far training is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Documents are being read.
    Reading {
        /// Documents so far.
        documents: u64,
        /// Bytes of them.
        bytes: u64,
    },
    /// Pre-tokens of a stage are being counted.
    Counting {
        /// 1 for words, 2 for runs of words.
        stage: u32,
        /// Text to count.
        bytes: u64,
    },
    /// Pairs are being merged.
    Merging {
        /// 1 for words, 2 for runs of words.
        stage: u32,
        /// Size of the vocabulary so far.
        vocab_size: usize,
        /// Size asked for.
        target: usize,
    },
}

/// Settings that cannot be met.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// No room for the special tokens and the bytes, or too large.
    #[error(
        "vocab_size is {vocab_size}, must be from {least} (special tokens and bytes) to {most}"
    )]
    VocabSize {
        /// Size asked for.
        vocab_size: usize,
        /// Smallest possible.
        least: usize,
        /// Largest allowed.
        most: usize,
    },
    /// Not a fraction.
    #[error("superword_fraction is {0}, must be from 0 to 1")]
    SuperwordFraction(f64),
    /// The documents hold no text.
    #[error("no text to train the tokenizer on; all documents are empty")]
    NoText,
    /// The special tokens contradict each other or the bytes.
    #[error("special tokens cannot be used: {0}")]
    SpecialTokens(#[source] LoadError),
}

/// The vocabulary as it grows.
struct Growing {
    num_specials: u32,
    tokens: Vec<Vec<u8>>, // bytes per id; a special token's content for its id
    ids: FastMap<Vec<u8>, u32>, // of the tokens that are not special
    specials: std::collections::HashSet<Vec<u8>>,
    merges: Vec<Merge>,
}

impl Trainer {
    /// Learns a tokenizer from documents, which are taken as nothing but text. `progress` is told now
    /// and then how far it is.
    ///
    /// # Errors
    /// If the settings contradict each other or there is no text.
    pub fn train<S: AsRef<str>>(
        &self,
        documents: impl IntoIterator<Item = S>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Tokenizer, TrainError> {
        let default_specials = || special::layout(self.vocab_size);
        let specials = self.special_tokens.clone().unwrap_or_else(default_specials);
        let (least, most) = (specials.len() + 256, MAX_VOCAB_SIZE as usize);
        if !(least..=most).contains(&self.vocab_size) {
            return Err(TrainError::VocabSize {
                vocab_size: self.vocab_size,
                least,
                most,
            });
        }
        let superword_fraction = match self.superword_fraction {
            None => superword_share(self.vocab_size),
            Some(fraction) if (0.0..=1.0).contains(&fraction) => fraction,
            Some(fraction) => return Err(TrainError::SuperwordFraction(fraction)),
        };
        let mut growing = Growing::new(&specials);
        // Found before hours of counting rather than after.
        growing.to_tokenizer(&specials)?;

        let documents = sample::read(documents, self.max_bytes, progress);
        if documents.is_empty() {
            return Err(TrainError::NoText);
        }
        let num_merges = self.vocab_size - least;
        let num_superwords = (num_merges as f64 * superword_fraction).round() as usize;
        if num_superwords < num_merges {
            let stage = Stage {
                number: 1,
                target: self.vocab_size - num_superwords,
            };
            self.run_stage(&stage, &documents, &mut growing, progress);
        }
        if num_superwords > 0 {
            let stage = Stage {
                number: 2,
                target: self.vocab_size,
            };
            self.run_stage(&stage, &documents, &mut growing, progress);
        }
        growing.to_tokenizer(&specials)
    }

    fn run_stage(
        &self,
        stage: &Stage,
        documents: &[String],
        growing: &mut Growing,
        progress: &mut dyn FnMut(Progress),
    ) {
        let bytes = documents.iter().map(|document| document.len() as u64).sum();
        progress(Progress::Counting {
            stage: stage.number,
            bytes,
        });
        let counts = count::pieces(documents, stage.number == 1, self.threads);
        let bpe = growing.bpe();
        let mut words = Words::default();
        bpe.with_scratch(|scratch| {
            let mut symbols = Vec::new();
            for (piece, count) in counts {
                symbols.clear();
                bpe.encode(&piece, scratch, &mut symbols);
                if symbols.len() > 1 {
                    words.push(&symbols, count);
                }
            }
        });
        learn::learn(self, stage, words, growing, progress);
    }
}

/// One of the two stages.
struct Stage {
    number: u32,
    target: usize, // size of the vocabulary at its end
}

impl Growing {
    fn new(specials: &[AddedToken]) -> Self {
        let contents = || {
            specials
                .iter()
                .map(|token| token.content.as_bytes().to_vec())
        };
        let mut growing = Growing {
            num_specials: specials.len() as u32,
            tokens: contents().collect(),
            ids: FastMap::default(),
            // A token is spelled in the byte alphabet, so that is where it could meet a special one.
            specials: specials
                .iter()
                .map(|t| crate::byte_alphabet::unspell(&t.content))
                .collect(),
            merges: Vec::new(),
        };
        // The Hugging Face trainer numbers the bytes by their characters.
        let mut alphabet: Vec<u8> = (0..=255).collect();
        alphabet.sort_by_key(|&byte| char_of_byte(byte));
        for byte in alphabet {
            growing.ids.insert(vec![byte], growing.tokens.len() as u32);
            growing.tokens.push(vec![byte]);
        }
        growing
    }

    /// Adds the merge of a pair; `None` if its product is spelled like a special token.
    ///
    /// No pair comes up twice: wherever a token stands, what happened between its ends was the same,
    /// so it is always made of the same two.
    fn merge(&mut self, key: u64) -> Option<u32> {
        let (left, right) = pair_of_key(key);
        let bytes = [
            &self.tokens[left as usize][..],
            &self.tokens[right as usize],
        ]
        .concat();
        if self.specials.contains(&bytes) {
            return None;
        }
        let next = self.tokens.len() as u32;
        let product = *self.ids.entry(bytes.clone()).or_insert(next);
        if product == next {
            self.tokens.push(bytes);
        }
        self.merges.push(Merge {
            left,
            right,
            product,
        });
        Some(product)
    }

    fn bpe(&self) -> Bpe {
        let byte_ids = std::array::from_fn(|byte| self.ids[&[byte as u8][..]]);
        let ranked = (0..).zip(self.merges.iter().copied());
        Bpe::over_bytes(byte_ids, ranked, |id| &self.tokens[id as usize])
    }

    fn to_tokenizer(&self, specials: &[AddedToken]) -> Result<Tokenizer, TrainError> {
        let spell_id = |id: u32| match specials.get(id as usize) {
            Some(token) => token.content.clone(),
            None => spell(&self.tokens[id as usize]),
        };
        let pair = |merge: &Merge| (spell_id(merge.left), spell_id(merge.right));
        let parts = TokenizerParts {
            vocab: (0..self.tokens.len() as u32)
                .map(|id| (spell_id(id), id))
                .collect(),
            added: specials.iter().cloned().zip(0..self.num_specials).collect(),
            normalizer: Some(Normalizer::Nfc),
            pre_tokenizer: Some(PreTokenizer::k_exaone()),
            model: ModelParts::Bpe(BpeParts {
                merges: self.merges.iter().map(pair).collect(),
                ..BpeParts::default()
            }),
            post_processor: None,
            decoder: Decoder::ByteLevel(ByteLevel::DECODER),
        };
        Tokenizer::from_parts(parts).map_err(TrainError::SpecialTokens)
    }
}
