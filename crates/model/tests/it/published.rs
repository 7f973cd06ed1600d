//! Cases computed by an implementation that is not ours: logits, losses, gradients, chosen experts, on
//! every instruction set. `testkit::fixture` says where they are and what the bounds are.

use dokja_model::transformer::{Batch, Objective, Transformer};
use kernels_cpu::Isa;
use tensor::Device;
use testkit::compare::{Tolerance, close_f32};
use testkit::fixture::{GRADIENTS, LOGITS, LOSSES, Published};

fn check(case: &str) {
    let published = match Published::open(case) {
        Ok(published) => published,
        Err(skipped) => return println!("{skipped}"),
    };
    let (config, layout) = (&published.config, &published.layout);
    let batch = testkit::tiny_model::batch(&published.sequences);
    for isa in Isa::ALL {
        if !isa.is_available() {
            println!("skipped {case} on {}: not on this processor", isa.name());
            continue;
        }
        let expect = |name: &str, got: &[f32], tolerance: Tolerance| {
            let Some(expected) = published.floats(name) else {
                assert!(name.starts_with("grad."), "{case} has {name}");
                return;
            };
            match close_f32(got, &expected, tolerance) {
                Ok(error) => println!("{case} {}: {name} {error:e}", isa.name()),
                Err(mismatch) => panic!("{case} {}: {name}: {mismatch}", isa.name()),
            }
        };
        let device = Device::cpu(isa, 2);
        let mut model = Transformer::new(&device, config.clone(), &published.params, true);
        let mut state = model.train_state(&device, batch.ids.len());
        let (logits, mtp_logits, routing) = model.logits(&device, &mut state, &batch);
        expect("logits", logits.host(), Tolerance::MaxAbs(LOGITS));
        if let Some(mtp_logits) = mtp_logits {
            // The prediction layer has no row for the last token of a sequence.
            let len = batch.ids.len() / published.sequences.len();
            let rows = mtp_logits
                .host()
                .chunks_exact(config.vocab_size)
                .enumerate()
                .filter(|(row, _)| row % len < len - 1)
                .flat_map(|(_, z)| z.to_vec())
                .collect::<Vec<f32>>();
            expect("mtp_logits", &rows, Tolerance::MaxAbs(LOGITS));
        }
        for (layer, chosen) in routing {
            if let Err(difference) = published.same_experts(layer, &chosen) {
                panic!("{case} {}: {difference}", isa.name());
            }
        }

        // The published gradients are those of the next-token loss alone.
        let next_token = objective(&batch, 0.0);
        let losses = model.forward_backward(&device, &mut state, &batch, &next_token);
        expect(
            "loss",
            &[losses.next_token as f32],
            Tolerance::MaxAbs(LOSSES),
        );
        for tensor in &layout.tensors {
            let grad = &state.grads.host()[tensor.span.range()];
            let name = format!("grad.{}", tensor.name);
            expect(&name, grad, Tolerance::Nmse(GRADIENTS));
        }
        if config.num_nextn_predict_layers == 1 {
            state.grads.clear();
            let with_mtp = objective(&batch, 0.05);
            let losses = model.forward_backward(&device, &mut state, &batch, &with_mtp);
            expect("mtp_loss", &[losses.mtp as f32], Tolerance::MaxAbs(LOSSES));
        }
    }
}

fn objective(batch: &Batch, mtp_loss_weight: f32) -> Objective {
    Objective {
        mtp_loss_weight,
        balance_alpha: 0.0,
        num_targets: batch.num_targets(),
        num_mtp_targets: batch.num_mtp_targets(),
        micro_steps: 1,
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
