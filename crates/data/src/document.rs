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
    /// A worse answer than the last turn, where one is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rejected: Option<String>,
}

impl Dialogue {
    /// Whether it can be learned from: perhaps a system turn, then user and assistant in turns, the assistant last, and
    /// none of them empty; a rejected answer is another than the last.
    pub(crate) fn is_whole(&self) -> bool {
        let is_empty = |message: &Message| message.content.trim().is_empty();
        let turns = match self.messages.split_first() {
            Some((first, rest)) if first.role == "system" => rest,
            _ => &self.messages[..],
        };
        let pairs = turns.chunks(2);
        let alternate =
            |pair: &[Message]| matches!(pair, [a, b] if a.role == "user" && b.role == "assistant");
        let is_other = |rejected: &String| {
            let last = self.messages.last().map(|last| last.content.trim());
            !rejected.trim().is_empty() && last != Some(rejected.trim())
        };
        !turns.is_empty()
            && pairs.into_iter().all(alternate)
            && !self.messages.iter().any(is_empty)
            && self.rejected.as_ref().is_none_or(is_other)
    }
}

/// What a record of an input is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// Text to be read.
    Document(Document),
    /// A conversation to be learned from.
    Dialogue(Dialogue),
}

impl From<Document> for Record {
    fn from(document: Document) -> Record {
        Record::Document(document)
    }
}
