//! The key-value cache as blocks of 64 positions: who owns which block.
//!
//! Layers with the same window form a group; all layers of a group use the same block ids, each in its
//! own storage. A global group keeps every position. A group with window w keeps only what a later
//! query can still see: before the query at position p, a block whose last position is below
//! p + 1 - w is given back, so that the cache of a sliding layer does not grow with the sequence.
//!
//! Pure bookkeeping: no storage, no kernels. Driven by scripts in the tests below and through the
//! engine in `tests/it`.

/// Positions in a block; the attention kernels are written for the same number.
pub const KV_BLOCK: usize = 64;

/// The most blocks of a layer: slots, block * 64 + offset, are u32.
pub(crate) const MAX_KV_BLOCKS: usize = 1 << 26;

/// The entry of a block table whose block the window has passed.
pub const NO_BLOCK: u32 = u32::MAX;

/// Layers that share block tables, and the number of blocks each of them must have room for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvGroup {
    /// Keys a query sees, itself included; `None` sees all.
    pub window: Option<usize>,
    /// Indices of the layers, ascending.
    pub layers: Vec<usize>,
    /// Blocks of every layer of the group.
    pub num_blocks: usize,
}

/// The blocks of one group that nobody owns.
#[derive(Debug)]
pub(crate) struct BlockPool {
    free: Vec<u32>,
    is_owned: Vec<bool>,
}

impl BlockPool {
    pub(crate) fn new(num_blocks: usize) -> BlockPool {
        let count = u32::try_from(num_blocks).expect("fewer blocks than block ids");
        BlockPool {
            free: (0..count).rev().collect(),
            is_owned: vec![false; num_blocks],
        }
    }

    pub(crate) fn num_free(&self) -> usize {
        self.free.len()
    }

    pub(crate) fn num_blocks(&self) -> usize {
        self.is_owned.len()
    }

    fn alloc(&mut self) -> Option<u32> {
        let block = self.free.pop()?;
        assert!(
            !self.is_owned[block as usize],
            "kv blocks: block {block} was already owned"
        );
        self.is_owned[block as usize] = true;
        Some(block)
    }

    fn free(&mut self, block: u32) {
        assert!(
            self.is_owned[block as usize],
            "kv blocks: block {block} was already free"
        );
        self.is_owned[block as usize] = false;
        self.free.push(block);
    }
}

/// The blocks of one sequence in one group.
#[derive(Clone, Debug, Default)]
pub(crate) struct BlockTable {
    blocks: Vec<u32>, // logical block -> physical block, NO_BLOCK where the window has passed
    num_passed: usize, // leading entries that are NO_BLOCK
}

impl BlockTable {
    pub(crate) fn blocks(&self) -> &[u32] {
        &self.blocks
    }
}

/// All groups and their pools.
#[derive(Debug)]
pub(crate) struct KvBlocks {
    groups: Vec<KvGroup>,
    pools: Vec<BlockPool>,
}

impl KvBlocks {
    /// Groups the layers by window. `num_blocks` is the room of a global group; a sliding group gets
    /// what `max_num_seqs` windows, each longer by `slack` positions, and one step of `max_num_batched_tokens`
    /// can hold at most.
    pub(crate) fn new(
        layer_windows: &[Option<usize>],
        num_blocks: usize,
        max_num_seqs: usize,
        slack: usize,
        max_num_batched_tokens: usize,
    ) -> KvBlocks {
        let mut groups: Vec<KvGroup> = Vec::new();
        for (layer, &window) in layer_windows.iter().enumerate() {
            match groups.iter_mut().find(|group| group.window == window) {
                Some(group) => group.layers.push(layer),
                None => groups.push(KvGroup {
                    window,
                    layers: vec![layer],
                    num_blocks,
                }),
            }
        }
        for group in &mut groups {
            if let Some(window) = group.window {
                // n consecutive positions touch at most n / 64 + 2 blocks; a sequence holds its
                // window and the rows of the step, and all rows together are the step's tokens.
                let bound = max_num_seqs
                    .saturating_mul(window.saturating_add(slack).div_ceil(KV_BLOCK) + 2)
                    .saturating_add(max_num_batched_tokens.div_ceil(KV_BLOCK));
                group.num_blocks = num_blocks.min(bound);
            }
        }
        let pools = groups
            .iter()
            .map(|group| BlockPool::new(group.num_blocks))
            .collect();
        KvBlocks { groups, pools }
    }

    pub(crate) fn groups(&self) -> &[KvGroup] {
        &self.groups
    }

    pub(crate) fn pools(&self) -> &[BlockPool] {
        &self.pools
    }

