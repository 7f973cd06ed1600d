//! The server over real sockets, with a model that follows a script, and its page in a real browser.

#![expect(clippy::unwrap_used, reason = "a failed test is told by its panic")]

mod client;
mod scripted_model;
mod test_server;

mod answers;
mod hostile;
mod lifecycle;
mod refusals;
mod tools;

mod page;
mod webdriver;
