//! `dokja chat`: a conversation in the terminal.

use super::generate::{Answer, End, MAX_TOKENS, Sampling, one_sequence, speak};
use crate::progress::tell;
use crate::{interrupt, open};
use anyhow::{Context, Result, bail};
use infer::{Engine, FinishReason, Request, SamplingParams, TokenBudget};
use std::io::{BufRead, IsTerminal, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;
use tokenizer::chat::{ChatOptions, Message, Role};
use tokenizer::{ChatFormat, Prompt, Tokenizer};

/// Bytes of a message at most; longer ones are surely not meant as one line.
const MAX_LINE_BYTES: u64 = 1 << 20;

const HELP: &str = "/new   begin a new conversation
/quit  leave (so does Ctrl-D)
/help  this list
Ctrl-C stops an answer; once more leaves.";

/// Talks with a model that was tuned to answer: one line is one message.
///
/// On a terminal: /new begins a new conversation, /quit leaves, Ctrl-C stops an answer. With a file or
/// a pipe as input, every line is answered in turn, and only the answers go to stdout.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A run directory, a checkpoint directory or a .gguf file.
    model: PathBuf,
    /// What the model is told before the conversation.
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Let the model think before it answers, if it was trained to.
    #[arg(long)]
    think: bool,
    /// Tokens that it may think before it has to answer.
    #[arg(long, value_name = "N", requires = "think")]
    thinking_token_budget: Option<usize>,
    #[command(flatten)]
    sampling: Sampling,
    #[command(flatten)]
    run: open::RunArgs,
}

/// A conversation and the model that takes part in it.
struct Conversation {
    engine: Engine,
    tokenizer: Arc<Tokenizer>,
    format: ChatFormat,
    options: ChatOptions<'static>,
    thinking_token_budget: Option<usize>,
    params: SamplingParams,
    max_tokens: usize,
    stop_ids: Vec<u32>,
    system: Option<Message>,
    history: Vec<Message>, // user and assistant in turn, without the system's
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let params = args.sampling.params();
    params.validate()?;
    let model = open::model(&args.model, &args.run)?;
    let mut conversation = Conversation {
        tokenizer: model.tokenizer()?,
        engine: model.engine(one_sequence())?,
        format: model.chat_format()?,
        options: ChatOptions {
            enable_thinking: args.think,
            add_generation_prompt: true,
            tools: &[],
        },
        thinking_token_budget: args.thinking_token_budget,
        params,
        max_tokens: args.sampling.max_tokens.unwrap_or(MAX_TOKENS),
        stop_ids: model.stop_ids(),
        system: args.system.as_deref().map(Message::system),
        history: Vec::new(),
    };
    // A model without the chat format is told before the first message, not after it.
    let opening = conversation.prompt()?;
    if args.thinking_token_budget.is_some() && opening.think_end.is_none() {
        bail!(
            "the chat format of {} does not begin an answer with thinking; leave out --thinking-token-budget",
            model.path.display()
        );
    }
    interrupt::listen()?;
    interrupt::ask_first(false);
    let mut input = std::io::stdin().lock();
    let is_terminal = input.is_terminal();
    if is_terminal {
        tell(&format!(
            "{}: /help tells more, /quit leaves",
            model.path.display()
        ));
    }
    loop {
        if is_terminal {
            write!(std::io::stderr(), "\n> ").context("writing to the terminal")?;
        }
        let Some(line) = read_line(&mut input)? else {
            return Ok(());
        };
        match line.trim() {
            "" => {}
            "/quit" => return Ok(()),
            "/new" => {
                conversation.history.clear();
                tell("a new conversation");
            }
            "/help" => tell(HELP),
            command if command.starts_with('/') && !command.contains(char::is_whitespace) => {
                tell(&format!("{command} is no command; /help lists them"));
            }
            message => {
                if !conversation.reply(message)? {
                    return Ok(());
                }
            }
        }
    }
}

/// The next line, without its end; `None` at the end of the input.
fn read_line(input: &mut impl BufRead) -> Result<Option<String>> {
    let mut line = Vec::new();
    input
        .by_ref()
        .take(MAX_LINE_BYTES + 1)
        .read_until(b'\n', &mut line)
        .context("reading standard input")?;
    if line.len() as u64 > MAX_LINE_BYTES {
        bail!("a line of the input is longer than {MAX_LINE_BYTES} bytes; one line is one message");
    }
    if line.is_empty() {
        return Ok(None);
    }
    let line = String::from_utf8_lossy(&line);
    Ok(Some(line.trim_end_matches(['\n', '\r']).to_owned()))
}

