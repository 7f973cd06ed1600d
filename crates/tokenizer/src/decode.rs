//! From tokens to text.
//!
//! Three kinds of decoder, by what the characters of a token stand for:
//!
//! ```text
//! ByteLevel   bytes, in the byte alphabet; together they are UTF-8, what is not becomes U+FFFD
//! Metaspace   themselves, but the replacement is a space, and is nothing in the first token
//! Replace, ByteFallback, Fuse, Strip, in this order, each but the first if it is there:
//!             themselves after the replacements; tokens <0x00> to <0xFF> are bytes; of the text
//!             as a whole, spaces at its start are left out
//! ```
//!
//! Bytes that follow one another are one run; a run that is not UTF-8 becomes one U+FFFD for each of
//! its bytes (the rule of the Hugging Face library). So text comes out of a run only at its end.

use crate::byte_alphabet::unspell;
use crate::error::LoadError;
use crate::normalize::{Replace, check_growth};
use crate::pretokenize::{ByteLevel, Metaspace, PrependScheme};
use std::borrow::Cow;

/// A decoder as `tokenizer.json` names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Decoder {
    ByteLevel(ByteLevel),
    Metaspace(Metaspace),
    Replace(Replace),
    ByteFallback,
    Fuse,
    Strip {
        content: char,
        start: usize,
        stop: usize,
    },
    Sequence(Vec<Decoder>),
}

/// What a decoder does, in the order in which it does it.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    is_byte_level: bool,
    replacements: Vec<Replace>,
    byte_fallback: bool,
    /// What the first token loses: every one of this character.
    first_loses: Option<char>,
    /// What the text as a whole loses at its start: at most so many of this character.
    strip: Option<(char, usize)>,
}

/// The text of a token, as far as it does not depend on its neighbours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TokenText {
    pub(crate) bytes: Box<[u8]>,
    /// Whether it is a byte of a run.
    pub(crate) is_byte: bool,
}

impl Plan {
    /// # Errors
    /// If the parts come in an order, or have settings, in which they would mean something else.
    pub(crate) fn new(decoder: &Decoder) -> Result<Self, LoadError> {
        let mut parts = Vec::new();
        decoder.flatten(&mut parts);
        let mut plan = Plan::default();
        let mut is_fused = false;
        for (index, part) in parts.iter().enumerate() {
            let is_only = parts.len() == 1;
            let is_late = plan.byte_fallback || is_fused;
            match part {
                Decoder::ByteLevel(_) if is_only => plan.is_byte_level = true,
                Decoder::Metaspace(metaspace) if is_only => {
                    let replacement = metaspace.replacement;
                    plan.replacements.push(Replace {
                        pattern: replacement.into(),
                        content: " ".to_owned(),
                    });
                    let has_prefix = metaspace.prepend_scheme != PrependScheme::Never;
                    plan.first_loses = has_prefix.then_some(replacement);
                }
                Decoder::Replace(replace) if !is_late => plan.replacements.push(replace.clone()),
                Decoder::ByteFallback if !is_late => plan.byte_fallback = true,
                Decoder::Fuse if !is_fused => is_fused = true,
                Decoder::Strip {
                    content,
                    start,
                    stop: 0,
                } if is_fused && index + 1 == parts.len() => {
                    plan.strip = Some((*content, *start));
                }
                _ => {
                    return Err(LoadError::Unsupported {
                        field: "decoder".to_owned(),
                        found: format!("{} as part {} of {}", part.name(), index + 1, parts.len()),
                        expected: "ByteLevel alone, Metaspace alone, or a Sequence of Replace, \
                                   ByteFallback, Fuse and Strip (at the start) in this order",
                    });
                }
            }
        }
        let growth = plan.replacements.iter().map(Replace::growth);
        check_growth("decoder", growth.fold(1, usize::saturating_mul))?;
        Ok(plan)
    }

    /// Whether the bytes of all tokens, one after the other, are the text.
    pub(crate) fn is_plain(&self) -> bool {
        self.is_byte_level
    }

