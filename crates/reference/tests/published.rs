//! The reference against an implementation that is not ours.

#![expect(
    clippy::print_stdout,
    reason = "a failed test is told by its panic, a skipped one by a line"
)]

use dokja_reference::loss::Objective;
use dokja_reference::model::{Output, forward, forward_backward};
use testkit::compare::{Tolerance, close};
use testkit::fixture::{GRADIENTS, LOGITS, LOSSES, Published};
use testkit::tiny_model::{reference_config, reference_tensors};

/// The published gradients are those of the next-token loss alone.
const OBJECTIVE: Objective = Objective {
    mtp_weight: 0.0,
    balance_alpha: 0.0,
};

fn check(case: &str) {
    let published = match Published::open(case) {
        Ok(published) => published,
        Err(skipped) => return println!("{skipped}"),
    };
    let cfg = reference_config(&published.config);
    let weights = reference_tensors(&published.layout, &published.params);
    let names = published.layout.tensors.iter().map(|t| &t.name);
    let has_gradients = |name: &&String| published.floats(&format!("grad.{name}")).is_some();
    let differentiated: Vec<&String> = names.filter(has_gradients).collect();
    let batch = &published.sequences;
    let output = if differentiated.is_empty() {
        forward(&cfg, &weights, batch, &OBJECTIVE)
    } else {
        let (output, grads) = forward_backward(&cfg, &weights, batch, &OBJECTIVE);
        for &name in &differentiated {
            let expected = published
                .floats(&format!("grad.{name}"))
                .unwrap_or_default();
            expect(
                &format!("{case}: gradient of {name}"),
                &grads[name].data,
                &expected,
                Tolerance::Nmse(GRADIENTS),
            );
        }
        output
    };
    let of = |part: fn(&Output) -> Vec<f64>| part(&output);
    let next = of(|o| o.sequences.iter().flat_map(|s| s.logits.clone()).collect());
    let second = of(|o| {
        o.sequences
            .iter()
            .flat_map(|s| s.mtp_logits.clone())
            .collect()
    });
    let losses = output.losses;
    let mut parts = vec![
        ("logits", next, LOGITS),
        ("loss", vec![losses.next_token], LOSSES),
    ];
    if cfg.num_nextn_predict_layers == 1 {
        parts.push(("mtp_logits", second, LOGITS));
        parts.push(("mtp_loss", vec![losses.mtp], LOSSES));
    }
    for (name, got, bound) in parts {
        let expected = published
            .floats(name)
            .unwrap_or_else(|| panic!("{case}: no {name}"));
        expect(
            &format!("{case}: {name}"),
            &got,
            &expected,
            Tolerance::MaxAbs(bound),
        );
    }
    let sparse: Vec<usize> = output.sequences[0].router_ids.keys().copied().collect();
    for layer in sparse {
        let ids = output
            .sequences
            .iter()
            .flat_map(|s| s.router_ids[&layer].clone());
        if let Err(difference) = published.same_experts(layer, &ids.collect::<Vec<_>>()) {
            panic!("{case}: {difference}");
        }
    }
    println!("{case}: {} gradients", differentiated.len());
}

#[track_caller]
fn expect(what: &str, got: &[f64], expected: &[f64], tolerance: Tolerance) {
    match close(got, expected, tolerance) {
        Ok(error) => println!("{what}: {error:e}"),
        Err(mismatch) => panic!("{what}: {mismatch}"),
    }
}

#[test]
fn exaone_moe_is_computed_as_published() {
    check("exaone_moe");
}

#[test]
fn sizes_that_differ_from_one_another_are_computed_as_published() {
    check("exaone_moe_top4of16");
}

#[test]
fn widths_of_256_are_computed_as_published() {
    check("exaone_moe_256");
}

#[test]
fn exaone4_with_windows_is_computed_as_published() {
    check("exaone4_hybrid");
}

#[test]
fn exaone4_without_windows_is_computed_as_published() {
    check("exaone4_global");
}

#[test]
fn llama_is_computed_as_published() {
    check("llama");
}
