//! What the program says about the machine.

use crate::dokja;
use crate::speak::checkpoint;
use crate::text::{MODEL, fails, json, ok, shown};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

#[test]
fn doctor_names_what_will_be_used_and_its_limits() {
    let output = dokja(
        &["doctor", "--json"],
        &[("DOKJA_ISA", "portable"), ("DOKJA_THREADS", "2")],
    );
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (told["isa"].as_str(), told["threads"].as_u64()),
        (Some("portable"), Some(2))
    );
    for key in [
        "peak_gflops_f32",
        "peak_gflops_bf16",
        "peak_gops_int8",
        "read_gb_per_sec",
        "copy_gb_per_sec",
    ] {
        assert!(told[key].as_f64().is_some_and(|x| x > 0.0), "{key}: {told}");
    }
}

#[test]
fn bench_kernels_prints_an_object_for_each_op_and_size() {
    let args = [
        "bench",
        "kernels",
        "--op",
        "elementwise.add",
        "--op",
        "gemm.matmul_tn",
        "--seconds",
        "0",
        "--json",
    ];
    let text = ok(&args, b"");
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let of = |op: &str| lines.iter().filter(|line| line["op"] == op).count();
    assert!(
        of("elementwise.add") >= 1 && of("gemm.matmul_tn") >= 2,
        "{text}"
    );
    for line in &lines {
        assert!(
            line["dims"]
                .as_object()
                .is_some_and(|dims| !dims.is_empty()),
            "{line}"
        );
        assert!(line["dtype"] == "f32" || line["dtype"] == "bf16", "{line}");
        assert!(
            line["unit"] == "gflops" || line["unit"] == "gb_per_sec",
            "{line}"
        );
        assert!(
            line["isa"].is_string() && line["value"].as_f64().is_some_and(|x| x > 0.0),
            "{line}"
        );
        assert!(
            line["fraction_of_peak"].as_f64().is_some_and(|x| x > 0.0),
            "{line}"
        );
    }
}

#[test]
fn an_op_that_is_not_there_is_told_with_those_that_are() {
    let output = dokja(&["bench", "kernels", "--op", "convolution"], &[]);
    let text = String::from_utf8_lossy(&output.stderr).to_string();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text.contains("convolution") && text.contains("gemm.matmul_tn, "),
        "{text}"
    );
}

#[test]
fn bench_train_needs_no_data() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = dir.path().join("recipe.toml");
    let train = "[train]\nseq_len = 16\nrows_per_step = 4\nrows_per_micro_step = 2\n";
    std::fs::write(&recipe, format!("{MODEL}{train}")).unwrap();
    let recipe = recipe.to_str().unwrap();
    let args = [
        "bench",
        "train",
        recipe,
        "--vocab-size",
        "40",
        "--steps",
        "2",
    ];
    let told = json(&args);
    assert_eq!(
        (&told["tokens_per_step"], &told["steps"]),
        (&64.into(), &2.into())
    );
    for key in ["tokens_per_sec", "mfu", "flops_per_token", "parameters"] {
        assert!(told[key].as_f64().is_some_and(|x| x > 0.0), "{key}: {told}");
    }
}

