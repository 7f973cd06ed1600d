//! Normaliser, pre-tokenizer, post-processor and decoder of a `tokenizer.json`, read and written.

use super::fields::{Fields, unsupported};
use crate::decode::Decoder;
use crate::error::LoadError;
use crate::normalize::{Normalizer, Replace};
use crate::postprocess::{Piece, PostProcessor, Special, Template};
use crate::pretokenize::{
    Behavior, ByteLevel, Metaspace, Pattern, PatternSource, PreTokenizer, PrependScheme,
};
use serde_json::{Map, Value, json};

pub(super) fn read_normalizer(path: &str, value: &Value) -> Result<Normalizer, LoadError> {
    let mut fields = Fields::new(path, value)?;
    let normalizer = match fields.kind()? {
        "NFC" => Normalizer::Nfc,
        "NFD" => Normalizer::Nfd,
        "NFKC" => Normalizer::Nfkc,
        "NFKD" => Normalizer::Nfkd,
        "Prepend" => Normalizer::Prepend(fields.string("prepend")?.to_owned()),
        "Replace" => Normalizer::Replace(read_replace(&mut fields)?),
        "Sequence" => Normalizer::Sequence(fields.each("normalizers", read_normalizer)?),
        _ => return fields.refuse_kind("NFC, NFD, NFKC, NFKD, Prepend, Replace or Sequence"),
    };
    fields.finish()?;
    Ok(normalizer)
}

pub(super) fn write_normalizer(normalizer: &Normalizer) -> Value {
    match normalizer {
        Normalizer::Nfc => json!({ "type": "NFC" }),
        Normalizer::Nfd => json!({ "type": "NFD" }),
        Normalizer::Nfkc => json!({ "type": "NFKC" }),
        Normalizer::Nfkd => json!({ "type": "NFKD" }),
        Normalizer::Prepend(prefix) => json!({ "type": "Prepend", "prepend": prefix }),
        Normalizer::Replace(replace) => write_replace(replace),
        Normalizer::Sequence(parts) => {
            let parts: Vec<Value> = parts.iter().map(write_normalizer).collect();
            json!({ "type": "Sequence", "normalizers": parts })
        }
    }
}

fn read_replace(fields: &mut Fields<'_>) -> Result<Replace, LoadError> {
    let path = fields.path_of("pattern");
    let pattern = read_pattern(fields)?;
    let content = fields.string("content")?.to_owned();
    match pattern {
        PatternSource::Literal(pattern) if !pattern.is_empty() => Ok(Replace { pattern, content }),
        PatternSource::Literal(pattern) | PatternSource::Regex(pattern) => Err(unsupported(
            &path,
            &Value::from(pattern),
            "a String that is not empty, in a Replace",
        )),
    }
}

fn write_replace(replace: &Replace) -> Value {
    json!({
        "type": "Replace",
        "pattern": { "String": replace.pattern },
        "content": replace.content,
    })
}

fn read_pattern(fields: &mut Fields<'_>) -> Result<PatternSource, LoadError> {
    let path = fields.path_of("pattern");
    let value = fields.get("pattern").unwrap_or(&Value::Null);
    let entry = value.as_object().and_then(|object| {
        let (key, value) = object.iter().next()?;
        (object.len() == 1).then_some((key.as_str(), value.as_str()?))
    });
    match entry {
        Some(("Regex", regex)) => Ok(PatternSource::Regex(regex.to_owned())),
        Some(("String", literal)) => Ok(PatternSource::Literal(literal.to_owned())),
        _ => Err(unsupported(
            &path,
            value,
            "a pattern that is a Regex or a String",
        )),
    }
}

fn write_pattern(source: &PatternSource) -> Value {
    match source {
        PatternSource::Regex(regex) => json!({ "Regex": regex }),
        PatternSource::Literal(literal) => json!({ "String": literal }),
    }
}

const BEHAVIORS: [(&str, Behavior); 5] = [
    ("Removed", Behavior::Removed),
    ("Isolated", Behavior::Isolated),
    ("MergedWithPrevious", Behavior::MergedWithPrevious),
    ("MergedWithNext", Behavior::MergedWithNext),
    ("Contiguous", Behavior::Contiguous),
];

pub(super) fn read_pre_tokenizer(path: &str, value: &Value) -> Result<PreTokenizer, LoadError> {
    let mut fields = Fields::new(path, value)?;
    let pre_tokenizer = match fields.kind()? {
        "Split" => {
            let pattern = Pattern::new(read_pattern(&mut fields)?)?;
            let name = fields.string("behavior")?;
            let Some((_, behavior)) = BEHAVIORS.iter().find(|(known, _)| *known == name) else {
                return Err(unsupported(
                    &fields.path_of("behavior"),
                    &Value::from(name),
                    "Removed, Isolated, MergedWithPrevious, MergedWithNext or Contiguous",
                ));
            };
            PreTokenizer::Split {
                pattern,
                behavior: *behavior,
                invert: fields.bool("invert", Some(false))?,
            }
        }
        "ByteLevel" => PreTokenizer::ByteLevel(read_byte_level(&mut fields)?),
        "Digits" => PreTokenizer::Digits {
            individual_digits: fields.bool("individual_digits", None)?,
        },
        "Metaspace" => PreTokenizer::Metaspace(read_metaspace(&mut fields)?),
        "Sequence" => PreTokenizer::Sequence(fields.each("pretokenizers", read_pre_tokenizer)?),
        _ => return fields.refuse_kind("Split, ByteLevel, Digits, Metaspace or Sequence"),
    };
    fields.finish()?;
    Ok(pre_tokenizer)
}

