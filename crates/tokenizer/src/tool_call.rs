//! Calls of tools in the text of an answer, as the family and many others write them:
//!
//! ```text
//! <tool_call>{"name": "look", "arguments": {"at": "the sea"}}</tool_call>
//! ```
//!
//! The tags are text like any other: K-EXAONE has no tokens for them. [`ToolCallParser`] finds calls in text as
//! it comes, and holds back only what may begin one. What is no call stays text: JSON that is none, a
//! tool that was not declared, arguments that are no object, a tag that is never closed. White space before a
//! call belongs to the form and is left out.
//!
//! JSON is written with the spaces of Python's `json.dumps` and every character as it is, which is what models
//! of the family have seen.
//! Source: the format that K-EXAONE's published examples and the ports to other engines agree on.

use serde::Serialize;
use serde_json::ser::Formatter;
use serde_json::{Map, Value, json};
use std::io;

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";

/// A call of a tool by the assistant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolCall {
    /// What the client calls it; only templates of models write it.
    pub id: Option<String>,
    /// The tool.
    pub name: String,
    /// By parameter.
    pub arguments: Map<String, Value>,
}

impl ToolCall {
    /// Between its tags.
    pub fn to_text(&self) -> String {
        let call = json!({ "name": self.name, "arguments": self.arguments });
        format!("{OPEN}{}{CLOSE}", python_json(&call))
    }

    /// As templates of models see it.
    pub(crate) fn to_json(&self) -> Value {
        let function = json!({ "name": self.name, "arguments": self.arguments });
        let mut call = json!({ "type": "function", "function": function });
        if let Some(id) = &self.id {
            call["id"] = id.as_str().into();
        }
        call
    }
}

/// A piece of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Text that is part of no call.
    Text(String),
    /// A whole call, without an id.
    Call(ToolCall),
}

/// Finds the calls in one answer.
#[derive(Clone, Debug)]
pub struct ToolCallParser {
    names: Vec<String>,
    held: String,    // begins with white space or a tag that may belong to a call
    searched: usize, // bytes of `held` without an end of its call
}

impl ToolCallParser {
    /// Calls of tools with these names.
    pub fn new(names: Vec<String>) -> Self {
        ToolCallParser {
            names,
            held: String::new(),
            searched: 0,
        }
    }

    /// Takes the next piece of text and gives out what is certain.
    pub fn push(&mut self, text: &str) -> Vec<Part> {
        self.held.push_str(text);
        let mut parts = Vec::new();
        while let Some(open) = self.held.find(OPEN) {
            let start = open + OPEN.len();
            let from = self.searched.max(start);
            let Some(close) = self.held[from..].find(CLOSE).map(|at| from + at) else {
                // The end of a tag may come with the next piece.
                let tail = self.held.len().saturating_sub(CLOSE.len());
                self.searched = self.held.floor_char_boundary(tail.max(from));
                release(&mut parts, self.hold_from(open));
                return parts;
            };
            match self.call(start) {
                Found::Call(call, end) => {
                    let before = self.held[..open].trim_end().to_owned();
                    release(&mut parts, before);
                    parts.push(Part::Call(call));
                    self.drop_until(end);
                }
                // The tag stands in a string of the arguments.
                Found::Unfinished => self.searched = close + CLOSE.len(),
                Found::Text => {
                    release(&mut parts, self.held[..start].to_owned());
                    self.drop_until(start);
                }
            }
        }
        let kept = self.held.len() - overlap(&self.held, OPEN);
        let kept = self.held[..kept].trim_end().len();
        let rest = self.held.split_off(kept);
        release(&mut parts, std::mem::replace(&mut self.held, rest));
        parts
    }

    /// Ends the text: what was held back was no call.
    pub fn finish(&mut self) -> String {
        self.searched = 0;
        std::mem::take(&mut self.held)
    }

    /// Gives out what stands before the white space in front of a tag at `open`.
    fn hold_from(&mut self, open: usize) -> String {
        let at = self.held[..open].trim_end().len();
        let text = self.held[..at].to_owned();
        let searched = self.searched - at;
        self.drop_until(at);
        self.searched = searched;
        text
    }

