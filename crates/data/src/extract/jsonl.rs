//! JSON Lines: one object a line with a string `text`; `lang` and `source` if they are strings.

use std::path::Path;

use serde::Deserialize;

use super::{
    ExtractError, Limits, Position, Sink, SkipReason, Skips,
    input::{Input, Line},
};
use crate::Document;

#[derive(Deserialize)]
struct Record {
    text: String,
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
        let Ok(record) = serde_json::from_slice::<Record>(&bytes) else {
            skips.add(path, line, SkipReason::InvalidJson);
            continue;
        };
        sink(Document {
            text: record.text,
            lang: record.lang.unwrap_or_default(),
            source: record.source.unwrap_or_else(|| "jsonl".to_owned()),
        })?;
    }
    Ok(())
}
