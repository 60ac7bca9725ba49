//! What must be true at any time.

use std::collections::BTreeMap;

use plugalloc::error::{DeviceErrorKind, Error};
use plugalloc::observe::BlockState;
use plugalloc::units::{Address, Bytes, GRANULE, MIB, align_up};

use super::work::ENDS;
use super::{LANES, Storm};
use crate::common::GPU;

impl Storm {
    /// A request has failed: it may, and everything is as it was.
    pub(super) fn refused(&mut self, error: Error, bytes: Bytes, lane: usize) {
        match &error {
            Error::OutOfMemory(report) => {
                self.seen.refused += 1;
                assert_eq!(report.requested, bytes);
                self.assert_does_not_fit(bytes, lane);
            }
            // The new stream cannot wait for what the last one of its name has left.
            Error::Device(error) if error.kind == DeviceErrorKind::NotPermitted => {
                let left = error.detail.contains("work of a retired stream of that name");
                assert!(left && self.is_capturing(lane), "{error}");
            }
            _ => _ = self.may_wait(Err::<(), _>(error)),
        }
        self.check();
    }

    /// The bytes that a request takes where it has memory for itself alone.
    fn unit(&self, bytes: Bytes, lane: usize) -> Bytes {
        let pool = self.pool_for(self.lanes[lane].name);
        let whole = self.segments || pool.is_some_and(|at| self.pools[at].no_split);
        match bytes {
            _ if !whole => align_up(bytes, GRANULE),
            0..=MIB => 2 * MIB,
            _ if bytes < 10 * MIB => 20 * MIB,
            _ => align_up(bytes, GRANULE),
        }
    }

    /// What may be taken from the device yet.
    fn room(&self) -> Bytes {
        let reserved = self.rig.statistics().reserved_bytes.all.current as Bytes;
        let free = self.rig.allocator.memory_info(GPU).unwrap().free;
        free.min(self.limit.saturating_sub(reserved))
    }

    fn assert_does_not_fit(&mut self, bytes: Bytes, lane: usize) {
        let (unit, room) = (self.unit(bytes, lane), self.room());
        assert!(room < unit, "{bytes} bytes are refused, {room} are there for {unit}");
        let captures = self.lanes.iter().any(|lane| lane.capture.is_some());
        // Without stealing, what other streams have cached is theirs.
        if captures || !self.held.is_empty() || !self.rig.allocator.config().steal {
            return;
        }
        // All that could be in its way has run, and can be given back.
        self.rig.allocator.empty_cache().unwrap();
        let room = self.room();
        assert!(room < unit, "{bytes} bytes are refused, {room} for {unit} without what is cached");
        let again = self.rig.try_allocate(bytes, self.lanes[lane].name);
        assert!(again.is_err(), "{bytes} bytes fit at last");
    }

    /// Fails unless everything is as it is known to be.
    pub(super) fn check(&mut self) {
        let allocator = &self.rig.allocator;
        if let Err(error) = allocator.is_valid() {
            panic!("step {}: {error}", self.steps);
        }
        for (&at, block) in &self.live {
            let found = allocator.block(at).unwrap();
            let expected = (block.requested, block.served, block.stream);
            assert_eq!((found.requested, found.bytes, found.stream), expected, "{at:#x}");
        }
        for (at, pool) in self.pools.iter().enumerate() {
            assert_eq!(allocator.pool_use_count(GPU, pool.id).unwrap(), pool.uses);
            assert!(pool.uses == 0 || self.holds_exactly(at, None), "{pool:?}");
        }
        for (_, pin) in &self.pins {
            self.assert_there(pin.address(), pin.bytes());
        }
        if let Some(books) = &self.books {
            let seen = books.lock();
            let live = self.live.iter().map(|(&at, block)| (at, block.served));
            let pinned = self.pins.iter().map(|(_, pin)| (pin.address(), pin.bytes()));
            for (at, bytes) in live.chain(pinned) {
                assert!(seen.covers(at, bytes), "observers were not told of {at:#x}");
            }
        }
        self.check_sums();
    }

    fn assert_there(&self, at: Address, bytes: Bytes) {
        for page in (at..at + bytes).step_by(GRANULE as usize) {
            self.rig.read(page, 1);
        }
    }

