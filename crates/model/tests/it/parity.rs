//! The model against `reference`: every activation, loss and gradient, for every variant of a tiny
//! configuration, with the second prediction and the balance loss, on packed sequences.

use dokja_model::ModelConfig;
use dokja_model::config::Compute;
use dokja_model::transformer::{Batch, Losses, Objective, TrainState, Transformer};
use dokja_model::weights::Layout;
use kernels_cpu::Isa;
use reference::layers::{BlockKept, FeedForwardKept, MlpKept};
use reference::loss::{self, Sequence};
use reference::model::{Output, SequenceOutput};
use tensor::Device;
use testkit::case::beside;
use testkit::compare::{Tolerance, close_f32};
use testkit::tiny_model::{self, reference_config, reference_tensors};

const MTP_WEIGHT: f32 = 0.3;
const BALANCE_ALPHA: f32 = 0.1;

/// Bounds on the normalised mean-square error. Values below a thousandth, where a gradient of the tiny
/// model is some hundredths, count as a thousandth: what is zero on one side is rounding on the other.
struct Bounds {
    activations: f64,
    gradients: f64,
}

/// Of f32 through some fifty chained ops, of which none amplifies an error much: a relative 3e-6 to 5e-6.
const F32: Bounds = Bounds {
    activations: 1e-11,
    gradients: 3e-11,
};

/// A factor rounded to bf16 is off by up to a relative 2^-9, in the mean of squares by 1.3e-6, a product by
/// twice that; layer upon layer of them add up to some 1e-4 in an activation. A gradient passes them twice
/// and is a sum whose terms cancel to a tenth. What is wrong rather than rounded is off by one.
const BF16: Bounds = Bounds {
    activations: 1e-3,
    gradients: 2e-2,
};

/// Both sides of one batch.
struct Both {
    config: ModelConfig,
    layout: Layout,
    params: Vec<f32>,
    sequences: Vec<Sequence>,
    output: Output,
    grads: reference::Tensors,
}

impl Both {
    fn new(config: ModelConfig, sequences: Vec<Sequence>) -> Both {
        let params = tiny_model::params(&config, &Layout::new(&config));
        Both::with_params(config, params, sequences)
    }

    fn with_params(config: ModelConfig, params: Vec<f32>, sequences: Vec<Sequence>) -> Both {
        let layout = Layout::new(&config);
        let objective = loss::Objective {
            mtp_weight: f64::from(MTP_WEIGHT),
            balance_alpha: f64::from(BALANCE_ALPHA),
        };
        let (cfg, weights) = (
            reference_config(&config),
            reference_tensors(&layout, &params),
        );
        let (output, grads) =
            reference::model::forward_backward(&cfg, &weights, &sequences, &objective);
        Both {
            config,
            layout,
            params,
            sequences,
            output,
            grads,
        }
    }

