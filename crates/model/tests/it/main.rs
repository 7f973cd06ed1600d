//! The model against other implementations, and against itself on other threads.

mod determinism;
mod reference_cases;
