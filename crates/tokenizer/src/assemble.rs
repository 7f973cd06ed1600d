//! From what a file says to a tokenizer that works: every contradiction is found here.

use crate::added::{AddedMatcher, Found};
use crate::bpe::{Bpe, Chars, Merge, NO_TOKEN};
use crate::byte_alphabet::{byte_of_char, char_of_byte, unspell};
use crate::decode::{Decoder, Plan, token_of_byte};
use crate::error::LoadError;
use crate::fast_hash::FastMap;
use crate::normalize::Normalizer;
use crate::postprocess::PostProcessor;
use crate::pretokenize::{Cutter, PreTokenizer};
use crate::special::AddedToken;
use crate::spm::Spm;
use crate::tokenizer::{MAX_VOCAB_SIZE, Model, Tokenizer, shorten};
use std::borrow::Cow;
use std::collections::HashMap;

/// What a file says, checked for form but not for consistency.
#[derive(Debug, PartialEq)]
pub(crate) struct TokenizerParts {
    pub(crate) vocab: Vec<(String, u32)>, // as spelled in the file
    pub(crate) added: Vec<(AddedToken, u32)>,
    pub(crate) normalizer: Option<Normalizer>,
    pub(crate) pre_tokenizer: Option<PreTokenizer>,
    pub(crate) model: ModelParts,
    pub(crate) post_processor: Option<PostProcessor>, // `encode` adds no tokens
    pub(crate) decoder: Decoder,
}

/// What says how text is joined.
#[derive(Debug, PartialEq)]
pub(crate) enum ModelParts {
    Bpe(BpeParts),
    Scored(ScoredParts),
}

/// A list of merges and what goes with it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct BpeParts {
    pub(crate) merges: Vec<(String, String)>, // lowest rank first
    pub(crate) unk_token: Option<String>,
    pub(crate) fuse_unk: bool,
    pub(crate) byte_fallback: bool,
    pub(crate) ignore_merges: bool,
}

/// A score for each token.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct ScoredParts {
    pub(crate) scores: Vec<f32>, // in the order of `TokenizerParts::vocab`
    pub(crate) unk_id: Option<u32>,
}

/// Ids by token and tokens by id.
struct Index<'a> {
    ids: HashMap<Box<str>, u32>,
    tokens: Vec<Option<&'a str>>,
    is_added: Vec<bool>,
    is_special: Vec<bool>,
}

pub(crate) fn assemble(mut parts: TokenizerParts) -> Result<Tokenizer, LoadError> {
    if matches!(parts.model, ModelParts::Bpe(_)) {
        parts.vocab.sort_by_key(|(_, id)| *id);
    }
    let index = Index::new(&parts)?;
    let cutter = Cutter::new(parts.pre_tokenizer.as_ref())?;
    let plan = Plan::new(&parts.decoder)?;
    if let Some(normalizer) = &parts.normalizer {
        normalizer.check()?;
    }
    if let Some(post_processor) = &parts.post_processor {
        post_processor.check(&|id| index.token(id).is_some())?;
    }
    let model = match &parts.model {
        ModelParts::Bpe(bpe) if cutter.is_byte_level() => {
            byte_level_model(bpe, &parts.vocab, &index)?
        }
        ModelParts::Bpe(bpe) => char_model(bpe, &parts.vocab, &index)?,
        ModelParts::Scored(scored) if !cutter.is_byte_level() => {
            scored_model(scored, &parts.vocab, &index)?
        }
        ModelParts::Scored(_) => {
            return Err(LoadError::Unsupported {
                field: "pre_tokenizer".to_owned(),
                found: "ByteLevel".to_owned(),
                expected: "none that spells bytes, for a vocabulary joined by scores",
            });
        }
    };
    let (added_raw, added_normalized) = matchers(&parts);
    let texts = index.tokens.iter();
    let mut texts: Vec<_> = texts
        .map(|token| token.map(|token| plan.token_text(token)))
        .collect();
    let mut first_texts: FastMap<u32, Box<[u8]>> = (0..)
        .zip(&index.tokens)
        .filter_map(|(id, token)| Some((id, plan.first_text((*token)?)?)))
        .collect();
    // What is found in normalised text is written as it was found.
    for (token, id) in parts.added.iter().filter(|(token, _)| token.is_normalized) {
        let content = normalized(&parts, &token.content);
        texts[*id as usize] = Some(plan.token_text(&content));
        match plan.first_text(&content) {
            Some(first) => first_texts.insert(*id, first),
            None => first_texts.remove(id),
        };
    }
    let Index {
        ids,
        tokens,
        is_added,
        is_special,
    } = index;
    drop(tokens);
    Ok(Tokenizer {
        ids,
        texts,
        first_texts,
        is_added,
        is_special,
        model,
        cutter,
        plan,
        added_raw,
        added_normalized,
        parts,
    })
}

