//! `dokja generate`: continues a text, or token ids.

use crate::open::{self, OpenModel};
use crate::progress::tell;
use crate::{interrupt, print};
use anyhow::{Context, Result, bail};
use infer::{Engine, EngineConfig, FinishReason, Request, SamplingParams};
use serde_json::json;
use std::hash::{BuildHasher, RandomState};
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::Instant;
use tokenizer::chat::{ChatOptions, Message};
use tokenizer::{StreamDecoder, Tokenizer};

/// Tokens of an answer without `--max-tokens`; the context may leave fewer.
pub(crate) const MAX_TOKENS: usize = 1024;

/// Continues a text or token ids, and prints what comes as it comes.
///
/// The same model, prompt, parameters and seed give the same tokens, with any number of threads. The
/// answer ends before a token that ends texts (the model's eos_token_id, the end of a turn or of a
/// document), or after --max-tokens.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A run directory, a checkpoint directory or a .gguf file.
    model: PathBuf,
    #[command(flatten)]
    input: Input,
    /// Put the prompt as a user's message into the chat format, for models tuned to answer.
    #[arg(long, conflicts_with = "ids")]
    chat: bool,
    /// Do not end at the tokens that end texts.
    #[arg(long)]
    ignore_eos: bool,
    #[command(flatten)]
    sampling: Sampling,
    /// Print one JSON object at the end.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    run: open::RunArgs,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct Input {
    /// The text to continue.
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// Token ids to continue, separated by commas.
    #[arg(long, value_name = "1,2,3", value_delimiter = ',')]
    ids: Option<Vec<u32>>,
}

/// How tokens are drawn, for every command that generates.
#[derive(clap::Args)]
pub(crate) struct Sampling {
    /// Tokens to generate at most [default: 1024, or what the context leaves].
    #[arg(long, value_name = "N")]
    pub(crate) max_tokens: Option<usize>,
    /// 0 always takes the likeliest token; 1 draws as the model says; more is more random.
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temperature: f32,
    /// Seed of the draws [default: another one each time].
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Draw from the likeliest tokens that together have this probability.
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f32,
    /// Draw from this many of the likeliest tokens; 0 is all.
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: usize,
    /// Draw from tokens at least this fraction as likely as the likeliest.
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    min_p: f32,
    /// Subtracted from the logit of every token that the answer holds already, -2 to 2.
    #[arg(
        long,
        value_name = "X",
        default_value_t = 0.0,
        allow_negative_numbers = true
    )]
    presence_penalty: f32,
    /// The same, once for each time.
    #[arg(
        long,
        value_name = "X",
        default_value_t = 0.0,
        allow_negative_numbers = true
    )]
    frequency_penalty: f32,
}

