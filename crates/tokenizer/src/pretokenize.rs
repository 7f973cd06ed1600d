//! Cutting normalised text into pre-tokens: pieces that no token crosses.
//!
//! A pre-tokenizer is a row of steps; each takes the pieces of the one before:
//!
//! ```text
//! Split      where a pattern matches: the match apart, left out, or joined to a neighbour
//! Digits     numbers apart, each for itself or run by run
//! ByteLevel  a space before, GPT-2's pattern, and bytes as symbols of the model; must be last
//! Metaspace  spaces become another character, which each piece then begins with
//! ```
//!
//! K-EXAONE's is one `Split` and a `ByteLevel` that only spells bytes.
//! Source: the Hugging Face `tokenizers` library, whose answers the tests hold.

mod k_exaone;
mod onig;
mod pattern;

pub use k_exaone::{K_EXAONE_PATTERN, Pieces};
pub(crate) use k_exaone::{crosses_words, words};
pub(crate) use pattern::{GPT2_PATTERN, Pattern, PatternSource};

use crate::char_class::{ClassTable, NUMBER};
use crate::error::LoadError;
use std::ops::Range;
use std::sync::LazyLock;

/// More steps than any tokenizer has; each is a level of recursion.
const MAX_STEPS: usize = 64;

/// A pre-tokenizer as `tokenizer.json` names it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum PreTokenizer {
    Split {
        pattern: Pattern,
        behavior: Behavior,
        invert: bool, // what lies between matches takes the part of the matches
    },
    ByteLevel(ByteLevel),
    Digits {
        individual_digits: bool,
    },
    Metaspace(Metaspace),
    Sequence(Vec<PreTokenizer>),
}

/// What becomes of a match and its neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Behavior {
    Removed,
    Isolated,
    MergedWithPrevious,
    MergedWithNext,
    Contiguous,
}

/// Settings that pre-tokenizer, decoder and post-processor of this name share. `trim_offsets` plays no
/// part in ids or text; it is kept for writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ByteLevel {
    pub(crate) add_prefix_space: bool,
    pub(crate) trim_offsets: bool,
    pub(crate) use_regex: bool,
}

impl ByteLevel {
    /// Bytes for characters and nothing else.
    pub(crate) const PLAIN: ByteLevel = ByteLevel {
        add_prefix_space: false,
        trim_offsets: true,
        use_regex: false,
    };

    /// The settings that a decoder is written with; none of them plays a part there.
    pub(crate) const DECODER: ByteLevel = ByteLevel {
        add_prefix_space: true,
        trim_offsets: true,
        use_regex: true,
    };
}

/// Settings that pre-tokenizer and decoder of this name share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Metaspace {
    pub(crate) replacement: char,
    pub(crate) prepend_scheme: PrependScheme,
    pub(crate) split: bool,
}

/// Where a text gets a leading space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PrependScheme {
    /// Before the first piece of the text, unless an added token stands first.
    First,
    Never,
    /// Before every stretch between added tokens.
    Always,
}

impl PreTokenizer {
    /// The pre-tokenizer of K-EXAONE.
    pub(crate) fn k_exaone() -> Self {
        let pattern = Pattern::new(PatternSource::Regex(K_EXAONE_PATTERN.to_owned()));
        let pattern = pattern.expect("a scanner stands for it");
        PreTokenizer::Sequence(vec![
            PreTokenizer::Split {
                pattern,
                behavior: Behavior::Isolated,
                invert: false,
            },
            PreTokenizer::ByteLevel(ByteLevel::PLAIN),
        ])
    }

    /// Whether both cut every text alike, whatever they say of offsets.
    pub(crate) fn cuts_like(&self, other: &PreTokenizer) -> bool {
        let (mut own, mut others) = (Vec::new(), Vec::new());
        self.flatten(&mut own);
        other.flatten(&mut others);
        let is_alike = |(own, other): (&PreTokenizer, &PreTokenizer)| match (own, other) {
            (PreTokenizer::ByteLevel(own), PreTokenizer::ByteLevel(other)) => {
                let trim_offsets = own.trim_offsets;
                *own == ByteLevel {
                    trim_offsets,
                    ..*other
                }
            }
            (own, other) => own == other,
        };
        own.len() == others.len() && own.into_iter().zip(others).all(is_alike)
    }

