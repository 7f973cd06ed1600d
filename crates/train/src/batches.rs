//! Where the batches of a stage come from, and the held-out text it is measured on.

use data::loader::sequential;
use data::manifest::Split;
use data::{DialoguePacker, IGNORE, Loader, TokenData};
use model::transformer::Batch;
use std::path::PathBuf;

use crate::trainer::Trainer;

/// What a step is trained on.
#[derive(Clone, Debug, Default)]
pub struct StepBatches {
    /// Of its micro-steps.
    pub batches: Vec<Batch>,
    /// Where answers are weighed: the mean reward of the model's own, or the share of pairs told apart.
    pub reward: Option<f64>,
}

/// The batches of a stage: a function of the step and, where the model's own answers are learned from, of the weights
/// that the step begins with; promised in advance.
pub trait Batches {
    /// Those of the step that the trainer is about to take.
    fn batches(&self, trainer: &Trainer) -> StepBatches;

    /// SHA-256 over everything that determines them.
    fn commitment(&self) -> &str;

    /// How they follow from data and seed, for the ledger.
    fn order(&self) -> &'static str;

    /// The files that they are read from, as far as nothing else vouches for them.
    fn files(&self) -> &[PathBuf] {
        &[]
    }
}

/// Packed rows of documents. The loader's `rows_per_batch` are those of a micro-step.
pub struct Documents<'a>(pub Loader<'a>);

/// Packed dialogues, with only the assistant's words to be learnt; perhaps with rows of documents behind them, so
/// that what was read before is not forgotten.
pub struct Dialogues<'a> {
    packer: DialoguePacker,
    replay: Option<Loader<'a>>,
    commitment: String,
}

impl<'a> Dialogues<'a> {
    /// A micro-step is a batch of `packer` and one of `replay`.
    pub fn new(packer: DialoguePacker, replay: Option<Loader<'a>>) -> Dialogues<'a> {
        let commitment = match &replay {
            None => packer.commitment().to_string(),
            Some(loader) => formats::hash::sha256_hex(
                format!(
                    "{REPLAY}\n{}\n{}\n",
                    packer.commitment(),
                    loader.commitment()
                )
                .as_bytes(),
            ),
        };
        Dialogues {
            packer,
            replay,
            commitment,
        }
    }

    /// The batches of the micro-steps of step `step`, counted from 0.
    pub fn of_step(&self, step: u64, micro_steps: u64) -> Vec<Batch> {
        let micro = step * micro_steps..(step + 1) * micro_steps;
        let batch = |at| {
            let mut batch = convert(self.packer.batch(at));
            if let Some(loader) = &self.replay {
                batch.append(&convert(loader.batch(at)));
            }
            batch
        };
        micro.map(batch).collect()
    }
}

const REPLAY: &str = "dokja-replay-order-1: dialogues shuffled by (seed, epoch), packed as they come; behind each batch \
                      of them, one of documents in their own order";

impl Documents<'_> {
    /// The batches of the micro-steps of step `step`, counted from 0.
    pub fn of_step(&self, step: u64, micro_steps: u64) -> Vec<Batch> {
        let micro = step * micro_steps..(step + 1) * micro_steps;
        micro.map(|at| convert(self.0.batch(at))).collect()
    }
}

impl Batches for Documents<'_> {
    fn batches(&self, trainer: &Trainer) -> StepBatches {
        StepBatches {
            batches: self.of_step(trainer.step, trainer.micro_steps()),
            reward: None,
        }
    }

    fn commitment(&self) -> &str {
        self.0.commitment()
    }

    fn order(&self) -> &'static str {
        "dokja-document-order-1: documents shuffled by (seed, epoch), cut into rows, rows permuted"
    }

    fn files(&self) -> &[PathBuf] {
        self.0.paths()
    }
}

impl Batches for Dialogues<'_> {
    fn batches(&self, trainer: &Trainer) -> StepBatches {
        StepBatches {
            batches: self.of_step(trainer.step, trainer.micro_steps()),
            reward: None,
        }
    }

    fn commitment(&self) -> &str {
        &self.commitment
    }

    fn order(&self) -> &'static str {
        match self.replay {
            None => {
                "dokja-dialogue-order-1: dialogues shuffled by (seed, epoch), packed as they come"
            }
            Some(_) => REPLAY,
        }
    }

    fn files(&self) -> &[PathBuf] {
        self.replay.as_ref().map_or(&[], |loader| loader.paths())
    }
}

/// Held-out text, in the form it is measured in.
#[derive(Clone, Debug, Default)]
pub struct Heldout {
    /// Batches that are not learnt from.
    pub batches: Vec<Batch>,
    /// Bytes of text that their targets stand for.
    pub bytes: u64,
}

impl Heldout {
    /// The first documents of the held-out split, up to about `max_tokens`, in rows of `seq_len`, `rows`
    /// at a time. `token_bytes` are the bytes of text that each id stands for.
    pub fn new(
        data: &TokenData,
        seq_len: usize,
        rows: usize,
        max_tokens: u64,
        token_bytes: &[u32],
    ) -> Heldout {
        let mut heldout = Heldout::default();
        let mut tokens = 0;
        for batch in sequential(data.of(Split::Heldout), seq_len, rows, data.separator) {
            if tokens > 0 && tokens + batch.num_tokens() as u64 > max_tokens {
                break;
            }
            tokens += batch.num_tokens() as u64;
            let batch = convert(batch);
            let bytes = batch
                .targets
                .iter()
                .filter_map(|&id| token_bytes.get(id as usize));
            heldout.bytes += bytes.map(|&bytes| u64::from(bytes)).sum::<u64>();
            heldout.batches.push(batch);
        }
        heldout
    }

    /// Bits per byte of a summed cross-entropy in nats; `None` without any text.
    pub fn bits_per_byte(&self, nats: f64) -> Option<f64> {
        (self.bytes > 0).then(|| nats / std::f64::consts::LN_2 / self.bytes as f64)
    }
}

fn convert(batch: data::Batch) -> Batch {
    Batch {
        ids: batch.ids,
        targets: batch.targets,
        weights: Vec::new(),
        mtp_targets: batch.targets2,
        // The last row of a dialogue has no next token; nothing is predicted from what stands there.
        next_ids: batch
            .next_ids
            .into_iter()
            .map(|id| if id == IGNORE { 0 } else { id })
            .collect(),
        cu_seqlens: batch.cu_seqlens,
    }
}
