//! How near a kernel comes to what the machine can do.
//!
//! What a run must take at least follows from its operations and its traffic and the measured
//! [`Peaks`]; the share of that in what it takes is the fraction of the peak. An op bound by memory is
//! timed on cold operands (a buffer larger than the caches is swept between runs), one bound by
//! arithmetic on warm ones, as in the middle of a training step.
//!
//! A processor changes its frequency by some per cent within a second. So an op
//! bound by arithmetic is timed in turns with the loop of its peak, which runs for as long as the op did. Each run is
//! compared with the better of the loop's runs just before and just after it, and the median of these shares counts.
//! The loop itself, measured that way, has 99.3 to 99.8 % of its peak; beside the best that it reached at any time,
//! 92 to 99.4 % (docs/LOG.md). The better of two, since the loop, which does nothing but multiply, is slowed down more
//! often than a product: beside its median products came out above 1.

use crate::case::Case;
use kernels_cpu::Cpu;
use kernels_cpu::peak::{Factor, Memory, PeakLoop, Peaks};
use std::time::{Duration, Instant};
use tensor::Device;

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
    /// Of `value`: `gflops` where arithmetic is the limit (`gops` on integers), else `gb_per_sec`.
    pub unit: &'static str,
    /// 1 at the limit of the machine.
    pub fraction_of_peak: f64,
}

/// What the machine can do, and the loops that show it.
pub struct Limits<'a> {
    peaks: Peaks,
    loops: [PeakLoop<'a>; 3],
}

impl<'a> Limits<'a> {
    /// Beside peaks that were measured.
    pub fn new(cpu: &'a Cpu, peaks: Peaks) -> Limits<'a> {
        let factors = [Factor::F32, Factor::Bf16, Factor::Int8];
        Limits {
            peaks,
            loops: factors.map(|factor| PeakLoop::new(cpu, factor)),
        }
    }

    fn loop_of(&self, factor: Factor) -> &PeakLoop<'a> {
        match factor {
            Factor::F32 => &self.loops[0],
            Factor::Bf16 => &self.loops[1],
            Factor::Int8 => &self.loops[2],
        }
    }
}

/// The fewest runs from which a median is taken.
const MIN_RUNS: usize = 5;

/// Runs the kernel of a case for about `budget`.
pub fn measure(
    case: &dyn Case,
    device: &Device,
    limits: &Limits,
    memory: &Memory,
    budget: Duration,
) -> Measurement {
    let Device::Cpu(cpu) = device;
    let peaks = &limits.peaks;
    let outputs = case.outputs();
    let mut buffers: Vec<_> = outputs.iter().map(|o| o.buffer(device, 0)).collect();
    let mut kernel = case.kernel(device);
    let cost = case.cost();
    let factor = case.factor();
    let limit = peaks.seconds(cost.flops, factor, cost.bytes_read, cost.bytes_written);
    let bound_by_memory = limit > peaks.seconds(cost.flops, factor, 0.0, 0.0);
    let mut timed = || {
        let start = Instant::now();
        kernel(&mut buffers);
        start.elapsed()
    };
    let rate_over = |took| match bound_by_memory {
        true => 0.0, // nobody asks for it
        false => limits.loop_of(factor).rate_over(took),
    };
    let mut before = rate_over(timed());
    let (start, mut seconds, mut shares) = (Instant::now(), Vec::new(), Vec::new());
    while seconds.len() < MIN_RUNS || start.elapsed() < budget {
        if bound_by_memory {
            memory.sweep(cpu);
        }
        let took = timed();
        let after = rate_over(took);
        let limit = match bound_by_memory {
            true => limit,
            false => cost.flops / before.max(after),
        };
        before = after;
        seconds.push(took.as_secs_f64());
        shares.push(limit / took.as_secs_f64());
    }
    let runs = seconds.len();
    let median_of = median(&mut seconds);
    let mut distances: Vec<f64> = seconds.iter().map(|s| (s - median_of).abs()).collect();
    let (amount, unit) = if bound_by_memory {
        (cost.bytes_read + cost.bytes_written, "gb_per_sec")
    } else {
        let is_int = factor == Factor::Int8;
        (cost.flops, if is_int { "gops" } else { "gflops" })
    };
    Measurement {
        seconds: median_of,
        deviation: median(&mut distances),
        runs,
        value: amount / median_of / 1e9,
        unit,
        fraction_of_peak: median(&mut shares),
    }
}

/// The middle value, of an even number the upper one.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Mode;
    use crate::cases::gemm_blocks;
    use kernels_cpu::Isa;

    #[test]
    fn integers_are_measured_by_the_peak_of_integers() {
        let peaks = Peaks {
            f32_flops: 1.0,
            bf16_flops: 1.0,
            int8_ops: 1e3,
            read_bytes: 1e9,
            copy_bytes: 1e9,
        };
        let device = Device::cpu(Isa::Portable, 1);
        let Device::Cpu(cpu) = &device;
        let limits = Limits::new(cpu, peaks);
        let memory = Memory::new(1 << 12);
        // The same sizes with rows of 8 and of 16 bits: a factor of 16 bits is two of 8.
        let cases = gemm_blocks::cases(Mode::Conform);
        let [of_8, of_16] = [&cases[0], &cases[cases.len() / 8]];
        assert_eq!(2.0 * of_8.cost().flops, of_16.cost().flops);
        let m = measure(of_8.as_ref(), &device, &limits, &memory, Duration::ZERO);
        assert_eq!((m.unit, m.runs), ("gops", MIN_RUNS));
        let rate = m.value * 1e9 / m.fraction_of_peak;
        let best = limits.loop_of(Factor::Int8).rate_over(Duration::ZERO);
        assert!(
            rate > best / 1e3 && rate < best * 1e3,
            "{rate} beside {best}"
        );
    }
}
