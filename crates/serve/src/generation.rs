//! A request's way through text, engine and text again.
//!
//! ```text
//! messages -> chat template -> ids -> engine -> tokens -> characters -> reasoning | content | calls -> pieces
//! ```
//!
//! Reasoning ends at `</think>`; the line breaks that the chat format puts around it belong to neither
//! part. Stop strings are looked for in the content only, and calls of tools in what is left of it.

use crate::engine_thread::{Running, Update};
use crate::openai::error::ApiError;
use crate::openai::tools::Tools;
use crate::stop_strings::StopStrings;
use axum::http::StatusCode;
use infer::{Event, FinishReason, SampledToken};
use std::sync::Arc;
use std::time::Instant;
use tokenizer::tool_call::Part;
use tokenizer::{StreamDecoder, Tokenizer, ToolCall, ToolCallParser};

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Finish {
    /// The model ended its turn, or a stop string came.
    Stop,
    /// `max_tokens`, or the end of the context.
    Length,
    /// As `Stop`, of an answer that calls tools.
    ToolCalls,
}

/// A token of the content with its log-probability.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TokenLogprob {
    pub(crate) bytes: Vec<u8>,
    pub(crate) logprob: f32,
    pub(crate) top: Vec<(Vec<u8>, f32)>,
    /// Characters of the content before it.
    pub(crate) text_offset: usize,
}

/// What one step added to an answer; all pieces joined are the answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Piece {
    pub(crate) reasoning: String,
    pub(crate) content: String,
    /// With their places among the calls of the answer.
    pub(crate) tool_calls: Vec<(usize, ToolCall)>,
    pub(crate) logprobs: Vec<TokenLogprob>,
    pub(crate) finish: Option<Finish>,
}

impl Piece {
    fn is_empty(&self) -> bool {
        *self == Piece::default()
    }

    /// Appends what came after.
    pub(crate) fn append(&mut self, next: Piece) {
        self.reasoning.push_str(&next.reasoning);
        self.content.push_str(&next.content);
        self.tool_calls.extend(next.tool_calls);
        self.logprobs.extend(next.logprobs);
        self.finish = self.finish.or(next.finish);
    }
}

/// What an answer cost, in tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) prompt_tokens: usize,
    pub(crate) completion_tokens: usize,
    /// Those of `completion_tokens` up to the end of the reasoning.
    pub(crate) reasoning_tokens: usize,
}

/// The text of an answer in the making: tokens in, pieces out. No engine, no clock.
pub(crate) struct AnswerText {
    tokenizer: Arc<Tokenizer>,
    decoder: StreamDecoder,
    stop: StopStrings,
    place: Place,
    think_end: Option<u32>,
    calls: Option<Calls>,
    text_offset: usize, // characters of the content, held ones included
}

/// The calls of an answer.
struct Calls {
    parser: ToolCallParser,
    num_calls: usize,
    is_single: bool, // the first ends the answer
}

/// Where in an answer the next token belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// `held`: a line break that may be the one before `</think>`.
    Reasoning { held: bool },
    /// Line breaks after `</think>` that are still to be left out.
    Content { skip: usize },
}

impl AnswerText {
    /// `think_end` is the id of `</think>` where the prompt has opened the reasoning. Without `tools` no text
    /// is a call.
    pub(crate) fn new(
        tokenizer: Arc<Tokenizer>,
        stop: Vec<String>,
        think_end: Option<u32>,
        tools: &Tools,
    ) -> AnswerText {
        let place = match think_end {
            Some(_) => Place::Reasoning { held: false },
            None => Place::Content { skip: 0 },
        };
        AnswerText {
            tokenizer,
            decoder: StreamDecoder::new(true),
            stop: StopStrings::new(stop),
            place,
            think_end,
            calls: (!tools.list.is_empty()).then(|| Calls {
                parser: ToolCallParser::new(tools.names()),
                num_calls: 0,
                is_single: tools.is_single,
            }),
            text_offset: 0,
        }
    }

    pub(crate) fn is_reasoning(&self) -> bool {
        matches!(self.place, Place::Reasoning { .. })
    }

    /// Takes a token that is not the one that ends the turn.
    pub(crate) fn push(&mut self, token: &SampledToken) -> Piece {
        let mut piece = Piece::default();
        if self.is_reasoning() && Some(token.id) == self.think_end {
            let decoder = std::mem::replace(&mut self.decoder, StreamDecoder::new(true));
            let rest = decoder.finish();
            self.add(rest, &mut piece);
            self.place = Place::Content { skip: 2 };
            return piece;
        }
        if !self.is_reasoning()
            && let Some(logprobs) = &token.logprobs
        {
            let bytes = |id| self.tokenizer.token_bytes(id).unwrap_or_default().to_vec();
            piece.logprobs.push(TokenLogprob {
                bytes: bytes(token.id),
                logprob: logprobs.logprob,
                top: logprobs.top.iter().map(|&(id, p)| (bytes(id), p)).collect(),
                text_offset: self.text_offset,
            });
        }
        let text = self.decoder.push(&self.tokenizer, token.id);
        self.add(text, &mut piece);
        piece
    }

