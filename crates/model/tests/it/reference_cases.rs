//! Cases computed by an implementation that is not ours: logits, losses, gradients, chosen experts.
//!
//! The folder is named by `DOKJA_REFERENCE_DIR`, by default `../shared/reference` beside the checkout;
//! its README states what each file holds and the bounds.

use dokja_model::transformer::{Batch, Objective, Transformer};
use dokja_model::{Layout, ModelConfig};
use kernels_cpu::Isa;
use numerics::{max_abs_diff, nmse};
use safetensors::SafeTensors;
use std::path::{Path, PathBuf};
use tensor::Device;

/// Logits: within this fraction of the largest logit.
const LOGITS: f64 = 2e-5;
/// Gradients: normalised mean-square error.
const GRADIENTS: f64 = 1e-9;

fn folder(case: &str) -> Option<PathBuf> {
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/reference");
    let root = std::env::var_os("DOKJA_REFERENCE_DIR").map_or(default, PathBuf::from);
    let folder = root.join(case);
    if folder.join("config.json").exists() {
        return Some(folder);
    }
    println!(
        "skipped {case}: no such case in {} (set DOKJA_REFERENCE_DIR)",
        root.display()
    );
    None
}

fn f32s(file: &SafeTensors, name: &str) -> Vec<f32> {
    let bytes = file
        .tensor(name)
        .unwrap_or_else(|_| panic!("{name} is in the file"));
    bytes
        .data()
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
        .collect()
}

fn i64s(file: &SafeTensors, name: &str) -> Vec<u32> {
    let bytes = file
        .tensor(name)
        .unwrap_or_else(|_| panic!("{name} is in the file"));
    let ids = bytes.data().chunks_exact(8);
    ids.map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32)
        .collect()
}

fn check(case: &str) {
    let Some(folder) = folder(case) else { return };
    let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
    let config = ModelConfig::from_json(&String::from_utf8(read("config.json")).unwrap()).unwrap();
    let (model_bytes, expected_bytes) = (read("model.safetensors"), read("expected.safetensors"));
    let weights = SafeTensors::deserialize(&model_bytes).unwrap();
    let expected = SafeTensors::deserialize(&expected_bytes).unwrap();
    let layout = Layout::new(&config);
    assert_eq!(
        layout.tensors.len(),
        weights.len(),
        "as many tensors as the file"
    );
    let mut params = vec![0.0; layout.len];
    for tensor in &layout.tensors {
        params[tensor.span.range()].copy_from_slice(&f32s(&weights, &tensor.name));
    }
    let ids = i64s(&expected, "ids");
    let len = expected.tensor("ids").unwrap().shape()[1];
    let sequences: Vec<Vec<u32>> = ids.chunks_exact(len).map(<[u32]>::to_vec).collect();
    let batch = Batch::from_sequences(&sequences);
    for isa in Isa::ALL {
        if !isa.is_available() {
            println!("skipped {case} on {}: not on this processor", isa.name());
            continue;
        }
        let device = Device::cpu(isa, 2);
        let mut model = Transformer::new(&device, config.clone(), &params, true);
        let mut state = model.train_state(&device, batch.ids.len());
        let (logits, mtp_logits, routing) = model.logits(&device, &mut state, &batch);
        close(
            &format!("{case} {} logits", isa.name()),
            logits.host(),
            &f32s(&expected, "logits"),
        );

        // The prediction layer has no row for the last token of a sequence.
        let v = config.vocab_size;
        let mtp: Vec<f32> = mtp_logits
            .map(|m| {
                m.host()
                    .chunks_exact(len * v)
                    .flat_map(|s| s[..(len - 1) * v].to_vec())
                    .collect()
            })
            .unwrap_or_default();
        if config.num_nextn_predict_layers == 1 && expected.tensor("mtp_logits").is_ok() {
            close(
                &format!("{case} {} mtp", isa.name()),
                &mtp,
                &f32s(&expected, "mtp_logits"),
            );
        }
        for (layer, chosen) in routing {
            let theirs = i64s(&expected, &format!("router.{layer}"));
            same_experts(
                &format!("{case} layer {layer}"),
                &chosen,
                &theirs,
                config.num_experts_per_tok,
            );
        }

        let objective = Objective {
            mtp_loss_weight: 0.0,
            balance_alpha: 0.0,
            num_targets: batch.num_targets(),
            num_mtp_targets: batch.num_mtp_targets(),
            micro_steps: 1,
        };
        let losses = model.forward_backward(&device, &mut state, &batch, &objective);
        let loss = f64::from(f32s(&expected, "loss")[0]);
        assert!(
            (losses.next_token - loss).abs() < 1e-5 * loss,
            "{case}: {losses:?} against {loss}"
        );
        let mut worst = 0.0f64;
        for tensor in &layout.tensors {
            let name = format!("grad.{}", tensor.name);
            if expected.tensor(&name).is_err() {
                continue;
            }
            let error = nmse(
                &state.grads.host()[tensor.span.range()],
                &f32s(&expected, &name),
            );
            assert!(
                error <= GRADIENTS,
                "{case} {} {name}: nmse {error:e}",
                isa.name()
            );
            worst = worst.max(error);
        }
        println!("{case} {}: worst gradient nmse {worst:e}", isa.name());

        state.grads.clear();
        let objective = Objective {
            mtp_loss_weight: 0.05,
            ..objective
        };
        let losses = model.forward_backward(&device, &mut state, &batch, &objective);
        if expected.tensor("mtp_loss").is_ok() {
            let loss = f64::from(f32s(&expected, "mtp_loss")[0]);
            assert!(
                (losses.mtp - loss).abs() < 1e-5 * loss,
                "{case}: {losses:?} against {loss}"
            );
        }
    }
}

fn close(what: &str, got: &[f32], expected: &[f32]) {
    let largest = expected
        .iter()
        .fold(0.0f64, |m, &x| m.max(f64::from(x).abs()));
    let error = max_abs_diff(got, expected) / largest;
    assert!(error <= LOGITS, "{what}: off by {error:e} of the largest");
    println!("{what}: off by {error:e} of the largest");
}

/// Ours are listed best first. The other implementation asks its top-k for no order: of three or more
/// chosen experts it promises the set only, of two the first is the better one.
fn same_experts(what: &str, ours: &[u32], theirs: &[u32], num_experts_per_tok: usize) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    let pairs = ours
        .chunks_exact(num_experts_per_tok)
        .zip(theirs.chunks_exact(num_experts_per_tok));
    for (t, (ours, theirs)) in pairs.enumerate() {
        let (mut ours, mut theirs) = (ours.to_vec(), theirs.to_vec());
        if num_experts_per_tok > 2 {
            ours.sort_unstable();
            theirs.sort_unstable();
        }
        assert_eq!(ours, theirs, "{what}, token {t}");
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
