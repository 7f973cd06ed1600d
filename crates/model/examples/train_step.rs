//! Speed of whole training steps: forward, backward, optimizer, packing of the new weights.
//!
//! cargo run --release -p dokja-model --example train_step -- [f32|bf16] [adamw|muon] [THREADS] [STEPS]
//!
//! The shape: 37.0 M parameters in 8 layers (LLLG, window 128), hidden 384, 6 query and 2 key-value heads
//! of 64, 16 experts of 192 (top 4, one shared), dense first layer of 1024, vocabulary 8192; 8 sequences
//! of 512 random tokens, no prediction layer. `DOKJA_ISA` forces an instruction set. Prints one line of
//! JSON. CPU seconds count the work of all threads and change little when others use the machine.
#![expect(clippy::print_stdout, reason = "an example that prints its result")]

use dokja_model::config::{Compute, ModelConfig};
use dokja_model::flops;
use dokja_model::init::initial_weights;
use dokja_model::transformer::{Batch, Objective, Transformer};
use dokja_model::weights::{Layout, Role, TensorSpec};
use kernels_cpu::Isa;
use numerics::Rng;
use std::time::Instant;
use tensor::ops::{adamw, elementwise, muon};
use tensor::{Device, Tensor};

const SEQUENCES: usize = 8;
const LENGTH: usize = 512;
const CONFIG: &str = r#"{"model_type": "exaone_moe", "vocab_size": 8192, "hidden_size": 384,
    "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 64, "sliding_window": 128, "sliding_window_pattern": 4,
    "first_k_dense_replace": 1, "num_experts": 16, "num_experts_per_tok": 4,
    "moe_intermediate_size": 192, "num_shared_experts": 1, "num_nextn_predict_layers": 0}"#;
const PHASES: [&str; 3] = ["forward_backward", "optimizer", "refresh"];

