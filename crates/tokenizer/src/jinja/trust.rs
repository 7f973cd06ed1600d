//! Which bytes of a rendered conversation are the template's own, and which are from outside.

use super::python::escape;
use super::{Conversation, Json, TemplateError};
use crate::tokenizer::{Tokenizer, shorten};
use std::ops::Range;

/// The private characters that stand for strings: those of the last plane.
const MARKS: Range<u32> = 0x10_0000..0x10_FFFE;

/// A conversation whose strings are marks.
pub(super) struct Marked {
    pub(super) conversation: Conversation,
    strings: Vec<Place>, // of mark i the string i
}

/// A string and where it stands.
struct Place {
    path: String,
    text: String,
}

/// The lists of a conversation, by name.
fn lists(conversation: &Conversation) -> [(&'static str, Option<&[Json]>); 3] {
    [
        ("messages", Some(&conversation.messages)),
        ("tools", conversation.tools.as_deref()),
        ("documents", conversation.documents.as_deref()),
    ]
}

/// Refuses what is nested deeper than `limit`.
pub(super) fn check_depth(conversation: &Conversation, limit: usize) -> Result<(), TemplateError> {
    let is_shallow = |value: &Json| {
        // By levels, so that no depth can overflow the stack.
        let mut level = vec![value];
        for _ in 0..limit {
            level = level
                .into_iter()
                .flat_map(|value| match value {
                    Json::Array(values) => values.iter().collect(),
                    Json::Object(object) => object.values().collect(),
                    _ => Vec::new(),
                })
                .collect();
        }
        level.is_empty()
    };
    let too_deep = |place: String| TemplateError::TooDeep { place, limit };
    for (name, list) in lists(conversation) {
        for (index, value) in list.into_iter().flatten().enumerate() {
            if !is_shallow(value) {
                return Err(too_deep(format!("{name}[{index}]")));
            }
        }
    }
    match conversation
        .variables
        .iter()
        .find(|(_, value)| !is_shallow(value))
    {
        Some((name, _)) => Err(too_deep(shorten(name))),
        None => Ok(()),
    }
}

/// The conversation with a mark for each of its strings, but for `role`, `type`, the names of keys, and
/// what is only white space.
pub(super) fn mark(
    tokenizer: &Tokenizer,
    conversation: &Conversation,
) -> Result<Marked, TemplateError> {
    let mut marked = Marked {
        conversation: conversation.clone(),
        strings: Vec::new(),
    };
    let strings = &mut marked.strings;
    let mut visit = |path: &str, is_compared: bool, text: &mut String| {
        if is_compared {
            return match token_in(tokenizer, text) {
                Some(token) => Err(TemplateError::Untrusted {
                    place: path.to_owned(),
                    token,
                }),
                None => Ok(()),
            };
        }
        if text.trim().is_empty() {
            return Ok(());
        }
        let mark = MARKS.clone().nth(strings.len()).and_then(char::from_u32);
        let Some(mark) = mark else {
            let limit = MARKS.len();
            return Err(TemplateError::TooManyStrings { limit });
        };
        let text = std::mem::replace(text, mark.to_string());
        let path = path.to_owned();
        strings.push(Place { path, text });
        Ok(())
    };
    let parts = &mut marked.conversation;
    for (index, value) in parts.messages.iter_mut().enumerate() {
        walk(&format!("messages[{index}]"), value, &mut visit)?;
    }
    for (index, value) in parts.tools.iter_mut().flatten().enumerate() {
        walk(&format!("tools[{index}]"), value, &mut visit)?;
    }
    for (index, value) in parts.documents.iter_mut().flatten().enumerate() {
        walk(&format!("documents[{index}]"), value, &mut visit)?;
    }
    Ok(marked)
}

/// Calls `visit` with every string, its path, and whether templates compare it.
fn walk(
    path: &str,
    value: &mut Json,
    visit: &mut dyn FnMut(&str, bool, &mut String) -> Result<(), TemplateError>,
) -> Result<(), TemplateError> {
    match value {
        Json::String(text) => visit(path, false, text),
        Json::Array(values) => {
            for (index, value) in values.iter_mut().enumerate() {
                walk(&format!("{path}[{index}]"), value, visit)?;
            }
            Ok(())
        }
        Json::Object(object) => {
            for (key, value) in object.iter_mut() {
                let path = format!("{path}.{}", shorten(key));
                visit(&path, true, &mut key.clone())?;
                match value {
                    Json::String(text) if key == "role" || key == "type" => {
                        visit(&path, true, text)?;
                    }
                    value => walk(&path, value, visit)?,
                }
            }
            Ok(())
        }
        Json::Null | Json::Bool(_) | Json::Number(_) => Ok(()),
    }
}

/// The first added token that a text spells.
fn token_in(tokenizer: &Tokenizer, text: &str) -> Option<String> {
    let ids = tokenizer.encode(text);
    let id = ids
        .into_iter()
        .find(|id| tokenizer.is_added(*id) && !tokenizer.is_unknown(*id))?;
    let bytes = tokenizer.token_bytes(id).unwrap_or_default();
    Some(shorten(&String::from_utf8_lossy(bytes)))
}

/// Where the strings stand in `text`, if it is `marked_text` with every mark replaced by its string.
pub(super) fn places(text: &str, marked_text: &str, marked: &Marked) -> Option<Vec<Range<usize>>> {
    let index_of = |c: char| {
        let index = u32::from(c).checked_sub(MARKS.start)? as usize;
        (index < marked.strings.len()).then_some(index)
    };
    // A mark that the conversation or the template spells itself would be taken for one of ours.
    let is_mark = |c: char| index_of(c).is_some();
    if text.contains(is_mark) {
        return None;
    }
    let mut ranges = Vec::new();
    let mut at = 0;
    let mut rest = marked_text;
    loop {
        let own = &rest[..rest.find(is_mark).unwrap_or(rest.len())];
        if !text[at..].starts_with(own) {
            return None;
        }
        at += own.len();
        rest = &rest[own.len()..];
        let Some(mark) = rest.chars().next() else {
            return (at == text.len()).then_some(ranges);
        };
        rest = &rest[mark.len_utf8()..];
        let next = &rest[..rest.find(is_mark).unwrap_or(rest.len())];
        let is_last = next.len() == rest.len();
        let follows = |end: usize| {
            let after = &text[end..];
            after.starts_with(next) && (!is_last || after.len() == next.len())
        };
        let string = &marked.strings[index_of(mark)?].text;
        let len = forms(string).into_iter().find_map(|form| {
            let is_here = text[at..].starts_with(&form) && follows(at + form.len());
            is_here.then_some(form.len())
        })?;
        ranges.push(at..at + len);
        at += len;
    }
}

/// What templates make of a string without looking into it: nothing, trimmed, JSON.
fn forms(text: &str) -> Vec<String> {
    let breaks = |c: char| c == '\n';
    let trimmed = [
        text,
        text.trim(),
        text.trim_start(),
        text.trim_end(),
        text.trim_matches(breaks),
        text.trim_start_matches(breaks),
        text.trim_end_matches(breaks),
    ];
    let mut forms: Vec<String> = trimmed.map(str::to_owned).into();
    for ensure_ascii in [false, true] {
        for text in [text, text.trim()] {
            let mut escaped = String::new();
            escape(text, ensure_ascii, &mut escaped);
            forms.push(escaped);
        }
    }
    forms
}

/// The string that spells a token, for the message.
pub(super) fn blame(tokenizer: &Tokenizer, marked: &Marked) -> TemplateError {
    let found = marked.strings.iter().find_map(|place| {
        let token = token_in(tokenizer, &place.text)?;
        let place = place.path.clone();
        Some(TemplateError::Untrusted { place, token })
    });
    found.unwrap_or(TemplateError::Unclear)
}
