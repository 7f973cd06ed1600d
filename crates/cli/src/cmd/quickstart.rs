//! `dokja quickstart`: the whole life of a small model on this machine.

use crate::cmd::{audit, serve as serving};
use crate::open::{OpenModel, RunArgs};
use crate::progress::{Progress, Unit, bytes, duration, grouped, tell};
use crate::sources::Sources;
use crate::training::{self, Job};
use crate::{env, interrupt, memory, open, print};
use ::audit::{Certificate, Verdict, VerifyOptions};
use anyhow::{Context, Result, bail};
use data::build::{BuildError, BuildOptions, Builtin, Options};
use data::manifest::Split;
use data::{Document, Manifest};
use eval::builtin::INFO;
use eval::local::Local;
use eval::{Answered, Evaluation, Identity, Settings};
use formats::ledger::{Event, Ledger};
use formats::run_dir::{RunDir, Stage};
use infer::{Engine, EngineConfig, ModelRunner};
use model::{Layout, Transformer, init};
use serde_json::json;
use serve::{ServeConfig, Server};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;
use train::{Outcome, Recipe, checkpoint};

/// Makes a small model from nothing, scores it, certifies it, and serves it.
///
/// Writes documents and dialogues about an invented town, learns a tokenizer, trains a model of
/// K-EXAONE's architecture from random numbers, teaches it to answer, asks it questions before and
/// after, walks the record back from the final weights to the random start, writes a report, and
/// answers in the browser. Takes minutes on two cores; needs nothing but this program.
#[derive(clap::Args)]
#[command(after_help = "Example:
  dokja quickstart --dir my-first-model --seed 7")]
pub(crate) struct Args {
    /// The run directory to make.
    #[arg(long, value_name = "DIR", default_value = "runs/out/quickstart")]
    dir: PathBuf,
    /// Seed of everything: the town, its texts, the initial weights, the order of training.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Go on where an interrupted quickstart stopped.
    #[arg(long)]
    resume: bool,
    /// Stop when the model is made, instead of serving it.
    #[arg(long)]
    no_serve: bool,
    /// The port to serve at; 0 takes any free one.
    #[arg(long, default_value_t = 8000)]
    port: u16,
    /// Print one JSON object; needs --no-serve.
    #[arg(long, requires = "no_serve")]
    json: bool,
}

/// Bytes of documents, and number of dialogues, of the built-in world.
const DOCUMENT_BYTES: u64 = 6_000_000;
const DIALOGUES: u64 = 12_000;
/// Ids of the tokenizer.
const VOCAB_SIZE: usize = 2048;

const PRETRAIN: &str = include_str!("../../../../recipes/quickstart/pretrain.toml");
const SFT: &str = include_str!("../../../../recipes/quickstart/sft.toml");

/// The two areas that the model is sized for.
const CORE: [&str; 2] = ["mathematics", "knowledge"];

