//! `dokja pretrain`: a model from random numbers.

use crate::print;
use crate::sources::Sources;
use crate::training::{self, Estimate, Job};
use anyhow::Result;
use formats::run_dir::{RunDir, Stage};
use serde_json::json;
use std::path::PathBuf;

/// Trains a model from a random start.
///
/// Every step is a function of the recipe, the data and the instruction set: not of the number of threads,
/// nor of interruptions. Ctrl-C once saves and stops; --resume goes on, to the same bits. Each
/// checkpoint is recorded in the run's signed ledger.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  dokja pretrain recipes/quickstart/pretrain.toml --run-dir run --set data.dir=data --set data.tokenizer=tokenizer.json
  dokja pretrain recipes/quickstart/pretrain.toml --run-dir run --dry-run
      what it would take: parameters, tokens, operations, memory")]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) stage: StageArgs,
}

/// What the training commands have in common.
#[derive(clap::Args)]
pub(crate) struct StageArgs {
    /// The recipe, a TOML file; docs/recipe.md explains its keys.
    recipe: PathBuf,
    /// The run directory.
    #[arg(long, value_name = "DIR")]
    run_dir: PathBuf,
    /// Go on from the last checkpoint of an interrupted run.
    #[arg(long)]
    resume: bool,
    /// Resolve the recipe, count parameters, operations and memory, and stop.
    #[arg(long)]
    dry_run: bool,
    /// Override a key of the recipe; may be given several times.
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    args.stage.run(Stage::Pretrain)
}

impl StageArgs {
    /// Trains a stage, or says what it would take.
    pub(crate) fn run(&self, stage: Stage) -> Result<()> {
        let recipe = training::read_recipe(&self.recipe, &self.set)?;
        let recipe = recipe.of_stage(stage);
        let job = Job {
            run: RunDir::new(&self.run_dir),
            stage,
            recipe: &recipe,
            resume: self.resume,
            is_tokenizer_ours: false,
        };
        let json = self.json;
        let text = match self.dry_run {
            true => dry_run(&job, json)?,
            false => {
                let trained = training::train(&job)?;
                match json {
                    true => training::outcome_json(&trained).to_string(),
                    false => training::outcome_text(&trained),
                }
            }
        };
        print(&text);
        Ok(())
    }
}

/// The resolved recipe, and what it comes to.
fn dry_run(job: &Job, json: bool) -> Result<String> {
    let recipe = job.recipe;
    let config = training::config(job, &Sources::open(&job.run, recipe)?)?;
    let estimate = Estimate::new(&config, recipe);
    let tokens = estimate.tokens_per_step * recipe.train.steps;
    Ok(match json {
        true => json!({
            "recipe": recipe,
            "parameters": estimate.counts.parameters,
            "active_parameters": estimate.counts.active_parameters,
            "tokens": tokens,
            "flops": estimate.flops_per_token() * tokens as f64,
            "memory_bytes": estimate.memory_bytes,
        })
        .to_string(),
        false => format!("{}\n{}", recipe.to_toml(), estimate.describe(recipe)),
    })
}
