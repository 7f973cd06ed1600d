//! `dokja eval`: what a model is worth, by a suite.

use crate::open::OpenModel;
use crate::progress::{Progress, Unit, tell};
use crate::{env, open, print, training};
use ::eval::evaluation::{Answered, Evaluation, FileBits, FileDrift};
use ::eval::local::Local;
use ::eval::server::{Server, ServerOptions};
use ::eval::suite::{self, SettingError};
use ::eval::{
    Comparison, Identity, SUITES, Settings, Target, bits_per_byte, builtin, compare, drift,
};
use anyhow::{Context, Result};
use clap::builder::PossibleValuesParser;
use clap::error::ErrorKind;
use data::manifest::Manifest;
use formats::keys::Key;
use formats::ledger::{Event, Ledger, LedgerError};
use formats::run_dir::{RunDir, Stage};
use infer::EngineConfig;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Scores a model, at hand or behind a URL, by a suite.
///
/// The result is one JSON document with every item, kept in eval/ of the run directory that the model lies in (and
/// recorded in its ledger, where the run is yours), or in --out. The same model and settings give the
/// same document.
#[derive(clap::Args)]
#[command(after_help = after_help())]
pub(crate) struct Args {
    /// A run directory, a checkpoint directory, a .gguf file, or the URL of an OpenAI-compatible server.
    #[arg(value_name = "MODEL or URL")]
    model: String,
    /// The suite.
    #[arg(long, short, value_parser = PossibleValuesParser::new(SUITES.map(|suite| suite.name)))]
    suite: String,
    /// A setting of the suite; may be given several times.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// The directory that the document goes to, as NAME.json.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// An earlier document of the same suite and settings: also print what changed, item by item.
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// The model's name on the server [default: the first that the server lists].
    #[arg(long, value_name = "NAME")]
    served_model: Option<String>,
    /// Questions under way at once on a server.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    concurrency: u16,
    /// Print one JSON object: the whole document.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    run: open::RunArgs,
}

/// The suites and their settings.
fn after_help() -> String {
    let mut text = String::from("Suites:\n");
    for suite in SUITES {
        let _ = writeln!(
            text,
            "  {} (version {}): {}",
            suite.name, suite.version, suite.about
        );
        for setting in suite.settings {
            let default = setting
                .default
                .map_or("needed".to_owned(), |d| format!("default {d}"));
            let _ = writeln!(
                text,
                "      {:<11} {} ({default})",
                setting.key, setting.about
            );
        }
    }
    text.push_str(
        "\nExamples:
  dokja eval run --suite builtin
  dokja eval run --suite builtin --set per_area=400 --set areas=mathematics,knowledge
  dokja eval run --suite bits-per-byte --set files=ko.txt,en.txt --json
  dokja eval model-q4_k.gguf --suite drift --set reference=model --set files=ko.txt
  DOKJA_API_KEY=... dokja eval https://host/v1 --suite builtin --served-model NAME --out results",
    );
    text
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if args.suite == drift::INFO.name {
        return run_drift(args);
    }
    let is_server = ["http://", "https://"]
        .iter()
        .any(|s| args.model.starts_with(s));
    let (mut target, home): (Box<dyn Target>, Home) = match is_server {
        true => (Box::new(connect(args)?), Home::default()),
        false => {
            // Settings are checked before weights are read.
            settings(args, &[])?;
            let model = open::model(Path::new(&args.model), &args.run)?;
            let home = Home::of(&model)?;
            (Box::new(local(&model, &args.model, &home)?), home)
        }
    };
    let settings = settings(args, &home.settings)?;
    match settings.suite().name {
        "builtin" => {
            let result = run_builtin(target.as_mut(), &settings)?;
            let compared = args.against.as_deref().map(|path| against(path, &result));
            let compared = compared.transpose()?;
            let path = keep(args, &home, &result)?;
            let mut text = describe_answers(&result);
            if let Some(compared) = &compared {
                text.push_str(&describe_change(compared));
            }
            finish(args, &result, path, text, json!({ "comparison": compared }))
        }
        _ => {
            let result = run_bits_per_byte(target.as_mut(), &settings)?;
            let path = keep(args, &home, &result)?;
            let files = result.items.iter();
            let files = files.map(|item| (item.file.clone(), json!(item.bits_per_byte)));
            let more = json!({ "files": files.collect::<serde_json::Map<_, _>>() });
            finish(args, &result, path, describe_files(&result), more)
        }
    }
}

