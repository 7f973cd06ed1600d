//! The routed experts of a layer in memory: all of them, or those that are busy.
//!
//! A model that is larger than the memory keeps its experts on disk and a cache of them in memory, one for
//! all layers ([`ExpertCache`]). A pass asks for the experts that have rows. Those that are not there are
//! packed as they are read, in the place of the least busy ones of any layer. Where a pass has rows for more
//! experts than fit, it is run in parts, each a range of experts; so any budget works that holds one.
//!
//! How busy an expert is: the number of passes that used it, in which a pass counts half as much after
//! [`HALF_LIFE`] further ones. To evict what was not used for longest would be the worst choice here, for
//! every token goes through the layers in turn.
//!
//! The bits of a token do not depend on the cache: an expert is the same whenever it is packed.

use crate::weights::{Matrices, Span, SwigluSpans};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tensor::packed::PackedGroup;
use tensor::{Compute, Device};

/// Passes of a layer after which a use counts half.
const HALF_LIFE: f32 = 256.0;
/// Experts that the disk is asked for ahead of the one that is packed.
const AHEAD: usize = 8;

/// The matrices of the experts of a layer.
pub(crate) struct ExpertGroups {
    pub(crate) gate_up: PackedGroup, // E of (2F, D)
    pub(crate) down: PackedGroup,    // E of (D, F)
}

/// Sizes of the experts of a layer.
#[derive(Clone, Copy)]
pub(crate) struct ExpertShape {
    pub(crate) num_experts: usize, // E
    pub(crate) hidden_size: usize, // D
    pub(crate) width: usize,       // F
    pub(crate) compute: Compute,
}

/// The experts of a layer.
pub(crate) enum Experts {
    /// All of them.
    Resident(ExpertGroups),
    /// Those that are in the cache.
    Paged {
        layer: usize, // as numbered by the cache
        num_experts: usize,
        cache: SharedCache,
    },
}

/// The cache, which belongs to all layers.
pub(crate) type SharedCache = Arc<Mutex<ExpertCache>>;

/// The busiest experts of a model, and where the others are read.
pub struct ExpertCache {
    weights: Box<dyn Matrices + Send>,
    layers: Vec<Layer>,
    max_bytes: usize,
    stats: ExpertCacheStats,
}

/// What a cache of experts has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExpertCacheStats {
    /// Bytes held now.
    pub bytes: usize,
    /// Experts that passes asked for, each once a pass.
    pub lookups: u64,
    /// Experts that were packed because they were not there.
    pub misses: u64,
    /// Bytes that were packed for them.
    pub bytes_packed: u64,
}

struct Layer {
    spans: SwigluSpans,
    shape: ExpertShape,
    groups: ExpertGroups,
    bytes: Vec<usize>, // (E), 0 where the expert is not there
    uses: Vec<Uses>,   // (E)
    passes: u32,
}

/// How busy an expert is: `count` at pass `at`.
#[derive(Clone, Copy, Default)]
struct Uses {
    count: f32,
    at: u32,
}

impl Uses {
    fn now(self, pass: u32) -> f32 {
        self.count * (-((pass - self.at) as f32) / HALF_LIFE).exp2()
    }
}

impl Experts {
    /// All experts at `spans`, or a layer of the cache where `weights` has one.
    pub(crate) fn new(
        device: &Device,
        shape: ExpertShape,
        spans: SwigluSpans,
        weights: &mut dyn Matrices,
    ) -> Experts {
        if let Some(cache) = weights.expert_cache() {
            let layer = lock(&cache).add_layer(device, shape, spans);
            return Experts::Paged {
                layer,
                num_experts: shape.num_experts,
                cache,
            };
        }
        let ExpertShape {
            num_experts: e,
            hidden_size: d,
            width: f,
            compute,
        } = shape;
        let mut group = |all: Span, k: usize| {
            let packed = |span| weights.pack(device, compute, span, k);
            PackedGroup::of(all.parts(e).map(packed))
        };
        Experts::Resident(ExpertGroups {
            gate_up: group(spans.gate_up_proj, d),
            down: group(spans.down_proj, f),
        })
    }

    /// Bytes of all experts. Of paged ones those of their values as floats: some have to be read from disk, which
    /// costs more than their size in blocks.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Experts::Resident(groups) => groups.gate_up.bytes() + groups.down.bytes(),
            Experts::Paged { layer, cache, .. } => {
                let shape = lock(cache).layers[*layer].shape;
                let of_value = match shape.compute {
                    Compute::F32 => 4,
                    Compute::Bf16 => 2,
                };
                shape.num_experts * 3 * shape.hidden_size * shape.width * of_value
            }
        }
    }

    /// Calls `run` with ranges of experts, in order, that together hold all rows; `offsets` (E+1) are the borders
    /// of the rows of each. Those of a range that have rows are there.
    pub(crate) fn for_parts(
        &self,
        device: &Device,
        offsets: &[u32],
        mut run: impl FnMut(Range<usize>, &ExpertGroups),
    ) {
        match self {
            Experts::Resident(groups) => run(0..offsets.len() - 1, groups),
            Experts::Paged {
                layer,
                num_experts,
                cache,
            } => {
                let mut cache = lock(cache);
                let mut first = 0;
                while first < *num_experts {
                    let end = cache.page_in(device, *layer, offsets, first);
                    run(first..end, &cache.layers[*layer].groups);
                    first = end;
                }
            }
        }
    }
}

