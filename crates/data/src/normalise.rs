//! Text as the tokenizer will see it.
//!
//! Unicode NFC; line ends as `\n`; no control characters but `\n` and `\t`, no byte-order marks or
//! zero-width spaces, no-break spaces as spaces; no spaces at line ends, at most one empty line in a
//! row, none at the start or the end. Idempotent. Does not touch case, punctuation or width forms:
//! what people wrote is what a model should learn to write.

use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick};

/// The text in normal form.
pub fn normalise(text: &str) -> String {
    let composed: String;
    let text = match is_nfc_quick(text.chars()) {
        IsNormalized::Yes => text,
        _ => {
            composed = text.nfc().collect();
            &composed
        }
    };
    let mut out = String::with_capacity(text.len());
    let mut empty_lines = 0;
    let text = text.replace("\r\n", "\n");
    for line in text.split([
        '\n', '\r', '\u{2028}', '\u{2029}', '\u{85}', '\u{b}', '\u{c}',
    ]) {
        let start = out.len();
        out.extend(line.chars().filter_map(clean));
        let end = start + out[start..].trim_end().len();
        out.truncate(end);
        if end == start {
            empty_lines += 1;
            continue;
        }
        if start > 0 {
            // The line goes behind the line ends that it deserves.
            let written = out.split_off(start);
            out.push_str(if empty_lines > 0 { "\n\n" } else { "\n" });
            out.push_str(&written);
        }
        empty_lines = 0;
    }
    out
}

fn clean(c: char) -> Option<char> {
    match c {
        '\t' => Some(c),
        '\u{a0}' | '\u{202f}' => Some(' '),
        '\u{feff}' | '\u{200b}' | '\u{2060}' | '\u{fffe}' | '\u{ffff}' => None,
        c if c.is_control() => None,
        c => Some(c),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn hangul_is_composed_and_noise_is_gone() {
        assert_eq!(normalise("\u{1112}\u{1161}\u{11ab}"), "한");
        assert_eq!(
            normalise("\u{feff}a\u{0}b \r\n\r\n\r\n\r\nc\u{a0}d\t\n"),
            "ab\n\nc d"
        );
        assert_eq!(normalise("  x\r y\u{2028}z"), "  x\n y\nz");
        assert_eq!(normalise(" \n\t\n"), "");
    }

    proptest! {
        #[test]
        fn normalising_twice_changes_nothing(text in "\\PC*|(?s).{0,60}|[ \\n\\r\\t\u{a0}\u{feff}a]{0,20}") {
            let once = normalise(&text);
            prop_assert_eq!(&normalise(&once), &once);
            prop_assert!(!once.contains("\n\n\n"));
            prop_assert!(once.chars().all(|c| c == '\n' || c == '\t' || !c.is_control()));
        }
    }
}