/// The settings given, over those that the model's run implies. What cannot be set is wrong use.
fn settings(args: &Args, implied: &[String]) -> Result<Settings> {
    let known = suite::find(&args.suite)?;
    let fits = |text: &&String| {
        known
            .settings
            .iter()
            .any(|s| text.starts_with(&format!("{}=", s.key)))
    };
    let all: Vec<&String> = implied.iter().filter(fits).chain(&args.sets).collect();
    Ok(
        Settings::new(known, &all).unwrap_or_else(|e: SettingError| {
            let text = format!("{e}\n\nSee `dokja eval --help` for the settings of every suite.\n");
            clap::Error::raw(ErrorKind::ValueValidation, text).exit()
        }),
    )
}

/// What is known of a model from the run it lies in.
#[derive(Default)]
struct Home {
    run: Option<RunDir>,
    settings: Vec<String>,
    training_len: Option<usize>,
}

impl Home {
    fn of(model: &OpenModel) -> Result<Home> {
        // RUN/<stage>/checkpoints/step-N
        let dir = std::fs::canonicalize(&model.path).unwrap_or_else(|_| model.path.clone());
        let Some(run) = dir
            .ancestors()
            .nth(3)
            .map(RunDir::new)
            .filter(RunDir::is_run)
        else {
            return Ok(Home::default());
        };
        let path = run.recipe(Stage::Pretrain);
        let recipe = match path.exists() {
            true => training::read_recipe(&path, &[])
                .inspect_err(|e| tell(&format!("note: {e:#}; its settings are not used")))
                .ok(),
            false => None,
        };
        let of_recipe = recipe.as_ref().and_then(|recipe| recipe.data.dir.clone());
        let data = of_recipe.unwrap_or_else(|| run.data());
        let builtin = match data.join(data::manifest::FILE_NAME).is_file() {
            true => Manifest::open(&data)?.builtin,
            false => None,
        };
        Ok(Home {
            settings: builtin
                .iter()
                .map(|b| format!("world={}", b.world_seed))
                .collect(),
            training_len: recipe.map(|recipe| recipe.train.seq_len),
            run: Some(run),
        })
    }
}

fn local(model: &OpenModel, name: &str, home: &Home) -> Result<Local> {
    let tokenizer = model.tokenizer()?;
    let identity = Identity {
        model: name.to_owned(),
        weights_sha256: Some(model.weights_sha256()?),
    };
    let config = EngineConfig {
        max_num_seqs: 32,
        ..EngineConfig::default()
    };
    let engine = model.engine(config)?;
    let local = Local::new(
        engine,
        tokenizer,
        identity,
        model.stop_ids(),
        model.document_start()?,
        home.training_len,
    );
    Ok(local.with_chat_format(model.chat_format()?))
}

fn connect(args: &Args) -> Result<Server> {
    let options = ServerOptions {
        api_key: env::api_key(),
        model: args.served_model.clone(),
        concurrency: usize::from(args.concurrency),
        ..ServerOptions::default()
    };
    Ok(Server::connect(&args.model, options)?)
}

/// Asks the questions of the suite `builtin`, with a progress bar.
pub(crate) fn run_builtin(
    target: &mut dyn Target,
    settings: &Settings,
) -> Result<Evaluation<Answered>> {
    let mut bar: Option<Progress> = None;
    let result = builtin::run(target, settings, &mut |done, total| {
        let start = || Progress::new("answering", Unit::Of("questions"), 0, total as u64);
        bar.get_or_insert_with(start).set(done as u64);
    });
    if let (Some(bar), Ok(_)) = (bar, &result) {
        bar.finish();
    }
    Ok(result?)
}

fn run_bits_per_byte(target: &mut dyn Target, settings: &Settings) -> Result<Evaluation<FileBits>> {
    with_file_progress("scoring", &mut |progress| {
        bits_per_byte::run(target, settings, progress)
    })
}

/// What a suite over files tells while it runs: the file, the tokens that are done, and all of them.
type FileProgress<'a> = &'a mut dyn FnMut(&str, usize, usize);

/// Runs a suite over files with a progress bar for each.
fn with_file_progress<T, E>(
    what: &str,
    run: &mut dyn FnMut(FileProgress) -> Result<T, E>,
) -> Result<T>
where
    anyhow::Error: From<E>,
{
    let mut bar: Option<(String, Progress)> = None;
    let result = run(&mut |file, done, total| {
        if bar.as_ref().is_none_or(|(of, _)| of != file) {
            if let Some((_, finished)) = bar.take() {
                finished.finish();
            }
            let name = format!("{what} {file}");
            let new = Progress::new(&name, Unit::Of("tokens"), 0, total as u64);
            bar = Some((file.to_owned(), new));
        }
        if let Some((_, bar)) = &mut bar {
            bar.set(done as u64);
        }
    });
    if let (Some((_, bar)), Ok(_)) = (bar, &result) {
        bar.finish();
    }
    Ok(result?)
}

