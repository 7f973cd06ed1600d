//! `generate` and `chat`, over a small model with weights from a seed and a tokenizer of its own.

use crate::dokja;
use formats::safetensors::{TensorData, TensorSource, write_safetensors};
use model::transformer::{Batch, Transformer};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

const VOCAB: usize = 300;

/// A checkpoint directory with a tokenizer; returns the weights too. Its model never ends an answer.
pub(crate) fn checkpoint(dir: &Path, positions: usize) -> (model::ModelConfig, Vec<f32>) {
    let config = model::ModelConfig::from_json(&format!(
        r#"{{"model_type": "exaone_moe", "vocab_size": {VOCAB}, "hidden_size": 16,
        "intermediate_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 8, "sliding_window": 20, "num_experts": 4,
        "num_experts_per_tok": 2, "moe_intermediate_size": 8, "num_nextn_predict_layers": 1,
        "initializer_range": 0.3, "max_position_embeddings": {positions}}}"#
    ))
    .unwrap();
    let layout = model::Layout::new(&config);
    let trainer = tokenizer::Trainer {
        vocab_size: VOCAB,
        ..tokenizer::Trainer::default()
    };
    let tokenizer = trainer
        .train(["the sea, the sea, the sea"], &mut |_| {})
        .unwrap();
    tokenizer.save(dir.join("tokenizer.json")).unwrap();
    let mut weights = model::init::initial_weights(&config, &layout, 7);
    // An answer does not end by itself: a logit of zero is never the largest of three hundred.
    let specials = tokenizer.specials().unwrap();
    for id in [specials.eos, specials.endofturn] {
        let row = layout.lm_head.range().start + id as usize * config.hidden_size;
        weights[row..row + config.hidden_size].fill(0.0);
    }
    let tensors: Vec<TensorSource> = layout
        .tensors
        .iter()
        .map(|t| TensorSource {
            name: &t.name,
            shape: &t.shape,
            data: TensorData::F32(&weights[t.span.range()]),
        })
        .collect();
    std::fs::write(dir.join("config.json"), config.to_json().to_string()).unwrap();
    write_safetensors(&dir.join("model.safetensors"), &tensors, &BTreeMap::new()).unwrap();
    (config, weights)
}

