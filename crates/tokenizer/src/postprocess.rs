//! The tokens that a vocabulary asks for around a text: a start, an end.
//!
//! Only `Tokenizer::encode_with_special_tokens` writes them. A template for two texts is kept for
//! writing the file and never used.

use crate::error::LoadError;
use crate::pretokenize::ByteLevel;

/// A post-processor as `tokenizer.json` names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PostProcessor {
    /// Changes offsets only.
    ByteLevel(ByteLevel),
    Template(Template),
    /// Each works on what the one before has made.
    Sequence(Vec<PostProcessor>),
}

/// What stands before and after a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Template {
    pub(crate) single: Vec<Piece>,
    pub(crate) pair: Vec<Piece>,
    pub(crate) special_tokens: Vec<Special>,
}

/// A place in a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// The first text (or, in a template for two, the second).
    Sequence { is_second: bool, type_id: u32 },
    /// A token by its name in `special_tokens`.
    Special { name: String, type_id: u32 },
}

/// One name of a template and the ids that it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Special {
    pub(crate) name: String,
    pub(crate) ids: Vec<u32>,
    pub(crate) tokens: Vec<String>,
}

impl PostProcessor {
    /// A start before a text and an end after it, each if there is one, as `(token, id)`.
    pub(crate) fn around(start: Option<(String, u32)>, end: Option<(String, u32)>) -> Self {
        let token = |(name, _): &(String, u32), type_id| Piece::Special {
            name: name.clone(),
            type_id,
        };
        let text = |type_id| {
            let sequence = Piece::Sequence {
                is_second: type_id == 1,
                type_id,
            };
            let before = start.as_ref().map(|start| token(start, type_id));
            let after = end.as_ref().map(|end| token(end, type_id));
            before.into_iter().chain([sequence]).chain(after)
        };
        let (single, pair) = (text(0).collect(), text(0).chain(text(1)).collect());
        let mut special_tokens: Vec<Special> = Vec::new();
        for (name, id) in start.iter().chain(&end) {
            if !special_tokens.iter().any(|special| special.name == *name) {
                special_tokens.push(Special {
                    name: name.clone(),
                    ids: vec![*id],
                    tokens: vec![name.clone()],
                });
            }
        }
        PostProcessor::Template(Template {
            single,
            pair,
            special_tokens,
        })
    }

    /// Refuses a template that names what is not there; `has_token` knows the ids.
    pub(crate) fn check(&self, has_token: &dyn Fn(u32) -> bool) -> Result<(), LoadError> {
        match self {
            PostProcessor::ByteLevel(_) => Ok(()),
            PostProcessor::Template(template) => template.check(has_token),
            PostProcessor::Sequence(parts) => {
                parts.iter().try_for_each(|part| part.check(has_token))
            }
        }
    }

    /// The ids of a text with what stands around them.
    pub(crate) fn apply(&self, ids: Vec<u32>) -> Vec<u32> {
        match self {
            PostProcessor::ByteLevel(_) => ids,
            PostProcessor::Template(template) => template.apply(&ids),
            PostProcessor::Sequence(parts) => parts.iter().fold(ids, |ids, part| part.apply(ids)),
        }
    }
}

impl Template {
    fn find(&self, name: &str) -> Option<&Special> {
        self.special_tokens
            .iter()
            .find(|special| special.name == name)
    }

    fn check(&self, has_token: &dyn Fn(u32) -> bool) -> Result<(), LoadError> {
        let mut num_texts = 0;
        for piece in &self.single {
            match piece {
                Piece::Sequence { is_second, .. } => {
                    num_texts += 1;
                    if *is_second {
                        num_texts += 1;
                    }
                }
                Piece::Special { name, .. } => {
                    let Some(special) = self.find(name) else {
                        return Err(LoadError::MissingToken {
                            field: "post_processor.single".to_owned(),
                            token: crate::tokenizer::shorten(name),
                        });
                    };
                    if let Some(id) = special.ids.iter().find(|id| !has_token(**id)) {
                        return Err(LoadError::MissingId {
                            field: "post_processor.special_tokens".to_owned(),
                            id: *id,
                        });
                    }
                }
            }
        }
        match num_texts {
            1 => Ok(()),
            _ => Err(LoadError::Unsupported {
                field: "post_processor.single".to_owned(),
                found: format!("a template of {} pieces", self.single.len()),
                expected: "one that holds the sequence A once and no other",
            }),
        }
    }

    fn apply(&self, text: &[u32]) -> Vec<u32> {
        let pieces = self.single.iter().map(|piece| match piece {
            Piece::Sequence { .. } => text,
            Piece::Special { name, .. } => self.find(name).map_or(&[][..], |special| &special.ids),
        });
        pieces.collect::<Vec<_>>().concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_stand_around_a_text_once_for_each_template() {
        let token = |name: &str, id| Some((name.to_owned(), id));
        let both = PostProcessor::around(token("<s>", 1), token("</s>", 2));
        assert_eq!(both.apply(vec![7, 8]), [1, 7, 8, 2]);
        assert_eq!(both.apply(vec![]), [1, 2]);
        let start = PostProcessor::around(token("<s>", 1), None);
        let row = PostProcessor::Sequence(vec![
            start,
            PostProcessor::ByteLevel(ByteLevel::PLAIN),
            both,
        ]);
        assert_eq!(row.apply(vec![7]), [1, 1, 7, 2]);
        assert!(row.check(&|id| id < 3).is_ok());
        let error = row.check(&|id| id < 2).unwrap_err().to_string();
        assert!(error.contains("names the id 2"), "{error}");
    }

    #[test]
    fn a_template_that_names_what_is_not_there_is_refused() {
        let mut template = Template {
            single: vec![Piece::Special {
                name: "<s>".to_owned(),
                type_id: 0,
            }],
            pair: Vec::new(),
            special_tokens: Vec::new(),
        };
        let error = |template: &Template| template.check(&|_| true).unwrap_err().to_string();
        assert!(error(&template).contains("names the token \"<s>\""));
        template.single.clear();
        assert!(error(&template).contains("holds the sequence A once"));
    }
}
