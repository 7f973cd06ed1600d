//! The same bits on any number of threads and for any company; gradients against finite differences.

use dokja_model::ModelConfig;
use dokja_model::config::Compute;
use dokja_model::init::initial_weights;
use dokja_model::transformer::{Batch, Losses, Objective, Transformer};
use dokja_model::weights::{Layout, Role};
use kernels_cpu::Isa;
use numerics::Rng;
use tensor::Device;

pub(crate) fn tiny(compute: Compute) -> ModelConfig {
    let text = r#"{"model_type": "exaone_moe", "vocab_size": 61, "hidden_size": 24,
        "intermediate_size": 20, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 6, "sliding_window": 3, "num_experts": 5,
        "num_experts_per_tok": 2, "moe_intermediate_size": 7, "num_shared_experts": 1,
        "routed_scaling_factor": 2.5, "num_nextn_predict_layers": 1, "initializer_range": 0.2}"#;
    ModelConfig {
        compute,
        ..ModelConfig::from_json(text).unwrap()
    }
}

pub(crate) fn sequences(lengths: &[usize]) -> Vec<Vec<u32>> {
    let mut rng = Rng::new(5, "sequences");
    lengths
        .iter()
        .map(|&n| (0..n).map(|_| rng.below(61) as u32).collect())
        .collect()
}

fn objective(batch: &Batch) -> Objective {
    Objective {
        mtp_loss_weight: 0.3,
        balance_alpha: 0.1,
        num_targets: batch.num_targets(),
        num_mtp_targets: batch.num_mtp_targets(),
        micro_steps: 1,
    }
}

fn step(
    device: &Device,
    config: &ModelConfig,
    params: &[f32],
    batch: &Batch,
) -> (Losses, Vec<f32>) {
    let mut model = Transformer::new(device, config.clone(), params, true);
    let mut state = model.train_state(device, batch.ids.len());
    let losses = model.forward_backward(device, &mut state, batch, &objective(batch));
    (losses, state.grads.host().to_vec())
}

#[test]
fn gradients_have_the_same_bits_on_any_number_of_threads() {
    let batch = Batch::from_sequences(&sequences(&[70, 1, 9, 130, 2]));
    for compute in [Compute::F32, Compute::Bf16] {
        let config = tiny(compute);
        let params = initial_weights(&config, &Layout::new(&config), 1);
        for isa in Isa::available() {
            let one = step(&Device::cpu(isa, 1), &config, &params, &batch);
            for threads in [2, 3] {
                let many = step(&Device::cpu(isa, threads), &config, &params, &batch);
                assert_eq!(
                    one.0,
                    many.0,
                    "{} {compute:?} {threads} threads",
                    isa.name()
                );
                let differing = one
                    .1
                    .iter()
                    .zip(&many.1)
                    .filter(|(a, b)| a.to_bits() != b.to_bits());
                assert_eq!(
                    differing.count(),
                    0,
                    "{} {compute:?} {threads} threads",
                    isa.name()
                );
            }
        }
    }
}

#[test]
fn a_sequence_has_the_same_logits_alone_and_in_company() {
    let all = sequences(&[70, 1, 9, 130, 2]);
    for compute in [Compute::F32, Compute::Bf16] {
        let config = tiny(compute);
        let params = initial_weights(&config, &Layout::new(&config), 2);
        for isa in Isa::available() {
            let device = Device::cpu(isa, 2);
            let mut model = Transformer::new(&device, config.clone(), &params, false);
            let mut logits = |sequences: &[Vec<u32>]| {
                let batch = Batch::from_sequences(sequences);
                let mut state = model.train_state(&device, batch.ids.len());
                let (logits, mtp, _) = model.logits(&device, &mut state, &batch);
                let v = config.vocab_size;
                let mtp = mtp
                    .expect("the tiny model has a prediction layer")
                    .host()
                    .to_vec();
                (
                    logits
                        .host()
                        .chunks_exact(v)
                        .map(<[f32]>::to_vec)
                        .collect::<Vec<_>>(),
                    mtp,
                )
            };
            let (together, _) = logits(&all);
            let alone: Vec<Vec<f32>> = all
                .iter()
                .flat_map(|s| logits(std::slice::from_ref(s)).0)
                .collect();
            assert!(together == alone, "{} {compute:?}", isa.name());
        }
    }
}

#[test]
fn gradients_agree_with_finite_differences() {
    // All experts are chosen, so that a step does not change the choice, where the loss has a jump.
    let config = ModelConfig {
        num_experts_per_tok: 5,
        ..tiny(Compute::F32)
    };
    let layout = Layout::new(&config);
    let params = initial_weights(&config, &layout, 3);
    let batch = Batch::from_sequences(&sequences(&[13, 5]));
    let device = Device::cpu(Isa::detect(), 2);
    let (_, grads) = step(&device, &config, &params, &batch);
    let total = |params: &[f32]| {
        let l = step(&device, &config, params, &batch).0;
        l.next_token + 0.3 * l.mtp + l.balance
    };
    let mut rng = Rng::new(4, "directions");
    for tensor in &layout.tensors {
        if tensor.role == Role::RouterBias {
            assert!(
                grads[tensor.span.range()].iter().all(|&g| g == 0.0),
                "{}",
                tensor.name
            );
            continue;
        }
        // The derivative along a random direction inside the tensor, in f32: some digits are lost in the
        // difference, so the bound is that of the difference and not of the gradient.
        let h = 1e-3;
        let direction: Vec<f32> = (0..tensor.span.len)
            .map(|_| if rng.below(2) == 0 { -1.0 } else { 1.0 })
            .collect();
        let moved = |sign: f32| {
            let mut params = params.clone();
            for (p, d) in params[tensor.span.range()].iter_mut().zip(&direction) {
                *p += sign * h * d;
            }
            total(&params)
        };
        let difference = (moved(1.0) - moved(-1.0)) / (2.0 * f64::from(h));
        let slope: f64 = grads[tensor.span.range()]
            .iter()
            .zip(&direction)
            .map(|(&g, &d)| f64::from(g) * f64::from(d))
            .sum();
        let bound = 2e-3 + 0.02 * slope.abs();
        assert!(
            (difference - slope).abs() < bound,
            "{}: {difference} against {slope}",
            tensor.name
        );
    }
}