fn json(output: &Output) -> Value {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The likeliest continuation, by training's forward pass over the whole text for every token.
fn likeliest(config: &model::ModelConfig, weights: &[f32], prompt: &[u32], n: usize) -> Vec<u32> {
    let device = tensor::Device::cpu(kernels_cpu::Isa::detect(), 1);
    let mut model = Transformer::new(&device, config.clone(), weights, false);
    let mut ids = prompt.to_vec();
    for _ in 0..n {
        let batch = Batch::from_sequences(&[ids.clone()]);
        let mut state = model.train_state(&device, ids.len());
        let (logits, ..) = model.logits(&device, &mut state, &batch);
        let last = &logits.host()[(ids.len() - 1) * VOCAB..];
        let best = (0..VOCAB).fold(0, |a, b| if last[b] > last[a] { b } else { a });
        ids.push(best as u32);
    }
    ids.split_off(prompt.len())
}

#[test]
fn generate_takes_the_likeliest_tokens_on_any_number_of_threads() {
    let dir = tempfile::tempdir().unwrap();
    let (config, weights) = checkpoint(dir.path(), 512);
    let model = dir.path().to_str().unwrap();
    let expected = likeliest(&config, &weights, &[17, 200, 31], 40);
    for (threads, mtp) in [
        ("1", &["--no-mtp"][..]),
        ("3", &["--no-mtp"]),
        ("3", &[]),
        ("1", &["--num-speculative-tokens", "5"]),
    ] {
        let args = [
            "generate",
            model,
            "--ids",
            "17,200,31",
            "--max-tokens",
            "40",
            "--json",
        ];
        let args = [&args[..], &["--ignore-eos"], mtp].concat();
        let result = json(&dokja(&args, &[("DOKJA_THREADS", threads)]));
        assert_eq!(result["ids"], serde_json::json!(expected));
        assert_eq!(result["finish_reason"], "length");
        let count = |key: &str| result[key].as_u64().unwrap();
        let (accepted, proposed) = (count("draft_accepted"), count("draft_proposed"));
        let guesses = mtp != ["--no-mtp"];
        assert_eq!(proposed > 0, guesses);
        assert!(accepted <= proposed);
    }
}

#[test]
fn generate_ends_before_the_token_that_ends_texts() {
    let dir = tempfile::tempdir().unwrap();
    let (config, weights) = checkpoint(dir.path(), 512);
    let model = dir.path().to_str().unwrap();
    let all = likeliest(&config, &weights, &[40, 41], 20);
    let end = all[7];
    let before = all.iter().position(|&id| id == end).unwrap();
    let eos = format!(r#"{{"eos_token_id": [299, {end}]}}"#);
    std::fs::write(dir.path().join("generation_config.json"), eos).unwrap();
    let args = [
        "generate",
        model,
        "--ids",
        "40,41",
        "--max-tokens",
        "20",
        "--json",
    ];
    let result = json(&dokja(&args, &[]));
    assert_eq!(result["finish_reason"], "stop");
    assert_eq!(result["ids"], serde_json::json!(all[..before]));
    let result = json(&dokja(&[&args[..], &["--ignore-eos"]].concat(), &[]));
    assert_eq!(result["ids"], serde_json::json!(all));
}

#[test]
fn generate_streams_the_text_that_json_reports_and_a_seed_repeats_it() {
    let dir = tempfile::tempdir().unwrap();
    checkpoint(dir.path(), 200);
    let model = dir.path().to_str().unwrap();
    let args = [
        "generate",
        model,
        "--prompt",
        "the sea",
        "--temperature",
        "1",
        "--seed",
    ];
    let run = |more: &[&str]| dokja(&[&args[..], more].concat(), &[]);
    let result = json(&run(&["5", "--json"]));
    let text = result["text"].as_str().unwrap();
    assert!(!text.is_empty());
    assert_eq!(result["seed"], 5);
    assert_eq!(
        String::from_utf8(run(&["5"]).stdout).unwrap(),
        format!("{text}\n")
    );
    assert_ne!(json(&run(&["6", "--json"]))["ids"], result["ids"]);
    // As a message the same prompt is another one.
    let chat = json(&run(&["5", "--json", "--chat"]));
    assert_ne!(chat["prompt_ids"], result["prompt_ids"]);
    // Without a bound, the context ends the answer.
    let result = json(&run(&["5", "--json", "--ignore-eos"]));
    let len = |key: &str| result[key].as_array().unwrap().len();
    assert_eq!(len("prompt_ids") + len("ids"), 200);
}

#[test]
fn generate_without_a_tokenizer_takes_and_gives_ids() {
    let dir = tempfile::tempdir().unwrap();
    checkpoint(dir.path(), 512);
    std::fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
    let model = dir.path().to_str().unwrap();
    let args = ["generate", model, "--ids", "1,2", "--max-tokens", "3"];
    let result = json(&dokja(&[&args[..], &["--json"]].concat(), &[]));
    let ids: Vec<String> = result["ids"]
        .as_array()
        .unwrap()
        .iter()
        .map(Value::to_string)
        .collect();
    let plain = dokja(&args, &[]);
    assert_eq!(
        String::from_utf8(plain.stdout).unwrap(),
        format!("{}\n", ids.join(","))
    );
    let output = dokja(&["generate", model, "--prompt", "a"], &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        errors(&output).contains("has no tokenizer.json"),
        "{}",
        errors(&output)
    );
}

#[test]
fn generate_names_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    checkpoint(dir.path(), 64);
    let model = dir.path().to_str().unwrap();
    for args in [
        &["generate", model][..],
        &["generate", model, "--prompt", "a", "--ids", "1"],
        &["generate", model, "--ids", "one"],
        &["generate", model, "--ids", "1", "--chat"],
    ] {
        assert_eq!(dokja(args, &[]).status.code(), Some(2), "{args:?}");
    }
    let long = "1,".repeat(99) + "1";
    for (args, said) in [
        (
            &["--ids", "300"][..],
            "token 300 at position 0 of the prompt is outside",
        ),
        (
            &["--ids", &long],
            "the prompt has 100 tokens, the model takes at most 63",
        ),
        (&["--prompt", ""], "the prompt is empty"),
        (
            &["--ids", "1", "--temperature", "900"],
            "temperature is 900, allowed is 0 to 100",
        ),
        (
            &["--ids", "1", "--top-p", "0"],
            "top_p is 0, allowed is above 0",
        ),
        (&["--ids", "1", "--max-tokens", "0"], "max_tokens is 0"),
    ] {
        let output = dokja(&[&["generate", model], args].concat(), &[]);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(errors(&output).contains(said), "{}", errors(&output));
        assert!(output.stdout.is_empty());
    }
    std::fs::write(
        dir.path().join("generation_config.json"),
        r#"{"eos_token_id": "two"}"#,
    )
    .unwrap();
    let output = dokja(&["generate", model, "--ids", "1"], &[]);
    assert!(
        errors(&output).contains("eos_token_id is \"two\""),
        "{}",
        errors(&output)
    );
}

fn start(args: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_dokja"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts")
}

fn interrupt(child: &Child) {
    let status = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(status.unwrap().success());
}

