//! `tokenizer.json`, the file format of the Hugging Face `tokenizers` library: reading and writing.
//!
//! Understood: a BPE model over the byte alphabet without dropout, prefixes, byte fallback or ignored
//! merges; no normaliser or NFC; a `Split` by pattern (isolated) followed by `ByteLevel`; added tokens
//! without stripping and word bounds. What else a file asks for is refused by name, because encoding
//! without it would silently give other ids. A post-processor is kept but plays no part: it only adds
//! tokens around a text, and this crate adds none.

use crate::error::LoadError;
use crate::pretokenize::{K_EXAONE_PATTERN, PatternSource, PreTokenizer};
use crate::special::AddedToken;
use crate::tokenizer::{MAX_VOCAB_SIZE, TokenizerParts, shorten};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::{Map, Value, json};

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    truncation: Value,
    #[serde(default)]
    padding: Value,
    #[serde(default)]
    added_tokens: Vec<Added>,
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
struct Added {
    id: u64,
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    normalized: bool,
    #[serde(default)]
    special: bool,
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
    continuing_subword_prefix: Option<String>,
    #[serde(default)]
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
    vocab: VocabEntries,
    merges: Vec<MergeEntry>,
}

/// The vocabulary with every entry of the file, so that a token that stands twice can be reported.
struct VocabEntries(Vec<(String, u64)>);

impl<'de> Deserialize<'de> for VocabEntries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = VocabEntries;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object from tokens to ids")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<VocabEntries, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(VocabEntries(entries))
            }
        }
        deserializer.deserialize_map(Entries)
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
        truncation,
        padding,
        added_tokens,
        normalizer,
        pre_tokenizer,
        post_processor,
        decoder,
        model,
    } = serde_json::from_str(text)?;
    refuse_unless(truncation.is_null(), "truncation", &truncation, "null")?;
    refuse_unless(padding.is_null(), "padding", &padding, "null")?;
    let has_nfc = read_normalizer(&normalizer)?;
    let pre_tokenizer = read_pre_tokenizer(&pre_tokenizer)?;
    let is_byte_level = decoder["type"] == "ByteLevel";
    refuse_unless(is_byte_level, "decoder", &decoder, "a ByteLevel decoder")?;
    check_model(&model)?;

    let added = added_tokens.into_iter().map(|token| {
        let strips = token.single_word || token.lstrip || token.rstrip;
        let found = Value::from(token.content.as_str());
        let expected = "tokens with single_word, lstrip and rstrip false";
        refuse_unless(!strips, "added_tokens", &found, expected)?;
        let id = check_id(token.id, &token.content)?;
        let (is_special, is_normalized) = (token.special, token.normalized);
        Ok((
            AddedToken {
                content: token.content,
                is_special,
                is_normalized,
            },
            id,
        ))
    });
    let added = added.collect::<Result<_, LoadError>>()?;
    let mut vocab = Vec::with_capacity(model.vocab.0.len());
    let mut seen = std::collections::HashMap::with_capacity(model.vocab.0.len());
    for (token, id) in &model.vocab.0 {
        let id = check_id(*id, token)?;
        if let Some(first) = seen.insert(token.as_str(), id) {
            let token = shorten(token);
            return Err(LoadError::DuplicateToken {
                token,
                first,
                second: id,
            });
        }
        vocab.push((token.clone(), id));
    }
    let merges = model
        .merges
        .into_iter()
        .enumerate()
        .map(|(index, entry)| match entry {
            MergeEntry::Pair(left, right) => Ok((left, right)),
            MergeEntry::Line(line) => match line.split_once(' ') {
                Some((left, right)) if !right.contains(' ') => {
                    Ok((left.to_owned(), right.to_owned()))
                }
                _ => Err(LoadError::MalformedMerge {
                    index,
                    text: shorten(&line),
                }),
            },
        });
    let merges = merges.collect::<Result<_, LoadError>>()?;
    let unk_token = model.unk_token;
    Ok(TokenizerParts {
        vocab,
        merges,
        added,
        has_nfc,
        pre_tokenizer,
        unk_token,
        post_processor,
    })
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
    field: &'static str,
    found: &Value,
    expected: &'static str,
) -> Result<(), LoadError> {
    if is_understood {
        Ok(())
    } else {
        Err(unsupported(field, found, expected))
    }
}