    fn drop_until(&mut self, end: usize) {
        self.held.drain(..end);
        self.searched = 0;
    }

    /// What follows a tag that ends at `start`; of a call also where it ends.
    fn call(&self, start: usize) -> Found {
        let body = &self.held[start..];
        let mut values = serde_json::Deserializer::from_str(body).into_iter::<Value>();
        let value = match values.next() {
            Some(Ok(value)) => value,
            Some(Err(error)) if error.is_eof() => return Found::Unfinished,
            _ => return Found::Text,
        };
        let after = &body[values.byte_offset()..];
        let rest = after.trim_start();
        if !rest.starts_with(CLOSE) {
            return match CLOSE.starts_with(rest) {
                true => Found::Unfinished,
                false => Found::Text,
            };
        }
        let end = start + body.len() - rest.len() + CLOSE.len();
        let Value::Object(mut object) = value else {
            return Found::Text;
        };
        match (object.remove("name"), object.remove("arguments")) {
            (Some(Value::String(name)), Some(Value::Object(arguments)))
                if self.names.contains(&name) =>
            {
                let id = None;
                Found::Call(
                    ToolCall {
                        id,
                        name,
                        arguments,
                    },
                    end,
                )
            }
            _ => Found::Text,
        }
    }
}

/// What stands behind a tag that opens a call.
enum Found {
    Call(ToolCall, usize),
    /// JSON, or the tag behind it, that goes on.
    Unfinished,
    Text,
}

fn release(parts: &mut Vec<Part>, text: String) {
    match parts.last_mut() {
        _ if text.is_empty() => {}
        Some(Part::Text(before)) => before.push_str(&text),
        _ => parts.push(Part::Text(text)),
    }
}

/// Length of the longest proper prefix of `tag`, which is ASCII, that ends `text`.
fn overlap(text: &str, tag: &str) -> usize {
    let fits = |&len: &usize| text.ends_with(&tag[..len]);
    (1..tag.len()).rev().find(fits).unwrap_or(0)
}

