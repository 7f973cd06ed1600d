//! `dokja rl`: a run's model learns from its own answers.

use crate::cmd::pretrain::StageArgs;
use anyhow::Result;
use formats::run_dir::Stage;

/// Lets the model of a run answer questions, and makes the better answers likelier.
///
/// The questions are those of the dialogues of the data directory. Each is answered several times; an answer is right
/// if its last number is that of the dialogue's answer, or, where that has no number, if it has the same words. Every
/// answer then counts as much as it was better than the others to its question (GRPO without its biases). Starts from
/// the last finished stage of the run.
///
/// Training and serving multiply alike: answers come from exactly the weights that learn from them, and a run that is
/// interrupted, resumed or repeated (`dokja audit replay`) draws the same answers and ends with the same bits.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  dokja rl recipes/quickstart/rl.toml --run-dir run
  dokja rl recipes/quickstart/rl.toml --run-dir run --set rl.group_size=16 --json")]
pub(crate) struct Args {
    #[command(flatten)]
    stage: StageArgs,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    args.stage.run(Stage::Rl)
}
