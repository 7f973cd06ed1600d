//! Answers as JSON: whole, and in the chunks of a stream.

use crate::generation::{Finish, Piece, TokenLogprob, Usage};
use crate::openai::params::random;
use serde_json::{Value, json};
use std::time::{SystemTime, UNIX_EPOCH};
use tokenizer::ToolCall;

/// Which of the two formats an answer takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Api {
    Chat,
    Completions,
}

/// What is the same in all chunks of an answer.
#[derive(Clone, Debug)]
pub(crate) struct Envelope {
    api: Api,
    pub(crate) id: String,
    created: u64,
    model: String,
    include_usage: bool,
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

impl Envelope {
    pub(crate) fn new(api: Api, model: &str, include_usage: bool) -> Envelope {
        let prefix = match api {
            Api::Chat => "chatcmpl",
            Api::Completions => "cmpl",
        };
        Envelope {
            api,
            id: format!("{prefix}-{:016x}", random()),
            created: now(),
            model: model.to_owned(),
            include_usage,
        }
    }

    fn wrap(&self, object: &str, choices: Value) -> Value {
        json!({
            "id": self.id, "object": object, "created": self.created, "model": self.model,
            "choices": choices,
        })
    }

    fn wrap_chunk(&self, choices: Value, usage: Option<Usage>) -> Value {
        let object = match self.api {
            Api::Chat => "chat.completion.chunk",
            Api::Completions => "text_completion",
        };
        let mut chunk = self.wrap(object, choices);
        if self.include_usage {
            chunk["usage"] = usage.map_or(Value::Null, usage_json);
        }
        chunk
    }

    /// What a stream begins with.
    pub(crate) fn opening(&self) -> Option<Value> {
        let delta = json!({"role": "assistant", "content": ""});
        let choice = json!({"index": 0, "delta": delta, "logprobs": null, "finish_reason": null});
        (self.api == Api::Chat).then(|| self.wrap_chunk(json!([choice]), None))
    }

    /// One step of a stream.
    pub(crate) fn chunk(&self, piece: &Piece) -> Value {
        let mut choice = json!({"index": 0});
        match self.api {
            Api::Chat => {
                let mut delta = json!({});
                if !piece.reasoning.is_empty() {
                    delta["reasoning_content"] = json!(piece.reasoning);
                }
                if !piece.content.is_empty() || !piece.logprobs.is_empty() {
                    delta["content"] = json!(piece.content);
                }
                if !piece.tool_calls.is_empty() {
                    let calls = piece.tool_calls.iter().map(|(index, call)| {
                        let mut call = self.tool_call(*index, call);
                        call["index"] = json!(index);
                        call
                    });
                    delta["tool_calls"] = calls.collect();
                }
                choice["delta"] = delta;
            }
            Api::Completions => choice["text"] = json!(piece.content),
        }
        let has_logprobs = !piece.logprobs.is_empty();
        choice["logprobs"] = has_logprobs.then(|| self.logprobs(&piece.logprobs)).into();
        choice["finish_reason"] = json!(piece.finish.map(finish_reason));
        self.wrap_chunk(json!([choice]), None)
    }

    /// The last chunk of a stream, where the client asked for it.
    pub(crate) fn closing(&self, usage: Usage) -> Option<Value> {
        self.include_usage
            .then(|| self.wrap_chunk(json!([]), Some(usage)))
    }

    /// An answer in one piece; `with_logprobs` tells "none asked for" from "no token".
    pub(crate) fn whole(&self, answer: &Piece, usage: Usage, with_logprobs: bool) -> Value {
        let mut choice = json!({"index": 0});
        let object = match self.api {
            Api::Chat => {
                let mut message = json!({"role": "assistant", "content": answer.content});
                if !answer.reasoning.is_empty() {
                    message["reasoning_content"] = json!(answer.reasoning);
                }
                if !answer.tool_calls.is_empty() {
                    if answer.content.is_empty() {
                        message["content"] = Value::Null;
                    }
                    let calls = answer.tool_calls.iter();
                    let calls = calls.map(|(index, call)| self.tool_call(*index, call));
                    message["tool_calls"] = calls.collect();
                }
                choice["message"] = message;
                "chat.completion"
            }
            Api::Completions => {
                choice["text"] = json!(answer.content);
                "text_completion"
            }
        };
        choice["logprobs"] = with_logprobs
            .then(|| self.logprobs(&answer.logprobs))
            .into();
        choice["finish_reason"] = json!(answer.finish.map(finish_reason));
        let mut whole = self.wrap(object, json!([choice]));
        whole["usage"] = usage_json(usage);
        whole
    }

    fn tool_call(&self, index: usize, call: &ToolCall) -> Value {
        let answer = self.id.trim_start_matches("chatcmpl-");
        let arguments = Value::from(call.arguments.clone()).to_string();
        json!({
            "id": format!("call_{answer}_{index}"), "type": "function",
            "function": {"name": call.name, "arguments": arguments},
        })
    }

    fn logprobs(&self, tokens: &[TokenLogprob]) -> Value {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match self.api {
            Api::Chat => {
                let entry = |bytes: &[u8], logprob: f32| json!({"token": text(bytes), "logprob": finite(logprob), "bytes": bytes});
                let content = tokens.iter().map(|token| {
                    let mut content = entry(&token.bytes, token.logprob);
                    let top = token
                        .top
                        .iter()
                        .map(|(bytes, logprob)| entry(bytes, *logprob));
                    content["top_logprobs"] = top.collect();
                    content
                });
                json!({"content": content.collect::<Value>()})
            }
            Api::Completions => {
                let top = tokens.iter().map(|token| {
                    let entries = token.top.iter();
                    let entry =
                        |(bytes, logprob): &(Vec<u8>, f32)| (text(bytes), json!(finite(*logprob)));
                    Value::Object(entries.map(entry).collect())
                });
                json!({
                    "tokens": tokens.iter().map(|token| text(&token.bytes)).collect::<Vec<_>>(),
                    "token_logprobs": tokens.iter().map(|t| finite(t.logprob)).collect::<Vec<_>>(),
                    "top_logprobs": top.collect::<Value>(),
                    "text_offset": tokens.iter().map(|t| t.text_offset).collect::<Vec<_>>(),
                })
            }
        }
    }
}

/// JSON has no infinity; OpenAI writes this for a token that cannot be.
fn finite(logprob: f32) -> f32 {
    logprob.max(-9999.0)
}

fn finish_reason(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "stop",
        Finish::Length => "length",
        Finish::ToolCalls => "tool_calls",
    }
}

fn usage_json(usage: Usage) -> Value {
    json!({
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    })
}
