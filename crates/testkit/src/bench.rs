//! How near a kernel comes to what the machine can do.
//!
//! What a run must take at least follows from its operations and its traffic and the measured
//! [`Peaks`]; the share of that in what it takes is the fraction of the peak. An op bound by memory is
//! timed on cold operands (a buffer larger than the caches is swept between runs), one bound by
//! arithmetic on warm ones, as in the middle of a training step.

use crate::case::Case;
use kernels_cpu::peak::{Memory, Peaks};
use std::time::{Duration, Instant};
use tensor::{Compute, Device};

/// What a run took, and what it could have taken.
#[derive(Clone, Copy, Debug)]
pub struct Measurement {
    /// Median.
    pub seconds: f64,
    /// Median distance of a run from the median.
    pub deviation: f64,
    /// Runs counted.
    pub runs: usize,
    /// Operations or bytes per second, in units of 10^9.
    pub value: f64,
    /// Of `value`: `gflops` where arithmetic is the limit, else `gb_per_sec`.
    pub unit: &'static str,
    /// 1 at the limit of the machine.
    pub fraction_of_peak: f64,
}

/// The fewest runs from which a median is taken.
const MIN_RUNS: usize = 5;

/// Runs the kernel of a case for about `budget`.
pub fn measure(
    case: &dyn Case,
    device: &Device,
    peaks: &Peaks,
    memory: &Memory,
    budget: Duration,
) -> Measurement {
    let Device::Cpu(cpu) = device;
    let outputs = case.outputs();
    let mut buffers: Vec<_> = outputs.iter().map(|o| o.buffer(device, 0)).collect();
    let mut kernel = case.kernel(device);
    let cost = case.cost();
    let in_bf16 = case.compute() == Compute::Bf16;
    let limit = peaks.seconds(cost.flops, in_bf16, cost.bytes_read, cost.bytes_written);
    let bound_by_memory = limit > peaks.seconds(cost.flops, in_bf16, 0.0, 0.0);
    kernel(&mut buffers);
    let (start, mut seconds) = (Instant::now(), Vec::new());
    while seconds.len() < MIN_RUNS || start.elapsed() < budget {
        if bound_by_memory {
            memory.sweep(cpu);
        }
        let run = Instant::now();
        kernel(&mut buffers);
        seconds.push(run.elapsed().as_secs_f64());
    }
    let runs = seconds.len();
    let median_of = median(&mut seconds);
    let mut distances: Vec<f64> = seconds.iter().map(|s| (s - median_of).abs()).collect();
    let (amount, unit) = if bound_by_memory {
        (cost.bytes_read + cost.bytes_written, "gb_per_sec")
    } else {
        (cost.flops, "gflops")
    };
    Measurement {
        seconds: median_of,
        deviation: median(&mut distances),
        runs,
        value: amount / median_of / 1e9,
        unit,
        fraction_of_peak: limit / median_of,
    }
}

/// The middle value, of an even number the upper one.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
