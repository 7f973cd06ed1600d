//! `tokenizer.json`, the file format of the Hugging Face `tokenizers` library: reading and writing.
//!
//! Understood is the BPE model with or without bytes, in the forms that the GPT and Llama families
//! publish, and what goes with it: `parts` lists the kinds. What else a file asks for is refused by
//! name, because encoding without it would silently give other ids; so is a key that is not known.
//! Truncation and padding are refused: a library that cuts text on its own is not what a file of a
//! model is for.
//!
//! One form is this crate's own: the model type `Scored`, a list of `[token, score]` by id (null where
//! an id has no token), for vocabularies that are joined by scores. The library refuses it.

mod fields;
mod parts;

use crate::assemble::{BpeParts, ModelParts, ScoredParts, TokenizerParts};
use crate::error::LoadError;
use crate::special::AddedToken;
use crate::tokenizer::{MAX_VOCAB_SIZE, shorten};
use fields::{Fields, unsupported};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value, json};

/// The kind of a model that joins by scores.
const SCORED: &str = "Scored";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    version: Option<String>,
    #[serde(default)]
    truncation: Value,
    #[serde(default)]
    padding: Value,
    #[serde(default)]
    added_tokens: Vec<Value>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
    model: Model,
}

#[derive(Deserialize)]
struct Model {
    #[serde(default, rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    dropout: Option<f64>,
    #[serde(default)]
    unk_token: Option<String>,
    #[serde(default)]
    unk_id: Option<u32>,
    #[serde(default)]
    continuing_subword_prefix: Option<String>,
    #[serde(default)]
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    fuse_unk: bool,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
    vocab: Vocab,
    merges: Option<Vec<MergeEntry>>,
    #[serde(flatten)]
    others: Map<String, Value>,
}

/// The vocabulary with every entry of the file, so that a token that stands twice can be reported.
enum Vocab {
    Ids(Vec<(String, u64)>),
    Scores(Vec<Option<(String, f32)>>),
}

impl<'de> Deserialize<'de> for Vocab {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Vocab;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object from tokens to ids")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vocab, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Vocab::Ids(entries))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vocab, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = seq.next_element()? {
                    entries.push(entry);
                }
                Ok(Vocab::Scores(entries))
            }
        }
        deserializer.deserialize_any(Entries)
    }
}

/// A merge as newer files write it, or as older ones do: `"left right"`.
#[derive(Deserialize)]
#[serde(untagged)]
enum MergeEntry {
    Pair(String, String),
    Line(String),
}

/// Reads the text of a file and refuses what is not understood.
pub(crate) fn read(text: &str) -> Result<TokenizerParts, LoadError> {
    let File {
        version,
        truncation,
        padding,
        added_tokens,
        normalizer,
        pre_tokenizer,
        post_processor,
        decoder,
        model,
    } = serde_json::from_str(text)?;
    let version = version.unwrap_or_else(|| "1.0".to_owned());
    refuse_unless(version == "1.0", "version", &json!(version), "\"1.0\"")?;
    refuse_unless(truncation.is_null(), "truncation", &truncation, "null")?;
    refuse_unless(padding.is_null(), "padding", &padding, "null")?;
    let read_added = |(index, value)| read_added(&format!("added_tokens[{index}]"), value);
    let added = added_tokens.iter().enumerate().map(read_added);
    let added = added.collect::<Result<_, LoadError>>()?;
    let normalizer = optional("normalizer", &normalizer, parts::read_normalizer)?;
    let pre_tokenizer = optional("pre_tokenizer", &pre_tokenizer, parts::read_pre_tokenizer)?;
    let post_processor = optional(
        "post_processor",
        &post_processor,
        parts::read_post_processor,
    )?;
    let Some(decoder) = optional("decoder", &decoder, parts::read_decoder)? else {
        // The library would put a space between any two tokens.
        return Err(unsupported("decoder", &decoder, "a decoder"));
    };
    let (vocab, model) = read_model(model)?;
    Ok(TokenizerParts {
        vocab,
        added,
        normalizer,
        pre_tokenizer,
        model,
        post_processor,
        decoder,
    })
}

