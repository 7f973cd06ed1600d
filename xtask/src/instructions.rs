//! `cargo xtask instructions`: how many instructions products and steps execute, against the counts that are kept.
//!
//! Callgrind counts, in one thread, what `crates/testkit/examples/instructions.rs` runs, in the profile that tests are
//! built with, but for kernels, which are without its checks: they would be most of what is counted (docs/LOG.md). So
//! kernels are optimised in full, the rest little. Valgrind does not know AVX-512, so AVX2 and the portable kernels are
//! counted. `bench/instructions.toml` holds the counts, and the compiler and processor that they belong to: with others,
//! differences are told and nothing fails. (The C library copies memory in another way on each processor.)

use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How far a count may be from the one that is kept, in either direction.
const TOLERANCE: f64 = 0.02;

/// Instruction sets, and the names that are counted with each.
const ISAS: [(&str, &[&str]); 2] = [
    ("avx2", &[""]),
    ("portable", &["gemm.matmul.", "step.decode"]),
];

/// Counts by instruction set and name.
type Counts = BTreeMap<String, BTreeMap<String, u64>>;

/// What the checks do.
pub(crate) fn check() -> Result<()> {
    run(&[])
}

/// `--write` keeps what is counted.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let writes = match args {
        [] => false,
        [flag] if flag == "--write" => true,
        _ => bail!("the only flag is --write"),
    };
    let root = crate::root()?;
    let path = root.join("bench/instructions.toml");
    let program = build()?;
    let counts = count_all(&program)?;
    let of = compiler_and_processor()?;
    if writes {
        return std::fs::write(&path, text_of(&of, &counts))
            .with_context(|| format!("writing {}", path.display()));
    }
    let text = std::fs::read_to_string(&path);
    let text = text.with_context(|| format!("reading {}", path.display()))?;
    let kept: toml::Table = toml::from_str(&text)?;
    let differences = differences(&kept, &counts);
    if differences.is_empty() {
        return Ok(());
    }
    let told = differences.join("\n  ");
    let kept_of = kept.get("of").and_then(toml::Value::as_str);
    if kept_of != Some(&of) {
        let kept_of = kept_of.unwrap_or("something unknown");
        crate::report(&format!(
            "counts are kept of {kept_of}, this is {of}:\n  {told}"
        ));
        return Ok(());
    }
    bail!(
        "instruction counts differ by more than {:.0} % from bench/instructions.toml; if they have to, \
         `cargo xtask instructions --write` keeps these:\n  {told}",
        100.0 * TOLERANCE
    )
}

fn build() -> Result<PathBuf> {
    // Of the whole workspace, as tests are: the same features of dependencies, which are built already.
    let mut args = vec!["build", "--quiet", "--workspace"];
    args.extend(UNCHECKED_KERNELS);
    args.extend(["--example", "instructions"]);
    crate::cargo(&args)?;
    let metadata = crate::metadata()?;
    let target = metadata["target_directory"].as_str();
    let target = target.context("cargo metadata names no target directory")?;
    Ok(Path::new(target).join("debug/examples/instructions"))
}

/// Flags of cargo that leave the checks out of kernels.
const UNCHECKED_KERNELS: [&str; 4] = [
    "--config",
    "profile.dev.package.dokja-kernels-cpu.debug-assertions=false",
    "--config",
    "profile.dev.package.dokja-kernels-cpu.overflow-checks=false",
];

/// Their names; of a processor also its family and model, where the system tells them, since makers give one name to
/// many kinds.
fn compiler_and_processor() -> Result<String> {
    let rustc = output(Command::new("rustc").arg("--version"))?;
    let about = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let told = |key: &str| {
        let mut lines = about.lines().filter_map(|line| line.split_once(':'));
        let (_, value) = lines.find(|(name, _)| name.trim() == key)?;
        Some(value.trim())
    };
    let name = told("model name").unwrap_or("an unknown processor");
    let kind = match (told("cpu family"), told("model")) {
        (Some(family), Some(model)) => format!(" (family {family}, model {model})"),
        _ => String::new(),
    };
    Ok(format!("{}, {name}{kind}", rustc.trim()))
}

