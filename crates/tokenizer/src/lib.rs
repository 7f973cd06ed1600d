//! The tokenizer of K-EXAONE's kind: byte-level BPE with tokens that span words. Trained, used, and
//! kept as a `tokenizer.json` that the Hugging Face `tokenizers` library reads. Vocabularies of the GPT
//! and Llama families are read too, from such files and from GGUF.
//!
//! In reading order: `tokenizer` (text to ids and back), `pretokenize` and `bpe` (the two steps of
//! it), `train`, `special` (tokens with a meaning), `chat_template` (messages to ids), `jinja` (the same
//! by a model's own template), `stream` (ids to
//! text as they come), `tool_call` (calls of tools, to text and back), `json` and `gguf` (the files), `assemble` (from a file to a tokenizer).
//!
//! ```
//! use dokja_tokenizer::{Trainer, chat::{self, ChatOptions, Message}};
//!
//! let trainer = Trainer { vocab_size: 300, ..Trainer::default() };
//! let tokenizer = trainer.train(["the sea, the sea, the sea"], &mut |_| {})?;
//! let ids = tokenizer.encode_ordinary("the sea");
//! assert_eq!(tokenizer.decode(&ids, false), "the sea");
//!
//! let options =
//!     ChatOptions { enable_thinking: false, add_generation_prompt: true, ..ChatOptions::default() };
//! let prompt = chat::render(&tokenizer, &[Message::user("Where is the sea?")], &options)?;
//! assert_eq!(
//!     tokenizer.decode(&prompt.ids, false),
//!     "<|user|>\nWhere is the sea?<|endofturn|>\n<|assistant|>\n<think>\n\n</think>\n\n",
//! );
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod tokenizer;

pub mod pretokenize;

mod added;
mod bpe;
mod byte_alphabet;
mod char_class;
mod decode;
mod fast_hash;
mod normalize;
mod postprocess;
mod spm;

mod assemble;

pub mod gguf;
mod json;

pub mod train;

pub mod special;

pub mod chat_family;
pub mod chat_format;
pub mod chat_template;
pub mod jinja;
pub mod stream;
pub mod tool_call;

pub mod error;

pub use crate::tokenizer::{MAX_VOCAB_SIZE, Tokenizer};
pub use chat_family::ChatFamily;
pub use chat_format::{ChatError, ChatFormat, Prompt};
pub use chat_template as chat;
pub use error::{LoadError, MissingSpecial, SaveError};
pub use gguf::{GgufData, GgufVocab, NotInGguf};
pub use jinja::{ChatTemplate, Conversation, TemplateError};
pub use special::{AddedToken, Specials};
pub use stream::StreamDecoder;
pub use tool_call::{ToolCall, ToolCallParser};
pub use train::{Progress, TrainError, Trainer};
