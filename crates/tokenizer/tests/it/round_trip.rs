//! What goes in comes out: NFC of the text, whatever the text.

use dokja_tokenizer::{Tokenizer, Trainer};
use proptest::prelude::*;
use std::sync::LazyLock;
use unicode_normalization::UnicodeNormalization;

/// A vocabulary with tokens inside words and across them, in several scripts.
static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| {
    let text = "the keeper of the lighthouse lights the lamp of the lighthouse at night, don't you?\n\
                등대지기는 밤마다 등대의 불을 켠다. 등대의 불은 멀리서도 보인다.\n\
                灯台守は毎晩、灯台の明かりをつける。Der Wärter zündet die Lampe an. 1234 + 5 = 1239\n\n";
    let trainer = Trainer {
        vocab_size: 600,
        superword_fraction: Some(0.4),
        ..Trainer::default()
    };
    trainer.train([text.repeat(20)], &mut |_| {}).unwrap()
});

/// Letters that combine, characters of every class of the pattern, and whole words of the vocabulary.
fn hostile_text() -> impl Strategy<Value = String> {
    const PARTS: &[&str] = &[
        "the keeper of the",
        " lighthouse",
        "등대의 불",
        "\u{1112}\u{1161}\u{11ab}",
        "e\u{301}\u{323}",
        "\u{301}",
        "\u{AC00}\u{11A8}",
        "'s",
        "'LL",
        "'\u{17F}",
        " ",
        "  ",
        "\t",
        "\n",
        "\r\n",
        "\u{3000}",
        "\u{A0}",
        "\u{200D}",
        "1",
        "Ⅷ",
        "/",
        "...",
        "👩\u{200D}👧",
        "<|user|>",
        "<think>",
        "[EOS",
        "\u{0}",
        "\u{FEFF}",
        "\u{10FFFF}",
    ];
    proptest::collection::vec(
        prop_oneof![
            4 => proptest::sample::select(PARTS).prop_map(str::to_owned),
            1 => any::<String>(),
        ],
        0..30,
    )
    .prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn decoding_gives_back_the_normalised_text(text in hostile_text()) {
        let normalised: String = text.nfc().collect();
        let ordinary = TOKENIZER.encode_ordinary(&text);
        prop_assert_eq!(&TOKENIZER.decode(&ordinary, false), &normalised);
        prop_assert!(ordinary.iter().all(|&id| !TOKENIZER.is_added(id)));
        prop_assert!(ordinary.iter().all(|&id| (id as usize) < TOKENIZER.vocab_size()));

        // With special tokens apart the text between them is normalised piece by piece.
        let trusted = TOKENIZER.encode(&text);
        let again: String = TOKENIZER.decode(&trusted, false).nfc().collect();
        prop_assert_eq!(again, normalised);
    }

    #[test]
    fn encoding_does_not_depend_on_what_was_encoded_before(
        texts in proptest::collection::vec(hostile_text(), 0..8),
    ) {
        let alone: Vec<Vec<u32>> = texts.iter().map(|text| {
            let fresh = Tokenizer::from_json(TOKENIZER_JSON.as_str()).unwrap();
            fresh.encode_ordinary(text)
        }).collect();
        prop_assert_eq!(TOKENIZER.encode_ordinary_batch(&texts, 3), alone);
    }
}

static TOKENIZER_JSON: LazyLock<String> = LazyLock::new(|| TOKENIZER.to_json());
