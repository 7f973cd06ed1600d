//! Vocabularies embedded in GGUF files, as plain data: this crate does not read the files.
//!
//! Two kinds are understood, by `tokenizer.ggml.model`:
//!
//! ```text
//! gpt2    bytes and merges; `tokenizer.ggml.pre` names the pattern that cuts text
//! llama   tokens with scores (SentencePiece): `spm` joins them; merges and `pre` play no part
//! ```
//!
//! The name of the pattern stands for the normal form too ([`pre`]). Added tokens are found as everywhere in
//! this crate, the leftmost longest first; llama.cpp looks for the longest in all the text first, which
//! differs only where two of them overlap.
//!
//! Source: llama.cpp (`llama-vocab.cpp`: defaults, types of tokens).

mod pre;

use crate::assemble::{BpeParts, ModelParts, ScoredParts, TokenizerParts};
use crate::decode::{Decoder, byte_of_token};
use crate::error::LoadError;
use crate::normalize::{Normalizer, Replace};
use crate::postprocess::{Piece, PostProcessor};
use crate::pretokenize::ByteLevel;
use crate::special::AddedToken;
use crate::tokenizer::{MAX_VOCAB_SIZE, Tokenizer, shorten};
use pre::{PRE_NAMES, Pre};

/// The vocabulary of a GGUF file. Fields are the keys `tokenizer.ggml.*`.
#[derive(Clone, Copy, Debug, Default)]
pub struct GgufVocab<'a, S = &'a str> {
    /// `model`: `gpt2` or `llama`.
    pub model: &'a str,
    /// `pre`: the name of the pattern that cuts text.
    pub pre: Option<&'a str>,
    /// `tokens`, by id.
    pub tokens: &'a [S],
    /// `token_type`, by id; without them every token is a normal one but those with a role.
    pub token_types: Option<&'a [i32]>,
    /// `scores`, by id.
    pub scores: Option<&'a [f32]>,
    /// `merges`, each `left right`.
    pub merges: &'a [S],
    /// `bos_token_id`
    pub bos: Option<u32>,
    /// `eos_token_id`
    pub eos: Option<u32>,
    /// `unknown_token_id`
    pub unk: Option<u32>,
    /// `padding_token_id`
    pub pad: Option<u32>,
    /// `add_bos_token`; by default only `llama` and `llama-bpe` add one.
    pub add_bos: Option<bool>,
    /// `add_eos_token`; not by default.
    pub add_eos: Option<bool>,
    /// `add_space_prefix`, of `llama`; by default there is one.
    pub add_space_prefix: Option<bool>,
}

/// What a GGUF file is to hold of a tokenizer. Ids of roles belong to the model's configuration; `bos`
/// and `eos` are here only as far as the tokenizer itself adds them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GgufData {
    /// `gpt2` or `llama`.
    pub model: &'static str,
    /// The name of the pattern, if it has one.
    pub pre: Option<&'static str>,
    /// By id. An id without a token has `[PAD{id}]`, of the type unused.
    pub tokens: Vec<String>,
    /// 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte; by id.
    pub token_types: Vec<i32>,
    /// By id; only of `llama`.
    pub scores: Option<Vec<f32>>,
    /// Lowest rank first; only of `gpt2`.
    pub merges: Vec<String>,
    /// The token that is added before a text.
    pub bos: Option<u32>,
    /// The token that is added after a text.
    pub eos: Option<u32>,
    /// The token of unknown text.
    pub unk: Option<u32>,
    /// Whether a text begins with a space; only of `llama`.
    pub add_space_prefix: Option<bool>,
}

/// A tokenizer does what no GGUF file can say.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} has no form in a GGUF file")]
pub struct NotInGguf(
    /// What it does.
    pub String,
);

const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// The score of an id without a token, as converters write it.
const UNUSED_SCORE: f32 = -10_000.0;

const SPACE_MARK: &str = "\u{2581}";