    pub(crate) fn new_tables(&self) -> Vec<BlockTable> {
        vec![BlockTable::default(); self.groups.len()]
    }

    /// Gives `tables` room for positions `0..len` in every group, or changes nothing and says no.
    pub(crate) fn grow(&mut self, tables: &mut [BlockTable], len: usize) -> bool {
        let wanted = len.div_ceil(KV_BLOCK);
        let has_room = tables
            .iter()
            .zip(&self.pools)
            .all(|(table, pool)| wanted.saturating_sub(table.blocks.len()) <= pool.num_free());
        if !has_room {
            return false;
        }
        for (table, pool) in tables.iter_mut().zip(&mut self.pools) {
            while table.blocks.len() < wanted {
                table
                    .blocks
                    .push(pool.alloc().expect("room was checked for every group"));
            }
        }
        true
    }

    /// Whether a global group has room for `len` more positions.
    pub(crate) fn has_room_for_all(&self, len: usize) -> bool {
        self.groups.iter().zip(&self.pools).all(|(group, pool)| {
            group.window.is_some() || len.div_ceil(KV_BLOCK) <= pool.num_free()
        })
    }

    /// Gives back the blocks that no query at `next_pos` or later can see.
    pub(crate) fn release_passed(&mut self, tables: &mut [BlockTable], next_pos: usize) {
        for ((table, pool), group) in tables.iter_mut().zip(&mut self.pools).zip(&self.groups) {
            let Some(window) = group.window else { continue };
            let first_visible = (next_pos + 1).saturating_sub(window);
            while (table.num_passed + 1) * KV_BLOCK <= first_visible {
                let entry = &mut table.blocks[table.num_passed];
                pool.free(std::mem::replace(entry, NO_BLOCK));
                table.num_passed += 1;
            }
        }
    }

    /// Gives back every block of a sequence.
    pub(crate) fn release_all(&mut self, tables: &mut [BlockTable]) {
        for (table, pool) in tables.iter_mut().zip(&mut self.pools) {
            for &block in &table.blocks[table.num_passed..] {
                pool.free(block);
            }
            *table = BlockTable::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_grouped_by_window() {
        let kv = KvBlocks::new(
            &[Some(128), Some(128), None, Some(128), None],
            100,
            2,
            0,
            64,
        );
        assert_eq!(kv.groups().len(), 2);
        assert_eq!(kv.groups()[0].layers, [0, 1, 3]);
        assert_eq!(kv.groups()[0].num_blocks, 2 * (2 + 2) + 1);
        assert_eq!(kv.groups()[1].layers, [2, 4]);
        assert_eq!(kv.groups()[1].num_blocks, 100);
    }

    #[test]
    fn a_sliding_group_keeps_exactly_the_visible_blocks() {
        let mut kv = KvBlocks::new(&[Some(100), None], 64, 1, 0, 1);
        let mut tables = kv.new_tables();
        for pos in 0..1000usize {
            assert!(kv.grow(&mut tables, pos + 1));
            kv.release_passed(&mut tables, pos + 1);
            let first_visible = (pos + 2).saturating_sub(100);
            for (logical, &block) in tables[0].blocks().iter().enumerate() {
                let last = logical * KV_BLOCK + KV_BLOCK - 1;
                assert_eq!(
                    block == NO_BLOCK,
                    last < first_visible,
                    "position {pos}, {logical}"
                );
            }
            assert!(tables[1].blocks().iter().all(|&block| block != NO_BLOCK));
        }
        assert!(kv.pools()[0].num_blocks() - kv.pools()[0].num_free() <= 3);
        kv.release_all(&mut tables);
        assert!(
            kv.pools()
                .iter()
                .all(|pool| pool.num_free() == pool.num_blocks())
        );
    }

    #[test]
    fn growing_without_room_changes_nothing() {
        let mut kv = KvBlocks::new(&[None, Some(64)], 3, 4, 0, 512);
        let (mut a, mut b) = (kv.new_tables(), kv.new_tables());
        assert!(kv.grow(&mut a, 65));
        assert!(!kv.grow(&mut b, 129));
        assert!(b.iter().all(|table| table.blocks().is_empty()));
        assert!(kv.grow(&mut b, 64));
        assert_eq!(kv.pools()[0].num_free(), 0);
    }

    #[test]
    #[should_panic(expected = "already free")]
    fn giving_a_block_back_twice_is_a_bug() {
        let mut pool = BlockPool::new(2);
        let block = pool.alloc().expect("two blocks are free");
        pool.free(block);
        pool.free(block);
    }
}
