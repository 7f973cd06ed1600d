//! The server: OpenAI-compatible HTTP routes and a chat page, over the engine of `infer`.
//!
//! Map, in reading order: `server` (bind, run, stop), `routes` (path to handler), `openai` (the wire
//! format, and nothing but it), `generation` (a request's way through text, engine and text again),
//! `stop_strings`, `engine_thread` (the engine in its thread, restarted when it panics), `api_keys`,
//! `page` and `chat.html`.
//!
//! The one crate with async code. The engine runs in a thread of its own and is fed by channels; the
//! rest is waiting for sockets. Wire types never go further inward than `openai`.
//!
//! Deliberately absent: TLS (put a proxy in front), calls that are forced, several answers to one prompt.
//! Tested over HTTP and in a real browser in `tests/it`.

mod server;

mod routes;

mod openai;

mod generation;
mod stop_strings;

mod engine_thread;

mod api_keys;
mod page;

pub use api_keys::{ApiKeys, ApiKeysError};
pub use engine_thread::{EngineFactory, LoadError};
pub use page::Examples;
pub use server::{ServeConfig, ServeError, ServedModel, Server, Shutdown};