impl GgufData {
    /// The same for reading.
    pub fn vocab(&self) -> GgufVocab<'_, String> {
        GgufVocab {
            model: self.model,
            pre: self.pre,
            tokens: &self.tokens,
            token_types: Some(&self.token_types),
            scores: self.scores.as_deref(),
            merges: &self.merges,
            bos: self.bos,
            eos: self.eos,
            unk: self.unk,
            pad: None,
            add_bos: Some(self.bos.is_some()),
            add_eos: Some(self.eos.is_some()),
            add_space_prefix: self.add_space_prefix,
        }
    }

    /// Adds unused tokens until there are as many as the model has rows.
    pub fn pad_to(&mut self, rows: usize) {
        for id in self.tokens.len()..rows {
            self.tokens.push(format!("[PAD{id}]"));
            self.token_types.push(UNUSED);
            if let Some(scores) = &mut self.scores {
                scores.push(UNUSED_SCORE);
            }
        }
    }
}

impl Tokenizer {
    /// Takes the vocabulary of a GGUF file.
    ///
    /// # Errors
    /// If its lists contradict each other, or it is of a kind, or names a pattern, that this crate does
    /// not know; the message lists those that it knows.
    pub fn from_gguf<S: AsRef<str>>(vocab: &GgufVocab<'_, S>) -> Result<Self, LoadError> {
        let num_tokens = vocab.tokens.len();
        if num_tokens > MAX_VOCAB_SIZE as usize {
            return Err(unsupported("tokens", num_tokens, "at most 1048576"));
        }
        let lengths = [
            (
                "tokenizer.ggml.token_type",
                vocab.token_types.map(<[i32]>::len),
            ),
            ("tokenizer.ggml.scores", vocab.scores.map(<[f32]>::len)),
        ];
        for (field, found) in lengths {
            if let Some(found) = found.filter(|found| *found != num_tokens) {
                return Err(LoadError::Length {
                    field,
                    found,
                    expected: num_tokens,
                });
            }
        }
        let roles = [
            ("bos_token_id", vocab.bos),
            ("eos_token_id", vocab.eos),
            ("unknown_token_id", vocab.unk),
            ("padding_token_id", vocab.pad),
        ];
        for (key, id) in roles {
            if let Some(id) = id.filter(|id| *id as usize >= num_tokens) {
                let field = format!("tokenizer.ggml.{key}");
                return Err(LoadError::MissingId { field, id });
            }
        }
        let parts = match vocab.model {
            "gpt2" => gpt2_parts(vocab)?,
            "llama" => llama_parts(vocab)?,
            other => {
                let found = format!("{:?}", shorten(other));
                return Err(unsupported("model", found, "\"gpt2\" or \"llama\""));
            }
        };
        Self::from_parts(parts)
    }

    /// What a GGUF file is to hold of this tokenizer.
    ///
    /// # Errors
    /// If the tokenizer does what such a file cannot say.
    pub fn gguf_vocab(&self) -> Result<GgufData, NotInGguf> {
        let parts = &self.parts;
        for (token, _) in &parts.added {
            let content = shorten(&token.content);
            if token.strips_left || token.strips_right || token.is_single_word {
                let what = format!("added token {content:?} with lstrip, rstrip or single_word");
                return Err(NotInGguf(what));
            }
            if token.is_normalized && self.normalize(&token.content) != token.content {
                let what = format!("added token {content:?}, looked for in normalised form,");
                return Err(NotInGguf(what));
            }
        }
        let mut data = GgufData {
            tokens: (0..self.vocab_size())
                .map(|id| format!("[PAD{id}]"))
                .collect(),
            token_types: vec![UNUSED; self.vocab_size()],
            ..GgufData::default()
        };
        for (token, id) in &parts.vocab {
            data.tokens[*id as usize].clone_from(token);
            data.token_types[*id as usize] = NORMAL;
        }
        for (token, id) in &parts.added {
            data.tokens[*id as usize].clone_from(&token.content);
            data.token_types[*id as usize] = match token.is_special {
                true => CONTROL,
                false => USER_DEFINED,
            };
        }
        (data.bos, data.eos) = self.added_around()?;
        match &parts.model {
            ModelParts::Bpe(bpe) => self.describe_merges(bpe, &mut data)?,
            ModelParts::Scored(scored) => self.describe_scores(scored, &mut data)?,
        }
        Ok(data)
    }

