//! JSON Lines: one object a line with a string `text`, or a dialogue with `messages`, each with `role` and `content`,
//! and perhaps a `rejected` answer, worse than the last; `lang` and `source` if they are strings.

use std::path::Path;

use serde::Deserialize;

use super::{
    ExtractError, Limits, Position, Sink, SkipReason, Skips,
    input::{Input, Line},
};
use crate::{Dialogue, Document, Message, Record};

#[derive(Deserialize)]
struct Fields {
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    messages: Option<Vec<Message>>,
    #[serde(default)]
    rejected: Option<String>,
    #[serde(default)]
    lang: Option<String>,
    #[serde(default)]
    source: Option<String>,
}

pub(super) fn extract<E: From<ExtractError>>(
    path: &Path,
    limits: &Limits,
    position: &Position,
    skips: &mut Skips,
    sink: &mut Sink<'_, E>,
) -> Result<(), E> {
    let mut input = Input::open(path, limits, position)?;
    let mut bytes = Vec::new();
    for line in 1.. {
        match input.line(&mut bytes, limits.max_document_bytes)? {
            Line::End => break,
            Line::TooLong => {
                skips.add(path, line, SkipReason::TooLong);
                continue;
            }
            Line::Whole if bytes.trim_ascii().is_empty() => continue,
            Line::Whole => {}
        }
        if std::str::from_utf8(&bytes).is_err() {
            skips.add(path, line, SkipReason::InvalidUtf8);
            continue;
        }
        let record = match serde_json::from_slice::<Fields>(&bytes) {
            Ok(record) => record,
            Err(_) => {
                skips.add(path, line, SkipReason::InvalidJson);
                continue;
            }
        };
        let lang = record.lang.unwrap_or_default();
        let source = record.source.unwrap_or_else(|| "jsonl".to_owned());
        match (record.text, record.messages) {
            (Some(text), None) => sink(Record::Document(Document { text, lang, source }))?,
            (None, Some(messages)) => {
                let dialogue = Dialogue {
                    area: String::new(),
                    lang,
                    source,
                    messages,
                    rejected: record.rejected,
                };
                match dialogue.is_whole() {
                    true => sink(Record::Dialogue(dialogue))?,
                    false => skips.add(path, line, SkipReason::NoDialogue),
                }
            }
            _ => skips.add(path, line, SkipReason::InvalidJson),
        }
    }
    Ok(())
}
