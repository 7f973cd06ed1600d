//! Files made to break a reader: each is one clear error, or is read in bounded time.

use dokja_tokenizer::Tokenizer;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// A file with the 256 bytes and the given tokens (from id 256 on) and merges.
fn file(tokens: &[&str], merges: &[[&str; 2]]) -> Value {
    let alphabet = (0..=255_u32).filter(|byte| matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..));
    let alphabet = alphabet
        .chain(0x100..0x144)
        .map(|code| char::from_u32(code).unwrap().to_string());
    let tokens = alphabet.chain(tokens.iter().map(|token| (*token).to_owned()));
    let vocab: serde_json::Map<String, Value> = tokens
        .zip(0..)
        .map(|(token, id)| (token, json!(id)))
        .collect();
    let byte_level = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false });
    json!({
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": { "type": "BPE", "vocab": vocab, "merges": merges },
    })
}

fn read(file: &Value) -> Result<Tokenizer, String> {
    Tokenizer::from_json(&file.to_string()).map_err(|error| error.to_string())
}

fn error(file: &Value) -> String {
    match read(file) {
        Ok(_) => panic!("read without an error"),
        Err(error) => error,
    }
}

#[test]
fn merges_that_lead_nowhere_are_told_with_their_place() {
    assert!(read(&file(&["ab"], &[["a", "b"]])).is_ok());
    type Case<'a> = (&'a [&'a str], &'a [[&'a str; 2]], &'a str);
    let cases: [Case<'_>; 5] = [
        (&[], &[["a", "b"]], "merge 0 needs the token \"ab\""),
        (
            &["ab"],
            &[["a", "b"], ["ab", "q"]],
            "merge 1 needs the token \"abq\"",
        ),
        (
            &["ab"],
            &[["a", "b"], ["a", "b"]],
            "merge 1 repeats the pair \"a\" \"b\"",
        ),
        // A product longer than its parts cannot be one of them: only an empty token makes a circle.
        (&["", "ab"], &[["a", ""]], "token with id 256 is empty"),
        (&["ab"], &[["ab", ""]], "merge 0 needs the token \"\""),
    ];
    for (tokens, merges, expected) in cases {
        assert!(
            error(&file(tokens, merges)).contains(expected),
            "{expected}: {}",
            error(&file(tokens, merges))
        );
    }
    let mut lines = file(&["ab"], &[]);
    for line in ["ab", "a b c", "a  b"] {
        lines["model"]["merges"] = json!([line]);
        assert!(error(&lines).contains(&format!("merge 0 is {line:?}")));
    }
    lines["model"]["merges"] = json!([["a", "b", "c"]]);
    assert!(error(&lines).contains("not a valid tokenizer.json"));
}

#[test]
fn ids_that_collide_or_go_too_far_are_told() {
    let mut twice = file(&["ab"], &[]);
    twice["model"]["vocab"]["cd"] = json!(256);
    assert!(error(&twice).contains("tokens \"ab\" and \"cd\" share the id 256"));
    for id in [1_u64 << 20, u64::from(u32::MAX), u64::MAX] {
        let mut far = file(&["ab"], &[]);
        far["model"]["vocab"]["ab"] = json!(id);
        assert!(
            error(&far).contains(&format!("token \"ab\" has id {id}")),
            "{}",
            error(&far)
        );
    }
    let mut added = file(&["ab"], &[]);
    added["added_tokens"] = json!([{ "id": 300, "content": "ab" }]);
    assert!(
        error(&added).contains("token \"ab\" stands in the vocabulary twice, with ids 256 and 300")
    );
    added["added_tokens"] = json!([{ "id": 1 << 20, "content": "x1" }]);
    assert!(error(&added).contains("has id 1048576"));
    let text = file(&["ab"], &[])
        .to_string()
        .replace("\"ab\":256", "\"ab\":256,\"ab\":257");
    let error = Tokenizer::from_json(&text).unwrap_err().to_string();
    assert!(error.contains("with ids 256 and 257"), "{error}");
    let mut missing = file(&[], &[]);
    missing["model"]["vocab"]
        .as_object_mut()
        .unwrap()
        .shift_remove("a");
    let message = read(&missing).unwrap_err();
    assert!(message.contains("no token for byte 0x61"), "{message}");
    missing["model"]["unk_token"] = json!("b");
    let tokenizer = Tokenizer::from_json(&missing.to_string()).unwrap();
    let b = tokenizer.id_of("b").unwrap();
    assert_eq!(
        tokenizer.encode("aab"),
        [b; 3],
        "an unknown byte is the unknown token"
    );
}

#[test]
fn sequences_a_thousand_deep_are_an_error_and_no_overflow() {
    for (part, kind, list) in [
        ("normalizer", "NFC", "normalizers"),
        ("pre_tokenizer", "NFC", "pretokenizers"),
        ("post_processor", "NFC", "processors"),
        ("decoder", "NFC", "decoders"),
    ] {
        let start = format!("{{\"type\":\"Sequence\",\"{list}\":[").repeat(1000);
        let nested = format!("{start}{{\"type\":\"{kind}\"}}{}", "]}".repeat(1000));
        let mut text = file(&[], &[]);
        text[part] = json!("HERE");
        let text = text.to_string().replace("\"HERE\"", &nested);
        let error = Tokenizer::from_json(&text).unwrap_err().to_string();
        assert!(
            error.contains("recursion limit exceeded"),
            "{part}: {error}"
        );
    }
}

#[test]
fn text_that_makes_a_pattern_backtrack_is_encoded_in_bounded_time() {
    let texts = [
        "a".repeat(10_000),
        "a ".repeat(3000),
        format!("{}b", "ab".repeat(2000)),
        "1".repeat(5000),
    ];
    for pattern in [
        "(a+)+$",
        "(a|aa)+(?!a)b",
        "(?=(a+)+b)a",
        r"(\w+\s?)*$",
        r"(\d{3})+(?!\d)",
        "(a*)*(a*)*(?=x)",
    ] {
        let mut slow = file(&[], &[]);
        slow["pre_tokenizer"] = json!({ "type": "Sequence", "pretokenizers": [
            { "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false },
            slow["pre_tokenizer"].clone(),
        ]});
        let tokenizer = read(&slow).unwrap();
        for text in &texts {
            let start = Instant::now();
            let ids = tokenizer.encode(text);
            assert_eq!(tokenizer.decode(&ids, false), *text, "{pattern}");
            assert!(
                start.elapsed() < Duration::from_secs(20),
                "{pattern}: {:?}",
                start.elapsed()
            );
        }
    }
}

#[test]
fn replacements_that_would_fill_the_memory_are_refused() {
    let double = json!({ "type": "Replace", "pattern": { "String": "a" }, "content": "aa" });
    let mut bomb = file(&[], &[]);
    bomb["normalizer"] = json!({ "type": "Sequence", "normalizers": vec![double.clone(); 40] });
    assert!(
        error(&bomb).contains(
            "`normalizer` is replacements that make text up to 1099511627776 times longer"
        )
    );
    let mut bomb = file(&[], &[]);
    bomb["decoder"] = json!({ "type": "Sequence", "decoders": vec![double; 40] });
    assert!(error(&bomb).contains("`decoder` is replacements"));
}

#[test]
fn what_is_not_a_tokenizer_is_told() {
    let message = |text: &str| Tokenizer::from_json(text).unwrap_err().to_string();
    for text in ["", "{", "[]", "null", "{\"model\": 3}", "\u{0}"] {
        assert!(
            message(text).contains("not a valid tokenizer.json"),
            "{text}"
        );
    }
    assert!(message("{\"model\":{\"vocab\":{}}}").contains("`decoder` is null"));
    let mut extra = file(&[], &[]);
    extra["surprise"] = json!(1);
    assert!(error(&extra).contains("surprise"));
    let mut extra = file(&[], &[]);
    extra["model"]["surprise"] = json!(1);
    assert!(error(&extra).contains("`model.surprise` is 1"));
    let mut scored = file(&[], &[]);
    scored["model"]["type"] = json!("Scored");
    assert!(error(&scored).contains("`model.vocab` is not what a model of the type Scored has"));
}
