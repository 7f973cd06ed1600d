//! The model against other implementations, and against itself on other threads.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a failed test is told by its panic, a skipped one by a line"
)]

mod decode;
mod determinism;
mod mtp;
mod paging;
mod parity;
mod published;
