//! `cargo xtask neon`: the tests that compare kernels with their oracles, compiled for aarch64 and run by an
//! emulator, so that NEON is tested where no processor has it.
//!
//! Gradients of the reference against differences are left out: they run no kernel. What the emulator counts as time
//! says nothing about any processor.

use anyhow::{Result, bail};
use std::path::Path;
use std::process::{Command, Stdio};

const TARGET: &str = "aarch64-unknown-linux-gnu";
const LINKER: &str = "aarch64-linux-gnu-gcc";
const EMULATOR: &str = "qemu-aarch64";

/// The processor that is emulated: of the first edition of the architecture, so that an instruction which not every
/// aarch64 has ends the test.
const PROCESSOR: &str = "cortex-a57";

/// Where the C library of the target lies.
const SYSROOT: &str = "/usr/aarch64-linux-gnu";

/// Crates in which kernels are compared with something.
const PACKAGES: [&str; 4] = [
    "dokja-numerics",
    "dokja-kernels-cpu",
    "dokja-tensor",
    "dokja-model",
];

/// Set to 1 where what is missing is a failure.
const REQUIRE: &str = "DOKJA_REQUIRE_NEON";

pub(crate) fn run() -> Result<()> {
    if cfg!(target_arch = "aarch64") {
        crate::report("neon: skipped, this processor has it and `test` tests it");
        return Ok(());
    }
    let missing = missing();
    if !missing.is_empty() {
        let missing = missing.join("; ");
        if std::env::var(REQUIRE).is_ok_and(|v| v == "1") {
            bail!("{REQUIRE}=1 asks for what is missing: {missing}");
        }
        crate::report(&format!("neon: skipped, missing: {missing}"));
        return Ok(());
    }
    // What only aarch64 compiles, the workspace's own check does not see.
    let lint = ["clippy", "--quiet", "--target", TARGET, "--all-targets"];
    let lint = [&lint[..], &["--package", "dokja-kernels-cpu"]].concat();
    crate::cargo(&[&lint[..], &["--", "-D", "warnings"]].concat())?;
    let mut command = Command::new(env!("CARGO"));
    command.args(["test", "--target", TARGET, "--lib", "--tests"]);
    for package in PACKAGES {
        command.args(["--package", package]);
    }
    command.args(["--", "--skip", "has_the_gradient_of_differences"]);
    let variable = |of: &str| {
        let target = TARGET.to_uppercase().replace('-', "_");
        format!("CARGO_TARGET_{target}_{of}")
    };
    command.env(variable("LINKER"), LINKER);
    let runner = format!("{EMULATOR} -cpu {PROCESSOR} -L {SYSROOT}");
    command.env(variable("RUNNER"), runner);
    crate::succeed(&mut command)
}

/// What is needed and not there, each with what installs it on Debian.
fn missing() -> Vec<String> {
    let starts = |program: &str| {
        let mut command = Command::new(program);
        command.arg("--version").stdout(Stdio::null());
        command.stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    let needed = [
        (
            "the target's standard library",
            format!("rustup target add {TARGET}"),
            has_target(),
        ),
        (
            LINKER,
            "apt-get install gcc-aarch64-linux-gnu".to_owned(),
            starts(LINKER),
        ),
        (
            "the target's C library",
            "apt-get install libc6-dev-arm64-cross".to_owned(),
            Path::new(SYSROOT).join("lib/libc.so").exists(),
        ),
        (
            EMULATOR,
            "apt-get install qemu-user".to_owned(),
            starts(EMULATOR),
        ),
    ];
    let missing = needed.into_iter().filter(|(.., is_there)| !is_there);
    missing
        .map(|(what, install, _)| format!("{what} (`{install}`)"))
        .collect()
}

/// Whether the compiler has the standard library of the target.
fn has_target() -> bool {
    let mut command = Command::new("rustc");
    command.args(["--print", "target-libdir", "--target", TARGET]);
    command.output().is_ok_and(|output| {
        let folder = String::from_utf8_lossy(&output.stdout);
        output.status.success() && Path::new(folder.trim()).exists()
    })
}