/// Processor seconds of all threads so far; zero where the system does not tell.
fn cpu_seconds() -> f64 {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else {
        return 0.0;
    };
    let nanoseconds = tasks.flatten().filter_map(|task| {
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<f64>().ok()
    });
    nanoseconds.sum::<f64>() * 1e-9
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The tensors that Muon trains, as ranges of the three arrays.
fn matrices<'a>(
    specs: &[TensorSpec],
    mut w: &'a mut [f32],
    mut momentum: &'a mut [f32],
    grads: &'a [f32],
) -> Vec<muon::Matrix<'a>> {
    let (mut at, mut matrices) = (0, vec![]);
    for spec in specs.iter().filter(|spec| spec.role == Role::Matrix) {
        let range = spec.span.range();
        let (_, rest) = w.split_at_mut(range.start - at);
        let (own_w, rest_w) = rest.split_at_mut(range.len());
        let (_, rest) = momentum.split_at_mut(range.start - at);
        let (own_m, rest_m) = rest.split_at_mut(range.len());
        matrices.push(muon::Matrix {
            w: own_w,
            momentum: own_m,
            grad: &grads[range.clone()],
            rows: spec.shape[0],
            cols: spec.shape[1],
        });
        (w, momentum, at) = (rest_w, rest_m, range.end);
    }
    matrices
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let arg = |i: usize, default: &str| args.get(i).map_or(default, String::as_str).to_string();
    let (dtype, optimizer) = (arg(0, "bf16"), arg(1, "adamw"));
    let number = |i: usize, default: &str| arg(i, default).parse().expect("a number");
    let (threads, steps): (usize, usize) = (number(2, "2"), number(3, "5"));
    let isa = std::env::var("DOKJA_ISA").ok();
    let isa = isa.map_or(Isa::detect(), |name| {
        Isa::from_name(&name).expect("an instruction set")
    });

    let compute = if dtype == "f32" {
        Compute::F32
    } else {
        Compute::Bf16
    };
    let config = ModelConfig::from_json(CONFIG).expect("a valid configuration");
    let config = ModelConfig { compute, ..config };
    let layout = Layout::new(&config);
    let device = Device::cpu(isa, threads);
    let params = initial_weights(&config, &layout, 1);
    let mut model = Transformer::new(&device, config, &params, true);
    let tokens = SEQUENCES * LENGTH;
    let (mut rng, vocab_size) = (Rng::new(1, "tokens"), model.config.vocab_size);
    let mut sequence = || (0..LENGTH).map(|_| rng.below(vocab_size) as u32).collect();
    let sequences: Vec<Vec<u32>> = (0..SEQUENCES).map(|_| sequence()).collect();
    let batch = Batch::from_sequences(&sequences);
    let objective = Objective {
        mtp_loss_weight: 0.0,
        balance_alpha: 1e-4,
        num_targets: batch.num_targets(),
        num_mtp_targets: 0,
        micro_steps: 1,
    };
    let mut state = model.train_state(&device, tokens);
    let (mut m, mut v) = (
        Tensor::zeros(&device, &[layout.len]),
        Tensor::zeros(&device, &[layout.len]),
    );

    let (mut wall, mut cpu) = (
        vec![vec![]; PHASES.len() + 1],
        vec![vec![]; PHASES.len() + 1],
    );
    let mut loss = 0.0;
    for step in 0..steps + 1 {
        let mut marks = vec![(Instant::now(), cpu_seconds())];
        state.grads.clear();
        loss = model
            .forward_backward(&device, &mut state, &batch, &objective)
            .next_token;
        marks.push((Instant::now(), cpu_seconds()));
        let norm = elementwise::sum_squares(&device, state.grads.view()).sqrt();
        let scale = (1.0 / norm).min(1.0) as f32;
        let p = adamw::AdamW {
            lr: 1e-3,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
        };
        let by_adamw = |spec: &&TensorSpec| match spec.role {
            Role::RouterBias => false,
            Role::Matrix => optimizer == "adamw",
            Role::Embedding | Role::Gain => true,
        };
        for spec in layout.tensors.iter().filter(by_adamw) {
            let range = spec.span.range();
            adamw::step(
                &device,
                model.params.range_mut(range.clone()),
                m.range_mut(range.clone()),
                v.range_mut(range.clone()),
                state.grads.range(range),
                scale,
                &p,
                step as u64 + 1,
            );
        }
        if optimizer == "muon" {
            let p = muon::Muon {
                lr: 1e-3,
                momentum: 0.95,
                nesterov: true,
                weight_decay: 0.1,
                ns_steps: 5,
            };
            let (w, momentum) = (model.params.host_mut(), m.host_mut());
            let mut all = matrices(&layout.tensors, w, momentum, state.grads.host());
            muon::step(&device, &mut all, scale, &p);
        }
        marks.push((Instant::now(), cpu_seconds()));
        model.refresh(&device);
        marks.push((Instant::now(), cpu_seconds()));
        if step > 0 {
            for phase in 0..=PHASES.len() {
                let (from, to) = if phase < PHASES.len() {
                    (phase, phase + 1)
                } else {
                    (0, PHASES.len())
                };
                wall[phase].push((marks[to].0 - marks[from].0).as_secs_f64());
                cpu[phase].push(marks[to].1 - marks[from].1);
            }
        }
    }
    let flops = 3.0 * flops::count(&model.config, &layout, LENGTH, false).forward_flops_per_token;
    let total = PHASES.len();
    let best = wall[total].iter().copied().fold(f64::INFINITY, f64::min);
    let least = cpu[total].iter().copied().fold(f64::INFINITY, f64::min);
    let phases: Vec<String> = PHASES
        .iter()
        .enumerate()
        .map(|(i, name)| {
            let (wall, cpu) = (median(wall[i].clone()), median(cpu[i].clone()));
            format!(r#""{name}": {{"seconds": {wall:.3}, "cpu_seconds": {cpu:.3}}}"#)
        })
        .collect();
    println!(
        r#"{{"what": "training", "isa": "{}", "dtype": "{dtype}", "optimizer": "{optimizer}", "threads": {threads}, "parameters": {}, "tokens_per_sec_median": {:.1}, "tokens_per_sec_best": {:.1}, "cpu_seconds_per_step_least": {least:.3}, "gflops_best": {:.1}, {}, "loss": {loss:.4}}}"#,
        isa.name(),
        layout.len,
        tokens as f64 / median(wall[total].clone()),
        tokens as f64 / best,
        flops * tokens as f64 / best * 1e-9,
        phases.join(", "),
    );
}
