//! Training: what is learned, that it depends on text and settings alone, and that the file it makes
//! reads back.

use dokja_tokenizer::{Tokenizer, TrainError, Trainer};
use proptest::prelude::*;

fn train(trainer: &Trainer, texts: &[String]) -> Result<Tokenizer, TrainError> {
    trainer.train(texts, &mut |_| {})
}

fn texts() -> Vec<String> {
    (0..200)
        .map(|i| {
            format!(
                "the keeper of the lighthouse number {} lights the lamp at night. 등대지기 {}번은 \
                 밤마다 등대의 불을 켠다.\n",
                i % 17,
                i % 5
            )
        })
        .collect()
}

fn trainer(vocab_size: usize, superword_fraction: f64) -> Trainer {
    Trainer {
        vocab_size,
        superword_fraction: Some(superword_fraction),
        ..Trainer::default()
    }
}

/// Tokens that were learned, as text where they are.
fn learned(tokenizer: &Tokenizer) -> Vec<String> {
    let tokens = (268..tokenizer.vocab_size() as u32).filter_map(|id| tokenizer.token_bytes(id));
    tokens
        .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
        .collect()
}

#[test]
fn words_come_first_and_superwords_after_them() {
    let texts = texts();
    let words = train(&trainer(336, 0.0), &texts).unwrap();
    assert_eq!(words.vocab_size(), 336);
    let crosses = |token: &String| token.trim_start().contains(' ');
    assert!(!learned(&words).iter().any(crosses));
    assert!(
        learned(&words).contains(&" lighthouse".to_owned()),
        "{:?}",
        learned(&words)
    );

    let mixed = train(&trainer(336, 0.25), &texts).unwrap();
    let tokens = learned(&mixed);
    let first = tokens.iter().position(crosses).unwrap();
    assert_eq!(first, 51, "three quarters of 68 merges are inside words");
    assert_eq!(tokens[..first], learned(&words)[..first]);
    let across = tokens.iter().filter(|token| crosses(token)).count();
    assert!(across > 5, "{tokens:?}");
    let count = |tokenizer: &Tokenizer| tokenizer.encode_ordinary(&texts.concat()).len();
    assert!(count(&mixed) < count(&words));
}

#[test]
fn a_vocabulary_is_the_same_on_any_number_of_threads_and_reads_back() {
    let texts = texts();
    let json = |threads| {
        let trainer = Trainer {
            threads,
            ..trainer(380, 0.2)
        };
        train(&trainer, &texts).unwrap().to_json()
    };
    let made = json(1);
    assert_eq!(made, json(4));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.json");
    let tokenizer = Tokenizer::from_json(&made).unwrap();
    tokenizer.save(&path).unwrap();
    let again = Tokenizer::load(&path).unwrap();
    assert_eq!(again.to_json(), made);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    let lost = tokenizer.save(dir.path().join("absent/tokenizer.json"));
    assert!(lost.unwrap_err().to_string().contains("absent"));
}

#[test]
fn settings_that_cannot_be_met_are_told() {
    let texts = texts();
    let error = |trainer: &Trainer| train(trainer, &texts).unwrap_err().to_string();
    assert_eq!(
        error(&trainer(267, 0.0)),
        "vocab_size is 267, must be from 268 (special tokens and bytes) to 1048576"
    );
    assert!(error(&trainer(2_000_000, 0.0)).contains("to 1048576"));
    assert!(error(&trainer(300, 1.5)).contains("from 0 to 1"));
    assert!(error(&trainer(300, f64::NAN)).contains("from 0 to 1"));
    assert!(matches!(
        train(&trainer(300, 0.0), &[String::new()]),
        Err(TrainError::NoText)
    ));
    // Too little text: a smaller vocabulary, not an error.
    let small = train(&trainer(5000, 0.2), &texts[..1]).unwrap();
    assert!(small.vocab_size() < 400);
}

#[test]
fn text_that_spells_a_special_token_does_not_become_one() {
    let texts = vec!["<|endofturn|>".repeat(100), "[EOS]".repeat(100)];
    let tokenizer = train(&trainer(320, 0.0), &texts).unwrap();
    let ids = tokenizer.encode_ordinary("<|endofturn|>[EOS]");
    assert!(ids.len() > 2 && ids.iter().all(|&id| !tokenizer.is_added(id)));
    assert_eq!(tokenizer.encode("<|endofturn|>[EOS]").len(), 2);
}

#[test]
fn a_hostile_document_does_not_stop_training() {
    // One pre-token of a megabyte, of no two equal parts, beside normal text.
    let mut texts = texts();
    let mut state = 1u64;
    let letters = (0..1_000_000).map(|_| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        char::from(b'a' + (state >> 60) as u8)
    });
    texts.push(letters.collect());
    let tokenizer = train(&trainer(2000, 0.2), &texts).unwrap();
    assert_eq!(tokenizer.vocab_size(), 2000);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    // Few letters, so that the same token comes about in several ways.
    #[test]
    fn any_text_gives_a_tokenizer_that_encodes_it(
        texts in proptest::collection::vec("[ab ]{0,60}", 1..6),
        vocab_size in 268_usize..330,
        superword_fraction in 0.0..=1.0,
    ) {
        let trainer = Trainer { min_frequency: 1, ..trainer(vocab_size, superword_fraction) };
        match train(&trainer, &texts) {
            Ok(tokenizer) => {
                let again = Tokenizer::from_json(&tokenizer.to_json()).unwrap();
                for text in &texts {
                    let ids = tokenizer.encode_ordinary(text);
                    prop_assert_eq!(&tokenizer.decode(&ids, false), text);
                    prop_assert_eq!(again.encode_ordinary(text), ids);
                }
            }
            Err(error) => prop_assert!(matches!(error, TrainError::NoText), "{}", error),
        }
    }
}