    /// Ends the answer: gives out what was held back.
    pub(crate) fn finish(&mut self, finish: Finish) -> Piece {
        let mut piece = Piece::default();
        let decoder = std::mem::take(&mut self.decoder);
        self.add(decoder.finish(), &mut piece);
        if self.place == (Place::Reasoning { held: true }) {
            piece.reasoning.push('\n');
        }
        if piece.finish.is_none() {
            let rest = self.stop.finish();
            self.say(&rest, &mut piece);
        }
        if piece.finish.is_none() {
            self.end(finish, &mut piece);
        }
        piece
    }

    /// Adds content in which calls are still to be found.
    fn say(&mut self, text: &str, piece: &mut Piece) {
        let Some(calls) = &mut self.calls else {
            piece.content.push_str(text);
            return;
        };
        for part in calls.parser.push(text) {
            match part {
                Part::Text(text) => piece.content.push_str(&text),
                Part::Call(call) => {
                    piece.tool_calls.push((calls.num_calls, call));
                    calls.num_calls += 1;
                    if calls.is_single {
                        piece.finish = Some(Finish::ToolCalls);
                        return;
                    }
                }
            }
        }
    }

    /// Ends the content: what was held back is no call.
    fn end(&mut self, finish: Finish, piece: &mut Piece) {
        let mut has_calls = false;
        if let Some(calls) = &mut self.calls {
            has_calls = calls.num_calls > 0;
            let rest = calls.parser.finish();
            // White space after a call is part of the form.
            if !(has_calls && rest.trim().is_empty()) {
                piece.content.push_str(&rest);
            }
        }
        piece.finish = Some(match finish {
            Finish::Stop if has_calls => Finish::ToolCalls,
            other => other,
        });
    }

    fn add(&mut self, mut text: String, piece: &mut Piece) {
        match &mut self.place {
            Place::Reasoning { held } => {
                if text.is_empty() {
                    return;
                }
                if *held {
                    piece.reasoning.push('\n');
                }
                *held = text.ends_with('\n');
                text.truncate(text.len() - usize::from(*held));
                piece.reasoning.push_str(&text);
            }
            Place::Content { skip } => {
                let breaks = text.len() - text.trim_start_matches('\n').len();
                let left_out = breaks.min(*skip);
                *skip = if breaks == text.len() {
                    *skip - left_out
                } else {
                    0
                };
                text.drain(..left_out);
                self.text_offset += text.chars().count();
                let released = self.stop.push(&text);
                self.say(&released.text, piece);
                if released.is_stopped && piece.finish.is_none() {
                    self.end(Finish::Stop, piece);
                }
            }
        }
    }
}

/// An answer that the engine is at work on. Dropping it aborts the request.
pub(crate) struct Generation {
    id: String,
    running: Running,
    text: AnswerText,
    usage: Usage,
    started: Instant,
    is_over: bool,
}

impl Generation {
    pub(crate) fn new(
        id: String,
        running: Running,
        text: AnswerText,
        prompt_tokens: usize,
    ) -> Generation {
        Generation {
            id,
            running,
            text,
            usage: Usage {
                prompt_tokens,
                ..Usage::default()
            },
            started: Instant::now(),
            is_over: false,
        }
    }

    pub(crate) fn usage(&self) -> Usage {
        self.usage
    }

    /// The next piece, none of them empty; `None` after the last, which has a finish or is an error.
    pub(crate) async fn next(&mut self) -> Option<Result<Piece, ApiError>> {
        while !self.is_over {
            let piece = match self.running.updates.recv().await {
                Some(Update::Event(event)) => self.take(event),
                Some(Update::Cancelled) => {
                    let message = "the server is stopping; the answer is cut off here";
                    let status = StatusCode::SERVICE_UNAVAILABLE;
                    Err(ApiError::new(status, "server_stopping", message))
                }
                Some(Update::Failed) | None => {
                    let message = "the engine failed while it worked on this answer; try again";
                    let status = StatusCode::INTERNAL_SERVER_ERROR;
                    Err(ApiError::new(status, "engine_failed", message))
                }
            };
            match piece {
                Ok(piece) if piece.is_empty() => {}
                Ok(piece) => {
                    self.is_over = piece.finish.is_some();
                    return Some(Ok(piece));
                }
                Err(error) => {
                    self.is_over = true;
                    return Some(Err(error));
                }
            }
        }
        None
    }

