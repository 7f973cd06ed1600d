//! What the program says about the machine.

use crate::dokja;
use crate::text::{MODEL, json, ok};
use serde_json::Value;

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
        text.contains("convolution") && text.contains("rms_norm"),
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
