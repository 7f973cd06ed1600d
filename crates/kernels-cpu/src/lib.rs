//! CPU kernels: slices in, slices out.
//!
//! Reading order: [`simd`] (the vector vocabulary), [`arch`] (its implementations), [`isa`] (the choice
//! among them), [`pool`] (threads), `factor` (what products multiply), then one file per op.
//!
//! A kernel knows memory and sizes: it allocates nothing that grows with the model inside a step but
//! per-thread scratch that is kept, returns no `Result`, logs nothing. Sizes that do not fit together
//! are a bug of the caller and panic.
//!
//! **The bits of a row do not depend on its company.** For a given instruction set, the result for one
//! row (token) is the same whatever the number of rows, their partition among threads, and the chunking
//! of the work. Reductions over rows (gradients of parameters) run in the order of the rows, whatever
//! the number of threads.

#[macro_use]
pub mod isa;
pub mod arch;
pub mod pool;
pub mod simd;

mod aligned;
#[cfg(test)]
mod check;
mod factor;
mod row;

pub mod adamw;
pub mod attention;
pub mod cross_entropy;
pub mod elementwise;
pub mod embedding;
pub mod gemm;
pub mod grouped_gemm;
pub mod moe_permute;
pub mod muon;
pub mod peak;
pub mod qk_norm_rope;
pub mod rms_norm;
pub mod router;
pub mod swiglu;

pub use aligned::Aligned;
pub use factor::Compute;
pub use isa::Isa;
pub use pool::Pool;

/// What a product or a gradient does with what its output holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// Replaces it.
    Overwrite,
    /// Is added to it.
    Add,
}

/// The processor as the kernels see it: an instruction set and threads.
pub struct Cpu {
    /// Checked to be available.
    isa: Isa,
    /// Worker threads.
    pub pool: Pool,
}

impl Cpu {
    /// A processor with the given instruction set and number of threads.
    ///
    /// # Panics
    /// When this processor lacks the instruction set; ask [`Isa::is_available`] first.
    pub fn new(isa: Isa, threads: usize) -> Cpu {
        assert!(isa.is_available(), "this processor has no {}", isa.name());
        Cpu {
            isa,
            pool: Pool::new(threads),
        }
    }

    /// One thread, for work that is spread at a higher level.
    pub fn serial(isa: Isa) -> Cpu {
        Cpu::new(isa, 1)
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }
}