    /// Compares everything on a device; `what` tells the case.
    fn check(&self, what: &str, device: &Device, bounds: &Bounds) {
        let expect = |name: &str, got: &[f32], expected: &[f64]| {
            let tolerance = Tolerance::NmseOfTerms {
                bound: if name.starts_with("gradient") {
                    bounds.gradients
                } else {
                    bounds.activations
                },
                size: 1e-3,
            };
            if let Err(mismatch) = close_f32(got, expected, tolerance) {
                panic!("{what}, {}: {name}: {mismatch}", device.name());
            }
        };
        let batch = tiny_model::batch(&self.sequences);
        let mut model = Transformer::new(device, self.config.clone(), &self.params, true);
        let mut state = model.train_state(device, batch.ids.len());
        let (logits, mtp_logits, routing) = model.logits(device, &mut state, &batch);
        for (layer, chosen) in routing {
            let each = self.output.sequences.iter();
            let expected: Vec<u32> = each
                .flat_map(|s| s.router_ids[&layer].iter().copied())
                .collect();
            assert_eq!(
                chosen,
                expected,
                "{what}, {}: experts of layer {layer}",
                device.name()
            );
        }
        expect("logits", logits.host(), &self.joined(|s| s.logits.clone()));
        if let Some(mtp_logits) = mtp_logits {
            let rows = self.with_second_row(mtp_logits.host(), self.config.vocab_size);
            expect("mtp logits", &rows, &self.joined(|s| s.mtp_logits.clone()));
        }

        let losses = self.step(device, &mut model, &mut state, &batch);
        let expected = self.output.losses;
        for (name, got, expected) in [
            ("loss", losses.next_token, expected.next_token),
            ("mtp loss", losses.mtp, expected.mtp),
            ("balance loss", losses.balance, expected.balance),
        ] {
            expect(name, &[got as f32], &[expected]);
        }
        let (layers, h) = state.activations();
        expect("h", h.host(), &self.joined(|s| s.kept.h.clone()));
        for (layer, activations) in layers.iter().enumerate() {
            let is_mtp = layer == self.config.num_hidden_layers;
            for &(name, tensor) in activations {
                let width = tensor.shape()[1];
                let got = if is_mtp {
                    self.with_second_row(tensor.host(), width)
                } else {
                    tensor.host().to_vec()
                };
                expect(
                    &format!("{name} of layer {layer}"),
                    &got,
                    &self.activation(layer, name),
                );
            }
        }
        for tensor in &self.layout.tensors {
            let got = &state.grads.host()[tensor.span.range()];
            let expected = &self.grads[&tensor.name].data;
            expect(&format!("gradient of {}", tensor.name), got, expected);
        }
    }

    fn step(
        &self,
        device: &Device,
        model: &mut Transformer,
        state: &mut TrainState,
        batch: &Batch,
    ) -> Losses {
        let objective = Objective {
            mtp_loss_weight: MTP_WEIGHT,
            balance_alpha: BALANCE_ALPHA,
            num_targets: batch.num_targets(),
            num_mtp_targets: batch.num_mtp_targets(),
            micro_steps: 1,
        };
        model.forward_backward(device, state, batch, &objective)
    }

    fn joined(&self, of: impl Fn(&SequenceOutput) -> Vec<f64>) -> Vec<f64> {
        self.output.sequences.iter().flat_map(of).collect()
    }

    /// The rows of a packed (T, width) that have a token after them: those of the second prediction.
    fn with_second_row(&self, packed: &[f32], width: usize) -> Vec<f32> {
        let mut rows = packed.chunks_exact(width);
        let mut kept = Vec::new();
        for sequence in &self.sequences {
            for t in 0..sequence.ids.len() {
                let row = rows.next().unwrap();
                if t + 1 < sequence.ids.len() {
                    kept.extend(row);
                }
            }
        }
        kept
    }

    /// An activation of a layer in the words of the model; one layer beyond the last is the prediction
    /// layer.
    fn activation(&self, layer: usize, name: &str) -> Vec<f64> {
        let block = |s: &SequenceOutput| match s.kept.blocks.get(layer) {
            Some(kept) => self.activation_of(kept, name),
            None => s
                .kept
                .mtp
                .as_ref()
                .map_or(vec![], |mtp| self.activation_of(&mtp.block, name)),
        };
        match name.strip_prefix("experts ") {
            Some(name) => self.of_experts(layer, name),
            None => self.joined(block),
        }
    }

    fn activation_of(&self, kept: &BlockKept, name: &str) -> Vec<f64> {
        let (q, kv) = (self.config.q_size(), self.config.kv_size());
        let (attention, feed_forward) = (&kept.attention, &kept.feed_forward);
        let h_mlp = match feed_forward {
            FeedForwardKept::Dense(mlp) => &mlp.h,
            FeedForwardKept::Sparse(moe) => &moe.h,
        };
        match (name, feed_forward) {
            ("h_attn", _) => attention.h.clone(),
            ("qkv", _) => beside(&[
                (&attention.q_proj, q),
                (&attention.k_proj, kv),
                (&attention.v, kv),
            ]),
            ("q", _) => attention.q.clone(),
            ("k", _) => attention.k.clone(),
            ("o", _) => attention.o.clone(),
            ("attn_out", _) => kept.attention_out.clone(),
            ("x_mid", _) => kept.x_mid.clone(),
            ("mlp_out", _) => kept.mlp_out.clone(),
            ("h_mlp", _) => h_mlp.clone(),
            ("scores", FeedForwardKept::Sparse(moe)) => moe.routing.scores.clone(),
            ("topk_weights", FeedForwardKept::Sparse(moe)) => moe.routing.topk_weights.clone(),
            (_, FeedForwardKept::Dense(mlp)) => of_mlp(mlp, self.config.intermediate_size, name),
            (_, FeedForwardKept::Sparse(moe)) => {
                let width = self.config.shared_size();
                moe.shared
                    .as_ref()
                    .map_or(vec![], |mlp| of_mlp(mlp, width, name))
            }
        }
    }

