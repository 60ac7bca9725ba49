//! Private pools, and going back in them.

use std::collections::{BTreeMap, HashSet};

use plugalloc::Checkpoint;
use plugalloc::error::{CheckpointFault, Error};
use plugalloc::units::{Address, PoolId, StreamId};

use super::graphs::Graph;
use super::{Block, Storm};
use crate::common::GPU;

/// A pool of the program, or none yet.
#[derive(Debug)]
pub(super) struct Pool {
    pub(super) id: PoolId,
    /// Tells it from others that had this id.
    pub(super) number: u64,
    pub(super) uses: u32,
    /// The streams whose allocations go there, and when it was opened.
    pub(super) open: Option<(u64, Vec<StreamId>)>,
    pub(super) graphs: Vec<Graph>,
    pub(super) use_on_oom: bool,
    pub(super) no_split: bool,
    /// A stream of the program, behind all work in the pool's memory: graphs run after that.
    fence: StreamId,
    /// With the pool's number then.
    saved: Vec<(u64, Checkpoint, BTreeMap<Address, Block>)>,
}

impl Pool {
    pub(super) fn new(at: u64) -> Pool {
        Pool {
            id: if at == 0 { PoolId(0, 1) } else { PoolId(at, 0) },
            number: at,
            uses: 0,
            open: None,
            graphs: Vec::new(),
            use_on_oom: false,
            no_split: false,
            fence: StreamId(0xf000 + at),
            saved: Vec::new(),
        }
    }
}

impl Storm {
    /// Work in a pool's memory was queued on a stream.
    pub(super) fn join(&self, pool: usize, stream: StreamId) {
        self.order(stream, self.pools[pool].fence);
    }

    /// Work in a pool's memory is about to be.
    pub(super) fn fork(&self, pool: usize, stream: StreamId) {
        self.order(self.pools[pool].fence, stream);
    }

    pub(super) fn join_all(&self, stream: StreamId) {
        (0..self.pools.len()).for_each(|at| self.join(at, stream));
    }

    /// The pool to which allocations on a stream go: the one that was opened last.
    pub(super) fn pool_for(&self, stream: StreamId) -> Option<usize> {
        let of = |at: &usize| self.pools[*at].open.as_ref().map(|(when, _)| *when);
        let wants = |at: &usize| {
            self.pools[*at].open.as_ref().is_some_and(|(_, names)| names.contains(&stream))
        };
        (0..self.pools.len()).filter(wants).max_by_key(of)
    }

    /// The pool in whose memory something new lies.
    pub(super) fn pool_of(&self, at: Address, stream: StreamId) -> Option<(usize, u64)> {
        let sure = self.pool_for(stream);
        let lends = |place: &usize| {
            let pool = &self.pools[*place];
            pool.uses > 0 && pool.use_on_oom && !self.holds_exactly(*place, None)
        };
        let place = sure.or_else(|| (0..self.pools.len()).find(lends))?;
        assert!(self.holds_exactly(place, Some(at)), "{at:#x} is not in pool {place}");
        Some((place, self.pools[place].number))
    }

    /// Whether a pool in use holds what it should, and one more.
    pub(super) fn holds_exactly(&self, place: usize, more: Option<Address>) -> bool {
        let here = Some((place, self.pools[place].number));
        let of = self.live.iter().filter(|(_, block)| block.pool == here);
        let expected: HashSet<Address> = of.map(|(&at, _)| at).chain(more).collect();
        let id = self.pools[place].id;
        self.rig.allocator.pool_holds_exactly(GPU, id, &expected).unwrap()
    }

    pub(super) fn open(&mut self, at: usize, names: Vec<StreamId>) {
        let number = self.number();
        let pool = &mut self.pools[at];
        if pool.uses == 0 {
            let id = pool.id;
            let saved = std::mem::take(&mut pool.saved);
            *pool = Pool { id, number, saved, ..Pool::new(at as u64) };
            // Nothing orders what runs in this pool behind what ran in the last one.
            pool.fence = StreamId(0xf000_0000 + number);
        }
        pool.uses += 1;
        pool.open = Some((number, names.clone()));
        let id = pool.id;
        let filter = move |stream| names.contains(&stream);
        self.rig.allocator.begin_allocate_to_pool(GPU, id, filter).unwrap();
    }

    pub(super) fn open_or_close(&mut self) {
        let at = self.random.below(self.pools.len() as u64) as usize;
        if self.pools[at].open.is_some() {
            return self.close(at);
        }
        let chance = 1 + self.random.below(3);
        let lanes = 0..self.lanes.len();
        let names = lanes.filter(|_| self.random.below(3) < chance);
        let names: Vec<usize> = names.collect();
        // A capture that has begun goes on where it is.
        let free = names.into_iter().filter(|&lane| !self.is_capturing(lane));
        let names: Vec<StreamId> = free.map(|lane| self.lanes[lane].name).collect();
        self.open(at, names);
    }

    /// Allocations no longer go to a pool, unless one of its streams is being captured there.
    pub(super) fn close(&mut self, at: usize) {
        let capturing = |lane: &super::Lane| {
            lane.capture.as_ref().is_some_and(|capture| capture.pool == Some(at))
        };
        if self.pools[at].open.is_some() && !self.lanes.iter().any(capturing) {
            let id = self.pools[at].id;
            self.rig.allocator.end_allocate_to_pool(GPU, id).unwrap();
            self.pools[at].open = None;
        }
    }

