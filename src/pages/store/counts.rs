//! What the store counts, and whom it tells of it.

use super::Store;
use crate::heap::ArenaKind;
use crate::stat::{Stat, StatArray};
use crate::units::{Address, Bytes};

impl Store {
    /// Counts memory taken from the device.
    pub(crate) fn count_taken(&mut self, bytes: Bytes) {
        self.device_allocs += 1;
        self.reserved.increase(bytes as i64);
        self.announce_reserved();
    }

    /// Counts memory given back to the device.
    pub(crate) fn count_given(&mut self, bytes: Bytes) {
        self.device_frees += 1;
        self.reserved.decrease(bytes as i64);
        self.announce_reserved();
    }

    /// Numbers a new segment.
    pub(crate) fn note_segment(&mut self, base: Address) {
        self.segments.insert(base, self.born);
        self.born += 1;
    }

    /// Forgets a segment's number.
    pub(crate) fn forget_segment(&mut self, base: Address) {
        self.segments.remove(&base);
    }

    /// How many handles and segments there were before a segment.
    pub(crate) fn segment_born(&self, base: Address) -> u64 {
        self.segments.get(&base).copied().unwrap_or(0)
    }

    fn announce_reserved(&self) {
        if let Some(announcer) = &self.announcer {
            announcer.reserved(self.reserved.current);
        }
    }

    /// Tells of a segment in which blocks will lie. Of mapped handles nobody is told: tools refuse
    /// them.
    pub(crate) fn tell_segment(&self, address: Address, bytes: Bytes) {
        if let Some(announcer) = &self.announcer {
            announcer.mapped(address, bytes);
        }
    }

    /// Tells that this segment is about to go.
    pub(crate) fn tell_segment_end(&self, address: Address) {
        if let Some(announcer) = &self.announcer {
            announcer.unmapping(address);
        }
    }

    /// Counts memory that begins to serve requests of one kind.
    pub(crate) fn count_serving(&mut self, kind: ArenaKind, bytes: Bytes) {
        self.by_kind[kind as usize].increase(bytes as i64);
    }

    /// Counts memory that ceases to serve requests of one kind.
    pub(crate) fn count_idle(&mut self, kind: ArenaKind, bytes: Bytes) {
        self.by_kind[kind as usize].decrease(bytes as i64);
    }

    /// What is taken from the device, as a statistic.
    pub(crate) fn reserved_bytes(&self) -> StatArray {
        let [small_pool, large_pool] = self.by_kind;
        StatArray { all: self.reserved, small_pool, large_pool }
    }

    pub(crate) fn reset_peaks(&mut self) {
        self.reserved.reset_peak();
        self.by_kind.iter_mut().for_each(Stat::reset_peak);
    }

    pub(crate) fn reset_accumulated(&mut self) {
        self.reserved.reset_accumulated();
        self.by_kind.iter_mut().for_each(Stat::reset_accumulated);
        (self.device_allocs, self.device_frees) = (0, 0);
    }
}
