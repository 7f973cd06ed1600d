//! The one binary: parses the command line, calls a subcommand, prints its result.
//!
//! Results go to stdout, everything else to stderr. Exit status: 0 done, 1 failed, 2 wrong use.

mod checkpoint;
mod cmd;
mod env;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Build a K-EXAONE-architecture language model of one's own, and know what it computes.
#[derive(Parser)]
#[command(name = "dokja", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Computes logits, loss, chosen experts, and gradients on request, for given token ids.
    Logits(cmd::logits::Args),
    /// Explains a checkpoint directory: architecture layer by layer, parameters, bytes per token.
    Inspect(cmd::inspect::Args),
}

#[expect(clippy::print_stderr, reason = "where errors are told")]
fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Logits(args) => cmd::logits::run(&args),
        Command::Inspect(args) => cmd::inspect::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Prints a result to stdout. A reader that has gone away is not an error.
pub(crate) fn print(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stdout(), "{text}");
}
