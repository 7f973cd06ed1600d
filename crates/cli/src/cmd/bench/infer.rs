//! `dokja bench prefill` and `dokja bench decode`: an engine on random tokens, one request at a time.

use crate::open::{self, OpenModel, RunArgs};
use crate::progress::tell;
use crate::{env, interrupt, memory, print};
use anyhow::{Context, Result, bail};
use infer::{Engine, Request, SamplingParams};
use kernels_cpu::peak::{Memory, Peaks};
use numerics::Rng;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Instant;
use tensor::Device;

/// Times reading a prompt.
///
/// From the first token of a prompt to the first of the answer: one prompt at a time, of random tokens, another
/// one in each run. The run that is not timed has at most 512 tokens.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  dokja bench prefill model.gguf
  dokja bench prefill model.gguf --activation-bits 8 --prompt 8192 --json")]
pub(crate) struct PrefillArgs {
    #[command(flatten)]
    common: Common,
    /// Tokens of the prompt.
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    prompt: u32,
}

/// Times writing an answer.
///
/// One request at a time, after a short prompt. The fraction of bandwidth counts the bytes of weights and of
/// keys and values that a token must touch, by the rate of reading that is measured before each run, since what
/// neighbours leave of the memory changes; where the prediction layer guesses well it may be above one, since
/// several tokens are had for one reading.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  dokja bench decode model.gguf
  dokja bench decode model.gguf --prompt 2048 --generate 256 --json
  dokja bench decode run --text 'The lighthouse keeper of Yunseul' --mtp")]
pub(crate) struct DecodeArgs {
    #[command(flatten)]
    common: Common,
    /// Tokens of the prompt, which is not timed.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..))]
    prompt: u32,
    /// Tokens that are timed.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    generate: u32,
    /// A text to continue, instead of random tokens.
    #[arg(long, value_name = "TEXT", conflicts_with = "prompt")]
    text: Option<String>,
    /// Time it with and without the prediction layer, in turns. The model is opened twice.
    #[arg(long, conflicts_with = "no_mtp")]
    mtp: bool,
}

#[derive(clap::Args)]
struct Common {
    /// A run directory, a checkpoint directory or a .gguf file.
    model: PathBuf,
    /// Runs that are timed, after one that is not; the median is told.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    runs: u32,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    run: RunArgs,
}

pub(crate) fn prefill(args: &PrefillArgs) -> Result<()> {
    let (mut bench, model) = Bench::new(&args.common)?;
    let prompt = args.prompt as usize;
    let rate_of = |bench: &mut Bench, prompt: usize| -> Result<f64> {
        let ids = bench.random(prompt);
        let (seconds, _) = bench.speak(ids, 1)?;
        Ok(prompt as f64 / seconds)
    };
    tell("timing");
    rate_of(&mut bench, prompt.min(WARM_UP))?;
    let rates = (0..bench.runs).map(|_| rate_of(&mut bench, prompt));
    let rate = median(rates.collect::<Result<_>>()?);
    let counts = model::flops::count(&model.config, &bench.layout, prompt, false);
    let flops = counts.forward_flops_per_token;
    let peak = bench.peaks.f32_flops;
    let mut told = bench.told(rate);
    told["prompt"] = json!(prompt);
    told["flops_per_token"] = json!(flops);
    told["fraction_of_f32_peak"] = json!(rate * flops / peak);
    print(&match args.common.json {
        true => told.to_string(),
        false => format!(
            "{rate:.1} tokens/s on a prompt of {prompt}: {:.0} GFLOP/s, {:.2} times the peak of f32",
            rate * flops / 1e9,
            rate * flops / peak
        ),
    });
    Ok(())
}

