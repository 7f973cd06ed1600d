//! JSON files and lines: errors name the path, line, column and byte; output has one form.
//!
//! [`canonical`] is the byte form that is hashed and signed: no white space, the keys of every
//! object sorted by their UTF-8 bytes, strings escaped only where JSON demands it, numbers in the
//! shortest form that reads back to the same value.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use thiserror::Error;

use crate::atomic;
use crate::error::FileError;

/// A JSON text could not be read or written.
#[derive(Debug, Error)]
pub enum JsonError {
    /// The file itself failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// The text is not the JSON that is expected here.
    #[error("{}: line {line}, column {column} (byte {offset}): {what}", path.display())]
    Parse {
        /// Where the text came from.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// Counted from 1, in bytes.
        column: usize,
        /// Counted from 0.
        offset: usize,
        /// What is wrong there.
        what: String,
    },
    /// The value has no JSON form (a map with keys that are no strings).
    #[error("{}: this value has no JSON form: {what}", path.display())]
    Write {
        /// Where it was to go.
        path: PathBuf,
        /// Why.
        what: String,
    },
}

/// Reads a JSON file.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T, JsonError> {
    parse(path, &read_bytes(path)?)
}

/// Reads a JSON text; `path` says where it came from in errors.
pub fn parse<T: DeserializeOwned>(path: &Path, text: &[u8]) -> Result<T, JsonError> {
    serde_json::from_slice(text).map_err(|e| {
        let start = match e.line() {
            0 | 1 => 0,
            n => text
                .iter()
                .enumerate()
                .filter(|(_, b)| **b == b'\n')
                .nth(n - 2)
                .map_or(0, |p| p.0 + 1),
        };
        let offset = (start + e.column().saturating_sub(1)).min(text.len());
        let (line, column) = (e.line().max(1), e.column().max(1));
        // serde_json ends its message with the position, which stands at the front here.
        let what = e.to_string();
        let what = what
            .split(" at line ")
            .next()
            .unwrap_or_default()
            .to_string();
        JsonError::Parse {
            path: path.to_path_buf(),
            line,
            column,
            offset,
            what,
        }
    })
}

/// Reads one line of a file of JSON lines; `line` counts from 1, `offset` is where it begins.
pub fn parse_line<T: DeserializeOwned>(
    path: &Path,
    text: &[u8],
    line: usize,
    offset: usize,
) -> Result<T, JsonError> {
    parse(path, text).map_err(|e| match e {
        JsonError::Parse {
            path,
            column,
            offset: within,
            what,
            ..
        } => JsonError::Parse {
            path,
            line,
            column,
            offset: offset + within,
            what,
        },
        other => other,
    })
}

/// Writes a JSON file, indented by two spaces, with a final newline, in one step.
pub fn write<T: Serialize + ?Sized>(path: &Path, value: &T) -> Result<(), JsonError> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|e| JsonError::Write {
        path: path.to_path_buf(),
        what: e.to_string(),
    })?;
    text.push(b'\n');
    Ok(atomic::write_bytes(path, &text)?)
}

/// The canonical text of a value (see the module header).
pub fn canonical(value: &Value) -> String {
    sort_keys(value).to_string()
}

pub(crate) fn sort_keys(value: &Value) -> Value {
    match value {
        Value::Array(items) => Value::Array(items.iter().map(sort_keys).collect()),
        Value::Object(map) => {
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort();
            Value::Object(
                keys.iter()
                    .map(|k| ((*k).clone(), sort_keys(&map[*k])))
                    .collect::<Map<_, _>>(),
            )
        }
        other => other.clone(),
    }
}

pub(crate) fn read_bytes(path: &Path) -> Result<Vec<u8>, FileError> {
    let failed = |e| FileError::io("read", path, e);
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Err(FileError::NotAFile {
            path: path.to_path_buf(),
        });
    }
    std::fs::read(path).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_line_column_and_byte() {
        let text = b"{\n  \"a\": 1,\n  \"b\": x\n}";
        let failed = parse::<Value>(Path::new("some.json"), text).unwrap_err();
        let JsonError::Parse {
            line,
            column,
            offset,
            ..
        } = &failed
        else {
            panic!("{failed}")
        };
        assert_eq!((*line, *column), (3, 8));
        assert_eq!(text[*offset], b'x');
        assert!(
            failed
                .to_string()
                .starts_with("some.json: line 3, column 8 (byte 19): expected")
        );
    }

    #[test]
    fn canonical_text_sorts_keys_at_every_depth() {
        let value: Value =
            serde_json::from_str(r#"{"b": [{"z": 1, "a": 0.10}], "a": "\uac00\n"}"#).unwrap();
        assert_eq!(
            canonical(&value),
            "{\"a\":\"\u{ac00}\\n\",\"b\":[{\"a\":0.1,\"z\":1}]}"
        );
    }

    #[test]
    fn a_written_file_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        write(&path, &vec![1, 2]).unwrap();
        assert_eq!(read::<Vec<u32>>(&path).unwrap(), [1, 2]);
        assert!(matches!(
            read::<u32>(&dir.path().join("no")),
            Err(JsonError::File(_))
        ));
    }
}