    /// The text of a token by its spelling.
    pub(crate) fn token_text(&self, spelling: &str) -> TokenText {
        if self.is_byte_level {
            return TokenText {
                bytes: unspell(spelling).into(),
                is_byte: false,
            };
        }
        let text = Cow::Borrowed(spelling);
        let text = self
            .replacements
            .iter()
            .fold(text, |text, replace| replace.apply(text));
        match byte_of_token(&text).filter(|_| self.byte_fallback) {
            Some(byte) => TokenText {
                bytes: [byte].into(),
                is_byte: true,
            },
            None => TokenText {
                bytes: text.as_bytes().into(),
                is_byte: false,
            },
        }
    }

    /// The text of a token as the first of a text, where that is another.
    pub(crate) fn first_text(&self, spelling: &str) -> Option<Box<[u8]>> {
        let lost = self.first_loses.filter(|lost| spelling.contains(*lost))?;
        Some(spelling.replace(lost, "").into_bytes().into())
    }
}

impl Decoder {
    fn flatten<'a>(&'a self, parts: &mut Vec<&'a Decoder>) {
        match self {
            // No deeper than the nesting that JSON was read with.
            Decoder::Sequence(inner) => inner.iter().for_each(|part| part.flatten(parts)),
            part => parts.push(part),
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Decoder::ByteLevel(_) => "ByteLevel",
            Decoder::Metaspace(_) => "Metaspace",
            Decoder::Replace(_) => "Replace",
            Decoder::ByteFallback => "ByteFallback",
            Decoder::Fuse => "Fuse",
            Decoder::Strip { .. } => "Strip",
            Decoder::Sequence(_) => "Sequence",
        }
    }
}

/// The byte that a token of the form `<0x41>` stands for.
pub(crate) fn byte_of_token(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    let is_byte = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    u8::from_str_radix(digits, 16).ok().filter(|_| is_byte)
}

/// The token of a byte.
pub(crate) fn token_of_byte(byte: u8) -> String {
    format!("<0x{byte:02X}>")
}

/// A text in the making: what has come and cannot be given out yet.
#[derive(Clone, Debug, Default)]
pub(crate) struct TextState {
    pending: Vec<u8>, // the start of a character (at most three bytes), or a run of bytes
    is_run: bool,
    is_started: bool,
    strip: Option<(char, usize)>, // what the start of the text may still lose
}

impl TextState {
    /// Takes the next token and gives out the text that is certain with it.
    pub(crate) fn push(&mut self, plan: &Plan, token: &TokenText, first: Option<&[u8]>) -> String {
        let is_first = !std::mem::replace(&mut self.is_started, true);
        if is_first {
            self.strip = plan.strip;
        }
        if plan.is_byte_level {
            self.pending.extend_from_slice(&token.bytes);
            let complete = self.pending.len() - incomplete_tail(&self.pending);
            let text = String::from_utf8_lossy(&self.pending[..complete]).into_owned();
            self.pending.drain(..complete);
            return text;
        }
        if token.is_byte {
            self.is_run = true;
            self.pending.extend_from_slice(&token.bytes);
            return String::new();
        }
        let mut text = self.end_run();
        let bytes = match first.filter(|_| is_first) {
            Some(first) => first,
            None => &token.bytes,
        };
        // Tokens are text where they are not bytes.
        text.push_str(&String::from_utf8_lossy(bytes));
        self.stripped(text)
    }

    /// What is left at the end.
    pub(crate) fn finish(mut self) -> String {
        if self.is_run {
            let text = self.end_run();
            return self.stripped(text);
        }
        String::from_utf8_lossy(&self.pending).into_owned()
    }

    #[cfg(test)]
    pub(crate) fn num_pending(&self) -> usize {
        self.pending.len()
    }

    fn end_run(&mut self) -> String {
        self.is_run = false;
        match String::from_utf8(std::mem::take(&mut self.pending)) {
            Ok(text) => text,
            Err(error) => "\u{FFFD}".repeat(error.as_bytes().len()),
        }
    }

    fn stripped(&mut self, mut text: String) -> String {
        while let Some((c, left)) = self.strip
            && !text.is_empty()
        {
            self.strip = match left > 0 && text.starts_with(c) {
                true => {
                    text.drain(..c.len_utf8());
                    Some((c, left - 1))
                }
                false => None,
            };
        }
        text
    }
}

