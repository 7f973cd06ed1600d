//! The tokenizer from outside: against recorded answers of another library, and as a file that is
//! trained, written, read and used.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![expect(clippy::print_stdout, reason = "a skipped test says so")]

mod hostile;
mod library;
mod reference;
mod round_trip;
mod training;
