//! Where tensors live and ops run.

use kernels_cpu::{Cpu, Isa};

/// A device with its execution context.
pub enum Device {
    /// This machine's processor: an instruction set and a thread pool.
    Cpu(Cpu),
}

impl Device {
    /// The processor with `threads` threads.
    ///
    /// # Panics
    /// When the processor lacks `isa`.
    pub fn cpu(isa: Isa, threads: usize) -> Device {
        Device::Cpu(Cpu::new(isa, threads))
    }

    /// The same device with threads of its own, for what runs beside.
    pub fn again(&self) -> Device {
        match self {
            Device::Cpu(cpu) => Device::cpu(cpu.isa(), cpu.pool.threads()),
        }
    }

    /// The name under which results of this device are bit-identical: its instruction set.
    pub fn name(&self) -> &'static str {
        match self {
            Device::Cpu(cpu) => cpu.isa().name(),
        }
    }

    /// Threads that share the work.
    pub fn threads(&self) -> usize {
        match self {
            Device::Cpu(cpu) => cpu.pool.threads(),
        }
    }
}
