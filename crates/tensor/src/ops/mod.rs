//! One file per op: the only places that choose a device.

pub mod adamw;
pub mod attention;
pub mod cross_entropy;
pub mod elementwise;
pub mod embedding;
pub mod gemm;
pub mod grouped_gemm;
pub mod moe_permute;
pub mod muon;
pub mod qk_norm_rope;
pub mod rms_norm;
pub mod router;
pub mod swiglu;
