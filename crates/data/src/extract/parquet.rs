//! Parquet: the string columns `text`, and `lang` and `source` if they are there.
//!
//! Read page by page. A compressed Parquet file (rare: the format compresses by itself) is held in
//! memory, within [`Limits::max_in_memory_bytes`], because its index stands at its end.

use std::{
    fs::File,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::Arc,
};

use bytes::Bytes;
use formats::FileError;
use parquet::{
    basic::Type as PhysicalType,
    file::reader::{FileReader, SerializedFileReader},
    record::{Row, RowAccessor},
    schema::types::Type,
};

use super::{ExtractError, Limits, Position, Sink, SkipReason, Skips, input::Input};
use crate::Document;

pub(super) fn extract<E: From<ExtractError>>(
    path: &Path,
    limits: &Limits,
    position: &Position,
    skips: &mut Skips,
    sink: &mut Sink<'_, E>,
) -> Result<(), E> {
    let (reader, file_bytes) = open(path, limits)?;
    let columns = columns(path, reader.as_ref())?;
    let mut rows = guarded(path, || {
        reader.get_row_iter(Some(columns.projection.clone()))
    })?;
    let num_rows = reader.metadata().file_metadata().num_rows().max(1);
    for number in 1.. {
        // Columns are read in turns all over the file: the rows say how far it is.
        position.set((file_bytes as f64 * (number as f64 / num_rows as f64).min(1.0)) as u64);
        let row = match guarded(path, || rows.next().transpose())? {
            Some(row) => row,
            None => break,
        };
        let field = |idx: Option<usize>| -> Option<String> {
            idx.and_then(|idx| row.get_string(idx).ok()).cloned()
        };
        match text_of(&row, columns.text, limits) {
            Ok(text) => sink(
                Document {
                    text,
                    lang: field(columns.lang).unwrap_or_default(),
                    source: field(columns.source).unwrap_or_else(|| "parquet".to_owned()),
                }
                .into(),
            )?,
            Err(reason) => skips.add(path, number, reason),
        }
    }
    Ok(())
}

fn text_of(row: &Row, idx: usize, limits: &Limits) -> Result<String, SkipReason> {
    match row.get_string(idx) {
        Ok(text) if text.len() > limits.max_document_bytes => Err(SkipReason::TooLong),
        Ok(text) => Ok(text.clone()),
        Err(_) => Err(SkipReason::NoText),
    }
}

/// Runs a step of the reader. It indexes by numbers from the file and may panic where a hostile file
/// lies about them: such a file is reported like any other damaged one.
fn guarded<T>(
    path: &Path,
    step: impl FnOnce() -> parquet::errors::Result<T>,
) -> Result<T, ExtractError> {
    let what = match catch_unwind(AssertUnwindSafe(step)) {
        Ok(Ok(done)) => return Ok(done),
        Ok(Err(e)) => e.to_string(),
        Err(_) => "its numbers contradict each other".to_owned(),
    };
    Err(ExtractError::Parquet {
        path: path.to_path_buf(),
        what,
    })
}

/// The reader, and the bytes of the file.
fn open(path: &Path, limits: &Limits) -> Result<(Box<dyn FileReader>, u64), ExtractError> {
    let mut input = Input::open(path, limits, &Position::default())?;
    let file_bytes = input.file_bytes;
    if input.is_compressed {
        let mut bytes = Vec::new();
        let limit_bytes = limits.max_in_memory_bytes;
        if input.take(&mut bytes, limit_bytes.saturating_add(1))? as u64 > limit_bytes {
            return Err(ExtractError::TooLarge {
                path: path.to_path_buf(),
                limit_bytes,
            });
        }
        let bytes = Bytes::from(bytes);
        let reader = guarded(path, || {
            Ok(Box::new(SerializedFileReader::new(bytes)?) as Box<dyn FileReader>)
        })?;
        Ok((reader, file_bytes))
    } else {
        let file = File::open(path).map_err(|e| FileError::io("read", path, e))?;
        let reader = guarded(path, || {
            Ok(Box::new(SerializedFileReader::new(file)?) as Box<dyn FileReader>)
        })?;
        Ok((reader, file_bytes))
    }
}

struct Columns {
    projection: Type,
    text: usize,
    lang: Option<usize>,
    source: Option<usize>,
}

fn columns(path: &Path, reader: &dyn FileReader) -> Result<Columns, ExtractError> {
    let schema = reader.metadata().file_metadata().schema();
    let wanted: Vec<Arc<Type>> = schema
        .get_fields()
        .iter()
        .filter(|field| {
            matches!(field.name(), "text" | "lang" | "source")
                && field.is_primitive()
                && field.get_physical_type() == PhysicalType::BYTE_ARRAY
        })
        .cloned()
        .collect();
    let position = |name: &str| wanted.iter().position(|field| field.name() == name);
    let (text, lang, source) = (position("text"), position("lang"), position("source"));
    let Some(text) = text else {
        let names: Vec<&str> = schema
            .get_fields()
            .iter()
            .map(|f| f.name())
            .take(20)
            .collect();
        let columns = names.join(", ");
        return Err(ExtractError::NoTextColumn {
            path: path.to_path_buf(),
            columns,
        });
    };
    let built = Type::group_type_builder(schema.name())
        .with_fields(wanted)
        .build();
    let projection = built.map_err(|e| ExtractError::Parquet {
        path: path.to_path_buf(),
        what: e.to_string(),
    })?;
    Ok(Columns {
        projection,
        text,
        lang,
        source,
    })
}