impl<'a> Index<'a> {
    fn new(parts: &'a TokenizerParts) -> Result<Self, LoadError> {
        let mut ids: HashMap<Box<str>, u32> = HashMap::with_capacity(parts.vocab.len());
        let mut tokens: Vec<Option<&str>> = Vec::new();
        let contents = parts.vocab.iter().map(|(token, id)| (token.as_str(), *id));
        let added = parts.added.iter();
        let added = added.map(|(token, id)| (token.content.as_str(), *id));
        for (token, id) in contents.chain(added) {
            if token.is_empty() {
                return Err(LoadError::EmptyToken { id });
            }
            if id >= MAX_VOCAB_SIZE {
                return Err(LoadError::IdTooLarge {
                    token: shorten(token),
                    id: u64::from(id),
                    limit: MAX_VOCAB_SIZE,
                });
            }
            if let Some(first) = ids.insert(token.into(), id)
                && first != id
            {
                return Err(LoadError::DuplicateToken {
                    token: shorten(token),
                    first,
                    second: id,
                });
            }
            if tokens.len() <= id as usize {
                tokens.resize(id as usize + 1, None);
            }
            if let Some(first) = tokens[id as usize].replace(token)
                && first != token
            {
                let (first, second) = (shorten(first), shorten(token));
                return Err(LoadError::DuplicateId { id, first, second });
            }
        }
        let mut is_added = vec![false; tokens.len()];
        let mut is_special = vec![false; tokens.len()];
        for (token, id) in &parts.added {
            is_added[*id as usize] = true;
            is_special[*id as usize] |= token.is_special;
        }
        Ok(Index {
            ids,
            tokens,
            is_added,
            is_special,
        })
    }

    fn id(&self, token: &str) -> Option<u32> {
        self.ids.get(token).copied()
    }

    fn token(&self, id: u32) -> Option<&'a str> {
        self.tokens.get(id as usize).copied().flatten()
    }

    fn makes_added(&self, merge: &Merge) -> bool {
        self.is_added[merge.product as usize]
    }
}

fn byte_level_model(
    bpe: &BpeParts,
    vocab: &[(String, u32)],
    index: &Index<'_>,
) -> Result<Model, LoadError> {
    let mut byte_ids = [NO_TOKEN; 256];
    // A vocabulary may lack bytes that its text never had; each is then an unknown one. (A run of them as
    // one is what no such file asks for.)
    let unk = bpe.unk_token.as_deref().filter(|_| !bpe.fuse_unk);
    let unk = unk.and_then(|token| index.id(token));
    for byte in 0..=255_u8 {
        let spelling = char_of_byte(byte);
        match index.id(spelling.encode_utf8(&mut [0; 4])).or(unk) {
            Some(id) => byte_ids[usize::from(byte)] = id,
            // Bytes that no UTF-8 has.
            None if matches!(byte, 0xC0 | 0xC1 | 0xF5..) => {}
            None => return Err(LoadError::MissingByte { byte, spelling }),
        }
    }
    let merges = resolve_merges(&bpe.merges, &index.ids)?;
    let bytes_of = |id: u32| index.token(id).map(unspell).unwrap_or_default();
    // What a pre-token can be spelled like: a token of the byte alphabet.
    let key = |token: &str| -> Option<Box<[u8]>> { token.chars().map(byte_of_char).collect() };
    model(bpe, vocab, index, &merges, &key, |chosen| {
        Bpe::over_bytes(byte_ids, chosen.iter().copied(), bytes_of)
    })
}

fn char_model(
    bpe: &BpeParts,
    vocab: &[(String, u32)],
    index: &Index<'_>,
) -> Result<Model, LoadError> {
    let unk = match &bpe.unk_token {
        None => None,
        Some(token) => Some(index.id(token).ok_or_else(|| LoadError::MissingToken {
            field: "model.unk_token".to_owned(),
            token: shorten(token),
        })?),
    };
    let byte_ids = bpe.byte_fallback.then(|| byte_tokens(index));
    let merges = resolve_merges(&bpe.merges, &index.ids)?;
    let key = |token: &str| -> Option<Box<[u8]>> { Some(token.as_bytes().into()) };
    model(bpe, vocab, index, &merges, &key, |chosen| {
        let of_one_char = vocab.iter().filter_map(|(token, id)| {
            let mut chars = token.chars();
            let c = chars.next()?;
            chars.next().is_none().then_some((c, *id))
        });
        let chars = Chars {
            ids: of_one_char.collect(),
            byte_ids: byte_ids.clone(),
            unk,
            fuse_unk: bpe.fuse_unk,
        };
        Bpe::over_chars(chars, chosen.iter().copied())
    })
}

/// The model by all merges, and by those that make no added token. `key` is what a pre-token looks
/// like that is a token as a whole.
fn model(
    bpe: &BpeParts,
    vocab: &[(String, u32)],
    index: &Index<'_>,
    merges: &[Merge],
    key: &dyn Fn(&str) -> Option<Box<[u8]>>,
    make: impl Fn(&[(u32, Merge)]) -> Bpe,
) -> Result<Model, LoadError> {
    let whole = |is_ordinary: bool| -> FastMap<Box<[u8]>, u32> {
        let ids = vocab
            .iter()
            .filter(|(_, id)| bpe.ignore_merges && !(is_ordinary && index.is_added[*id as usize]));
        ids.filter_map(|(token, id)| Some((key(token)?, *id)))
            .collect()
    };
    let all: Vec<(u32, Merge)> = (0..).zip(merges.iter().copied()).collect();
    let ordinary: Vec<(u32, Merge)> = all
        .iter()
        .filter(|(_, merge)| !index.makes_added(merge))
        .copied()
        .collect();
    let has_added = ordinary.len() < all.len()
        || bpe.ignore_merges && vocab.iter().any(|(_, id)| index.is_added[*id as usize]);
    Ok(Model::Bpe {
        all: Box::new(make(&all).with_whole(whole(false))),
        ordinary: has_added.then(|| Box::new(make(&ordinary).with_whole(whole(true)))),
    })
}