    /// An activation of the experts of a layer, sorted by expert over all sequences.
    fn of_experts(&self, layer: usize, name: &str) -> Vec<f64> {
        let mut all = Vec::new();
        for expert in 0..self.config.num_experts {
            for sequence in &self.output.sequences {
                let FeedForwardKept::Sparse(moe) = &sequence.kept.blocks[layer].feed_forward else {
                    panic!("layer {layer} has no experts");
                };
                let visit = &moe.visits[expert];
                all.extend(match name {
                    "out" => visit.out.clone(),
                    _ => of_mlp(&visit.kept, self.config.moe_intermediate_size, name),
                });
            }
        }
        all
    }
}

fn of_mlp(kept: &MlpKept, width: usize, name: &str) -> Vec<f64> {
    match name {
        "gate_up" => beside(&[(&kept.gate, width), (&kept.up, width)]),
        "act" => kept.act.clone(),
        _ => panic!("the reference keeps no {name}"),
    }
}

/// Odd lengths, one token, two, none; more than a tile of 64 keys.
const LENGTHS: [usize; 6] = [13, 1, 2, 0, 70, 5];

#[test]
fn every_variant_computes_what_the_reference_computes_on_every_instruction_set() {
    for (name, config) in tiny_model::variants() {
        let text = tiny_model::text(&config, &LENGTHS);
        let both = Both::new(config, text);
        for isa in Isa::available() {
            both.check(name, &Device::cpu(isa, 2), &F32);
        }
    }
}

#[test]
fn prompts_are_read_but_not_learned() {
    let config = tiny_model::tiny();
    let conversations = tiny_model::conversations(&config, &LENGTHS);
    let both = Both::new(config, conversations);
    for isa in Isa::available() {
        both.check("conversations", &Device::cpu(isa, 3), &F32);
    }
}

#[test]
fn answers_count_for_what_they_are_worth() {
    let config = tiny_model::tiny();
    let answers = tiny_model::answers(&config, &LENGTHS);
    let both = Both::new(config, answers);
    for isa in Isa::available() {
        both.check("answers", &Device::cpu(isa, 2), &F32);
    }
}

#[test]
fn in_bf16_every_result_is_as_near_as_the_rounding_of_factors_allows() {
    // A head of two is normed to little more than an angle, which rounding can turn by any amount; at a limit of an
    // activation its gradient jumps from one to zero.
    let is_smooth = |config: &ModelConfig| {
        config.head_dim > 2 && config.swiglu_limits.iter().all(Option::is_none)
    };
    let variants = tiny_model::variants().into_iter();
    for (name, config) in variants.filter(|(_, config)| is_smooth(config)) {
        // With all experts chosen, in an order that the bias settles alone, rounding cannot change the
        // choice, at which the results jump.
        let config = ModelConfig {
            compute: Compute::Bf16,
            num_experts_per_tok: config.num_experts,
            ..config
        };
        let layout = Layout::new(&config);
        let mut params = tiny_model::params(&config, &layout);
        for bias in layout.router_biases() {
            for (expert, bias) in params[bias.range()].iter_mut().enumerate() {
                *bias = 2.0 * expert as f32;
            }
        }
        let text = tiny_model::text(&config, &LENGTHS);
        let both = Both::with_params(config, params, text);
        for isa in Isa::available() {
            both.check(name, &Device::cpu(isa, 2), &BF16);
        }
    }
}
