//! Every environment variable the program reads.
//!
//! | variable | meaning | default |
//! |---|---|---|
//! | `DOKJA_ISA` | instruction set: avx512-bf16, avx512, avx2, neon, portable | the fastest there is |
//! | `DOKJA_THREADS` | threads that share the work, 1 to 1024 | all cores |

use anyhow::{Context, Result, bail};
use kernels_cpu::Isa;
use tensor::Device;

/// The device that the environment asks for.
pub(crate) fn device() -> Result<Device> {
    Ok(Device::cpu(isa()?, threads()?))
}

fn isa() -> Result<Isa> {
    let Ok(name) = std::env::var("DOKJA_ISA") else {
        return Ok(Isa::detect());
    };
    let names: Vec<&str> = Isa::available().iter().map(|isa| isa.name()).collect();
    match Isa::from_name(&name).filter(|isa| isa.is_available()) {
        Some(isa) => Ok(isa),
        None => bail!(
            "DOKJA_ISA is {name:?}; this processor runs {}",
            names.join(", ")
        ),
    }
}

fn threads() -> Result<usize> {
    match std::env::var("DOKJA_THREADS") {
        Ok(text) => match text.parse() {
            Ok(n) if (1..=1024).contains(&n) => Ok(n),
            _ => bail!("DOKJA_THREADS is {text:?}; it takes a whole number from 1 to 1024"),
        },
        Err(_) => Ok(std::thread::available_parallelism()
            .context("counting processors")?
            .get()),
    }
}
