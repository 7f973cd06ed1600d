//! Answers that are learned from: the engine that draws or judges them, the order in which questions come, and the
//! batches that they are packed into.

use infer::{Engine, EngineConfig, KV_BLOCK, ModelRunner};
use model::Transformer;
use model::transformer::Batch;
use numerics::Rng;
use tensor::ops::cross_entropy::IGNORE;
use train::Trainer;

/// An answer and what each of its tokens counts.
pub(crate) struct Weighted<'a> {
    pub(crate) prompt_ids: &'a [u32],
    /// With the token that ends it, where it came to its end; at least one.
    pub(crate) ids: Vec<u32>,
    pub(crate) weight: f32,
}

impl Weighted<'_> {
    /// Rows of its sequence: the last token predicts nothing.
    fn rows(&self) -> usize {
        self.prompt_ids.len() + self.ids.len() - 1
    }

    fn add_to(&self, batch: &mut Batch) {
        let (ids, rows) = ([self.prompt_ids, &self.ids].concat(), self.rows());
        let is_answer = |row: usize| row + 1 >= self.prompt_ids.len();
        let target = |row| if is_answer(row) { ids[row + 1] } else { IGNORE };
        batch.targets.extend((0..rows).map(target));
        batch.weights.extend((0..rows).map(|_| self.weight));
        batch.mtp_targets.extend((0..rows).map(|_| IGNORE));
        batch.next_ids.extend(&ids[1..]);
        batch.ids.extend(&ids[..rows]);
        batch.cu_seqlens.push(batch.ids.len() as u32);
    }
}

/// Sequences of questions and answers, packed in their order into batches of at most `batch_tokens` rows.
pub(crate) fn pack(answers: &[Weighted], batch_tokens: usize) -> Vec<Batch> {
    let mut batches: Vec<Batch> = Vec::new();
    for answer in answers {
        let is_full = |batch: &Batch| batch.ids.len() + answer.rows() > batch_tokens;
        if batches.last().is_none_or(is_full) {
            batches.push(Batch {
                cu_seqlens: vec![0],
                ..Batch::default()
            });
        }
        if let Some(batch) = batches.last_mut() {
            answer.add_to(batch);
        }
    }
    batches
}

/// The items of a step, of `count`: all of them in an order by chance, then all of them in another.
pub(crate) fn of_step(
    seed: u64,
    stream: &str,
    count: usize,
    per_step: usize,
    step: u64,
) -> Vec<usize> {
    let (mut epoch, mut order) = (None, Vec::new());
    let places = step * per_step as u64..(step + 1) * per_step as u64;
    places
        .map(|place| {
            let (now, at) = (place / count as u64, place % count as u64);
            if epoch != Some(now) {
                epoch = Some(now);
                order = (0..count).collect();
                Rng::new(seed, &format!("{stream} {now}")).shuffle(&mut order);
            }
            order[at as usize]
        })
        .collect()
}

/// An engine over weights of the trainer's model, for `seqs` sequences of `positions` at once.
pub(crate) fn engine(trainer: &Trainer, weights: &[f32], seqs: usize, positions: usize) -> Engine {
    let device = trainer.device.again();
    let model = Transformer::new(&device, trainer.model.config.clone(), weights, false);
    let config = EngineConfig {
        max_num_seqs: seqs,
        num_kv_blocks: seqs * positions.div_ceil(KV_BLOCK),
        ..EngineConfig::default()
    };
    let runner = Box::new(ModelRunner::new(device, model));
    Engine::new(runner, config).expect("a configuration of this crate")
}