impl Conversation {
    /// Answers a message on stdout; false when nobody listens any more.
    fn reply(&mut self, message: &str) -> Result<bool> {
        self.history.push(Message::user(message));
        let Some(prompt) = self.fit()? else {
            self.history.pop();
            return Ok(true);
        };
        // A conversation is not to repeat itself: each answer has draws of its own.
        self.params.seed = self.params.seed.wrapping_add(1);
        let request = Request {
            budget: self
                .thinking_token_budget
                .zip(prompt.think_end)
                .map(|(max_tokens, end_id)| TokenBudget { max_tokens, end_id }),
            prompt_ids: prompt.ids,
            max_tokens: self.max_tokens,
            sampling: self.params.clone(),
            stop_ids: self.stop_ids.clone(),
        };
        let mut out = std::io::stdout();
        let mut is_heard = true;
        let mut hear = |text: &str| {
            let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
            is_heard = written.is_ok();
            is_heard
        };
        interrupt::ask_first(true);
        let answer = speak(&mut self.engine, Some(&self.tokenizer), request, &mut hear);
        interrupt::ask_first(false);
        let answer = answer?;
        hear("\n");
        match answer.end {
            End::Finished(FinishReason::Length) => tell(&format!(
                "note: the answer was cut off after {} tokens",
                answer.ids.len()
            )),
            End::Stopped => tell("note: the answer was stopped"),
            End::Finished(_) => {}
        }
        self.history.push(said(&answer));
        Ok(is_heard)
    }

    /// The conversation as ids.
    fn prompt(&self) -> Result<Prompt> {
        let messages: Vec<Message> = self.system.iter().chain(&self.history).cloned().collect();
        let prompt = self
            .format
            .prompt(&self.tokenizer, &messages, &self.options);
        prompt.context("this model cannot chat")
    }

    /// As [`Conversation::prompt`], after the oldest turns have been left out that leave no room for
    /// an answer; `None` when not even the last message fits.
    fn fit(&mut self) -> Result<Option<Prompt>> {
        let max_len = self.engine.max_len();
        // An answer of a quarter of the context is room enough, however long it may become.
        let room = max_len - self.max_tokens.clamp(1, max_len.div_ceil(4));
        let mut num_dropped = 0;
        let prompt = loop {
            let prompt = self.prompt()?;
            if prompt.ids.len() <= room {
                break Some(prompt);
            }
            // The next turn begins with the user's next message.
            let next = self
                .history
                .iter()
                .skip(1)
                .position(|m| m.role == Role::User);
            match next {
                Some(at) => {
                    self.history.drain(..=at);
                    num_dropped += at + 1;
                }
                None => {
                    tell(&format!(
                        "note: the message takes {} tokens, and the context has room for {room} beside the \
                         answer; it is left out, shorten it",
                        prompt.ids.len()
                    ));
                    break None;
                }
            }
        };
        if num_dropped > 0 {
            tell(&format!(
                "note: the conversation has outgrown the context of {max_len} tokens; its oldest \
                 {num_dropped} messages are forgotten"
            ));
        }
        Ok(prompt)
    }
}

/// The answer as a message, what was thought apart from what was said.
fn said(answer: &Answer) -> Message {
    match answer.text.split_once("</think>") {
        Some((reasoning, content)) => {
            Message::assistant(content.trim_start()).with_reasoning(reasoning.trim())
        }
        None => Message::assistant(answer.text.as_str()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_end_at_either_kind_of_line_end_and_may_hold_any_bytes() {
        let mut input = &b"one\ntwo\r\n\n\xff\nlast"[..];
        let mut next = || read_line(&mut input).unwrap();
        assert_eq!(next().as_deref(), Some("one"));
        assert_eq!(next().as_deref(), Some("two"));
        assert_eq!(next().as_deref(), Some(""));
        assert_eq!(next().as_deref(), Some("\u{FFFD}"));
        assert_eq!(next().as_deref(), Some("last"));
        assert_eq!(next(), None);
        let long = vec![b'a'; MAX_LINE_BYTES as usize + 1];
        assert!(read_line(&mut &long[..]).is_err());
    }

    #[test]
    fn what_was_thought_is_kept_apart() {
        let message = |text: &str| {
            said(&Answer {
                ids: vec![],
                text: text.into(),
                end: End::Stopped,
            })
        };
        assert_eq!(message("four"), Message::assistant("four"));
        assert_eq!(
            message("2 + 2\n</think>\n\nfour"),
            Message::assistant("four").with_reasoning("2 + 2")
        );
    }
}
