//! Decoding ids as they are generated: text is given out in whole characters only.
//!
//! A token may end inside a character (a Korean syllable is three bytes, often two tokens). Its bytes
//! wait for the rest; bytes that can no longer become a character are given out as U+FFFD. All that is
//! given out, with what `finish` adds, is what `Tokenizer::decode` makes of all the ids. (Of a vocabulary
//! that falls back to bytes a run of byte tokens waits until it ends: see `decode`.)

use crate::decode::TextState;
use crate::tokenizer::Tokenizer;

/// The state of one text in the making.
#[derive(Clone, Debug, Default)]
pub struct StreamDecoder {
    skip_special: bool,
    state: TextState,
}

impl StreamDecoder {
    /// Starts a text; with `skip_special`, special tokens leave nothing in it.
    pub fn new(skip_special: bool) -> Self {
        StreamDecoder {
            skip_special,
            state: TextState::default(),
        }
    }

    /// Takes the next id and gives out the text that is complete with it, often none.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> String {
        match self.skip_special && tokenizer.is_special(id) {
            true => String::new(),
            false => tokenizer.push_text(&mut self.state, id),
        }
    }

    /// Ends the text: what is left of an unfinished character, as U+FFFD.
    pub fn finish(self) -> String {
        self.state.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::Trainer;
    use proptest::prelude::*;
    use std::sync::LazyLock;

    /// Bytes, and a few tokens that end inside a character.
    static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| {
        let trainer = Trainer {
            vocab_size: 300,
            ..Trainer::default()
        };
        trainer
            .train(
                ["\u{AC00}\u{AC01}\u{AC02}a\u{AC00}\u{AC01}".repeat(9)],
                &mut |_| {},
            )
            .unwrap()
    });

    #[test]
    fn a_syllable_appears_with_its_last_byte() {
        let mut stream = StreamDecoder::new(false);
        let texts: Vec<String> = TOKENIZER
            .encode("\u{D55C}a")
            .into_iter()
            .map(|id| stream.push(&TOKENIZER, id))
            .collect();
        assert_eq!(texts, ["", "", "\u{D55C}", "a"]);
        assert_eq!(stream.finish(), "");
    }

    #[test]
    fn special_tokens_are_left_out_on_request_and_think_tags_are_not() {
        let ids = TOKENIZER.encode("<think>a</think><|endofturn|>");
        let mut stream = StreamDecoder::new(true);
        let text: String = ids.iter().map(|&id| stream.push(&TOKENIZER, id)).collect();
        assert_eq!(text, "<think>a</think>");
        assert_eq!(TOKENIZER.decode(&ids, true), text);
    }

    #[test]
    fn an_end_inside_a_character_is_told_at_the_end_and_bytes_that_are_none_at_once() {
        let id_of = |byte: char| TOKENIZER.id_of(&byte.to_string()).unwrap();
        let mut stream = StreamDecoder::new(false);
        // The first two bytes of a Hangul syllable (0xED 0x95), then nothing.
        assert_eq!(stream.push(&TOKENIZER, id_of('\u{ED}')), "");
        assert_eq!(stream.push(&TOKENIZER, id_of('\u{137}')), "");
        assert_eq!(stream.finish(), "\u{FFFD}");
        let mut stream = StreamDecoder::new(false);
        assert_eq!(stream.push(&TOKENIZER, id_of('\u{ED}')), "");
        assert_eq!(stream.push(&TOKENIZER, id_of('a')), "\u{FFFD}a");
        // 0xFF begins no character.
        assert_eq!(stream.push(&TOKENIZER, id_of('\u{FF}')), "\u{FFFD}");
        assert_eq!(stream.finish(), "");
    }

    proptest! {
        #[test]
        fn the_stream_adds_up_to_the_decoded_text(
            ids in proptest::collection::vec(0_u32..310, 0..40),
            skip_special in any::<bool>(),
        ) {
            let mut stream = StreamDecoder::new(skip_special);
            let mut text = String::new();
            for &id in &ids {
                let part = stream.push(&TOKENIZER, id);
                // At most an unfinished character waits.
                prop_assert!(stream.state.num_pending() <= 3);
                text.push_str(&part);
            }
            text.push_str(&stream.finish());
            prop_assert_eq!(text, TOKENIZER.decode(&ids, skip_special));
        }

        #[test]
        fn of_a_text_nothing_but_whole_characters_comes_out(text in "[a-c\u{AC00}-\u{AC04}\u{E9}\u{1F600}]{0,20}") {
            let mut stream = StreamDecoder::new(false);
            let mut given_out = String::new();
            for id in TOKENIZER.encode_ordinary(&text) {
                given_out.push_str(&stream.push(&TOKENIZER, id));
                prop_assert!(text.starts_with(&given_out));
            }
            prop_assert_eq!(given_out, text);
        }
    }
}
