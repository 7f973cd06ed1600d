//! `dokja serve`: answers over HTTP, and in a browser.

use crate::open::{self, OpenModel, RunArgs};
use crate::progress::tell;
use crate::{interrupt, print};
use anyhow::{Context, Result};
use data::Manifest;
use formats::gguf::Gguf;
use formats::run_dir::RunDir;
use infer::{EngineConfig, SamplingParams};
use serde_json::Value;
use serve::{ApiKeys, Examples, ServeConfig, ServedModel, Server, Shutdown};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Serves a model: an OpenAI-compatible API, and a page to talk to it in a browser.
///
/// Routes: / (the page), /v1/chat/completions, /v1/completions, /v1/models, /health. What a request does
/// not say is taken from the model's generation_config.json; without one, the likeliest token is always
/// taken. Models think before they answer only when asked to:
/// "chat_template_kwargs": {"enable_thinking": true}.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  dokja serve run
      for this machine only, at http://127.0.0.1:8000
  dokja serve run --host 0.0.0.0 --api-keys keys.txt
      for everybody who can reach this machine and has a key of the file
  curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\
      -d '{\"messages\": [{\"role\": \"user\", \"content\": \"Hello!\"}]}'")]
pub(crate) struct Args {
    /// A run directory, a checkpoint directory or a .gguf file.
    model: PathBuf,
    /// The address to listen at; 0.0.0.0 is all addresses of this machine.
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    /// The port to listen at; 0 takes any free one.
    #[arg(long, default_value_t = 8000)]
    port: u16,
    /// A file with one key a line; only clients that show one of them are answered.
    #[arg(long, value_name = "FILE")]
    api_keys: Option<PathBuf>,
    /// What clients call the model [default: the name of its directory].
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    run: RunArgs,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let api_keys = match &args.api_keys {
        None => ApiKeys::none(),
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            ApiKeys::parse(&text).with_context(|| format!("cannot use {}", path.display()))?
        }
    };
    let is_open = api_keys == ApiKeys::none();
    let config = ServeConfig {
        host: args.host.clone(),
        port: args.port,
        api_keys,
        ..ServeConfig::default()
    };
    let server = Server::bind(config)?;
    if server.is_public() && is_open {
        tell(
            "note: everybody who can reach this machine may ask; --api-keys FILE lets in only some",
        );
    }
    answer(server, &args.model, args.name.as_deref(), &args.run)
}

/// Answers with a model until somebody asks to stop. The port is taken already, so that a taken one is
/// told before anything else begins.
pub(crate) fn answer(
    server: Server,
    path: &Path,
    name: Option<&str>,
    args: &RunArgs,
) -> Result<()> {
    let model = open::model(path, args)?;
    let run = run_of(&model.path);
    let directory = run.as_ref().map_or(model.path.as_path(), RunDir::root);
    let name = name.map_or_else(|| directory_name(directory), str::to_owned);
    let examples = match run.is_some_and(|run| knows_the_town(&run)) {
        true => town_questions(),
        false => Examples::default(),
    };
    let url = server.url();
    tell(&format!("loading {}", model.path.display()));
    let served = ServedModel {
        name: name.clone(),
        tokenizer: model.tokenizer()?,
        chat_format: model.chat_format()?,
        stop_ids: model.stop_ids(),
        sampling: match model.gguf() {
            Some(file) => gguf_sampling(file)?,
            None => default_sampling(&model.path)?,
        },
        examples,
        engine: engine_of(model),
    };
    let shutdown = Shutdown::new();
    interrupt::listen()?;
    let handle = shutdown.clone();
    std::thread::spawn(move || {
        while !interrupt::is_asked() {
            std::thread::sleep(Duration::from_millis(50));
        }
        handle.request();
    });
    server.run(served, &shutdown, || {
        print(&format!(
            "{name} answers at {url} in a browser and at {url}/v1 as an OpenAI-compatible API; Ctrl-C stops it"
        ));
    })?;
    Err(interrupt::Interrupted("the server has stopped".into()).into())
}

fn engine_of(model: OpenModel) -> serve::EngineFactory {
    // The whole chain of an error in one sentence: the server shows only that.
    Box::new(move || {
        let engine = model.engine(EngineConfig::default());
        engine.map_err(|error| format!("{error:#}").into())
    })
}

/// The run that a checkpoint directory is part of.
fn run_of(checkpoint: &Path) -> Option<RunDir> {
    let checkpoint = std::fs::canonicalize(checkpoint).ok()?;
    // RUN_DIR/<stage>/checkpoints/step-<n>
    let run = RunDir::new(checkpoint.ancestors().nth(3)?);
    run.is_run().then_some(run)
}

fn directory_name(directory: &Path) -> String {
    let directory = std::fs::canonicalize(directory);
    let name = directory.as_ref().ok().and_then(|path| path.file_name());
    name.map_or_else(
        || "model".to_owned(),
        |name| name.to_string_lossy().into_owned(),
    )
}

/// Whether the run's data hold the built-in world.
fn knows_the_town(run: &RunDir) -> bool {
    Manifest::open(&run.data()).is_ok_and(|manifest| manifest.builtin.is_some())
}

/// What somebody may ask who has just heard of the town.
fn town_questions() -> Examples {
    let own = |questions: [&str; 4]| questions.map(str::to_owned).to_vec();
    Examples {
        ko: own([
            "밀물빵집은 무엇으로 유명한가요?",
            "47 + 38은 얼마인가요?",
            "윤슬마을의 등대지기는 누구인가요?",
            "윤슬이 무슨 뜻이에요?",
        ]),
        en: own([
            "What is the High Tide Bakery known for?",
            "What is 47 + 38?",
            "Who is the lighthouse keeper of Yunseul?",
            "What does Yunseul mean?",
        ]),
    }
}

