//! The request of `/v1/completions`: text that goes on, without a chat format.

use crate::openai::error::ApiError;
use crate::openai::fields::{Fields, mismatch};
use crate::openai::params::Params;
use infer::SamplingParams;
use serde_json::Value;

/// A text, or its ids, to go on from.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Prompt {
    /// Special tokens may be spelt out in it: whoever uses this route writes the format.
    Text(String),
    Ids(Vec<u32>),
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct CompletionRequest {
    pub(crate) model: Option<String>,
    pub(crate) prompt: Prompt,
    pub(crate) params: Params,
}

const DEFAULT_MAX_TOKENS: usize = 16; // OpenAI's API reference

const UNSUPPORTED: &[(&str, &[&str])] = &[
    ("best_of", &["1"]),
    ("echo", &["false"]),
    ("suffix", &["\"\""]),
];

impl CompletionRequest {
    pub(crate) fn parse(
        body: Value,
        defaults: &SamplingParams,
    ) -> Result<CompletionRequest, ApiError> {
        let mut fields = Fields::new(body, "")?;
        let mut params = Params::read(&mut fields, defaults, Some(DEFAULT_MAX_TOKENS))?;
        params.sampling.logprobs = fields.count("logprobs")?;
        let request = CompletionRequest {
            model: fields.string("model")?,
            prompt: prompt(&mut fields)?,
            params,
        };
        fields.refuse(UNSUPPORTED)?;
        fields.finish()?;
        Ok(request)
    }
}

/// A string, an array of ids, or an array of one of these.
fn prompt(fields: &mut Fields) -> Result<Prompt, ApiError> {
    const EXPECTED: &str = "a string or an array of token ids";
    let mut value = fields.take("prompt").unwrap_or_default();
    if let Value::Array(values) = &mut value
        && matches!(values.first(), Some(Value::String(_) | Value::Array(_)))
    {
        if values.len() > 1 {
            let message = "prompt: several prompts in one request are not supported; send one";
            return Err(ApiError::invalid("prompt", message));
        }
        value = values.remove(0);
    }
    match value {
        Value::String(text) => Ok(Prompt::Text(text)),
        Value::Array(values) => {
            let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
            let ids = values
                .iter()
                .map(|value| id(value).ok_or_else(|| mismatch("prompt", EXPECTED, value)));
            Ok(Prompt::Ids(ids.collect::<Result<_, _>>()?))
        }
        other => Err(mismatch("prompt", EXPECTED, &other)),
    }
}