/// A server of a small model, ended with the test.
struct Served {
    child: Child,
    url: String,
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn serve(model: &str) -> Served {
    let mut child = Command::new(env!("CARGO_BIN_EXE_dokja"))
        .args(["serve", model, "--port", "0", "--name", "small"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let url = line
        .split_whitespace()
        .find(|word| word.starts_with("http"));
    let url = url.unwrap_or_default().to_owned();
    Served { child, url }
}

#[test]
fn bench_serve_counts_every_token_of_every_answer() {
    let dir = tempfile::tempdir().unwrap();
    checkpoint(dir.path(), 64);
    let server = serve(shown(dir.path()));
    let args = [
        "bench",
        "serve",
        &server.url,
        "--num-prompts",
        "5",
        "--max-concurrency",
        "2",
        "--request-rate",
        "1000",
        "--random-input-len",
        "7",
        "--random-output-len",
        "9",
        "--vocab-size",
        "300",
        "--ignore-eos",
    ];
    let told = json(&args);
    let counts = (&told["errors"], &told["answers"], &told["output_tokens"]);
    assert_eq!(counts, (&0.into(), &5.into(), &45.into()), "{told}");
    assert_eq!(told["model"], "small");
    for key in ["tokens_per_sec", "ttft_ms_p50", "ttft_ms_p99", "itl_ms_p50"] {
        assert!(told[key].as_f64().is_some_and(|x| x > 0.0), "{key}: {told}");
    }
    assert!(told["itl_ms_p99"].as_f64() >= told["itl_ms_p50"].as_f64());
    // More than the model's context holds: the server says so, for each of them.
    let too_long = [&args[..9], &args[11..], &["--random-input-len", "65"]].concat();
    let failed = fails(&too_long, b"");
    assert!(failed.contains("5 of 5 requests failed"), "{failed}");
    assert!(failed.contains("400") && failed.contains("no request was answered"));
}

#[test]
fn bench_serve_goes_on_when_some_requests_fail() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    let whole = "data: {\"choices\": [{\"text\": \"a\"}]}\n\ndata: [DONE]\n\n";
    let replies = [
        ("200 OK", whole),
        ("500 Oops", "broken"),
        ("200 OK", "data: [1\n\n"),
    ];
    std::thread::spawn(move || {
        for (status, body) in replies {
            let (mut stream, _) = listener.accept().unwrap();
            let (mut reader, mut length) = (BufReader::new(stream.try_clone().unwrap()), 0);
            loop {
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                if let Some(n) = line.to_lowercase().strip_prefix("content-length:") {
                    length = n.trim().parse().unwrap();
                }
                if line.trim().is_empty() {
                    break;
                }
            }
            reader.read_exact(&mut vec![0; length]).unwrap();
            let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n", body.len());
            write!(stream, "{head}connection: close\r\n\r\n{body}").unwrap();
        }
    });
    let told = json(&[
        "bench",
        "serve",
        &url,
        "--model",
        "any",
        "--num-prompts",
        "3",
        "--max-concurrency",
        "1",
    ]);
    assert_eq!((&told["errors"], &told["answers"]), (&2.into(), &1.into()));
    assert_eq!(
        (&told["output_tokens"], &told["itl_ms_p50"]),
        (&1.into(), &Value::Null)
    );
}

#[test]
fn bench_tokenize_counts_bytes_and_tokens() {
    let dir = tempfile::tempdir().unwrap();
    checkpoint(dir.path(), 64);
    let file = dir.path().join("text.txt");
    let text = "the sea, the sea\n\nand the lighthouse";
    std::fs::write(&file, text).unwrap();
    let told = json(&["bench", "tokenize", shown(dir.path()), shown(&file)]);
    assert_eq!(told["bytes"], text.len());
    let tokens = told["tokens"].as_f64().unwrap();
    assert_eq!(
        told["bytes_per_token"].as_f64().unwrap(),
        text.len() as f64 / tokens
    );
    assert!(tokens < text.len() as f64 && told["mb_per_sec"].as_f64().unwrap() > 0.0);
    std::fs::write(&file, "").unwrap();
    let args = ["bench", "tokenize", shown(dir.path()), shown(&file)];
    assert!(fails(&args, b"").contains("is empty"));
}

#[test]
fn a_run_on_a_cluster_that_is_not_here_is_planned() {
    let recipes = concat!(env!("CARGO_MANIFEST_DIR"), "/../../recipes/k-exaone/");
    let (recipe, cluster) = (
        format!("{recipes}pretrain.toml"),
        format!("{recipes}cluster.toml"),
    );
    let args = ["plan", &recipe, "--cluster", &cluster];
    let plan = json(&args);
    // 236 B parameters and a prediction layer; 11 T tokens.
    assert!(
        (plan["parameters"].as_f64().unwrap() / 236e9 - 1.0).abs() < 0.01,
        "{plan:#}"
    );
    assert!((plan["tokens"].as_f64().unwrap() / 11e12 - 1.0).abs() < 0.001);
    let (seconds, mfu) = (
        plan["seconds"].as_f64().unwrap(),
        plan["mfu"].as_f64().unwrap(),
    );
    // 6 operations for each active parameter and token, as published: 1.52e24, and attention.
    let operations = seconds * mfu * 512.0 * 2250e12;
    assert!(
        (1.0..1.2).contains(&(operations / 1.52e24)),
        "{operations:e}"
    );
    assert!(plan["bytes_per_device"].as_f64().unwrap() < 180e9);
    assert!(ok(&args, b"").starts_with("planned, not measured: "));
    let told = fails(
        &[&args[..], &["--set", "train.rows_per_step=1"]].concat(),
        b"",
    );
    assert!(
        told.contains("1 rows a step (train.rows_per_step) cannot be cut"),
        "{told}"
    );
}