fn unsupported(field: &'static str, found: &Value, expected: &'static str) -> LoadError {
    LoadError::Unsupported {
        field,
        found: shorten(&found.to_string()),
        expected,
    }
}

fn read_normalizer(normalizer: &Value) -> Result<bool, LoadError> {
    let has_nfc = normalizer["type"] == "NFC";
    let is_understood = has_nfc || normalizer.is_null();
    refuse_unless(is_understood, "normalizer", normalizer, "NFC or null")?;
    Ok(has_nfc)
}

fn read_pre_tokenizer(value: &Value) -> Result<PreTokenizer, LoadError> {
    let field = "pre_tokenizer";
    let expected = "a Sequence of Split (isolated, not inverted) and ByteLevel (no prefix space, no \
                    pattern of its own)";
    let parts = value["pretokenizers"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let [split, byte_level] = parts else {
        return Err(unsupported(field, value, expected));
    };
    let is_understood = split["type"] == "Split"
        && split["behavior"] == "Isolated"
        && split["invert"] == false
        && byte_level["type"] == "ByteLevel"
        && byte_level["add_prefix_space"] == false
        && byte_level["use_regex"] == false;
    refuse_unless(is_understood, field, value, expected)?;
    let pattern = &split["pattern"];
    let source = match (pattern["Regex"].as_str(), pattern["String"].as_str()) {
        (Some(regex), None) => PatternSource::Regex(regex.to_owned()),
        (None, Some(literal)) => PatternSource::Literal(literal.to_owned()),
        _ => {
            return Err(unsupported(
                field,
                pattern,
                "a pattern that is a Regex or a String",
            ));
        }
    };
    PreTokenizer::new(source)
}

fn check_model(model: &Model) -> Result<(), LoadError> {
    let kind = model.kind.as_deref().unwrap_or("BPE");
    refuse_unless(kind == "BPE", "model.type", &json!(kind), "\"BPE\"")?;
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
    refuse_unless(
        !model.byte_fallback,
        "model.byte_fallback",
        &json!(true),
        "false",
    )?;
    refuse_unless(
        !model.ignore_merges,
        "model.ignore_merges",
        &json!(true),
        "false",
    )
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
                "single_word": false,
                "lstrip": false,
                "rstrip": false,
                "normalized": token.is_normalized,
                "special": token.is_special,
            })
        })
        .collect();
    let pattern = match &parts.pre_tokenizer {
        PreTokenizer::KExaone => json!({ "Regex": K_EXAONE_PATTERN }),
        PreTokenizer::Pattern {
            source: PatternSource::Regex(regex),
            ..
        } => {
            json!({ "Regex": regex })
        }
        PreTokenizer::Pattern {
            source: PatternSource::Literal(literal),
            ..
        } => {
            json!({ "String": literal })
        }
    };
    let mut entries: Vec<&(String, u32)> = parts.vocab.iter().collect();
    entries.sort_by_key(|(_, id)| *id);
    let vocab: Map<String, Value> = entries
        .into_iter()
        .map(|(token, id)| (token.clone(), json!(id)))
        .collect();
    let file = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": if parts.has_nfc { json!({ "type": "NFC" }) } else { Value::Null },
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                { "type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": false },
                {
                    "type": "ByteLevel",
                    "add_prefix_space": false,
                    "trim_offsets": true,
                    "use_regex": false,
                },
            ],
        },
        "post_processor": parts.post_processor,
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": true,
            "trim_offsets": true,
            "use_regex": true,
        },
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": parts.unk_token,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": false,
            "vocab": vocab,
            "merges": parts.merges,
        },
    });
    serde_json::to_string_pretty(&file).expect("strings, numbers and null only")
}
