//! Vocabularies read, written and read again; what contradicts itself or has no form in a file is told.

use super::*;
use crate::byte_alphabet::char_of_byte;
use crate::train::Trainer;
use proptest::prelude::*;

/// The 256 bytes, two control tokens before them, one token of two letters after.
fn gpt2_tokens() -> Vec<String> {
    let bytes = (0..=255).map(|byte| char_of_byte(byte).to_string());
    let first = ["<s>".to_owned(), "</s>".to_owned()];
    first
        .into_iter()
        .chain(bytes)
        .chain(["ab".to_owned()])
        .collect()
}

fn gpt2<'a>(pre: &'a str, tokens: &'a [String], merges: &'a [String]) -> GgufVocab<'a, String> {
    GgufVocab {
        model: "gpt2",
        pre: Some(pre),
        tokens,
        merges,
        bos: Some(0),
        eos: Some(1),
        ..GgufVocab::default()
    }
}

fn message(vocab: &GgufVocab<'_, String>) -> String {
    Tokenizer::from_gguf(vocab).unwrap_err().to_string()
}

#[test]
fn every_known_pattern_gives_a_tokenizer_and_finds_its_name_again() {
    let (tokens, merges) = (gpt2_tokens(), ["a b".to_owned()]);
    for pre in PRE_NAMES {
        let tokenizer = Tokenizer::from_gguf(&gpt2(pre, &tokens, &merges)).unwrap();
        let text = "ab  12345\n\n it's \u{D55C}\u{AD6D}!? <s>";
        let ids = tokenizer.encode_ordinary(text);
        assert_eq!(tokenizer.decode(&ids, false), text, "{pre}");
        assert!(ids.contains(&258) && !ids.contains(&0), "{pre}");
        assert!(tokenizer.encode(text).ends_with(&[0]));
        let data = tokenizer.gguf_vocab().unwrap();
        assert_eq!(data.pre, Some(pre));
        let again = Tokenizer::from_gguf(&data.vocab()).unwrap();
        assert_eq!(again.to_json(), tokenizer.to_json());
        assert_eq!(
            Tokenizer::from_json(&again.to_json()).unwrap().parts,
            again.parts
        );
        let with = tokenizer.encode_with_special_tokens("ab");
        let expected: &[u32] = if pre == "llama-bpe" {
            &[0, 258]
        } else {
            &[258]
        };
        assert_eq!(with, expected, "{pre}");
    }
}

#[test]
fn an_unknown_pattern_is_refused_with_the_names_of_the_known_ones() {
    let (tokens, merges) = (gpt2_tokens(), ["a b".to_owned()]);
    let error = message(&gpt2("poro", &tokens, &merges));
    assert!(
        error.contains("`tokenizer.ggml.pre` is \"poro\""),
        "{error}"
    );
    for name in PRE_NAMES {
        assert!(error.contains(name), "{name} in {error}");
    }
    let vocab = GgufVocab {
        pre: None,
        ..gpt2("", &tokens, &merges)
    };
    assert!(message(&vocab).contains("`tokenizer.ggml.pre` is missing"));
}

#[test]
fn lists_that_contradict_each_other_are_refused() {
    let (tokens, merges) = (gpt2_tokens(), ["a b".to_owned()]);
    let good = gpt2("gpt-2", &tokens, &merges);
    let types = [NORMAL; 3];
    let short = GgufVocab {
        token_types: Some(&types),
        ..good
    };
    assert!(message(&short).contains("`tokenizer.ggml.token_type` has 3 entries for 259 tokens"));
    let mut types = vec![NORMAL; tokens.len()];
    types[5] = 9;
    let odd = GgufVocab {
        token_types: Some(&types),
        ..good
    };
    assert!(message(&odd).contains("9 for"));
    let far = GgufVocab {
        bos: Some(1000),
        ..good
    };
    assert!(message(&far).contains("`tokenizer.ggml.bos_token_id` names the id 1000"));
    let kind = GgufVocab {
        model: "bert",
        ..good
    };
    assert!(message(&kind).contains("`tokenizer.ggml.model` is \"bert\""));
    let no_start = GgufVocab {
        add_bos: Some(true),
        bos: None,
        ..good
    };
    assert!(message(&no_start).contains("`tokenizer.ggml.add_bos_token` is true, and no id"));
    let bad = ["ab".to_owned()];
    assert!(message(&gpt2("gpt-2", &tokens, &bad)).contains("merge 0 is \"ab\""));
    let bad = ["a q".to_owned()];
    assert!(message(&gpt2("gpt-2", &tokens, &bad)).contains("needs the token \"aq\""));
    let mut twice = tokens.clone();
    twice.push("ab".to_owned());
    assert!(message(&gpt2("gpt-2", &twice, &merges)).contains("with ids 258 and 259"));
}

