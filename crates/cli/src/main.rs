//! The one binary: parses the command line, calls a subcommand, prints its result.
//!
//! Results go to stdout, everything else to stderr. Exit status: 0 done, 1 failed, 2 wrong use,
//! 130 interrupted.

mod cmd;
mod env;
mod fit;
mod interrupt;
mod memory;
mod open;
mod progress;
mod sources;
mod training;

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
    Quickstart(cmd::quickstart::Args),
    Data(cmd::data::Args),
    Tokenizer(cmd::tokenizer::Args),
    Pretrain(cmd::pretrain::Args),
    Sft(cmd::sft::Args),
    Prefer(cmd::prefer::Args),
    Rl(cmd::rl::Args),
    Generate(cmd::generate::Args),
    Chat(cmd::chat::Args),
    Serve(cmd::serve::Args),
    Eval(cmd::eval::Args),
    Audit(cmd::audit::Args),
    Convert(cmd::convert::Args),
    /// Computes logits, loss, chosen experts, and gradients on request, for given token ids.
    Logits(cmd::logits::Args),
    Inspect(cmd::inspect::Args),
    Bench(cmd::bench::Args),
    Plan(cmd::plan::Args),
    Doctor(cmd::doctor::Args),
}

#[expect(clippy::print_stderr, reason = "where errors are told")]
fn main() -> ExitCode {
    env::use_huge_pages();
    let result = match Cli::parse().command {
        Command::Quickstart(args) => cmd::quickstart::run(&args),
        Command::Data(args) => cmd::data::run(&args),
        Command::Tokenizer(args) => cmd::tokenizer::run(&args),
        Command::Pretrain(args) => cmd::pretrain::run(&args),
        Command::Sft(args) => cmd::sft::run(&args),
        Command::Prefer(args) => cmd::prefer::run(&args),
        Command::Rl(args) => cmd::rl::run(&args),
        Command::Generate(args) => cmd::generate::run(&args),
        Command::Chat(args) => cmd::chat::run(&args),
        Command::Serve(args) => cmd::serve::run(&args),
        Command::Eval(args) => cmd::eval::run(&args),
        Command::Audit(args) => cmd::audit::run(&args),
        Command::Convert(args) => cmd::convert::run(&args),
        Command::Logits(args) => cmd::logits::run(&args),
        Command::Inspect(args) => cmd::inspect::run(&args),
        Command::Plan(args) => cmd::plan::run(&args),
        Command::Bench(args) => cmd::bench::run(&args),
        Command::Doctor(args) => cmd::doctor::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            match error.is::<interrupt::Interrupted>() {
                true => ExitCode::from(interrupt::STATUS),
                false => ExitCode::FAILURE,
            }
        }
    }
}

/// Prints a result to stdout. A reader that has gone away is not an error.
pub(crate) fn print(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stdout(), "{text}");
}