/// What a value says, unless it is null.
fn optional<T>(
    path: &str,
    value: &Value,
    read: impl Fn(&str, &Value) -> Result<T, LoadError>,
) -> Result<Option<T>, LoadError> {
    match value {
        Value::Null => Ok(None),
        value => read(path, value).map(Some),
    }
}

fn read_added(path: &str, value: &Value) -> Result<(AddedToken, u32), LoadError> {
    let mut fields = Fields::new(path, value)?;
    let content = fields.string("content")?.to_owned();
    let id = check_id(u64::from(fields.number("id")?), &content)?;
    let token = AddedToken {
        content,
        is_special: fields.bool("special", Some(false))?,
        is_normalized: fields.bool("normalized", Some(false))?,
        strips_left: fields.bool("lstrip", Some(false))?,
        strips_right: fields.bool("rstrip", Some(false))?,
        is_single_word: fields.bool("single_word", Some(false))?,
    };
    fields.finish()?;
    Ok((token, id))
}

fn check_id(id: u64, token: &str) -> Result<u32, LoadError> {
    match u32::try_from(id) {
        Ok(id) if id < MAX_VOCAB_SIZE => Ok(id),
        _ => Err(LoadError::IdTooLarge {
            token: shorten(token),
            id,
            limit: MAX_VOCAB_SIZE,
        }),
    }
}

fn refuse_unless(
    is_understood: bool,
    field: &str,
    found: &Value,
    expected: &'static str,
) -> Result<(), LoadError> {
    match is_understood {
        true => Ok(()),
        false => Err(unsupported(field, found, expected)),
    }
}

/// Tokens with their ids, in the order of the file.
type Entries = Vec<(String, u32)>;

fn read_model(model: Model) -> Result<(Entries, ModelParts), LoadError> {
    let kind = model.kind.as_deref().unwrap_or("BPE");
    let is_known = [SCORED, "BPE"].contains(&kind);
    refuse_unless(is_known, "model.type", &json!(kind), "\"BPE\"")?;
    if let Some((key, value)) = model.others.iter().next() {
        let field = format!("model.{}", shorten(key));
        return Err(unsupported(&field, value, "no such key here"));
    }
    match (kind, model.vocab) {
        (SCORED, Vocab::Scores(entries)) => {
            let bpe_only = [
                ("model.unk_token", json!(model.unk_token)),
                ("model.fuse_unk", json!(model.fuse_unk)),
                ("model.byte_fallback", json!(model.byte_fallback)),
                ("model.ignore_merges", json!(model.ignore_merges)),
                ("model.dropout", json!(model.dropout)),
                (
                    "model.continuing_subword_prefix",
                    json!(model.continuing_subword_prefix),
                ),
                ("model.end_of_word_suffix", json!(model.end_of_word_suffix)),
                ("model.merges", json!(model.merges.map(|list| list.len()))),
            ];
            for (field, value) in bpe_only {
                let is_absent = value.is_null() || value == false;
                refuse_unless(is_absent, field, &value, "none in a Scored model")?;
            }
            let (mut vocab, mut scores) = (Vec::new(), Vec::new());
            for (id, entry) in (0_u64..).zip(entries) {
                if let Some((token, score)) = entry {
                    let id = check_id(id, &token)?;
                    vocab.push((token, id));
                    scores.push(score);
                }
            }
            let unk_id = model.unk_id;
            Ok((vocab, ModelParts::Scored(ScoredParts { scores, unk_id })))
        }
        ("BPE", Vocab::Ids(entries)) => {
            refuse_unless(
                model.unk_id.is_none(),
                "model.unk_id",
                &json!(model.unk_id),
                "none in a BPE model",
            )?;
            let dropout = model.dropout.unwrap_or(0.0);
            refuse_unless(dropout == 0.0, "model.dropout", &json!(dropout), "null")?;
            let affixes = [
                (
                    "model.continuing_subword_prefix",
                    &model.continuing_subword_prefix,
                ),
                ("model.end_of_word_suffix", &model.end_of_word_suffix),
            ];
            for (field, affix) in affixes {
                let affix = affix.as_deref().unwrap_or_default();
                refuse_unless(affix.is_empty(), field, &json!(affix), "null")?;
            }
            let Some(merges) = model.merges else {
                return Err(unsupported("model.merges", &Value::Null, "an array"));
            };
            let bpe = BpeParts {
                merges: read_merges(merges)?,
                unk_token: model.unk_token,
                fuse_unk: model.fuse_unk,
                byte_fallback: model.byte_fallback,
                ignore_merges: model.ignore_merges,
            };
            Ok((read_ids(entries)?, ModelParts::Bpe(bpe)))
        }
        (kind, _) => Err(LoadError::Unsupported {
            field: "model.vocab".to_owned(),
            found: format!("not what a model of the type {kind} has"),
            expected: "an object from tokens to ids for BPE, an array of scores for Scored",
        }),
    }
}