/// The number of bytes at the end that may yet become a character.
fn incomplete_tail(mut bytes: &[u8]) -> usize {
    loop {
        match std::str::from_utf8(bytes) {
            Ok(_) => return 0,
            Err(error) => match error.error_len() {
                Some(invalid) => bytes = &bytes[error.valid_up_to() + invalid..],
                None => return bytes.len() - error.valid_up_to(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The decoder of the Llama family.
    fn llama() -> Decoder {
        Decoder::Sequence(vec![
            Decoder::Replace(Replace {
                pattern: "\u{2581}".to_owned(),
                content: " ".to_owned(),
            }),
            Decoder::ByteFallback,
            Decoder::Fuse,
            Decoder::Strip {
                content: ' ',
                start: 1,
                stop: 0,
            },
        ])
    }

    fn decode(decoder: &Decoder, tokens: &[&str]) -> (String, Vec<String>) {
        let plan = Plan::new(decoder).unwrap();
        let mut state = TextState::default();
        let mut parts = Vec::new();
        for token in tokens {
            let first = plan.first_text(token);
            parts.push(state.push(&plan, &plan.token_text(token), first.as_deref()));
        }
        parts.push(state.finish());
        (parts.concat(), parts)
    }

    #[test]
    fn a_run_of_bytes_is_text_when_it_ends_and_as_a_whole() {
        let tokens = ["\u{2581}\u{2581}a", "<0xE9>", "<0xA9>", "b"];
        assert_eq!(decode(&llama(), &tokens).0, " a\u{FFFD}\u{FFFD}b");
        let (text, parts) = decode(&llama(), &["<0x20>", "<0xC3>", "<0xA9>", "<0x41>", "b"]);
        assert_eq!(text, "\u{E9}Ab");
        assert_eq!(parts[..4], [""; 4]);
        // One bad byte spoils its run.
        assert_eq!(
            decode(&llama(), &["<0x41>", "<0xFF>"]).0,
            "\u{FFFD}\u{FFFD}"
        );
        assert_eq!(decode(&llama(), &["<0x4>", "<0xZZ>"]).0, "<0x4><0xZZ>");
    }

    #[test]
    fn the_start_loses_what_it_may_and_no_more() {
        let decode = |tokens: &[&str]| decode(&llama(), tokens).0;
        assert_eq!(decode(&["\u{2581}", "\u{2581}a"]), " a");
        assert_eq!(decode(&["a", "\u{2581}b"]), "a b");
        assert_eq!(decode(&["<0x20>", "\u{2581}b"]), " b");
        assert_eq!(decode(&[]), "");
    }

    #[test]
    fn the_first_token_of_metaspace_loses_every_mark() {
        let metaspace = |prepend_scheme| {
            Decoder::Metaspace(Metaspace {
                replacement: '\u{2581}',
                prepend_scheme,
                split: true,
            })
        };
        let tokens = ["\u{2581}\u{2581}a\u{2581}b", "\u{2581}c"];
        assert_eq!(decode(&metaspace(PrependScheme::Always), &tokens).0, "ab c");
        assert_eq!(
            decode(&metaspace(PrependScheme::Never), &tokens).0,
            "  a b c"
        );
    }

    #[test]
    fn parts_out_of_order_are_refused() {
        let error = |parts| {
            Plan::new(&Decoder::Sequence(parts))
                .unwrap_err()
                .to_string()
        };
        let strip = |stop| Decoder::Strip {
            content: ' ',
            start: 1,
            stop,
        };
        assert!(error(vec![strip(0)]).contains("Strip as part 1 of 1"));
        assert!(error(vec![Decoder::Fuse, strip(1)]).contains("Strip as part 2 of 2"));
        assert!(error(vec![Decoder::Fuse, Decoder::ByteFallback]).contains("ByteFallback"));
        let byte_level = Decoder::ByteLevel(ByteLevel::PLAIN);
        assert!(error(vec![byte_level, Decoder::Fuse]).contains("ByteLevel as part 1 of 2"));
        let longer = Decoder::Replace(Replace {
            pattern: "a".to_owned(),
            content: "a".repeat(17),
        });
        assert!(error(vec![longer]).contains("17 times longer"));
    }
}
