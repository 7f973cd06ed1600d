//! OpenAI's wire format, and nothing but it: JSON in, requests of ours out; answers of ours in, JSON out.
//!
//! `fields` reads JSON so that complaints name the field; `chat` and `completions` are the two kinds of
//! request, `params` what they share, `tools` what the first says of tools, `response` what goes back, `error` what goes wrong.
//!
//! Source: OpenAI's API reference for chat completions, completions and models; beyond it, by the names
//! that vLLM gave them: `top_k`, `min_p`, `ignore_eos`, `chat_template_kwargs`, `reasoning_content`,
//! `thinking_token_budget`, `max_model_len`.

pub(crate) mod fields;

pub(crate) mod chat;
pub(crate) mod completions;
pub(crate) mod params;
pub(crate) mod tools;

pub(crate) mod response;

pub(crate) mod error;
