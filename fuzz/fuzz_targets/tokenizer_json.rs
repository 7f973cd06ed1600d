//! A tokenizer.json of any text is refused in one error, or it encodes texts into ids that it has, text from
//! outside into no added token, and what it writes of itself reads as the same tokenizer.

#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use tokenizer::{Tokenizer, Trainer};

/// Patterns are compiled into automata, whose sizes have limits of their own; texts of ids go up to the
/// largest vocabulary.
const BASE_BYTES: usize = 128 << 20;

/// Texts that cut, fold, join or backtrack.
const TEXTS: [&str; 5] = [
    "",
    "the sea, the sea  12345\n\n it's \u{D55C}\u{AD6D}!? <s>[BOS]<|user|>",
    "e\u{301}\u{323}\u{1112}\u{1161}\u{11AB} \u{FB01} \u{2581}\u{A0}\u{3000}\u{10FFFF}\u{0}",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab",
    "   a a a a \r\n\t111111111111111111111111111111111111111111111111111111111",
];

fuzz_target!(init: dokja_fuzz::plant(&seeds()), |bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    dokja_fuzz::budget::within(BASE_BYTES, bytes.len(), || read(text));
});

fn read(file: &str) {
    let Ok(tokenizer) = Tokenizer::from_json(file) else {
        return;
    };
    let again = Tokenizer::from_json(&tokenizer.to_json()).expect("what is written can be read");
    assert_eq!(again.to_json(), tokenizer.to_json());
    for text in TEXTS {
        let ids = tokenizer.encode(text);
        assert!(ids.iter().all(|id| (*id as usize) < tokenizer.vocab_size()));
        assert_eq!(again.encode(text), ids);
        let _ = (tokenizer.decode(&ids, false), tokenizer.decode(&ids, true));
        let _ = tokenizer.encode_with_special_tokens(text);
        let ordinary = tokenizer.encode_ordinary(text);
        let is_own = |id: &u32| tokenizer.is_added(*id) && !tokenizer.is_unknown(*id);
        assert!(!ordinary.iter().any(is_own), "text makes no added token");
    }
}

/// A trained tokenizer, and one of every kind that the tests of the crate know.
fn seeds() -> Vec<Vec<u8>> {
    let trainer = Trainer {
        vocab_size: 380,
        ..Trainer::default()
    };
    let trained = trainer.train(["the sea, the sea"], &mut |_| {});
    let library = include_str!("../../crates/tokenizer/tests/data/library.json");
    let library: Value = serde_json::from_str(library).expect("valid JSON");
    let of_record = |record: &Value| {
        let kind = record["model"].as_str().expect("a name");
        let mut file = library["common"][kind].clone();
        for (key, value) in record["file"].as_object().expect("an object") {
            file[key] = value.clone();
        }
        file["model"] = library["models"][kind].clone();
        for (key, value) in record["options"].as_object().expect("an object") {
            file["model"][key] = value.clone();
        }
        file.to_string().into_bytes()
    };
    let records = library["files"].as_array().expect("a list").iter();
    let trained = trained.expect("a tokenizer").to_json().into_bytes();
    std::iter::once(trained)
        .chain(records.map(of_record))
        .collect()
}
