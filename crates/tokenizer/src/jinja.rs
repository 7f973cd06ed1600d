//! A model's own chat template, in the Jinja that `transformers` renders: messages to text, and to ids.
//!
//! Templates come with a model and may be hostile, so they run in a box: no files and no other
//! templates, a bounded number of steps, a bounded output, a bounded time, and bounded memory for the
//! strings and lists that they make (`bounds`).
//!
//! A template knows what `transformers` gives it: `messages`, `tools`, `documents`,
//! `add_generation_prompt`, whatever the caller adds (`bos_token`, `enable_thinking`),
//! `raise_exception`, `strftime_now`, and `tojson` as Python writes JSON. Values are printed as Python
//! prints them. The tag `generation` is read and means nothing.
//!
//! Templates write special tokens as text, and messages are text too: what a message spells must not
//! become a token. So a conversation is rendered twice, the second time with a private character for
//! each string of the conversation. Where the second text, with every character replaced by its string
//! (as it is, trimmed, or as JSON), is the first, the places of the strings are known, and
//! `Tokenizer::encode_guarded` keeps tokens out of them. Where it is not, because the template cuts a
//! string or looks into it, both texts must spell the same special tokens in the same order; then the
//! strings have added none. Anything else is an error. `role` and `type` are left as they are, since
//! templates compare them: they and the names of keys must not spell a token.
//!
//! What the engine (`minijinja`) does not know of Jinja is an error that names the line. It has no tuples,
//! which print as lists; where it panics, that is an error too.
//!
//! Source: `transformers`, `utils/chat_template_utils.py` (environment, variables, functions). Tested
//! against Jinja 2 in that environment, below.

mod bounds;
mod marks;
mod python;
mod trust;

use crate::chat_template::{ChatOptions, Message, Role};
use crate::tokenizer::Tokenizer;
use crate::tool_call::ToolCall;
use minijinja::value::Kwargs;
use minijinja::{Environment, ErrorKind, Value};
use serde_json::Map;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// A JSON value, as a conversation holds it.
pub type Json = serde_json::Value;

/// Longest template; the longest published ones have some 30,000 bytes.
const MAX_TEMPLATE_BYTES: usize = 1 << 20;

/// Steps of the engine; a message takes some hundreds.
const MAX_STEPS: u64 = 2_000_000;

/// Longest text that a template may write.
const MAX_TEXT_BYTES: usize = 1 << 24;

/// Time for one conversation; a thousand messages take milliseconds.
const MAX_TIME: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 10 });

/// Deepest nesting of what a conversation holds.
const MAX_DEPTH: usize = 64;

/// Room for values that a template nests `MAX_STEPS` deep: they are dropped level by level.
const STACK_BYTES: usize = 1 << 28;

/// The name of the only template there is.
const NAME: &str = "chat template";

/// A chat template, ready to render.
#[derive(Clone)]
pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ChatTemplate")
    }
}

/// What a template is rendered with.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conversation {
    /// Objects with a `role`, a `content` and whatever else the template reads.
    pub messages: Vec<Json>,
    /// Tools as JSON schemas; `None` is Python's `None`.
    pub tools: Option<Vec<Json>>,
    /// Documents to answer from; `None` is Python's `None`.
    pub documents: Option<Vec<Json>>,
    /// Whether the opening of an assistant turn follows the last message.
    pub add_generation_prompt: bool,
    /// What else the template is to know: `bos_token`, `eos_token`, `enable_thinking`. Trusted.
    pub variables: Map<String, Json>,
    /// The time that `strftime_now` tells, in seconds since the start of 1970 in the reader's zone.
    pub now: Option<i64>,
}

