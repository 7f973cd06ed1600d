//! Causal grouped-query attention with sliding windows, flash style.
//!
//! p_ij = softmax_j(q_i k_j / sqrt(K)) over the visible j, o_i = sum_j p_ij v_j
//! visible: j <= i, and i - j < window where there is one
//!
//! One inner pass serves training, prefill and decode: a tile of query rows, of all heads that share a
//! key-value head, against one block of [`KV_BLOCK`] keys; several tiles take a block while it is near.
//! Blocks are aligned to multiples of KV_BLOCK from the start of the sequence and taken in order, with a
//! running maximum and sum per row. A row's bits therefore do not depend on the rows that share its tile,
//! on the chunking of a prompt, or on whether keys come from a batch or from a cache.
//! A block that a row does not see leaves that row untouched.
//!
//! Factors of the products are queries, keys, values and weights, in backward also the gradients of the output and
//! of the scores. In bf16 each is rounded once, as it is packed; scores, softmax and sums are f32, and a row is
//! divided by the sum of its unrounded weights. The largest weight is 1, so that a row of one key is that value.
//! A cache holds keys and values in pairs; a training step packs them for itself, and not in pairs where those would
//! be multiplied value by value.
//!
//! Shapes: T tokens, H query heads, G key-value heads, K head_dim; scores never leave the block.
//! Source: Dao et al. 2022, arXiv:2205.14135; Milakov & Gimelshein 2018, arXiv:1805.02867.

mod backward;
mod block;
mod cached;

pub use crate::qk_norm_rope::HeadShape;
pub use backward::backward;
pub use cached::{CachedSequence, KvLayer, append_kv, forward_cached};

use crate::factor::{Factor, Words, dispatch_own_factors};
use crate::pool::SharedMut;
use crate::simd::Simd;
use crate::{Compute, Cpu};
use block::{Queries, Sizes, TOGETHER, attend, memory_len};
use std::cell::Cell;

/// Positions of a key-value block.
pub const KV_BLOCK: usize = 64;

/// Query rows that are taken together.
const TILE: usize = 16;

thread_local! {
    /// This thread's working memory, kept between calls.
    static MEMORY: Cell<Words> = const { Cell::new(Words::new()) };
}

/// The thread's working memory while it is in use; goes back when dropped. (A value and not a closure:
/// what is compiled for one instruction set must not cross a function that is not.)
struct Memory(Words);

impl Memory {
    /// At least `len` words.
    fn take(len: usize) -> Memory {
        let mut words = MEMORY.take();
        words.reserve(len);
        Memory(words)
    }

    /// Its first `len` words, zeroed.
    fn zeroed(&mut self, len: usize) -> &mut [u32] {
        let words = &mut self.0[..len];
        words.fill(0);
        words
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        MEMORY.set(std::mem::take(&mut self.0));
    }
}

/// Key blocks that some row of `first..last` sees.
fn visible_blocks(first: usize, last: usize, window: Option<usize>) -> std::ops::Range<usize> {
    let oldest = window.map_or(0, |w| (first + 1).saturating_sub(w));
    oldest / KV_BLOCK..last / KV_BLOCK + 1
}

/// o (T, H, K), lse (T, H) for packed sequences `cu_seqlens` (B+1). Values are read from qkv.
pub fn forward(
    cpu: &Cpu,
    compute: Compute,
    o: &mut [f32],
    lse: &mut [f32],
    q: &[f32],
    k: &[f32],
    qkv: &[f32],
    cu_seqlens: &[u32],
    window: Option<usize>,
    shape: HeadShape,
) {
    check(o.len(), q.len(), k.len(), qkv.len(), cu_seqlens, shape);
    assert_eq!(
        lse.len() * shape.head_dim,
        q.len(),
        "attention: lse is not (T, H)"
    );
    let isa = cpu.isa();
    let (out, lse) = (SharedMut::new(o), SharedMut::new(lse));
    let items = (cu_seqlens.len() - 1) * shape.num_kv_heads;
    cpu.pool.for_each(items, &|item| {
        dispatch_own_factors!(isa, compute, forward_item(out: SharedMut<f32>, lse: SharedMut<f32>, q: &[f32], k: &[f32], qkv: &[f32], cu_seqlens: &[u32], window: Option<usize>, shape: HeadShape, item: usize));
    });
}

