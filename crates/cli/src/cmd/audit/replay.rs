//! `dokja audit replay`: parts of a run trained again.

use super::word;
use crate::interrupt::{self, Interrupted};
use crate::progress::{Progress, Unit, tell};
use crate::sources::Sources;
use crate::training::{self, Job};
use crate::{env, print};
use ::audit::Verdict;
use anyhow::{Context, Result, bail};
use formats::ledger::records::Genesis;
use formats::ledger::{self, Record, verify_chain};
use formats::run_dir::{RunDir, Stage};
use numerics::Rng;
use serde_json::json;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use train::Recipe;
use train::replay::{Difference, Segment};

/// Trains parts of a run again and compares bits.
///
/// A segment lies between two checkpoints of the ledger. Its first weights are read (or drawn from the seed) and held
/// against the ledger, then trained with the recorded recipe and the promised batches: each step must have the
/// recorded losses, and the end the recorded digests, bit for bit. Which segments are repeated is left to chance, so
/// that nobody knows before. Repeating all takes as long as training did. Nothing is written into the run, but for
/// the ids of its documents where they are missing.
///
/// Bits depend on the instruction set, not on threads: the recorded one is used where the processor has it. Exit
/// status 0 only if the verdict is valid.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  dokja audit replay run
  dokja audit replay run --segments 3 --json
  dokja audit replay run --segments 1000     all of them")]
pub(super) struct Args {
    /// The run directory.
    run_dir: PathBuf,
    /// How many segments are repeated.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    segments: u64,
    /// Draws the segments; by default it is chance, and told.
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Where the training data lies, if not where the ledger says.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// A segment that was repeated.
struct Repeated<'a> {
    segment: &'a Segment,
    difference: Option<Difference>,
}

pub(super) fn run(args: &Args) -> Result<()> {
    interrupt::listen()?;
    let run = RunDir::new(&args.run_dir);
    let records = records(&run)?;
    let all: Vec<Segment> = (Stage::ALL.iter())
        .flat_map(|&stage| train::replay::segments(&records, stage))
        .collect();
    let (there, gone): (Vec<&Segment>, Vec<&Segment>) =
        (all.iter()).partition(|segment| segment.missing(&run).is_none());
    if !gone.is_empty() {
        tell(&format!(
            "note: {} of {} segments cannot be repeated: the checkpoints they start from are gone",
            gone.len(),
            all.len()
        ));
    }
    // Half of the bits, so that every reader of JSON has the number as it is.
    let seed = (args.seed).unwrap_or_else(|| RandomState::new().hash_one(0) >> 32);
    let chosen = choose(there, args.segments, seed);
    let repeated = repeat(args, &run, &records, &chosen)?;
    let differs = repeated.iter().any(|r| r.difference.is_some());
    let verdict = match (repeated.is_empty(), differs) {
        (true, _) => Verdict::Incomplete,
        (_, true) => Verdict::Broken,
        _ => Verdict::Valid,
    };
    print(&match args.json {
        true => {
            let segments: Vec<_> = repeated.iter().map(Repeated::to_json).collect();
            json!({
                "verdict": verdict,
                "segments": segments,
                "recorded_segments": all.len(),
                "seed": seed,
            })
            .to_string()
        }
        false => {
            let lines: Vec<String> = repeated.iter().map(Repeated::describe).collect();
            format!(
                "{}: {} of {} segments repeated (--seed {seed})\n{}",
                word(verdict),
                repeated.len(),
                all.len(),
                lines.join("\n")
            )
        }
    });
    match verdict {
        Verdict::Valid => Ok(()),
        Verdict::Broken => {
            if let Some(genesis) = ledger::genesis(&records) {
                tell(&format!("note: {}", recorded_by(&genesis)));
            }
            bail!("trained again, the run does not give what its ledger says")
        }
        Verdict::Incomplete => bail!("no segment of the run can be repeated"),
    }
}

/// The records of a ledger that passes its own check.
fn records(run: &RunDir) -> Result<Vec<Record>> {
    if !run.is_run() {
        bail!(
            "{} holds no run; give a run directory, as `dokja pretrain --run-dir` makes it",
            run.root().display()
        );
    }
    let chain = verify_chain(run.root())?;
    if let Some((check, fault)) = chain.first_fault() {
        bail!(
            "{}: line {}: {fault}; `dokja audit verify` shows all of it",
            run.ledger().display(),
            check.line
        );
    }
    Ok(chain
        .records
        .into_iter()
        .filter_map(|check| check.record)
        .collect())
}

