//! Models in every layout: what others wrote is read, what is written is read again.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a failed test is told by its panic, a skipped one by a line"
)]

mod gguf;
mod hugging_face;
