//! The short way to another heap's idle memory: a run that has room for all of a large request,
//! found without a look at everything that is idle.
//!
//! Where streams share memory on a mostly empty device a quarter of the requests that no free block
//! can serve are served so (`docs/policy-notes.md`). They take this search and the passing of the
//! run; what is saved is a list of all that is idle, by address, and a look at every stream's mark.

use super::grow::Request;
use super::shards::Shard;
use super::{Engine, Growth};
use crate::error::Result;
use crate::heap::{ArenaKind, FreeRun, Heap};
use crate::lock::MutexGuard;
use crate::units::Address;

impl Engine {
    /// Serves a large request from one run of idle views of another heap, nearly the shortest that
    /// has room for it and that no queued work uses. `None` where there is none that is little
    /// longer, since which of the long ones to cut up takes a look at what lies beside each; near
    /// the end of the device; and where remainders may be lent for the request.
    pub(super) fn adopt_a_run(
        &self,
        growth: &mut Growth,
        heap: &mut MutexGuard<'_, Heap>,
        request: Request,
    ) -> Result<Option<Address>> {
        let Request { shard: taker, requested, bytes, kind } = request;
        if kind != ArenaKind::Large || !self.is_short_way(growth, heap, request) {
            return Ok(None);
        }
        let most = self.policy.longest_run(bytes);
        let mut best: Option<(FreeRun, &Shard)> = None;
        for (_, shard) in self.shards.iter().filter(|&(number, _)| number != taker) {
            let mut other = shard.heap.lock();
            other.flush_large();
            let Some(run) = other.run_for(bytes, most, kind) else {
                continue;
            };
            if best.as_ref().is_none_or(|(best, _)| run.bytes() < best.bytes())
                && self.is_settled(growth, taker, (shard, &mut other), run.since)
            {
                best = Some((run, shard));
            }
        }
        let Some((FreeRun { start, views_end, .. }, giver)) = best else {
            return Ok(None);
        };
        if !self.take_over(growth, heap, request, &[(giver.number, (start, views_end))])? {
            return Ok(None);
        }
        let found = heap.allocate_at(start, requested, bytes, kind);
        self.peaks.leave(&self.shards, heap);
        Ok(found)
    }

    /// Whether nothing can be gained by a look at all that is idle.
    fn is_short_way(&self, growth: &Growth, heap: &Heap, Request { bytes, .. }: Request) -> bool {
        let store = &growth.store;
        let reserved = store.reserved.current as u64;
        let few = store.active() <= self.policy.few_handles;
        if !self.policy.steal
            || !few
            || !self.policy.is_roomy(reserved, store.limit.min(self.total))
        {
            return false;
        }
        if !self.policy.may_lend_early(bytes, store.spent_us, self.clock.now_us()) {
            return true;
        }
        let (live, peak) = self.peaks.estimate(&self.shards, heap);
        let live_peak = (live as u64 + bytes).max(peak as u64);
        !self.policy.may_lend_in_room(live as u64, live_peak)
    }

