//! A model whose logits are a hash of everything its layers can see.
//!
//! Each layer stores, at the slot of a row, a mixture of token, position and layer; a query folds what
//! it reads through the block tables, in order, over the positions its window shows. A wrong slot, a
//! block that another sequence overwrote, a block freed too early or a window off by one changes the
//! logits. [`expected_logits`] computes the same from the tokens alone.
//!
//! It may have a draft layer. Its cache holds ids and positions as they are, so that the layer knows the text
//! it is asked about: it checks that hidden states are those of the text, and guesses right except where it is
//! told not to. A layer with a window does not know the text, and guesses at random.

use dokja_infer::{DraftLayer, KV_BLOCK, KvGroup, NO_BLOCK, Runner, StepBatch, StepCost};
use std::collections::HashSet;

pub(crate) const VOCAB: usize = 37;

pub(crate) struct HashingModel {
    pub(crate) windows: Vec<Option<usize>>,
    pub(crate) max_positions: usize,
    groups: Vec<KvGroup>,
    layers: Vec<Vec<u64>>, // slot -> stored value
    draft: Option<Draft>,
    hidden: Vec<f32>, // (T, HIDDEN) of the last step
}

/// A draft layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Draft {
    pub(crate) window: Option<usize>,
    /// Of so many guesses about one is wrong; 0 is none.
    pub(crate) wrong_every: u64,
}

/// Three parts of the hash of what a row sees, and the first token of its text.
const HIDDEN: usize = 4;

impl HashingModel {
    pub(crate) fn with_draft(mut self, draft: Draft) -> HashingModel {
        self.draft = Some(draft);
        self.layers.push(Vec::new());
        self
    }

    pub(crate) fn new(windows: &[Option<usize>], max_positions: usize) -> HashingModel {
        HashingModel {
            windows: windows.to_vec(),
            max_positions,
            groups: Vec::new(),
            layers: vec![Vec::new(); windows.len()],
            draft: None,
            hidden: Vec::new(),
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
                let draft = self.draft.map(|draft| draft.window);
                let window = self.windows.get(layer).copied().or(draft);
                assert_eq!(window, Some(group.window));
                self.layers[layer] = vec![u64::MAX; group.num_blocks * KV_BLOCK];
            }
        }
    }

    fn forward(&mut self, batch: &StepBatch, logits: &mut [f32]) {
        self.check(batch);
        for (g, group) in self.groups.iter().enumerate() {
            for &layer in group.layers.iter().filter(|&&l| l < self.windows.len()) {
                for (row, &slot) in batch.groups[g].slots.iter().enumerate() {
                    self.layers[layer][slot as usize] =
                        stored(layer, batch.ids[row], batch.positions[row] as usize);
                }
            }
        }
        let mut states = Vec::new();
        for seq in 0..batch.sequences.len() {
            for row in batch.sequences[seq].rows.clone() {
                let pos = batch.positions[row] as usize;
                let mut state = 0;
                for (layer, &window) in self.windows.iter().enumerate() {
                    let g = self.group_of(layer).expect("every layer has a group");
                    for slot in visible_slots(batch, seq, g, pos, window) {
                        state = mix(state ^ self.layers[layer][slot]);
                    }
                }
                states.push(state);
            }
        }
        for (&row, z) in batch.logit_rows.iter().zip(logits.chunks_exact_mut(VOCAB)) {
            write_logits(states[row as usize], z);
        }
        self.hidden.clear();
        for seq in &batch.sequences {
            for row in seq.rows.clone() {
                // Only a step that reads the first token knows it: later ones find it in the cache of the layer.
                let first = match seq.first_pos {
                    0 => batch.ids[seq.rows.start],
                    _ => UNKNOWN,
                };
                self.hidden.extend(hidden_of(states[row], first));
            }
        }
    }

    fn draft_layer(&self) -> Option<DraftLayer> {
        self.draft.map(|draft| DraftLayer {
            window: draft.window,
            hidden_size: HIDDEN,
            cost: StepCost {
                num_layers: 10.0,
                ..StepCost::default()
            },
        })
    }

    fn hidden(&mut self) -> &[f32] {
        &self.hidden
    }

    fn draft(
        &mut self,
        batch: &StepBatch,
        hidden: &[f32],
        logits: &mut [f32],
        hidden_out: &mut [f32],
    ) {
        self.check(batch);
        let draft = self.draft.expect("asked of a model with the layer");
        let layer = self.windows.len();
        let g = self.group_of(layer).expect("the layer has a group");
        let mut out = logits
            .chunks_exact_mut(VOCAB)
            .zip(hidden_out.chunks_exact_mut(HIDDEN));
        for seq in 0..batch.sequences.len() {
            for row in batch.sequences[seq].rows.clone() {
                let pos = batch.positions[row] as usize;
                let hidden = &hidden[row * HIDDEN..(row + 1) * HIDDEN];
                let slots = visible_slots(batch, seq, g, pos, draft.window);
                // The first token is kept beside the second.
                let first = match pos {
                    0 => hidden[HIDDEN - 1] as u64,
                    _ => 0,
                };
                let own = (first << 48) | (pos as u64) << 24 | u64::from(batch.ids[row]);
                self.layers[layer][*slots.last().expect("a row sees itself")] = own;
                let seen: Vec<u64> = slots.iter().map(|&slot| self.layers[layer][slot]).collect();
                for (back, value) in seen.iter().rev().enumerate() {
                    assert_eq!((value >> 24) & 0xff_ffff, (pos - back) as u64, "position");
                }
                let (state, next) = match draft.window {
                    Some(_) => (seen.iter().fold(0, |s, &v| mix(s ^ v)), 0),
                    None => {
                        let mut ids = vec![(seen[0] >> 48) as u32];
                        ids.extend(seen.iter().map(|value| (value & 0xff_ffff) as u32));
                        let here = state_of(&ids[..ids.len() - 1], &self.windows);
                        let expected = &hidden_of(here, 0)[..HIDDEN - 1];
                        assert_eq!(hidden[..HIDDEN - 1], *expected, "hidden state at {pos}");
                        let next = state_of(&ids, &self.windows);
                        let is_wrong = draft.wrong_every > 0
                            && mix(next ^ 77).is_multiple_of(draft.wrong_every);
                        (if is_wrong { mix(next) } else { next }, next)
                    }
                };
                if batch.logit_rows.contains(&(row as u32)) {
                    let (z, hidden) = out.next().expect("room for the rows that are wanted");
                    write_logits(state, z);
                    hidden.copy_from_slice(&hidden_of(next, UNKNOWN));
                }
            }
        }
    }
}