/// Every name with every instruction set that this processor has, on all cores.
fn count_all(program: &Path) -> Result<Counts> {
    let names = output(Command::new(program).arg("list"))?;
    let mut work = Vec::new();
    for (isa, prefixes) in ISAS {
        #[cfg(target_arch = "x86_64")]
        let is_there = isa == "portable" || std::arch::is_x86_feature_detected!("avx2");
        #[cfg(not(target_arch = "x86_64"))]
        let is_there = isa == "portable";
        if is_there {
            let wanted = |name: &&str| prefixes.iter().any(|prefix| name.starts_with(prefix));
            work.extend(names.lines().filter(wanted).map(|name| (isa, name)));
        }
    }
    let (next, counts) = (AtomicUsize::new(0), Mutex::new(Counts::new()));
    let worker = || -> Result<()> {
        while let Some((isa, name)) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
            let counted = count(program, isa, name)?;
            let mut counts = counts.lock().expect("no thread panics with the lock held");
            let of_isa = counts.entry((*isa).to_owned()).or_default();
            of_isa.insert((*name).to_owned(), counted);
        }
        Ok(())
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        let mut ended = threads.into_iter().map(|thread| thread.join());
        ended.try_for_each(|result| result.unwrap_or_else(|_| bail!("a thread panicked")))
    })?;
    Ok(counts.into_inner().expect("no thread panicked"))
}

/// Instructions inside `counted_work` of one run.
fn count(program: &Path, isa: &str, name: &str) -> Result<u64> {
    let out =
        std::env::temp_dir().join(format!("instructions-{}-{isa}-{name}", std::process::id()));
    let mut command = Command::new("valgrind");
    command
        .args(["--tool=callgrind", "--toggle-collect=*counted_work*"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(program)
        .arg(name)
        .env("DOKJA_ISA", isa);
    output(&mut command).with_context(|| format!("counting {name} with {isa}"))?;
    let text = std::fs::read_to_string(&out).context("reading what callgrind counted")?;
    let _ = std::fs::remove_file(&out);
    let total = text.lines().find_map(|line| line.strip_prefix("totals: "));
    let total = total.and_then(|total| total.trim().parse().ok());
    match total {
        Some(0) | None => bail!("callgrind counted nothing of {name} with {isa}"),
        Some(total) => Ok(total),
    }
}

fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| {
        format!(
            "starting {name}; instructions are counted by valgrind, of the package of this name"
        )
    })?;
    if !output.status.success() {
        bail!("{name} failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// What is counted and kept and differs, what is not kept, and what is kept and not there. An instruction set that
/// was not counted is passed over.
fn differences(kept: &toml::Table, counts: &Counts) -> Vec<String> {
    let mut found = Vec::new();
    for (isa, counts) in counts {
        let none = toml::Table::new();
        let kept = kept
            .get(isa)
            .and_then(toml::Value::as_table)
            .unwrap_or(&none);
        for (name, &count) in counts {
            match kept.get(name).and_then(toml::Value::as_integer) {
                None => found.push(format!("{isa} {name}: {count}, of which no count is kept")),
                Some(kept) => {
                    let ratio = count as f64 / kept as f64;
                    if (ratio - 1.0).abs() > TOLERANCE {
                        let percent = 100.0 * (ratio - 1.0);
                        found.push(format!(
                            "{isa} {name}: {count} instead of {kept} ({percent:+.1} %)"
                        ));
                    }
                }
            }
        }
        for name in kept.keys().filter(|name| !counts.contains_key(*name)) {
            found.push(format!("{isa} {name}: is kept and not counted"));
        }
    }
    found
}

fn text_of(of: &str, counts: &Counts) -> String {
    let mut text = format!(
        "# Instructions of products and steps, kernels without checks, one thread, by instruction set.\n\
         # `cargo xtask instructions` compares, with --write it writes them. README.md in this folder tells more.\n\n\
         of = \"{of}\"\n"
    );
    for (isa, counts) in counts {
        let _ = write!(text, "\n[{isa}]\n");
        for (name, count) in counts {
            let _ = writeln!(text, "\"{name}\" = {count}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(of: &[(&str, u64)]) -> Counts {
        let of = of.iter().map(|&(name, count)| (name.to_owned(), count));
        BTreeMap::from([("avx2".to_owned(), of.collect())])
    }

    #[test]
    fn counts_that_are_written_and_read_again_do_not_differ() {
        let counted = counts(&[("gemm.matmul.f32", 1_000_000), ("step.decode", 5)]);
        let kept = toml::from_str(&text_of("rustc 1", &counted)).unwrap();
        assert!(differences(&kept, &counted).is_empty());
    }

    #[test]
    fn more_than_the_tolerance_in_either_direction_is_a_difference_and_so_is_what_is_missing() {
        let kept = text_of(
            "rustc 1",
            &counts(&[("a", 1000), ("b", 1000), ("c", 1000), ("gone", 1)]),
        );
        let counted = counts(&[("a", 1019), ("b", 1021), ("c", 979), ("new", 1)]);
        let told = differences(&toml::from_str(&kept).unwrap(), &counted).join("\n");
        assert!(!told.contains("avx2 a:"), "{told}");
        for what in [
            "b: 1021 instead of 1000 (+2.1 %)",
            "c: 979",
            "new: 1, of which",
            "gone: is kept",
        ] {
            assert!(told.contains(what), "{told}");
        }
    }
}