pub(crate) fn decode(args: &DecodeArgs) -> Result<()> {
    let (mut bench, model) = Bench::new(&args.common)?;
    let generate = args.generate as usize;
    let ids = match &args.text {
        Some(text) => Some(model.tokenizer()?.encode(text)),
        None => None,
    };
    let prompt = ids.as_ref().map_or(args.prompt as usize, Vec::len);
    let rate_of = |bench: &mut Bench| -> Result<f64> {
        let ids = ids.clone().unwrap_or_else(|| bench.random(prompt));
        let (_, seconds) = bench.speak(ids, generate + 1)?;
        Ok(generate as f64 / seconds)
    };
    let mut without = match args.mtp {
        true => {
            let run = args.common.run.without_mtp();
            Some(one_sequence(&open::model(&args.common.model, &run)?)?)
        }
        false => None,
    };
    let touched = model.bytes_per_token(prompt + generate / 2);
    tell("timing");
    rate_of(&mut bench)?;
    let (mut rates, mut reads, mut fractions) = (Vec::new(), Vec::new(), Vec::new());
    let (mut plains, mut ratios) = (Vec::new(), Vec::new());
    for _ in 0..bench.runs {
        let read = bench.read_bytes();
        let rate = rate_of(&mut bench)?;
        reads.push(read);
        rates.push(rate);
        fractions.push(rate * touched as f64 / read);
        // In turns: what happens on the machine happens to both.
        if let Some(other) = &mut without {
            std::mem::swap(&mut bench.engine, other);
            let plain = rate_of(&mut bench);
            std::mem::swap(&mut bench.engine, other);
            let plain = plain?;
            plains.push(plain);
            ratios.push(rate / plain);
        }
    }
    let (rate, read, fraction) = (median(rates), median(reads), median(fractions));
    let stats = bench.engine.stats();
    let mut told = bench.told(rate);
    told["bytes_per_token"] = json!(touched);
    told["fraction_of_bandwidth"] = json!(fraction);
    told["read_bytes_per_sec"] = json!(read);
    told["draft_accepted"] = json!(stats.draft_accepted);
    told["draft_proposed"] = json!(stats.draft_proposed);
    let mut text = format!(
        "{rate:.1} tokens/s: {} a token, {:.0} % of the {:.1} GB/s that are read here; {} of {} guesses right",
        crate::progress::bytes(touched),
        100.0 * fraction,
        read / 1e9,
        stats.draft_accepted,
        stats.draft_proposed,
    );
    if !plains.is_empty() {
        let (plain, speedup) = (median(plains), median(ratios));
        told["tokens_per_sec_without_mtp"] = json!(plain);
        told["speedup"] = json!(speedup);
        text += &format!("; {plain:.1} without, {speedup:.2} times in turns");
    }
    print(&match args.common.json {
        true => told.to_string(),
        false => text,
    });
    Ok(())
}

/// Tokens at most of the prompt that is not timed.
const WARM_UP: usize = 512;

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

/// An engine for one request at a time.
fn one_sequence(model: &OpenModel) -> Result<Engine> {
    model.engine(super::super::generate::one_sequence())
}

struct Bench {
    engine: Engine,
    layout: model::Layout,
    peaks: Peaks,
    /// What is read to measure the memory.
    memory: Memory,
    rng: Rng,
    runs: u32,
    /// Threads for that; the engine has its own.
    device: Device,
}

impl Bench {
    fn new(args: &Common) -> Result<(Bench, OpenModel)> {
        interrupt::listen()?;
        let device = env::device()?;
        let Device::Cpu(cpu) = &device;
        tell("measuring the limits of this machine");
        let mut memory = Memory::new(args.run.measuring_bytes());
        let peaks = Peaks::measure(cpu, &mut memory);
        let model = open::model(&args.model, &args.run)?;
        tell(&format!("loading {}", model.path.display()));
        let engine = one_sequence(&model)?;
        let bench = Bench {
            engine,
            layout: model::Layout::for_serving(&model.config),
            peaks,
            memory: memory.for_reading(),
            rng: Rng::new(0, "bench"),
            runs: args.runs,
            device,
        };
        Ok((bench, model))
    }

    /// Tokens drawn at random.
    fn random(&mut self, len: usize) -> Vec<u32> {
        let vocab_size = self.engine.vocab_size();
        (0..len)
            .map(|_| self.rng.below(vocab_size) as u32)
            .collect()
    }

    /// Seconds from a prompt to the first token, and from there to the last of `max_tokens`.
    fn speak(&mut self, prompt_ids: Vec<u32>, max_tokens: usize) -> Result<(f64, f64)> {
        let prompt = prompt_ids.len();
        let request = Request {
            prompt_ids,
            max_tokens,
            sampling: SamplingParams::greedy(),
            stop_ids: Vec::new(),
            budget: None,
        };
        let began = Instant::now();
        self.engine.submit(request)?;
        let mut first = None;
        let mut tokens = 0;
        while !self.engine.is_idle() {
            tokens += self.engine.step().len();
            if tokens > 0 {
                first.get_or_insert_with(Instant::now);
            }
            if interrupt::is_asked() {
                bail!(interrupt::Interrupted("nothing was measured".into()));
            }
        }
        if tokens < max_tokens {
            bail!("{prompt} tokens and {max_tokens} more are longer than the model's context");
        }
        let first = first.context("an answer has a token")?;
        Ok(((first - began).as_secs_f64(), first.elapsed().as_secs_f64()))
    }

    /// Bytes that are read per second, at present.
    fn read_bytes(&self) -> f64 {
        let Device::Cpu(cpu) = &self.device;
        self.memory.read_bytes(cpu)
    }

    fn told(&self, tokens_per_sec: f64) -> Value {
        let mut told = json!({
            "tokens_per_sec": tokens_per_sec,
            "runs": self.runs,
            "isa": self.device.name(),
            "threads": self.device.threads(),
            "peak_rss_bytes": memory::peak_bytes(),
        });
        if let Some(cache) = self.engine.expert_cache() {
            told["expert_cache"] = json!({
                "bytes": cache.bytes,
                "lookups": cache.lookups,
                "misses": cache.misses,
                "bytes_packed": cache.bytes_packed,
            });
        }
        told
    }
}