fn scored_model(
    scored: &ScoredParts,
    vocab: &[(String, u32)],
    index: &Index<'_>,
) -> Result<Model, LoadError> {
    if let Some(id) = scored.unk_id
        && index.token(id).is_none()
    {
        return Err(LoadError::MissingId {
            field: "unknown_token_id".to_owned(),
            id,
        });
    }
    let byte_ids = byte_tokens(index);
    let missing = (0..=255_u8).find(|byte| {
        byte_ids[usize::from(*byte)] == NO_TOKEN && !matches!(*byte, 0xC0 | 0xC1 | 0xF5..)
    });
    if let (Some(byte), None) = (missing, scored.unk_id) {
        let token = token_of_byte(byte);
        return Err(LoadError::NoFallback { token });
    }
    for ((token, _), score) in vocab.iter().zip(&scored.scores) {
        if !score.is_finite() {
            return Err(LoadError::BadScore {
                token: shorten(token),
                score: *score,
            });
        }
    }
    let tokens = vocab.iter().zip(&scored.scores);
    let tokens = tokens.filter(|((_, id), _)| {
        !index.is_added[*id as usize] && !byte_ids.contains(id) && scored.unk_id != Some(*id)
    });
    let tokens = tokens.map(|((token, id), score)| (token.as_str(), *id, *score));
    Ok(Model::Spm(Spm::new(
        tokens,
        byte_ids.clone(),
        scored.unk_id,
    )))
}

/// The ids of `<0x00>` to `<0xFF>`.
fn byte_tokens(index: &Index<'_>) -> Box<[u32; 256]> {
    let id = |byte: usize| index.id(&token_of_byte(byte as u8)).unwrap_or(NO_TOKEN);
    Box::new(std::array::from_fn(id))
}

/// What finds added tokens in raw text, and in normalised text.
fn matchers(parts: &TokenizerParts) -> (AddedMatcher, AddedMatcher) {
    // Of tokens that normalisation makes alike the special one is meant, and then the first.
    let special = parts.added.iter().filter(|(token, _)| token.is_special);
    let others = parts.added.iter().filter(|(token, _)| !token.is_special);
    let ordered: Vec<&(AddedToken, u32)> = special.chain(others).collect();
    let found = |token: &AddedToken, id: u32| Found {
        id,
        strips_left: token.strips_left,
        strips_right: token.strips_right,
        is_single_word: token.is_single_word,
    };
    let of_kind = |is_normalized: bool| {
        let tokens = ordered.iter();
        tokens.filter(move |(token, _)| token.is_normalized == is_normalized)
    };
    let raw = of_kind(false).map(|(token, id)| (token.content.as_str(), found(token, *id)));
    // Looked for in normalised text, so in normalised form.
    let normalized: Vec<(Cow<'_, str>, Found)> = of_kind(true)
        .map(|(token, id)| (normalized(parts, &token.content), found(token, *id)))
        .filter(|(content, _)| !content.is_empty())
        .collect();
    let normalized = normalized.iter();
    (
        AddedMatcher::new(raw),
        AddedMatcher::new(normalized.map(|(content, found)| (content.as_ref(), *found))),
    )
}

fn normalized<'a>(parts: &TokenizerParts, text: &'a str) -> Cow<'a, str> {
    match &parts.normalizer {
        Some(normalizer) => normalizer.apply(Cow::Borrowed(text)),
        None => Cow::Borrowed(text),
    }
}

fn resolve_merges(
    merges: &[(String, String)],
    ids: &HashMap<Box<str>, u32>,
) -> Result<Vec<Merge>, LoadError> {
    let mut seen = std::collections::HashSet::with_capacity(merges.len());
    let mut product = String::new();
    let resolve = |(index, (left, right)): (usize, &(String, String))| {
        let id_of = |token: &str| match ids.get(token) {
            Some(id) => Ok(*id),
            None => Err(LoadError::UnknownMergeToken {
                index,
                token: shorten(token),
            }),
        };
        product.clear();
        product.push_str(left);
        product.push_str(right);
        let merge = Merge {
            left: id_of(left)?,
            right: id_of(right)?,
            product: id_of(&product)?,
        };
        if !seen.insert((merge.left, merge.right)) {
            let (left, right) = (shorten(left), shorten(right));
            return Err(LoadError::DuplicateMerge { index, left, right });
        }
        Ok(merge)
    };
    merges.iter().enumerate().map(resolve).collect()
}