    /// The tokens that are added before and after a text.
    fn added_around(&self) -> Result<(Option<u32>, Option<u32>), NotInGguf> {
        let template = match &self.parts.post_processor {
            None | Some(PostProcessor::ByteLevel(_)) => return Ok((None, None)),
            Some(PostProcessor::Template(template)) => template,
            Some(PostProcessor::Sequence(parts)) => {
                let mut templates = parts.iter().filter_map(|part| match part {
                    PostProcessor::ByteLevel(_) => None,
                    other => Some(other),
                });
                match (templates.next(), templates.next()) {
                    (None, _) => return Ok((None, None)),
                    (Some(PostProcessor::Template(template)), None) => template,
                    _ => return Err(NotInGguf("post-processor of several templates".to_owned())),
                }
            }
        };
        let ids_of = |piece: &Piece| match piece {
            Piece::Special { name, .. } => template
                .special_tokens
                .iter()
                .find(|special| special.name == *name)
                .and_then(|special| match special.ids[..] {
                    [id] => Some(id),
                    _ => None,
                }),
            Piece::Sequence { .. } => None,
        };
        let single = &template.single[..];
        let around = match single {
            [Piece::Sequence { .. }] => Some((None, None)),
            [start, Piece::Sequence { .. }] => ids_of(start).map(|start| (Some(start), None)),
            [Piece::Sequence { .. }, end] => ids_of(end).map(|end| (None, Some(end))),
            [start, Piece::Sequence { .. }, end] => ids_of(start)
                .zip(ids_of(end))
                .map(|(start, end)| (Some(start), Some(end))),
            _ => None,
        };
        around.ok_or_else(|| NotInGguf("post-processor with more than one token a side".to_owned()))
    }

    fn describe_merges(&self, bpe: &BpeParts, data: &mut GgufData) -> Result<(), NotInGguf> {
        let parts = &self.parts;
        if !self.cutter.is_byte_level() || !self.plan.is_plain() {
            return Err(NotInGguf("list of merges over characters".to_owned()));
        }
        data.model = "gpt2";
        data.pre = PRE_NAMES.into_iter().find(|name| {
            let pre = Pre::find(name).ok().flatten();
            pre.zip(parts.pre_tokenizer.as_ref())
                .is_some_and(|(pre, own)| {
                    pre.normalizer == parts.normalizer
                        && pre.ignore_merges == bpe.ignore_merges
                        && pre.pre_tokenizer.cuts_like(own)
                })
        });
        let merge = |(left, right): &(String, String)| format!("{left} {right}");
        data.merges = bpe.merges.iter().map(merge).collect();
        data.unk = bpe.unk_token.as_deref().and_then(|token| self.id_of(token));
        Ok(())
    }

    fn describe_scores(&self, scored: &ScoredParts, data: &mut GgufData) -> Result<(), NotInGguf> {
        let parts = &self.parts;
        let prefixes = [true, false];
        let has_prefix = prefixes.into_iter().find(|has_prefix| {
            let (normalizer, decoder) = spaces(*has_prefix);
            parts.normalizer.as_ref() == Some(&normalizer) && parts.decoder == decoder
        });
        let Some(has_prefix) = has_prefix.filter(|_| parts.pre_tokenizer.is_none()) else {
            let what = "normaliser, pre-tokenizer or decoder other than SentencePiece's";
            return Err(NotInGguf(what.to_owned()));
        };
        data.model = "llama";
        data.pre = Some("default");
        data.add_space_prefix = Some(has_prefix);
        let mut scores = vec![UNUSED_SCORE; self.vocab_size()];
        for ((token, id), score) in parts.vocab.iter().zip(&scored.scores) {
            scores[*id as usize] = *score;
            let token_type = &mut data.token_types[*id as usize];
            if *token_type == NORMAL && byte_of_token(token).is_some() {
                *token_type = BYTE;
            }
        }
        data.scores = Some(scores);
        data.unk = scored.unk_id;
        match scored.unk_id {
            // Of the type unknown it would be found in text, which only an added token is.
            Some(unk) if data.token_types[unk as usize] == CONTROL => {
                data.token_types[unk as usize] = UNKNOWN;
            }
            // A reader takes the first token where a file names none.
            None if data.token_types.first().is_some_and(|zero| *zero != UNUSED) => {
                let what = "vocabulary without an unknown token".to_owned();
                return Err(NotInGguf(what));
            }
            _ => {}
        }
        Ok(())
    }
}

