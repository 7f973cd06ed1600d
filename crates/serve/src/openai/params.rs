//! What the two kinds of request share: how long, how drawn, how returned.

use crate::openai::error::ApiError;
use crate::openai::fields::{Fields, mismatch};
use infer::SamplingParams;
use serde_json::Value;
use std::hash::{BuildHasher, Hasher, RandomState};

/// The shared parameters of a request.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Params {
    /// `None` is up to the end of the context.
    pub(crate) max_tokens: Option<usize>,
    pub(crate) sampling: SamplingParams,
    pub(crate) stop: Vec<String>,
    /// Whether the end-of-turn token is a token like any other (for measurements of speed).
    pub(crate) ignore_eos: bool,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
}

/// Stop strings of a request at most, and bytes of each: the search repeats with every token.
const MAX_STOPS: usize = 16;
const MAX_STOP_BYTES: usize = 1024;

/// Fields that OpenAI's clients send and that change no answer.
const IGNORED: &[&str] = &[
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "prediction",
];

/// Fields of both kinds of request that would change the answer, with the values that ask for nothing.
const UNSUPPORTED: &[(&str, &[&str])] = &[
    ("n", &["1"]),
    ("logit_bias", &["{}"]),
    ("repetition_penalty", &["1.0", "1"]),
];

impl Params {
    /// Reads the shared fields; `defaults` holds for what is not given. Log-probabilities are asked for
    /// differently by the two kinds of request, which fill them in.
    pub(crate) fn read(
        fields: &mut Fields,
        defaults: &SamplingParams,
        max_tokens: Option<usize>,
    ) -> Result<Params, ApiError> {
        let sampling = SamplingParams {
            temperature: fields.f32("temperature")?.unwrap_or(defaults.temperature),
            top_p: fields.f32("top_p")?.unwrap_or(defaults.top_p),
            top_k: top_k(fields)?.unwrap_or(defaults.top_k),
            min_p: fields.f32("min_p")?.unwrap_or(defaults.min_p),
            presence_penalty: fields
                .f32("presence_penalty")?
                .unwrap_or(defaults.presence_penalty),
            frequency_penalty: fields
                .f32("frequency_penalty")?
                .unwrap_or(defaults.frequency_penalty),
            // A negative seed is as good as any.
            seed: fields.i64("seed")?.map_or_else(random, |seed| seed as u64),
            logprobs: None,
        };
        let stream = fields.bool("stream")?.unwrap_or(false);
        let mut include_usage = false;
        if let Some(mut options) = fields.object("stream_options")? {
            if !stream {
                let message = "stream_options is only allowed with \"stream\": true";
                return Err(ApiError::invalid("stream_options", message));
            }
            include_usage = options.bool("include_usage")?.unwrap_or(false);
            options.ignore(&["include_obfuscation"]);
            options.finish()?;
        }
        let params = Params {
            max_tokens: fields.count("max_tokens")?.or(max_tokens),
            sampling,
            stop: stop_strings(fields)?,
            ignore_eos: fields.bool("ignore_eos")?.unwrap_or(false),
            stream,
            include_usage,
        };
        fields.ignore(IGNORED);
        fields.refuse(UNSUPPORTED)?;
        Ok(params)
    }
}

/// -1 and 0 keep all.
fn top_k(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    let Some(top_k) = fields.i64("top_k")? else {
        return Ok(None);
    };
    let converted = usize::try_from(top_k.max(0)).ok().filter(|_| top_k >= -1);
    let message = || format!("top_k is {top_k}, allowed is -1 (all) or above");
    let converted = converted.ok_or_else(|| ApiError::invalid("top_k", message()))?;
    Ok(Some(converted))
}

/// A string, or an array of strings.
fn stop_strings(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    let expected = "a string or an array of strings";
    let values = match fields.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::Array(values)) => values,
        Some(value) => vec![value],
    };
    if values.len() > MAX_STOPS {
        let message = format!("stop has {} strings, at most {MAX_STOPS}", values.len());
        return Err(ApiError::invalid("stop", message));
    }
    let mut strings = Vec::with_capacity(values.len());
    for value in values {
        match value {
            Value::String(text) if (1..=MAX_STOP_BYTES).contains(&text.len()) => strings.push(text),
            Value::String(text) => {
                let message = format!(
                    "a stop string has {} bytes, allowed is 1 to {MAX_STOP_BYTES}",
                    text.len()
                );
                return Err(ApiError::invalid("stop", message));
            }
            other => return Err(mismatch("stop", expected, &other)),
        }
    }
    Ok(strings)
}

/// A number that nobody chose: the seed of a request that names none, and the name of an answer.
pub(crate) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}
