//! Checkpoints of private pools: what was live in one, and bringing it back.
//!
//! A pool that is in use keeps its memory, so that what lived in it once can live there again at
//! the same addresses, whatever has become of the memory since. Bringing it back looks at
//! everything first, with every heap of the pool locked, and changes nothing unless all of it can
//! be done. Then all that lives ends, and after that what is wanted lives again, so that peaks see
//! either what was live before or what is live afterwards. What is both keeps its block: its
//! contents, the streams that were recorded for it, its pins and exports.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use super::ipc::Ipc;
use super::pool_memory::Pool;
use super::pools::unknown;
use super::{Engine, Shard, flag};
use crate::error::{CheckpointError, CheckpointFault, Result};
use crate::heap::{BlockId, BlockView, Fate, Heap, Obstacle, State};
use crate::lock::MutexGuard;
use crate::observe::Context;
use crate::page_map::PageMap;
use crate::streams::{Deferred, Ticket};
use crate::units::{Address, DeviceId, PoolId, StreamId};

/// What was live in a pool. It keeps nothing alive.
#[derive(Clone, Debug)]
pub(crate) struct SavedPool {
    pub(crate) device: DeviceId,
    pub(crate) id: PoolId,
    /// Which pool of that id it was, and whose.
    pool: Weak<Pool>,
    allocator: Weak<PageMap<Shard>>,
    heaps: Vec<SavedHeap>,
    /// The streams that were recorded for blocks, by address.
    users: BTreeMap<Address, Vec<StreamId>>,
}

/// The live blocks of one heap, by address.
#[derive(Clone, Debug)]
struct SavedHeap {
    shard: u32,
    stream: StreamId,
    blocks: Vec<BlockView>,
}

/// What bringing a pool back has changed.
#[derive(Debug, Default)]
pub(crate) struct Restored {
    /// Everything that was live before.
    pub(crate) freed: Vec<Address>,
    /// Everything that is live now.
    pub(crate) allocated: Vec<(BlockView, StreamId)>,
}

/// What is to be done in one heap of the pool.
struct Step<'a> {
    shard: &'a Shard,
    heap: MutexGuard<'a, Heap>,
    wanted: &'a [BlockView],
    live: Vec<(BlockId, BlockView, Fate)>,
}

impl SavedPool {
    /// Every block, and its stream.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = (BlockView, StreamId)> + '_ {
        self.heaps.iter().flat_map(|heap| heap.blocks.iter().map(|&block| (block, heap.stream)))
    }

    fn wanted(&self, shard: u32) -> &[BlockView] {
        let found = self.heaps.iter().find(|heap| heap.shard == shard);
        found.map_or(&[], |heap| &heap.blocks)
    }

    fn fault(&self, fault: CheckpointFault) -> CheckpointError {
        self.fault_at(fault, 0, 0)
    }

    fn fault_at(&self, fault: CheckpointFault, address: Address, bytes: u64) -> CheckpointError {
        CheckpointError { device: self.device, pool: self.id, fault, address, bytes }
    }
}

/// Whether a block of these bytes at this address is among some blocks, which are by address.
fn has(blocks: &[BlockView], block: &BlockView) -> bool {
    let found = blocks.binary_search_by_key(&block.start, |other| other.start);
    found.is_ok_and(|at| blocks[at].bytes == block.bytes)
}

impl Engine {
    /// Notes what is live in a pool that is in use.
    pub(crate) fn save_pool(&self, id: PoolId) -> Result<SavedPool> {
        // Whoever has several heaps locked has this.
        let _growth = self.growth.lock();
        let pools = self.pools.read();
        let (pool, numbers) = pools.in_use(id).ok_or_else(|| unknown(id))?;
        let shards = numbers.iter().filter_map(|&number| self.shards.get(number));
        let locked: Vec<_> = shards.map(|shard| (shard, shard.heap.lock())).collect();
        let deferred = self.deferred.lock();
        let (mut heaps, mut users) = (Vec::new(), BTreeMap::new());
        for (shard, heap) in &locked {
            let mut blocks = Vec::new();
            for (_, block) in heap.live() {
                let streams = deferred.streams_of(block.start);
                if !streams.is_empty() {
                    users.insert(block.start, streams);
                }
                blocks.push(BlockView { state: State::Live, ..block });
            }
            heaps.push(SavedHeap { shard: shard.number, stream: shard.stream, blocks });
        }
        let (pool, allocator) = (Arc::downgrade(pool), Arc::downgrade(&self.map));
        Ok(SavedPool { device: self.id(), id, pool, allocator, heaps, users })
    }

