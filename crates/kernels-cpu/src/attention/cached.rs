//! Attention of new rows against a blocked key-value cache: prefill in chunks, and decode.

use super::block::{Queries, Sizes, TOGETHER, attend, memory_len};
use super::{HeadShape, KV_BLOCK, Memory};
use crate::pool::SharedMut;
use crate::simd::Simd;
use crate::{Cpu, Isa};
use std::ops::Range;

/// The cache of one layer: blocks of 64 positions, keys transposed.
pub struct KvLayer {
    shape: HeadShape,
    padded: usize,
    keys: Vec<f32>,   // (blocks, G, K, 64)
    values: Vec<f32>, // (blocks, G, 64, padded K)
}

impl KvLayer {
    /// Room for `num_blocks` blocks, zeroed: a stale value times a probability of zero must be zero.
    pub fn new(isa: Isa, num_blocks: usize, shape: HeadShape) -> KvLayer {
        let lanes = crate::gemm::lanes(isa);
        let padded = shape.head_dim.next_multiple_of(lanes);
        let slots = num_blocks * shape.num_kv_heads * KV_BLOCK;
        KvLayer {
            shape,
            padded,
            keys: vec![0.0; slots * shape.head_dim],
            values: vec![0.0; slots * padded],
        }
    }

    /// Blocks.
    pub fn num_blocks(&self) -> usize {
        self.keys.len() / (self.shape.num_kv_heads * self.shape.head_dim * KV_BLOCK)
    }

    /// Memory held.
    pub fn bytes(&self) -> usize {
        4 * (self.keys.len() + self.values.len())
    }

    fn sizes(&self) -> Sizes {
        Sizes {
            d: self.shape.head_dim,
            padded: self.padded,
        }
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
pub fn append_kv(_cpu: &Cpu, cache: &mut KvLayer, k: &[f32], qkv: &[f32], slots: &[u32]) {
    let HeadShape {
        num_heads: h,
        num_kv_heads: g,
        head_dim: d,
    } = cache.shape;
    let sizes = cache.sizes();
    for (t, &slot) in slots.iter().enumerate() {
        let (block, slot) = (slot as usize / KV_BLOCK, slot as usize % KV_BLOCK);
        for head in 0..g {
            let at = block * g + head;
            let key = &k[(t * g + head) * d..][..d];
            let value = &qkv[t * cache.shape.qkv_size() + (h + g + head) * d..][..d];
            sizes.put_key(&mut cache.keys[at * sizes.key_block()..], slot, key);
            sizes.put_value(&mut cache.values[at * sizes.value_block()..], slot, value);
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
        dispatch!(isa, cached_item(out: SharedMut<f32>, q: &[f32], cache: &KvLayer, seq: &CachedSequence, window: Option<usize>, kv_head: usize, some: Range<usize>));
    });
}

#[inline(always)]
unsafe fn cached_item<S: Simd>(
    out: SharedMut<f32>,
    q: &[f32],
    cache: &KvLayer,
    seq: &CachedSequence,
    window: Option<usize>,
    kv_head: usize,
    some: Range<usize>,
) {
    let HeadShape {
        num_kv_heads: g,
        head_dim: d,
        ..
    } = cache.shape;
    let sizes = cache.sizes();
    let len = memory_len(sizes, some.len());
    let mut memory = Memory::take(len);
    let memory = memory.zeroed(len);
    let queries = Queries {
        shape: cache.shape,
        kv_head,
        first_row: seq.rows.start,
        first_pos: seq.first_pos,
        window,
    };
    let block = |b: usize| {
        let at = seq.block_table[b] as usize * g + kv_head;
        let (key, value) = (at * sizes.key_block(), at * sizes.value_block());
        (&cache.keys[key..], &cache.values[value..])
    };
    // SAFETY: these rows of these heads belong to this item alone.
    unsafe {
        attend::<S>(memory, sizes, queries, some, q, block, |row, tile, r| {
            tile.finish(r, out.slice(row * d..(row + 1) * d));
        });
    }
}
