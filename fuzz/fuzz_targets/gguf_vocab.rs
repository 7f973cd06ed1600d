//! The vocabulary of a GGUF file of any bytes is refused in one error, or it encodes texts into ids that it
//! has, text from outside into no added token, and what it writes of itself is read as a vocabulary that
//! encodes the same.

#![no_main]

use formats::gguf::{Array, Gguf, Strings, Value, write_gguf};
use libfuzzer_sys::fuzz_target;
use std::path::Path;
use tokenizer::{AddedToken, GgufData, GgufVocab, Tokenizer, Trainer};

/// Patterns are compiled into automata, whose sizes have limits of their own; texts of ids go up to the
/// largest vocabulary.
const BASE_BYTES: usize = 128 << 20;

/// Texts that cut, fold, join or spell tokens.
const TEXTS: [&str; 4] = [
    "",
    "the sea, the sea  12345\n\n it's \u{D55C}\u{AD6D}!? <s>[BOS]<|user|><0x0A>",
    "e\u{301}\u{1112}\u{1161}\u{11AB} \u{FB01} \u{2581}\u{2581}\u{A0}\u{3000}\u{10FFFF}\u{0}",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab a a a a a a a a",
];

fuzz_target!(init: dokja_fuzz::plant(&seeds()), |bytes: &[u8]| {
    dokja_fuzz::budget::within(BASE_BYTES, bytes.len(), || read(bytes));
});

fn read(bytes: &[u8]) {
    let Ok(file) = Gguf::from_bytes(Path::new("fuzzed"), bytes) else {
        return;
    };
    let Some(tokenizer) = vocabulary(&file) else {
        return;
    };
    // A vocabulary that no file can hold says so.
    let data = tokenizer.gguf_vocab().ok();
    let again = data.map(|data| Tokenizer::from_gguf(&data.vocab()).expect("what it wrote itself"));
    for text in TEXTS {
        let ids = tokenizer.encode(text);
        assert!(ids.iter().all(|id| (*id as usize) < tokenizer.vocab_size()));
        if let Some(again) = &again {
            assert_eq!(again.encode(text), ids);
        }
        let _ = (tokenizer.decode(&ids, false), tokenizer.decode(&ids, true));
        let _ = tokenizer.encode_with_special_tokens(text);
        let ordinary = tokenizer.encode_ordinary(text);
        // A byte of a text has no other token than its own, whatever a file says of that.
        let is_byte = |id: u32| {
            let token = tokenizer.token_bytes(id).unwrap_or_default();
            String::from_utf8_lossy(token).chars().count() <= 1
        };
        let is_own =
            |id: &u32| tokenizer.is_added(*id) && !tokenizer.is_unknown(*id) && !is_byte(*id);
        assert!(!ordinary.iter().any(is_own), "text makes no added token");
    }
}

/// What the keys of a file say, as the product reads them.
fn vocabulary(file: &Gguf) -> Option<Tokenizer> {
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let id = |name: &str| Some(u32::try_from(file.u64(&key(name)).ok()?).unwrap_or(u32::MAX));
    let list = |name: &str| -> Vec<&str> {
        let strings = file.strings(&key(name));
        strings.map_or(Vec::new(), |strings| strings.iter().collect())
    };
    let (tokens, merges) = (list("tokens"), list("merges"));
    let token_types = file.i32s(&key("token_type")).ok();
    let vocab = GgufVocab {
        model: file.str(&key("model")).ok()?,
        pre: file.str(&key("pre")).ok(),
        tokens: &tokens,
        token_types: token_types.as_deref(),
        scores: file.f32s(&key("scores")).ok(),
        merges: &merges,
        bos: id("bos_token_id"),
        eos: id("eos_token_id"),
        unk: id("unknown_token_id"),
        pad: id("padding_token_id"),
        add_bos: file.bool(&key("add_bos_token")).ok(),
        add_eos: file.bool(&key("add_eos_token")).ok(),
        add_space_prefix: file.bool(&key("add_space_prefix")).ok(),
    };
    Tokenizer::from_gguf(&vocab).ok()
}

/// A trained vocabulary under every name of a pattern, and small ones with scores.
fn seeds() -> Vec<Vec<u8>> {
    let trainer = Trainer {
        vocab_size: 300,
        special_tokens: Some(["[BOS]", "<|user|>"].map(AddedToken::new).into()),
        ..Trainer::default()
    };
    let trained = trainer.train(["the sea, the sea"], &mut |_| {});
    let trained = trained.expect("a tokenizer").gguf_vocab();
    let trained = trained.expect("a vocabulary with merges");
    let of_pre = |pre: &'static str| GgufData {
        pre: Some(pre),
        bos: Some(0),
        ..trained.clone()
    };
    let names = [
        "exaone-moe",
        "exaone4",
        "gpt-2",
        "llama-bpe",
        "qwen2",
        "default",
    ];
    let mut all: Vec<GgufData> = names.map(of_pre).into();

    let bytes = (0..=255).map(|byte| format!("<0x{byte:02X}>"));
    let words = [
        "<unk>",
        "<s>",
        "</s>",
        "\u{2581}",
        "\u{2581}the",
        "t",
        "h",
        "e",
        "th",
        "he",
    ];
    let tokens: Vec<String> = words.map(str::to_string).into_iter().chain(bytes).collect();
    for add_space_prefix in [None, Some(false)] {
        let types = (0..tokens.len()).map(|id| match id {
            0 => 2,
            1 | 2 => 3,
            _ if id < words.len() => 1,
            _ => 6,
        });
        all.push(GgufData {
            model: "llama",
            tokens: tokens.clone(),
            token_types: types.collect(),
            scores: Some((0..tokens.len()).map(|id| -(id as f32)).collect()),
            bos: Some(1),
            eos: Some(2),
            unk: Some(0),
            add_space_prefix,
            ..GgufData::default()
        });
    }
    all.iter().map(file_of).collect()
}

fn file_of(data: &GgufData) -> Vec<u8> {
    let strings = |list: &[String]| {
        let list: Strings = list.iter().map(String::as_str).collect();
        Value::Array(Array::String(list))
    };
    let mut metadata = vec![
        ("model", Value::String(data.model.into())),
        ("tokens", strings(&data.tokens)),
        (
            "token_type",
            Value::Array(Array::I32(data.token_types.clone())),
        ),
        ("merges", strings(&data.merges)),
        ("add_bos_token", Value::Bool(data.bos.is_some())),
    ];
    metadata.extend(data.pre.map(|pre| ("pre", Value::String(pre.into()))));
    let scores = data.scores.clone();
    metadata.extend(scores.map(|scores| ("scores", Value::Array(Array::F32(scores)))));
    for (key, id) in [
        ("bos_token_id", data.bos),
        ("eos_token_id", data.eos),
        ("unknown_token_id", data.unk),
    ] {
        metadata.extend(id.map(|id| (key, Value::U32(id))));
    }
    let prefix = data.add_space_prefix;
    metadata.extend(prefix.map(|prefix| ("add_space_prefix", Value::Bool(prefix))));
    let metadata: Vec<(String, Value)> = metadata
        .into_iter()
        .map(|(key, value)| (format!("tokenizer.ggml.{key}"), value))
        .collect();
    let dir = tempfile::tempdir().expect("a scratch folder");
    let path = dir.path().join("seed");
    write_gguf(&path, &metadata, &[]).expect("a valid file");
    std::fs::read(path).expect("the file just written")
}