fn unsupported(key: &str, found: impl ToString, expected: &'static str) -> LoadError {
    LoadError::Unsupported {
        field: format!("tokenizer.ggml.{key}"),
        found: found.to_string(),
        expected,
    }
}

/// Tokens with their ids, and what is found in text as a whole.
type Tokens = (Vec<(String, u32)>, Vec<(AddedToken, u32)>);

/// Sorts tokens by their types. `roles` are ids that are control tokens where no types are given.
fn read_tokens<S: AsRef<str>>(
    vocab: &GgufVocab<'_, S>,
    roles: &[Option<u32>],
) -> Result<Tokens, LoadError> {
    let (mut tokens, mut added) = (Vec::new(), Vec::new());
    let mut seen = std::collections::HashMap::new();
    for (id, token) in (0_u32..).zip(vocab.tokens) {
        let token = token.as_ref();
        let token_type = match vocab.token_types {
            Some(types) => types[id as usize],
            None if roles.contains(&Some(id)) => CONTROL,
            None => NORMAL,
        };
        let is_special = match token_type {
            // A row of the model that no text becomes.
            UNUSED => continue,
            NORMAL => None,
            BYTE if vocab.model == "gpt2" || byte_of_token(token).is_some() => None,
            BYTE => {
                let found = format!("6 (a byte) for {:?}", shorten(token));
                return Err(unsupported("token_type", found, "tokens <0x00> to <0xFF>"));
            }
            UNKNOWN | CONTROL => Some(true),
            USER_DEFINED => Some(false),
            _ => {
                let found = format!("{token_type} for {:?}", shorten(token));
                return Err(unsupported("token_type", found, "1 to 6"));
            }
        };
        if let Some(first) = seen.insert(token, id) {
            return Err(LoadError::DuplicateToken {
                token: shorten(token),
                first,
                second: id,
            });
        }
        tokens.push((token.to_owned(), id));
        if let Some(is_special) = is_special {
            let token = AddedToken {
                is_special,
                ..AddedToken::new(token)
            };
            added.push((token, id));
        }
    }
    Ok((tokens, added))
}

fn gpt2_parts<S: AsRef<str>>(vocab: &GgufVocab<'_, S>) -> Result<TokenizerParts, LoadError> {
    let known = "one of exaone-moe, exaone, exaone4, gpt-2, llama-bpe, smollm, qwen2, default";
    let Some(name) = vocab.pre else {
        // llama.cpp warns and goes on with "default", which no model was trained with.
        return Err(unsupported("pre", "missing", known));
    };
    let Some(pre) = Pre::find(name)? else {
        return Err(unsupported("pre", format!("{:?}", shorten(name)), known));
    };
    let roles = [vocab.bos, vocab.eos, vocab.unk, vocab.pad];
    let (tokens, added) = read_tokens(vocab, &roles)?;
    let merges = vocab.merges.iter().enumerate().map(|(index, merge)| {
        let merge = merge.as_ref();
        // A token may begin with a space, if it is not spelled in the byte alphabet.
        let first = merge.chars().next().map_or(0, char::len_utf8);
        match merge[first..].find(' ').map(|at| at + first) {
            Some(at) => Ok((merge[..at].to_owned(), merge[at + 1..].to_owned())),
            None => Err(LoadError::MalformedMerge {
                index,
                text: shorten(merge),
            }),
        }
    });
    let unk_token = vocab
        .unk
        .map(|id| vocab.tokens[id as usize].as_ref().to_owned());
    Ok(TokenizerParts {
        model: ModelParts::Bpe(BpeParts {
            merges: merges.collect::<Result<_, LoadError>>()?,
            unk_token,
            ignore_merges: pre.ignore_merges,
            ..BpeParts::default()
        }),
        vocab: tokens,
        added,
        normalizer: pre.normalizer,
        pre_tokenizer: Some(pre.pre_tokenizer),
        post_processor: around(vocab, vocab.bos, vocab.eos, pre.add_bos)?,
        decoder: Decoder::ByteLevel(ByteLevel::DECODER),
    })
}

