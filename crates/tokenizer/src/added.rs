//! Finding added tokens in text: at each position the longest that starts there, from left to right.
//!
//! A trie over bytes, walked from every position whose byte starts some token: O(text * longest token)
//! at worst, and one table look-up a byte where no token starts.

use crate::fast_hash::FastMap;

/// Node 0 is the root.
#[derive(Debug)]
pub(crate) struct AddedMatcher {
    starts: [bool; 256],
    edges: FastMap<(u32, u8), u32>,
    token_at: Vec<Option<u32>>, // per node: the token that ends there
}

/// A part of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part<'a> {
    Text(&'a str),
    Token(u32),
}

impl AddedMatcher {
    /// `tokens` are contents with their ids; none is empty.
    pub(crate) fn new<'a>(tokens: impl Iterator<Item = (&'a str, u32)>) -> Self {
        let mut matcher = AddedMatcher {
            starts: [false; 256],
            edges: FastMap::default(),
            token_at: vec![None],
        };
        for (content, id) in tokens {
            let mut node = 0;
            for &byte in content.as_bytes() {
                let next = matcher.token_at.len() as u32;
                node = *matcher.edges.entry((node, byte)).or_insert(next);
                if node == next {
                    matcher.token_at.push(None);
                }
            }
            matcher.token_at[node as usize] = Some(id);
            if let Some(&byte) = content.as_bytes().first() {
                matcher.starts[usize::from(byte)] = true;
            }
        }
        matcher
    }

    /// The longest token at the start of `bytes`: its id and length.
    fn longest(&self, bytes: &[u8]) -> Option<(u32, usize)> {
        let (mut node, mut found) = (0, None);
        for (i, &byte) in bytes.iter().enumerate() {
            match self.edges.get(&(node, byte)) {
                Some(&next) => node = next,
                None => break,
            }
            if let Some(id) = self.token_at[node as usize] {
                found = Some((id, i + 1));
            }
        }
        found
    }

    /// Calls `f` with the parts of the text, in order; no text part is empty.
    pub(crate) fn for_each<'a>(&self, text: &'a str, mut f: impl FnMut(Part<'a>)) {
        let bytes = text.as_bytes();
        let (mut text_start, mut position) = (0, 0);
        while position < bytes.len() {
            let found = match self.starts[usize::from(bytes[position])] {
                true => self.longest(&bytes[position..]),
                false => None,
            };
            let Some((id, len)) = found else {
                position += 1;
                continue;
            };
            if text_start < position {
                f(Part::Text(&text[text_start..position]));
            }
            f(Part::Token(id));
            position += len;
            text_start = position;
        }
        if text_start < bytes.len() {
            f(Part::Text(&text[text_start..]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts<'a>(tokens: &[&str], text: &'a str) -> Vec<Part<'a>> {
        let matcher = AddedMatcher::new(tokens.iter().copied().zip(0..));
        let mut parts = Vec::new();
        matcher.for_each(text, |part| parts.push(part));
        parts
    }

    #[test]
    fn the_leftmost_token_wins_and_the_longest_of_those_that_start_there() {
        use Part::{Text, Token};
        assert_eq!(
            parts(&["<a>", "<a>b", "b>"], "x<a>b>"),
            [Text("x"), Token(1), Text(">")]
        );
        assert_eq!(
            parts(&["abc", "b"], "abab"),
            [Text("a"), Token(1), Text("a"), Token(1)]
        );
        assert_eq!(parts(&["<a>"], "<a"), [Text("<a")]);
        assert_eq!(parts(&["<a>"], "<a><a>"), [Token(0), Token(0)]);
        assert_eq!(parts(&[], "x"), [Text("x")]);
        assert_eq!(
            parts(&["\u{AC00}"], "\u{AC01}\u{AC00}"),
            [Text("\u{AC01}"), Token(0)]
        );
    }
}
