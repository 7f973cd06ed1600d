//! Plain text, and whole files for the extractors that need them whole.

use std::path::Path;

use super::{ExtractError, Limits, Position, Sink, SkipReason, Skips, input::Input};
use crate::Document;

/// One document, or several of at most `max_document_bytes` cut at line ends (at characters where a
/// single line is longer).
pub(super) fn extract<E: From<ExtractError>>(
    path: &Path,
    limits: &Limits,
    position: &Position,
    skips: &mut Skips,
    sink: &mut Sink<'_, E>,
) -> Result<(), E> {
    let mut input = Input::open(path, limits, position)?;
    let max = limits.max_document_bytes.max(4); // a character always fits
    let mut rest: Vec<u8> = Vec::new();
    let mut line = 1u64;
    loop {
        let missing = max - rest.len();
        let got = input.take(&mut rest, missing as u64)?;
        let at_end = got < missing;
        if rest.is_empty() {
            return Ok(());
        }
        let cut = if at_end { rest.len() } else { cut_point(&rest) };
        let part = &rest[..cut];
        match std::str::from_utf8(part) {
            Ok(text) => {
                let (text, source) = (text.to_owned(), "text".to_owned());
                sink(
                    Document {
                        text,
                        lang: String::new(),
                        source,
                    }
                    .into(),
                )?;
            }
            Err(e) => {
                let lines = part[..e.valid_up_to()]
                    .iter()
                    .filter(|&&b| b == b'\n')
                    .count();
                skips.add(path, line + lines as u64, SkipReason::InvalidUtf8);
            }
        }
        line += part.iter().filter(|&&b| b == b'\n').count() as u64;
        rest.drain(..cut);
        if at_end {
            return Ok(());
        }
    }
}

/// Behind the last empty line of the second half, else behind the last line end, else before the last
/// character that might be incomplete.
fn cut_point(bytes: &[u8]) -> usize {
    let half = bytes.len() / 2;
    let tail = &bytes[half..];
    if let Some(at) = tail.windows(2).rposition(|w| w == b"\n\n") {
        return half + at + 2;
    }
    if let Some(at) = bytes.iter().rposition(|&b| b == b'\n') {
        return at + 1;
    }
    let continued = bytes
        .iter()
        .rev()
        .take(3)
        .take_while(|&&b| b & 0xc0 == 0x80)
        .count();
    let at = bytes.len() - continued;
    if at > 1 && bytes[at - 1] >= 0xc0 {
        at - 1
    } else {
        bytes.len()
    }
}

/// The file as one string; `None`, and a count, if it is too long or no UTF-8.
pub(super) fn whole(
    path: &Path,
    limits: &Limits,
    position: &Position,
    skips: &mut Skips,
) -> Result<Option<String>, ExtractError> {
    let mut input = Input::open(path, limits, position)?;
    let mut bytes = Vec::new();
    input.take(&mut bytes, limits.max_document_bytes as u64 + 1)?;
    if bytes.len() > limits.max_document_bytes {
        skips.add(path, 1, SkipReason::TooLong);
        return Ok(None);
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Some(text)),
        Err(e) => {
            let valid = &e.as_bytes()[..e.utf8_error().valid_up_to()];
            let line = 1 + valid.iter().filter(|&&b| b == b'\n').count() as u64;
            skips.add(path, line, SkipReason::InvalidUtf8);
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cut_between_paragraphs_lines_and_characters() {
        assert_eq!(cut_point(b"aaaaaa\n\nbb\nb"), 8);
        assert_eq!(cut_point(b"aaaaaa\nbb"), 7);
        assert_eq!(cut_point("가나다".as_bytes()), 6);
        assert_eq!(cut_point(&"가나다".as_bytes()[..8]), 6);
        assert_eq!(cut_point(b"aaaa"), 4);
    }
}