/// The first thing to look at when bits differ: other code has other bits.
fn recorded_by(genesis: &Genesis) -> String {
    let commit = |commit: Option<&str>| match commit {
        Some(commit) => format!("commit {commit}"),
        None => "an unknown commit".to_owned(),
    };
    format!(
        "the run was begun by dokja {}, {}, on {}; this is {}, {}",
        genesis.dokja_version,
        commit(genesis.code_commit.as_deref()),
        genesis.machine.cpu,
        env!("CARGO_PKG_VERSION"),
        commit(option_env!("DOKJA_COMMIT")),
    )
}

/// `count` of them at most, in their order.
fn choose(mut segments: Vec<&Segment>, count: u64, seed: u64) -> Vec<&Segment> {
    let mut rng = Rng::new(seed, "replayed segments");
    while segments.len() as u64 > count {
        segments.remove(rng.below(segments.len()));
    }
    segments
}

fn repeat<'a>(
    args: &Args,
    run: &RunDir,
    records: &[Record],
    segments: &[&'a Segment],
) -> Result<Vec<Repeated<'a>>> {
    let steps = segments.iter().map(|segment| segment.steps()).sum();
    let mut bar = Progress::new("repeating", Unit::Of("steps"), 0, steps);
    let isa = ledger::genesis(records)
        .context("the ledger does not say with which instruction set the run began")?
        .machine
        .isa;
    let (mut repeated, mut before) = (Vec::new(), 0);
    for stage in Stage::ALL {
        let of_stage: Vec<&Segment> = (segments.iter().copied())
            .filter(|segment| segment.end.stage == stage)
            .collect();
        if of_stage.is_empty() {
            continue;
        }
        let recipe = training::read_recipe(&run.recipe(stage), &[])?;
        let job = Job {
            run: run.clone(),
            stage,
            recipe: &recipe,
            resume: false,
            is_tokenizer_ours: false,
        };
        let sources = sources(args.data.as_deref(), run, records, &recipe)?;
        training::with_inputs(&job, &sources, |inputs, _| {
            for segment in of_stage {
                let device = env::device_of(&isa)?;
                let first = segment.first_step();
                let told = &mut |step| {
                    bar.set(before + step - first);
                    interrupt::stop_if_asked()
                };
                match train::replay::replay(device, inputs, records, segment, told)? {
                    Some(result) => repeated.push(Repeated {
                        segment,
                        difference: result.err(),
                    }),
                    None => return Err(Interrupted("nothing was written".into()).into()),
                }
                before += segment.steps();
                bar.set(before);
            }
            Ok(())
        })?;
    }
    bar.finish();
    Ok(repeated)
}

/// The data where the ledger says, or where the auditor does, and the tokenizer of the run.
fn sources(
    data: Option<&Path>,
    run: &RunDir,
    records: &[Record],
    recipe: &Recipe,
) -> Result<Sources> {
    let location = ledger::data(records).map(|data| run.root().join(data.location));
    let mut placed = recipe.clone();
    placed.data.dir = data.map(Path::to_path_buf).or(location);
    placed.data.tokenizer = Some(run.tokenizer());
    Sources::open(run, &placed)
}

impl Repeated<'_> {
    fn to_json(&self) -> serde_json::Value {
        let (segment, difference) = (self.segment, self.difference.as_ref());
        json!({
            "stage": segment.end.stage,
            "first_step": segment.first_step() + 1,
            "last_step": segment.end.step,
            "result": if difference.is_some() { "different" } else { "same" },
            "weights_sha256": segment.end.weights_sha256,
            "difference": difference.map(describe),
        })
    }

    fn describe(&self) -> String {
        let (segment, end) = (self.segment, &self.segment.end);
        let steps = format!(
            "{}, steps {} to {}",
            end.stage,
            segment.first_step() + 1,
            end.step
        );
        match &self.difference {
            None => format!("  same  {steps}: weights {}", &end.weights_sha256[..16]),
            Some(difference) => format!("  FAIL  {steps}: {}", describe(difference)),
        }
    }
}

fn describe(difference: &Difference) -> String {
    match difference {
        Difference::Start {
            what,
            recorded,
            found,
        } => {
            format!("the {what} it starts from: recorded {recorded}, found {found}")
        }
        Difference::Step { step, what } => {
            format!("step {step} has another {what} than metrics.jsonl says")
        }
        Difference::End {
            what,
            recorded,
            computed,
        } => {
            format!("the {what} at its end: recorded {recorded}, computed {computed}")
        }
    }
}