    fn take(&mut self, event: Event) -> Result<Piece, ApiError> {
        let mut piece = Piece::default();
        if let Some(token) = &event.token {
            self.usage.completion_tokens += 1;
            self.usage.reasoning_tokens += usize::from(self.text.is_reasoning());
            if event.finish_reason != Some(FinishReason::Stop) {
                piece = self.text.push(token);
            }
        }
        let Some(reason) = event.finish_reason.filter(|_| piece.finish.is_none()) else {
            return Ok(piece);
        };
        let finish = match reason {
            FinishReason::Stop => Finish::Stop,
            FinishReason::Length => Finish::Length,
            FinishReason::NotFinite => {
                let message = "the model computed values that are no numbers; \
                               its weights may be damaged";
                let status = StatusCode::INTERNAL_SERVER_ERROR;
                return Err(ApiError::new(status, "not_finite", message));
            }
        };
        piece.append(self.text.finish(finish));
        Ok(piece)
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        tracing::info!(
            id = self.id,
            prompt_tokens = self.usage.prompt_tokens,
            completion_tokens = self.usage.completion_tokens,
            is_finished = self.is_over,
            secs = self.started.elapsed().as_secs_f64(),
            "request"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use infer::Logprobs;
    use tokenizer::Trainer;

    /// The answer that the tokens of `text` make, and its pieces.
    fn answer(text: &str, stop: &[&str], thinks: bool) -> (Piece, Vec<Piece>) {
        let trainer = Trainer {
            vocab_size: 268,
            ..Trainer::default()
        };
        let tokenizer = Arc::new(trainer.train(["a"], &mut |_| {}).unwrap());
        let think_end = thinks.then(|| tokenizer.specials().unwrap().think_end);
        let stop = stop.iter().map(|stop| stop.to_string()).collect();
        let mut answer = AnswerText::new(tokenizer.clone(), stop, think_end, &Tools::default());
        let mut pieces = Vec::new();
        for id in tokenizer.encode(text) {
            let logprobs = Some(Logprobs {
                logprob: -1.0,
                top: vec![],
            });
            pieces.push(answer.push(&SampledToken { id, logprobs }));
            if pieces.last().is_some_and(|piece| piece.finish.is_some()) {
                break;
            }
        }
        if pieces.iter().all(|piece| piece.finish.is_none()) {
            pieces.push(answer.finish(Finish::Length));
        }
        let mut whole = Piece::default();
        pieces.iter().for_each(|piece| whole.append(piece.clone()));
        (whole, pieces)
    }

    #[test]
    fn the_line_breaks_around_the_end_of_reasoning_belong_to_neither_part() {
        let parts = |text: &str| {
            let (whole, _) = answer(text, &[], true);
            (whole.reasoning, whole.content)
        };
        let is = |reasoning: &str, content: &str| (reasoning.to_owned(), content.to_owned());
        assert_eq!(
            parts("a\n\nb\n</think>\n\n\nc\n\nd\n"),
            is("a\n\nb", "\nc\n\nd\n")
        );
        assert_eq!(parts("</think>c"), is("", "c"));
        assert_eq!(parts("a\n\n</think>\n"), is("a\n", ""));
        // Cut off while it thinks: what was held back comes after all.
        assert_eq!(parts("a\n"), is("a\n", ""));
        assert_eq!(parts("한"), is("한", ""));
    }

    #[test]
    fn a_tag_in_the_content_is_text() {
        let (whole, _) = answer("a</think>b", &[], false);
        assert_eq!(
            (whole.reasoning.as_str(), whole.content.as_str()),
            ("", "a</think>b")
        );
    }

    #[test]
    fn a_stop_string_ends_the_content_and_nothing_else() {
        let (whole, _) = answer("END</think>\n\nxEND", &["END"], true);
        assert_eq!(
            (whole.reasoning.as_str(), whole.content.as_str()),
            ("END", "x")
        );
        assert_eq!(whole.finish, Some(Finish::Stop));
        // What might have become one is given out at the end.
        let (whole, _) = answer("xEN", &["END"], false);
        assert_eq!(
            (whole.content.as_str(), whole.finish),
            ("xEN", Some(Finish::Length))
        );
    }

    #[test]
    fn each_token_of_the_content_has_its_place_in_the_text() {
        let (whole, pieces) = answer("a</think>\n\n가b", &[], true);
        let offsets: Vec<usize> = whole
            .logprobs
            .iter()
            .map(|token| token.text_offset)
            .collect();
        // Two line breaks that are left out, three bytes of one syllable, a letter.
        assert_eq!(offsets, [0, 0, 0, 0, 0, 1]);
        let text: Vec<&str> = pieces.iter().map(|piece| piece.content.as_str()).collect();
        assert_eq!(text.concat(), "가b");
    }
}
