//! What tests of checkpoints share.

use std::collections::HashSet;

use plugalloc::units::{Address, PoolId, StreamId};
use plugalloc::{BlockInfo, Checkpoint};

use crate::common::{GPU, Rig};

pub(crate) const POOL: PoolId = PoolId(1, 0);

impl Rig {
    /// Opens a pool for everything on these streams.
    pub(crate) fn begin(&self, pool: PoolId, streams: &'static [StreamId]) {
        let filter = move |stream| streams.contains(&stream);
        self.allocator.begin_allocate_to_pool(GPU, pool, filter).unwrap();
    }

    /// Ends that, and the pool.
    pub(crate) fn end(&self, pool: PoolId) {
        self.allocator.end_allocate_to_pool(GPU, pool).unwrap();
        self.allocator.release_pool(GPU, pool).unwrap();
    }

    pub(crate) fn save(&self) -> Checkpoint {
        self.allocator.checkpoint_pool(GPU, POOL).unwrap()
    }

    pub(crate) fn holds(&self, pool: PoolId, expected: &[Address]) -> bool {
        let expected: HashSet<Address> = expected.iter().copied().collect();
        self.allocator.pool_holds_exactly(GPU, pool, &expected).unwrap()
    }
}

pub(crate) fn sorted<T: Ord>(values: impl IntoIterator<Item = T>) -> Vec<T> {
    let mut values: Vec<T> = values.into_iter().collect();
    values.sort_unstable();
    values
}

pub(crate) fn addresses(blocks: &[BlockInfo]) -> Vec<Address> {
    sorted(blocks.iter().map(|block| block.address))
}
