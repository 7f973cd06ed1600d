//! Products and attention against f64 loops, and against themselves in other company.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a failed test is told by its panic, a skipped one by a line"
)]

mod attention;
mod blocks;
mod gemm;

use dokja_kernels_cpu::{Cpu, Isa};
use numerics::Philox;

/// Values of the standard normal distribution, named by their use.
fn normal(len: usize, name: &str) -> Vec<f32> {
    let philox = Philox::new(11, name);
    (0..len as u64).map(|i| philox.normal(i)).collect()
}

/// Every instruction set of this processor; those it lacks are named.
fn on_every_isa(threads: usize, f: impl Fn(&Cpu)) {
    for isa in Isa::ALL {
        if isa.is_available() {
            f(&Cpu::new(isa, threads));
        } else {
            println!("skipped {}: not on this processor", isa.name());
        }
    }
}