    /// The steps, with sequences opened.
    fn flatten<'a>(&'a self, steps: &mut Vec<&'a PreTokenizer>) {
        match self {
            // No deeper than the nesting that JSON was read with.
            PreTokenizer::Sequence(parts) => parts.iter().for_each(|part| part.flatten(steps)),
            step => steps.push(step),
        }
    }
}

/// A pre-tokenizer, ready to cut.
#[derive(Debug)]
pub(crate) struct Cutter {
    steps: Vec<Step>,
    is_byte_level: bool,
}

#[derive(Debug)]
enum Step {
    PrefixSpace,
    Split(Pattern, Behavior, bool),
    Digits(Behavior),
    Metaspace(Metaspace),
}

impl Cutter {
    /// # Errors
    /// If a step follows `ByteLevel`, or there are too many.
    pub(crate) fn new(pre_tokenizer: Option<&PreTokenizer>) -> Result<Self, LoadError> {
        static GPT2: LazyLock<Pattern> = LazyLock::new(|| {
            let source = PatternSource::Regex(GPT2_PATTERN.to_owned());
            Pattern::new(source).expect("a pattern known to compile")
        });
        let mut parts = Vec::new();
        if let Some(pre_tokenizer) = pre_tokenizer {
            pre_tokenizer.flatten(&mut parts);
        }
        let unsupported = |found: String, expected| LoadError::Unsupported {
            field: "pre_tokenizer".to_owned(),
            found,
            expected,
        };
        if parts.len() > MAX_STEPS {
            let found = format!("a row of {} steps", parts.len());
            return Err(unsupported(found, "at most 64 steps"));
        }
        let mut cutter = Cutter {
            steps: Vec::new(),
            is_byte_level: false,
        };
        for part in parts {
            if cutter.is_byte_level {
                let found = "a ByteLevel with a step after it".to_owned();
                return Err(unsupported(found, "ByteLevel as the last step"));
            }
            match part {
                PreTokenizer::Split {
                    pattern,
                    behavior,
                    invert,
                } => cutter
                    .steps
                    .push(Step::Split(pattern.clone(), *behavior, *invert)),
                PreTokenizer::ByteLevel(byte_level) => {
                    cutter.is_byte_level = true;
                    if byte_level.add_prefix_space {
                        cutter.steps.push(Step::PrefixSpace);
                    }
                    if byte_level.use_regex {
                        let split = Step::Split(GPT2.clone(), Behavior::Isolated, false);
                        cutter.steps.push(split);
                    }
                }
                PreTokenizer::Digits { individual_digits } => {
                    cutter.steps.push(Step::Digits(match individual_digits {
                        true => Behavior::Isolated,
                        false => Behavior::Contiguous,
                    }));
                }
                PreTokenizer::Metaspace(metaspace) => {
                    cutter.steps.push(Step::Metaspace(*metaspace));
                }
                PreTokenizer::Sequence(_) => {}
            }
        }
        Ok(cutter)
    }

    /// Whether the model's symbols are bytes, spelled in the byte alphabet, rather than characters.
    pub(crate) fn is_byte_level(&self) -> bool {
        self.is_byte_level
    }

    /// Calls `f` with each piece of a stretch of text, in order; `is_start` if nothing comes before it.
    pub(crate) fn for_each(&self, text: &str, is_start: bool, f: &mut dyn FnMut(&str)) {
        match &self.steps[..] {
            // The family's own, without the detours of the general case.
            [Step::Split(pattern, Behavior::Isolated, false)] if pattern.is_k_exaone() => {
                Pieces::new(text).for_each(f);
            }
            _ if text.is_empty() => {}
            steps => cut(steps, text, is_start, f),
        }
    }
}