impl Conversation {
    /// Messages in the form that `transformers` gives templates: reasoning is `reasoning_content`, the
    /// arguments of calls are objects.
    pub fn new(messages: &[Message], options: &ChatOptions<'_>) -> Self {
        let message = |message: &Message| {
            let role = match message.role {
                Role::System => "system",
                Role::User => "user",
                Role::Assistant => "assistant",
                Role::Tool => "tool",
            };
            let mut object = Map::new();
            object.insert("role".to_owned(), role.into());
            object.insert("content".to_owned(), message.content.as_str().into());
            if let Some(reasoning) = &message.reasoning {
                object.insert("reasoning_content".to_owned(), reasoning.as_str().into());
            }
            if !message.tool_calls.is_empty() {
                let calls = message.tool_calls.iter().map(ToolCall::to_json);
                object.insert("tool_calls".to_owned(), calls.collect());
            }
            if let Some(id) = &message.tool_call_id {
                object.insert("tool_call_id".to_owned(), id.as_str().into());
            }
            Json::Object(object)
        };
        let thinking = ("enable_thinking".to_owned(), options.enable_thinking.into());
        Conversation {
            messages: messages.iter().map(message).collect(),
            tools: (!options.tools.is_empty()).then(|| options.tools.to_vec()),
            add_generation_prompt: options.add_generation_prompt,
            variables: [thinking].into_iter().collect(),
            ..Conversation::default()
        }
    }
}

/// A template could not be read, or a conversation not be rendered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// Longer than any template.
    #[error("chat template has {bytes} bytes, more than the limit of {limit}")]
    TooLarge {
        /// Size found.
        bytes: usize,
        /// Size allowed.
        limit: usize,
    },
    /// Not Jinja, or not what this engine knows of it.
    #[error("chat template, line {line}: {what}")]
    Failed {
        /// Line of the template, from 1; 0 where none is known.
        line: usize,
        /// What went wrong there.
        what: String,
    },
    /// The template itself refuses the conversation (`raise_exception`).
    #[error("chat template, line {line}, refuses the conversation: {message}")]
    Refused {
        /// Line of the template, from 1.
        line: usize,
        /// What the template says.
        message: String,
    },
    /// The template does not come to an end.
    #[error("chat template, line {line}: no end after {limit} steps")]
    TooManySteps {
        /// Line of the template, from 1.
        line: usize,
        /// Steps allowed.
        limit: u64,
    },
    /// The template makes too many or too long strings and lists.
    #[error("chat template, line {line}: makes strings and lists of more than {limit} bytes")]
    TooMuch {
        /// Line of the template, from 1.
        line: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// The template writes too much.
    #[error("chat template writes more than {limit} bytes")]
    TooLong {
        /// Bytes allowed.
        limit: usize,
    },
    /// The template takes too long.
    #[error("chat template takes more than {seconds} seconds")]
    TooSlow {
        /// Seconds allowed.
        seconds: u64,
    },
    /// A variable has the name of what every conversation has.
    #[error("variable {0:?} of a conversation has a name that every template knows otherwise")]
    Reserved(
        /// The name.
        String,
    ),
    /// What a conversation holds is nested too deep.
    #[error("`{place}` is nested more than {limit} deep")]
    TooDeep {
        /// Path of the value.
        place: String,
        /// Depth allowed.
        limit: usize,
    },
    /// A string of the conversation would add or hide a special token.
    #[error("`{place}` spells the special token {token:?} where the template looks into it")]
    Untrusted {
        /// Path of the string.
        place: String,
        /// The token.
        token: String,
    },
    /// No string spells a special token, yet with others in their place the template writes other ones.
    #[error("chat template writes other special tokens for other strings of the conversation")]
    Unclear,
    /// More strings than there are characters to mark them with.
    #[error("conversation has more than {limit} strings")]
    TooManyStrings {
        /// Strings allowed.
        limit: usize,
    },
    /// The engine could not be started, or stopped without an answer.
    #[error("chat template could not be rendered: {0}")]
    Engine(
        /// What the system says.
        String,
    ),
}

/// `raise_exception` of a template, on its way out of the engine.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

impl ChatTemplate {
    /// Reads a template.
    ///
    /// # Errors
    /// If it is not Jinja; the message names the line.
    pub fn new(source: &str) -> Result<Self, TemplateError> {
        if source.len() > MAX_TEMPLATE_BYTES {
            return Err(TemplateError::TooLarge {
                bytes: source.len(),
                limit: MAX_TEMPLATE_BYTES,
            });
        }
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_fuel(Some(MAX_STEPS));
        bounds::install(&mut environment);
        environment.set_formatter(|out, _, value| {
            let failed = |error| minijinja::Error::from(ErrorKind::WriteFailure).with_source(error);
            let text = python::text(value)?;
            // What is written may be caught again by a block that is set.
            bounds::charge(text.len())?;
            fmt::Write::write_str(out, &text).map_err(failed)
        });
        environment.add_filter("tojson", to_json);
        environment.add_filter("string", to_text);
        environment.add_function("raise_exception", raise);
        let source = marks::mark(&without_generation_tags(source));
        match environment.add_template_owned(NAME, source) {
            Ok(()) => Ok(ChatTemplate {
                environment: Arc::new(environment),
            }),
            Err(error) => Err(failure(&error)),
        }
    }

