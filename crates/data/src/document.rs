//! One text with its language and source, and its form on disk: one JSON object a line.

use serde::{Deserialize, Serialize};

/// A text on its way into a data set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    /// The text.
    pub text: String,
    /// ISO 639 code; `und` where it is not known; empty where it has not been looked at.
    #[serde(default)]
    pub lang: String,
    /// Where it is from: a name given by the input, or the kind of file.
    #[serde(default)]
    pub source: String,
}

/// One turn of a [`Dialogue`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `user`, `assistant`, `system` or `tool`.
    pub role: String,
    /// What is said.
    pub content: String,
}

/// A conversation for instruction tuning, one JSON object a line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dialogue {
    /// Area of the evaluation it belongs to; empty if none.
    #[serde(default)]
    pub area: String,
    /// ISO 639 code.
    #[serde(default)]
    pub lang: String,
    /// Where it is from.
    #[serde(default)]
    pub source: String,
    /// The turns.
    pub messages: Vec<Message>,
}