#[test]
fn a_trained_vocabulary_goes_through_gguf_unchanged() {
    let trainer = Trainer {
        vocab_size: 320,
        ..Trainer::default()
    };
    let text = "the lamp of the lighthouse, the lamp at night";
    let tokenizer = trainer.train([text.repeat(9)], &mut |_| {}).unwrap();
    let mut data = tokenizer.gguf_vocab().unwrap();
    assert_eq!((data.model, data.pre), ("gpt2", Some("exaone-moe")));
    assert_eq!(data.tokens.len(), tokenizer.vocab_size());
    data.pad_to(400);
    assert_eq!((data.tokens.len(), data.token_types[399]), (400, UNUSED));
    let again = Tokenizer::from_gguf(&data.vocab()).unwrap();
    assert_eq!(again.vocab_size(), tokenizer.vocab_size());
    let text = "<|user|>the lighthouse e\u{301}<|endofturn|>";
    assert_eq!(again.encode(text), tokenizer.encode(text));
    assert_eq!(again.parts.added, tokenizer.parts.added);
}

/// Unknown, start, end, a byte for each, then tokens with scores.
fn llama() -> (Vec<String>, Vec<f32>, Vec<i32>) {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).into();
    tokens.extend((0..=255_u8).map(crate::decode::token_of_byte));
    let scored = ["\u{2581}", "a", "b", "ab", "\u{2581}ab", "<tool>", "[gone]"];
    tokens.extend(scored.map(str::to_owned));
    let scores = (0..tokens.len()).map(|id| -(id as f32)).collect();
    let mut types = vec![UNKNOWN, CONTROL, CONTROL];
    types.resize(259, BYTE);
    types.resize(264, NORMAL);
    types.extend([USER_DEFINED, UNUSED]);
    (tokens, scores, types)
}

fn scored<'a>(tokens: &'a [String], scores: &'a [f32], types: &'a [i32]) -> GgufVocab<'a, String> {
    GgufVocab {
        model: "llama",
        tokens,
        scores: Some(scores),
        token_types: Some(types),
        ..GgufVocab::default()
    }
}

#[test]
fn a_sentencepiece_vocabulary_reads_writes_and_reads_again() {
    let (tokens, scores, types) = llama();
    let vocab = scored(&tokens, &scores, &types);
    let tokenizer = Tokenizer::from_gguf(&vocab).unwrap();
    assert_eq!(tokenizer.encode("ab"), [263]);
    assert_eq!(tokenizer.encode("ab ab\n"), [263, 263, 13]);
    assert_eq!(tokenizer.encode("<s>ab<tool>"), [1, 263, 264]);
    // Text from outside makes no token of a role and no byte.
    let ordinary = tokenizer.encode_ordinary("<s><tool><0x0A>");
    assert!(
        ordinary
            .iter()
            .all(|id| !tokenizer.is_added(*id) && *id != 13)
    );
    assert_eq!(tokenizer.encode_with_special_tokens("a"), [1, 259, 260]);
    assert_eq!(tokenizer.decode(&[1, 263, 259, 260], true), "ab a");
    assert_eq!(tokenizer.decode(&tokenizer.encode("  a b"), false), "  a b");
    assert_eq!(tokenizer.vocab_size(), 265);

    let data = tokenizer.gguf_vocab().unwrap();
    assert_eq!(data.token_types[..265], types[..265]);
    assert_eq!(data.scores.as_deref(), Some(&scores[..265]));
    let again = Tokenizer::from_gguf(&data.vocab()).unwrap();
    assert_eq!(again.parts, tokenizer.parts);
    let json = tokenizer.to_json();
    assert_eq!(Tokenizer::from_json(&json).unwrap().parts, tokenizer.parts);

    let no_prefix = GgufVocab {
        add_space_prefix: Some(false),
        add_bos: Some(false),
        add_eos: Some(true),
        ..vocab
    };
    let tokenizer = Tokenizer::from_gguf(&no_prefix).unwrap();
    assert_eq!(tokenizer.encode_with_special_tokens("ab"), [262, 2]);
    assert_eq!(tokenizer.decode(&[263], false), " ab");
}

