//! An object of a `tokenizer.json`, taken apart key by key: each error names the path of its key, and
//! a key that nobody asked for is an error too.

use crate::error::LoadError;
use crate::tokenizer::shorten;
use serde_json::{Map, Value};

/// An object and the keys of it that have been asked for.
pub(super) struct Fields<'a> {
    path: String,
    object: &'a Map<String, Value>,
    asked: Vec<&'static str>,
}

impl<'a> Fields<'a> {
    pub(super) fn new(path: &str, value: &'a Value) -> Result<Self, LoadError> {
        match value {
            Value::Object(object) => Ok(Fields {
                path: path.to_owned(),
                object,
                asked: Vec::new(),
            }),
            other => Err(unsupported(path, other, "an object")),
        }
    }

    /// The path of a key.
    pub(super) fn path_of(&self, key: &str) -> String {
        format!("{}.{key}", self.path)
    }

    /// The value of a key, if it is there and not null.
    pub(super) fn get(&mut self, key: &'static str) -> Option<&'a Value> {
        self.asked.push(key);
        self.object.get(key).filter(|value| !value.is_null())
    }

    fn need(&mut self, key: &'static str, expected: &'static str) -> Result<&'a Value, LoadError> {
        match self.get(key) {
            Some(value) => Ok(value),
            None => Err(unsupported(&self.path_of(key), &Value::Null, expected)),
        }
    }

    /// The `type` of the object.
    pub(super) fn kind(&mut self) -> Result<&'a str, LoadError> {
        self.string("type")
    }

    pub(super) fn string(&mut self, key: &'static str) -> Result<&'a str, LoadError> {
        let value = self.need(key, "a string")?;
        let text = value.as_str();
        text.ok_or_else(|| unsupported(&self.path_of(key), value, "a string"))
    }

    /// One character.
    pub(super) fn char(&mut self, key: &'static str) -> Result<char, LoadError> {
        let text = self.string(key)?;
        let mut chars = text.chars();
        match (chars.next(), chars.next()) {
            (Some(c), None) => Ok(c),
            _ => {
                let found = Value::from(text);
                Err(unsupported(&self.path_of(key), &found, "one character"))
            }
        }
    }

    /// A truth value; `default` where the key is missing, if there is one.
    pub(super) fn bool(
        &mut self,
        key: &'static str,
        default: Option<bool>,
    ) -> Result<bool, LoadError> {
        let value = match (self.get(key), default) {
            (Some(value), _) => value,
            (None, Some(default)) => return Ok(default),
            (None, None) => self.need(key, "true or false")?,
        };
        let truth = value.as_bool();
        truth.ok_or_else(|| unsupported(&self.path_of(key), value, "true or false"))
    }

    /// A number from 0 to 2^32 - 1.
    pub(super) fn number(&mut self, key: &'static str) -> Result<u32, LoadError> {
        let value = self.need(key, "a number")?;
        let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
        number.ok_or_else(|| unsupported(&self.path_of(key), value, "a number"))
    }

    pub(super) fn array(&mut self, key: &'static str) -> Result<&'a [Value], LoadError> {
        let value = self.need(key, "an array")?;
        match value {
            Value::Array(values) => Ok(values),
            other => Err(unsupported(&self.path_of(key), other, "an array")),
        }
    }

    /// `read` of each value of an array, with the path of the value.
    pub(super) fn each<T>(
        &mut self,
        key: &'static str,
        read: impl Fn(&str, &'a Value) -> Result<T, LoadError>,
    ) -> Result<Vec<T>, LoadError> {
        let values = self.array(key)?;
        let path = self.path_of(key);
        let read = |(index, value)| read(&format!("{path}[{index}]"), value);
        values.iter().enumerate().map(read).collect()
    }

    /// An error about the object's `type`.
    pub(super) fn refuse_kind<T>(&self, expected: &'static str) -> Result<T, LoadError> {
        let kind = self.object.get("type").unwrap_or(&Value::Null);
        Err(unsupported(&format!("{}.type", self.path), kind, expected))
    }

    /// An error if the object has a key that was not asked for.
    pub(super) fn finish(self) -> Result<(), LoadError> {
        let known = |key: &str| self.asked.contains(&key);
        match self.object.iter().find(|(key, _)| !known(key)) {
            Some((key, value)) => Err(unsupported(
                &self.path_of(&shorten(key)),
                value,
                "no such key here",
            )),
            None => Ok(()),
        }
    }
}

pub(super) fn unsupported(field: &str, found: &Value, expected: &'static str) -> LoadError {
    LoadError::Unsupported {
        field: field.to_owned(),
        found: shorten(&found.to_string()),
        expected,
    }
}
