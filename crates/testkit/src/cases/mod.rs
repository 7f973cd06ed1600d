//! The case tables: one file per op, of the name it has under `tensor::ops` and in `kernels_cpu`; and
//! `gemm_blocks`, the products of two of them with weights in blocks of integers.
//!
//! A file says what the kernel is given, what it should give (in the words of `reference`, or in plain
//! loops where the kernel's cut is not the reference's), how near is near enough, and what it costs.

use crate::case::{Case, Mode};

pub mod adamw;
pub mod attention;
pub mod cross_entropy;
pub mod elementwise;
pub mod embedding;
pub mod gemm;
pub mod gemm_blocks;
pub mod grouped_gemm;
pub mod moe_permute;
pub mod muon;
pub mod qk_norm_rope;
pub mod rms_norm;
pub mod router;
pub mod swiglu;

/// A table: the cases of one file.
pub type Table = fn(Mode) -> Vec<Box<dyn Case>>;

/// All tables by the names of their files.
pub const ALL: [(&str, Table); 14] = [
    ("gemm", gemm::cases),
    ("gemm_blocks", gemm_blocks::cases),
    ("grouped_gemm", grouped_gemm::cases),
    ("attention", attention::cases),
    ("qk_norm_rope", qk_norm_rope::cases),
    ("rms_norm", rms_norm::cases),
    ("swiglu", swiglu::cases),
    ("router", router::cases),
    ("moe_permute", moe_permute::cases),
    ("cross_entropy", cross_entropy::cases),
    ("embedding", embedding::cases),
    ("elementwise", elementwise::cases),
    ("adamw", adamw::cases),
    ("muon", muon::cases),
];

/// Boxes the cases of one kind.
fn boxed<C: Case + 'static>(
    cases: impl IntoIterator<Item = C>,
) -> impl Iterator<Item = Box<dyn Case>> {
    cases
        .into_iter()
        .map(|case| Box::new(case) as Box<dyn Case>)
}
