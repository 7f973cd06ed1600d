//! Every kind of file against the libraries that define it: `tests/data/make.py` recorded what they make
//! of texts that try to break something.

use dokja_tokenizer::{GgufVocab, StreamDecoder, Tokenizer};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::LazyLock;

fn data(name: &str) -> Value {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    serde_json::from_str(&std::fs::read_to_string(dir.join(name)).unwrap()).unwrap()
}

/// Ids, of which `[id, count]` is a run of one.
fn ids(value: &Value) -> Vec<u32> {
    let ids = value.as_array().unwrap().iter().flat_map(|entry| {
        let number = |value: &Value| u32::try_from(value.as_u64().unwrap()).unwrap();
        match entry.as_array() {
            Some(run) => vec![number(&run[0]); number(&run[1]) as usize],
            None => vec![number(entry)],
        }
    });
    ids.collect()
}

/// A text, or its runs of characters.
fn text_of(value: &Value) -> String {
    match value.as_array() {
        None => value.as_str().unwrap().to_owned(),
        Some(runs) => runs
            .iter()
            .map(|run| {
                run[0]
                    .as_str()
                    .unwrap()
                    .repeat(run[1].as_u64().unwrap() as usize)
            })
            .collect(),
    }
}

fn texts(data: &Value) -> Vec<String> {
    data["texts"]
        .as_array()
        .unwrap()
        .iter()
        .map(text_of)
        .collect()
}

/// What is recorded of a text: `[place of the text, ids, what differs]`.
struct Case {
    text: String,
    ids: Vec<u32>,
    around: Option<Vec<u32>>, // with special tokens; recorded of short texts
    decoded: String,
    skipped: String,
}

fn cases(texts: &[String], record: &Value) -> Vec<Case> {
    let read = |case: &Value| {
        let text = texts[case[0].as_u64().unwrap() as usize].clone();
        let differs = |key: &str| case.get(2).and_then(|differs| differs.get(key));
        let ids = ids(&case[1]);
        let around = differs("around").map(self::ids);
        let around = around.or_else(|| (ids.len() <= 20).then(|| ids.clone()));
        let decoded = differs("decoded").map_or_else(|| text.clone(), text_of);
        let skipped = differs("skipped").map_or_else(|| decoded.clone(), text_of);
        Case {
            text,
            ids,
            around,
            decoded,
            skipped,
        }
    };
    record["cases"]
        .as_array()
        .unwrap()
        .iter()
        .map(read)
        .collect()
}

/// The `tokenizer.json` of a record.
fn file(data: &Value, record: &Value) -> Value {
    let model = record["model"].as_str().unwrap();
    let mut file = data["common"][model].clone();
    for (key, value) in record["file"].as_object().unwrap() {
        file[key] = value.clone();
    }
    file["model"] = data["models"][model].clone();
    for (key, value) in record["options"].as_object().unwrap() {
        file["model"][key] = value.clone();
    }
    file
}

fn stream(tokenizer: &Tokenizer, ids: &[u32], skip_special: bool) -> String {
    let mut stream = StreamDecoder::new(skip_special);
    let mut text: String = ids.iter().map(|id| stream.push(tokenizer, *id)).collect();
    text.push_str(&stream.finish());
    text
}

/// The start of a long text.
fn short(text: &str) -> String {
    text.chars().take(60).collect()
}

static LIBRARY: LazyLock<Value> = LazyLock::new(|| data("library.json"));

/// Names and tokenizers of all files.
static TOKENIZERS: LazyLock<Vec<(String, Tokenizer)>> = LazyLock::new(|| {
    let records = LIBRARY["files"].as_array().unwrap().iter();
    let read = |record: &Value| {
        let name = record["name"].as_str().unwrap().to_owned();
        let tokenizer = Tokenizer::from_json(&file(&LIBRARY, record).to_string());
        (
            name.clone(),
            tokenizer.unwrap_or_else(|error| panic!("{name}: {error}")),
        )
    };
    records.map(read).collect()
});

