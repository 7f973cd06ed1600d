//! How the memory there is, or the bound that was given, is shared out when a model is run.
//!
//! Weights come first. Where not all of them fit, those of experts stay on disk and get a cache instead. Of
//! what is left, keys and values get what they can use, at most half; a cache of experts gets the rest.

use crate::memory;
use crate::progress::{bytes, tell};
use anyhow::{Result, bail};
use checkpoint::Checkpoint;
use infer::{EngineConfig, ModelRunner};
use model::config::{Compute, MlpType};
use model::flops::{kv_bytes, step_bytes};
use model::names::{LayerPart, Part};
use model::weights::{Source, TensorSpec};
use model::{Layout, ModelConfig};

/// A context that is worth having: where the memory holds less, and the model could take more, it is
/// refused.
const MIN_CONTEXT: usize = 4096;

/// What a model takes when it is run: norms and biases in f32, the matrices packed, and one of them as it is
/// read. The rows of the embedding stay in their file.
pub(crate) struct Needed {
    /// Of routed experts, which can be paged.
    pub(crate) experts: u64,
    /// Of the experts of one token in one layer, the least cache there can be.
    pub(crate) least_cache: u64,
    /// Of all else.
    pub(crate) rest: u64,
}

impl Needed {
    /// As the tensors of a checkpoint are stored; without one, in the type that the configuration computes in.
    pub(crate) fn of(config: &ModelConfig, checkpoint: Option<&Checkpoint>) -> Needed {
        let layout = Layout::for_serving(config);
        let (mut experts, mut rest, mut largest) = (0, 4 * layout.kept_len as u64, 0);
        let is_packed = |spec: &&TensorSpec| {
            let is_head = spec.part != Part::EmbedTokens || config.tie_word_embeddings;
            spec.span.start >= layout.kept_len && is_head
        };
        for spec in layout.tensors.iter().filter(is_packed) {
            let (bytes, is_blocks) = packed_bytes(config, checkpoint, spec);
            match spec.part {
                Part::Layer(_, LayerPart::Expert(..)) => experts += bytes,
                _ => rest += bytes,
            }
            if !is_blocks {
                largest = largest.max(4 * spec.span.len as u64);
            }
        }
        let is_sparse = |kind: &&MlpType| **kind == MlpType::Sparse;
        let layers = config.mlp_layer_types.iter().filter(is_sparse).count();
        let count = (layers * config.num_experts).max(1) as u64;
        Needed {
            experts,
            least_cache: (experts * config.num_experts_per_tok as u64).div_ceil(count),
            rest: rest + largest,
        }
    }

    /// Of the whole model.
    pub(crate) fn all(&self) -> u64 {
        self.experts + self.rest
    }
}

/// Bytes of a matrix when it is packed, and whether that is in blocks of integers.
pub(crate) fn packed_bytes(
    config: &ModelConfig,
    checkpoint: Option<&Checkpoint>,
    spec: &TensorSpec,
) -> (u64, bool) {
    let blocks = checkpoint.and_then(|files| files.blocks(spec).ok().flatten());
    match (blocks, config.compute) {
        // Scales of some types lie a little wider in panels.
        (Some((_, bytes)), _) => (bytes.len() as u64 * 33 / 32, true),
        (None, Compute::F32) => (4 * spec.span.len as u64, false),
        (None, Compute::Bf16) => (2 * spec.span.len as u64, false),
    }
}

/// What was found to fit.
pub(crate) struct Fit {
    bound: Option<u64>,
    step: u64,
    paged: Option<Needed>,
}