/// The cache holds nothing that a panic of another thread could leave half done: a matrix is there or not.
pub(crate) fn lock(cache: &SharedCache) -> MutexGuard<'_, ExpertCache> {
    cache.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ExpertCache {
    /// An empty cache of at most `max_bytes`.
    pub(crate) fn new(weights: Box<dyn Matrices + Send>, max_bytes: usize) -> ExpertCache {
        ExpertCache {
            weights,
            layers: Vec::new(),
            max_bytes,
            stats: ExpertCacheStats::default(),
        }
    }

    /// From now on at most this.
    pub(crate) fn set_max_bytes(&mut self, max_bytes: usize) {
        self.max_bytes = max_bytes;
        self.make_room(0, 0, 0..0);
    }

    /// What it has done so far.
    pub(crate) fn stats(&self) -> ExpertCacheStats {
        self.stats
    }

    fn add_layer(&mut self, device: &Device, shape: ExpertShape, spans: SwigluSpans) -> usize {
        let e = shape.num_experts;
        self.layers.push(Layer {
            spans,
            shape,
            groups: ExpertGroups {
                gate_up: PackedGroup::absent(device, e),
                down: PackedGroup::absent(device, e),
            },
            bytes: vec![0; e],
            uses: vec![Uses::default(); e],
            passes: 0,
        });
        self.layers.len() - 1
    }

    /// Sees to it that the experts from `first` on that have rows are there, as many as fit and at least one.
    /// Returns the end of their range.
    fn page_in(&mut self, device: &Device, layer: usize, offsets: &[u32], first: usize) -> usize {
        let e = offsets.len() - 1;
        let wanted: Vec<usize> = (first..e)
            .filter(|&e| offsets[e] < offsets[e + 1])
            .collect();
        if first == 0 {
            self.count(layer, &wanted);
        }
        let missing = |cache: &Self, e: usize| cache.layers[layer].bytes[e] == 0;
        let mut ahead = wanted
            .iter()
            .copied()
            .filter(|&e| missing(self, e))
            .collect::<Vec<_>>();
        ahead.reverse();
        for _ in 0..AHEAD.min(ahead.len()) {
            self.prefetch(layer, ahead.pop());
        }
        for &idx in &wanted {
            if !missing(self, idx) {
                continue;
            }
            // As large as the largest of its layer, so far as is known.
            let size = self.layers[layer].bytes.iter().copied().max().unwrap_or(0);
            self.make_room(size, layer, first..idx);
            let is_alone = !wanted.iter().any(|&e| (first..idx).contains(&e));
            if self.stats.bytes + size > self.max_bytes && !is_alone {
                return idx;
            }
            self.prefetch(layer, ahead.pop());
            self.pack(device, layer, idx);
            self.make_room(0, layer, first..idx + 1);
        }
        e
    }

    /// Counts a pass that uses these experts of a layer.
    fn count(&mut self, layer: usize, used: &[usize]) {
        let layer = &mut self.layers[layer];
        layer.passes += 1;
        for &idx in used {
            layer.uses[idx] = Uses {
                count: layer.uses[idx].now(layer.passes) + 1.0,
                at: layer.passes,
            };
            self.stats.lookups += 1;
        }
    }

    /// Evicts the least busy experts until `size` more bytes fit, but none of `pinned` in `layer`.
    fn make_room(&mut self, size: usize, layer: usize, pinned: Range<usize>) {
        while self.stats.bytes + size > self.max_bytes {
            let held = self.layers.iter().enumerate().flat_map(|(l, of)| {
                let held = (0..of.bytes.len()).filter(|&e| of.bytes[e] > 0);
                held.map(move |e| (of.uses[e].now(of.passes), l, e))
            });
            let may_go = held.filter(|&(_, l, e)| l != layer || !pinned.contains(&e));
            let Some((_, l, e)) = may_go.min_by(|a, b| a.0.total_cmp(&b.0)) else {
                return;
            };
            let layer = &mut self.layers[l];
            layer.groups.gate_up.replace(e, None);
            layer.groups.down.replace(e, None);
            self.stats.bytes -= std::mem::take(&mut layer.bytes[e]);
        }
    }

    /// The two matrices of an expert, with their depths.
    fn matrices(&self, layer: usize, idx: usize) -> [(Span, usize); 2] {
        let Layer { spans, shape, .. } = &self.layers[layer];
        let part = |all: Span| all.part(idx, shape.num_experts);
        [
            (part(spans.gate_up_proj), shape.hidden_size),
            (part(spans.down_proj), shape.width),
        ]
    }

    fn prefetch(&self, layer: usize, idx: Option<usize>) {
        for (span, _) in idx
            .map(|idx| self.matrices(layer, idx))
            .into_iter()
            .flatten()
        {
            self.weights.prefetch(span);
        }
    }

    fn pack(&mut self, device: &Device, layer: usize, idx: usize) {
        let compute = self.layers[layer].shape.compute;
        let matrices = self.matrices(layer, idx);
        let [gate_up, down] = matrices.map(|(span, k)| self.weights.pack(device, compute, span, k));
        let layer = &mut self.layers[layer];
        let bytes = gate_up.bytes() + down.bytes();
        layer.bytes[idx] = bytes;
        layer.groups.gate_up.replace(idx, Some(gate_up));
        layer.groups.down.replace(idx, Some(down));
        self.stats.bytes += bytes;
        self.stats.misses += 1;
        self.stats.bytes_packed += bytes as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tensor::{Packed, Tensor};

    /// Eight experts of one row of two values in each of two layers.
    fn cache(device: &Device, experts: usize) -> (ExpertCache, usize) {
        let shape = ExpertShape {
            num_experts: 8,
            hidden_size: 2,
            width: 1,
            compute: Compute::F32,
        };
        let span = |start, len| Span { start, len };
        let spans = SwigluSpans {
            gate_up_proj: span(0, 32),
            down_proj: span(32, 16),
        };
        struct Zeros(Tensor);
        impl Matrices for Zeros {
            fn pack(&mut self, device: &Device, compute: Compute, span: Span, k: usize) -> Packed {
                (&self.0).pack(device, compute, span, k)
            }
            fn pack_transposed(&mut self, _: &Device, _: Compute, _: Span, _: usize) -> Packed {
                unreachable!("nothing is trained")
            }
        }
        let weights = Box::new(Zeros(Tensor::zeros(device, &[48])));
        let mut cache = ExpertCache::new(weights, usize::MAX);
        for _ in 0..2 {
            cache.add_layer(device, shape, spans);
        }
        cache.page_in(device, 0, &offsets(&[0]), 0);
        let one = cache.stats.bytes;
        cache.set_max_bytes(experts * one);
        (cache, one)
    }

    /// Borders of rows, one row for each of `used`.
    fn offsets(used: &[usize]) -> Vec<u32> {
        let end = |end: usize| used.iter().filter(|&&e| e < end).count() as u32;
        (0..=8).map(end).collect()
    }

    fn held(cache: &ExpertCache, layer: usize) -> Vec<usize> {
        (0..8)
            .filter(|&e| cache.layers[layer].bytes[e] > 0)
            .collect()
    }

    #[test]
    fn the_least_busy_expert_of_any_layer_goes() {
        let device = Device::cpu(kernels_cpu::Isa::detect(), 1);
        let (mut cache, _) = cache(&device, 4);
        for _ in 0..3 {
            assert_eq!(cache.page_in(&device, 0, &offsets(&[1, 2]), 0), 8);
            assert_eq!(cache.page_in(&device, 1, &offsets(&[5]), 0), 8);
        }
        assert_eq!((held(&cache, 0), held(&cache, 1)), (vec![0, 1, 2], vec![5]));
        cache.page_in(&device, 1, &offsets(&[6]), 0);
        assert_eq!((held(&cache, 0), held(&cache, 1)), (vec![1, 2], vec![5, 6]));
        // Used long ago is less than used of late.
        for _ in 0..2000 {
            cache.page_in(&device, 0, &offsets(&[2]), 0);
            cache.page_in(&device, 1, &offsets(&[6]), 0);
        }
        cache.page_in(&device, 1, &offsets(&[6, 7]), 0);
        cache.page_in(&device, 1, &offsets(&[4, 7]), 0);
        assert_eq!((held(&cache, 0), held(&cache, 1)), (vec![2], vec![4, 6, 7]));
    }

    #[test]
    fn a_pass_that_does_not_fit_is_cut() {
        let device = Device::cpu(kernels_cpu::Isa::detect(), 1);
        let (mut cache, one) = cache(&device, 3);
        let all = offsets(&[0, 1, 2, 3, 5, 6, 7]);
        let mut ends = Vec::new();
        while ends.last() != Some(&8) {
            let first = ends.last().copied().unwrap_or(0);
            ends.push(cache.page_in(&device, 0, &all, first));
            assert!(cache.stats.bytes <= 3 * one);
            let last = ends.last().copied().unwrap_or(0);
            let here = held(&cache, 0);
            assert!((first..last).filter(|&e| e != 4).all(|e| here.contains(&e)));
        }
        assert_eq!(ends, [3, 7, 8]);
        // No room for one: one at a time all the same.
        cache.set_max_bytes(0);
        assert_eq!(cache.page_in(&device, 0, &all, 0), 1);
        assert_eq!(cache.stats.bytes, one);
    }
}
