//! `dokja sft`: instruction tuning of a run's pretrained model.

use crate::cmd::pretrain::StageArgs;
use anyhow::Result;
use formats::run_dir::Stage;

/// Tunes the pretrained model of a run on the dialogues of its data directory.
///
/// Dialogues are rendered in the K-EXAONE chat format; only the assistant's words are learned. Starts from
/// the last pretrain checkpoint of the run directory, and takes the architecture from there.
#[derive(clap::Args)]
#[command(after_help = "Example:
  dokja sft recipes/quickstart/sft.toml --run-dir run")]
pub(crate) struct Args {
    #[command(flatten)]
    stage: StageArgs,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    args.stage.run(Stage::Sft)
}
