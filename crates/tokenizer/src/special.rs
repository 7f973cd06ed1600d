//! The special tokens of K-EXAONE: their strings, their published ids, and their look-up.
//!
//! Ids belong to a vocabulary, not to this code: a small vocabulary starts with the twelve tokens that
//! the chat format and the trainer need; one of published size has them at their published ids with
//! the reserved rest. Everything else finds them by content, through `Specials`.
//! Source: the vocabulary of the published K-EXAONE GGUF file (ids, strings, 362 special tokens in all).

use crate::error::MissingSpecial;

/// Padding.
pub const PAD: &str = "[PAD]";
/// Start of text; K-EXAONE never writes it.
pub const BOS: &str = "[BOS]";
/// End of a document in pre-training data. What ends an answer is `END_OF_TURN`.
pub const EOS: &str = "[EOS]";
/// Unknown text; byte-level BPE never produces it.
pub const UNK: &str = "[UNK]";
/// Opens the system turn.
pub const SYSTEM: &str = "<|system|>";
/// Opens a user turn.
pub const USER: &str = "<|user|>";
/// Opens an assistant turn.
pub const ASSISTANT: &str = "<|assistant|>";
/// Closes every turn: the end-of-sequence token of the model configuration.
pub const END_OF_TURN: &str = "<|endofturn|>";
/// Opens the reasoning of an assistant turn.
pub const THINK: &str = "<think>";
/// Closes the reasoning of an assistant turn.
pub const THINK_END: &str = "</think>";
/// Opens a turn of tool results.
pub const TOOL: &str = "<|tool|>";
/// Opens the declaration of tools.
pub const TOOL_DECLARE: &str = "<|tool_declare|>";

/// The tokens of a small vocabulary, in the order of their ids.
pub const COMPACT: [&str; 12] = [
    PAD,
    BOS,
    EOS,
    UNK,
    SYSTEM,
    USER,
    ASSISTANT,
    END_OF_TURN,
    THINK,
    THINK_END,
    TOOL,
    TOOL_DECLARE,
];

/// The published ids that are known; the other ids below `NUM_PUBLISHED` are reserved.
pub const PUBLISHED: [(u32, &str); 35] = [
    (0, PAD),
    (1, BOS),
    (2, EOS),
    (3, UNK),
    (50, SYSTEM),
    (51, USER),
    (52, ASSISTANT),
    (53, END_OF_TURN),
    (54, THINK),
    (55, THINK_END),
    (60, "<|file_sep|>"),
    (61, "<|repo_name|>"),
    (62, "<|fim_prefix|>"),
    (63, "<|fim_middle|>"),
    (64, "<|fim_suffix|>"),
    (65, "<|fim_pad|>"),
    (66, "<|vision_pad|>"),
    (67, "<|image_pad|>"),
    (68, "<|video_pad|>"),
    (73, "<vision>"),
    (74, "</vision>"),
    (75, "PI:EMAIL"),
    (76, "PI:ACCOUNT_NUM"),
    (77, "PI:PHONE_NUM"),
    (78, "PI:BUSINESS_NUM"),
    (79, "PI:ANNON"),
    (80, "PI:KEY"),
    (81, "PI:ID"),
    (82, "PI:IP_ADDRESS"),
    (83, "PI:USER"),
    (102, "<|grounding|>"),
    (103, "<|markdown|>"),
    (104, "<|html|>"),
    (105, TOOL),
    (106, TOOL_DECLARE),
];

/// Special tokens of the published vocabulary, reserved ones included.
pub const NUM_PUBLISHED: u32 = 362;

/// A token that is found in text before anything else happens to the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddedToken {
    /// The text that stands for it.
    pub content: String,
    /// Whether `decode` can leave it out. The think tags are not, as published: a reader of the decoded
    /// answer needs them to tell reasoning from content.
    pub is_special: bool,
    /// Whether it is looked for in the text after normalisation rather than before.
    pub is_normalized: bool,
    /// Whether it takes the white space before it.
    pub strips_left: bool,
    /// Whether it takes the white space after it.
    pub strips_right: bool,
    /// Whether it is found only where no letter, digit or the like touches it.
    pub is_single_word: bool,
}