pub(crate) fn run(args: &Args) -> Result<()> {
    let began = Instant::now();
    interrupt::listen()?;
    let run = RunDir::new(&args.dir);
    if !args.resume && (run.is_run() || run.data().exists()) {
        return Err(formats::run_dir::RunDirError::Occupied {
            path: args.dir.clone(),
        }
        .into());
    }
    let server = match args.no_serve {
        true => None,
        false => Some(Server::bind(ServeConfig {
            port: args.port,
            ..ServeConfig::default()
        })?),
    };
    let sets = [format!("seed={}", args.seed)];
    let pretrain = Recipe::from_toml(PRETRAIN, &sets)?;
    let sft = Recipe::from_toml(SFT, &sets)?;
    formats::run_dir::make_dir(run.root())?;

    step(1, "data: the town of Yunseul, in Korean and English");
    build_data(&run, args.seed)?;
    step(2, "tokenizer");
    learn_tokenizer(&run)?;
    step(3, "questions to a model of random numbers");
    let before = ask_untrained(&run, &pretrain)?;
    step(4, "pretraining");
    let pretrained = train(&run, Stage::Pretrain, &pretrain)?;
    record(&run, &before)?;
    step(5, "instruction tuning");
    train(&run, Stage::Sft, &sft)?;
    step(6, "the same questions again");
    let after = ask_trained(&run)?;
    record(&run, &after)?;
    step(7, "certificate and report");
    let certificate = certify(&run)?;
    let report = report::write(&run)?;

    let [score_before, score_after] = [&before, &after].map(core_score);
    let peak = memory::peak_bytes();
    if args.json {
        let areas = |evaluation: &Evaluation<Answered>| {
            let tracks = evaluation.tracks.iter();
            let scores = tracks.map(|(area, track)| (area.clone(), json!(track.score)));
            serde_json::Value::Object(scores.collect())
        };
        print(
            &json!({
                "run_dir": run.root(),
                "seconds": began.elapsed().as_secs_f64(),
                "score_before": score_before,
                "score_after": score_after,
                "areas_before": areas(&before),
                "areas_after": areas(&after),
                "bits_per_byte": pretrained.bits_per_byte,
                "certificate": certificate.verdict,
                "peak_rss_bytes": peak,
                "report": report,
            })
            .to_string(),
        );
    } else {
        print(&summary(&before, &after, &certificate, &pretrained));
        print(&format!(
            "\n  made in {}{}\n  report       {}\n  certificate  dokja audit verify {}",
            duration(began.elapsed().as_secs_f64()),
            peak.map_or(String::new(), |peak| format!(
                ", in at most {} of memory",
                bytes(peak)
            )),
            report.display(),
            run.root().display(),
        ));
    }
    if certificate.verdict != Verdict::Valid {
        bail!(
            "the certificate is not valid; `dokja audit verify {}` says why",
            run.root().display()
        );
    }
    match server {
        Some(server) => serving::answer(server, run.root(), None, &RunArgs::default()),
        None => Ok(()),
    }
}

fn step(number: u32, what: &str) {
    tell(&format!("{number} of 7  {what}"));
}

fn build_data(run: &RunDir, seed: u64) -> Result<()> {
    if run.data().exists() {
        return Ok(());
    }
    let what = BuildOptions {
        corpus: Vec::new(),
        builtin: Some(Builtin {
            world_seed: seed,
            text_seed: seed,
            bytes: DOCUMENT_BYTES,
            dialogues: DIALOGUES,
        }),
        options: Options::default(),
    };
    let mut bar = Progress::new("writing", Unit::Bytes, 0, DOCUMENT_BYTES);
    let built = data::build(&run.data(), &what, &mut |progress| {
        bar.set(progress.done_bytes);
        match interrupt::is_asked() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    });
    match built {
        Ok(_) => bar.finish(),
        Err(BuildError::Interrupted) => {
            return Err(interrupt::Interrupted("nothing was written".into()).into());
        }
        Err(e) => return Err(e.into()),
    }
    Ok(())
}

fn learn_tokenizer(run: &RunDir) -> Result<()> {
    if run.tokenizer().exists() {
        return Ok(());
    }
    let mut texts = Vec::new();
    for document in data::shard::records::<Document>(&run.data(), Split::Train)? {
        texts.push(document?.text);
    }
    let trainer = tokenizer::Trainer {
        vocab_size: VOCAB_SIZE,
        threads: env::threads()?,
        ..tokenizer::Trainer::default()
    };
    let tokenizer = trainer.train(texts, &mut |_| {})?;
    tokenizer.save(run.tokenizer())?;
    Ok(())
}

fn train(run: &RunDir, stage: Stage, recipe: &Recipe) -> Result<Outcome> {
    let trained = training::train(&Job {
        run: run.clone(),
        stage,
        recipe,
        resume: run.is_run(),
        is_tokenizer_ours: true,
    })?;
    Ok(trained.outcome)
}

/// The questions, put to the initial weights.
fn ask_untrained(run: &RunDir, recipe: &Recipe) -> Result<Evaluation<Answered>> {
    let path = run.eval("before");
    if path.exists() {
        return Ok(Evaluation::read(&path)?);
    }
    let sources = Sources::open(run, recipe)?;
    let config = sources.config(recipe)?;
    let layout = Layout::new(&config);
    let weights = init::initial_weights(&config, &layout, recipe.seed);
    let sha256 = checkpoint::weights_sha256(&layout, &weights)?;
    let device = env::device()?;
    let model = Transformer::new(&device, config, &weights, false);
    let runner = ModelRunner::new(device, model);
    let engine = Engine::new(Box::new(runner), EngineConfig::default())?;
    let stop_ids = vec![sources.specials.endofturn, sources.specials.eos];
    let start = sources.specials.eos;
    let tokenizer = sources.tokenizer.into();
    let identity = Identity {
        model: "random start".to_string(),
        weights_sha256: Some(sha256),
    };
    ask(
        run,
        "before",
        Local::new(engine, tokenizer, identity, stop_ids, start, None),
    )
}

