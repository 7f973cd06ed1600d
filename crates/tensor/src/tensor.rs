//! Owned arrays with a shape, and borrowed ranges of them.
//!
//! A tensor is allocated once, when a model or a batch size becomes known, and reused in every step.
//! Ops receive [`View`]s: contiguous ranges of device memory, of which the kernel knows the layout.

use crate::Device;
use kernels_cpu::Aligned;
use std::ops::Range;

/// A row-major array on a device.
#[derive(Debug)]
pub struct Tensor<T = f32> {
    shape: Vec<usize>,
    memory: Memory<T>,
}

#[derive(Debug)]
enum Memory<T> {
    Cpu(Aligned<T>),
}

/// A contiguous range of device memory, read.
#[derive(Clone, Copy, Debug)]
pub enum View<'a, T = f32> {
    /// On the processor.
    Cpu(&'a [T]),
}

/// A contiguous range of device memory, written.
#[derive(Debug)]
pub enum ViewMut<'a, T = f32> {
    /// On the processor.
    Cpu(&'a mut [T]),
}

impl<T: Copy + Default> Tensor<T> {
    /// Zeros of the given shape, slowest dimension first.
    pub fn zeros(device: &Device, shape: &[usize]) -> Tensor<T> {
        let len = shape.iter().product();
        match device {
            Device::Cpu(_) => Tensor {
                shape: shape.to_vec(),
                memory: Memory::Cpu(Aligned::zeroed(len)),
            },
        }
    }

    /// The shape, slowest dimension first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of it, to read.
    pub fn view(&self) -> View<'_, T> {
        match &self.memory {
            Memory::Cpu(data) => View::Cpu(data),
        }
    }

    /// All of it, to write.
    pub fn view_mut(&mut self) -> ViewMut<'_, T> {
        match &mut self.memory {
            Memory::Cpu(data) => ViewMut::Cpu(data),
        }
    }

    /// Elements `range` of the flat array, to read.
    pub fn range(&self, range: Range<usize>) -> View<'_, T> {
        match &self.memory {
            Memory::Cpu(data) => View::Cpu(&data[range]),
        }
    }

    /// Elements `range` of the flat array, to write.
    pub fn range_mut(&mut self, range: Range<usize>) -> ViewMut<'_, T> {
        match &mut self.memory {
            Memory::Cpu(data) => ViewMut::Cpu(&mut data[range]),
        }
    }

    /// The first `n` rows, to read. Memory that was made for more rows serves fewer.
    pub fn rows(&self, n: usize) -> View<'_, T> {
        self.range(0..n * self.width())
    }

    /// The first `n` rows, to write.
    pub fn rows_mut(&mut self, n: usize) -> ViewMut<'_, T> {
        self.range_mut(0..n * self.width())
    }

    /// Copies the first `n` rows of a tensor of the same width.
    pub fn copy_rows(&mut self, from: &Tensor<T>, n: usize) {
        assert_eq!(self.width(), from.width(), "rows of one width");
        let range = 0..n * self.width();
        match (&mut self.memory, &from.memory) {
            (Memory::Cpu(to), Memory::Cpu(from)) => {
                to[range.clone()].copy_from_slice(&from[range]);
            }
        }
    }

    /// Elements of a row: all dimensions but the first.
    fn width(&self) -> usize {
        self.shape[1..].iter().product()
    }

    /// Copies from host memory, into the first `values.len()` elements.
    pub fn write(&mut self, values: &[T]) {
        match &mut self.memory {
            Memory::Cpu(data) => data[..values.len()].copy_from_slice(values),
        }
    }

    /// The elements as host memory. On a device of its own this is a copy; callers use it outside the
    /// inner loops.
    pub fn host(&self) -> &[T] {
        match &self.memory {
            Memory::Cpu(data) => data,
        }
    }

    /// As [`Tensor::host`], to write.
    pub fn host_mut(&mut self) -> &mut [T] {
        match &mut self.memory {
            Memory::Cpu(data) => data,
        }
    }

    /// Sets every element to zero.
    pub fn clear(&mut self) {
        match &mut self.memory {
            Memory::Cpu(data) => data.fill(T::default()),
        }
    }
}

impl<T: Copy> ViewMut<'_, T> {
    /// Copies values from host memory.
    ///
    /// # Panics
    /// When there are not as many.
    pub fn write(self, values: &[T]) {
        match self {
            ViewMut::Cpu(data) => data.copy_from_slice(values),
        }
    }
}

impl<'a, T> View<'a, T> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            View::Cpu(data) => data.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Elements `range`.
    pub fn range(&self, range: Range<usize>) -> View<'a, T> {
        match self {
            View::Cpu(data) => View::Cpu(&data[range]),
        }
    }
}