#[test]
fn every_kind_of_file_has_the_ids_and_the_text_of_the_library() {
    let texts = texts(&LIBRARY);
    let mut wrong = Vec::new();
    let mut num_cases = 0;
    for (record, (name, tokenizer)) in LIBRARY["files"]
        .as_array()
        .unwrap()
        .iter()
        .zip(&*TOKENIZERS)
    {
        let mut check = |what: &str, text: &str, is_same: bool, found: String| {
            num_cases += 1;
            if !is_same {
                wrong.push(format!(
                    "{name}: {what} of {:?}: {}",
                    short(text),
                    short(&found)
                ));
            }
        };
        for case in cases(&texts, record) {
            let text = &case.text;
            let found = tokenizer.encode(text);
            check(
                "ids",
                text,
                found == case.ids,
                format!("{found:?}, not {:?}", case.ids),
            );
            if let Some(around) = case.around {
                let found = tokenizer.encode_with_special_tokens(text);
                check("ids around", text, found == around, format!("{found:?}"));
            }
            for (skip_special, expected) in [(false, &case.decoded), (true, &case.skipped)] {
                let found = tokenizer.decode(&case.ids, skip_special);
                check("decoding", text, found == *expected, format!("{found:?}"));
                let found = stream(tokenizer, &case.ids, skip_special);
                check("streaming", text, found == *expected, format!("{found:?}"));
            }
        }
        for odd in record["odd"].as_array().into_iter().flatten() {
            let found = tokenizer.decode(&ids(&odd["ids"]), false);
            check(
                "decoding",
                &odd["ids"].to_string(),
                found == odd["decoded"],
                found.clone(),
            );
            let found = stream(tokenizer, &ids(&odd["ids"]), false);
            check(
                "streaming",
                &odd["ids"].to_string(),
                found == odd["decoded"],
                found.clone(),
            );
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {num_cases} differ:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    assert!(num_cases > 2000, "{num_cases}");
}

#[test]
fn every_kind_of_file_written_again_is_the_same_file() {
    for (record, (name, tokenizer)) in LIBRARY["files"]
        .as_array()
        .unwrap()
        .iter()
        .zip(&*TOKENIZERS)
    {
        let written = tokenizer.to_json();
        let as_value: Value = serde_json::from_str(&written).unwrap();
        assert_eq!(as_value, file(&LIBRARY, record), "{name}");
        assert_eq!(
            Tokenizer::from_json(&written).unwrap().to_json(),
            written,
            "{name}"
        );
    }
}

#[test]
fn older_spellings_of_the_same_file_are_read() {
    let record = &LIBRARY["files"][0];
    let mut old = file(&LIBRARY, record);
    let lines = old["model"]["merges"].as_array().unwrap().iter();
    let lines = lines.map(|pair| {
        format!(
            "{} {}",
            pair[0].as_str().unwrap(),
            pair[1].as_str().unwrap()
        )
    });
    old["model"]["merges"] = lines.collect();
    let model = old["model"].as_object_mut().unwrap();
    for key in [
        "type",
        "byte_fallback",
        "ignore_merges",
        "fuse_unk",
        "dropout",
    ] {
        model.shift_remove(key);
    }
    old["pre_tokenizer"]
        .as_object_mut()
        .unwrap()
        .shift_remove("use_regex");
    let old = Tokenizer::from_json(&old.to_string()).unwrap();
    assert_eq!(old.to_json(), TOKENIZERS[0].1.to_json());
}

#[test]
fn vocabularies_with_scores_have_the_ids_of_sentencepiece() {
    let data = data("sentencepiece.json");
    let texts = texts(&data);
    let mut wrong = Vec::new();
    for record in data["vocabularies"].as_array().unwrap() {
        let list = |key: &str| record[key].as_array().unwrap().iter();
        let tokens: Vec<&str> = list("tokens")
            .map(|token| token.as_str().unwrap())
            .collect();
        let scores: Vec<f32> = list("scores")
            .map(|score| score.as_f64().unwrap() as f32)
            .collect();
        let types: Vec<i32> = list("token_types")
            .map(|kind| kind.as_i64().unwrap() as i32)
            .collect();
        let tokenizer = Tokenizer::from_gguf(&GgufVocab {
            model: "llama",
            tokens: &tokens,
            token_types: Some(&types),
            scores: Some(&scores),
            add_space_prefix: record["add_space_prefix"].as_bool(),
            ..GgufVocab::default()
        });
        let tokenizer = tokenizer.unwrap();
        for case in cases(&texts, record) {
            let found = tokenizer.encode_ordinary(&case.text);
            if found != case.ids {
                wrong.push(format!(
                    "{:?}: {found:?}, not {:?}",
                    short(&case.text),
                    case.ids
                ));
            }
            let found = tokenizer.decode(&case.ids, false);
            if found != case.decoded {
                let (found, expected) = (short(&found), short(&case.decoded));
                wrong.push(format!(
                    "{:?}: {found:?}, not {expected:?}",
                    short(&case.text)
                ));
            }
        }
        let again = Tokenizer::from_json(&tokenizer.to_json()).unwrap();
        assert_eq!(again.to_json(), tokenizer.to_json());
        let data = tokenizer.gguf_vocab().unwrap();
        assert_eq!(
            (data.tokens.len(), data.scores),
            (tokens.len(), Some(scores))
        );
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_file_of_the_llama_kind_and_its_scores_would_be_one_vocabulary_in_gguf() {
    // A list of merges over characters has none; what has is told apart by name.
    for (name, tokenizer) in &*TOKENIZERS {
        let known = match name.as_str() {
            "gpt-2" => Some("gpt-2"),
            "digits" => Some("smollm"),
            "llama 3" => Some("llama-bpe"),
            "qwen 2" => Some("qwen2"),
            _ => None,
        };
        match tokenizer.gguf_vocab() {
            Ok(data) => assert_eq!(data.pre, known, "{name}"),
            Err(error) => {
                assert!(known.is_none(), "{name}: {error}");
                let message = error.to_string();
                assert!(message.ends_with("has no form in a GGUF file"), "{message}");
            }
        }
    }
}

/// Parts that combine, in any order.
fn text() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        8 => proptest::sample::select(texts(&LIBRARY)).prop_map(|text| short(&text)),
        1 => any::<String>(),
        1 => "[ \\t\\n\\r]{1,5}",
    ];
    proptest::collection::vec(part, 0..6).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn bytes_come_back_as_the_normalised_text(text in text()) {
        let names = ["gpt-2", "digits", "llama 3", "deepseek 3", "Isolated", "MergedWithNext",
            "MergedWithPrevious", "Contiguous, inverted", "added tokens"];
        for (name, tokenizer) in &*TOKENIZERS {
            let ordinary = tokenizer.encode_ordinary(&text);
            let is_ordinary = |id: &u32| !tokenizer.is_added(*id) || tokenizer.id_of("<unk>") == Some(*id);
            prop_assert!(ordinary.iter().all(is_ordinary), "{}", name);
            if names.contains(&name.as_str()) {
                prop_assert_eq!(&tokenizer.decode(&ordinary, false), &text, "{}", name);
            }
            // Nothing is from outside, or all is.
            prop_assert_eq!(tokenizer.encode_guarded(&text, std::slice::from_ref(&(0..text.len()))), ordinary, "{}", name);
            let trusted = tokenizer.encode(&text);
            prop_assert_eq!(tokenizer.encode_guarded(&text, &[]), trusted, "{}", name);
        }
    }

    #[test]
    fn text_from_outside_makes_no_added_token_and_else_changes_nothing(
        before in text(), content in text(), after in text(),
    ) {
        let whole = [&before[..], &content, &after].concat();
        let range = before.len()..before.len() + content.len();
        for (name, tokenizer) in &*TOKENIZERS {
            let is_token = |id: &&u32| tokenizer.is_added(**id) && tokenizer.id_of("<unk>") != Some(**id);
            let added = |ids: &[u32]| ids.iter().filter(is_token).count();
            let guarded = tokenizer.encode_guarded(&whole, std::slice::from_ref(&range));
            let around = added(&tokenizer.encode(&before)) + added(&tokenizer.encode(&after));
            prop_assert!(added(&guarded) <= around, "{}: {:?}", name, guarded);
            // Tokens of normalised text are looked for in trusted stretches apart.
            let is_apart = ["added tokens, normalised", "llama 2 with added tokens"].contains(&name.as_str());
            let trusted = tokenizer.encode(&whole);
            if !is_apart && !trusted.iter().any(|id| tokenizer.is_added(*id)) {
                prop_assert_eq!(guarded, trusted, "{}", name);
            }
        }
    }
}

#[test]
fn a_part_that_is_not_understood_is_named_with_its_path() {
    let cases: [(&str, Value, &str); 22] = [
        (
            "/normalizer",
            json!({"type": "Lowercase"}),
            "`normalizer.type` is \"Lowercase\"",
        ),
        ("/normalizer", json!("NFC"), "`normalizer` is \"NFC\""),
        (
            "/normalizer",
            json!({"type": "NFC", "extra": 1}),
            "`normalizer.extra` is 1",
        ),
        (
            "/normalizer",
            json!({"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Nmt"}]}),
            "`normalizer.normalizers[1].type` is \"Nmt\"",
        ),
        (
            "/normalizer",
            json!({"type": "Replace", "pattern": {"Regex": "a"}, "content": ""}),
            "`normalizer.pattern` is \"a\"",
        ),
        (
            "/pre_tokenizer",
            json!({"type": "Punctuation", "behavior": "Isolated"}),
            "`pre_tokenizer.type` is \"Punctuation\"",
        ),
        (
            "/pre_tokenizer",
            json!({"type": "Split", "pattern": {"Regex": "(?<a>b)"}, "behavior": "Isolated"}),
            "has a named group at byte 0",
        ),
        (
            "/pre_tokenizer",
            json!({"type": "Split", "pattern": {"Regex": "a"}, "behavior": "Odd"}),
            "`pre_tokenizer.behavior` is \"Odd\"",
        ),
        (
            "/pre_tokenizer",
            json!({"type": "Split", "pattern": "a", "behavior": "Isolated"}),
            "`pre_tokenizer.pattern` is \"a\"",
        ),
        (
            "/pre_tokenizer",
            json!({"type": "Digits"}),
            "`pre_tokenizer.individual_digits` is null",
        ),
        (
            "/pre_tokenizer",
            json!({"type": "Metaspace", "replacement": "__"}),
            "`pre_tokenizer.replacement` is \"__\"",
        ),
        (
            "/pre_tokenizer",
            json!({"type": "Metaspace", "replacement": "_", "add_prefix_space": false, "prepend_scheme": "always"}),
            "`pre_tokenizer.prepend_scheme` is \"always\"",
        ),
        (
            "/post_processor",
            json!({"type": "BertProcessing"}),
            "`post_processor.type` is \"BertProcessing\"",
        ),
        (
            "/post_processor",
            json!({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x", "type_id": 0}}], "pair": [], "special_tokens": {}}),
            "`post_processor.single` names the token \"x\"",
        ),
        ("/decoder", json!(null), "`decoder` is null"),
        (
            "/decoder",
            json!({"type": "CTC"}),
            "`decoder.type` is \"CTC\"",
        ),
        ("/truncation", json!({"max_length": 1}), "`truncation` is"),
        ("/version", json!("2.0"), "`version` is \"2.0\""),
        ("/model/dropout", json!(0.1), "`model.dropout` is 0.1"),
        (
            "/model/end_of_word_suffix",
            json!("</w>"),
            "`model.end_of_word_suffix` is \"</w>\"",
        ),
        (
            "/model/type",
            json!("Unigram"),
            "`model.type` is \"Unigram\"",
        ),
        (
            "/added_tokens/0/strip",
            json!(true),
            "`added_tokens[0].strip` is true",
        ),
    ];
    for (path, value, expected) in cases {
        let mut changed = file(&LIBRARY, &LIBRARY["files"][0]);
        let (parent, key) = path.rsplit_once('/').unwrap();
        changed.pointer_mut(parent).unwrap()[key] = value;
        let error = Tokenizer::from_json(&changed.to_string())
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected), "{path}: {error}");
    }
    // Settings without effect are none.
    let mut changed = file(&LIBRARY, &LIBRARY["files"][0]);
    changed["model"]["dropout"] = json!(0.0);
    changed["model"]["end_of_word_suffix"] = json!("");
    assert!(Tokenizer::from_json(&changed.to_string()).is_ok());
}
