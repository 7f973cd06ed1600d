//! Work to be counted: one op or one step of a small model, by name, run under a tool that counts instructions.
//!
//! usage: instructions list | instructions NAME
//!
//! `cargo xtask instructions` runs every name under callgrind, which counts inside [`counted_work`] alone. One thread,
//! random numbers from seeds: the same binary executes the same instructions. Everything is run once before, so that
//! scratch memory is there.

use dokja_testkit::{Case, Mode, cases};
use infer::{Engine, EngineConfig, ModelRunner, Request, SamplingParams};
use kernels_cpu::Isa;
use model::init::initial_weights;
use model::transformer::Batch;
use model::{Layout, ModelConfig, Transformer};
use numerics::Rng;
use std::collections::BTreeMap;
use tensor::Device;
use train::recipe::SpecialIds;
use train::{Recipe, Trainer};

/// Ops that are counted, each at the largest of its sizes for tests.
const OPS: [&str; 7] = [
    "gemm.matmul",
    "gemm.matmul_tn",
    "grouped_gemm.grouped_matmul",
    "attention.forward",
    "attention.backward",
    "attention.forward_cached",
    "rms_norm.forward",
];

/// Layers of each kind.
const RECIPE: &str = "seed = 1\n\
    [model]\nhidden_size = 64\nintermediate_size = 128\nnum_hidden_layers = 4\nnum_attention_heads = 4\n\
    num_key_value_heads = 2\nhead_dim = 16\nsliding_window = 16\nnum_experts = 8\nnum_experts_per_tok = 2\n\
    moe_intermediate_size = 32\n\
    [train]\nseq_len = 32\nrows_per_step = 2\nrows_per_micro_step = 2\n";

const VOCAB: usize = 256;

#[expect(clippy::print_stdout, reason = "the list is the output")]
fn main() {
    let name = std::env::args().nth(1).unwrap_or_default();
    let device = Device::cpu(isa(), 1);
    let ops = ops();
    match name.as_str() {
        "list" => {
            let steps = ["step.prefill", "step.decode", "step.train"];
            let names = ops.keys().map(String::as_str).chain(steps);
            names.for_each(|name| println!("{name}"));
        }
        "step.prefill" => serve(device, 32, 0),
        "step.decode" => serve(device, 32, 4),
        "step.train" => train(device),
        name => match ops.get(name) {
            Some(case) => op(case.as_ref(), &device),
            None => {
                println!("there is no {name:?}; `list` tells what there is");
                std::process::exit(2);
            }
        },
    }
}

/// What the tool counts in; it is found by its name.
#[inline(never)]
fn counted_work(work: &mut dyn FnMut()) {
    work();
}

fn isa() -> Isa {
    let name = std::env::var("DOKJA_ISA").unwrap_or_else(|_| "portable".to_owned());
    let isa = Isa::from_name(&name).filter(|isa| isa.is_available());
    isa.expect("an instruction set of this processor")
}

/// The largest case of each op and type.
fn ops() -> BTreeMap<String, Box<dyn Case>> {
    let mut largest: BTreeMap<String, Box<dyn Case>> = BTreeMap::new();
    let all = cases::ALL
        .iter()
        .flat_map(|(_, table)| table(Mode::Conform));
    for case in all.filter(|case| OPS.contains(&case.op())) {
        let bits = case.dims().into_iter().find(|(of, _)| *of == "bits");
        let bits = bits.map_or(String::new(), |(_, bits)| format!(".{bits}"));
        let name = format!("{}.{}{bits}", case.op(), case.dtype().to_lowercase());
        let work = |case: &dyn Case| (case.cost().flops, case.cost().bytes_read);
        let before = largest.get(&name).map(|before| work(before.as_ref()));
        if before.is_none_or(|before| work(case.as_ref()) > before) {
            largest.insert(name, case);
        }
    }
    largest
}

fn op(case: &dyn Case, device: &Device) {
    let outputs = case.outputs();
    let mut buffers: Vec<_> = outputs.iter().map(|o| o.buffer(device, 0)).collect();
    let mut kernel = case.kernel(device);
    kernel(&mut buffers);
    counted_work(&mut || kernel(&mut buffers));
}

fn recipe() -> (Recipe, ModelConfig) {
    let recipe = Recipe::from_toml(RECIPE, &[]).expect("a valid recipe");
    let ids = SpecialIds {
        bos: 0,
        eos: 1,
        pad: 2,
    };
    let config = recipe.config(VOCAB, &ids).expect("a valid model");
    (recipe, config)
}

/// Two prompts, one after the other; counts the step of the second that gives token `decoded` of its answer.
fn serve(device: Device, prompt: usize, decoded: usize) {
    let (recipe, config) = recipe();
    let layout = Layout::new(&config);
    let weights = initial_weights(&config, &layout, recipe.seed);
    let model = Transformer::new(&device, config, &weights, false);
    let runner = ModelRunner::new(device, model);
    let engine = Engine::new(Box::new(runner), EngineConfig::default());
    let mut engine = engine.expect("a valid engine");
    let mut rng = Rng::new(1, "instructions");
    for is_counted in [false, true] {
        let request = Request {
            prompt_ids: (0..prompt).map(|_| rng.below(VOCAB) as u32).collect(),
            max_tokens: decoded + 1,
            sampling: SamplingParams::greedy(),
            stop_ids: Vec::new(),
            budget: None,
        };
        engine.submit(request).expect("a valid request");
        for step in 0..=decoded {
            match is_counted && step == decoded {
                true => counted_work(&mut || drop(engine.step())),
                false => drop(engine.step()),
            }
        }
        assert!(engine.is_idle(), "a step for each token");
    }
}

/// Two updates of one micro-step each; counts the second.
fn train(device: Device) {
    let (recipe, config) = recipe();
    let layout = Layout::new(&config);
    let weights = initial_weights(&config, &layout, recipe.seed);
    let mut trainer = Trainer::new(device, config, &weights, &recipe);
    let mut rng = Rng::new(1, "instructions");
    let mut batch = || {
        let mut row = || {
            let ids = (0..recipe.train.seq_len).map(|_| rng.below(VOCAB) as u32);
            ids.collect::<Vec<u32>>()
        };
        let rows: Vec<_> = (0..recipe.train.rows_per_micro_step)
            .map(|_| row())
            .collect();
        vec![Batch::from_sequences(&rows)]
    };
    let (first, second) = (batch(), batch());
    trainer.step(first);
    let mut second = Some(second);
    counted_work(&mut || {
        trainer.step(second.take().unwrap_or_default());
    });
}