/// What `generation_config.json` says of drawing tokens; without the file, the likeliest is taken.
fn default_sampling(dir: &Path) -> Result<SamplingParams> {
    let file = dir.join("generation_config.json");
    let mut sampling = SamplingParams::greedy();
    let text = match std::fs::read_to_string(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(sampling),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
    };
    let value: Value = serde_json::from_str(&text)
        .with_context(|| format!("{} is not valid JSON", file.display()))?;
    let number = |key: &str| value[key].as_f64().map(|x| x as f32);
    if value["do_sample"] != false {
        sampling.temperature = number("temperature").unwrap_or(1.0);
    }
    sampling.top_p = number("top_p").unwrap_or(sampling.top_p);
    sampling.min_p = number("min_p").unwrap_or(sampling.min_p);
    sampling.top_k = value["top_k"].as_u64().map_or(0, |k| k as usize);
    sampling
        .validate()
        .with_context(|| format!("cannot use {}", file.display()))?;
    Ok(sampling)
}

/// What a GGUF file says of drawing tokens (`general.sampling.*`); without it, the likeliest is taken.
fn gguf_sampling(file: &Gguf) -> Result<SamplingParams> {
    let key = |name: &str| format!("general.sampling.{name}");
    let number = |name: &str, default: f32| -> Result<f32> {
        Ok(match file.value(&key(name)) {
            Some(_) => file.f64(&key(name))? as f32,
            None => default,
        })
    };
    let mut sampling = SamplingParams::greedy();
    sampling.temperature = number("temp", sampling.temperature)?;
    sampling.top_p = number("top_p", sampling.top_p)?;
    sampling.min_p = number("min_p", sampling.min_p)?;
    if file.value(&key("top_k")).is_some() {
        sampling.top_k = usize::try_from(file.u64(&key("top_k"))?).unwrap_or(0);
    }
    sampling
        .validate()
        .with_context(|| format!("cannot use {}", file.path().display()))?;
    Ok(sampling)
}

#[cfg(test)]
mod tests {
    use super::*;
    use formats::gguf::{Value as Pair, write_gguf};

    #[test]
    fn a_gguf_file_says_how_its_tokens_are_drawn() {
        let dir = tempfile::tempdir().unwrap();
        let told = |pairs: &[(&str, Pair)]| {
            let file = dir.path().join("model.gguf");
            let pair =
                |(name, value): &(&str, Pair)| (format!("general.sampling.{name}"), value.clone());
            let pairs: Vec<_> = pairs.iter().map(pair).collect();
            write_gguf(&file, &pairs, &[]).unwrap();
            gguf_sampling(&Gguf::open(&file).unwrap())
                .map(|s| (s.temperature, s.top_p, s.top_k))
                .map_err(|e| format!("{e:#}"))
        };
        assert_eq!(told(&[]), Ok((0.0, 1.0, 0)));
        let published = [("temp", Pair::F32(1.0)), ("top_p", Pair::F32(0.95))];
        assert_eq!(told(&published), Ok((1.0, 0.95, 0)));
        assert_eq!(told(&[("top_k", Pair::U32(40))]), Ok((0.0, 1.0, 40)));
        let wrong = told(&[("temp", Pair::String("hot".into()))]).unwrap_err();
        assert!(wrong.contains("general.sampling.temp"), "{wrong}");
    }

    #[test]
    fn the_files_of_a_model_say_how_its_tokens_are_drawn() {
        let dir = tempfile::tempdir().unwrap();
        let drawn = |text: Option<&str>| {
            let file = dir.path().join("generation_config.json");
            match text {
                Some(text) => std::fs::write(file, text).unwrap(),
                None => drop(std::fs::remove_file(file)),
            }
            default_sampling(dir.path()).map(|s| (s.temperature, s.top_p, s.top_k))
        };
        assert_eq!(drawn(None).unwrap(), (0.0, 1.0, 0));
        let published = r#"{"do_sample": true, "temperature": 0.5, "top_p": 0.95, "top_k": 20}"#;
        assert_eq!(drawn(Some(published)).unwrap(), (0.5, 0.95, 20));
        assert_eq!(drawn(Some("{}")).unwrap(), (1.0, 1.0, 0));
        let greedy = r#"{"do_sample": false, "temperature": 0.5}"#;
        assert_eq!(drawn(Some(greedy)).unwrap().0, 0.0);
        let wrong = drawn(Some(r#"{"temperature": -1}"#)).unwrap_err();
        assert!(format!("{wrong:#}").contains("temperature is -1, allowed is 0 to 100"));
    }

    #[test]
    fn a_checkpoint_knows_its_run_and_the_run_its_world() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("my-run");
        let run = RunDir::create(&root).unwrap();
        run.create_stage(formats::run_dir::Stage::Sft).unwrap();
        let checkpoint = run.checkpoint(formats::run_dir::Stage::Sft, 1);
        std::fs::create_dir(&checkpoint).unwrap();
        assert!(
            run_of(&checkpoint).is_none(),
            "without a ledger it is no run"
        );
        std::fs::write(run.ledger(), "").unwrap();
        let found = run_of(&checkpoint).unwrap();
        assert_eq!(directory_name(found.root()), "my-run");
        assert!(!knows_the_town(&found));
    }
}
