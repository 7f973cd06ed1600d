//! Serving against training: the same bits, however the rows of a sequence are cut and mixed.

use crate::determinism::{sequences, tiny};
use dokja_model::ModelConfig;
use dokja_model::config::Compute;
use dokja_model::decode::{BlockGroup, CachedBatch, DecodeState, KvCache};
use dokja_model::init::initial_weights;
use dokja_model::transformer::{Batch, Transformer};
use dokja_model::weights::Layout;
use kernels_cpu::Isa;
use numerics::Rng;
use tensor::Device;
use tensor::ops::attention::{CachedSequence, KV_BLOCK};

const PASSED: u32 = u32::MAX;

/// A model with a cache whose blocks are handed out in a random order.
struct Served<'a> {
    device: &'a Device,
    model: &'a mut Transformer,
    cache: KvCache,
    state: DecodeState,
    windows: [Option<usize>; 2], // of the groups
    free: [Vec<u32>; 2],         // for each group
    tables: Vec<[Vec<u32>; 2]>,  // for each sequence and group
    num_computed: Vec<usize>,    // for each sequence
    logits: Vec<Vec<Vec<f32>>>,  // for each sequence, a row for each position
}

impl<'a> Served<'a> {
    fn new(device: &'a Device, model: &'a mut Transformer, num_seqs: usize, len: usize) -> Self {
        let config = &model.config;
        let num_blocks = num_seqs * len.div_ceil(KV_BLOCK) + 1;
        let layers: Vec<(usize, usize)> = (0..config.num_hidden_layers)
            .map(|l| (usize::from(config.window(l).is_none()), num_blocks))
            .collect();
        let mut rng = Rng::new(9, "blocks");
        let mut shuffled = || {
            let mut blocks: Vec<u32> = (0..num_blocks as u32).collect();
            for i in (1..blocks.len()).rev() {
                blocks.swap(i, rng.below(i + 1));
            }
            blocks
        };
        Served {
            free: [shuffled(), shuffled()],
            windows: [config.window(0), None],
            cache: KvCache::new(device, config, &layers),
            state: model.decode_state(device),
            device,
            model,
            tables: vec![Default::default(); num_seqs],
            num_computed: vec![0; num_seqs],
            logits: vec![Vec::new(); num_seqs],
        }
    }

    /// The next `n` rows of each `(sequence, n)`, in one step, all their logits wanted.
    fn step(&mut self, sequences: &[Vec<u32>], parts: &[(usize, usize)]) {
        let (mut ids, mut positions, mut slots) = (vec![], vec![], [vec![], vec![]]);
        for &(s, n) in parts {
            let span = self.num_computed[s]..self.num_computed[s] + n;
            ids.extend(&sequences[s][span.clone()]);
            positions.extend(span.clone().map(|p| p as u32));
            for (g, table) in self.tables[s].iter_mut().enumerate() {
                while table.len() * KV_BLOCK < span.end {
                    table.push(self.free[g].pop().expect("enough blocks"));
                }
                slots[g].extend(
                    span.clone()
                        .map(|p| table[p / KV_BLOCK] * KV_BLOCK as u32 + (p % KV_BLOCK) as u32),
                );
            }
        }
        let seqs = [0, 1].map(|g: usize| {
            let mut start = 0;
            let part = |&(s, n): &(usize, usize)| {
                start += n;
                CachedSequence {
                    rows: start - n..start,
                    first_pos: self.num_computed[s],
                    block_table: &self.tables[s][g],
                }
            };
            parts.iter().map(part).collect::<Vec<_>>()
        });
        let logit_rows: Vec<u32> = (0..ids.len() as u32).collect();
        let batch = CachedBatch {
            ids: &ids,
            positions: &positions,
            logit_rows: &logit_rows,
            groups: &[0, 1].map(|g| BlockGroup {
                slots: &slots[g],
                sequences: &seqs[g],
            }),
        };
        self.model
            .forward_cached(self.device, &mut self.state, &mut self.cache, &batch);
        let mut rows = self
            .state
            .logits()
            .chunks_exact(self.model.config.vocab_size);
        for &(s, n) in parts {
            self.logits[s].extend(rows.by_ref().take(n).map(<[f32]>::to_vec));
            self.num_computed[s] += n;
            // What the window has passed is given to somebody else.
            for (g, table) in self.tables[s].iter_mut().enumerate() {
                let Some(window) = self.windows[g] else {
                    continue;
                };
                let oldest = (self.num_computed[s] + 1).saturating_sub(window);
                for block in &mut table[..oldest / KV_BLOCK] {
                    if *block != PASSED {
                        self.free[g].push(std::mem::replace(block, PASSED));
                    }
                }
            }
        }
    }
}

/// All sequences at once, each in chunks of a size that changes.
fn in_company(served: &mut Served, sequences: &[Vec<u32>]) {
    let mut rng = Rng::new(3, "chunks");
    loop {
        let left = |s: usize| sequences[s].len() - served.num_computed[s];
        let parts: Vec<(usize, usize)> = (0..sequences.len())
            .filter(|&s| left(s) > 0)
            .map(|s| (s, (1 + rng.below(40)).min(left(s))))
            .collect();
        if parts.is_empty() {
            return;
        }
        served.step(sequences, &parts);
    }
}