pub(super) fn write_pre_tokenizer(pre_tokenizer: &PreTokenizer) -> Value {
    match pre_tokenizer {
        PreTokenizer::Split {
            pattern,
            behavior,
            invert,
        } => {
            let name = BEHAVIORS.iter().find(|(_, known)| known == behavior);
            json!({
                "type": "Split",
                "pattern": write_pattern(pattern.source()),
                "behavior": name.map(|(name, _)| name),
                "invert": invert,
            })
        }
        PreTokenizer::ByteLevel(byte_level) => write_byte_level(byte_level),
        PreTokenizer::Digits { individual_digits } => {
            json!({ "type": "Digits", "individual_digits": individual_digits })
        }
        PreTokenizer::Metaspace(metaspace) => write_metaspace(metaspace),
        PreTokenizer::Sequence(parts) => {
            let parts: Vec<Value> = parts.iter().map(write_pre_tokenizer).collect();
            json!({ "type": "Sequence", "pretokenizers": parts })
        }
    }
}

fn read_byte_level(fields: &mut Fields<'_>) -> Result<ByteLevel, LoadError> {
    Ok(ByteLevel {
        add_prefix_space: fields.bool("add_prefix_space", Some(true))?,
        trim_offsets: fields.bool("trim_offsets", Some(true))?,
        use_regex: fields.bool("use_regex", Some(true))?,
    })
}

fn write_byte_level(byte_level: &ByteLevel) -> Value {
    json!({
        "type": "ByteLevel",
        "add_prefix_space": byte_level.add_prefix_space,
        "trim_offsets": byte_level.trim_offsets,
        "use_regex": byte_level.use_regex,
    })
}

const SCHEMES: [(&str, PrependScheme); 3] = [
    ("first", PrependScheme::First),
    ("never", PrependScheme::Never),
    ("always", PrependScheme::Always),
];

/// Older files say `add_prefix_space` where newer ones name a scheme; `str_rep` repeats the replacement.
fn read_metaspace(fields: &mut Fields<'_>) -> Result<Metaspace, LoadError> {
    let replacement = fields.char("replacement")?;
    let has_prefix = fields.bool("add_prefix_space", Some(true))?;
    if fields.get("str_rep").is_some() {
        fields.string("str_rep")?;
    }
    let path = fields.path_of("prepend_scheme");
    let prepend_scheme = match (fields.get("prepend_scheme"), has_prefix) {
        (None, true) => PrependScheme::Always,
        (None, false) => PrependScheme::Never,
        (Some(value), has_prefix) => {
            let scheme = SCHEMES.iter().find(|(name, _)| value == name);
            match scheme {
                Some((_, scheme)) if has_prefix || *scheme == PrependScheme::Never => *scheme,
                _ => {
                    return Err(unsupported(
                        &path,
                        value,
                        "first, never or always, and never where add_prefix_space is false",
                    ));
                }
            }
        }
    };
    Ok(Metaspace {
        replacement,
        prepend_scheme,
        split: fields.bool("split", Some(true))?,
    })
}

fn write_metaspace(metaspace: &Metaspace) -> Value {
    let scheme = SCHEMES
        .iter()
        .find(|(_, known)| *known == metaspace.prepend_scheme);
    json!({
        "type": "Metaspace",
        "replacement": metaspace.replacement,
        "prepend_scheme": scheme.map(|(name, _)| name),
        "split": metaspace.split,
    })
}

pub(super) fn read_post_processor(path: &str, value: &Value) -> Result<PostProcessor, LoadError> {
    let mut fields = Fields::new(path, value)?;
    let post_processor = match fields.kind()? {
        "ByteLevel" => PostProcessor::ByteLevel(read_byte_level(&mut fields)?),
        "TemplateProcessing" => PostProcessor::Template(Template {
            single: fields.each("single", read_piece)?,
            pair: fields.each("pair", read_piece)?,
            special_tokens: read_specials(&mut fields)?,
        }),
        "Sequence" => PostProcessor::Sequence(fields.each("processors", read_post_processor)?),
        _ => return fields.refuse_kind("ByteLevel, TemplateProcessing or Sequence"),
    };
    fields.finish()?;
    Ok(post_processor)
}