/// Writes lines, closes the input, waits.
fn chat(args: &[&str], lines: &str) -> Output {
    let mut child = start(args);
    child
        .stdin
        .take()
        .unwrap()
        .write_all(lines.as_bytes())
        .unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn ctrl_c_ends_generate_with_what_there_is() {
    let dir = tempfile::tempdir().unwrap();
    checkpoint(dir.path(), 1 << 20);
    let model = dir.path().to_str().unwrap();
    let args = [
        "generate",
        model,
        "--ids",
        "1",
        "--ignore-eos",
        "--max-tokens",
        "1000000",
    ];
    // Without a reader the pipe fills up: it cannot end before it is interrupted.
    let mut child = start(&args);
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    interrupt(&child);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert!(errors(&output).contains("error: interrupted; the answer is not complete"));
}

#[test]
fn chat_answers_every_line_of_a_pipe() {
    let dir = tempfile::tempdir().unwrap();
    checkpoint(dir.path(), 512);
    let model = dir.path().to_str().unwrap();
    let args = ["chat", model, "--max-tokens", "8", "--system", "Be brief."];
    let output = chat(
        &args,
        "the sea\n\n/help\n/unknown\nthe sea\n/new\nthe sea\n/quit\nunheard\n",
    );
    assert!(output.status.success(), "{}", errors(&output));
    let said = errors(&output);
    for expected in [
        "/new   begin a new conversation",
        "/unknown is no command",
        "a new conversation",
        "note: the answer was cut off after 8 tokens",
    ] {
        assert!(said.contains(expected), "{said}");
    }
    assert_eq!(said.matches("cut off").count(), 3, "{said}");
    // The same message begins the first conversation and the second.
    let again = chat(&args, "the sea\n");
    let (first, text) = (again.stdout, output.stdout);
    assert!(text.starts_with(&first) && text.ends_with(&first));
}

#[test]
fn chat_forgets_the_oldest_turns_when_the_context_is_full() {
    let dir = tempfile::tempdir().unwrap();
    checkpoint(dir.path(), 96);
    let model = dir.path().to_str().unwrap();
    let args = ["chat", model, "--max-tokens", "10"];
    let line = "the sea, the sea, xyz\n";
    let output = chat(&args, &(line.repeat(5) + &"xyz ".repeat(60) + "\n" + line));
    assert!(output.status.success(), "{}", errors(&output));
    let said = errors(&output);
    assert!(
        said.contains("has outgrown the context of 96 tokens; its oldest 2 messages"),
        "{said}"
    );
    assert!(
        said.contains("note: the message takes 2") && said.contains("shorten it"),
        "{said}"
    );
}

#[test]
fn ctrl_c_stops_an_answer_and_a_second_leaves() {
    let dir = tempfile::tempdir().unwrap();
    checkpoint(dir.path(), 1 << 20);
    let model = dir.path().to_str().unwrap();
    let args = ["chat", model, "--max-tokens", "1000000"];
    let mut child = start(&args);
    let mut input = child.stdin.take().unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap());
    input.write_all(b"the sea\n").unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    interrupt(&child);
    let mut line = String::new();
    while !line.contains("the answer was stopped") {
        line.clear();
        assert_ne!(said.read_line(&mut line).unwrap(), 0, "it goes on");
    }
    interrupt(&child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn chat_thinks_no_longer_than_it_may() {
    let dir = tempfile::tempdir().unwrap();
    checkpoint(dir.path(), 512);
    let model = dir.path().to_str().unwrap();
    let limited = |more: &[&str]| {
        let args = [
            "chat",
            model,
            "--max-tokens",
            "9",
            "--thinking-token-budget",
            "3",
        ];
        chat(&[&args[..], more].concat(), "the sea\n")
    };
    let output = limited(&["--think"]);
    assert!(output.status.success(), "{}", errors(&output));
    let answer = String::from_utf8_lossy(&output.stdout).into_owned();
    let (thought, said) = answer.split_once("</think>").expect("the end of thinking");
    assert!(!thought.is_empty() && !said.trim().is_empty(), "{answer:?}");
    let unlimited = ["chat", model, "--max-tokens", "9", "--think"];
    let unlimited = chat(&unlimited, "the sea\n");
    assert!(String::from_utf8_lossy(&unlimited.stdout).starts_with(thought));
    let refused = limited(&[]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(errors(&refused).contains("--think"), "{}", errors(&refused));
}

#[test]
fn chat_needs_the_special_tokens_of_its_format() {
    let dir = tempfile::tempdir().unwrap();
    checkpoint(dir.path(), 64);
    let path = dir.path().join("tokenizer.json");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("<|endofturn|>", "<|end_of_turn|>")).unwrap();
    let output = chat(&["chat", dir.path().to_str().unwrap()], "hello\n");
    assert_eq!(output.status.code(), Some(1));
    assert!(
        errors(&output).contains("this model cannot chat"),
        "{}",
        errors(&output)
    );
}
