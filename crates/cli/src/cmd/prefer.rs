//! `dokja prefer`: a run's model learns which answers are preferred.

use crate::cmd::pretrain::StageArgs;
use anyhow::Result;
use formats::run_dir::Stage;

/// Makes the chosen answers of a run's data likelier than the rejected ones.
///
/// Pairs are the dialogues that have a rejected answer: lines of JSON Lines with `messages`, whose last turn is the
/// chosen answer, and `rejected`. Direct preference optimisation: how much likelier the chosen answer has become since
/// the start of the stage, against the rejected one, decides how much of a pair is still to be learned. Starts from the
/// last finished stage of the run.
#[derive(clap::Args)]
#[command(after_help = "Example:
  dokja data build --out run/data --corpus books/ --corpus preferences.jsonl
  dokja prefer recipes/prefer.toml --run-dir run")]
pub(crate) struct Args {
    #[command(flatten)]
    stage: StageArgs,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    args.stage.run(Stage::Prefer)
}
