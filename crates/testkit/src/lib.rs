//! What the tests of several crates share, and the case tables of the ops.
//!
//! Reading order: [`case`] (what an op has to say about itself), [`cases`] (one file per op, of the same
//! name as the kernel), [`compare`] (how far from the reference is far), and what is done with a case:
//!
//! | [`Mode`] | function | question |
//! |---|---|---|
//! | `Conform` | [`conform::check`] | does the kernel compute what `reference` computes, on every device, with the same bits on any number of threads, and write nowhere else? |
//! | `Grad` | [`grad::check`] | is what `reference` calls a gradient one? |
//! | `Perf` | [`bench::measure`] | how near does the kernel come to what the machine can do? |
//!
//! Then the models of tests: [`tiny_model`], and [`fixture`] (cases computed by others).
//!
//! The program uses only `Perf`; everything else here serves tests, and panics where a test would fail.

pub mod case;

pub mod cases;

pub mod compare;

pub mod conform;

pub mod grad;

pub mod bench;

pub mod tiny_model;

pub mod fixture;

pub use case::{Case, Mode};
