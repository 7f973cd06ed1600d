//! A model whose logits are a hash of everything its layers can see.
//!
//! Each layer stores, at the slot of a row, a mixture of token, position and layer; a query folds what
//! it reads through the block tables, in order, over the positions its window shows. A wrong slot, a
//! block that another sequence overwrote, a block freed too early or a window off by one changes the
//! logits. [`expected_logits`] computes the same from the tokens alone.

use dokja_infer::{KV_BLOCK, KvGroup, NO_BLOCK, Runner, StepBatch};
use std::collections::HashSet;

pub(crate) const VOCAB: usize = 37;

pub(crate) struct HashingModel {
    pub(crate) windows: Vec<Option<usize>>,
    pub(crate) max_positions: usize,
    groups: Vec<KvGroup>,
    layers: Vec<Vec<u64>>, // slot -> stored value
}

impl HashingModel {
    pub(crate) fn new(windows: &[Option<usize>], max_positions: usize) -> HashingModel {
        HashingModel {
            windows: windows.to_vec(),
            max_positions,
            groups: Vec::new(),
            layers: vec![Vec::new(); windows.len()],
        }
    }

    fn check(&self, batch: &StepBatch) {
        assert_eq!(batch.ids.len(), batch.positions.len());
        assert_eq!(batch.groups.len(), self.groups.len());
        let mut row = 0;
        for sequence in &batch.sequences {
            assert_eq!(sequence.rows.start, row, "rows are packed");
            row = sequence.rows.end;
            for (pos, row) in (sequence.first_pos..).zip(sequence.rows.clone()) {
                assert_eq!(batch.positions[row], pos);
            }
        }
        assert_eq!(row, batch.ids.len(), "every row belongs to a sequence");
        for g in 0..self.groups.len() {
            let mut owned = HashSet::new();
            for seq in 0..batch.sequences.len() {
                for &block in batch
                    .block_table(seq, g)
                    .iter()
                    .filter(|&&block| block != NO_BLOCK)
                {
                    assert!((block as usize) < self.groups[g].num_blocks);
                    assert!(owned.insert(block), "block {block} has two owners");
                }
            }
        }
    }
}

impl Runner for HashingModel {
    fn vocab_size(&self) -> usize {
        VOCAB
    }

    fn max_positions(&self) -> usize {
        self.max_positions
    }

    fn layer_windows(&self) -> &[Option<usize>] {
        &self.windows
    }

    fn init_kv(&mut self, groups: &[KvGroup]) {
        self.groups = groups.to_vec();
        for group in groups {
            for &layer in &group.layers {
                assert_eq!(self.windows[layer], group.window);
                self.layers[layer] = vec![u64::MAX; group.num_blocks * KV_BLOCK];
            }
        }
    }

    fn forward(&mut self, batch: &StepBatch, logits: &mut [f32]) {
        self.check(batch);
        for (g, group) in self.groups.iter().enumerate() {
            for &layer in &group.layers {
                for (row, &slot) in batch.groups[g].slots.iter().enumerate() {
                    self.layers[layer][slot as usize] =
                        stored(layer, batch.ids[row], batch.positions[row] as usize);
                }
            }
        }
        for (&row, z) in batch.logit_rows.iter().zip(logits.chunks_exact_mut(VOCAB)) {
            let row = row as usize;
            let seq = batch
                .sequences
                .iter()
                .position(|seq| seq.rows.contains(&row));
            let seq = seq.expect("a wanted row belongs to a sequence");
            let pos = batch.positions[row] as usize;
            let mut state = 0;
            for (layer, &window) in self.windows.iter().enumerate() {
                let g = self
                    .groups
                    .iter()
                    .position(|group| group.layers.contains(&layer));
                let table = batch.block_table(seq, g.expect("every layer has a group"));
                for visible in first_visible(pos, window)..=pos {
                    let block = table[visible / KV_BLOCK];
                    assert_ne!(block, NO_BLOCK, "position {visible} was freed before {pos}");
                    let slot = block as usize * KV_BLOCK + visible % KV_BLOCK;
                    state = mix(state ^ self.layers[layer][slot]);
                }
            }
            write_logits(state, z);
        }
    }
}

/// The logits after `ids`, without any cache.
pub(crate) fn expected_logits(ids: &[u32], windows: &[Option<usize>]) -> Vec<f32> {
    let pos = ids.len() - 1;
    let mut state = 0;
    for (layer, &window) in windows.iter().enumerate() {
        for visible in first_visible(pos, window)..=pos {
            state = mix(state ^ stored(layer, ids[visible], visible));
        }
    }
    let mut logits = vec![0.0; VOCAB];
    write_logits(state, &mut logits);
    logits
}

fn first_visible(pos: usize, window: Option<usize>) -> usize {
    window.map_or(0, |window| (pos + 1).saturating_sub(window))
}

fn stored(layer: usize, id: u32, pos: usize) -> u64 {
    mix((layer as u64) << 48 ^ u64::from(id) << 24 ^ pos as u64)
}

fn write_logits(state: u64, logits: &mut [f32]) {
    for (id, z) in logits.iter_mut().enumerate() {
        *z = (mix(state ^ (id as u64 + 1)) >> 40) as f32 / (1 << 22) as f32;
    }
}

/// The finaliser of splitmix64 (Steele, Lea, Flood 2014).
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
