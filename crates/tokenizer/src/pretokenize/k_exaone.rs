//! The K-EXAONE pattern as a scanner in linear time.
//!
//! One alternation, tried in this order at every position:
//!
//! ```text
//! (?i:'s|'t|'re|'ve|'m|'ll|'d)                              English contractions
//! [^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+       a run of words, with one character before
//! \p{N}                                                      one digit
//!  ?[^\s\p{L}\p{N}]+[\r\n/]?                                symbols, with a space before, a break after
//! \s*[\r\n]                                                  white space up to its last line break
//! \s+(?!\S)                                                  white space but its last character
//! \s+                                                        white space
//! ```
//!
//! A whole run of words is one pre-token, which is what lets a token span several words. The pattern
//! covers every character, so pieces follow each other without gaps.
//! Source: the `exaone-moe` pre-tokenizer as llama.cpp ports it. Tested against the pattern itself
//! below, and against the `tokenizers` library in `tests/`.

use crate::char_class::{
    Class, ClassTable, LETTER, MARK, NEWLINE, NUMBER, OTHER, SPACE, class_of_ascii,
};

/// The pattern as it stands in `tokenizer.json`.
pub const K_EXAONE_PATTERN: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
    r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+",
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
);

/// The pieces of a text by the K-EXAONE pattern.
pub struct Pieces<'a> {
    text: &'a str,
    position: usize, // byte where the next piece starts
    table: &'static ClassTable,
}

impl<'a> Pieces<'a> {
    /// Starts at the beginning of `text`, which should be in NFC.
    pub fn new(text: &'a str) -> Self {
        Pieces {
            text,
            position: 0,
            table: ClassTable::get(),
        }
    }

    /// The class and the width in bytes of the character at `position`; `None` at the end.
    #[inline]
    fn peek(&self, position: usize) -> Option<(Class, usize)> {
        let byte = *self.text.as_bytes().get(position)?;
        if byte < 0x80 {
            return Some((class_of_ascii(byte), 1));
        }
        let c = self.text[position..].chars().next()?;
        Some((self.table.class(c), c.len_utf8()))
    }

    fn byte(&self, position: usize) -> Option<u8> {
        self.text.as_bytes().get(position).copied()
    }

    /// The first position from `position` on whose class is not in `classes`.
    fn skip(&self, mut position: usize, classes: &[Class]) -> usize {
        while let Some((class, width)) = self.peek(position) {
            if !classes.contains(&class) {
                break;
            }
            position += width;
        }
        position
    }

    /// The end of the run of words that starts with the letter at `position`.
    fn word_run(&self, mut position: usize) -> usize {
        loop {
            // Marks may follow a letter; the letter itself is known to be there.
            while let Some((LETTER | MARK, width)) = self.peek(position) {
                position += width;
            }
            let is_next_word = self.byte(position) == Some(b' ')
                && matches!(self.peek(position + 1), Some((LETTER, _)));
            if !is_next_word {
                return position;
            }
            position += 1;
        }
    }

    /// The end of a contraction whose apostrophe is at `position`.
    fn contraction(&self, position: usize) -> Option<usize> {
        let mut rest = self.text[position + 1..].chars();
        let (first, second) = (rest.next()?, rest.next());
        match (
            first.to_ascii_lowercase(),
            second.map(|c| c.to_ascii_lowercase()),
        ) {
            // Ignoring case, the pattern's `s` also matches the long s.
            ('s' | '\u{17F}' | 't' | 'm' | 'd', _) => Some(position + 1 + first.len_utf8()),
            ('r' | 'v', Some('e')) | ('l', Some('l')) => Some(position + 3),
            _ => None,
        }
    }

    /// The end of the piece that starts at `start`.
    fn piece_end(&self, start: usize) -> Option<usize> {
        let (class, width) = self.peek(start)?;
        let first = self.byte(start)?;
        if first == b'\''
            && let Some(end) = self.contraction(start)
        {
            return Some(end);
        }
        match class {
            LETTER => return Some(self.word_run(start)),
            NUMBER => return Some(start + width),
            NEWLINE => {}
            _ => {
                if let Some((LETTER, _)) = self.peek(start + width) {
                    return Some(self.word_run(start + width));
                }
            }
        }
        let symbols = start + usize::from(first == b' ');
        let end = self.skip(symbols, &[MARK, OTHER]);
        if end > symbols {
            // A slash is itself a symbol, so only a line break can be left to take.
            let has_break = matches!(self.byte(end), Some(b'\r' | b'\n'));
            return Some(end + usize::from(has_break));
        }
        Some(self.white_space(start))
    }