fn assert_same_bits(got: &[Vec<Vec<f32>>], expected: &[Vec<Vec<f32>>], what: &str) {
    for (s, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert_eq!(got.len(), expected.len(), "{what}");
        for (position, (got, expected)) in got.iter().zip(expected).enumerate() {
            let same = got
                .iter()
                .zip(expected)
                .all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "{what}: sequence {s}, position {position}");
        }
    }
}

#[test]
fn training_prefill_in_chunks_and_decode_give_the_same_bits() {
    let all = sequences(&[70, 1, 9, 201, 128]);
    for (compute, window) in [
        (Compute::F32, 3),
        (Compute::F32, 65),
        (Compute::Bf16, 17),
        (Compute::Bf16, 128),
    ] {
        let config = ModelConfig {
            sliding_windows: vec![Some(window), Some(window), Some(window), None],
            ..tiny(compute)
        };
        let params = initial_weights(&config, &Layout::new(&config), 2);
        for isa in Isa::available() {
            let device = Device::cpu(isa, 2);
            let mut model = Transformer::new(&device, config.clone(), &params, true);
            let batch = Batch::from_sequences(&all);
            let mut state = model.train_state(&device, batch.ids.len());
            let (logits, ..) = model.logits(&device, &mut state, &batch);
            let mut rows = logits.host().chunks_exact(config.vocab_size);
            let expected: Vec<Vec<Vec<f32>>> = all
                .iter()
                .map(|s| rows.by_ref().take(s.len()).map(<[f32]>::to_vec).collect())
                .collect();
            for threads in [1, 2, 3] {
                let name = format!("{} {compute:?} {window} {threads} threads", isa.name());
                let device = Device::cpu(isa, threads);
                let mut model = Transformer::new(&device, config.clone(), &params, false);
                let mut served = Served::new(&device, &mut model, all.len(), 201);
                in_company(&mut served, &all);
                assert_same_bits(&served.logits, &expected, &format!("{name}, in company"));
                // Alone, a first chunk and the size of all others: one by one, within a block, at its
                // border, over several, all at once, and a prompt that is then continued.
                let chunks = [(1, 1), (13, 13), (64, 64), (201, 0), (100, 100), (190, 1)];
                let used = if threads == 1 {
                    &chunks[..]
                } else {
                    &chunks[4..]
                };
                for &(first, other) in used {
                    let mut served = Served::new(&device, &mut model, 1, 201);
                    served.step(&all[3..4], &[(0, first)]);
                    while served.num_computed[0] < 201 {
                        let n = other.min(201 - served.num_computed[0]);
                        served.step(&all[3..4], &[(0, n)]);
                    }
                    let what = format!("{name}, chunks of {first} and {other}");
                    assert_same_bits(&served.logits, &expected[3..4], &what);
                }
            }
        }
    }
}

#[test]
fn only_the_wanted_rows_have_logits_and_losses() {
    let ids = sequences(&[20]).remove(0);
    let config = tiny(Compute::F32);
    let params = initial_weights(&config, &Layout::new(&config), 5);
    let device = Device::cpu(Isa::detect(), 2);
    let mut model = Transformer::new(&device, config.clone(), &params, false);
    let mut cache = KvCache::new(&device, &config, &[(0, 1); 4]);
    let mut state = model.decode_state(&device);
    let positions: Vec<u32> = (0..20).collect();
    let mut run = |logit_rows: &[u32]| {
        let sequences = [CachedSequence {
            rows: 0..20,
            first_pos: 0,
            block_table: &[0],
        }];
        let batch = CachedBatch {
            ids: &ids,
            positions: &positions,
            logit_rows,
            groups: &[BlockGroup {
                slots: &positions,
                sequences: &sequences,
            }],
        };
        model.forward_cached(&device, &mut state, &mut cache, &batch);
        let logits = state.logits().to_vec();
        let targets: Vec<u32> = logit_rows
            .iter()
            .map(|&r| ids[(r as usize + 1) % 20])
            .collect();
        (logits, state.losses(&device, &targets).to_vec())
    };
    let (all, losses) = run(&positions);
    let (some, some_losses) = run(&[4, 5, 19]);
    let rows = |rows: [usize; 3]| rows.map(|r| all[r * 61..(r + 1) * 61].to_vec()).concat();
    assert!(some == rows([4, 5, 19]));
    assert!(some_losses == [losses[4], losses[5], losses[19]]);
    assert!(run(&[]).0.is_empty());
    let row: Vec<f64> = all[4 * 61..5 * 61].iter().map(|&z| f64::from(z)).collect();
    let loss = row.iter().map(|z| z.exp()).sum::<f64>().ln() - row[ids[5] as usize];
    assert!((f64::from(losses[4]) - loss).abs() < 1e-5);
}
