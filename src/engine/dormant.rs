//! Dormant views are bounded: beyond so many the oldest are unmapped, as far as nothing queued can
//! use them, so that nothing is waited for.

use super::{Engine, Growth};
use crate::device::DeviceResult;

/// How many are unmapped at once: about a third of a millisecond of driver time, during which other
/// requests wait.
const BATCH: usize = 8;

impl Engine {
    /// Unmaps the oldest dormant views where there are too many. With observers, who have to be
    /// told first, they stay until memory is given back.
    pub(super) fn trim_dormant(&self, growth: &mut Growth) -> DeviceResult<()> {
        let most = self.policy.most_dormant(growth.store.active());
        if growth.store.dormant() <= most
            || self.is_watched()
            || self.captures.may_be_under_way(self.device.as_ref())?
        {
            return Ok(());
        }
        for _ in 0..BATCH {
            let Some(oldest) = growth.store.oldest_dormant() else {
                break;
            };
            let Some(shard) = self.shards.get(oldest.place.shard) else {
                break;
            };
            let mut heap = shard.heap.lock();
            let passed = self.look_at_marks(&mut growth.marks, shard, &mut heap, oldest.since);
            if oldest.since >= passed {
                break;
            }
            growth.store.unmap_dormant(oldest.number, oldest.place)?;
            self.note_unmapped(growth, oldest.place.address);
            heap.drop_dormant(oldest.place.view);
        }
        Ok(())
    }
}