    /// The end of the piece of white space that starts at `start`.
    fn white_space(&self, start: usize) -> usize {
        let (mut end, mut last, mut after_break) = (start, start, None);
        while let Some((class @ (SPACE | NEWLINE), width)) = self.peek(end) {
            last = end;
            end += width;
            if class == NEWLINE {
                after_break = Some(end);
            }
        }
        match after_break {
            Some(position) => position,
            None if end == self.text.len() || last == start => end,
            None => last,
        }
    }
}

impl<'a> Iterator for Pieces<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let start = self.position;
        self.position = self.piece_end(start)?;
        Some(&self.text[start..self.position])
    }
}

/// Cuts before every space that follows something else: the words of a run, each with its space.
///
/// The pieces are those that the first stage of training sees, and what encoding may treat apart.
pub(crate) fn words(piece: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = piece;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let cut = (1..rest.len()).find(|&i| rest[i] == b' ' && rest[i - 1] != b' ');
        let (word, tail) = rest.split_at(cut.unwrap_or(rest.len()));
        rest = tail;
        Some(word)
    })
}

/// Whether a token with these bytes lies across a cut that `words` makes.
pub(crate) fn crosses_words(token: &[u8]) -> bool {
    token
        .windows(2)
        .any(|pair| pair[0] != b' ' && pair[1] == b' ')
}

#[cfg(test)]
mod tests {
    use super::*;
    use fancy_regex::Regex;
    use proptest::prelude::*;
    use std::sync::LazyLock;

    fn by_pattern(text: &str) -> Vec<&str> {
        static REGEX: LazyLock<Regex> = LazyLock::new(|| Regex::new(K_EXAONE_PATTERN).unwrap());
        REGEX
            .find_iter(text)
            .map(|found| found.unwrap().as_str())
            .collect()
    }

    fn by_scanner(text: &str) -> Vec<&str> {
        Pieces::new(text).collect()
    }

    #[test]
    fn a_run_of_words_is_one_piece_and_digits_stand_alone() {
        let text = "the old town, 1987's \t\n  don't/x  \u{D55C}\u{AD6D} \u{B9D0}";
        let expected = [
            "the old town",
            ",",
            " ",
            "1",
            "9",
            "8",
            "7",
            "'s",
            " \t\n",
            " ",
            " don",
            "'t",
            "/x",
            " ",
            " \u{D55C}\u{AD6D} \u{B9D0}",
        ];
        assert_eq!(by_scanner(text), expected);
        assert_eq!(by_pattern(text), expected);
    }

    #[test]
    fn words_are_cut_before_a_space_that_follows_something_else() {
        let cut = |text: &'static str| words(text.as_bytes()).map(<[u8]>::len).collect::<Vec<_>>();
        assert_eq!(cut(" of the sea"), [3, 4, 4]);
        assert_eq!(cut("   "), [3]);
        assert_eq!(cut(""), [0; 0]);
        assert!(crosses_words(b"of the") && crosses_words(b"a "));
        assert!(!crosses_words(b"  the") && !crosses_words(b" the"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        // The alphabet holds every character that the pattern names and one or two of each class.
        #[test]
        fn the_scanner_cuts_as_the_pattern_does(
            text in "['sStTrRvVeEmMlLdDxé가あ\u{17F} \t\r\n/1²Ⅷ.,\u{301}\u{302}\u{A0}\u{3000}👩\u{200D}_]{0,24}"
        ) {
            prop_assert_eq!(by_scanner(&text), by_pattern(&text));
        }

        #[test]
        fn the_scanner_cuts_any_text_as_the_pattern_does(text in any::<String>()) {
            prop_assert_eq!(by_scanner(&text), by_pattern(&text));
            prop_assert_eq!(by_scanner(&text).concat(), text);
        }

        #[test]
        fn words_join_to_their_piece_and_no_word_crosses(piece in "[a ]{0,20}") {
            let cut: Vec<&[u8]> = words(piece.as_bytes()).collect();
            prop_assert_eq!(cut.concat(), piece.as_bytes());
            prop_assert!(cut.iter().all(|word| !crosses_words(word)));
        }
    }
}
