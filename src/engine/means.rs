//! What a request may count on: what may be taken from the device for it, and whether memory may
//! move.

use super::grow::{Effort, Request};
use super::idle::Idle;
use super::{Engine, Growth};
use crate::error::Result;
use crate::heap::Heap;
use crate::lock::MutexGuard;
use crate::units::{Bytes, GRANULE, align_up};

/// What a stage may use.
pub(super) struct Supply {
    pub(super) idle: Vec<Idle>,
    /// None of that is longer.
    pub(super) longest_idle: Bytes,
    /// How much may be taken from the device without a second thought, and at most.
    pub(super) ready: Bytes,
    pub(super) most: Bytes,
    /// Memory of handles that were given back to be made into shorter ones.
    pub(super) cut: Bytes,
    pub(super) effort: Effort,
    /// The longest new handle.
    pub(super) made: Bytes,
    /// The longest handle that moves whole.
    pub(super) longest: Bytes,
    /// See [`Means::roomy`]. The idle views from which handles are taken first come last then.
    pub(super) roomy: bool,
}

/// What a request may count on besides idle memory; see [`Supply`].
#[derive(Clone, Copy)]
pub(super) struct Means {
    /// Idle memory may be moved for it.
    pub(super) may_move: bool,
    /// So much is reserved that streams had better wait for each other than take more.
    pub(super) may_wait: bool,
    pub(super) ready: Bytes,
    pub(super) most: Bytes,
    pub(super) made: Bytes,
    pub(super) longest: Bytes,
    /// Other streams have memory, too, that the heap may use, in few handles, and most of the
    /// device is empty.
    pub(super) roomy: bool,
    /// Remainders may be lent before the request would fail.
    pub(super) lends: bool,
}

impl Means {
    /// What it comes to; idle memory is added once it is known what of it is needed.
    pub(super) fn supply(self, most: Bytes, effort: Effort) -> Supply {
        let Means { ready, made, longest, roomy, .. } = self;
        let (idle, longest_idle) = (Vec::new(), Bytes::MAX);
        Supply { idle, longest_idle, ready, most, cut: 0, effort, made, longest, roomy }
    }
}

impl Engine {
    /// What a request may count on besides idle memory.
    pub(super) fn means(
        &self,
        growth: &mut Growth,
        heap: &mut MutexGuard<'_, Heap>,
        request: Request,
        asked: Effort,
    ) -> Result<Means> {
        let (live, peak) = self.peaks.estimate(&self.shards, heap);
        let live_peak = (live as Bytes + request.bytes).max(peak as Bytes);
        let reserved = growth.store.reserved.current as Bytes;
        let free = match asked {
            Effort::Usual => self.total.saturating_sub(reserved),
            // Others may hold memory of the device, or have given some back.
            Effort::Reshape => self.device.memory_info()?.free,
        };
        let most = growth.store.headroom().min(free);
        let now = self.clock.now_us();
        let asking = (request.shard, heap.allocations_since());
        growth.moving.refill(&self.policy, now, asking, live_peak);
        let may_move = growth.moving.is_left();
        let mut ready = self.policy.free_growth(reserved, live_peak);
        if !may_move {
            ready = ready.max(align_up(request.bytes, GRANULE));
        }
        let ready = ready.min(most);
        let may_wait = self.policy.may_wait(reserved + request.bytes, live_peak);
        let shares = self.shares_memory(request.shard);
        let spent_us = growth.store.spent_us;
        let busy = shares && self.policy.is_busy(spent_us, now);
        let grain = self.policy.grain(request.bytes, live_peak, (spent_us, now), busy);
        let made = self.policy.longest_made(request.bytes, grain, busy);
        let longest = self.policy.longest_moved(live_peak, grain, busy);
        let capacity = growth.store.limit.min(self.total);
        let few = growth.store.active() <= self.policy.few_handles;
        let roomy = shares && few && self.policy.is_roomy(reserved, capacity);
        let near_peak = !roomy || self.policy.may_lend_in_room(live as Bytes, live_peak);
        let lends = shares && may_move && few && near_peak;
        Ok(Means { may_move, may_wait, ready, most, made, longest, roomy, lends })
    }
}
