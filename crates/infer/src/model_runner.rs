//! [`Runner`] over the model: its weights, its cache, and the device they live on.

use crate::draft_cost::StepCost;
use crate::engine::EngineConfig;
use crate::kv_blocks::{KV_BLOCK, KvGroup};
use crate::runner::{DraftLayer, Runner, StepBatch};
use model::Transformer;
use model::block::kv_layer;
use model::decode::{BlockGroup, CachedBatch, DecodeState, KvCache};
use model::experts::ExpertCacheStats;
use model::flops;
use model::mtp::{MtpBatch, MtpState};
use tensor::Device;
use tensor::ops::attention::CachedSequence;

/// A model that the engine can drive.
pub struct ModelRunner {
    device: Device,
    model: Transformer,
    windows: Vec<Option<usize>>, // L
    cache: KvCache,
    state: DecodeState,
    mtp_state: MtpState,
    mtp_group: Option<usize>, // of the prediction layer, where it takes part
}

impl ModelRunner {
    /// Takes a model and the device that its weights are packed for.
    pub fn new(device: Device, model: Transformer) -> ModelRunner {
        let num_layers = model.config.num_hidden_layers;
        ModelRunner {
            windows: (0..num_layers).map(|l| model.config.window(l)).collect(),
            cache: KvCache::new(&device, &model.config, &vec![(0, 0); num_layers]),
            state: model.decode_state(&device),
            mtp_state: model.mtp_state(&device),
            mtp_group: None,
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
        let block = kv_layer(&self.device, &self.model.config, 1).bytes() as u64;
        let kv = config.kv_blocks(self);
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
            .map(|group| cached_sequences(batch, group))
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

    fn step_cost(&self) -> StepCost {
        let config = &self.model.config;
        let bytes = self.model.weight_bytes();
        let madds = |with_mtp| {
            let counts = flops::count(config, &self.model.layout, 1, with_mtp);
            counts.active_parameters as f64
        };
        let kv = kv_layer(&self.device, config, 1).bytes() as f64 / KV_BLOCK as f64;
        let sees_all = |window: &&Option<usize>| window.is_none();
        let num_full = self.windows.iter().filter(sees_all).count() as f64;
        StepCost {
            dense_bytes: bytes.dense as f64,
            expert_bytes: bytes.experts as f64,
            expert_share: match config.num_experts {
                0 => 0.0,
                experts => config.num_experts_per_tok as f64 / experts as f64,
            },
            head_bytes: bytes.head as f64,
            kv_bytes: kv * num_full,
            row_madds: madds(false),
            num_layers: config.num_hidden_layers as f64,
            draft_bytes: bytes.mtp as f64,
            draft_kv_bytes: match config.mtp_sliding_window {
                None => kv,
                Some(_) => 0.0,
            },
            draft_row_madds: madds(true) - madds(false),
        }
    }
}

/// The sequences of a step as the layers of a group see them.
fn cached_sequences(batch: &StepBatch, group: usize) -> Vec<CachedSequence<'_>> {
    let sequences = batch.sequences.iter().enumerate();
    sequences
        .map(|(seq, part)| CachedSequence {
            rows: part.rows.clone(),
            first_pos: part.first_pos as usize,
            block_table: batch.block_table(seq, group),
        })
        .collect()
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
        let num_layers = self.windows.len();
        let of = |layer| {
            let group = groups
                .iter()
                .position(|group| group.layers.contains(&layer))?;
            Some((group, groups[group].num_blocks))
        };
        self.mtp_group = of(num_layers).map(|(group, _)| group);
        let layers: Vec<(usize, usize)> = (0..num_layers)
            .map(|layer| of(layer).unwrap_or((0, 0)))
            .chain(of(num_layers))
            .collect();
        self.cache = KvCache::new(&self.device, &self.model.config, &layers);
    }

    fn draft_layer(&self) -> Option<DraftLayer> {
        let config = &self.model.config;
        (config.num_nextn_predict_layers > 0).then(|| DraftLayer {
            window: config.mtp_sliding_window,
            hidden_size: config.hidden_size,
            cost: self.step_cost(),
        })
    }

    fn hidden(&mut self) -> &[f32] {
        self.model.hidden(&self.device, &mut self.state)
    }

    fn draft(
        &mut self,
        batch: &StepBatch,
        hidden: &[f32],
        logits: &mut [f32],
        hidden_out: &mut [f32],
    ) {
        let group = self.mtp_group.expect("the layer was given a cache");
        let batch = MtpBatch {
            hidden,
            next_ids: &batch.ids,
            positions: &batch.positions,
            logit_rows: &batch.logit_rows,
            group: &BlockGroup {
                slots: &batch.groups[group].slots,
                sequences: &cached_sequences(batch, group),
            },
        };
        let (state, cache) = (&mut self.mtp_state, &mut self.cache);
        self.model
            .forward_mtp_cached(&self.device, state, cache, &batch);
        logits.copy_from_slice(state.logits());
        hidden_out.copy_from_slice(state.hidden());
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
