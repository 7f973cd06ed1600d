//! A pattern and the places of a text where it matches.
//!
//! Three ways to the same matches: the K-EXAONE pattern is a scanner; a pattern that ends like those of
//! the GPT family, in `|\s+(?!\S)|\s+`, runs without the look-ahead; any other runs as it stands.
//!
//! The second in full: of a run of white space the ending takes all but the last character, or all at
//! the end of the text, or the one character that there is. So `...|(\s+)` is searched instead, and
//! where the group took part the last character is given back. What is left of such a pattern has, as
//! a rule, nothing to backtrack into, so that a megabyte of spaces takes linear time and no stack.
//!
//! A pattern that still needs to backtrack gives up a match after `BACKTRACK_LIMIT` steps. The rest of
//! the text is then one piece: encoding cannot fail, and the ids still decode to the text.

use super::k_exaone::{K_EXAONE_PATTERN, Pieces};
use super::onig;
use crate::error::LoadError;
use crate::tokenizer::shorten;
use fancy_regex::{Regex, RegexBuilder};
use std::ops::Range;

/// What GPT-2 cuts text with, and `ByteLevel` where its `use_regex` is set.
/// Source: Radford et al. 2019, the published `encoder.py`.
pub(crate) const GPT2_PATTERN: &str =
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// Steps back before one match is given up. A pattern made for text takes a few for each piece.
const BACKTRACK_LIMIT: usize = 100_000;

/// Longest pattern that is read; the longest in use have a few hundred bytes.
const MAX_PATTERN_BYTES: usize = 1 << 14;

const GPT_ENDING: &str = r"|\s+(?!\S)|\s+";

/// A pattern as `tokenizer.json` writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PatternSource {
    Regex(String),
    Literal(String),
}

/// A pattern, ready to run.
#[derive(Clone, Debug)]
pub(crate) struct Pattern {
    source: PatternSource,
    matcher: Matcher,
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

#[derive(Clone, Debug)]
enum Matcher {
    KExaone,
    Literal(String),
    /// Without the ending of the GPT family, which group 1 stands for.
    GptEnding(Box<Regex>),
    Any(Box<Regex>),
}

impl Pattern {
    /// Reads a pattern in the syntax that the Hugging Face library takes.
    ///
    /// # Errors
    /// If it is no pattern, or has what this crate does not run as the library does.
    pub(crate) fn new(source: PatternSource) -> Result<Self, LoadError> {
        let matcher = match &source {
            PatternSource::Literal(literal) => Matcher::Literal(literal.clone()),
            PatternSource::Regex(pattern) if pattern == K_EXAONE_PATTERN => Matcher::KExaone,
            PatternSource::Regex(pattern) => match pattern.strip_suffix(GPT_ENDING) {
                Some(start) if !ends_with_escape(start) => {
                    let (first, last) = (translate(start)?, r"|(\s+)");
                    Matcher::GptEnding(compile(&[&first, last].concat(), pattern)?)
                }
                _ => Matcher::Any(compile(&translate(pattern)?, pattern)?),
            },
        };
        let is_empty = match &source {
            PatternSource::Regex(text) | PatternSource::Literal(text) => text.is_empty(),
        };
        if is_empty {
            return Err(LoadError::Unsupported {
                field: "pattern".to_owned(),
                found: "empty".to_owned(),
                expected: "a pattern that matches something",
            });
        }
        Ok(Pattern { source, matcher })
    }

    /// Whether the scanner stands for it.
    pub(crate) fn is_k_exaone(&self) -> bool {
        matches!(self.matcher, Matcher::KExaone)
    }

    pub(crate) fn source(&self) -> &PatternSource {
        &self.source
    }