/// Compares a model with the one it was made of.
fn run_drift(args: &Args) -> Result<()> {
    let settings = settings(args, &[])?;
    let path = |name: &str| PathBuf::from(&settings.values()[name]);
    let model = open::model(Path::new(&args.model), &args.run)?;
    let reference = open::model(&path("reference"), &args.run)?;
    let home = Home::of(&model)?;
    let mut of_model = local(&model, &args.model, &home)?;
    let name = reference.path.display().to_string();
    let mut of_reference = local(&reference, &name, &Home::default())?;
    let result = with_file_progress("comparing", &mut |progress| {
        drift::run(&mut of_model, &mut of_reference, &settings, progress)
    })?;
    let kept = keep(args, &home, &result)?;
    let items = result.items.iter();
    let agreement = items.clone().map(|item| item.top1_agreement).sum::<f64>() / items.len() as f64;
    let more = json!({ "kl_divergence": result.score, "top1_agreement": agreement });
    finish(args, &result, kept, describe_drift(&result), more)
}

fn describe_drift(result: &Evaluation<FileDrift>) -> String {
    let mut text = format!(
        "drift from {}, windows of {} tokens; the smaller the better\n\n",
        result.settings["reference"], result.settings["window"]
    );
    let width = result.items.iter().map(|item| item.file.len()).max();
    for item in &result.items {
        let _ = writeln!(
            text,
            "  {:<width$}  KL {:.5} nats ({:.5} to {:.5}), same likeliest token {:.2} %, perplexity {:.3} \
             (reference {:.3}), {} tokens",
            item.file,
            item.kl_divergence,
            item.ci95[0],
            item.ci95[1],
            item.top1_agreement,
            item.perplexity,
            item.reference_perplexity,
            item.tokens,
            width = width.unwrap_or(0)
        );
    }
    let _ = writeln!(text, "  mean KL {:.5} nats", result.score);
    text
}

fn against(path: &Path, result: &Evaluation<Answered>) -> Result<Comparison> {
    let before = Evaluation::<Answered>::read(path)?;
    compare(&before, result).with_context(|| format!("cannot compare with {}", path.display()))
}

/// Writes the document where it belongs; None where nobody asked for it.
fn keep<I>(args: &Args, home: &Home, result: &Evaluation<I>) -> Result<Option<PathBuf>>
where
    I: Serialize + DeserializeOwned,
{
    if let Some(dir) = &args.out {
        let path = dir.join(format!("{}.json", result.name()));
        result.write(&path)?;
        return Ok(Some(path));
    }
    let Some(run) = &home.run else {
        return Ok(None);
    };
    let key = env::key_path().and_then(|path| Ok(Key::load(&path)?));
    let kept = key.and_then(|key| record(run, result, key));
    if let Err(e) = &kept {
        tell(&format!(
            "note: the result is not recorded in {} ({e:#}); --out keeps it elsewhere",
            run.root().display()
        ));
    }
    Ok(kept.ok())
}

/// Writes an evaluation into `eval/` of its run and appends its record to the ledger. One that is there already
/// stays as it was recorded.
pub(crate) fn record<I>(run: &RunDir, result: &Evaluation<I>, key: Key) -> Result<PathBuf>
where
    I: Serialize + DeserializeOwned,
{
    let path = run.eval(&result.name());
    let event = result
        .to_record()
        .context("the model's weights are not at hand")?;
    let mut ledger = Ledger::open_or_create(run.root(), key)?;
    let file = run.relative(&path).unwrap_or_default();
    let is_recorded = |ledger: &Ledger| {
        let mut artefacts = ledger.records().iter().flat_map(|record| &record.artefacts);
        artefacts.any(|artefact| artefact.path == file)
    };
    if !is_recorded(&ledger) {
        result.write(&path)?;
        let artefact = ledger.artefact(&path)?;
        let appended: Result<_, LedgerError> = ledger.append(&Event::Eval(event), vec![artefact]);
        appended?;
    }
    Ok(path)
}