fn cut(steps: &[Step], text: &str, is_start: bool, f: &mut dyn FnMut(&str)) {
    let Some((step, rest)) = steps.split_first() else {
        return f(text);
    };
    let mut next = |text: &str, range: Range<usize>| {
        if !range.is_empty() {
            let is_start = is_start && range.start == 0;
            cut(rest, &text[range], is_start, f);
        }
    };
    match step {
        Step::PrefixSpace if text.starts_with(' ') => next(text, 0..text.len()),
        Step::PrefixSpace => next(&format!(" {text}"), 0..text.len() + 1),
        Step::Split(pattern, behavior, invert) => {
            let mut joiner = Joiner::new(*behavior);
            let mut emit = |range| next(text, range);
            pattern.for_each(text, &mut |range, is_match| {
                joiner.push(range, is_match != *invert, &mut emit);
            });
            joiner.finish(&mut emit);
        }
        Step::Digits(behavior) => {
            let table = ClassTable::get();
            let mut joiner = Joiner::new(*behavior);
            let mut emit = |range| next(text, range);
            let mut end = 0;
            for (start, c) in text.char_indices() {
                if table.class(c) == NUMBER {
                    if end < start {
                        joiner.push(end..start, false, &mut emit);
                    }
                    end = start + c.len_utf8();
                    joiner.push(start..end, true, &mut emit);
                }
            }
            if end < text.len() {
                joiner.push(end..text.len(), false, &mut emit);
            }
            joiner.finish(&mut emit);
        }
        Step::Metaspace(metaspace) => {
            let text = metaspace.spell(text, is_start);
            if !metaspace.split {
                return next(&text, 0..text.len());
            }
            let mut start = 0;
            for (at, _) in text.match_indices(metaspace.replacement) {
                next(&text, start..at);
                start = at;
            }
            next(&text, start..text.len());
        }
    }
}

impl Metaspace {
    /// The text with the replacement for every space and, by the scheme, before it.
    fn spell(&self, text: &str, is_start: bool) -> String {
        let mut buffer = [0; 4];
        let replacement = self.replacement.encode_utf8(&mut buffer);
        let text = text.replace(' ', replacement);
        let has_prefix = match self.prepend_scheme {
            PrependScheme::Always => true,
            PrependScheme::First => is_start,
            PrependScheme::Never => false,
        };
        match has_prefix && !text.starts_with(self.replacement) {
            true => format!("{replacement}{text}"),
            false => text,
        }
    }
}

/// Joins matches to their neighbours: at most one range waits for what follows it.
struct Joiner {
    behavior: Behavior,
    held: Option<Range<usize>>,
    was_match: bool,
}

impl Joiner {
    fn new(behavior: Behavior) -> Self {
        Joiner {
            behavior,
            held: None,
            was_match: false,
        }
    }

    fn push(&mut self, range: Range<usize>, is_match: bool, emit: &mut dyn FnMut(Range<usize>)) {
        // Whether the range goes on where the one that waits ends.
        let is_joined = match self.behavior {
            Behavior::Removed if is_match => return,
            Behavior::Removed | Behavior::Isolated => return emit(range),
            Behavior::Contiguous => is_match == self.was_match,
            Behavior::MergedWithPrevious => is_match && !self.was_match,
            // Only a match waits here.
            Behavior::MergedWithNext => !is_match,
        };
        self.was_match = is_match;
        match &mut self.held {
            Some(held) if is_joined => held.end = range.end,
            held => {
                let before = held.replace(range);
                before.into_iter().for_each(&mut *emit);
            }
        }
        if self.behavior == Behavior::MergedWithNext && !is_match {
            self.finish(emit);
        }
    }

