//! `dokja data` and `dokja tokenizer`: from files to documents to ids.

use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// The `[model]` of a recipe, as small as it may be with one layer of each kind.
pub(crate) const MODEL: &str = "[model]\nhidden_size = 16\nintermediate_size = 24\nnum_hidden_layers = 4\n\
    num_attention_heads = 4\nnum_key_value_heads = 2\nhead_dim = 4\nsliding_window = 8\n\
    num_experts = 4\nnum_experts_per_tok = 2\nmoe_intermediate_size = 8\n";

pub(crate) fn dokja(args: &[&str], stdin: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_dokja"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let bytes = stdin.to_vec();
    let writer = std::thread::spawn(move || {
        // A program that fails early does not read on.
        let _ = input.write_all(&bytes);
    });
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

pub(crate) fn ok(args: &[&str], stdin: &[u8]) -> String {
    let output = dokja(args, stdin);
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{args:?}: {err}");
    out
}

pub(crate) fn json(args: &[&str]) -> Value {
    let out = ok(&[args, &["--json"]].concat(), b"");
    assert_eq!(out.lines().count(), 1, "{out}");
    serde_json::from_str(&out).unwrap()
}

/// What a failing command says; it says it in one line.
pub(crate) fn fails(args: &[&str], stdin: &[u8]) -> String {
    let output = dokja(args, stdin);
    assert_eq!(output.status.code(), Some(1), "{args:?}");
    let err = text(&output.stderr);
    let errors = err.lines().filter(|line| line.starts_with("error: "));
    assert_eq!(errors.count(), 1, "{err}");
    err
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

pub(crate) fn shown(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A corpus of two files, one of them compressed, with a duplicate and a broken line.
fn corpus(dir: &Path) -> PathBuf {
    let corpus = dir.join("corpus");
    std::fs::create_dir_all(corpus.join("heldout")).unwrap();
    let mut lines: String = (0..300)
        .map(|i| {
            let text = format!("등대지기 {i}번은 밤마다 등대의 불을 켠다.\n다음 날 아침에 끈다.");
            format!(
                "{}\n",
                serde_json::json!({ "text": text, "source": "lamps" })
            )
        })
        .collect();
    lines.push_str("{\"text\": 5}\n");
    std::fs::write(corpus.join("ko.jsonl"), &lines).unwrap();
    let page =
        "# The pier\n\nThe old pier is *long*, and the lighthouse keeper lives at its end.\n";
    std::fs::write(corpus.join("pier.md"), page).unwrap();
    std::fs::write(corpus.join("pier copy.md"), page).unwrap();
    std::fs::write(corpus.join("heldout/x.txt"), page).unwrap();
    corpus
}

#[test]
fn data_is_built_inspected_and_guarded() {
    let dir = tempfile::tempdir().unwrap();
    let (corpus, out) = (corpus(dir.path()), dir.path().join("data"));
    let build = [
        "data",
        "build",
        "--out",
        shown(&out),
        "--corpus",
        shown(&corpus),
    ];
    let built = json(&build);
    assert_eq!(built["documents"], 302);
    assert_eq!(built["kept_documents"], 301);
    assert_eq!(built["dropped"]["duplicates"], 1);
    assert_eq!(built["dropped"]["skipped"]["counts"]["invalid_json"], 1);
    assert!(built["bytes"].as_u64() > built["kept_bytes"].as_u64());
    assert_eq!(built["manifest_sha256"].as_str().unwrap().len(), 64);

    let seen = json(&["data", "inspect", shown(&out), "--verify", "--samples", "1"]);
    assert_eq!(seen["kind"], "data");
    assert_eq!(seen["manifest_sha256"], built["manifest_sha256"]);
    assert_eq!(seen["languages"], built["languages"]);
    assert_eq!(
        seen["samples"]["en"][0].as_str().unwrap().lines().next(),
        Some("The pier")
    );
    let told = ok(&["data", "inspect", shown(&out)], b"");
    for expected in [
        "  read       302 documents",
        "  dropped    1 duplicates",
        "1 unusable, the first",
        "ko.jsonl line 301",
        "  language  ",
        "  lamps  ",
    ] {
        assert!(told.contains(expected), "{expected}\n{told}");
    }

    let again = fails(&build, b"");
    assert!(again.contains("never overwritten"), "{again}");
    let shard = out.join("train-00000.jsonl.zst");
    let mut bytes = std::fs::read(&shard).unwrap();
    bytes[20] ^= 1;
    std::fs::write(&shard, bytes).unwrap();
    let changed = fails(&["data", "inspect", shown(&out), "--verify"], b"");
    assert!(
        changed.contains("train-00000.jsonl.zst has SHA-256"),
        "{changed}"
    );
}

#[test]
fn a_build_that_cannot_be_done_says_why_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("data");
    let build = |path: &str| {
        fails(
            &["data", "build", "--out", shown(&out), "--corpus", path],
            b"",
        )
    };
    assert!(build("/no/such/corpus").contains("/no/such/corpus"));
    let odd = dir.path().join("a.docx");
    std::fs::write(&odd, "x").unwrap();
    assert!(build(shown(&odd)).contains("give .txt, .md, .html, .jsonl or .parquet"));
    let cut = dir.path().join("a.jsonl.zst");
    std::fs::write(&cut, [0x28, 0xb5, 0x2f, 0xfd, 0, 0]).unwrap();
    assert!(build(shown(&cut)).contains("a.jsonl.zst cannot be read on"));
    for wrong in [
        vec!["data", "build", "--out", shown(&out)],
        vec![
            "data",
            "build",
            "--out",
            shown(&out),
            "--corpus",
            "x",
            "--seed",
            "3",
        ],
        vec!["data"],
        vec!["tokenizer"],
        vec!["audit"],
    ] {
        assert_eq!(dokja(&wrong, b"").status.code(), Some(2), "{wrong:?}");
    }
    let mut names: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["a.docx", "a.jsonl.zst"]);
}

#[test]
fn an_interrupted_build_exits_with_130_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("data");
    let mut child = Command::new(env!("CARGO_BIN_EXE_dokja"))
        .args(["data", "build", "--out", shown(&out), "--builtin"])
        .args(["--builtin-bytes", "100000000000"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().starts_with("reading: "));
    let pid = child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-INT", &pid])
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let rest: Vec<String> = lines.map(Result::unwrap).collect();
    assert!(
        rest.contains(&"error: interrupted; nothing was written".to_owned()),
        "{rest:?}"
    );
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_tokenizer_is_trained_and_takes_text_to_ids_and_back() {
    let dir = tempfile::tempdir().unwrap();
    let (data, file) = (dir.path().join("data"), dir.path().join("tokenizer.json"));
    let corpus = corpus(dir.path());
    ok(
        &[
            "data",
            "build",
            "--out",
            shown(&data),
            "--corpus",
            shown(&corpus),
        ],
        b"",
    );
    let (data, file) = (shown(&data), shown(&file));
    let train = [
        "tokenizer",
        "train",
        "--data",
        data,
        "--vocab-size",
        "320",
        "--out",
        file,
    ];
    let made = json(&train);
    assert_eq!(made["vocab_size"], 320);
    assert!(made["bytes_per_token"].as_f64().unwrap() > 2.0);
    assert!(made["seconds"].as_f64().unwrap() > 0.0);

    let input = "등대의 불\n\n<|user|> don't\r\n끝";
    let ids = ok(&["tokenizer", "encode", file], input.as_bytes());
    let rows: Vec<Vec<u32>> = ids
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    assert_eq!(rows.len(), 4);
    assert!(rows[0].len() < 13 && rows[1].is_empty() && rows[2][0] == 5);
    let back = ok(&["tokenizer", "decode", file], ids.as_bytes());
    assert_eq!(back, format!("{input}\n"));
    let without = ok(
        &["tokenizer", "decode", file, "--skip-special"],
        ids.as_bytes(),
    );
    assert!(without.contains("\n don't"));

    // A directory stands for the tokenizer in it; a file for stdin; strings for lines.
    let path = dir.path().join("input.txt");
    std::fs::write(&path, input).unwrap();
    let from_file = [
        "tokenizer",
        "encode",
        shown(dir.path()),
        "--file",
        shown(&path),
    ];
    assert_eq!(ok(&from_file, b""), ids);
    let ordinary = ok(&["tokenizer", "encode", file, "--ordinary"], b"<|user|>");
    assert!(serde_json::from_str::<Vec<u32>>(&ordinary).unwrap().len() > 1);
    let strings = b"\"two\\nlines\"\n\"\\u0000\"\n";
    let ids = ok(&["tokenizer", "encode", file, "--json-strings"], strings);
    let back = ok(&["tokenizer", "decode", file, "--json"], ids.as_bytes());
    assert_eq!(back.as_bytes(), strings);

    let small = [
        "tokenizer",
        "train",
        "--data",
        data,
        "--vocab-size",
        "9",
        "--out",
        file,
    ];
    assert!(fails(&small, b"").contains("must be from 268"));
    let elsewhere = [
        "tokenizer",
        "train",
        "--data",
        "/no/data",
        "--vocab-size",
        "300",
        "--out",
        file,
    ];
    assert!(fails(&elsewhere, b"").contains("build one with `dokja data build`"));
    let encode = ["tokenizer", "encode", file];
    assert!(
        fails(&encode, b"fine\n\xff\xfe\n").contains("stdin line 2 is not UTF-8 from byte 0 on")
    );
    let decode = ["tokenizer", "decode", file];
    assert!(fails(&decode, b"[1]\n[99999]\n").contains("stdin line 2 has the id 99999"));
    assert!(fails(&decode, b"one\n").contains("stdin line 1 is no JSON array of token ids"));
    assert!(fails(&["tokenizer", "encode", "/no/file"], b"").contains("/no/file"));
}

#[test]
fn training_a_tokenizer_on_a_damaged_shard_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (data, file) = (dir.path().join("data"), dir.path().join("tokenizer.json"));
    let corpus = corpus(dir.path());
    ok(
        &[
            "data",
            "build",
            "--out",
            shown(&data),
            "--corpus",
            shown(&corpus),
        ],
        b"",
    );
    let shard = data.join("train-00000.jsonl.zst");
    let bytes = std::fs::read(&shard).unwrap();
    std::fs::write(&shard, &bytes[..bytes.len() / 2]).unwrap();
    let train = [
        "tokenizer",
        "train",
        "--data",
        shown(&data),
        "--vocab-size",
        "300",
    ];
    let told = fails(&[&train[..], &["--out", shown(&file)]].concat(), b"");
    assert!(told.contains("train-00000.jsonl.zst line"), "{told}");
    assert!(!file.exists());
}

#[test]
fn every_help_text_has_an_example() {
    for command in [
        vec!["data", "build"],
        vec!["data", "inspect"],
        vec!["tokenizer", "train"],
        vec!["tokenizer", "encode"],
        vec!["tokenizer", "decode"],
        vec!["audit", "verify"],
        vec!["audit", "report"],
    ] {
        let help = ok(&[&command[..], &["--help"]].concat(), b"");
        let example = format!("dokja {}", command.join(" "));
        let (_, examples) = help.split_once("Example").unwrap();
        assert!(
            examples.contains(&example) || help.contains(&example),
            "{help}"
        );
    }
}