impl HashingModel {
    fn group_of(&self, layer: usize) -> Option<usize> {
        self.groups
            .iter()
            .position(|group| group.layers.contains(&layer))
    }
}

const UNKNOWN: u32 = VOCAB as u32;

fn hidden_of(state: u64, first: u32) -> [f32; HIDDEN] {
    let part = |shift: u32| ((state >> shift) & 0x3f_ffff) as f32;
    [part(0), part(22), part(42), first as f32]
}

/// Slots of the positions that the query at `pos` sees in a group.
fn visible_slots(
    batch: &StepBatch,
    seq: usize,
    group: usize,
    pos: usize,
    window: Option<usize>,
) -> Vec<usize> {
    let table = batch.block_table(seq, group);
    (first_visible(pos, window)..=pos)
        .map(|visible| {
            let block = table[visible / KV_BLOCK];
            assert_ne!(block, NO_BLOCK, "position {visible} was freed before {pos}");
            block as usize * KV_BLOCK + visible % KV_BLOCK
        })
        .collect()
}

/// The logits after `ids`, without any cache.
pub(crate) fn expected_logits(ids: &[u32], windows: &[Option<usize>]) -> Vec<f32> {
    let mut logits = vec![0.0; VOCAB];
    write_logits(state_of(ids, windows), &mut logits);
    logits
}

/// What the last of `ids` sees.
fn state_of(ids: &[u32], windows: &[Option<usize>]) -> u64 {
    let pos = ids.len() - 1;
    let mut state = 0;
    for (layer, &window) in windows.iter().enumerate() {
        for visible in first_visible(pos, window)..=pos {
            state = mix(state ^ stored(layer, ids[visible], visible));
        }
    }
    state
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