    /// Calls `f` with the ranges that follow one another through the text, and whether each is a
    /// match. Ranges may be empty where the pattern matches nothing.
    pub(crate) fn for_each(&self, text: &str, f: &mut dyn FnMut(Range<usize>, bool)) {
        let mut end = 0;
        let mut found = |range: Range<usize>| {
            if end < range.start {
                f(end..range.start, false);
            }
            end = range.end;
            f(range, true);
        };
        match &self.matcher {
            Matcher::KExaone => {
                let mut start = 0;
                for piece in Pieces::new(text) {
                    found(start..start + piece.len());
                    start += piece.len();
                }
            }
            Matcher::Literal(literal) => {
                for (start, literal) in text.match_indices(literal.as_str()) {
                    found(start..start + literal.len());
                }
            }
            Matcher::GptEnding(regex) => gpt_matches(regex, text, &mut found),
            Matcher::Any(regex) => {
                for found_here in regex.find_iter(text) {
                    let Ok(found_here) = found_here else { break };
                    found(found_here.range());
                }
            }
        }
        if end < text.len() {
            f(end..text.len(), false);
        }
    }
}

/// The matches of a pattern whose ending is group 1.
fn gpt_matches(regex: &Regex, text: &str, found: &mut dyn FnMut(Range<usize>)) {
    let (mut from, mut last_end) = (0, None);
    while let Ok(Some(whole)) = regex.find_from_pos(text, from) {
        let mut range = whole.range();
        if range.is_empty() {
            // Nothing, right after a match, is no match; and the search must go on.
            let next = text[range.end..].chars().next();
            from = range.end + next.map_or(1, char::len_utf8);
            if last_end != Some(range.end) {
                last_end = Some(range.end);
                found(range);
            }
            if from > text.len() {
                break;
            }
            continue;
        }
        let last = text[range.clone()].chars().next_back();
        if let Some(last) = last
            && last.is_whitespace()
            && range.end < text.len()
            && range.len() > last.len_utf8()
        {
            let Ok(Some(groups)) = regex.captures_from_pos(text, range.start) else {
                break;
            };
            if groups.get(1).is_some() {
                range.end -= last.len_utf8();
            }
        }
        from = range.end;
        last_end = Some(range.end);
        found(range);
    }
}

/// Whether the text ends in an odd number of backslashes, so that what follows is escaped.
fn ends_with_escape(text: &str) -> bool {
    text.bytes().rev().take_while(|byte| *byte == b'\\').count() % 2 == 1
}

fn translate(pattern: &str) -> Result<String, LoadError> {
    if pattern.len() > MAX_PATTERN_BYTES {
        return Err(LoadError::Unsupported {
            field: "pattern".to_owned(),
            found: format!("{} bytes long", pattern.len()),
            expected: "at most 16384 bytes",
        });
    }
    onig::translate(pattern).map_err(|onig::Unsupported { at, what }| {
        LoadError::UnsupportedPattern {
            pattern: shorten(pattern),
            at,
            what,
        }
    })
}

/// Compiles a translated pattern; `given` is what stands in the file.
fn compile(translated: &str, given: &str) -> Result<Box<Regex>, LoadError> {
    let mut builder = RegexBuilder::new(translated);
    match builder.backtrack_limit(BACKTRACK_LIMIT).build() {
        Ok(regex) => Ok(Box::new(regex)),
        Err(source) => Err(LoadError::BadPattern {
            pattern: shorten(given),
            source: Box::new(source),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::LazyLock;

    fn pattern(regex: &str) -> Pattern {
        Pattern::new(PatternSource::Regex(regex.to_owned())).unwrap()
    }

    fn pieces<'a>(pattern: &Pattern, text: &'a str) -> Vec<&'a str> {
        let mut pieces = Vec::new();
        pattern.for_each(text, &mut |range, _| pieces.push(&text[range]));
        pieces
    }

    /// The same without the detour around the look-ahead.
    fn direct(regex: &str) -> Pattern {
        Pattern {
            source: PatternSource::Regex(regex.to_owned()),
            matcher: Matcher::Any(compile(&translate(regex).unwrap(), regex).unwrap()),
        }
    }

    const LLAMA3: &str = concat!(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    );

    #[test]
    fn what_lies_between_matches_is_kept() {
        assert_eq!(
            pieces(&pattern("b+(?!c)"), "aabbc bb d"),
            ["aa", "b", "bc ", "bb", " d"]
        );
        let dot = Pattern::new(PatternSource::Literal(".".to_owned())).unwrap();
        assert_eq!(pieces(&dot, "a.b"), ["a", ".", "b"]);
    }

    #[test]
    fn what_is_no_pattern_is_an_error() {
        let error = |regex: &str| {
            Pattern::new(PatternSource::Regex(regex.to_owned()))
                .unwrap_err()
                .to_string()
        };
        assert!(error(r"\p{Nonsense}").contains("is not a regular expression"));
        assert!(error("(").contains("an open group without its end at byte 1"));
        assert!(error("").contains("is empty"));
        assert!(error(&"a".repeat(20_000)).contains("is 20000 bytes long"));
        assert!(error(&"(".repeat(5000)).contains("at byte"));
        assert!(error(&format!("{}a{}", "(".repeat(900), ")".repeat(900))).contains("pattern"));
        assert!(error("(?:a{1000}){1000}{1000}").contains("pattern"));
    }

    #[test]
    fn a_pattern_that_gives_up_still_yields_the_whole_text() {
        let text = format!("{}b", "a".repeat(64));
        for regex in [r"(?=(a+)+$)a", r"(a|a)*(?!b)c", r"(a*)*(?=c)"] {
            assert_eq!(pieces(&pattern(regex), &text).concat(), text, "{regex}");
        }
    }

    #[test]
    fn a_megabyte_of_white_space_is_one_piece_and_its_last_character() {
        let text = format!("{}a", " ".repeat(1 << 20));
        for regex in [GPT2_PATTERN, LLAMA3] {
            let pieces = pieces(&pattern(regex), &text);
            assert_eq!(pieces.len(), 2);
            assert_eq!(pieces[1], " a");
        }
    }

    #[test]
    fn an_ending_that_is_escaped_is_no_ending() {
        let odd = pattern(r"a\|\s+(?!\S)|\s+");
        assert_eq!(pieces(&odd, "a|  b"), ["a| ", " ", "b"]);
    }

    #[test]
    fn every_recorded_pattern_cuts_as_the_library_does() {
        let recorded: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/data/patterns.json")).unwrap();
        let texts = recorded["texts"].as_array().unwrap();
        let mut wrong = Vec::new();
        for record in recorded["patterns"].as_array().unwrap() {
            let regex = record["pattern"].as_str().unwrap();
            let pattern = pattern(regex);
            for (text, expected) in texts.iter().zip(record["lengths"].as_array().unwrap()) {
                let text = text.as_str().unwrap();
                let lengths = expected.as_array().unwrap().iter().flat_map(|entry| {
                    let number = |value: &serde_json::Value| value.as_u64().unwrap() as usize;
                    match entry.as_array() {
                        Some(run) => vec![number(&run[0]); number(&run[1])],
                        None => vec![number(entry)],
                    }
                });
                let found = pieces(&pattern, text)
                    .into_iter()
                    .map(|piece| piece.chars().count());
                let found: Vec<usize> = found.filter(|len| *len > 0).collect();
                let lengths: Vec<usize> = lengths.collect();
                if found != lengths {
                    wrong.push(format!("{regex} on {text:?}: {found:?}, not {lengths:?}"));
                }
            }
        }
        assert!(
            wrong.is_empty(),
            "{} differ:\n{}",
            wrong.len(),
            wrong.join("\n")
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn the_detour_around_the_look_ahead_changes_nothing(
            text in "['sStTrRlLaé가\u{17F} \t\r\n/12²Ⅷ.,\u{301}\u{A0}\u{3000}👩\u{200D}_]{0,24}"
        ) {
            static PAIRS: LazyLock<Vec<(Pattern, Pattern)>> = LazyLock::new(|| {
                [GPT2_PATTERN, LLAMA3, r"a*|\s+(?!\S)|\s+", r"\s\n|é?\s+(?!\S)|\s+(?!\S)|\s+"]
                    .map(|regex| (pattern(regex), direct(regex)))
                    .into()
            });
            for (detour, direct) in PAIRS.iter() {
                let is_detour = matches!(detour.matcher, Matcher::GptEnding(_));
                prop_assert!(is_detour);
                prop_assert_eq!(pieces(detour, &text), pieces(direct, &text));
            }
        }
    }
}