impl Sampling {
    /// The parameters; without `--seed` one that nobody has had.
    pub(crate) fn params(&self) -> SamplingParams {
        SamplingParams {
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            min_p: self.min_p,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            // 32 bits, which every reader of JSON takes as they are.
            seed: self
                .seed
                .unwrap_or_else(|| RandomState::new().hash_one(0) >> 32),
            logprobs: None,
        }
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let params = args.sampling.params();
    params.validate()?;
    let model = open::model(&args.model, &args.run)?;
    let prompt_ids = prompt_ids(args, &model)?;
    let tokenizer = model.tokenizer_if_any();
    let tokenizer = tokenizer.as_deref();
    interrupt::listen()?;
    let mut engine = model.engine(one_sequence())?;
    let request = Request {
        prompt_ids: prompt_ids.clone(),
        max_tokens: args.sampling.max_tokens.unwrap_or(MAX_TOKENS),
        sampling: params.clone(),
        stop_ids: match args.ignore_eos {
            true => Vec::new(),
            false => model.stop_ids(),
        },
        budget: None,
    };
    let began = Instant::now();
    let mut out = std::io::stdout();
    let answer = speak(&mut engine, tokenizer, request, &mut |text| {
        if args.json {
            return true;
        }
        // A reader that has gone away has heard enough.
        out.write_all(text.as_bytes())
            .and_then(|()| out.flush())
            .is_ok()
    })?;
    let stats = engine.stats();
    let reason = match answer.end {
        End::Finished(FinishReason::Stop) => "stop",
        End::Finished(_) => "length",
        End::Stopped => "abort",
    };
    if args.json {
        let result = json!({
            "ids": answer.ids,
            "text": answer.text,
            "finish_reason": reason,
            "draft_accepted": stats.draft_accepted,
            "draft_proposed": stats.draft_proposed,
            "prompt_ids": prompt_ids,
            "seed": params.seed,
        });
        print(&result.to_string());
    } else {
        print("");
        if std::io::stderr().is_terminal() {
            let (tokens, seconds) = (answer.ids.len(), began.elapsed().as_secs_f64());
            let rate = tokens as f64 / seconds.max(1e-9);
            tell(&format!("[{tokens} tokens, {rate:.1} tokens/s, {reason}]"));
        }
    }
    if interrupt::is_asked() {
        bail!(interrupt::Interrupted("the answer is not complete".into()));
    }
    Ok(())
}

/// The ids of `--ids`, or of the text as it stands, or of the text as a user's message.
fn prompt_ids(args: &Args, model: &OpenModel) -> Result<Vec<u32>> {
    if let Some(ids) = &args.input.ids {
        return Ok(ids.clone());
    }
    let text = args.input.prompt.as_deref().unwrap_or_default();
    let tokenizer = model.tokenizer()?;
    if !args.chat {
        return Ok(tokenizer.encode(text));
    }
    let options = ChatOptions {
        enable_thinking: false,
        add_generation_prompt: true,
        tools: &[],
    };
    let format = model.chat_format()?;
    let prompt = format.prompt(&tokenizer, &[Message::user(text)], &options);
    Ok(prompt.context("--chat")?.ids)
}

/// An engine for one request at a time.
pub(crate) fn one_sequence() -> EngineConfig {
    EngineConfig {
        max_num_seqs: 1,
        max_num_waiting: 1,
        ..EngineConfig::default()
    }
}

/// How an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// By itself.
    Finished(FinishReason),
    /// By Ctrl-C, or because nobody listens any more.
    Stopped,
}

/// What a model said.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Without the token that ended it.
    pub(crate) ids: Vec<u32>,
    /// Its text; empty without a tokenizer.
    pub(crate) text: String,
    pub(crate) end: End,
}

/// Runs one request and hands on its text in pieces as they are made; without a tokenizer the ids,
/// separated by commas. A piece that is not wanted (`false`), or Ctrl-C, ends it.
pub(crate) fn speak(
    engine: &mut Engine,
    tokenizer: Option<&Tokenizer>,
    request: Request,
    hear: &mut dyn FnMut(&str) -> bool,
) -> Result<Answer> {
    let id = engine.submit(request)?;
    let mut answer = Answer {
        ids: Vec::new(),
        text: String::new(),
        end: End::Stopped,
    };
    let mut stream = StreamDecoder::new(true);
    let mut is_heard = true;
    while !engine.is_idle() {
        if interrupt::is_asked() || !is_heard {
            engine.abort(id);
            break;
        }
        for event in engine.step() {
            if !is_heard {
                break;
            }
            if event.finish_reason == Some(FinishReason::NotFinite) {
                bail!(
                    "the model's output is not finite after {} tokens: its weights are broken, or its \
                     training diverged",
                    answer.ids.len()
                );
            }
            if let Some(token) = event.token
                && event.finish_reason != Some(FinishReason::Stop)
            {
                answer.ids.push(token.id);
                match tokenizer {
                    Some(tokenizer) => {
                        let piece = stream.push(tokenizer, token.id);
                        is_heard &= piece.is_empty() || hear(&piece);
                        answer.text.push_str(&piece);
                    }
                    None if answer.ids.len() == 1 => is_heard &= hear(&token.id.to_string()),
                    None => is_heard &= hear(&format!(",{}", token.id)),
                }
            }
            if let Some(reason) = event.finish_reason {
                answer.end = End::Finished(reason);
            }
        }
    }
    let rest = stream.finish();
    if !rest.is_empty() {
        hear(&rest);
        answer.text.push_str(&rest);
    }
    Ok(answer)
}
