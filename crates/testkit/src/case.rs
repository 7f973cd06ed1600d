//! A case: one op at one size, with its inputs, what the reference makes of them, and what it costs.

use crate::compare::Tolerance;
use kernels_cpu::peak::Factor;
use numerics::{BlockType, Philox, Rng};
use tensor::{Compute, Device, Tensor, ViewMut};

/// What a table is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Sizes that find errors: one, odd ones, around the borders of tiles, one as in a real model.
    Conform,
    /// The same, for the gradients alone.
    Grad,
    /// Sizes as in a real model, where memory is the limit larger than a core's caches.
    Perf,
}

/// One op at one size. Its inputs are functions of the sizes; both sides see the same f32 values.
pub trait Case {
    /// `<file>.<function>` as under `tensor::ops`.
    fn op(&self) -> &'static str;

    /// Sizes by the letters of the op's header, and what else tells two cases apart.
    fn dims(&self) -> Vec<(&'static str, usize)>;

    /// Type of the factors of products.
    fn compute(&self) -> Compute {
        Compute::F32
    }

    /// Where weights are multiplied as integers: the type of their blocks.
    fn blocks(&self) -> Option<BlockType> {
        None
    }

    /// What its products multiply.
    fn factor(&self) -> Factor {
        match (self.blocks(), self.compute()) {
            (Some(_), _) => Factor::Int8,
            (None, Compute::F32) => Factor::F32,
            (None, Compute::Bf16) => Factor::Bf16,
        }
    }

    /// The name of the type that weights or values are in.
    fn dtype(&self) -> &'static str {
        match (self.blocks(), self.compute()) {
            (Some(block_type), _) => block_type.name(),
            (None, Compute::F32) => "f32",
            (None, Compute::Bf16) => "bf16",
        }
    }

    /// What it takes.
    fn cost(&self) -> Cost;

    /// What the kernel writes.
    fn outputs(&self) -> Vec<Output>;

    /// What it should write, output by output: f64 throughout.
    fn reference(&self) -> Vec<Vec<f64>>;

    /// The kernel with its inputs on the device; a call runs it once.
    fn kernel<'a>(&'a self, device: &'a Device) -> Kernel<'a>;

    /// For an op that computes gradients: of what.
    fn gradient(&self) -> Option<Gradient<'_>> {
        None
    }

    /// The case in one line.
    fn name(&self) -> String {
        let dims = self.dims();
        let dims: Vec<String> = dims.iter().map(|(of, n)| format!("{of} {n}")).collect();
        format!("{} {} {}", self.op(), self.dtype(), dims.join(", "))
    }
}

/// Runs an op once on outputs in the order of [`Case::outputs`].
pub type Kernel<'a> = Box<dyn FnMut(&mut [Buffer]) + 'a>;

/// Work and traffic of one run, by the formulas of the op's header.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    /// Operations of its products, on factors as [`Case::factor`] says; a multiply-add is two.
    pub flops: f64,
    /// Bytes read, each operand once.
    pub bytes_read: f64,
    /// Bytes written.
    pub bytes_written: f64,
}

impl Cost {
    /// An op bound by memory: `read` and `written` values of four bytes.
    pub fn values(read: usize, written: usize) -> Cost {
        Cost {
            flops: 0.0,
            bytes_read: 4.0 * read as f64,
            bytes_written: 4.0 * written as f64,
        }
    }

    /// With `count` multiply-adds.
    pub fn multiply_adds(self, count: f64) -> Cost {
        Cost {
            flops: 2.0 * count,
            ..self
        }
    }
}

/// Something a kernel writes.
#[derive(Clone, Debug)]
pub struct Output {
    /// As in the op's header.
    pub name: &'static str,
    /// What is there before.
    pub start: Start,
    /// How far from the reference it may be.
    pub tolerance: Tolerance,
}

/// What an output holds before the kernel runs.
#[derive(Clone, Debug)]
pub enum Start {
    /// So many values that must not matter.
    Garbage(usize),
    /// So many indices that must not matter.
    GarbageIds(usize),
    /// Values that the result is added to.
    Sum(Vec<f32>),
    /// Values that the op reads, and replaces in part or whole.
    Operand(Vec<f32>),
}

impl Output {
    /// Overwritten with `len` values.
    pub fn new(name: &'static str, len: usize, tolerance: Tolerance) -> Output {
        let start = Start::Garbage(len);
        Output {
            name,
            start,
            tolerance,
        }
    }

    /// Overwritten with `len` indices.
    pub fn ids(name: &'static str, len: usize) -> Output {
        Output {
            name,
            start: Start::GarbageIds(len),
            tolerance: Tolerance::Exact,
        }
    }

    /// Added to `start`.
    pub fn sum(name: &'static str, start: Vec<f32>, tolerance: Tolerance) -> Output {
        let start = Start::Sum(start);
        Output {
            name,
            start,
            tolerance,
        }
    }

    /// Read and replaced.
    pub fn operand(name: &'static str, start: Vec<f32>, tolerance: Tolerance) -> Output {
        let start = Start::Operand(start);
        Output {
            name,
            start,
            tolerance,
        }
    }

    /// Memory for it, as it is before the kernel runs, with `guard` values before and after.
    pub fn buffer(&self, device: &Device, guard: usize) -> Buffer {
        match &self.start {
            Start::Garbage(len) => Buffer::floats(device, &vec![GARBAGE; *len], guard),
            Start::Sum(values) | Start::Operand(values) => Buffer::floats(device, values, guard),
            Start::GarbageIds(len) => Buffer::ids(device, &vec![GARBAGE_ID; *len], guard),
        }
    }
}