    /// The text of a conversation, special tokens written out. To be shown, not to be encoded: use
    /// [`ChatTemplate::encode`].
    ///
    /// # Errors
    /// If the template fails, refuses the conversation, or goes beyond its limits.
    pub fn render(&self, conversation: &Conversation) -> Result<String, TemplateError> {
        trust::check_depth(conversation, MAX_DEPTH)?;
        let values = conversation.values()?;
        let environment = Arc::clone(&self.environment);
        let is_given_up = Arc::new(AtomicBool::new(false));
        let (sender, receiver) = mpsc::channel();
        let writer = Writer {
            text: Vec::new(),
            deadline: Instant::now() + MAX_TIME,
            is_given_up: Arc::clone(&is_given_up),
            problem: None,
        };
        // A thread of its own, with a stack for what a template can nest; one that is still in a step
        // when time is up goes on to its next output or its last step, and nobody waits for it.
        let run = move || {
            let answer = run(&environment, &values, writer);
            drop(values);
            // No one listens any more if time was up.
            let _ = sender.send(answer);
        };
        let thread = std::thread::Builder::new().name("chat template".to_owned());
        let started = thread.stack_size(STACK_BYTES).spawn(run);
        started.map_err(|error| TemplateError::Engine(error.to_string()))?;
        match receiver.recv_timeout(MAX_TIME + Duration::from_secs(1)) {
            Ok(answer) => answer,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                is_given_up.store(true, Ordering::Relaxed);
                Err(TOO_SLOW)
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                Err(TemplateError::Engine("the engine panicked".to_owned()))
            }
        }
    }

    /// The ids of a conversation. No string of it becomes a special token, whatever it spells.
    ///
    /// # Errors
    /// As `render`, and if the template does with a string what leaves it unclear which tokens are its
    /// own.
    pub fn encode(
        &self,
        tokenizer: &Tokenizer,
        conversation: &Conversation,
    ) -> Result<Vec<u32>, TemplateError> {
        trust::check_depth(conversation, MAX_DEPTH)?;
        let text = self.render(conversation)?;
        let marked = trust::mark(tokenizer, conversation)?;
        let marked_text = self.render(&marked.conversation)?;
        if let Some(ranges) = trust::places(&text, &marked_text, &marked) {
            return Ok(tokenizer.encode_guarded(&text, &ranges));
        }
        let ids = tokenizer.encode(&text);
        let own = |ids: &[u32]| -> Vec<u32> {
            let is_added = |id: &u32| tokenizer.is_added(*id) && !tokenizer.is_unknown(*id);
            ids.iter().copied().filter(is_added).collect()
        };
        match own(&ids) == own(&tokenizer.encode(&marked_text)) {
            true => Ok(ids),
            false => Err(trust::blame(tokenizer, &marked)),
        }
    }
}

const TOO_SLOW: TemplateError = TemplateError::TooSlow {
    seconds: MAX_TIME.as_secs(),
};

impl Conversation {
    /// The variables of a template.
    fn values(&self) -> Result<Value, TemplateError> {
        let list = |list: &Option<Vec<Json>>| match list {
            Some(values) => Value::from_serialize(values),
            None => Value::from(()),
        };
        let now = self.now;
        let strftime = move |format: String| python::strftime(&format, now);
        let known = [
            ("messages", Value::from_serialize(&self.messages)),
            ("tools", list(&self.tools)),
            ("documents", list(&self.documents)),
            ("add_generation_prompt", self.add_generation_prompt.into()),
            ("strftime_now", Value::from_function(strftime)),
        ];
        let is_known = |name: &String| {
            known.iter().any(|(known, _)| known == name) || name == "raise_exception"
        };
        if let Some(name) = self.variables.keys().find(|name| is_known(name)) {
            return Err(TemplateError::Reserved(name.clone()));
        }
        let variables = self.variables.iter();
        let variables = variables.map(|(name, value)| (name.clone(), Value::from_serialize(value)));
        let known = known
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value));
        Ok(variables.chain(known).collect())
    }
}

