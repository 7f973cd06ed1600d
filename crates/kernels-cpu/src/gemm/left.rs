//! The left operand of a product: rows that are gathered and rounded on the fly, a block at a time.

use super::aside::Packing;
use super::micro::Kernel;
use super::pack::Factors;
use super::plan::Block;
use crate::factor::{LINE, Words};
use crate::simd::prefetch;
use std::cell::Cell;
use std::ops::{Deref, DerefMut};

/// How far ahead rows are fetched that are packed.
const ROWS_AHEAD: usize = 2;

/// Rows of an operand, perhaps gathered.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) gather: Option<&'a [u32]>,
    pub(crate) width: usize,
}

impl<'a> Rows<'a> {
    /// All rows, `width` values each, one after another.
    pub(crate) fn in_order(data: &'a [f32], width: usize) -> Rows<'a> {
        Rows {
            data,
            gather: None,
            width,
        }
    }

    #[inline(always)]
    pub(super) fn row(self, i: usize) -> &'a [f32] {
        let row = match self.gather {
            Some(gather) => gather[i] as usize,
            None => i,
        };
        &self.data[row * self.width..][..self.width]
    }
}

/// Memory of a thread for what it packs.
#[derive(Default)]
pub(super) struct Memory {
    /// Packed operands.
    pub(super) left: Words,
    pub(super) right: Words,
    /// The block that is packed while that in `left` is multiplied.
    spare: Words,
    /// A tile that is done, until it is moved.
    pub(super) tile: Words,
}

thread_local! {
    static MEMORY: Cell<Option<Box<Memory>>> = const { Cell::new(None) };
}

/// The memory of this thread, which it keeps between products. (Not a closure: what is compiled for one instruction
/// set must not cross a function that is not.)
pub(super) struct Scratch(Option<Box<Memory>>);

impl Scratch {
    pub(super) fn take() -> Scratch {
        Scratch(Some(MEMORY.take().unwrap_or_default()))
    }
}

impl Deref for Scratch {
    type Target = Memory;

    #[inline(always)]
    fn deref(&self) -> &Memory {
        self.0.as_ref().expect("it is there until it is dropped")
    }
}

impl DerefMut for Scratch {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut Memory {
        self.0.as_mut().expect("it is there until it is dropped")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        MEMORY.set(self.0.take());
    }
}

/// The left operand of one product, and what one thread has packed of it.
pub(crate) struct Packer<'a> {
    pub(super) x: Rows<'a>,
    pub(super) scratch: Scratch,
    /// What is packed in `scratch.left`, and for which factors.
    left: Option<(Factors, Block)>,
    /// What tiles have packed in `scratch.spare`, but for the values at the end of a row that fill no cache line.
    pub(super) spare: Option<(Factors, Block)>,
}

impl<'a> Packer<'a> {
    pub(crate) fn new(x: Rows<'a>) -> Packer<'a> {
        Packer {
            x,
            scratch: Scratch::take(),
            left: None,
            spare: None,
        }
    }

    /// Packs a block, or what is not packed of it yet, and returns where it is.
    #[inline(always)]
    pub(super) fn pack<K: Kernel>(
        &mut self,
        kernel: K,
        factors: Factors,
        block: &Block,
    ) -> *const u32 {
        let memory = &mut *self.scratch;
        let is_block = |packed: &(Factors, Block)| packed.0 == factors && packed.1 == *block;
        if self.left.as_ref().is_some_and(is_block) {
            return memory.left.as_ptr();
        }
        let (lines, column) = if self.spare.take().as_ref().is_some_and(is_block) {
            std::mem::swap(&mut memory.left, &mut memory.spare);
            let lines = lines(kernel, block);
            (lines, block.depth.start + lines * line_values(kernel))
        } else {
            memory.left.reserve(block.rows.len() * block.stride);
            (0, block.depth.start)
        };
        self.left = Some((factors, block.clone()));
        let left = memory.left.as_mut_ptr();
        if column == block.depth.end {
            return left;
        }
        let values = |row: usize| &self.x.row(row)[column..block.depth.end];
        for row in block.rows.clone() {
            if row + ROWS_AHEAD < block.rows.end {
                for line in values(row + ROWS_AHEAD).chunks(LINE) {
                    prefetch(line.as_ptr());
                }
            }
            let values = values(row);
            // SAFETY: there is room for a stride for each row of the block.
            unsafe {
                let out = left.add((row - block.rows.start) * block.stride + lines * LINE);
                kernel.left_of_row(out, values.as_ptr(), values.len());
            }
        }
        left
    }

    /// What `tiles` tiles pack of a block, if there is one, while another is multiplied. When they are done, it is what
    /// `spare` names.
    #[inline(always)]
    pub(super) fn packing<K: Kernel>(
        &mut self,
        kernel: K,
        block: Option<&Block>,
        tiles: usize,
    ) -> Packing<'a> {
        self.spare = None;
        let Some(block) = block else {
            return Packing::new(self.x, 0..0, 0, 0, (std::ptr::null_mut(), 0), tiles);
        };
        let spare = &mut self.scratch.spare;
        // There is room for a stride for each row.
        spare.reserve(block.rows.len() * block.stride);
        let out = (spare.as_mut_ptr(), block.stride);
        let (column, lines) = (block.depth.start, lines(kernel, block));
        Packing::new(self.x, block.rows.clone(), column, lines, out, tiles)
    }
}

/// Values that are packed into a cache line.
#[inline(always)]
fn line_values<K: Kernel>(kernel: K) -> usize {
    LINE * kernel.depth() / kernel.left_words()
}

/// Whole cache lines of a packed row.
#[inline(always)]
fn lines<K: Kernel>(kernel: K, block: &Block) -> usize {
    block.depth.len() / line_values(kernel)
}