    /// Whether no work that is queued on another stream than the taker's uses what a heap, which is
    /// locked, has free since a mark.
    fn is_settled(
        &self,
        growth: &mut Growth,
        taker: u32,
        (shard, heap): (&Shard, &mut Heap),
        since: u64,
    ) -> bool {
        let own = self.shards.get(taker).map(|shard| shard.stream);
        own == Some(shard.stream)
            || since < self.look_at_marks(&mut growth.marks, shard, heap, since)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::config::Config;
    use crate::device::sim::{SimDevice, SimMachine, SimOptions};
    use crate::device::{Clock, Device};
    use crate::engine::PageEntry;
    use crate::page_map::PageMap;
    use crate::units::{Bytes, GIB, GRANULE, MIB, StreamId};

    const OWN: StreamId = StreamId(1);
    const OTHER: StreamId = StreamId(2);

    /// An engine on whose other stream runs of idle memory lie apart; what lies between them and is
    /// live on the own stream, and where they are.
    struct Rig {
        engine: Engine,
        device: Arc<SimDevice>,
        between: Vec<Address>,
        runs: Vec<Address>,
    }

    impl Rig {
        fn of(capacity: Bytes, runs: &[Bytes], own: Bytes) -> Rig {
            let (rig, pin) = Rig::pinned(capacity, runs, own);
            rig.engine.unpin(pin).unwrap();
            rig
        }

        /// The same with a pin of the first run, and its number.
        fn pinned(capacity: Bytes, runs: &[Bytes], own: Bytes) -> (Rig, u64) {
            let options = SimOptions { capacity, ..SimOptions::default() };
            let machine = SimMachine::new(options).unwrap();
            let device = machine.device(0);
            let shared = (Arc::new(PageMap::new()), Arc::new(Clock::default()));
            let config = Config { max_handle: GRANULE, ..Config::default() };
            let engine = Engine::new(0, device.clone(), config, shared).unwrap();
            let own = engine.allocate(own, OWN).unwrap();
            let take = |bytes| engine.allocate(bytes, OTHER).unwrap();
            let (runs, mut between): (Vec<_>, Vec<_>) =
                runs.iter().map(|&bytes| (take(bytes), take(2 * MIB))).unzip();
            let (shard, slot) = engine.map.get(runs[0]).unwrap();
            let pin = engine.pin(PageEntry { shard, slot }, runs[0]).unwrap().number;
            runs.iter().for_each(|&run| free(&engine, run));
            between.push(own);
            (Rig { engine, device, between, runs }, pin)
        }

        /// Which run serves a request of the own stream, if one does at once.
        fn adopt(&self, bytes: Bytes) -> Option<usize> {
            let shard = self.engine.shards.for_stream(OWN).unwrap();
            let request =
                Request { shard: shard.number, requested: bytes, bytes, kind: ArenaKind::Large };
            let mut growth = self.engine.growth.lock();
            let mut heap = shard.heap.lock();
            self.engine.peaks.enter(&mut heap);
            let found = self.engine.adopt_a_run(&mut growth, &mut heap, request).unwrap()?;
            drop((heap, growth));
            free(&self.engine, found);
            self.runs.iter().position(|&run| run == found)
        }
    }

    impl Drop for Rig {
        fn drop(&mut self) {
            if std::thread::panicking() {
                return;
            }
            self.between.iter().for_each(|&block| free(&self.engine, block));
            self.engine.is_quiescent().unwrap();
            self.engine.is_valid().unwrap();
        }
    }

    fn free(engine: &Engine, address: Address) {
        let (shard, slot) = engine.map.get(address).unwrap();
        engine.free(PageEntry { shard, slot }, address).unwrap();
    }

    #[test]
    fn the_shortest_run_that_is_little_longer_serves_a_request_at_its_start() {
        let sizes = [48 * MIB, 40 * MIB, 100 * MIB];
        let taken = |bytes| Rig::of(8 * GIB, &sizes, 2 * MIB).adopt(bytes);
        assert_eq!(taken(36 * MIB), Some(1));
        assert_eq!(taken(40 * MIB + MIB), Some(0));
        assert_eq!(taken(80 * MIB), Some(2));
        // That is more than a quarter and two granules longer; and there is none.
        assert_eq!((taken(24 * MIB), taken(60 * MIB), taken(102 * MIB)), (None, None, None));
    }

    #[test]
    fn a_run_that_may_not_move_or_that_queued_work_uses_is_left() {
        let (rig, pin) = Rig::pinned(8 * GIB, &[40 * MIB], 2 * MIB);
        assert_eq!(rig.adopt(36 * MIB), None);
        rig.engine.unpin(pin).unwrap();
        rig.device.hold(OTHER).unwrap();
        rig.device.host_function(OTHER, Box::new(|| {})).unwrap();
        assert_eq!(rig.adopt(36 * MIB), None);
        rig.device.resume(OTHER).unwrap();
        rig.device.synchronize().unwrap();
        assert_eq!(rig.adopt(36 * MIB), Some(0));
    }

    #[test]
    fn a_device_that_is_not_mostly_empty_and_what_may_be_lent_take_a_closer_look() {
        let runs = [40 * MIB, 14 * MIB];
        assert_eq!(Rig::of(256 * MIB, &runs, 2 * MIB).adopt(36 * MIB), None);
        // Once there was time for loans, and near the peak of live memory alone.
        for (own, lent_for) in [(2 * MIB, false), (GIB, true)] {
            let rig = Rig::of(16 * GIB, &runs, own);
            rig.engine.clock.set_us(3_600_000_000);
            assert_eq!(rig.adopt(12 * MIB + MIB / 2), (!lent_for).then_some(1));
            assert_eq!(rig.adopt(36 * MIB), Some(0), "too long to be lent for");
        }
    }
}