fn run(
    environment: &Environment<'_>,
    values: &Value,
    mut writer: Writer,
) -> Result<String, TemplateError> {
    let template = environment
        .get_template(NAME)
        .map_err(|error| failure(&error))?;
    let answer = template.render_captured_to(values, &mut writer).map(drop);
    match (writer.problem, answer) {
        (Some(problem), _) => Err(problem),
        (None, Err(error)) => Err(failure(&error)),
        (None, Ok(())) => {
            let text = String::from_utf8(writer.text);
            text.map_err(|error| TemplateError::Engine(error.to_string()))
        }
    }
}

/// Collects what a template writes, within its limits.
struct Writer {
    text: Vec<u8>,
    deadline: Instant,
    is_given_up: Arc<AtomicBool>,
    problem: Option<TemplateError>,
}

impl io::Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.text.len() + bytes.len() > MAX_TEXT_BYTES {
            self.problem = Some(TemplateError::TooLong {
                limit: MAX_TEXT_BYTES,
            });
        } else if self.is_given_up.load(Ordering::Relaxed) || Instant::now() > self.deadline {
            self.problem = Some(TOO_SLOW);
        }
        match self.problem {
            None => {
                self.text.extend_from_slice(bytes);
                Ok(bytes.len())
            }
            Some(_) => Err(io::ErrorKind::Other.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An error of the engine, told as facts.
fn failure(error: &minijinja::Error) -> TemplateError {
    let line = error.line().unwrap_or(0);
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(Raised(message)) = cause.downcast_ref() {
            let message = message.clone();
            return TemplateError::Refused { line, message };
        }
        if let Some(bounds::TooMuch(limit)) = cause.downcast_ref() {
            return TemplateError::TooMuch {
                line,
                limit: *limit,
            };
        }
        source = cause.source();
    }
    if error.kind() == ErrorKind::OutOfFuel {
        let limit = MAX_STEPS;
        return TemplateError::TooManySteps { line, limit };
    }
    let what = match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    };
    TemplateError::Failed { line, what }
}

fn raise(message: &Value) -> Result<Value, minijinja::Error> {
    let message = python::text(message)?;
    let error = minijinja::Error::from(ErrorKind::InvalidOperation);
    Err(error.with_source(Raised(message)))
}

fn to_text(value: &Value) -> Result<String, minijinja::Error> {
    let text = python::text(value)?;
    bounds::charge(text.len())?;
    Ok(text)
}

fn to_json(value: &Value, options: Kwargs) -> Result<String, minijinja::Error> {
    let separators: Option<Vec<String>> = options.get("separators")?;
    let layout = python::Layout {
        indent: options.get("indent")?,
        ensure_ascii: options
            .get::<Option<bool>>("ensure_ascii")?
            .unwrap_or(false),
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        separators: match separators.as_deref() {
            None => None,
            Some([item, key]) => Some((item.clone(), key.clone())),
            Some(_) => {
                let kind = ErrorKind::InvalidOperation;
                return Err(minijinja::Error::new(kind, "separators are two strings"));
            }
        },
    };
    options.assert_all_used()?;
    let json = python::json(value, &layout)?;
    bounds::charge(json.len())?;
    Ok(json)
}

/// The source with the tags `generation` and `endgeneration` as blocks that are always written; lines
/// stay where they are.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        let end = tag.find("%}").map_or(tag.len(), |end| end + 2);
        let (tag, after) = tag.split_at(end);
        let is_control = |c: char| c == '-' || c == '+';
        let inner = tag.trim_start_matches("{%").trim_end_matches("%}");
        match inner.trim_matches(is_control).trim() {
            "generation" => out.push_str(&tag.replacen("generation", "if true", 1)),
            "endgeneration" => out.push_str(&tag.replacen("endgeneration", "endif", 1)),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests;
