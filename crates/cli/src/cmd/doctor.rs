//! `dokja doctor`: what this machine has, what it can do, and what will be used.

use crate::progress::{bytes, tell};
use crate::{env, memory, print};
use anyhow::Result;
use kernels_cpu::Isa;
use kernels_cpu::peak::{Memory, Peaks};
use serde_json::json;
use tensor::Device;

/// Measures what this machine can do and says what will be used.
#[derive(clap::Args)]
#[command(
    after_help = "DOKJA_ISA and DOKJA_THREADS choose otherwise, for this command as for every other."
)]
pub(crate) struct Args {
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let device = env::device()?;
    let Device::Cpu(cpu) = &device;
    let available: Vec<&str> = Isa::available().iter().map(|isa| isa.name()).collect();
    if !args.json {
        tell("measuring, for some seconds");
    }
    let buffer_bytes = memory::measuring_bytes(None);
    let peaks = Peaks::measure(cpu, &mut Memory::new(buffer_bytes));
    let (total, free) = (memory::total_bytes(), memory::available_bytes());
    if args.json {
        print(
            &json!({
                "processor": processor(),
                "isa": device.name(),
                "isas": available,
                "threads": device.threads(),
                "peak_gflops_f32": peaks.f32_flops / 1e9,
                "peak_gflops_bf16": peaks.bf16_flops / 1e9,
                "peak_gops_int8": peaks.int8_ops / 1e9,
                "read_gb_per_sec": peaks.read_bytes / 1e9,
                "copy_gb_per_sec": peaks.copy_bytes / 1e9,
                "memory_bytes": total,
                "available_memory_bytes": free,
                "accelerators": [],
            })
            .to_string(),
        );
        return Ok(());
    }
    let memory = match (total, free) {
        (Some(total), Some(free)) => format!("{}, {} available", bytes(total), bytes(free)),
        _ => "not told by the system".into(),
    };
    let giga = |x: f64| x / 1e9;
    print(&format!(
        "processor     {}\n\
         runs          {}\n\
         memory        {memory}\n\
         accelerators  none are used: this version computes on the processor\n\
         \n\
         will be used  {} on {} threads\n\
         f32           {:.0} GFLOP/s\n\
         bf16          {:.0} GFLOP/s\n\
         int8          {:.0} GOP/s\n\
         memory        {:.1} GB/s read, {:.1} GB/s copied (two buffers of {})",
        processor(),
        available.join(", "),
        device.name(),
        device.threads(),
        giga(peaks.f32_flops),
        giga(peaks.bf16_flops),
        giga(peaks.int8_ops),
        giga(peaks.read_bytes),
        giga(peaks.copy_bytes),
        bytes(buffer_bytes as u64),
    ));
    Ok(())
}

/// What the system calls the processor.
fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("model name"));
    let name = line.and_then(|line| line.split_once(':'));
    name.map_or(std::env::consts::ARCH, |(_, name)| name.trim())
        .to_owned()
}
