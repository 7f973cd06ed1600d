//! The prediction layer in serving against training: the same bits, after whatever was guessed in between.

use crate::determinism::{sequences, tiny};
use dokja_model::ModelConfig;
use dokja_model::config::Compute;
use dokja_model::decode::{BlockGroup, CachedBatch, DecodeState, KvCache};
use dokja_model::init::initial_weights;
use dokja_model::mtp::{MtpBatch, MtpState};
use dokja_model::transformer::{Batch, Transformer};
use dokja_model::weights::Layout;
use kernels_cpu::Isa;
use numerics::Rng;
use std::ops::Range;
use tensor::Device;
use tensor::ops::attention::{CachedSequence, KV_BLOCK};

const LEN: usize = 201;

/// Sequences whose hidden states are known, in a cache of whose blocks each has its own.
struct Served<'a> {
    device: &'a Device,
    model: &'a mut Transformer,
    cache: KvCache,
    state: MtpState,
    tables: Vec<Vec<u32>>,
    hidden: Vec<Vec<f32>>, // for each sequence (T, D)
}

fn slots(table: &[u32], positions: Range<usize>) -> Vec<u32> {
    positions
        .map(|p| table[p / KV_BLOCK] * KV_BLOCK as u32 + (p % KV_BLOCK) as u32)
        .collect()
}

impl<'a> Served<'a> {
    fn new(device: &'a Device, model: &'a mut Transformer, sequences: &[Vec<u32>]) -> Self {
        let layers = model.config.num_hidden_layers + 1;
        let blocks = LEN.div_ceil(KV_BLOCK);
        let num_blocks = sequences.len() * blocks;
        let mut served = Served {
            cache: KvCache::new(device, &model.config, &vec![(0, num_blocks); layers]),
            state: model.mtp_state(device),
            // Block n of all sequences, last first.
            tables: (0..sequences.len())
                .map(|s| {
                    let block = |n| (num_blocks - 1 - n * sequences.len() - s) as u32;
                    (0..blocks).map(block).collect()
                })
                .collect(),
            hidden: Vec::new(),
            device,
            model,
        };
        let mut state = served.model.decode_state(device);
        for (s, ids) in sequences.iter().enumerate() {
            let hidden = served.run_main(&mut state, s, ids);
            served.hidden.push(hidden);
        }
        served
    }

    /// The main model in two chunks.
    fn run_main(&mut self, state: &mut DecodeState, s: usize, ids: &[u32]) -> Vec<f32> {
        let mut hidden = Vec::new();
        for span in [0..ids.len() / 3, ids.len() / 3..ids.len()] {
            let positions: Vec<u32> = span.clone().map(|p| p as u32).collect();
            let batch = CachedBatch {
                ids: &ids[span.clone()],
                positions: &positions,
                logit_rows: &[],
                groups: &[BlockGroup {
                    slots: &slots(&self.tables[s], span.clone()),
                    sequences: &[CachedSequence {
                        rows: 0..span.len(),
                        first_pos: span.start,
                        block_table: &self.tables[s],
                    }],
                }],
            };
            self.model
                .forward_cached(self.device, state, &mut self.cache, &batch);
            hidden.extend(self.model.hidden(self.device, state));
        }
        hidden
    }

    /// The layer on rows from `first` on of each `(sequence, first, next ids, hidden)`; all logits.
    fn predict(&mut self, parts: &[(usize, usize, &[u32], &[f32])]) -> Vec<f32> {
        let (mut next_ids, mut positions, mut all_slots) = (vec![], vec![], vec![]);
        let (mut hidden, mut sequences) = (vec![], vec![]);
        for &(s, first, ids, h) in parts {
            let rows = next_ids.len()..next_ids.len() + ids.len();
            next_ids.extend(ids);
            positions.extend((first..first + ids.len()).map(|p| p as u32));
            all_slots.extend(slots(&self.tables[s], first..first + ids.len()));
            hidden.extend(h);
            sequences.push(CachedSequence {
                rows,
                first_pos: first,
                block_table: &self.tables[s],
            });
        }
        let logit_rows: Vec<u32> = (0..next_ids.len() as u32).collect();
        let batch = MtpBatch {
            hidden: &hidden,
            next_ids: &next_ids,
            positions: &positions,
            logit_rows: &logit_rows,
            group: &BlockGroup {
                slots: &all_slots,
                sequences: &sequences,
            },
        };
        self.model
            .forward_mtp_cached(self.device, &mut self.state, &mut self.cache, &batch);
        self.state.logits().to_vec()
    }
}

fn assert_same_bits(got: &[f32], expected: &[f32], what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let differing = got
        .iter()
        .zip(expected)
        .position(|(a, b)| a.to_bits() != b.to_bits());
    assert_eq!(differing, None, "{what}");
}

