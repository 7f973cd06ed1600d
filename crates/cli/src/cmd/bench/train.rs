//! `dokja bench train`: whole training steps of a recipe, on random tokens.

use crate::progress::tell;
use crate::training::{self, Estimate};
use crate::{env, interrupt, print};
use anyhow::Result;
use model::ModelConfig;
use model::init::initial_weights;
use model::transformer::Batch;
use numerics::Rng;
use serde_json::json;
use std::path::PathBuf;
use std::time::Instant;
use tensor::Device;
use train::recipe::SpecialIds;
use train::{Recipe, Trainer};

/// Times whole training steps: forward, backward, optimizer, packing of the new weights.
///
/// Needs no data: the tokens are random, the rows of the recipe's length. mfu is the rate of the model's own
/// operations (three times the forward pass; neither the optimizer's nor any done twice) by the measured peak of the
/// recipe's type.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  dokja bench train recipes/quickstart/pretrain.toml --vocab-size 2048
  dokja bench train recipes/bench/37m.toml --set train.compute=f32 --set optim.matrices=adamw --json")]
pub(crate) struct Args {
    /// The recipe, a TOML file with a [model].
    recipe: PathBuf,
    /// Override a key of the recipe; may be given several times.
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
    /// Ids of the vocabulary, which a recipe takes from its tokenizer.
    #[arg(long, value_name = "N", default_value_t = 8192, value_parser = clap::value_parser!(u32).range(8..=1 << 24))]
    vocab_size: u32,
    /// Steps that are timed, after two that are not.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    steps: u32,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Steps that are not timed: memory is touched for the first time, clocks rise.
const WARM_UP: u32 = 2;

pub(crate) fn run(args: &Args) -> Result<()> {
    interrupt::listen()?;
    let recipe = training::read_recipe(&args.recipe, &args.set)?;
    let ids = SpecialIds {
        bos: 0,
        eos: 1,
        pad: 2,
    };
    let config = recipe.config(args.vocab_size as usize, &ids)?;
    let estimate = Estimate::new(&config, &recipe);
    training::check_memory(&estimate)?;
    let device = env::device()?;
    tell("measuring the limits of this machine");
    let peak = training::peak_flops(&device, config.compute);
    let (isa, threads) = (device.name(), device.threads());
    tell("timing steps");
    let mut seconds = time_steps(device, &config, &recipe, args.steps)?;
    seconds.sort_by(f64::total_cmp);
    let rate = |seconds: f64| estimate.tokens_per_step as f64 / seconds;
    let (median, best) = (rate(seconds[seconds.len() / 2]), rate(seconds[0]));
    let flops = estimate.flops_per_token();
    let mfu = median * flops / peak;
    print(&match args.json {
        true => json!({
            "tokens_per_sec": median,
            "tokens_per_sec_best": best,
            "mfu": mfu,
            "flops_per_token": flops,
            "peak_flops": peak,
            "parameters": estimate.counts.parameters,
            "tokens_per_step": estimate.tokens_per_step,
            "compute": recipe.train.compute,
            "matrices": recipe.optim.matrices,
            "isa": isa,
            "threads": threads,
            "steps": seconds.len(),
        })
        .to_string(),
        false => format!(
            "{median:.0} tokens/s, the best step {best:.0}; {:.1} % of the {:.0} GFLOP/s that {isa} reaches on {threads} \
             threads",
            100.0 * mfu,
            peak / 1e9,
        ),
    });
    Ok(())
}

/// Seconds of each timed step.
fn time_steps(
    device: Device,
    config: &ModelConfig,
    recipe: &Recipe,
    steps: u32,
) -> Result<Vec<f64>> {
    let layout = model::Layout::new(config);
    let weights = initial_weights(config, &layout, recipe.seed);
    let mut trainer = Trainer::new(device, config.clone(), &weights, recipe);
    drop(weights);
    let mut rng = Rng::new(recipe.seed, "bench train");
    let mut seconds = Vec::new();
    for step in 0..WARM_UP + steps {
        let mut row = || {
            (0..recipe.train.seq_len)
                .map(|_| rng.below(config.vocab_size) as u32)
                .collect()
        };
        let mut batch = || {
            let rows: Vec<Vec<u32>> = (0..recipe.train.rows_per_micro_step)
                .map(|_| row())
                .collect();
            Batch::from_sequences(&rows)
        };
        let batches = (0..trainer.micro_steps()).map(|_| batch()).collect();
        let start = Instant::now();
        trainer.step(batches);
        if step >= WARM_UP {
            seconds.push(start.elapsed().as_secs_f64());
        }
        if interrupt::is_asked() {
            return Err(interrupt::Interrupted("nothing was written".into()).into());
        }
    }
    Ok(seconds)
}