    /// Statistics and the snapshot agree with what is known.
    fn check_sums(&mut self) {
        let found = self.rig.statistics();
        let sum = |of: fn(&super::Block) -> Bytes| self.live.values().map(of).sum::<Bytes>() as i64;
        assert_eq!(found.allocation.all.current, self.live.len() as i64);
        assert_eq!(found.allocated_bytes.all.current, sum(|block| block.served));
        for counted in [found.allocation, found.active, found.reserved_bytes, found.active_bytes] {
            let parts = counted.small_pool.current + counted.large_pool.current;
            // Memory that serves nobody is of neither kind.
            assert!(counted.all.current >= parts);
            assert_eq!(counted.all.current, counted.all.allocated - counted.all.freed);
            assert!(counted.all.peak >= counted.all.current);
        }
        assert!(found.reserved_bytes.all.current as Bytes <= self.rig.ledger().used);
        let snapshot = self.rig.allocator.snapshot(None, self.events.is_some()).unwrap();
        let total: Bytes = snapshot.segments.iter().map(|segment| segment.total).sum();
        assert_eq!(total as i64, found.reserved_bytes.all.current);
        let mut shown = BTreeMap::new();
        let (mut pending, mut requested) = (0, sum(|block| block.requested));
        for segment in &snapshot.segments {
            for block in &segment.blocks {
                match block.state {
                    BlockState::ActiveAllocated => {
                        let info = (block.requested, block.bytes, segment.stream, segment.pool);
                        assert_eq!(shown.insert(block.address, info), None);
                    }
                    BlockState::ActivePendingFree => {
                        pending += 1;
                        requested += block.requested as i64;
                    }
                    BlockState::Inactive => {}
                }
            }
        }
        // As in PyTorch, what was asked for counts until nobody waits for it any more.
        assert_eq!(requested, found.requested_bytes.all.current);
        assert_eq!(pending, found.active.all.current - found.allocation.all.current);
        assert_eq!(shown.len(), self.live.len());
        for (at, block) in &self.live {
            let Some(info) = shown.get(at) else { panic!("{at:#x} is not shown: {block:?}") };
            assert_eq!(*info, (block.requested, block.served, block.stream, info.3), "{at:#x}");
            if let Some((place, _)) = block.pool {
                assert_eq!(info.3, self.pools[place].id, "{at:#x}");
            }
        }
        if let Some(events) = &mut self.events {
            events.follow(&snapshot.device_traces[0]);
            events.assert_shows(&snapshot);
        }
    }

    /// Exports memory, or imports what was exported.
    pub(super) fn share(&mut self) {
        if self.imports.len() > LANES || self.random.below(3) == 0 {
            let at = self.random.below(self.imports.len().max(1) as u64) as usize;
            if at < self.imports.len() {
                self.imports.swap_remove(at);
            }
            return;
        }
        let Some(at) = self.any_block() else { return };
        let shared = self.rig.allocator.share(at).unwrap();
        if let Some(block) = self.live.get_mut(&at) {
            block.exported = true;
        }
        // Legacy handles cannot be opened where they come from.
        if shared.handle[5] != b'e' {
            return;
        }
        match self.rig.allocator.open_shared(GPU, &shared.handle) {
            Ok(import) => {
                self.seen.imports += 1;
                self.imports.push((at, shared.offset, import));
            }
            // Not every system lets descriptors be fetched.
            Err(Error::Unsupported { why, .. }) => println!("no import: {why}"),
            Err(error) => panic!("{error}"),
        }
    }

    /// What is imported has the contents of what was exported, once all work has run.
    pub(super) fn check_imports(&self) {
        for (at, offset, import) in &self.imports {
            let block = &self.live[at];
            if let Some(value) = block.value.filter(|_| block.captured.is_none()) {
                let bytes = block.requested.min(ENDS);
                self.rig.assert_filled(import.address() + offset, value, bytes);
            }
        }
    }

    /// What could not be closed when its last user went, since work was held back, is closed with
    /// the next one.
    pub(super) fn close_imports_for_good(&mut self) {
        if self.seen.imports > 0 {
            self.rig.allocator.empty_cache().unwrap();
            self.limit = self.capacity;
            self.rig.allocator.set_memory_fraction(GPU, 1.0).unwrap();
            let at = self.rig.allocate(512, self.lanes[0].name);
            let shared = self.rig.allocator.share(at).unwrap();
            drop(self.rig.allocator.open_shared(GPU, &shared.handle).unwrap());
            self.rig.free(at);
        }
    }
}
