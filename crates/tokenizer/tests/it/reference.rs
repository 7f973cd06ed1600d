//! Ids, tokens and decoded text as the Hugging Face `tokenizers` library has them. The cases lie in
//! `DOKJA_REFERENCE_DIR`, folder `tokenizer`.

use dokja_tokenizer::Tokenizer;
use std::path::{Path, PathBuf};

struct Case {
    text: String,
    ids: Vec<u32>,
    tokens: Vec<String>,
    decoded: String,
}

fn folder() -> Option<PathBuf> {
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/reference");
    let dir = std::env::var_os("DOKJA_REFERENCE_DIR").map_or(default, PathBuf::from);
    let dir = dir.join("tokenizer");
    if dir.join("expected.jsonl").exists() {
        return Some(dir);
    }
    println!("skipped: {} has no expected.jsonl", dir.display());
    None
}

fn cases(dir: &Path) -> Vec<Case> {
    let text = std::fs::read_to_string(dir.join("expected.jsonl")).unwrap();
    let cases = text.lines().map(|line| {
        let value: serde_json::Value = serde_json::from_str(line).unwrap();
        Case {
            text: serde_json::from_value(value["text"].clone()).unwrap(),
            ids: serde_json::from_value(value["ids"].clone()).unwrap(),
            tokens: serde_json::from_value(value["tokens"].clone()).unwrap(),
            decoded: serde_json::from_value(value["decoded"].clone()).unwrap(),
        }
    });
    cases.collect()
}

#[test]
fn every_recorded_text_has_the_recorded_ids_tokens_and_decoded_text() {
    let Some(dir) = folder() else { return };
    let tokenizer = Tokenizer::load(dir.join("tokenizer.json")).unwrap();
    let cases = cases(&dir);
    assert!(cases.len() >= 30);
    for case in &cases {
        let ids = tokenizer.encode(&case.text);
        assert_eq!(ids, case.ids, "{:?}", case.text);
        assert_eq!(
            tokenizer.decode(&ids, false),
            case.decoded,
            "{:?}",
            case.text
        );
        // A token as spelled in the file belongs to the id and to no other.
        for (token, id) in case.tokens.iter().zip(&case.ids) {
            assert_eq!(tokenizer.id_of(token), Some(*id), "{token:?}");
        }
    }
    // All of them at once, on several threads.
    let texts: Vec<&str> = cases.iter().map(|case| case.text.as_str()).collect();
    let expected: Vec<Vec<u32>> = cases.iter().map(|case| case.ids.clone()).collect();
    assert_eq!(tokenizer.encode_batch(&texts, 3), expected);
}

#[test]
fn a_foreign_file_written_again_is_the_same_tokenizer() {
    let Some(dir) = folder() else { return };
    let text = std::fs::read_to_string(dir.join("tokenizer.json")).unwrap();
    let tokenizer = Tokenizer::from_json(&text).unwrap();
    let as_value = |text: &str| -> serde_json::Value { serde_json::from_str(text).unwrap() };
    assert_eq!(as_value(&tokenizer.to_json()), as_value(&text));
}
