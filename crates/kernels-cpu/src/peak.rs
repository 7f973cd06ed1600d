//! What this processor can do at most: loops of one instruction each, timed.
//!
//! multiply-add   x_i <- x_i a + b in independent chains, f32
//! dot product    x_i <- x_i + a . b of pairs of bf16 (value by value where that is how they are multiplied), and of fours of 8-bit integers
//! memory         sum of a range, and a copy, larger than the caches
//!
//! All threads of the pool run at once. A peak is the best of several short runs: what else the machine
//! does can only take away. What runs for longer is compared with the same loop over the same time
//! ([`PeakLoop::rate_over`]). Chains hide the latency of an instruction; how many do so and still fit the
//! registers differs, so several numbers of them are tried, in turns, and the one with the best median is taken. (The
//! best single runs of too few chains may be as good: an Intel processor with 8 then has 96 % of what it has with 12.)
//!
//! The only file here that reads a clock. Not measured: caches, single threads, non-temporal stores.

use crate::pool::SharedMut;
use crate::row::{self, fold_lanes, for_lanes};
use crate::simd::Simd;
use crate::{Cpu, Isa};
use half::bf16;
use std::hint::black_box;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Limits of a processor with its threads, all per second.
#[derive(Clone, Copy, Debug)]
pub struct Peaks {
    /// Operations on f32; a multiply-add is two.
    pub f32_flops: f64,
    /// Operations on bf16 factors, summed in f32.
    pub bf16_flops: f64,
    /// Operations on 8-bit factors, summed in 32 bits.
    pub int8_ops: f64,
    /// Bytes read from memory.
    pub read_bytes: f64,
    /// Bytes read and bytes written by a copy, together.
    pub copy_bytes: f64,
}

/// What is multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Factor {
    /// f32.
    F32,
    /// bf16, summed in f32.
    Bf16,
    /// Integers of 8 bits, summed in 32.
    Int8,
}

impl Peaks {
    /// Measures, for a second or so; `memory` should be larger than the caches.
    pub fn measure(cpu: &Cpu, memory: &mut Memory) -> Peaks {
        Peaks {
            f32_flops: flops(cpu, Factor::F32),
            bf16_flops: flops(cpu, Factor::Bf16),
            int8_ops: flops(cpu, Factor::Int8),
            read_bytes: memory.read_bytes(cpu),
            copy_bytes: memory.copy_bytes(cpu),
        }
    }

    /// Seconds that an op takes at least: its operations, or its traffic. A written byte costs what a copy
    /// costs beyond reading.
    pub fn seconds(&self, ops: f64, factor: Factor, bytes_read: f64, bytes_written: f64) -> f64 {
        let compute = match factor {
            Factor::F32 => ops / self.f32_flops,
            Factor::Bf16 => ops / self.bf16_flops,
            Factor::Int8 => ops / self.int8_ops,
        };
        let per_read = 1.0 / self.read_bytes;
        let per_written = (2.0 / self.copy_bytes - per_read).max(0.0);
        compute.max(bytes_read * per_read + bytes_written * per_written)
    }
}

/// Rounds of a chain in one timed run: some tens of microseconds, so that most runs fall between two
/// interruptions.
const ROUNDS: usize = 10_000;

/// Long enough for many runs of each loop.
const BUDGET: Duration = Duration::from_millis(200);

/// Not counted: the processor raises its frequency, the other threads wake up.
const WARM_UP: Duration = Duration::from_millis(10);

/// Numbers of independent chains that are tried.
const CHAINS: [usize; 4] = [4, 8, 12, 16];

/// Operations per second on factors of one type alone: without the memory, a fraction of a second.
pub fn flops(cpu: &Cpu, factor: Factor) -> f64 {
    PeakLoop::new(cpu, factor).best
}

/// The loop behind a peak, with the number of chains that suits best.
pub struct PeakLoop<'a> {
    cpu: &'a Cpu,
    factor: Factor,
    chains: usize,
    best: f64,
}

