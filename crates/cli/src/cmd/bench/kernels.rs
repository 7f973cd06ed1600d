//! `dokja bench kernels`: every op at the sizes of a real model.

use crate::progress::tell;
use crate::{env, memory, print};
use anyhow::{Result, bail};
use kernels_cpu::peak::{Memory, Peaks};
use serde_json::json;
use std::collections::BTreeSet;
use std::time::Duration;
use tensor::Device;
use testkit::bench::{Limits, Measurement, measure};
use testkit::{Case, Mode, cases};

/// Times every op at the sizes of a real model.
///
/// What a run takes at least follows from its operations and its traffic, and from measured peaks;
/// fraction_of_peak is that time by the time taken. An op bound by memory is timed on operands that are in no
/// cache, one bound by arithmetic on warm ones, in turns with the loop of its peak, since the frequency of a
/// processor changes.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  dokja bench kernels
  dokja bench kernels --op gemm --op attention --json
  DOKJA_ISA=avx2 DOKJA_THREADS=1 dokja bench kernels")]
pub(crate) struct Args {
    /// Only ops whose name begins so, as in gemm or rms_norm.backward; may be given several times.
    #[arg(long = "op", value_name = "NAME")]
    ops: Vec<String>,
    /// Seconds for each op and size.
    #[arg(long, value_name = "S", default_value_t = 0.5, value_parser = seconds)]
    seconds: f64,
    /// Print one JSON object for each op and size.
    #[arg(long)]
    json: bool,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(s) if (0.0..=3600.0).contains(&s) => Ok(s),
        _ => Err("expected a number from 0 to 3600".to_owned()),
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let wanted = |op: &str| args.ops.is_empty() || args.ops.iter().any(|name| op.starts_with(name));
    let tables = cases::ALL.iter().flat_map(|(_, table)| table(Mode::Perf));
    let cases: Vec<Box<dyn Case>> = tables.filter(|case| wanted(case.op())).collect();
    if cases.is_empty() {
        let all = cases::ALL.iter().flat_map(|(_, table)| table(Mode::Perf));
        let known: BTreeSet<&str> = all.map(|case| case.op()).collect();
        bail!(
            "no op begins with {}; there are {}",
            args.ops.join(" or "),
            Vec::from_iter(known).join(", ")
        );
    }
    let device = env::device()?;
    let Device::Cpu(cpu) = &device;
    let mut buffers = Memory::new(memory::measuring_bytes(None));
    tell("measuring the limits of this machine");
    let peaks = Peaks::measure(cpu, &mut buffers);
    let limits = Limits::new(cpu, peaks);
    let budget = Duration::from_secs_f64(args.seconds);
    if !args.json {
        print(&format!(
            "{} on {} threads: f32 {:.0} GFLOP/s, bf16 {:.0} GFLOP/s, int8 {:.0} GOP/s, read {:.1} GB/s, copy {:.1} GB/s\n",
            device.name(),
            device.threads(),
            peaks.f32_flops / 1e9,
            peaks.bf16_flops / 1e9,
            peaks.int8_ops / 1e9,
            peaks.read_bytes / 1e9,
            peaks.copy_bytes / 1e9
        ));
        print(&format!(
            "{:<31} {:<5} {:>10} {:<7} {:>7} {:>9}  sizes",
            "op", "dtype", "value", "unit", "of peak", "time"
        ));
    }
    for case in cases {
        let m = measure(case.as_ref(), &device, &limits, &buffers, budget);
        print(&if args.json {
            object(case.as_ref(), &device, &m).to_string()
        } else {
            line(case.as_ref(), &m)
        });
    }
    Ok(())
}

fn object(case: &dyn Case, device: &Device, m: &Measurement) -> serde_json::Value {
    let dims = case.dims().into_iter();
    let dims: serde_json::Map<_, _> = dims.map(|(of, n)| (of.to_owned(), json!(n))).collect();
    json!({
        "op": case.op(),
        "dims": dims,
        "dtype": case.dtype(),
        "isa": device.name(),
        "threads": device.threads(),
        "value": m.value,
        "unit": m.unit,
        "fraction_of_peak": m.fraction_of_peak,
        "seconds": m.seconds,
        "deviation_seconds": m.deviation,
        "runs": m.runs,
    })
}

fn line(case: &dyn Case, m: &Measurement) -> String {
    let unit = match m.unit {
        "gflops" => "GFLOP/s",
        "gops" => "GOP/s",
        _ => "GB/s",
    };
    let dims: Vec<String> = case
        .dims()
        .iter()
        .map(|(of, n)| format!("{of} {n}"))
        .collect();
    format!(
        "{:<31} {:<5} {:>10.1} {unit:<7} {:>5.0} % {:>6.2} ms  {}",
        case.op(),
        case.dtype(),
        m.value,
        100.0 * m.fraction_of_peak,
        1e3 * m.seconds,
        dims.join(", ")
    )
}