/// The questions, put to the final weights.
fn ask_trained(run: &RunDir) -> Result<Evaluation<Answered>> {
    let path = run.eval("after");
    if path.exists() {
        return Ok(Evaluation::read(&path)?);
    }
    let model: OpenModel = open::model(run.root(), &RunArgs::default())?;
    let engine = model.engine(EngineConfig::default())?;
    let identity = Identity {
        model: "final weights".to_string(),
        weights_sha256: Some(model.weights_sha256()?),
    };
    let (tokenizer, stop_ids) = (model.tokenizer()?, model.stop_ids());
    let start = model.document_start()?;
    ask(
        run,
        "after",
        Local::new(engine, tokenizer, identity, stop_ids, start, None),
    )
}

fn ask(run: &RunDir, name: &str, mut target: Local) -> Result<Evaluation<Answered>> {
    let manifest = Manifest::open(&run.data())?;
    let world = manifest
        .builtin
        .context("the data of the run holds no built-in world")?
        .world_seed;
    let settings = Settings::new(&INFO, &[format!("world={world}"), "max_tokens=48".into()])?;
    let mut bar: Option<Progress> = None;
    let evaluation = eval::builtin::run(&mut target, &settings, &mut |done, total| {
        bar.get_or_insert_with(|| Progress::new("asking", Unit::Of("questions"), 0, total as u64))
            .set(done as u64);
    })?;
    if let Some(bar) = bar {
        bar.finish();
    }
    evaluation.write(&run.eval(name))?;
    Ok(evaluation)
}

/// Notes an evaluation in the ledger, once.
fn record(run: &RunDir, evaluation: &Evaluation<Answered>) -> Result<()> {
    let Some(record) = evaluation.to_record() else {
        return Ok(());
    };
    let name = match evaluation.model.as_str() {
        "random start" => "before",
        _ => "after",
    };
    let event = Event::Eval(record);
    let mut ledger = Ledger::open_or_create(run.root(), training::key()?)?;
    let payload = event.parts().1;
    if ledger
        .records()
        .iter()
        .any(|r| r.kind == "eval" && r.payload == payload)
    {
        return Ok(());
    }
    let artefact = ledger.artefact(&run.eval(name))?;
    ledger.append(&event, vec![artefact])?;
    Ok(())
}

fn certify(run: &RunDir) -> Result<Certificate> {
    let report = audit::audit_run(run.root(), &VerifyOptions::default());
    let certificate = Certificate::new(&report);
    certificate.write(run.root())?;
    Ok(certificate)
}

fn core_score(evaluation: &Evaluation<Answered>) -> f64 {
    evaluation
        .score_of(&CORE)
        .map_or(evaluation.score, |(score, _)| score)
}

fn summary(
    before: &Evaluation<Answered>,
    after: &Evaluation<Answered>,
    certificate: &Certificate,
    pretrained: &Outcome,
) -> String {
    let mut text = format!("\n  {:<22}{:>8}{:>8}\n", "score, of 100", "before", "after");
    for (area, track) in &after.tracks {
        let earlier = before.tracks.get(area).map_or(0.0, |track| track.score);
        let name = area.replace('_', " ");
        text.push_str(&format!("  {name:<22}{earlier:>8.1}{:>8.1}\n", track.score));
    }
    let name = CORE.join(" + ");
    let [earlier, later] = [before, after].map(core_score);
    text.push_str(&format!("  {name:<22}{earlier:>8.1}{later:>8.1}\n"));
    let bits = pretrained.bits_per_byte.unwrap_or(f64::NAN);
    let verdict = match certificate.verdict {
        Verdict::Valid => "valid",
        Verdict::Broken => "broken",
        Verdict::Incomplete => "incomplete",
    };
    text.push_str(&format!(
        "\n  {} tokens read, {bits:.3} bits per byte of held-out text\n  certificate  {verdict}",
        grouped(pretrained.tokens)
    ));
    text
}
