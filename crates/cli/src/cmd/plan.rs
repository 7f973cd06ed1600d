//! `dokja plan`: what training would take on a cluster that is not here.

use crate::print;
use crate::progress::{bytes, duration, grouped};
use crate::training;
use anyhow::{Context, Result, bail};
use serde_json::json;
use std::path::PathBuf;
use tokenizer::Tokenizer;
use train::plan::{Cluster, Plan, plan};
use train::recipe::SpecialIds;

/// Computes memory, communication, time and cost of a training run on a cluster that is not here.
///
/// Searches all ways to cut layers (pipeline), rows (data) and experts among the devices, with activations kept or computed
/// again, for the fastest that fits into their memory. It is arithmetic over the cluster's figures, and as good as they are: above all products_of_peak, the
/// share of the peak that products reach, has to be measured. Nothing is taken to overlap. docs/cluster.md explains the
/// file.
#[derive(clap::Args)]
#[command(after_help = "Example:
  dokja plan recipes/k-exaone/pretrain.toml --cluster recipes/k-exaone/cluster.toml")]
pub(crate) struct Args {
    /// The recipe, a TOML file with a [model] section; docs/recipe.md explains its keys.
    recipe: PathBuf,
    /// The cluster, a TOML file.
    #[arg(long, value_name = "FILE")]
    cluster: PathBuf,
    /// Tokens of the vocabulary [default: those of data.tokenizer where the recipe names one, else 153600, K-EXAONE's].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    vocab_size: Option<u32>,
    /// Override a key of the recipe; may be given several times.
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Of the published K-EXAONE.
const VOCAB_SIZE: usize = 153_600;

pub(crate) fn run(args: &Args) -> Result<()> {
    let recipe = training::read_recipe(&args.recipe, &args.set)?;
    let path = &args.cluster;
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the cluster {}", path.display()))?;
    let cluster =
        Cluster::from_toml(&text).with_context(|| format!("the cluster {}", path.display()))?;
    let vocab_size = match (args.vocab_size, &recipe.data.tokenizer) {
        (Some(size), _) => size as usize,
        (None, Some(path)) => Tokenizer::load(path)
            .with_context(|| format!("cannot use {}", path.display()))?
            .vocab_size(),
        (None, None) => VOCAB_SIZE,
    };
    if recipe.model.is_none() {
        bail!(
            "{} has no [model] section to plan for",
            args.recipe.display()
        );
    }
    let ids = SpecialIds {
        bos: 0,
        eos: 0,
        pad: 0,
    };
    let config = recipe.config(vocab_size, &ids)?;
    let (_, parameters) = model::flops::size(&config);
    let planned = plan(&config, &recipe, &cluster)?;
    print(&match args.json {
        true => json!({
            "seconds": planned.seconds,
            "bytes_per_device": planned.bytes.total(),
            "mfu": planned.mfu,
            "cost": planned.cost,
            "parameters": parameters as f64,
            "tokens": planned.tokens,
            "parallel": planned.parallel,
            "bytes": planned.bytes,
            "step_seconds": planned.step,
        })
        .to_string(),
        false => describe(&planned, &cluster, parameters),
    });
    Ok(())
}

fn describe(plan: &Plan, cluster: &Cluster, parameters: u128) -> String {
    let (p, b, s) = (plan.parallel, plan.bytes, plan.step);
    let of = |part: f64| format!("{:.0} %", 100.0 * part / s.total());
    let size = |count: f64| bytes(count as u64);
    let cost = plan.cost.map_or(String::new(), |cost| {
        format!("\n  cost           {}", grouped(cost.round() as u64))
    });
    format!(
        "planned, not measured: {} parameters, {:.3e} tokens, {} devices

  time           {} ({:.3} s a step), {:.1} % of the peak{cost}
  layout         {} stages of {} devices, experts cut among {}, {} micro-steps{}
  of a step      products {}, waiting for stages {}, experts {}, gradients {}
  of a device    {} of {}: weights {}, gradients {}, optimizer {}, activations {}",
        grouped(u64::try_from(parameters).unwrap_or(u64::MAX)),
        plan.tokens,
        grouped(cluster.devices),
        duration(plan.seconds),
        s.total(),
        100.0 * plan.mfu,
        p.pipeline,
        p.data,
        p.expert,
        p.micro_steps,
        match p.recompute {
            true => ", activations computed again",
            false => "",
        },
        of(s.products),
        of(s.waiting),
        of(s.experts),
        of(s.gradients),
        size(b.total()),
        size(cluster.memory_gb * 1e9),
        size(b.weights),
        size(b.gradients),
        size(b.optimizer),
        size(b.activations),
    )
}
