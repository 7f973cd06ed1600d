//! Memory from the border of a cache line on.

use std::ops::{Deref, DerefMut};

/// Bytes of a cache line.
pub(crate) const LINE_BYTES: usize = 64;

/// Elements from the border of a cache line on. Pages that nothing was written to are not in memory yet.
#[derive(Debug)]
pub struct Aligned<T> {
    memory: Vec<T>,
    start: usize,
    len: usize,
}

impl<T> Aligned<T> {
    /// No elements.
    pub const fn new() -> Aligned<T> {
        Aligned {
            memory: Vec::new(),
            start: 0,
            len: 0,
        }
    }
}

impl<T: Copy + Default> Aligned<T> {
    /// `len` zeros.
    pub fn zeroed(len: usize) -> Aligned<T> {
        let line = LINE_BYTES / size_of::<T>();
        let memory = vec![T::default(); len + line];
        let start = memory.as_ptr().align_offset(LINE_BYTES).min(line);
        Aligned { memory, start, len }
    }

    /// Makes room for `len` elements; new ones are zero.
    pub(crate) fn reserve(&mut self, len: usize) {
        if len > self.len {
            let mut larger = Aligned::zeroed(len);
            larger[..self.len].copy_from_slice(self);
            *self = larger;
        }
    }
}

impl<T> Default for Aligned<T> {
    fn default() -> Aligned<T> {
        Aligned::new()
    }
}

impl<T> Deref for Aligned<T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        &self.memory[self.start..self.start + self.len]
    }
}

impl<T> DerefMut for Aligned<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.memory[self.start..self.start + self.len]
    }
}