    pub(super) fn release(&mut self) {
        let at = self.random.below(self.pools.len() as u64) as usize;
        let pool = &self.pools[at];
        if pool.uses > 1 || pool.uses == 1 && pool.open.is_none() {
            self.release_use(at);
        }
    }

    pub(super) fn release_use(&mut self, at: usize) {
        self.pools[at].uses -= 1;
        if self.pools[at].uses == 0 {
            let graphs = std::mem::take(&mut self.pools[at].graphs);
            graphs.into_iter().for_each(|graph| self.end_graph(graph));
            let here = Some((at, self.pools[at].number));
            let of = self.live.values_mut().filter(|block| block.pool == here);
            of.for_each(|block| block.pool = None);
        }
        let id = self.pools[at].id;
        self.rig.allocator.release_pool(GPU, id).unwrap();
        let uses = self.rig.allocator.pool_use_count(GPU, id).unwrap();
        assert_eq!(uses, self.pools[at].uses);
    }

    pub(super) fn change_pool(&mut self) {
        let at = self.random.below(self.pools.len() as u64) as usize;
        let (pool, flip) = (&mut self.pools[at], self.random.below(4));
        if pool.uses == 0 {
            return;
        }
        if flip > 0 {
            pool.use_on_oom = !pool.use_on_oom;
            self.rig.allocator.set_use_on_oom(GPU, pool.id, pool.use_on_oom).unwrap();
        } else if !self.global_capture {
            // Segments cannot be made while such a capture is under way.
            pool.no_split = true;
            self.rig.allocator.set_no_split(GPU, pool.id).unwrap();
        }
    }

    pub(super) fn save(&mut self) {
        let at = self.random.below(self.pools.len() as u64) as usize;
        let pool = &mut self.pools[at];
        let saved = self.rig.allocator.checkpoint_pool(GPU, pool.id);
        if pool.uses == 0 {
            assert!(saved.is_err());
            return;
        }
        let here = Some((at, pool.number));
        let of = self.live.iter().filter(|(_, block)| block.pool == here);
        let blocks = of.map(|(&at, block)| (at, block.clone())).collect();
        pool.saved.push((pool.number, saved.unwrap(), blocks));
        if pool.saved.len() > 4 {
            pool.saved.remove(self.random.below(4) as usize);
        }
    }

    pub(super) fn restore(&mut self) {
        let at = self.random.below(self.pools.len() as u64) as usize;
        let pool = &self.pools[at];
        let which = self.random.below(pool.saved.len().max(1) as u64) as usize;
        let Some((number, checkpoint, wanted)) = pool.saved.get(which).cloned() else { return };
        let restored = self.rig.allocator.restore_pool(GPU, &checkpoint);
        if pool.uses == 0 || pool.number != number {
            match restored {
                Err(Error::Checkpoint(error)) => {
                    assert_eq!(error.fault, CheckpointFault::PoolEnded, "{error}");
                }
                other => panic!("that pool has ended: {other:?}"),
            }
            self.pools[at].saved.remove(which);
            return;
        }
        match restored {
            Ok(delta) => {
                let mut allocated: Vec<_> = delta.allocated.iter().map(|b| b.address).collect();
                allocated.sort_unstable();
                assert_eq!(allocated, wanted.keys().copied().collect::<Vec<_>>());
                self.seen.restored += 1;
                self.go_back(at, wanted, delta.freed);
            }
            Err(Error::Checkpoint(error)) => {
                self.seen.restores_refused += 1;
                let block = self.live.get(&error.address);
                let right = match error.fault {
                    // One that waits for streams is not live.
                    CheckpointFault::InUseByStreams => block.is_none_or(|block| block.recorded),
                    CheckpointFault::Pinned => self.pins.iter().any(|pin| pin.0 == error.address),
                    CheckpointFault::Exported => block.is_some_and(|block| block.exported),
                    _ => false,
                };
                assert!(right, "{error}: {block:?}");
            }
            Err(error) => panic!("{error}"),
        }
        self.check();
    }

    /// The pool is as it was at a checkpoint.
    fn go_back(&mut self, at: usize, wanted: BTreeMap<Address, Block>, mut freed: Vec<Address>) {
        let here = Some((at, self.pools[at].number));
        let (before, rest): (BTreeMap<_, _>, BTreeMap<_, _>) =
            std::mem::take(&mut self.live).into_iter().partition(|(_, block)| block.pool == here);
        self.live = rest;
        freed.sort_unstable();
        assert_eq!(freed, before.keys().copied().collect::<Vec<_>>());
        for (address, mut block) in wanted {
            if let Some(old) = before.get(&address).filter(|old| old.served == block.served) {
                let value = old.value.filter(|_| old.requested == block.requested);
                let requested = block.requested;
                self.live.insert(address, Block { requested, value, ..old.clone() });
                continue;
            }
            self.imports.retain(|import| import.0 != address);
            (block.value, block.captured, block.exported) = (None, None, false);
            // They were recorded again, but know nothing of what is written now.
            block.users.clear();
            let (stream, served) = (block.stream, block.served);
            let owner = self.lane_of(block.life);
            self.live.insert(address, block);
            self.end_graphs_over(address, served);
            self.spoil_captures_over(address, served);
            if owner.is_some_and(|lane| !self.is_capturing(lane)) {
                self.fork(at, stream);
                self.write(address);
            }
        }
    }
}
