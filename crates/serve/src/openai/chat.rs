//! The request of `/v1/chat/completions`.

use crate::openai::error::ApiError;
use crate::openai::fields::{Fields, mismatch};
use crate::openai::params::Params;
use crate::openai::tools::{self, Tools};
use infer::SamplingParams;
use serde_json::Value;
use tokenizer::chat::{Message, Role};

/// A conversation that wants an answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ChatRequest {
    pub(crate) model: Option<String>,
    pub(crate) messages: Vec<Message>,
    pub(crate) tools: Tools,
    pub(crate) enable_thinking: bool,
    /// Tokens that the model may think before it has to answer.
    pub(crate) thinking_token_budget: Option<usize>,
    pub(crate) params: Params,
}

const MAX_TOP_LOGPROBS: usize = 20; // OpenAI's API reference

const UNSUPPORTED: &[(&str, &[&str])] = &[
    ("functions", &["[]"]),
    ("function_call", &["\"none\"", "\"auto\""]),
    ("response_format", &[r#"{"type":"text"}"#]),
    ("modalities", &[r#"["text"]"#]),
    ("audio", &[]),
    ("web_search_options", &[]),
    ("verbosity", &["\"medium\""]),
];

impl ChatRequest {
    pub(crate) fn parse(body: Value, defaults: &SamplingParams) -> Result<ChatRequest, ApiError> {
        let mut fields = Fields::new(body, "")?;
        let max_tokens = fields.count("max_completion_tokens")?;
        let mut params = Params::read(&mut fields, defaults, max_tokens)?;
        // The newer name wins where both are given.
        params.max_tokens = max_tokens.or(params.max_tokens);
        let wants_logprobs = fields.bool("logprobs")?.unwrap_or(false);
        let top_logprobs = fields.count("top_logprobs")?;
        if let Some(n) = top_logprobs {
            let message = match n {
                _ if !wants_logprobs => {
                    "top_logprobs is only allowed with \"logprobs\": true".into()
                }
                n if n > MAX_TOP_LOGPROBS => {
                    format!("top_logprobs is {n}, allowed is 0 to {MAX_TOP_LOGPROBS}")
                }
                _ => String::new(),
            };
            if !message.is_empty() {
                return Err(ApiError::invalid("top_logprobs", message));
            }
        }
        params.sampling.logprobs = wants_logprobs.then(|| top_logprobs.unwrap_or(0));
        let request = ChatRequest {
            model: fields.string("model")?,
            messages: messages(&mut fields)?,
            tools: Tools::read(&mut fields)?,
            thinking_token_budget: fields.count("thinking_token_budget")?,
            enable_thinking: enable_thinking(&mut fields)?,
            params,
        };
        if fields.take("reasoning_effort").is_some() {
            let message = "reasoning_effort is not supported; \
                           \"chat_template_kwargs\": {\"enable_thinking\": true} lets the model think, \
                           and thinking_token_budget says how long";
            return Err(ApiError::invalid("reasoning_effort", message));
        }
        fields.refuse(UNSUPPORTED)?;
        fields.finish()?;
        Ok(request)
    }
}

/// False unless asked for: models that were not taught to think answer worse when made to.
fn enable_thinking(fields: &mut Fields) -> Result<bool, ApiError> {
    let Some(mut kwargs) = fields.object("chat_template_kwargs")? else {
        return Ok(false);
    };
    let enable_thinking = kwargs.bool("enable_thinking")?.unwrap_or(false);
    kwargs.finish()?;
    Ok(enable_thinking)
}

fn messages(fields: &mut Fields) -> Result<Vec<Message>, ApiError> {
    let values = match fields.take("messages") {
        Some(Value::Array(values)) if !values.is_empty() => values,
        None | Some(Value::Array(_)) => {
            let message = "messages is missing or empty; give at least one message";
            return Err(ApiError::invalid("messages", message));
        }
        Some(other) => return Err(mismatch("messages", "an array", &other)),
    };
    let at = |index| format!("messages[{index}]");
    let parsed = values.into_iter().enumerate();
    parsed
        .map(|(index, value)| message(Fields::new(value, at(index))?))
        .collect()
}

fn message(mut fields: Fields) -> Result<Message, ApiError> {
    let path = fields.path("role");
    let role = match fields.string("role")?.as_deref() {
        Some("system" | "developer") => Role::System,
        Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        Some("tool") => Role::Tool,
        other => {
            let got = other.map_or("missing".to_owned(), |role| {
                format!("{:?}", role.chars().take(32).collect::<String>())
            });
            let message = format!("{path} is {got}, allowed are system, user, assistant and tool");
            return Err(ApiError::invalid(path, message));
        }
    };
    let mut tool_calls = Vec::new();
    if role == Role::Assistant {
        tool_calls = tools::calls(&mut fields)?;
    }
    // Beside calls nothing need be said.
    let content = match tool_calls.is_empty() {
        false if !fields.has("content") => String::new(),
        _ => content(&mut fields)?,
    };
    let mut message = Message::new(role, content).with_tool_calls(tool_calls);
    if role == Role::Assistant {
        message.reasoning = fields.string("reasoning_content")?;
    }
    if role == Role::Tool {
        message.tool_call_id = fields.string("tool_call_id")?;
    }
    // What clients send back of an answer, and what the chat format has no place for.
    fields.ignore(&["name", "refusal", "annotations"]);
    fields.refuse(&[
        ("tool_calls", &["[]"]),
        ("function_call", &[]),
        ("audio", &[]),
    ])?;
    fields.finish()?;
    Ok(message)
}

/// A string, or parts of type `text`, which are joined.
fn content(fields: &mut Fields) -> Result<String, ApiError> {
    let path = fields.path("content");
    let parts = match fields.take("content") {
        Some(Value::String(text)) => return Ok(text),
        Some(Value::Array(parts)) => parts,
        None => {
            let message = format!("{path} is missing; give a string");
            return Err(ApiError::invalid(path, message));
        }
        Some(other) => return Err(mismatch(&path, "a string or an array of parts", &other)),
    };
    let mut text = String::new();
    for (index, part) in parts.into_iter().enumerate() {
        let mut part = Fields::new(part, format!("{path}[{index}]"))?;
        part.refuse(&[("type", &["\"text\""])])?;
        let missing = part.path("text");
        match part.string("text")? {
            Some(piece) => text.push_str(&piece),
            None => {
                let message =
                    format!("{missing} is missing; only parts of type text are supported");
                return Err(ApiError::invalid(missing, message));
            }
        }
        part.finish()?;
    }
    Ok(text)
}
