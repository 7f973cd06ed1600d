//! Changing a text before it is cut: Unicode normal forms, a prefix, replacements.
//!
//! Every stretch of text between added tokens is normalised on its own, as the Hugging Face library
//! does: a prefix therefore stands before each of them. Accents, case and margins are not touched; a
//! file that asks for that is refused by name.

use crate::error::LoadError;
use std::borrow::Cow;
use unicode_normalization::{
    IsNormalized, UnicodeNormalization, is_nfc_quick, is_nfd_quick, is_nfkc_quick, is_nfkd_quick,
};

/// Text must not become more times longer than this by the replacements of a file: a chain of them
/// could fill any memory.
const MAX_GROWTH: usize = 16;

/// A normaliser as `tokenizer.json` names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Normalizer {
    Nfc,
    Nfd,
    Nfkc,
    Nfkd,
    /// Written before the text.
    Prepend(String),
    Replace(Replace),
    /// One after the other.
    Sequence(Vec<Normalizer>),
}

/// Every place where `pattern` stands becomes `content`, from left to right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Replace {
    pub(crate) pattern: String, // never empty
    pub(crate) content: String,
}

impl Replace {
    pub(crate) fn apply<'a>(&self, text: Cow<'a, str>) -> Cow<'a, str> {
        match text.contains(&self.pattern) {
            true => Cow::Owned(text.replace(&self.pattern, &self.content)),
            false => text,
        }
    }

    /// How many times longer a text may become.
    pub(crate) fn growth(&self) -> usize {
        self.content.len().div_ceil(self.pattern.len()).max(1)
    }
}

impl Normalizer {
    /// The normalised text; the text itself where nothing changes.
    pub(crate) fn apply<'a>(&self, text: Cow<'a, str>) -> Cow<'a, str> {
        match self {
            Normalizer::Nfc => compose(text),
            Normalizer::Nfd => normal_form(
                text,
                |text| is_nfd_quick(text.chars()),
                |text| text.nfd().collect(),
            ),
            Normalizer::Nfkc => normal_form(
                text,
                |text| is_nfkc_quick(text.chars()),
                |text| text.nfkc().collect(),
            ),
            Normalizer::Nfkd => normal_form(
                text,
                |text| is_nfkd_quick(text.chars()),
                |text| text.nfkd().collect(),
            ),
            Normalizer::Prepend(_) if text.is_empty() => text,
            Normalizer::Prepend(prefix) => Cow::Owned(format!("{prefix}{text}")),
            Normalizer::Replace(replace) => replace.apply(text),
            Normalizer::Sequence(parts) => parts.iter().fold(text, |text, part| part.apply(text)),
        }
    }

    /// Refuses what would make a text longer without bound.
    pub(crate) fn check(&self) -> Result<(), LoadError> {
        check_growth("normalizer", self.growth())
    }

    fn growth(&self) -> usize {
        match self {
            Normalizer::Replace(replace) => replace.growth(),
            Normalizer::Prepend(prefix) => prefix.len().max(1),
            Normalizer::Sequence(parts) => parts.iter().fold(1, |growth: usize, part| {
                growth.saturating_mul(part.growth())
            }),
            // Bound by Unicode: at most eighteen characters for one.
            _ => 1,
        }
    }
}

/// Refuses replacements that together make a text `growth` times longer, if that is too much.
pub(crate) fn check_growth(field: &str, growth: usize) -> Result<(), LoadError> {
    match growth > MAX_GROWTH {
        true => Err(LoadError::Unsupported {
            field: field.to_owned(),
            found: format!("replacements that make text up to {growth} times longer"),
            expected: "at most 16 times",
        }),
        false => Ok(()),
    }
}

/// Canonical composition (NFC).
pub(crate) fn compose(text: Cow<'_, str>) -> Cow<'_, str> {
    normal_form(
        text,
        |text| is_nfc_quick(text.chars()),
        |text| text.nfc().collect(),
    )
}

/// A normal form, or the text itself where it has that form.
fn normal_form<'a>(
    text: Cow<'a, str>,
    quick: fn(&str) -> IsNormalized,
    form: fn(&str) -> String,
) -> Cow<'a, str> {
    // ASCII is its own normal form in all four.
    if text.is_ascii() || quick(&text) == IsNormalized::Yes {
        return text;
    }
    Cow::Owned(form(&text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apply(normalizer: &Normalizer, text: &str) -> String {
        normalizer.apply(Cow::Borrowed(text)).into_owned()
    }

    #[test]
    fn the_four_normal_forms_are_those_of_unicode() {
        // A syllable in jamo, a ligature, an accent apart, an accent in place.
        let text = "\u{1112}\u{1161}\u{11AB}\u{FB01}e\u{301}\u{E9}";
        let cases = [
            (Normalizer::Nfc, "\u{D55C}\u{FB01}\u{E9}\u{E9}"),
            (
                Normalizer::Nfd,
                "\u{1112}\u{1161}\u{11AB}\u{FB01}e\u{301}e\u{301}",
            ),
            (Normalizer::Nfkc, "\u{D55C}fi\u{E9}\u{E9}"),
            (
                Normalizer::Nfkd,
                "\u{1112}\u{1161}\u{11AB}fie\u{301}e\u{301}",
            ),
        ];
        for (normalizer, expected) in cases {
            assert_eq!(apply(&normalizer, text), expected, "{normalizer:?}");
            assert!(matches!(
                normalizer.apply(Cow::Borrowed("ascii")),
                Cow::Borrowed(_)
            ));
        }
    }

    #[test]
    fn a_prefix_stands_before_text_and_not_before_nothing() {
        let space = Normalizer::Replace(Replace {
            pattern: " ".to_owned(),
            content: "\u{2581}".to_owned(),
        });
        let both = Normalizer::Sequence(vec![Normalizer::Prepend("\u{2581}".to_owned()), space]);
        assert_eq!(apply(&both, " a b"), "\u{2581}\u{2581}a\u{2581}b");
        assert_eq!(apply(&both, ""), "");
        assert!(both.check().is_ok());
    }

    #[test]
    fn replacements_that_explode_are_refused() {
        let double = Normalizer::Replace(Replace {
            pattern: "a".to_owned(),
            content: "aa".to_owned(),
        });
        let error = Normalizer::Sequence(vec![double; 60]).check().unwrap_err();
        assert!(error.to_string().contains("at most 16 times"), "{error}");
    }
}
