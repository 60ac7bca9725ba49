//! Memory that was idle for a long time goes back to the device: `release_idle_ms`.
//!
//! Each heap knows the least that it had free since the last look: so much was not needed in all
//! that time, whichever bytes those were. A look costs a walk over the free blocks, and comes at
//! most once in the time that is set: memory goes back after between once and twice that time.

use super::grow::Effort;
use super::{Engine, Growth};
use crate::device::DeviceResult;
use crate::error::Result;

impl Engine {
    /// Completes frees that waited for other streams, and gives memory back that has been idle for
    /// long.
    pub(crate) fn process_events(&self) -> Result<()> {
        self.poll_deferred()?;
        if self.config.release_idle_ms > 0 {
            let mut growth = self.growth.lock();
            let released = self.release_unneeded(&mut growth);
            let announced = released.and_then(|()| self.announce(&mut growth));
            drop(growth);
            self.tell_observers();
            announced?;
        }
        Ok(())
    }

    /// Looks whether memory has been idle for long enough, and gives it back. Nothing is waited
    /// for: what queued work may still use serves whoever needs it until a later look.
    pub(super) fn release_unneeded(&self, growth: &mut Growth) -> Result<()> {
        let period_us = self.config.release_idle_ms.saturating_mul(1000);
        let now_us = self.clock.now_us();
        if period_us == 0 || now_us < growth.looked_us.saturating_add(period_us) {
            return Ok(());
        }
        if self.captures.may_be_under_way(self.device.as_ref())? {
            return Ok(());
        }
        growth.looked_us = now_us;
        if self.virtual_memory {
            Ok(self.release_unneeded_views(growth)?)
        } else {
            self.release_unneeded_segments(growth)
        }
    }

    fn release_unneeded_views(&self, growth: &mut Growth) -> DeviceResult<()> {
        self.recall(growth, None, Effort::Usual)?;
        for (_, shard) in self.shards.iter() {
            // What a capture used, its graph will use.
            if self.deferred.lock().is_captured(shard.stream)? {
                continue;
            }
            let mut heap = shard.heap.lock();
            let idle = heap.idle_views();
            let mut unneeded = heap.unneeded(idle.iter().map(|view| view.bytes).sum());
            for view in idle {
                if view.bytes <= unneeded && heap.detach(view.view) {
                    unneeded -= view.bytes;
                    self.withdraw(shard.number, view.address, view.bytes);
                    growth.store.deactivate(view.handle, heap.mark());
                }
            }
        }
        for number in growth.store.spare.clone() {
            if self.is_quiet(growth, number)? {
                self.dissolve(growth, None, number)?;
            }
        }
        Ok(())
    }

    fn release_unneeded_segments(&self, growth: &mut Growth) -> Result<()> {
        for (_, shard) in self.shards.iter() {
            if self.deferred.lock().is_captured(shard.stream)? {
                continue;
            }
            let mut heap = shard.heap.lock();
            let idle = heap.free_segments();
            let mut unneeded = heap.unneeded(idle.iter().map(|(_, bytes, _)| bytes).sum());
            for segment in idle {
                if segment.1 <= unneeded {
                    unneeded -= segment.1;
                    self.release_segment(growth, shard, &mut heap, segment)?;
                }
            }
        }
        Ok(())
    }
}
