//! Finding added tokens in text: at each position the longest that starts there, from left to right.
//!
//! A trie over bytes, walked from every position whose byte starts some token: O(text * longest token)
//! at worst, and one table look-up a byte where no token starts.
//!
//! A token may take the white space at its sides, and may ask to stand between what is not part of a
//! word. One that does not is passed over with its text; nothing that starts inside is looked for (the
//! rule of the Hugging Face library, as is all that follows from it).

use crate::char_class::{ClassTable, NEWLINE, SPACE};
use crate::fast_hash::FastMap;
use fancy_regex::Regex;
use std::ops::Range;
use std::sync::LazyLock;

/// Node 0 is the root.
#[derive(Debug)]
pub(crate) struct AddedMatcher {
    starts: [bool; 256],
    edges: FastMap<(u32, u8), u32>,
    token_at: Vec<Option<Found>>, // per node: the token that ends there
}

/// A token and what it asks of the text around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) id: u32,
    pub(crate) strips_left: bool,
    pub(crate) strips_right: bool,
    pub(crate) is_single_word: bool,
}

/// A part of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part<'a> {
    /// Text, and the byte where it starts.
    Text(usize, &'a str),
    Token(u32),
}

impl AddedMatcher {
    /// `tokens` are contents and what they stand for; none is empty. Of equal contents the first counts.
    pub(crate) fn new<'a>(tokens: impl Iterator<Item = (&'a str, Found)>) -> Self {
        let mut matcher = AddedMatcher {
            starts: [false; 256],
            edges: FastMap::default(),
            token_at: vec![None],
        };
        for (content, found) in tokens {
            let mut node = 0;
            for &byte in content.as_bytes() {
                let next = matcher.token_at.len() as u32;
                node = *matcher.edges.entry((node, byte)).or_insert(next);
                if node == next {
                    matcher.token_at.push(None);
                }
            }
            matcher.token_at[node as usize].get_or_insert(found);
            if let Some(&byte) = content.as_bytes().first() {
                matcher.starts[usize::from(byte)] = true;
            }
        }
        matcher
    }

    /// Whether there is nothing to find.
    pub(crate) fn is_empty(&self) -> bool {
        self.edges.is_empty()
    }

    /// The longest token at the start of `bytes`, of at most `limit` bytes, and its length.
    fn longest(&self, bytes: &[u8], limit: usize) -> Option<(Found, usize)> {
        let (mut node, mut longest) = (0, None);
        for (i, &byte) in bytes.iter().take(limit).enumerate() {
            match self.edges.get(&(node, byte)) {
                Some(&next) => node = next,
                None => break,
            }
            if let Some(found) = self.token_at[node as usize] {
                longest = Some((found, i + 1));
            }
        }
        longest
    }

    /// Calls `f` with the parts of the text, in order; no text part is empty.
    pub(crate) fn for_each<'a>(&self, text: &'a str, f: impl FnMut(Part<'a>)) {
        self.for_each_outside(text, &[], f);
    }

    /// The same, but no token is found that shares a byte with one of the `closed` ranges, which are
    /// in order and apart.
    pub(crate) fn for_each_outside<'a>(
        &self,
        text: &'a str,
        mut closed: &[Range<usize>],
        mut f: impl FnMut(Part<'a>),
    ) {
        let bytes = text.as_bytes();
        let (mut text_start, mut position) = (0, 0);
        while position < bytes.len() {
            while let Some((first, rest)) = closed.split_first()
                && first.end <= position
            {
                closed = rest;
            }
            let open_until = closed.first().map_or(bytes.len(), |range| range.start);
            if open_until <= position {
                position = closed.first().map_or(bytes.len(), |range| range.end);
                continue;
            }
            let longest = match self.starts[usize::from(bytes[position])] {
                true => self.longest(&bytes[position..], open_until - position),
                false => None,
            };
            let Some((found, len)) = longest else {
                position += 1;
                continue;
            };
            let (mut start, mut end) = (position, position + len);
            position = end;
            if found.is_single_word && is_in_word(text, start, end) {
                continue;
            }
            if found.strips_left {
                let before = text[..start].char_indices().rev();
                let white = before.take_while(|(_, c)| is_white(*c)).last();
                // No further than the end of the token before.
                start = white.map_or(start, |(at, _)| at).max(text_start);
            }
            if found.strips_right {
                let after = text[end..].chars().take_while(|c| is_white(*c));
                end += after.map(char::len_utf8).sum::<usize>();
            }
            if text_start < start {
                f(Part::Text(text_start, &text[text_start..start]));
            }
            f(Part::Token(found.id));
            // A token in the white space that was taken ends before it does: the rest is text again.
            text_start = end;
        }
        if text_start < bytes.len() {
            f(Part::Text(text_start, &text[text_start..]));
        }
    }
}

