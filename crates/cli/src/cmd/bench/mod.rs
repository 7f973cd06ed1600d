//! `dokja bench`: measured speed against the measured limits of this machine.

mod infer;
mod kernels;
mod serve;
mod tokenize;
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
    Prefill(infer::PrefillArgs),
    Decode(infer::DecodeArgs),
    Serve(serve::Args),
    Tokenize(tokenize::Args),
}

pub(crate) fn run(args: &Args) -> Result<()> {
    match &args.command {
        Command::Kernels(args) => kernels::run(args),
        Command::Train(args) => train::run(args),
        Command::Prefill(args) => infer::prefill(args),
        Command::Decode(args) => infer::decode(args),
        Command::Serve(args) => serve::run(args),
        Command::Tokenize(args) => tokenize::run(args),
    }
}
