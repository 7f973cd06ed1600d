//! What is put to the test, seen from a suite.

use std::fmt;

use thiserror::Error;

/// A model, wherever it runs.
pub trait Target {
    /// What it is, for the record.
    fn identity(&self) -> &Identity;

    /// One reply for each prompt, in their order. A prompt is the one user message of a conversation;
    /// the likeliest token is taken at every position. `done` hears how many are answered.
    ///
    /// # Errors
    /// When the rest cannot be answered either. A single prompt that cannot be asked is a reply with a
    /// problem.
    fn answer(
        &mut self,
        prompts: &[&str],
        options: &AnswerOptions,
        done: &mut dyn FnMut(usize),
    ) -> Result<Vec<Reply>, TargetError>;

    /// How likely the text is as a whole document, token after token, through windows of `window` tokens
    /// (see [`crate::bits_per_byte`]); without one, of the length that suits the model. `done` hears how
    /// many tokens are scored, of how many.
    ///
    /// # Errors
    /// [`TargetError::NoLikelihood`] where only answers can be had.
    fn score_text(
        &mut self,
        text: &str,
        window: Option<usize>,
        done: &mut dyn FnMut(usize, usize),
    ) -> Result<ScoredText, TargetError> {
        let _ = (text, window, done);
        Err(TargetError::NoLikelihood {
            model: self.identity().model.clone(),
        })
    }
}

/// Which model it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// A path, or the name under which a server knows it.
    pub model: String,
    /// SHA-256 of its weights, where they are at hand.
    pub weights_sha256: Option<String>,
}

/// How answers are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnswerOptions {
    /// Tokens of an answer at most, thinking included.
    pub max_tokens: usize,
    /// Whether the model may think before it answers.
    pub thinking: bool,
}

/// What came back for one prompt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// The answer, without thinking.
    pub text: String,
    /// Why it is not a whole answer, if it is not.
    pub problem: Option<Problem>,
}

/// What kept an answer from being whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// It was longer than allowed.
    Cut,
    /// The prompt was not taken; why.
    NotAsked(String),
    /// The model's logits were no numbers.
    NotFinite,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::Cut => f.write_str("cut at max_tokens"),
            Problem::NotAsked(why) => write!(f, "not asked: {why}"),
            Problem::NotFinite => f.write_str("the logits were no numbers"),
        }
    }
}

/// A text with its probability.
#[derive(Clone, Debug, PartialEq)]
pub struct ScoredText {
    /// Tokens scored, each once.
    pub tokens: u64,
    /// The text in order, in stretches of half a window.
    pub stretches: Vec<Stretch>,
    /// Tokens that a prediction saw at most.
    pub window: usize,
    /// Whether the tokenizer changed the text (Unicode NFC) before it was scored.
    pub is_changed: bool,
}

/// Neighbouring tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stretch {
    /// Bytes that they stand for.
    pub bytes: u64,
    /// Minus the logarithm of their probability, base 2.
    pub bits: f64,
}

/// The target failed.
#[derive(Debug, Error)]
pub enum TargetError {
    /// Only the weights tell how likely a text is.
    #[error(
        "{model} is a server, and servers do not tell how likely a given text is; give the path of a \
         checkpoint or run directory"
    )]
    NoLikelihood {
        /// The server's model.
        model: String,
    },
    /// A special token that the chat format needs.
    #[error("the model cannot be asked: {0}")]
    Chat(#[from] tokenizer::ChatError),
    /// Encoding the text and decoding it again gives another text.
    #[error(
        "the tokenizer does not give the text back (first difference at byte {at} of its NFC form); \
         bits per byte would count another text"
    )]
    Lossy {
        /// Where.
        at: usize,
    },
    /// The engine does not take a request.
    #[error(transparent)]
    Submit(#[from] infer::SubmitError),
    /// The engine does not score.
    #[error(transparent)]
    Score(#[from] infer::ScoreError),
    /// The URL is none.
    #[error("{url:?} is not the address of a server; give one like http://127.0.0.1:8080/v1")]
    Url {
        /// As given.
        url: String,
    },
    /// No connection, or one that broke, after all retries.
    #[error("{url} does not answer: {cause}; check the address and that the server runs")]
    Unreachable {
        /// The address.
        url: String,
        /// What the connection said.
        cause: String,
    },
    /// The server refused, after all retries where a retry may help.
    #[error("{url} answers {status}: {message}")]
    Refused {
        /// The address.
        url: String,
        /// HTTP status.
        status: u16,
        /// Its words, shortened.
        message: String,
    },
    /// A reply that is not of the API.
    #[error("{url} answers with something else than the OpenAI chat API: {what}")]
    Reply {
        /// The address.
        url: String,
        /// What is missing or wrong.
        what: String,
    },
}