#[test]
fn the_prediction_layer_in_chunks_gives_the_bits_of_training_after_any_guesses() {
    let all = sequences(&[LEN, 2, 67]);
    for (compute, window) in [
        (Compute::F32, None),
        (Compute::Bf16, None),
        (Compute::F32, Some(5)),
        (Compute::Bf16, Some(70)),
    ] {
        let config = ModelConfig {
            mtp_sliding_window: window,
            ..tiny(compute)
        };
        let (d, v) = (config.hidden_size, config.vocab_size);
        let params = initial_weights(&config, &Layout::new(&config), 4);
        for isa in Isa::available() {
            let device = Device::cpu(isa, 2);
            let mut model = Transformer::new(&device, config.clone(), &params, true);
            let batch = Batch::from_sequences(&all);
            let mut state = model.train_state(&device, batch.ids.len());
            let (_, logits, _) = model.logits(&device, &mut state, &batch);
            let logits = logits.expect("the model has the layer");
            let mut start = 0;
            // The last token of a sequence has none after it.
            let expected: Vec<&[f32]> = all
                .iter()
                .map(|ids| {
                    start += ids.len();
                    &logits.host()[(start - ids.len()) * v..(start - 1) * v]
                })
                .collect();
            let name = format!("{} {compute:?} {window:?}", isa.name());
            let mut model = Transformer::new(&device, config.clone(), &params, false);
            let mut served = Served::new(&device, &mut model, &all);
            let hidden = served.hidden.clone();
            let mut rng = Rng::new(3, "chunks");
            let mut done = [0; 3];
            let mut got = vec![vec![]; 3];
            while done[0] < LEN - 1 {
                let mut parts = Vec::new();
                for (s, ids) in all.iter().enumerate() {
                    let n = (1 + rng.below(20)).min(ids.len() - 1 - done[s]);
                    if n > 0 {
                        let (from, to) = (done[s], done[s] + n);
                        let h = &hidden[s][from * d..to * d];
                        parts.push((s, from, &ids[from + 1..=to], h));
                    }
                }
                let rows = served.predict(&parts);
                let last = served.state.hidden().to_vec();
                let mut row = 0;
                let mut guesses = Vec::new();
                for &(s, from, ids, _) in &parts {
                    got[s].extend_from_slice(&rows[row * v..(row + ids.len()) * v]);
                    row += ids.len();
                    done[s] = from + ids.len();
                    // Two guesses that nobody will ever confirm, where there are positions for them.
                    if done[s] + 2 < LEN.min(served.tables[s].len() * KV_BLOCK) {
                        guesses.push((s, done[s], last[(row - 1) * d..row * d].to_vec()));
                    }
                }
                for further in 0..2 {
                    let parts: Vec<(usize, usize, &[u32], &[f32])> = guesses
                        .iter()
                        .map(|(s, at, h)| (*s, at + further, &[7u32][..], h.as_slice()))
                        .collect();
                    if parts.is_empty() {
                        break;
                    }
                    served.predict(&parts);
                    let own = served.state.hidden().to_vec();
                    for (guess, h) in guesses.iter_mut().zip(own.chunks_exact(d)) {
                        guess.2 = h.to_vec();
                    }
                }
            }
            for (s, (got, expected)) in got.iter().zip(&expected).enumerate() {
                assert_same_bits(got, expected, &format!("{name}, sequence {s}"));
            }
        }
    }
}

#[test]
fn a_further_guess_is_a_row_with_the_layers_own_output() {
    let all = sequences(&[80]);
    let config = tiny(Compute::F32);
    let (d, v) = (config.hidden_size, config.vocab_size);
    let params = initial_weights(&config, &Layout::new(&config), 4);
    let device = Device::cpu(Isa::detect(), 1);
    let mut model = Transformer::new(&device, config, &params, false);
    let mut served = Served::new(&device, &mut model, &all);
    let ids = &all[0];
    let h = served.hidden[0][..70 * d].to_vec();
    served.predict(&[(0, 0, &ids[1..=70], &h)]);
    let own = served.state.hidden()[69 * d..].to_vec();
    let alone = served.predict(&[(0, 70, &[9], &own)]);
    // The same row at the end of a pass over everything, and another row where the output is another.
    let next: Vec<u32> = ids[1..=70].iter().copied().chain([9]).collect();
    let together = served.predict(&[(0, 0, &next, &[h.clone(), own].concat())]);
    assert_same_bits(&alone, &together[70 * v..], "one guess further");
    let main = served.hidden[0][70 * d..71 * d].to_vec();
    assert!(served.predict(&[(0, 70, &[9], &main)]) != alone);
}
