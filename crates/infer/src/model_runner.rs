//! [`Runner`] over the model: its weights, its cache, and the device they live on.

use crate::engine::EngineConfig;
use crate::kv_blocks::KvGroup;
use crate::runner::{Runner, StepBatch};
use model::Transformer;
use model::block::head_shape;
use model::decode::{BlockGroup, CachedBatch, DecodeState, KvCache};
use model::experts::ExpertCacheStats;
use tensor::Device;
use tensor::ops::attention::{CachedSequence, KvLayer};

/// A model that the engine can drive.
pub struct ModelRunner {
    device: Device,
    model: Transformer,
    windows: Vec<Option<usize>>, // L
    cache: KvCache,
    state: DecodeState,
}

impl ModelRunner {
    /// Takes a model and the device that its weights are packed for.
    pub fn new(device: Device, model: Transformer) -> ModelRunner {
        let num_layers = model.config.num_hidden_layers;
        ModelRunner {
            windows: (0..num_layers).map(|l| model.config.window(l)).collect(),
            cache: KvCache::new(&device, &model.config, &vec![(0, 0); num_layers]),
            state: model.decode_state(&device),
            device,
            model,
        }
    }

    /// Positions that a sequence may have at most.
    pub fn max_positions(&self) -> usize {
        self.model.config.max_position_embeddings
    }

    /// Changes the bound of the cache of experts, where there is one.
    pub fn set_expert_cache_bytes(&self, bytes: usize) {
        self.model.set_expert_cache_bytes(bytes);
    }

    /// Bytes of the cache that an engine of this configuration makes.
    pub fn kv_bytes(&self, config: &EngineConfig) -> u64 {
        let block = KvLayer::new(&self.device, 1, head_shape(&self.model.config)).bytes() as u64;
        let kv = config.kv_blocks(&self.windows, self.max_positions());
        let num_blocks = kv
            .groups()
            .iter()
            .map(|group| (group.layers.len() * group.num_blocks) as u64);
        num_blocks.sum::<u64>().saturating_mul(block)
    }

    /// The configuration with as many blocks, at most those it has, as fit into `bytes`; `None` when
    /// one is too many.
    pub fn fit_kv(&self, config: &EngineConfig, bytes: u64) -> Option<EngineConfig> {
        let with = |num_kv_blocks| EngineConfig {
            num_kv_blocks,
            ..config.clone()
        };
        let fits = |num_kv_blocks| self.kv_bytes(&with(num_kv_blocks)) <= bytes;
        // Bytes grow with the blocks: `low` fits, `high` does not.
        let (mut low, mut high) = (0, config.num_useful_blocks(self.max_positions()) + 1);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if fits(middle) {
                low = middle;
            } else {
                high = middle;
            }
        }
        (low > 0).then(|| with(low))
    }

    /// One pass over the rows of a step; the state keeps the logits.
    fn run(&mut self, batch: &StepBatch) {
        let sequences: Vec<Vec<CachedSequence>> = (0..batch.groups.len())
            .map(|group| {
                let sequences = batch.sequences.iter().enumerate();
                sequences
                    .map(|(seq, part)| CachedSequence {
                        rows: part.rows.clone(),
                        first_pos: part.first_pos as usize,
                        block_table: batch.block_table(seq, group),
                    })
                    .collect()
            })
            .collect();
        let groups: Vec<BlockGroup> = batch
            .groups
            .iter()
            .zip(&sequences)
            .map(|(group, sequences)| BlockGroup {
                slots: &group.slots,
                sequences,
            })
            .collect();
        let batch = CachedBatch {
            ids: &batch.ids,
            positions: &batch.positions,
            logit_rows: &batch.logit_rows,
            groups: &groups,
        };
        self.model
            .forward_cached(&self.device, &mut self.state, &mut self.cache, &batch);
    }
}

impl Runner for ModelRunner {
    fn vocab_size(&self) -> usize {
        self.model.config.vocab_size
    }

    fn max_positions(&self) -> usize {
        ModelRunner::max_positions(self)
    }

    fn expert_cache(&self) -> Option<ExpertCacheStats> {
        self.model.expert_cache_stats()
    }

    fn layer_windows(&self) -> &[Option<usize>] {
        &self.windows
    }

    fn init_kv(&mut self, groups: &[KvGroup]) {
        let mut layers = vec![(0, 0); self.windows.len()];
        for (index, group) in groups.iter().enumerate() {
            for &layer in &group.layers {
                layers[layer] = (index, group.num_blocks);
            }
        }
        self.cache = KvCache::new(&self.device, &self.model.config, &layers);
    }

    fn forward(&mut self, batch: &StepBatch, logits: &mut [f32]) {
        self.run(batch);
        logits.copy_from_slice(self.state.logits());
    }

    fn losses(&mut self, batch: &StepBatch, targets: &[u32], losses: &mut [f32]) {
        self.run(batch);
        losses.copy_from_slice(self.state.losses(&self.device, targets));
    }
}