    /// Ends everything that is live in a pool, and makes live what was when it was saved. With an
    /// error nothing has changed.
    pub(crate) fn restore_pool(&self, saved: &SavedPool) -> Result<Restored> {
        if !std::ptr::eq(saved.allocator.as_ptr(), Arc::as_ptr(&self.map)) {
            return Err(saved.fault(CheckpointFault::OtherAllocator).into());
        }
        if saved.device != self.id() {
            return Err(saved.fault(CheckpointFault::OtherDevice).into());
        }
        self.poll_deferred()?;
        let (freed_by, allocated_by) = (self.gather_for_free(), self.gather_for_allocation());
        let _growth = self.growth.lock();
        let pools = self.pools.read();
        let found = pools.in_use(saved.id);
        let same = found.filter(|(pool, _)| std::ptr::eq(saved.pool.as_ptr(), Arc::as_ptr(pool)));
        let (_, numbers) = same.ok_or_else(|| saved.fault(CheckpointFault::PoolEnded))?;
        let ipc = self.ipc.lock();
        let shards = numbers.iter().filter_map(|&number| self.shards.get(number));
        let locked: Vec<_> = shards.map(|shard| (shard.as_ref(), shard.heap.lock())).collect();
        let pinned = self.pins.lock().starts();
        let mut deferred = self.deferred.lock();
        let mut steps = Vec::new();
        for (shard, heap) in locked {
            steps.push(plan(saved, (shard, heap), &deferred, (&ipc, &pinned))?);
        }
        let mut restored = Restored::default();
        for step in &mut steps {
            self.end_all(step, &mut deferred, freed_by.as_ref(), &mut restored);
        }
        for step in steps {
            self.revive_all(step, &mut deferred, (saved, allocated_by.as_ref()), &mut restored);
        }
        Ok(restored)
    }

    /// Ends what lives in one heap.
    fn end_all(
        &self,
        step: &mut Step<'_>,
        deferred: &mut Deferred,
        context: Option<&Context>,
        restored: &mut Restored,
    ) {
        let shard = step.shard.number;
        self.peaks.enter(&mut step.heap);
        for &(id, block, fate) in &step.live {
            if fate != Fate::Stays {
                self.tell_freed(block.start);
            }
            let state = if fate == Fate::Waits { State::Shared } else { State::Live };
            self.record_freed(shard, BlockView { state, ..block }, context.cloned());
            step.heap.end(id, fate);
            match fate {
                Fate::Stays => {}
                Fate::Goes => deferred.forget_unused(block.start),
                Fate::Waits => {
                    let waits = deferred.defer(block.start, Ticket { shard, block: id });
                    debug_assert!(waits, "a stream was recorded for it");
                    self.flags.fetch_or(flag::DEFERRED, Ordering::Relaxed);
                }
            }
            restored.freed.push(block.start);
        }
        // So that heaps which are locked have nothing that another one would have to take.
        self.peaks.yield_surplus(&mut step.heap);
    }

    /// Makes live what is wanted of one heap, and lets go of it.
    fn revive_all(
        &self,
        step: Step<'_>,
        deferred: &mut Deferred,
        (saved, context): (&SavedPool, Option<&Context>),
        restored: &mut Restored,
    ) {
        let Step { shard, mut heap, wanted, live } = step;
        let mut shared = HashSet::new();
        for block in wanted {
            let streams = saved.users.get(&block.start).map_or(&[][..], Vec::as_slice);
            if deferred.record_again(block.start, streams) || self.announcer.is_some() {
                shared.insert(block.start);
            }
        }
        heap.revive(wanted, |address| shared.contains(&address));
        self.tell_revived(wanted, &live);
        for &block in wanted {
            self.record_live(shard.number, block, context.cloned());
            restored.allocated.push((block, shard.stream));
        }
        self.peaks.leave(&self.shards, &mut heap);
    }

    /// Tells a tool of blocks that are live again. Of one that stayed, with as many bytes asked
    /// for, it knows already, and that its contents are good.
    fn tell_revived(&self, wanted: &[BlockView], live: &[(BlockId, BlockView, Fate)]) {
        let Some(announcer) = &self.announcer else {
            return;
        };
        for block in wanted {
            let before = live.binary_search_by_key(&block.start, |(_, other, _)| other.start);
            let stayed = before.ok().map(|at| &live[at]).filter(|(.., fate)| *fate == Fate::Stays);
            if stayed.is_some_and(|(_, other, _)| other.requested == block.requested) {
                continue;
            }
            announcer.freed(block.start);
            announcer.allocated(block.start, block.requested);
        }
    }
}

/// What is to be done in one heap; or why it cannot be.
fn plan<'a>(
    saved: &'a SavedPool,
    (shard, heap): (&'a Shard, MutexGuard<'a, Heap>),
    deferred: &Deferred,
    (ipc, pinned): (&Ipc, &HashSet<(u32, Address)>),
) -> Result<Step<'a>, CheckpointError> {
    let wanted = saved.wanted(shard.number);
    let mut live = Vec::new();
    for (id, block) in heap.live() {
        let BlockView { start, bytes, .. } = block;
        let fate = if has(wanted, &block) {
            Fate::Stays
        } else if ipc.is_exported(start) {
            return Err(saved.fault_at(CheckpointFault::Exported, start, bytes));
        } else if pinned.contains(&(shard.number, start)) {
            return Err(saved.fault_at(CheckpointFault::Pinned, start, bytes));
        } else if deferred.is_used(start) {
            Fate::Waits
        } else {
            Fate::Goes
        };
        live.push((id, block, fate));
    }
    let fate_at = |address| {
        let at = live.binary_search_by_key(&address, |(_, block, _)| block.start);
        at.map_or(Fate::Goes, |at| live[at].2)
    };
    let (fault, start, bytes) = match heap.obstacle(wanted, fate_at) {
        None => return Ok(Step { shard, heap, wanted, live }),
        Some(Obstacle::Gone { start, bytes }) => (CheckpointFault::MemoryGone, start, bytes),
        Some(Obstacle::Waits { start, bytes }) => (CheckpointFault::InUseByStreams, start, bytes),
    };
    Err(saved.fault_at(fault, start, bytes))
}
