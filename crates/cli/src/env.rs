//! Every environment variable the program reads.
//!
//! | variable | meaning | default |
//! |---|---|---|
//! | `DOKJA_ISA` | instruction set: avx512-bf16, avx512, avx2, neon, portable | the fastest there is |
//! | `DOKJA_THREADS` | threads that share the work, 1 to 1024 | all cores |
//! | `DOKJA_KEY` | file of the key that signs ledgers, made at first use | `dokja/signing.key` in the user's configuration |
//! | `DOKJA_API_KEY` | bearer token that `dokja eval URL` and `dokja bench serve URL` send to the server | none is sent |
//! | `GLIBC_TUNABLES` | the C library's own settings; see [`use_huge_pages`] | huge pages where the system gives them |

use anyhow::{Context, Result, bail};
use kernels_cpu::Isa;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use tensor::Device;

/// Starts the program again with huge pages for its memory, where the system gives them to those who ask.
///
/// A token touches all weights once, and each page of 4 kB costs a walk through the page tables (what that takes
/// is in docs/LOG.md). The C library can ask for them, but is told so only when a program
/// starts. Nothing else changes, the process included; where it cannot be done, all runs as it is.
pub(crate) fn use_huge_pages() {
    const TUNABLES: &str = "GLIBC_TUNABLES";
    const MODE: &str = "/sys/kernel/mm/transparent_hugepage/enabled";
    let on_demand = std::fs::read_to_string(MODE).is_ok_and(|mode| mode.contains("[madvise]"));
    if !on_demand || std::env::var_os(TUNABLES).is_some() {
        return;
    }
    let mut args = std::env::args_os();
    if let (Ok(program), Some(name)) = (std::env::current_exe(), args.next()) {
        let mut again = std::process::Command::new(program);
        again.arg0(name).args(args);
        // Returns only when it failed.
        let _ = again.env(TUNABLES, "glibc.malloc.hugetlb=1").exec();
    }
}

/// The device that the environment asks for.
pub(crate) fn device() -> Result<Device> {
    Ok(Device::cpu(isa()?, threads()?))
}

/// The same with another instruction set where the environment names none.
pub(crate) fn device_of(isa_name: &str) -> Result<Device> {
    let isa = match (std::env::var_os("DOKJA_ISA"), Isa::from_name(isa_name)) {
        (None, Some(isa)) if isa.is_available() => isa,
        (None, _) => bail!(
            "the run was trained with the instruction set {isa_name:?}, which this processor has not; others give other \
             bits (DOKJA_ISA tries one all the same)"
        ),
        (Some(_), _) => isa()?,
    };
    Ok(Device::cpu(isa, threads()?))
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

/// The number of threads that the environment asks for.
pub(crate) fn threads() -> Result<usize> {
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

/// The bearer token for other people's servers.
pub(crate) fn api_key() -> Option<String> {
    std::env::var("DOKJA_API_KEY")
        .ok()
        .filter(|key| !key.is_empty())
}

/// Where the signing key is kept.
pub(crate) fn key_path() -> Result<PathBuf> {
    let folder = |name: &str| {
        std::env::var_os(name)
            .filter(|v| !v.is_empty())
            .map(PathBuf::from)
    };
    let config = || folder("XDG_CONFIG_HOME").or_else(|| Some(folder("HOME")?.join(".config")));
    folder("DOKJA_KEY")
        .or_else(|| Some(config()?.join("dokja/signing.key")))
        .context("no place for the signing key: neither HOME nor DOKJA_KEY is set")
}