#[test]
fn a_sentencepiece_vocabulary_that_leaves_text_unsaid_is_refused() {
    let (mut tokens, mut scores, mut types) = llama();
    let read = |tokens: &[String], scores: Option<&[f32]>, types: &[i32]| {
        let vocab = GgufVocab {
            scores,
            ..scored(tokens, &[], types)
        };
        Tokenizer::from_gguf(&vocab)
    };
    let error = |tokens: &[String], scores: Option<&[f32]>, types: &[i32]| {
        read(tokens, scores, types).unwrap_err().to_string()
    };
    assert!(error(&tokens, None, &types).contains("`tokenizer.ggml.scores` is missing"));
    scores[260] = f32::NAN;
    assert!(error(&tokens, Some(&scores), &types).contains("has the score NaN"));
    scores[260] = -1.0;
    tokens[3] = "zero".to_owned();
    assert!(error(&tokens, Some(&scores), &types).contains("6 (a byte) for \"zero\""));
    // A byte without a token is the unknown token, if there is one.
    types[3] = NORMAL;
    let tokenizer = read(&tokens, Some(&scores), &types).unwrap();
    assert_eq!(tokenizer.encode("\u{0}"), [259, 0]);
    types[0] = UNUSED;
    assert!(error(&tokens, Some(&scores), &types).contains("no token \"<0x00>\""));
}

#[test]
fn a_normal_token_that_stands_for_unknown_text_is_not_found_in_text_when_read_again() {
    let (tokens, scores, types) = llama();
    let vocab = GgufVocab {
        unk: Some(262), // "ab"
        ..scored(&tokens, &scores, &types)
    };
    let tokenizer = Tokenizer::from_gguf(&vocab).unwrap();
    assert_eq!(tokenizer.encode("ab"), [259, 260, 261]);
    let data = tokenizer.gguf_vocab().unwrap();
    let again = Tokenizer::from_gguf(&data.vocab()).unwrap();
    assert_eq!(again.encode("ab"), [259, 260, 261]);
    assert_eq!(again.parts, tokenizer.parts);
}

/// Pieces of each other, of spaces and of bytes, so that roles and types collide.
const WORDS: [&str; 14] = [
    "\u{2581}",
    "a",
    "b",
    "ab",
    "ba",
    "\u{2581}a",
    "a\u{2581}b",
    "\u{2581}\u{2581}",
    " ",
    " a",
    "<unk>",
    "<s>",
    "<0x61>",
    "<0x62>",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_096))]

    /// Whatever roles and types say of tokens, what is written of a vocabulary is read as the same one.
    #[test]
    fn any_sentencepiece_vocabulary_that_is_written_is_read_again(
        words in proptest::sample::subsequence(WORDS.to_vec(), 4..=WORDS.len()).prop_shuffle(),
        types in proptest::option::of(proptest::collection::vec(NORMAL..=BYTE, WORDS.len())),
        scores in proptest::collection::vec(-3..3_i8, WORDS.len()),
        roles in proptest::array::uniform3(proptest::option::of(0..4_u32)),
        add_space_prefix in proptest::option::of(proptest::bool::ANY),
        has_bytes in proptest::bool::ANY,
        text in "[ab \u{2581}]{0,8}",
    ) {
        let mut tokens: Vec<String> = words.iter().map(|word| word.to_string()).collect();
        let mut scores: Vec<f32> = scores[..tokens.len()].iter().map(|score| f32::from(*score)).collect();
        let mut types = types.map(|types| types[..tokens.len()].to_vec());
        let bytes = (0..=255_u8).map(crate::decode::token_of_byte);
        tokens.extend(bytes.filter(|byte| has_bytes && !words.contains(&&**byte)));
        scores.resize(tokens.len(), 0.0);
        if let Some(types) = &mut types {
            types.resize(tokens.len(), BYTE);
        }
        let vocab = GgufVocab {
            model: "llama",
            tokens: &tokens,
            token_types: types.as_deref(),
            scores: Some(&scores),
            unk: roles[0],
            bos: roles[1],
            eos: roles[2],
            add_bos: Some(roles[1].is_some()),
            add_space_prefix,
            ..GgufVocab::default()
        };
        let Ok(tokenizer) = Tokenizer::from_gguf(&vocab) else {
            return Ok(());
        };
        if let Ok(data) = tokenizer.gguf_vocab() {
            let again = Tokenizer::from_gguf(&data.vocab()).unwrap();
            prop_assert_eq!(again.encode(&text), tokenizer.encode(&text));
            prop_assert_eq!(again.parts, tokenizer.parts);
        }
    }
}

#[test]
fn what_a_gguf_file_cannot_say_is_told() {
    let (tokens, merges) = (gpt2_tokens(), ["a b".to_owned()]);
    let tokenizer = Tokenizer::from_gguf(&gpt2("gpt-2", &tokens, &merges)).unwrap();
    let json = tokenizer
        .to_json()
        .replacen("\"lstrip\": false", "\"lstrip\": true", 1);
    let error = Tokenizer::from_json(&json)
        .unwrap()
        .gguf_vocab()
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "added token \"<s>\" with lstrip, rstrip or single_word has no form in a GGUF file"
    );
}