impl Fit {
    /// Before the weights are read: whether all of them may be, or only those that are no experts.
    ///
    /// # Errors
    /// When neither fits, with what would.
    pub(crate) fn plan(
        what: &str,
        checkpoint: &Checkpoint,
        engine: &EngineConfig,
        bound: Option<u64>,
    ) -> Result<Fit> {
        let config = &checkpoint.config;
        let needed = Needed::of(config, Some(checkpoint));
        let rows = engine.max_num_batched_tokens;
        // Memory of steps at least doubles when it grows.
        let step = step_bytes(config, 2 * rows, 2 * engine.max_num_seqs);
        let context = kv_bytes(config, config.max_position_embeddings.min(MIN_CONTEXT));
        let mut fit = Fit {
            bound,
            step,
            paged: None,
        };
        let Some(left) = fit.left() else {
            return Ok(fit);
        };
        // Twice the context: keys and values get half of what is left.
        let beside = step + 2 * context;
        if needed.all() + beside <= left {
            return Ok(fit);
        }
        let least = needed.rest + needed.least_cache + beside;
        if needed.experts == 0 || least > left {
            let what_to_do = match bound {
                Some(_) => "give --memory more",
                None => "close other programs or use a machine with more",
            };
            let least = match needed.experts {
                0 => needed.all() + beside,
                _ => least,
            };
            bail!(
                "running {what} takes {} of memory beside the program itself, {} are available; {what_to_do}",
                bytes(least),
                bytes(left)
            );
        }
        fit.paged = Some(needed);
        Ok(fit)
    }

    /// Whether experts stay on disk.
    pub(crate) fn pages_experts(&self) -> bool {
        self.paged.is_some()
    }

    /// Bytes that may still be taken; `None` where nobody tells.
    fn left(&self) -> Option<u64> {
        match self.bound {
            Some(bound) => Some(bound.saturating_sub(memory::resident_bytes()?)),
            None => memory::available_bytes(),
        }
    }

    /// After the weights were read: how much goes to keys and values, and to the cache of experts.
    ///
    /// The cache of keys and values of the default configuration is never short where memory is not.
    ///
    /// # Errors
    /// When too short a text would fit.
    pub(crate) fn share_out(
        &self,
        runner: &ModelRunner,
        config: EngineConfig,
    ) -> Result<EngineConfig> {
        let Some(left) = self.left() else {
            return Ok(config);
        };
        let free = left.saturating_sub(self.step);
        let config = fit_kv(runner, config, free)?;
        if let Some(needed) = &self.paged {
            let cache = free.saturating_sub(runner.kv_bytes(&config));
            // Where no bound was given, other programs and the pages that are read have a share.
            let cache = match self.bound {
                Some(_) => cache,
                None => cache / 8 * 7,
            };
            runner.set_expert_cache_bytes(usize::try_from(cache).unwrap_or(usize::MAX));
            tell(&format!(
                "note: {} of the {} of experts fit into memory; the others are read when they are needed",
                bytes(cache.min(needed.experts)),
                bytes(needed.experts)
            ));
        }
        Ok(config)
    }
}

/// The configuration with as many blocks of keys and values as it can use and half of `free` holds.
fn fit_kv(runner: &ModelRunner, config: EngineConfig, free: u64) -> Result<EngineConfig> {
    let positions = runner.max_positions();
    let blocks_of = |positions: usize| positions.div_ceil(infer::KV_BLOCK);
    let fitted = runner.fit_kv(&config, free / 2);
    let num_kv_blocks = fitted.as_ref().map_or(0, |fitted| fitted.num_kv_blocks);
    let wanted = config.num_kv_blocks.min(blocks_of(positions));
    if num_kv_blocks < wanted.min(blocks_of(MIN_CONTEXT)) {
        let least = EngineConfig {
            num_kv_blocks: wanted.min(blocks_of(MIN_CONTEXT)),
            ..config
        };
        bail!(
            "the keys and values of one text of {} tokens take {} of memory, and {} are left beside \
             the weights, of which half may be used; close other programs, or use a machine or a bound \
             (--memory) with more",
            least.num_kv_blocks * infer::KV_BLOCK,
            bytes(runner.kv_bytes(&least)),
            bytes(free)
        );
    }
    if num_kv_blocks < wanted {
        tell(&format!(
            "note: the memory holds texts of {} tokens; the model could take {positions}",
            num_kv_blocks * infer::KV_BLOCK
        ));
    }
    Ok(fitted.unwrap_or(config))
}
