//! `dokja bench tokenize`: text to ids, in memory.

use crate::cmd::tokenizer;
use crate::progress::{bytes, tell};
use crate::{env, interrupt, print};
use anyhow::{Context, Result, bail};
use serde_json::json;
use std::path::PathBuf;
use std::time::Instant;

/// Times turning text into ids.
///
/// The file is read before; its lines are encoded as `dokja tokenizer encode` does it, on all threads. A megabyte
/// is a million bytes.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  dokja bench tokenize tokenizer.json text.txt
  DOKJA_THREADS=1 dokja bench tokenize run text.txt --json")]
pub(crate) struct Args {
    /// A tokenizer.json, or a run or checkpoint directory that has one.
    tokenizer: PathBuf,
    /// A text in UTF-8.
    file: PathBuf,
    /// Runs over the whole text that are timed, after one that is not; the median is told.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    runs: u32,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    interrupt::end_at_once()?;
    let tokenizer = tokenizer::open(&args.tokenizer)?;
    let threads = env::threads()?;
    let text = std::fs::read_to_string(&args.file);
    let text = text.with_context(|| format!("cannot read {}", args.file.display()))?;
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    if lines.is_empty() {
        bail!("{} is empty", args.file.display());
    }
    tell("timing");
    let (mut seconds, mut tokens) = (Vec::new(), 0);
    for run in 0..=args.runs {
        let began = Instant::now();
        let ids = tokenizer.encode_batch(&lines, threads);
        if run > 0 {
            seconds.push(began.elapsed().as_secs_f64());
        }
        tokens = ids.iter().map(Vec::len).sum();
    }
    seconds.sort_by(f64::total_cmp);
    let rate = text.len() as f64 / 1e6 / seconds[seconds.len() / 2];
    let bytes_per_token = text.len() as f64 / tokens as f64;
    print(&match args.json {
        true => json!({
            "mb_per_sec": rate,
            "bytes_per_token": bytes_per_token,
            "bytes": text.len(),
            "tokens": tokens,
            "runs": args.runs,
            "threads": threads,
        })
        .to_string(),
        false => format!(
            "{rate:.1} MB/s on {threads} threads, {bytes_per_token:.3} bytes per token of {}",
            bytes(text.len() as u64)
        ),
    });
    Ok(())
}