fn finish<I: Serialize>(
    args: &Args,
    result: &Evaluation<I>,
    path: Option<PathBuf>,
    mut text: String,
    more: Value,
) -> Result<()> {
    if args.json {
        let mut document = serde_json::to_value(result)?;
        if let (Value::Object(all), Value::Object(more)) = (&mut document, more) {
            all.extend(more.into_iter().filter(|(_, value)| !value.is_null()));
            all.insert("path".to_owned(), json!(path));
        }
        print(&document.to_string());
        return Ok(());
    }
    if let Some(path) = path {
        let _ = write!(text, "\nall items: {}\n", path.display());
    }
    print(text.trim_end());
    Ok(())
}

/// Cells of a bar.
const BAR: usize = 30;

/// `########|####      `: filled up to the score, with the mark of a guesser.
fn bar(score: f64, chance: Option<f64>) -> String {
    let cell = |value: f64| ((value / 100.0 * BAR as f64).round() as usize).min(BAR);
    let mark = chance.map(|chance| cell(chance).min(BAR - 1));
    let shown = |at| match (Some(at) == mark, at < cell(score)) {
        (true, true) => '\u{2592}',
        (true, false) => '\u{250a}',
        (false, true) => '\u{2588}',
        (false, false) => '\u{b7}',
    };
    (0..BAR).map(shown).collect()
}

/// A table with a bar for each area.
pub(crate) fn describe_answers(result: &Evaluation<Answered>) -> String {
    let mut text = format!(
        "{}: {} questions to {}\n\n",
        result.suite,
        result.items.len(),
        result.model
    );
    let mut line =
        |name: &str, score: f64, ci: [f64; 2], chance: Option<f64>, points: Option<f64>| {
            let guesser = chance.map_or(String::new(), |c| format!("guesser {c:>4.1}"));
            let points = points.map_or(String::new(), |p| format!("{p:.2} points"));
            let _ = writeln!(
                text,
                "  {name:<19} {} {score:>5.1} %  ({:>5.1} to {:>5.1})  {guesser}  {points}",
                bar(score, chance),
                ci[0],
                ci[1]
            );
        };
    for (name, track) in &result.tracks {
        line(
            name,
            track.score,
            track.ci95,
            Some(track.chance),
            Some(track.points),
        );
    }
    line(
        "all",
        result.score,
        result.ci95,
        result.chance,
        result.points,
    );
    let count = |why: &str| {
        let problems = result
            .items
            .iter()
            .filter_map(|item| item.problem.as_deref());
        problems.filter(|problem| problem.starts_with(why)).count()
    };
    for (why, words) in [
        ("cut", "answers were cut at max_tokens"),
        (
            "not asked",
            "questions were too long for the model, and count as wrong",
        ),
    ] {
        if count(why) > 0 {
            let _ = writeln!(text, "  {} {words}", count(why));
        }
    }
    text.push_str("  in brackets: 95 % interval\n");
    text
}

fn describe_change(compared: &Comparison) -> String {
    let mut text = String::from("\nchange since the earlier document, in percentage points\n");
    let tracks = compared
        .tracks
        .iter()
        .map(|(name, change)| (name.as_str(), change));
    for (name, change) in tracks.chain([("all", &compared.total)]) {
        let _ = writeln!(
            text,
            "  {name:<19} {:>+6.1}  ({:+.1} to {:+.1})  {} gained, {} lost, p = {}",
            change.difference,
            change.ci95[0],
            change.ci95[1],
            change.gained,
            change.lost,
            match change.p_value {
                p if p < 1e-3 => format!("{p:.1e}"),
                p => format!("{p:.3}"),
            }
        );
    }
    text
}

fn describe_files(result: &Evaluation<FileBits>) -> String {
    let mut text = format!(
        "bits per byte, windows of {} tokens; the smaller the better\n\n",
        result.settings["window"]
    );
    let width = result
        .items
        .iter()
        .map(|item| item.file.chars().count())
        .max();
    let width = width.unwrap_or(4).clamp(4, 60);
    for item in &result.items {
        let _ = writeln!(
            text,
            "  {:<width$}  {:.4}  ({:.3} to {:.3})  {} bytes, {} tokens",
            item.file, item.bits_per_byte, item.ci95[0], item.ci95[1], item.bytes, item.tokens
        );
        if item.is_changed {
            let _ = writeln!(
                text,
                "  {:<width$}  (scored in its composed form, NFC; bytes are those of the file)",
                ""
            );
        }
    }
    let _ = writeln!(
        text,
        "  {:<width$}  {:.4}  ({:.3} to {:.3})",
        "mean", result.score, result.ci95[0], result.ci95[1]
    );
    text
}
