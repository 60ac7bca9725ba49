//! All memory of one device at one moment.

use super::{Engine, Growth};
use crate::heap::{ArenaKind, BlockView, Heap, State};
use crate::observe::history::Subject;
use crate::observe::{Action, BlockState, Snapshot, SnapshotBlock, SnapshotSegment};
use crate::units::{Address, Bytes, PoolId, StreamId};

impl Engine {
    /// Adds what there is to a snapshot: of all pools, or of one; with the events that were
    /// recorded, if they are wanted. Then records that a snapshot was taken. Everything is locked
    /// meanwhile, so that events and memory fit each other; save for allocations that are about to
    /// return, of which there is no event yet.
    pub(crate) fn add_to(&self, snapshot: &mut Snapshot, only: Option<PoolId>, traces: bool) {
        let growth = self.growth.lock();
        let all = self.shards.lock_all();
        let mut segments = Vec::new();
        for (shard, heap) in self.shards.iter().zip(&all.heaps) {
            let pool = shard.1.pool_id();
            if only.is_some_and(|only| only != pool) {
                continue;
            }
            let stream = shard.1.stream;
            self.add_runs(&growth, heap, (stream, pool), &mut segments);
        }
        self.add_parting(&growth, only, &mut segments);
        if only.is_none_or(|only| only == PoolId::DEFAULT) {
            self.add_spare(&growth, &mut segments);
            self.add_direct(&growth, &mut segments);
        }
        segments.sort_by_key(|segment| segment.address);
        let active = segments.iter().map(|segment| segment.active).sum();
        snapshot.segments.append(&mut segments);
        snapshot.device_traces.push(if traces { self.history.entries() } else { Vec::new() });
        snapshot.annotations.extend(self.history.annotations());
        if self.is_recorded() {
            let (stream, pool) = (StreamId::DEFAULT, PoolId::DEFAULT);
            let subject = Subject { address: 0, bytes: active, stream, pool };
            self.history.record(Action::Snapshot, subject, None);
        }
    }

    fn add_runs(
        &self,
        growth: &Growth,
        heap: &Heap,
        (stream, pool): (StreamId, PoolId),
        segments: &mut Vec<SnapshotSegment>,
    ) {
        for run in heap.runs() {
            let (base, bytes) = run.span();
            let ages = heap.handles_in((base, bytes));
            let born = ages.filter_map(|number| Some(growth.store.handle(number)?.born)).min();
            let born = born.unwrap_or_else(|| growth.store.segment_born(base));
            let blocks = run.blocks.iter().map(|&block| self.block_of(block)).collect();
            segments.push(SnapshotSegment {
                stream,
                is_large: run.kind == ArenaKind::Large,
                is_expandable: !run.segment,
                registration_counter: born,
                ..SnapshotSegment::new(self.id(), pool, blocks)
            });
        }
    }

    fn block_of(&self, block: BlockView) -> SnapshotBlock {
        let state = match block.state {
            State::Live | State::Shared => BlockState::ActiveAllocated,
            State::Pending => BlockState::ActivePendingFree,
            _ => BlockState::Inactive,
        };
        let context = match state {
            BlockState::Inactive => None,
            _ => self.history.context_of(block.start),
        };
        let BlockView { start: address, bytes, requested, .. } = block;
        SnapshotBlock { address, bytes, requested, state, context }
    }

    /// Memory that serves nobody, where it was last.
    fn add_spare(&self, growth: &Growth, segments: &mut Vec<SnapshotSegment>) {
        for &number in &growth.store.spare {
            let Some(handle) = growth.store.handle(number) else {
                continue;
            };
            let Some(place) = handle.dormant.last() else {
                continue;
            };
            let stream = self.shards.get(place.shard).map(|shard| shard.stream);
            let block = free_block(place.address, handle.bytes);
            segments.push(SnapshotSegment {
                stream: stream.unwrap_or(StreamId::DEFAULT),
                is_large: place.kind == ArenaKind::Large,
                is_expandable: true,
                registration_counter: handle.born,
                ..SnapshotSegment::new(self.id(), PoolId::DEFAULT, vec![block])
            });
        }
    }

    /// Segments that go once observers have been told.
    fn add_parting(
        &self,
        growth: &Growth,
        only: Option<PoolId>,
        segments: &mut Vec<SnapshotSegment>,
    ) {
        for segment in growth.parting.segments() {
            let Some(shard) = self.shards.get(segment.shard) else {
                continue;
            };
            let pool = shard.pool_id();
            if only.is_none_or(|only| only == pool) {
                let block = free_block(segment.base, segment.bytes);
                segments.push(SnapshotSegment {
                    stream: shard.stream,
                    is_large: segment.kind == ArenaKind::Large,
                    registration_counter: growth.store.segment_born(segment.base),
                    ..SnapshotSegment::new(self.id(), pool, vec![block])
                });
            }
        }
    }

    /// Allocations that are the device's own.
    fn add_direct(&self, growth: &Growth, segments: &mut Vec<SnapshotSegment>) {
        for (address, direct) in self.direct_blocks_by_address() {
            let block = SnapshotBlock {
                address,
                bytes: direct.bytes,
                requested: direct.requested,
                state: BlockState::ActiveAllocated,
                context: self.history.context_of(address),
            };
            segments.push(SnapshotSegment {
                stream: direct.stream,
                is_large: direct.kind == ArenaKind::Large,
                registration_counter: growth.store.segment_born(address),
                ..SnapshotSegment::new(self.id(), PoolId::DEFAULT, vec![block])
            });
        }
    }
}

fn free_block(address: Address, bytes: Bytes) -> SnapshotBlock {
    SnapshotBlock { address, bytes, requested: 0, state: BlockState::Inactive, context: None }
}