pub(super) fn write_post_processor(post_processor: &PostProcessor) -> Value {
    match post_processor {
        PostProcessor::ByteLevel(byte_level) => write_byte_level(byte_level),
        PostProcessor::Template(template) => {
            let pieces = |pieces: &[Piece]| pieces.iter().map(write_piece).collect::<Vec<Value>>();
            let special = |special: &Special| {
                let value = json!({
                    "id": special.name,
                    "ids": special.ids,
                    "tokens": special.tokens,
                });
                (special.name.clone(), value)
            };
            let specials: Map<String, Value> =
                template.special_tokens.iter().map(special).collect();
            json!({
                "type": "TemplateProcessing",
                "single": pieces(&template.single),
                "pair": pieces(&template.pair),
                "special_tokens": specials,
            })
        }
        PostProcessor::Sequence(parts) => {
            let parts: Vec<Value> = parts.iter().map(write_post_processor).collect();
            json!({ "type": "Sequence", "processors": parts })
        }
    }
}

/// `{"Sequence": {"id": "A", "type_id": 0}}` or `{"SpecialToken": {"id": "<s>", "type_id": 0}}`.
fn read_piece(path: &str, value: &Value) -> Result<Piece, LoadError> {
    let mut fields = Fields::new(path, value)?;
    let expected = "a Sequence, A or B, or a SpecialToken";
    let (kind, inner) = match (fields.get("Sequence"), fields.get("SpecialToken")) {
        (Some(inner), None) => ("Sequence", inner),
        (None, Some(inner)) => ("SpecialToken", inner),
        _ => return Err(unsupported(path, value, expected)),
    };
    fields.finish()?;
    let mut fields = Fields::new(&format!("{path}.{kind}"), inner)?;
    let (name, type_id) = (fields.string("id")?, fields.number("type_id")?);
    fields.finish()?;
    match (kind, name) {
        ("SpecialToken", name) => Ok(Piece::Special {
            name: name.to_owned(),
            type_id,
        }),
        (_, "A" | "B") => Ok(Piece::Sequence {
            is_second: name == "B",
            type_id,
        }),
        _ => Err(unsupported(path, value, expected)),
    }
}

fn write_piece(piece: &Piece) -> Value {
    match piece {
        Piece::Sequence { is_second, type_id } => {
            let name = if *is_second { "B" } else { "A" };
            json!({ "Sequence": { "id": name, "type_id": type_id } })
        }
        Piece::Special { name, type_id } => {
            json!({ "SpecialToken": { "id": name, "type_id": type_id } })
        }
    }
}

fn read_specials(fields: &mut Fields<'_>) -> Result<Vec<Special>, LoadError> {
    let path = fields.path_of("special_tokens");
    let value = fields.get("special_tokens").unwrap_or(&Value::Null);
    let Value::Object(object) = value else {
        return Err(unsupported(&path, value, "an object"));
    };
    let read = |(name, value): (&String, &Value)| {
        let mut fields = Fields::new(&format!("{path}.{name}"), value)?;
        let same = fields.string("id")?;
        if same != name {
            let found = Value::from(same);
            return Err(unsupported(
                &fields.path_of("id"),
                &found,
                "the name that it stands under",
            ));
        }
        let id = |path: &str, value: &Value| {
            let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
            id.ok_or_else(|| unsupported(path, value, "an id"))
        };
        let token = |path: &str, value: &Value| {
            let token = value.as_str().map(str::to_owned);
            token.ok_or_else(|| unsupported(path, value, "a token"))
        };
        let special = Special {
            name: name.clone(),
            ids: fields.each("ids", id)?,
            tokens: fields.each("tokens", token)?,
        };
        fields.finish()?;
        Ok(special)
    };
    object.iter().map(read).collect()
}

pub(super) fn read_decoder(path: &str, value: &Value) -> Result<Decoder, LoadError> {
    let mut fields = Fields::new(path, value)?;
    let decoder = match fields.kind()? {
        "ByteLevel" => Decoder::ByteLevel(read_byte_level(&mut fields)?),
        "Metaspace" => Decoder::Metaspace(read_metaspace(&mut fields)?),
        "Replace" => Decoder::Replace(read_replace(&mut fields)?),
        "ByteFallback" => Decoder::ByteFallback,
        "Fuse" => Decoder::Fuse,
        "Strip" => Decoder::Strip {
            content: fields.char("content")?,
            start: fields.number("start")? as usize,
            stop: fields.number("stop")? as usize,
        },
        "Sequence" => Decoder::Sequence(fields.each("decoders", read_decoder)?),
        _ => {
            return fields.refuse_kind(
                "ByteLevel, Metaspace, Replace, ByteFallback, Fuse, Strip or Sequence",
            );
        }
    };
    fields.finish()?;
    Ok(decoder)
}

pub(super) fn write_decoder(decoder: &Decoder) -> Value {
    match decoder {
        Decoder::ByteLevel(byte_level) => write_byte_level(byte_level),
        Decoder::Metaspace(metaspace) => write_metaspace(metaspace),
        Decoder::Replace(replace) => write_replace(replace),
        Decoder::ByteFallback => json!({ "type": "ByteFallback" }),
        Decoder::Fuse => json!({ "type": "Fuse" }),
        Decoder::Strip {
            content,
            start,
            stop,
        } => json!({ "type": "Strip", "content": content, "start": start, "stop": stop }),
        Decoder::Sequence(parts) => {
            let parts: Vec<Value> = parts.iter().map(write_decoder).collect();
            json!({ "type": "Sequence", "decoders": parts })
        }
    }
}
