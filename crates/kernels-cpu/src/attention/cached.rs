//! Attention of new rows against a blocked key-value cache: prefill in chunks, and decode.

use super::block::{Queries, Sizes, TOGETHER, attend, memory_len};
use super::{HeadShape, KV_BLOCK, Memory};
use crate::factor::{Factor, Words, dispatch_factors, lanes};
use crate::pool::SharedMut;
use crate::row::grain;
use crate::simd::Simd;
use crate::{Compute, Cpu, Isa};
use std::ops::Range;

/// The cache of one layer: blocks of 64 positions, keys transposed, as factors of the products.
pub struct KvLayer {
    isa: Isa,
    compute: Compute,
    shape: HeadShape,
    sizes: Sizes,
    keys: Words,   // (blocks, G, steps of K, 64)
    values: Words, // (blocks, G, steps of 64, padded K)
}

impl KvLayer {
    /// Room for `num_blocks` blocks, zeroed: a stale value times a probability of zero must be zero.
    pub fn new(isa: Isa, compute: Compute, num_blocks: usize, shape: HeadShape) -> KvLayer {
        let sizes = Sizes::for_lanes(lanes(isa), compute, shape.head_dim);
        let blocks = num_blocks * shape.num_kv_heads;
        KvLayer {
            isa,
            compute,
            shape,
            sizes,
            keys: Words::zeroed(blocks * sizes.key_block()),
            values: Words::zeroed(blocks * sizes.value_block()),
        }
    }

    /// Memory held.
    pub fn bytes(&self) -> usize {
        4 * (self.keys.len() + self.values.len())
    }

    /// The keys and the values of a block of a head.
    #[inline(always)]
    fn block(&self, block: usize, kv_head: usize) -> (&[u32], &[u32]) {
        let at = block * self.shape.num_kv_heads + kv_head;
        let (key, value) = (at * self.sizes.key_block(), at * self.sizes.value_block());
        (&self.keys[key..], &self.values[value..])
    }
}

/// New rows of one sequence and where its earlier positions lie.
pub struct CachedSequence<'a> {
    /// Rows of q, in the order of their positions.
    pub rows: Range<usize>,
    /// Position of the first of them.
    pub first_pos: usize,
    /// Physical block of each logical block; `u32::MAX` where the window has passed.
    pub block_table: &'a [u32],
}

/// Writes keys (T, G, K) and the values of qkv at `slots` (T), slot = block * 64 + offset.
pub fn append_kv(cpu: &Cpu, cache: &mut KvLayer, k: &[f32], qkv: &[f32], slots: &[u32]) {
    let (isa, compute, shape, sizes) = (cpu.isa(), cache.compute, cache.shape, cache.sizes);
    assert_eq!(cache.isa, isa, "a cache belongs to one instruction set");
    let keys = SharedMut::new(&mut cache.keys);
    let values = SharedMut::new(&mut cache.values);
    let grain = grain(2 * slots.len() * shape.head_dim);
    cpu.pool.for_ranges(shape.num_kv_heads, grain, &|heads| {
        dispatch_factors!(isa, compute, append_heads(keys: SharedMut<u32>, values: SharedMut<u32>, k: &[f32], qkv: &[f32], slots: &[u32], shape: HeadShape, sizes: Sizes, heads: Range<usize>));
    });
}

/// The keys and values of some heads.
#[inline(always)]
unsafe fn append_heads<S: Simd, F: Factor<S>>(
    keys: SharedMut<u32>,
    values: SharedMut<u32>,
    k: &[f32],
    qkv: &[f32],
    slots: &[u32],
    shape: HeadShape,
    sizes: Sizes,
    heads: Range<usize>,
) {
    let HeadShape {
        num_heads: h,
        num_kv_heads: g,
        head_dim: d,
    } = shape;
    let mut memory = Memory::take(sizes.row());
    let row = memory.zeroed(sizes.row());
    for head in heads {
        for (t, &slot) in slots.iter().enumerate() {
            let (block, slot) = (slot as usize / KV_BLOCK, slot as usize % KV_BLOCK);
            let at = block * g + head;
            let key = &k[(t * g + head) * d..][..d];
            let value = &qkv[t * shape.qkv_size() + (h + g + head) * d..][..d];
            let (key_at, value_at) = (at * sizes.key_block(), at * sizes.value_block());
            // SAFETY: the blocks of this head belong to this thread.
            unsafe {
                let keys = keys.slice(key_at..key_at + sizes.key_block());
                let values = values.slice(value_at..value_at + sizes.value_block());
                sizes.put_key::<S, F>(keys, slot, key, row);
                sizes.put_value::<S, F>(values, slot, value, row);
            }
        }
    }
}

/// o (T, H, K) of q (T, H, K); the rows' own keys have been appended.
pub fn forward_cached(
    cpu: &Cpu,
    o: &mut [f32],
    q: &[f32],
    cache: &KvLayer,
    seqs: &[CachedSequence],
    window: Option<usize>,
) {
    assert_eq!(o.len(), q.len(), "attention: o is not (T, H, K)");
    let isa = cpu.isa();
    assert_eq!(cache.isa, isa, "a cache belongs to one instruction set");
    let out = SharedMut::new(o);
    let HeadShape {
        num_heads: h,
        num_kv_heads: g,
        ..
    } = cache.shape;
    // Work items: a sequence, a key-value head, some of the queries that share it.
    let items: Vec<(&CachedSequence, usize, Range<usize>)> = seqs
        .iter()
        .flat_map(|seq| {
            let queries = seq.rows.len() * (h / g);
            (0..queries).step_by(TOGETHER).flat_map(move |start| {
                let some = start..queries.min(start + TOGETHER);
                (0..g).map(move |head| (seq, head, some.clone()))
            })
        })
        .collect();
    cpu.pool.for_each(items.len(), &|item| {
        let (seq, kv_head, some) = items[item].clone();
        dispatch_factors!(isa, cache.compute, cached_item(out: SharedMut<f32>, q: &[f32], cache: &KvLayer, seq: &CachedSequence, window: Option<usize>, kv_head: usize, some: Range<usize>));
    });
}

#[inline(always)]
unsafe fn cached_item<S: Simd, F: Factor<S>>(
    out: SharedMut<f32>,
    q: &[f32],
    cache: &KvLayer,
    seq: &CachedSequence,
    window: Option<usize>,
    kv_head: usize,
    some: Range<usize>,
) {
    let (sizes, d) = (cache.sizes, cache.shape.head_dim);
    let len = memory_len::<S, F>(sizes, some.len());
    let mut memory = Memory::take(len);
    let memory = memory.zeroed(len);
    let queries = Queries {
        shape: cache.shape,
        kv_head,
        first_row: seq.rows.start,
        first_pos: seq.first_pos,
        window,
    };
    let block = |b: usize| cache.block(seq.block_table[b] as usize, kv_head);
    // SAFETY: these rows of these heads belong to this item alone.
    unsafe {
        attend::<S, F>(memory, sizes, queries, some, q, block, |row, tile, r| {
            tile.finish(r, out.slice(row * d..(row + 1) * d));
        });
    }
}
