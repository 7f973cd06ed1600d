//! Reading a JSON object field by field, so that every complaint names its field.
//!
//! A field that is null counts as absent, as OpenAI's clients expect. What nobody has taken when all is
//! read is an error: a misspelt or unsupported parameter is never passed over in silence.

use crate::openai::error::ApiError;
use serde_json::{Map, Value};

/// The fields of one object that have not been read yet.
#[derive(Debug)]
pub(crate) struct Fields {
    map: Map<String, Value>,
    path: String, // of the object, such as `messages[0]`; empty at the top
}

/// What a value is, for people.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// The error for a value of the wrong kind.
pub(crate) fn mismatch(path: &str, expected: &str, got: &Value) -> ApiError {
    let got = kind(got);
    ApiError::invalid(path, format!("{path}: expected {expected}, got {got}"))
}

impl Fields {
    /// Starts reading `value`, which is at `path`.
    pub(crate) fn new(value: Value, path: impl Into<String>) -> Result<Fields, ApiError> {
        let path = path.into();
        match value {
            Value::Object(map) => Ok(Fields { map, path }),
            other if path.is_empty() => {
                let message = format!("expected a JSON object, got {}", kind(&other));
                Err(ApiError {
                    param: None,
                    ..ApiError::invalid("", message)
                })
            }
            other => Err(mismatch(&path, "an object", &other)),
        }
    }

    /// The full name of a field.
    pub(crate) fn path(&self, name: &str) -> String {
        if self.path.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.path)
        }
    }

    /// Whether a field is there and not yet read.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.map.get(name).is_some_and(|value| !value.is_null())
    }

    /// A field of any kind.
    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        self.map.remove(name).filter(|value| !value.is_null())
    }

    fn read<T>(
        &mut self,
        name: &str,
        expected: &str,
        convert: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>, ApiError> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        match convert(&value) {
            Some(converted) => Ok(Some(converted)),
            None => Err(mismatch(&self.path(name), expected, &value)),
        }
    }

    pub(crate) fn bool(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        self.read(name, "true or false", Value::as_bool)
    }

    pub(crate) fn f32(&mut self, name: &str) -> Result<Option<f32>, ApiError> {
        self.read(name, "a number", |value| value.as_f64().map(|x| x as f32))
    }

    pub(crate) fn i64(&mut self, name: &str) -> Result<Option<i64>, ApiError> {
        self.read(name, "a whole number", Value::as_i64)
    }

    pub(crate) fn count(&mut self, name: &str) -> Result<Option<usize>, ApiError> {
        let convert = |value: &Value| value.as_u64().and_then(|n| usize::try_from(n).ok());
        self.read(name, "a whole number, not negative", convert)
    }

    pub(crate) fn string(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        self.read(name, "a string", |value| value.as_str().map(str::to_owned))
    }

    pub(crate) fn object(&mut self, name: &str) -> Result<Option<Fields>, ApiError> {
        let path = self.path(name);
        self.take(name)
            .map(|value| Fields::new(value, path))
            .transpose()
    }

    /// Reads fields that change nothing here.
    pub(crate) fn ignore(&mut self, names: &[&str]) {
        for name in names {
            self.map.remove(*name);
        }
    }

    /// Reads fields that would change the answer and are not supported: each may be absent, or have
    /// one of the values that ask for nothing.
    pub(crate) fn refuse(&mut self, unsupported: &[(&str, &[&str])]) -> Result<(), ApiError> {
        for (name, neutral) in unsupported {
            let Some(value) = self.take(name) else {
                continue;
            };
            let text = value.to_string();
            if !neutral.contains(&text.as_str()) {
                let path = self.path(name);
                let message = match neutral {
                    [] => format!("{path} is not supported; leave it out"),
                    [only, ..] => format!("{path}: only {only} is supported"),
                };
                return Err(ApiError::invalid(path, message));
            }
        }
        Ok(())
    }

    /// Complains of the first field that nobody read.
    pub(crate) fn finish(self) -> Result<(), ApiError> {
        let Some(name) = self.map.iter().find(|(_, v)| !v.is_null()).map(|(k, _)| k) else {
            return Ok(());
        };
        // The name comes from outside: it may be as long as the body.
        let name: String = name.chars().take(64).collect();
        let path = self.path(&name);
        let message = format!("{path} is not a field that this server knows; leave it out");
        Err(ApiError::invalid(path, message))
    }
}