    fn finish(&mut self, emit: &mut dyn FnMut(Range<usize>)) {
        self.held.take().into_iter().for_each(emit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(regex: &str, behavior: Behavior, invert: bool) -> PreTokenizer {
        let pattern = Pattern::new(PatternSource::Regex(regex.to_owned())).unwrap();
        PreTokenizer::Split {
            pattern,
            behavior,
            invert,
        }
    }

    fn pieces(pre_tokenizer: &PreTokenizer, text: &str) -> Vec<String> {
        let mut pieces = Vec::new();
        let cutter = Cutter::new(Some(pre_tokenizer)).unwrap();
        cutter.for_each(text, true, &mut |piece| pieces.push(piece.to_owned()));
        pieces
    }

    #[test]
    fn the_five_behaviors_are_those_that_are_published() {
        use Behavior::{Contiguous, Isolated, MergedWithNext, MergedWithPrevious, Removed};
        // The example of the library's documentation.
        let cases: [(Behavior, &[&str]); 5] = [
            (Removed, &["the", "final", "countdown"]),
            (Isolated, &["the", "-", "final", "-", "-", "countdown"]),
            (MergedWithPrevious, &["the-", "final-", "-", "countdown"]),
            (MergedWithNext, &["the", "-final", "-", "-countdown"]),
            (Contiguous, &["the", "-", "final", "--", "countdown"]),
        ];
        for (behavior, expected) in cases {
            let step = split("-", behavior, false);
            assert_eq!(
                pieces(&step, "the-final--countdown"),
                expected,
                "{behavior:?}"
            );
        }
        let inverted = split("[a-z]+", Removed, true);
        assert_eq!(
            pieces(&inverted, "the-final--countdown"),
            ["the", "final", "countdown"]
        );
        assert_eq!(pieces(&split("-", MergedWithNext, false), "a-"), ["a", "-"]);
        assert_eq!(
            pieces(&split("-", MergedWithPrevious, false), "-a"),
            ["-", "a"]
        );
    }

    #[test]
    fn digits_stand_alone_or_together() {
        let digits = |individual_digits| PreTokenizer::Digits { individual_digits };
        assert_eq!(
            pieces(&digits(true), "a12\u{2167}b"),
            ["a", "1", "2", "\u{2167}", "b"]
        );
        assert_eq!(
            pieces(&digits(false), "a12\u{2167}b"),
            ["a", "12\u{2167}", "b"]
        );
    }

    #[test]
    fn metaspace_marks_the_start_of_words_and_by_its_scheme_of_the_text() {
        let metaspace = |prepend_scheme, split| {
            PreTokenizer::Metaspace(Metaspace {
                replacement: '_',
                prepend_scheme,
                split,
            })
        };
        assert_eq!(
            pieces(&metaspace(PrependScheme::Always, true), "a  b"),
            ["_a", "_", "_b"]
        );
        assert_eq!(
            pieces(&metaspace(PrependScheme::Never, true), "a b"),
            ["a", "_b"]
        );
        assert_eq!(
            pieces(&metaspace(PrependScheme::Always, false), " a b"),
            ["_a_b"]
        );
        let first = PreTokenizer::Sequence(vec![
            split("-", Behavior::Isolated, false),
            metaspace(PrependScheme::First, false),
        ]);
        assert_eq!(pieces(&first, "a-b"), ["_a", "-", "b"]);
    }

    #[test]
    fn steps_follow_one_another_and_byte_level_is_the_last() {
        let byte_level = PreTokenizer::ByteLevel(ByteLevel {
            add_prefix_space: true,
            trim_offsets: true,
            use_regex: true,
        });
        let digits = PreTokenizer::Digits {
            individual_digits: true,
        };
        let row = PreTokenizer::Sequence(vec![digits.clone(), byte_level.clone()]);
        // A space before every piece, as the library has it.
        assert_eq!(pieces(&row, "it's 12"), [" it", "'s", " ", " 1", " 2"]);
        let wrong = PreTokenizer::Sequence(vec![byte_level, digits]);
        let error = Cutter::new(Some(&wrong)).unwrap_err().to_string();
        assert!(error.contains("ByteLevel as the last step"), "{error}");
        let long = PreTokenizer::Sequence(vec![split("-", Behavior::Isolated, false); 65]);
        let error = Cutter::new(Some(&long)).unwrap_err().to_string();
        assert!(error.contains("a row of 65 steps"), "{error}");
    }

    #[test]
    fn what_differs_in_offsets_alone_cuts_alike() {
        let byte_level = |trim_offsets, use_regex| {
            PreTokenizer::Sequence(vec![PreTokenizer::ByteLevel(ByteLevel {
                add_prefix_space: false,
                trim_offsets,
                use_regex,
            })])
        };
        assert!(byte_level(true, true).cuts_like(&byte_level(false, true)));
        assert!(!byte_level(true, true).cuts_like(&byte_level(true, false)));
        assert!(!byte_level(true, true).cuts_like(&PreTokenizer::k_exaone()));
        assert!(PreTokenizer::k_exaone().cuts_like(&PreTokenizer::k_exaone()));
    }
}