impl<'a> PeakLoop<'a> {
    /// Finds the number of chains, in a fraction of a second.
    pub fn new(cpu: &'a Cpu, factor: Factor) -> PeakLoop<'a> {
        let of = |(chains, rate): (usize, Rate)| {
            let new = PeakLoop {
                cpu,
                factor,
                chains,
                best: rate.best,
            };
            (new, rate.median)
        };
        let loops = CHAINS.into_iter().zip(rates(cpu, factor)).map(of);
        loops
            .max_by(|a, b| a.1.total_cmp(&b.1))
            .expect("some numbers of chains are tried")
            .0
    }

    /// Operations per second of all threads when the loop runs for about as long, in one parallel region: what a
    /// product that takes this time could reach at this moment, at the frequency that the processor has now.
    pub fn rate_over(&self, duration: Duration) -> f64 {
        let (isa, threads) = (self.cpu.isa(), self.cpu.pool.threads());
        let per_run = work(isa, self.factor, self.chains) * threads as f64;
        let runs = (duration.as_secs_f64() * self.best / per_run)
            .ceil()
            .max(1.0);
        let start = Instant::now();
        self.cpu.pool.run(&|_| {
            for _ in 0..runs as usize {
                run(isa, self.factor, self.chains);
            }
        });
        per_run * runs / start.elapsed().as_secs_f64()
    }
}

/// Operations per second of all threads together.
#[derive(Clone, Copy, Default)]
struct Rate {
    /// Of each thread its best run.
    best: f64,
    /// Of each thread its median run.
    median: f64,
}

/// What each number of chains reaches, in turns, so that all meet the same frequencies.
fn rates(cpu: &Cpu, factor: Factor) -> [Rate; CHAINS.len()] {
    let isa = cpu.isa();
    let total = Mutex::new([Rate::default(); CHAINS.len()]);
    cpu.pool.run(&|_| {
        let (start, mut runs) = (Instant::now(), [(); CHAINS.len()].map(|()| Vec::new()));
        while start.elapsed() < BUDGET {
            for (runs, chains) in runs.iter_mut().zip(CHAINS) {
                let one = Instant::now();
                run(isa, factor, chains);
                if start.elapsed() > WARM_UP || runs.is_empty() {
                    runs.push(one.elapsed().as_secs_f64());
                }
            }
        }
        let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
        for ((total, runs), chains) in total.iter_mut().zip(&mut runs).zip(CHAINS) {
            runs.sort_by(f64::total_cmp);
            let work = work(isa, factor, chains);
            total.best += work / runs[0];
            total.median += work / runs[runs.len() / 2];
        }
    });
    total.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Whether pairs of bf16 have an instruction of their own. Otherwise a dot product is two multiply-adds of widened
/// factors.
fn has_pairs(isa: Isa) -> bool {
    isa == Isa::Avx512Bf16
}

/// Runs the loop of a type of factors once, on this thread.
fn run(isa: Isa, factor: Factor, chains: usize) {
    match factor {
        Factor::Bf16 if has_pairs(isa) => dispatch!(isa, dot_products(chains: usize)),
        Factor::F32 | Factor::Bf16 => dispatch!(isa, multiply_adds(chains: usize)),
        Factor::Int8 => integers(isa, chains),
    }
}

/// Operations of one run.
fn work(isa: Isa, factor: Factor, chains: usize) -> f64 {
    let lanes = crate::factor::lanes(isa);
    let of_instruction = match factor {
        Factor::Bf16 if has_pairs(isa) => 4 * lanes / dispatch!(isa, pair_parts() -> usize),
        Factor::F32 | Factor::Bf16 => 2 * lanes,
        Factor::Int8 => match integer_loop(isa) {
            IntegerLoop::Vnni512 => 128,
            IntegerLoop::Vnni256 => 64,
            IntegerLoop::Widened256 | IntegerLoop::Neon => 32,
            IntegerLoop::Plain => return (2 * 100 * FACTORS) as f64,
        },
    };
    (ROUNDS * chains * of_instruction) as f64
}

#[inline(always)]
unsafe fn pair_parts<S: Simd>() -> usize {
    S::PAIR_PARTS
}

/// Instantiates a loop for the number of chains it is given.
macro_rules! with_chains {
    ($chains:expr, $f:ident $(, $type:ty)?) => {
        match $chains {
            4 => $f::<$($type,)? 4>(),
            8 => $f::<$($type,)? 8>(),
            12 => $f::<$($type,)? 12>(),
            _ => $f::<$($type,)? 16>(),
        }
    };
}

/// # Safety
/// As for [`Simd`].
#[inline(always)]
unsafe fn multiply_adds<S: Simd>(chains: usize) {
    // SAFETY: forwarded to the caller.
    unsafe { with_chains!(chains, multiply_add_chains, S) }
}

/// # Safety
/// As for [`Simd`].
#[inline(always)]
unsafe fn multiply_add_chains<S: Simd, const N: usize>() {
    // SAFETY: forwarded to the caller.
    unsafe {
        // Converges to 1: neither grows nor vanishes.
        let (a, b) = (S::splat(black_box(0.5)), S::splat(black_box(0.5)));
        let mut x = [S::splat(black_box(2.0)); N];
        for _ in 0..ROUNDS {
            for x in &mut x {
                *x = S::fma(*x, a, b);
            }
        }
        black_box(x);
    }
}

/// # Safety
/// As for [`Simd`].
#[inline(always)]
unsafe fn dot_products<S: Simd>(chains: usize) {
    // SAFETY: forwarded to the caller.
    unsafe { with_chains!(chains, dot_product_chains, S) }
}

/// # Safety
/// As for [`Simd`].
#[inline(always)]
unsafe fn dot_product_chains<S: Simd, const N: usize>() {
    let pairs = black_box([bf16::ONE, bf16::NEG_ONE]);
    let ones = black_box([bf16::ONE; 2]);
    // SAFETY: a pair at each pointer.
    unsafe {
        let (a, b) = (S::splat_pair(pairs.as_ptr()), S::splat_pair(ones.as_ptr()));
        let mut x = [S::splat(black_box(1.0)); N];
        for _ in 0..ROUNDS {
            for x in &mut x {
                *x = S::dot_pairs(*x, a, b);
            }
        }
        black_box(x);
    }
}

/// How 8-bit integers are multiplied: by an instruction for them where there is one, else as 16-bit ones.
#[derive(Clone, Copy)]
#[expect(dead_code, reason = "each processor has some of them")]
enum IntegerLoop {
    Vnni512,
    Vnni256,
    Widened256,
    Neon,
    Plain,
}

fn integer_loop(isa: Isa) -> IntegerLoop {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Bf16 if is_x86_feature_detected!("avx512vnni") => {
            IntegerLoop::Vnni512
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Bf16 | Isa::Avx2 if is_x86_feature_detected!("avxvnni") => {
            IntegerLoop::Vnni256
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Bf16 | Isa::Avx2 => IntegerLoop::Widened256,
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => IntegerLoop::Neon,
        _ => IntegerLoop::Plain,
    }
}

fn integers(isa: Isa, chains: usize) {
    // SAFETY: `integer_loop` asked the processor for the instructions.
    unsafe {
        match integer_loop(isa) {
            #[cfg(target_arch = "x86_64")]
            IntegerLoop::Vnni512 => x86::vnni_512(chains),
            #[cfg(target_arch = "x86_64")]
            IntegerLoop::Vnni256 => x86::vnni_256(chains),
            #[cfg(target_arch = "x86_64")]
            IntegerLoop::Widened256 => x86::widened_256(chains),
            #[cfg(target_arch = "aarch64")]
            IntegerLoop::Neon => aarch64::products(chains),
            _ => (0..100).for_each(|_| widened()),
        }
    }
}

/// Factors of [`widened`]: they stay in the first-level cache.
const FACTORS: usize = 1024;

/// Plain Rust: sums of products of 16-bit factors, as the compiler vectorises them.
fn widened() {
    let (a, b) = black_box((&[3i16; FACTORS], &[5i16; FACTORS]));
    let products = a.iter().zip(b).map(|(&a, &b)| i32::from(a) * i32::from(b));
    black_box(products.sum::<i32>());
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{ROUNDS, black_box};
    use std::arch::x86_64::*;

    /// A loop of `$step(x, a, b)` for each number of chains.
    macro_rules! chains {
        ($name:ident, $features:literal, $zero:expr, $splat:expr, $step:expr) => {
            /// # Safety
            /// The processor has the features.
            #[target_feature(enable = $features)]
            pub(super) unsafe fn $name(chains: usize) {
                /// # Safety
                /// As for the function around it.
                #[target_feature(enable = $features)]
                unsafe fn of<const N: usize>() {
                    let (a, b) = ($splat(black_box(3)), $splat(black_box(5)));
                    let mut x = [$zero; N];
                    for _ in 0..ROUNDS {
                        for x in &mut x {
                            *x = $step(*x, a, b);
                        }
                    }
                    black_box(x);
                }
                // SAFETY: forwarded to the caller.
                unsafe { with_chains!(chains, of) }
            }
        };
    }

    chains!(
        vnni_512,
        "avx512f,avx512vnni",
        _mm512_setzero_si512(),
        _mm512_set1_epi8,
        _mm512_dpbusd_epi32
    );
    chains!(
        vnni_256,
        "avx2,avxvnni",
        _mm256_setzero_si256(),
        _mm256_set1_epi8,
        _mm256_dpbusd_avx_epi32
    );
    chains!(
        widened_256,
        "avx2",
        _mm256_setzero_si256(),
        _mm256_set1_epi16,
        // A factor is what the chain holds: a product of two others would be taken out of the loop.
        |x, a, _| _mm256_add_epi32(x, _mm256_madd_epi16(x, a))
    );
}

#[cfg(target_arch = "aarch64")]
mod aarch64 {
    use super::{ROUNDS, black_box};
    use std::arch::aarch64::*;

    /// Sixteen products of 8-bit integers a step, summed by fours, as blocks are multiplied.
    ///
    /// # Safety
    /// The processor has NEON.
    pub(super) unsafe fn products(chains: usize) {
        // SAFETY: forwarded to the caller.
        unsafe { with_chains!(chains, of) }
    }

    /// # Safety
    /// As above.
    #[target_feature(enable = "neon")]
    unsafe fn of<const N: usize>() {
        let mut x = [vdupq_n_s32(black_box(5)); N];
        for _ in 0..ROUNDS {
            for x in &mut x {
                // The factors are what the chain holds: a product of others would be taken out of the loop.
                let a = vreinterpretq_s8_s32(*x);
                let low = vmull_s8(vget_low_s8(a), vget_low_s8(a));
                *x = vpadalq_s16(*x, vpaddq_s16(low, vmull_high_s8(a, a)));
            }
        }
        black_box(x);
    }
}

/// Two buffers to read from and copy to.
pub struct Memory {
    source: Vec<f32>,
    target: Vec<f32>,
}

impl Memory {
    /// Of `bytes` bytes each. Both are written, so that every page is there.
    pub fn new(bytes: usize) -> Memory {
        Memory {
            source: vec![1.0; bytes / 4],
            target: vec![2.0; bytes / 4],
        }
    }

    /// Reads one buffer: what was in the caches before is not afterwards.
    pub fn sweep(&self, cpu: &Cpu) {
        let (isa, source) = (cpu.isa(), &self.source);
        cpu.pool.for_ranges(source.len(), 1024, &|range| {
            let x = &source[range];
            let sum: f32 = dispatch!(isa, sum(x: &[f32]) -> f32);
            black_box(sum);
        });
    }

    /// The same for reading alone, with half of the memory.
    pub fn for_reading(self) -> Memory {
        Memory {
            target: Vec::new(),
            ..self
        }
    }

    /// Bytes read per second.
    pub fn read_bytes(&self, cpu: &Cpu) -> f64 {
        let seconds = best_seconds(|| self.sweep(cpu));
        (4 * self.source.len()) as f64 / seconds
    }

    /// Bytes read and written per second.
    fn copy_bytes(&mut self, cpu: &Cpu) -> f64 {
        let (isa, source) = (cpu.isa(), &self.source);
        let target = SharedMut::new(&mut self.target);
        let seconds = best_seconds(|| {
            cpu.pool.for_ranges(source.len(), 1024, &|range| {
                // SAFETY: ranges are disjoint.
                let (y, x) = (unsafe { target.slice(range.clone()) }, &source[range]);
                dispatch!(isa, copy(y: &mut [f32], x: &[f32]));
            });
        });
        (8 * self.source.len()) as f64 / seconds
    }
}

/// The best of five runs.
fn best_seconds(mut f: impl FnMut()) -> f64 {
    (0..5)
        .map(|_| {
            let start = Instant::now();
            f();
            start.elapsed().as_secs_f64()
        })
        .fold(f64::INFINITY, f64::min)
}

/// # Safety
/// As for [`Simd`].
#[inline(always)]
unsafe fn sum<S: Simd>(x: &[f32]) -> f32 {
    let (len, x) = (x.len(), x.as_ptr());
    // SAFETY: `i + n <= len`.
    unsafe {
        row::sum::<S>(fold_lanes!(S, len, 0.0, |acc, i, n| {
            S::add(acc, row::load::<S>(x.add(i), n))
        }))
    }
}

/// # Safety
/// As for [`Simd`]; equal lengths.
#[inline(always)]
unsafe fn copy<S: Simd>(y: &mut [f32], x: &[f32]) {
    let (len, y, x) = (y.len(), y.as_mut_ptr(), x.as_ptr());
    // SAFETY: `i + n <= len`.
    unsafe {
        for_lanes!(S, len, |i, n| {
            row::store::<S>(y.add(i), row::load::<S>(x.add(i), n), n);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instruction_set_has_limits_and_an_op_takes_the_longer_of_its_two() {
        for isa in Isa::available() {
            let peaks = Peaks::measure(&Cpu::new(isa, 2), &mut Memory::new(1 << 16));
            let all = [
                peaks.f32_flops,
                peaks.bf16_flops,
                peaks.int8_ops,
                peaks.read_bytes,
                peaks.copy_bytes,
            ];
            assert!(all.iter().all(|x| x.is_finite() && *x > 1e6), "{peaks:?}");
        }
        let peaks = Peaks {
            f32_flops: 100.0,
            bf16_flops: 200.0,
            int8_ops: 400.0,
            read_bytes: 20.0,
            copy_bytes: 16.0,
        };
        assert_eq!(peaks.seconds(1000.0, Factor::F32, 40.0, 0.0), 10.0);
        assert_eq!(peaks.seconds(1000.0, Factor::Bf16, 40.0, 0.0), 5.0);
        assert_eq!(peaks.seconds(1000.0, Factor::Int8, 40.0, 0.0), 2.5);
        assert_eq!(peaks.seconds(0.0, Factor::F32, 40.0, 0.0), 2.0);
        let copy = peaks.seconds(0.0, Factor::F32, 8.0, 8.0);
        assert!((copy - 1.0).abs() < 1e-12, "a copy takes what a copy takes");
    }
}
