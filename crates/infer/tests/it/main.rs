//! The engine against a scripted model, and against the real one.

mod engine;
mod hashing_model;
mod model;