impl AddedToken {
    /// A token of the K-EXAONE layout.
    pub fn new(content: impl Into<String>) -> Self {
        let content = content.into();
        let is_special = content != THINK && content != THINK_END;
        AddedToken {
            content,
            is_special,
            is_normalized: false,
            strips_left: false,
            strips_right: false,
            is_single_word: false,
        }
    }
}

/// The special tokens that a vocabulary of this size starts with: the twelve, or the published 362
/// where they are at most one in a hundred.
pub fn layout(vocab_size: usize) -> Vec<AddedToken> {
    if vocab_size < 100 * NUM_PUBLISHED as usize {
        return COMPACT.into_iter().map(AddedToken::new).collect();
    }
    let content = |id: u32| match PUBLISHED.iter().find(|(known, _)| *known == id) {
        Some((_, content)) => (*content).to_owned(),
        None => format!("<|reserved_{id}|>"),
    };
    (0..NUM_PUBLISHED)
        .map(|id| AddedToken::new(content(id)))
        .collect()
}

/// Ids of the special tokens of one tokenizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Specials {
    /// `[PAD]`
    pub pad: u32,
    /// `[BOS]`
    pub bos: u32,
    /// `[EOS]`: separates documents in pre-training data.
    pub eos: u32,
    /// `[UNK]`
    pub unk: u32,
    /// `<|system|>`
    pub system: u32,
    /// `<|user|>`
    pub user: u32,
    /// `<|assistant|>`
    pub assistant: u32,
    /// `<|endofturn|>`: ends generation; `eos_token_id` of the model configuration.
    pub endofturn: u32,
    /// `<think>`
    pub think: u32,
    /// `</think>`
    pub think_end: u32,
    /// `<|tool|>`
    pub tool: u32,
    /// `<|tool_declare|>`
    pub tool_declare: u32,
}

impl Specials {
    /// Looks every token up by content.
    ///
    /// # Errors
    /// Names the first token that `id_of` does not know.
    pub fn find(id_of: impl Fn(&str) -> Option<u32>) -> Result<Self, MissingSpecial> {
        let find = |content: &'static str| id_of(content).ok_or(MissingSpecial(content));
        Ok(Specials {
            pad: find(PAD)?,
            bos: find(BOS)?,
            eos: find(EOS)?,
            unk: find(UNK)?,
            system: find(SYSTEM)?,
            user: find(USER)?,
            assistant: find(ASSISTANT)?,
            endofturn: find(END_OF_TURN)?,
            think: find(THINK)?,
            think_end: find(THINK_END)?,
            tool: find(TOOL)?,
            tool_declare: find(TOOL_DECLARE)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_vocabulary_starts_with_twelve_tokens_and_a_large_one_with_the_published_ids() {
        assert_eq!(layout(36_199).len(), 12);
        let large = layout(153_600);
        assert_eq!(large.len(), 362);
        for (id, content) in PUBLISHED {
            assert_eq!(large[id as usize].content, content);
        }
        let contents: std::collections::HashSet<_> = large.iter().map(|t| &t.content).collect();
        assert_eq!(contents.len(), 362);
        let id_of = |content: &str| Some(large.iter().position(|t| t.content == content)? as u32);
        let specials = Specials::find(id_of).unwrap();
        assert_eq!(
            (specials.endofturn, specials.think, specials.tool),
            (53, 54, 105)
        );
    }

    #[test]
    fn a_missing_token_is_named() {
        let id_of = |content: &str| (content != THINK).then_some(7);
        assert_eq!(Specials::find(id_of), Err(MissingSpecial("<think>")));
    }
}