/// JSON with Python's spaces, and every character as it is.
pub(crate) fn python_json(value: &Value) -> String {
    struct Spaced;
    impl Formatter for Spaced {
        fn begin_array_value<W: ?Sized + io::Write>(
            &mut self,
            writer: &mut W,
            is_first: bool,
        ) -> io::Result<()> {
            writer.write_all(if is_first { b"" } else { b", " })
        }

        fn begin_object_key<W: ?Sized + io::Write>(
            &mut self,
            writer: &mut W,
            is_first: bool,
        ) -> io::Result<()> {
            writer.write_all(if is_first { b"" } else { b", " })
        }

        fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
            writer.write_all(b": ")
        }
    }
    let mut bytes = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, Spaced);
    value
        .serialize(&mut serializer)
        .expect("memory takes all bytes, and the keys are strings");
    String::from_utf8(bytes).expect("JSON is UTF-8")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The answer's text and calls; pieces are as given.
    fn parse(pieces: &[&str]) -> (String, Vec<ToolCall>) {
        let mut parser = ToolCallParser::new(vec!["look".into(), "\u{BCF4}\u{AE30}".into()]);
        let (mut text, mut calls) = (String::new(), Vec::new());
        for piece in pieces {
            for part in parser.push(piece) {
                match part {
                    Part::Text(more) => text.push_str(&more),
                    Part::Call(call) => calls.push(call),
                }
            }
        }
        text.push_str(&parser.finish());
        (text, calls)
    }

    fn call(name: &str, arguments: Value) -> ToolCall {
        ToolCall {
            id: None,
            name: name.into(),
            arguments: arguments.as_object().unwrap().clone(),
        }
    }

    #[test]
    fn calls_are_found_and_the_white_space_before_them_left_out() {
        let look = call(
            "look",
            json!({"at": "the </tool_call> sea", "n": [1, 2.5, null]}),
        );
        let other = call("\u{BCF4}\u{AE30}", json!({}));
        let text = format!("I look.\n{}\n{}", look.to_text(), other.to_text());
        assert_eq!(
            parse(&[&text]),
            ("I look.".into(), vec![look.clone(), other])
        );
        let spaced =
            "<tool_call>\n{\"arguments\": {}, \"name\": \"look\", \"id\": 3}\n</tool_call> and on";
        assert_eq!(
            parse(&[spaced]),
            (" and on".into(), vec![call("look", json!({}))])
        );
        let nested = format!("<tool_call>no {}", look.to_text());
        assert_eq!(parse(&[&nested]), ("<tool_call>no".into(), vec![look]));
    }

    #[test]
    fn what_is_no_call_stays_text() {
        for text in [
            "",
            "plain \n",
            "<tool_call>",
            "a \n <tool_",
            "<tool_call>{\"name\": \"look\", \"arguments\": {}}",
            "<tool_call>{\"name\": \"look\", \"arguments\": {}</tool_call> x",
            "<tool_call>look()</tool_call>",
            "<tool_call>{\"name\": \"leave\", \"arguments\": {}}</tool_call>",
            "<tool_call>{\"name\": \"look\", \"arguments\": \"{}\"}</tool_call>\n",
            "<tool_call>{\"name\": \"look\"}</tool_call>",
            "<tool_call>{\"name\": \"look\", \"arguments\": {}} and more</tool_call>",
            "<tool_call>[]</tool_call>",
            "</tool_call><tool_call></tool_call>",
        ] {
            assert_eq!(parse(&[text]), (text.into(), vec![]), "{text}");
        }
        let deep = format!("<tool_call>{}</tool_call>", "[".repeat(100_000));
        assert_eq!(parse(&[&deep]).0, deep);
    }

    #[test]
    fn only_what_may_begin_a_call_is_held_back() {
        let mut parser = ToolCallParser::new(vec!["look".into()]);
        let text = |text: &str| vec![Part::Text(text.into())];
        assert_eq!(parser.push("one "), text("one"));
        assert_eq!(parser.push("two <tool"), text(" two"));
        assert_eq!(parser.push("s> <"), text(" <tools>"));
        assert_eq!(parser.push("b\n"), text(" <b"));
        assert_eq!(parser.push("<tool_call>{\"name\""), vec![]);
        assert_eq!(
            parser.push(": \"look\", \"arguments\": {}}</tool_call"),
            vec![]
        );
        assert_eq!(parser.push(">"), vec![Part::Call(call("look", json!({})))]);
        let in_string = call("look", json!({"x": "</tool_call>"}));
        let whole = in_string.to_text();
        let (json, tag) = whole.split_at(whole.len() - CLOSE.len());
        assert_eq!(parser.push(json), vec![]);
        assert_eq!(parser.push(tag), vec![Part::Call(in_string)]);
        assert_eq!(parser.finish(), "");
    }

    proptest! {
        #[test]
        fn any_division_into_pieces_gives_the_same_text_and_calls(
            words in prop::collection::vec(prop::sample::select(vec![
                "<tool_call>", "</tool_call>", "{\"name\": \"look\", \"arguments\": {}}", " ", "\n", "\u{AC00}",
                "{\"name\": \"look\", \"arguments\": {\"x\": \"</tool_call>\"}}", "{", "\"", "<",
                "<tool_call>{\"name\": \"look\", \"arguments\": {}}</tool_call>",
            ]), 0..8),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let text = words.concat();
            let chars: Vec<char> = text.chars().collect();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(chars.len() + 1)).collect();
            cuts.extend([0, chars.len()]);
            cuts.sort_unstable();
            let pieces: Vec<String> =
                cuts.windows(2).map(|pair| chars[pair[0]..pair[1]].iter().collect()).collect();
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let (whole, calls) = parse(&[&text]);
            prop_assert_eq!(parse(&pieces), (whole.clone(), calls.clone()));
            if calls.is_empty() {
                prop_assert_eq!(whole, text);
            }
        }
    }
}