fn check(o: usize, q: usize, k: usize, qkv: usize, cu_seqlens: &[u32], shape: HeadShape) {
    let t = *cu_seqlens.last().expect("cu_seqlens has B+1 entries") as usize;
    let HeadShape {
        num_heads: h,
        num_kv_heads: g,
        head_dim,
    } = shape;
    assert_eq!(h % g, 0, "attention: H is a multiple of G");
    assert_eq!(q, t * h * head_dim, "attention: q is not (T, H, K)");
    assert_eq!(o, q, "attention: o is not (T, H, K)");
    assert_eq!(k, t * g * head_dim, "attention: k is not (T, G, K)");
    assert_eq!(
        qkv,
        t * shape.qkv_size(),
        "attention: qkv is not (T, (H+2G)*K)"
    );
}

/// One sequence and one key-value head with its query heads.
#[inline(always)]
unsafe fn forward_item<S: Simd, F: Factor<S>>(
    out: SharedMut<f32>,
    lse: SharedMut<f32>,
    q: &[f32],
    k: &[f32],
    qkv: &[f32],
    cu_seqlens: &[u32],
    window: Option<usize>,
    shape: HeadShape,
    item: usize,
) {
    let HeadShape {
        num_heads: h,
        num_kv_heads: g,
        head_dim: d,
    } = shape;
    let (b, kv_head) = (item / g, item % g);
    let (first, len) = (
        cu_seqlens[b] as usize,
        (cu_seqlens[b + 1] - cu_seqlens[b]) as usize,
    );
    if len == 0 {
        return;
    }
    let sizes = Sizes::new::<S, F>(d);
    let heads = h / g;
    let blocks = len.div_ceil(KV_BLOCK);
    let keys_len = blocks * sizes.key_block();
    let values_len = blocks * sizes.value_block();
    let tiles_len = memory_len::<S, F>(sizes, TOGETHER.min(len * heads));
    let all = keys_len + values_len + sizes.row() + tiles_len;
    let mut memory = Memory::take(all);
    let (keys, rest) = memory.zeroed(all).split_at_mut(keys_len);
    let (values, rest) = rest.split_at_mut(values_len);
    let (row, tiles) = rest.split_at_mut(sizes.row());
    for j in 0..len {
        let key = &k[((first + j) * g + kv_head) * d..][..d];
        let value = &qkv[(first + j) * shape.qkv_size() + (h + g + kv_head) * d..][..d];
        let (block, slot) = (j / KV_BLOCK, j % KV_BLOCK);
        // SAFETY: forwarded.
        unsafe {
            sizes.put_key::<S, F>(&mut keys[block * sizes.key_block()..], slot, key, row);
            sizes.put_value::<S, F>(&mut values[block * sizes.value_block()..], slot, value, row);
        }
    }
    let (keys, values) = (&*keys, &*values);
    let block = |b: usize| {
        let (key, value) = (b * sizes.key_block(), b * sizes.value_block());
        (&keys[key..], &values[value..])
    };
    let queries = Queries {
        shape,
        kv_head,
        first_row: first,
        first_pos: 0,
        window,
    };
    for start in (0..len * heads).step_by(TOGETHER) {
        let some = start..(len * heads).min(start + TOGETHER);
        // SAFETY: the rows of these heads of one sequence belong to this thread.
        unsafe {
            attend::<S, F>(tiles, sizes, queries, some, q, block, |row, tile, r| {
                let l = tile.finish(r, out.slice(row * d..(row + 1) * d));
                lse.slice(row..row + 1)[0] = l;
            });
        }
    }
}
