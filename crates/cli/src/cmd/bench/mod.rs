//! `dokja bench`: measured speed against the measured limits of this machine.

mod kernels;
mod train;

use anyhow::Result;

/// Measures speed against the limits of this machine.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    Kernels(kernels::Args),
    Train(train::Args),
}

pub(crate) fn run(args: &Args) -> Result<()> {
    match &args.command {
        Command::Kernels(args) => kernels::run(args),
        Command::Train(args) => train::run(args),
    }
}
