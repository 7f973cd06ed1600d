//! What the tests of the kernels share: every instruction set, guarded outputs.
//!
//! That a kernel computes the right values is tested with the tables of `testkit`, by the crate `tensor`.
//! The tests here are of what those do not show: the bits of a row in other company, ties, values that are
//! not numbers, sizes that do not fit.

use crate::{Cpu, Isa};
use numerics::Philox;
use std::ops::{Deref, DerefMut};

/// Normal values, the same at every call with the same name.
pub(crate) fn normal(len: usize, name: &str) -> Vec<f32> {
    let philox = Philox::new(7, name);
    (0..len as u64).map(|idx| philox.normal(idx)).collect()
}

/// Integers below `bound`.
pub(crate) fn below(len: usize, bound: usize, name: &str) -> Vec<u32> {
    let mut rng = Philox::new(7, name).rng();
    (0..len).map(|_| rng.below(bound) as u32).collect()
}

/// Calls `f` with one thread of every instruction set of this processor.
pub(crate) fn on_every_isa(f: impl Fn(&Cpu)) {
    for isa in Isa::available() {
        f(&Cpu::new(isa, 1));
    }
}

/// `f` must return the same bits on 1, 2 and 3 threads.
#[track_caller]
pub(crate) fn same_bits_on_any_number_of_threads(f: impl Fn(&Cpu) -> Vec<f32>) {
    for isa in Isa::available() {
        let alone = bits(&f(&Cpu::new(isa, 1)));
        for threads in [2, 3] {
            let together = bits(&f(&Cpu::new(isa, threads)));
            assert!(
                alone == together,
                "{}: {threads} threads give other bits",
                isa.name()
            );
        }
    }
}

pub(crate) fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// An output between sentinels, which [`Guarded::finish`] checks.
pub(crate) struct Guarded<T> {
    values: Vec<T>,
    sentinel: T,
}

const GUARD: usize = 33;

impl<T: Copy + PartialEq + std::fmt::Debug> Guarded<T> {
    /// Starts from `initial`; `sentinel` is a value that the kernel does not produce.
    pub(crate) fn new(initial: &[T], sentinel: T) -> Guarded<T> {
        let mut values = vec![sentinel; initial.len() + 2 * GUARD];
        values[GUARD..GUARD + initial.len()].copy_from_slice(initial);
        Guarded { values, sentinel }
    }

    /// The output, if nothing was written outside of it.
    #[track_caller]
    pub(crate) fn finish(self) -> Vec<T> {
        let len = self.values.len() - 2 * GUARD;
        let (before, rest) = self.values.split_at(GUARD);
        let outside = before.iter().chain(&rest[len..]);
        assert!(
            outside.clone().all(|v| *v == self.sentinel),
            "written outside of the output"
        );
        rest[..len].to_vec()
    }
}

/// `len` values of garbage that a kernel must overwrite, between sentinels.
pub(crate) fn output(len: usize) -> Guarded<f32> {
    Guarded::new(&vec![9e9; len], -12345.5)
}

/// `initial`, to be added to, between sentinels.
pub(crate) fn added(initial: &[f32]) -> Guarded<f32> {
    Guarded::new(initial, -12345.5)
}

impl<T> Deref for Guarded<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.values[GUARD..self.values.len() - GUARD]
    }
}

impl<T> DerefMut for Guarded<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        let end = self.values.len() - GUARD;
        &mut self.values[GUARD..end]
    }
}