fn read_ids(entries: Vec<(String, u64)>) -> Result<Entries, LoadError> {
    let mut seen = std::collections::HashMap::with_capacity(entries.len());
    for (token, id) in &entries {
        let id = check_id(*id, token)?;
        if let Some(first) = seen.insert(token.as_str(), id) {
            return Err(LoadError::DuplicateToken {
                token: shorten(token),
                first,
                second: id,
            });
        }
    }
    let checked = entries.iter().map(|(token, id)| check_id(*id, token));
    let ids = checked.collect::<Result<Vec<u32>, LoadError>>()?;
    let tokens = entries.into_iter().map(|(token, _)| token);
    Ok(tokens.zip(ids).collect())
}

fn read_merges(merges: Vec<MergeEntry>) -> Result<Vec<(String, String)>, LoadError> {
    let read = |(index, entry)| match entry {
        MergeEntry::Pair(left, right) => Ok((left, right)),
        MergeEntry::Line(line) => match line.split_once(' ') {
            Some((left, right)) if !right.contains(' ') => Ok((left.to_owned(), right.to_owned())),
            _ => Err(LoadError::MalformedMerge {
                index,
                text: shorten(&line),
            }),
        },
    };
    merges.into_iter().enumerate().map(read).collect()
}

/// Writes the file, indented as the Hugging Face library does.
pub(crate) fn write(parts: &TokenizerParts) -> String {
    let added: Vec<Value> = parts
        .added
        .iter()
        .map(|(token, id)| {
            json!({
                "id": id,
                "content": token.content,
                "single_word": token.is_single_word,
                "lstrip": token.strips_left,
                "rstrip": token.strips_right,
                "normalized": token.is_normalized,
                "special": token.is_special,
            })
        })
        .collect();
    let file = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": parts.normalizer.as_ref().map(parts::write_normalizer),
        "pre_tokenizer": parts.pre_tokenizer.as_ref().map(parts::write_pre_tokenizer),
        "post_processor": parts.post_processor.as_ref().map(parts::write_post_processor),
        "decoder": parts::write_decoder(&parts.decoder),
        "model": write_model(&parts.model, &parts.vocab),
    });
    serde_json::to_string_pretty(&file).expect("strings, finite numbers and null only")
}

fn write_model(model: &ModelParts, vocab: &[(String, u32)]) -> Value {
    match model {
        ModelParts::Bpe(bpe) => {
            let vocab: Map<String, Value> = vocab
                .iter()
                .map(|(token, id)| (token.clone(), json!(id)))
                .collect();
            json!({
                "type": "BPE",
                "dropout": null,
                "unk_token": bpe.unk_token,
                "continuing_subword_prefix": null,
                "end_of_word_suffix": null,
                "fuse_unk": bpe.fuse_unk,
                "byte_fallback": bpe.byte_fallback,
                "ignore_merges": bpe.ignore_merges,
                "vocab": vocab,
                "merges": bpe.merges,
            })
        }
        ModelParts::Scored(scored) => {
            let mut entries: Vec<Value> = Vec::new();
            for ((token, id), score) in vocab.iter().zip(&scored.scores) {
                entries.resize(*id as usize, Value::Null);
                // As f64, so that the digits name one number and no other.
                entries.push(json!([token, f64::from(*score)]));
            }
            json!({
                "type": SCORED,
                "unk_id": scored.unk_id,
                "vocab": entries,
            })
        }
    }
}