fn is_white(c: char) -> bool {
    matches!(ClassTable::get().class(c), SPACE | NEWLINE)
}

/// Whether a letter, mark, digit or the like stands right before `start` or right after `end`.
fn is_in_word(text: &str, start: usize, end: usize) -> bool {
    static WORD: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"\w").expect("a pattern known to compile"));
    let is_word = |c: char| WORD.is_match(c.encode_utf8(&mut [0; 4])).unwrap_or(false);
    let before = text[..start].chars().next_back();
    let after = text[end..].chars().next();
    before.is_some_and(is_word) || after.is_some_and(is_word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Part::{Text, Token};

    /// A token of the given id, with flags: `l` and `r` for the sides it strips, `w` for a word.
    fn found(id: u32, flags: &str) -> Found {
        Found {
            id,
            strips_left: flags.contains('l'),
            strips_right: flags.contains('r'),
            is_single_word: flags.contains('w'),
        }
    }

    fn matcher(tokens: &[(&'static str, &str)]) -> AddedMatcher {
        let tokens = tokens.iter().zip(0..);
        AddedMatcher::new(tokens.map(|((content, flags), id)| (*content, found(id, flags))))
    }

    fn parts<'a>(tokens: &[(&'static str, &str)], text: &'a str) -> Vec<Part<'a>> {
        let mut parts = Vec::new();
        matcher(tokens).for_each(text, |part| parts.push(part));
        parts
    }

    fn plain<'a>(tokens: &[&'static str], text: &'a str) -> Vec<Part<'a>> {
        let tokens: Vec<_> = tokens.iter().map(|content| (*content, "")).collect();
        parts(&tokens, text)
    }

    #[test]
    fn the_leftmost_token_wins_and_the_longest_of_those_that_start_there() {
        assert_eq!(
            plain(&["<a>", "<a>b", "b>"], "x<a>b>"),
            [Text(0, "x"), Token(1), Text(5, ">")]
        );
        assert_eq!(
            plain(&["abc", "b"], "abab"),
            [Text(0, "a"), Token(1), Text(2, "a"), Token(1)]
        );
        assert_eq!(plain(&["<a>"], "<a"), [Text(0, "<a")]);
        assert_eq!(plain(&["<a>"], "<a><a>"), [Token(0), Token(0)]);
        assert_eq!(plain(&[], "x"), [Text(0, "x")]);
        assert_eq!(
            plain(&["\u{AC00}"], "\u{AC01}\u{AC00}"),
            [Text(0, "\u{AC01}"), Token(0)]
        );
    }

    #[test]
    fn white_space_at_the_sides_goes_with_the_token() {
        assert_eq!(
            parts(&[("<m>", "l")], "a \n<m> b"),
            [Text(0, "a"), Token(0), Text(6, " b")]
        );
        assert_eq!(
            parts(&[("<m>", "r")], "a <m>\u{3000} b"),
            [Text(0, "a "), Token(0), Text(9, "b")]
        );
        assert_eq!(parts(&[("<m>", "lr")], " <m> <m> "), [Token(0), Token(0)]);
        // A token inside of what was taken is found, and what follows it is text again.
        assert_eq!(
            parts(&[("<m>", "r"), ("\n", "")], "<m> \n  x"),
            [Token(0), Token(1), Text(5, "  x")]
        );
    }

    #[test]
    fn a_word_stands_alone_or_is_text() {
        let word = [("day", "w"), ("ay", "")];
        assert_eq!(
            parts(&word, "day, day"),
            [Token(0), Text(3, ", "), Token(0)]
        );
        assert_eq!(parts(&word, "today days"), [Text(0, "today days")]);
        assert_eq!(parts(&word, "day\u{301}"), [Text(0, "day\u{301}")]);
        assert_eq!(parts(&word, "say"), [Text(0, "s"), Token(1)]);
    }

    #[test]
    fn no_token_is_found_in_or_across_a_closed_range() {
        let matcher = matcher(&[("<a>", ""), ("<a>b", "")]);
        let parts = |text, closed: &[(usize, usize)]| {
            let closed: Vec<_> = closed.iter().map(|(start, end)| *start..*end).collect();
            let mut parts = Vec::new();
            matcher.for_each_outside(text, &closed, |part| parts.push(part));
            parts
        };
        let text = "<a><a>b<a>";
        assert_eq!(
            parts(text, &[(3, 6)]),
            [Token(0), Text(3, "<a>b"), Token(0)]
        );
        assert_eq!(
            parts(text, &[(6, 7)]),
            [Token(0), Token(0), Text(6, "b"), Token(0)]
        );
        assert_eq!(
            parts(text, &[(1, 2), (9, 10)]),
            [Text(0, "<a>"), Token(1), Text(7, "<a>")]
        );
        assert_eq!(parts(text, &[(0, 10)]), [Text(0, text)]);
    }
}
