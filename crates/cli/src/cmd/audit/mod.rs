//! `dokja audit`: from a run's final weights back to its random start, and beside the weights of others.

mod compare;
mod replay;

use crate::print;
use crate::progress::tell;
use ::audit::{Certificate, Claim, Finding, Outcome, Report, Verdict, VerifyOptions};
use anyhow::{Context, Result, bail};
use serde_json::json;
use std::fmt::Write;
use std::path::PathBuf;

/// Whose model is it, and how does one know?
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    Verify(VerifyArgs),
    Replay(replay::Args),
    Compare(compare::Args),
    Report(ReportArgs),
}

/// Walks from a run's final weights back to its random start.
///
/// Checks the signature and place of every record of the ledger, the digest of every recorded file, that
/// each checkpoint names the weights it came from, and that the initial weights, computed again from
/// their seed, are the recorded ones. Says which link is broken. Exit status 0 only if the verdict is
/// valid.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  dokja audit verify run
  dokja audit verify run --head 4f1c...   also that the ledger still holds a record published earlier")]
struct VerifyArgs {
    #[command(flatten)]
    run: Run,
    /// Show every finding, not only what is wrong or open.
    #[arg(long)]
    all: bool,
}

/// Writes the certificate of a run: certificate.json for machines, certificate.html for people.
///
/// Tests what `dokja audit verify` tests, and tells it claim by claim, with what the tests cannot show.
/// Exit status 0 when the certificate is written, whatever its verdict.
#[derive(clap::Args)]
#[command(after_help = "Example:
  dokja audit report run --out certificate")]
struct ReportArgs {
    #[command(flatten)]
    run: Run,
    /// The directory for the two files; earlier ones in it are replaced.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

#[derive(clap::Args)]
struct Run {
    /// The run directory.
    run_dir: PathBuf,
    /// The public key that the run is expected to be signed with, known from elsewhere.
    #[arg(long, value_name = "HEX", value_parser = digest)]
    key: Option<String>,
    /// Digest of a record that was noted or published earlier: it must still be in the ledger.
    #[arg(long, value_name = "HEX", value_parser = digest)]
    head: Option<String>,
    /// Where the training data lies, if not where the ledger says.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

fn digest(text: &str) -> Result<String, String> {
    match formats::hash::is_sha256_hex(text) {
        true => Ok(text.to_owned()),
        false => Err("expected 64 lower-case hexadecimal digits".to_owned()),
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    match &args.command {
        Command::Verify(args) => verify(args),
        Command::Replay(args) => replay::run(args),
        Command::Compare(args) => compare::run(args),
        Command::Report(args) => report(args),
    }
}

fn walk(run: &Run) -> Result<Report> {
    if !run.run_dir.is_dir() {
        bail!(
            "{} is no directory; give a run directory, as `dokja pretrain --run-dir` makes it",
            run.run_dir.display()
        );
    }
    Ok(audit_run(
        &run.run_dir,
        &VerifyOptions {
            key: run.key.as_deref(),
            head: run.head.as_deref(),
            data_dir: run.data.as_deref(),
            ..VerifyOptions::default()
        },
    ))
}

/// `audit::verify` with this program's generator of initial weights.
pub(crate) fn audit_run(run_dir: &std::path::Path, options: &VerifyOptions<'_>) -> Report {
    ::audit::verify(
        run_dir,
        &VerifyOptions {
            initial_weights: Some(&initial_weights_sha256),
            ..*options
        },
    )
}

/// The digest of the model.safetensors that a random start would be written as.
fn initial_weights_sha256(config: &str, seed: u64, generator: &str) -> Result<String, String> {
    if generator != model::init::GENERATOR {
        return Err(format!(
            "this version computes {}, not {generator}",
            model::init::GENERATOR
        ));
    }
    let config = model::ModelConfig::from_json(config).map_err(|e| e.to_string())?;
    let layout = model::Layout::new(&config);
    let weights = model::init::initial_weights(&config, &layout, seed);
    train::checkpoint::weights_sha256(&layout, &weights).map_err(|e| e.to_string())
}

fn verify(args: &VerifyArgs) -> Result<()> {
    let report = walk(&args.run)?;
    print(&match args.run.json {
        true => serde_json::to_string(&report)?,
        false => describe(&report, args.all),
    });
    match report.verdict {
        Verdict::Valid => Ok(()),
        Verdict::Broken => bail!("the run is not what its ledger says"),
        Verdict::Incomplete => {
            bail!("the record does not reach from the final weights to the start")
        }
    }
}

fn report(args: &ReportArgs) -> Result<()> {
    let certificate = Certificate::new(&walk(&args.run)?);
    let out = &args.out;
    formats::run_dir::make_dir(out)?;
    certificate
        .write(out)
        .with_context(|| format!("no certificate was written to {}", out.display()))?;
    let page = out.join(::audit::certificate::PAGE_NAME);
    if args.run.json {
        let value = json!({
            "verdict": certificate.verdict,
            "weights_sha256": certificate.weights_sha256,
            "ledger_head": certificate.ledger_head,
            "json": formats::run_dir::RunDir::new(out).certificate(),
            "html": page,
        });
        print(&value.to_string());
    } else {
        print(&format!(
            "{}: the certificate is in {}",
            word(certificate.verdict),
            page.display()
        ));
    }
    if certificate.verdict != Verdict::Valid {
        tell("note: `dokja audit verify` says what is wrong or open");
    }
    Ok(())
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Valid => "valid",
        Verdict::Broken => "broken",
        Verdict::Incomplete => "incomplete",
    }
}

fn describe(report: &Report, all: bool) -> String {
    let mut text = format!("{}\n", word(report.verdict));
    if let Some(weights) = &report.weights_sha256 {
        let _ = writeln!(text, "  weights  {weights}");
    }
    let _ = writeln!(
        text,
        "  ledger   {} records, head {}",
        report.records, report.ledger_head
    );
    if let Some(key) = &report.key {
        let _ = writeln!(text, "  key      {key}");
    }
    text.push('\n');
    for claim in Claim::ALL {
        let findings: Vec<&Finding> = report
            .findings
            .iter()
            .filter(|f| f.claim == claim)
            .collect();
        let count = |result| findings.iter().filter(|f| f.result == result).count();
        let (ok, failed, open) = (
            count(Outcome::Ok),
            count(Outcome::Failed),
            count(Outcome::NotTested),
        );
        let state = match (ok, failed) {
            (_, 1..) => format!("contradicted ({failed} of {} findings)", findings.len()),
            (1.., _) if open > 0 => format!("holds ({ok} findings, {open} not tested)"),
            (1, _) => "holds (1 finding)".to_owned(),
            (ok, _) if ok > 1 => format!("holds ({ok} findings)"),
            _ => "not tested".to_owned(),
        };
        let _ = writeln!(text, "  {:<13} {state}", claim.title());
        for finding in findings {
            if all || finding.result != Outcome::Ok {
                let mark = match finding.result {
                    Outcome::Ok => "ok  ",
                    Outcome::Failed => "FAIL",
                    Outcome::NotTested => "open",
                };
                let _ = writeln!(text, "    {mark} {}: {}", finding.component, finding.detail);
            }
        }
    }
    text.trim_end().to_owned()
}