/// Large enough that a sum with it is wrong beyond any tolerance.
const GARBAGE: f32 = 9e9;
const GARBAGE_ID: u32 = 0x7fff_fff0;
/// What no kernel writes.
const SENTINEL: f32 = -12_345.5;
const SENTINEL_ID: u32 = 0x00de_adde;

/// Device memory of an output between sentinels.
pub struct Buffer {
    memory: Memory,
    len: usize,
    guard: usize,
}

enum Memory {
    Floats(Tensor),
    Ids(Tensor<u32>),
}

impl Buffer {
    fn floats(device: &Device, values: &[f32], guard: usize) -> Buffer {
        let memory = Memory::Floats(guarded(device, values, SENTINEL, guard));
        let len = values.len();
        Buffer { memory, len, guard }
    }

    fn ids(device: &Device, values: &[u32], guard: usize) -> Buffer {
        let memory = Memory::Ids(guarded(device, values, SENTINEL_ID, guard));
        let len = values.len();
        Buffer { memory, len, guard }
    }

    /// The values, for a kernel.
    ///
    /// # Panics
    /// When they are indices.
    pub fn floats_mut(&mut self) -> ViewMut<'_> {
        let range = self.guard..self.guard + self.len;
        match &mut self.memory {
            Memory::Floats(tensor) => tensor.range_mut(range),
            Memory::Ids(_) => panic!("the output holds indices"),
        }
    }

    /// The indices, for a kernel.
    ///
    /// # Panics
    /// When they are values.
    pub fn ids_mut(&mut self) -> ViewMut<'_, u32> {
        let range = self.guard..self.guard + self.len;
        match &mut self.memory {
            Memory::Ids(tensor) => tensor.range_mut(range),
            Memory::Floats(_) => panic!("the output holds values"),
        }
    }

    /// Sets the first value: where a kernel returns a number instead of writing it.
    pub fn put(&mut self, value: f32) {
        let guard = self.guard;
        if let Memory::Floats(tensor) = &mut self.memory {
            tensor.host_mut()[guard] = value;
        }
    }

    /// What it holds (indices as numbers), or nothing if a sentinel is gone.
    pub fn read(&self) -> Option<Vec<f64>> {
        let (guard, end) = (self.guard, self.guard + self.len);
        match &self.memory {
            Memory::Floats(tensor) => {
                let all = tensor.host();
                let mut outside = all[..guard].iter().chain(&all[end..]);
                let inside = all[guard..end].iter().map(|&x| f64::from(x));
                outside.all(|&x| x == SENTINEL).then(|| inside.collect())
            }
            Memory::Ids(tensor) => {
                let all = tensor.host();
                let mut outside = all[..guard].iter().chain(&all[end..]);
                let inside = all[guard..end].iter().map(|&x| f64::from(x));
                outside.all(|&x| x == SENTINEL_ID).then(|| inside.collect())
            }
        }
    }
}

fn guarded<T: Copy + Default>(
    device: &Device,
    values: &[T],
    sentinel: T,
    guard: usize,
) -> Tensor<T> {
    let mut tensor = Tensor::zeros(device, &[values.len() + 2 * guard]);
    let memory = tensor.host_mut();
    memory.fill(sentinel);
    memory[guard..guard + values.len()].copy_from_slice(values);
    tensor
}

/// A number as a function of the inputs.
pub type Scalar<'a> = Box<dyn Fn(&[Vec<f64>]) -> f64 + 'a>;

/// What a gradient is the gradient of.
pub struct Gradient<'a> {
    /// The inputs, each a point at which the function is differentiable.
    pub at: Vec<Vec<f64>>,
    /// The gradients that are claimed, one for each input.
    pub claimed: Vec<Vec<f64>>,
    /// The function of the inputs.
    pub of: Scalar<'a>,
}

/// Copies host values to a device.
pub fn upload<T: Copy + Default>(device: &Device, values: &[T]) -> Tensor<T> {
    let mut tensor = Tensor::zeros(device, &[values.len()]);
    tensor.write(values);
    tensor
}

/// `len` values of the standard normal distribution, others for each name, the same in every run. They
/// repeat after [`PERIOD`].
pub fn normal(len: usize, name: &str) -> Vec<f32> {
    let philox = Philox::new(SEED, name);
    let drawn = 0..len.min(PERIOD) as u64;
    let drawn: Vec<f32> = drawn.map(|idx| philox.normal(idx)).collect();
    drawn.into_iter().cycle().take(len).collect()
}

/// A prime, so that rows of no width are equal; drawing more would take longer than what is timed.
const PERIOD: usize = 1_000_003;

/// `len` integers below `bound`, as [`normal`].
pub fn below(len: usize, bound: usize, name: &str) -> Vec<u32> {
    let mut rng = Rng::new(SEED, name);
    (0..len).map(|_| rng.below(bound) as u32).collect()
}

const SEED: u64 = 20_260_115;

/// The columns `from..to` of a matrix of `width` columns.
pub fn columns(x: &[f64], width: usize, from: usize, to: usize) -> Vec<f64> {
    x.chunks_exact(width)
        .flat_map(|row| &row[from..to])
        .copied()
        .collect()
}

/// The rows of matrices side by side; each with its number of columns.
pub fn beside(parts: &[(&[f64], usize)]) -> Vec<f64> {
    let rows = parts[0].0.len() / parts[0].1;
    (0..rows)
        .flat_map(|r| {
            parts
                .iter()
                .flat_map(move |(x, width)| &x[r * width..(r + 1) * width])
        })
        .copied()
        .collect()
}

/// sum_i a_i b_i.
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    reference::ops::dot(a, b)
}