fn llama_parts<S: AsRef<str>>(vocab: &GgufVocab<'_, S>) -> Result<TokenizerParts, LoadError> {
    let Some(scores) = vocab.scores else {
        return Err(unsupported("scores", "missing", "a score for each token"));
    };
    // What llama.cpp takes where a file does not say.
    let default = |id: u32| Some(id).filter(|id| (*id as usize) < vocab.tokens.len());
    let unk = vocab.unk.or_else(|| default(0));
    let (bos, eos) = (
        vocab.bos.or_else(|| default(1)),
        vocab.eos.or_else(|| default(2)),
    );
    let (tokens, added) = read_tokens(vocab, &[bos, eos, unk, vocab.pad])?;
    let scores = tokens.iter().map(|(_, id)| scores[*id as usize]).collect();
    let unk_id = unk.filter(|unk| tokens.iter().any(|(_, id)| id == unk));
    let (normalizer, decoder) = spaces(vocab.add_space_prefix.unwrap_or(true));
    Ok(TokenizerParts {
        vocab: tokens,
        added,
        normalizer: Some(normalizer),
        pre_tokenizer: None,
        model: ModelParts::Scored(ScoredParts { scores, unk_id }),
        post_processor: around(vocab, bos, eos, true)?,
        decoder,
    })
}

/// How spaces become marks and marks spaces, with or without one before the text.
fn spaces(has_prefix: bool) -> (Normalizer, Decoder) {
    let replace = |pattern: &str, content: &str| Replace {
        pattern: pattern.to_owned(),
        content: content.to_owned(),
    };
    let marks = Normalizer::Replace(replace(" ", SPACE_MARK));
    let mut decoders = vec![
        Decoder::Replace(replace(SPACE_MARK, " ")),
        Decoder::ByteFallback,
        Decoder::Fuse,
    ];
    let normalizer = match has_prefix {
        true => {
            decoders.push(Decoder::Strip {
                content: ' ',
                start: 1,
                stop: 0,
            });
            Normalizer::Sequence(vec![Normalizer::Prepend(SPACE_MARK.to_owned()), marks])
        }
        false => marks,
    };
    (normalizer, Decoder::Sequence(decoders))
}

/// The tokens that the file wants around a text.
fn around<S: AsRef<str>>(
    vocab: &GgufVocab<'_, S>,
    bos: Option<u32>,
    eos: Option<u32>,
    add_bos: bool,
) -> Result<Option<PostProcessor>, LoadError> {
    let token = |key: &str, is_added: bool, id: Option<u32>| match (is_added, id) {
        (false, _) => Ok(None),
        (true, Some(id)) => Ok(Some((vocab.tokens[id as usize].as_ref().to_owned(), id))),
        (true, None) => {
            let found = "true, and no id says which token to add";
            Err(unsupported(key, found, "an id beside it"))
        }
    };
    let start = token("add_bos_token", vocab.add_bos.unwrap_or(add_bos), bos)?;
    let end = token("add_eos_token", vocab.add_eos.unwrap_or(false), eos)?;
    let is_any = start.is_some() || end.is_some();
    Ok(is_any.then(|| PostProcessor::around(start, end)))
}

#[cfg(test)]
mod tests;
