//! How much time may be spent on moving memory now.

use super::Policy;
use crate::units::{Bytes, GRANULE};

/// A store of time to spend on moving memory, which fills while a program does other things than
/// allocate, until all memory in use could be moved a few times.
///
/// Without that limit a program whose thread was idle for a while, or whose allocations took longer
/// than [`Policy::allocation_ns`], could do little else but move memory for long after that.
#[derive(Debug)]
pub(crate) struct MovingTime {
    /// May be below zero, since what a request moves is only known afterwards.
    left_ns: i64,
    /// Up to when time is counted.
    seen_us: u64,
    /// The heap that asked last, and for how long it was served.
    last: Option<u32>,
    served_us: u64,
}

impl MovingTime {
    /// At the start of the clock.
    pub(crate) fn new(policy: &Policy) -> Self {
        MovingTime {
            left_ns: nanoseconds(policy.moving_burst_us),
            seen_us: 0,
            last: None,
            served_us: 0,
        }
    }

    /// Adds what came up to `now_us`, while the heap that asks served so many `allocations`. So
    /// much is `live` on the device.
    ///
    /// What other heaps served meanwhile is left out: either they come here themselves before long,
    /// or other threads served it at the same time. For the same reason the time in which a heap
    /// was served here is time that others spent elsewhere; but not if it comes again itself: else
    /// a program that only allocates could move for ever on a device where a move takes as many
    /// times its price as the share of time says.
    pub(crate) fn refill(
        &mut self,
        policy: &Policy,
        now_us: u64,
        (heap, allocations): (u32, u64),
        live: Bytes,
    ) {
        let own_us = if self.last == Some(heap) { self.served_us } else { 0 };
        let passed_us = now_us.saturating_sub(self.seen_us);
        let passed = nanoseconds(passed_us.saturating_sub(own_us));
        let allocating = signed(allocations.saturating_mul(policy.allocation_ns));
        let elsewhere = passed.saturating_sub(allocating).max(0);
        let turn_us = (live / GRANULE).saturating_mul(policy.move_us);
        let most_us = turn_us.saturating_mul(policy.moving_turns);
        let most = nanoseconds(most_us.saturating_add(policy.moving_burst_us));
        let share = (elsewhere / 100).saturating_mul(signed(policy.moving_percent));
        let left = self.left_ns.saturating_add(share);
        self.left_ns = left.min(most);
        self.seen_us = self.seen_us.max(now_us);
        (self.last, self.served_us) = (Some(heap), 0);
    }

    /// Whether memory may be moved. A program that allocates more often than its memory can be
    /// rearranged gets more memory instead; so does one that does hardly anything but allocate,
    /// which moving would slow down by as much as it takes.
    pub(crate) fn is_left(&self) -> bool {
        self.left_ns > 0
    }

    /// A handle has been moved.
    pub(crate) fn spend(&mut self, policy: &Policy) {
        self.left_ns = self.left_ns.saturating_sub(nanoseconds(policy.move_us));
    }

    /// The heap that asked last has been served.
    pub(crate) fn finish(&mut self, now_us: u64) {
        self.served_us = now_us.saturating_sub(self.seen_us);
    }
}

fn nanoseconds(us: u64) -> i64 {
    signed(us.saturating_mul(1000))
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    const SECOND: u64 = 1_000_000;
    const MUCH: Bytes = 1 << 44;

    fn policy() -> Policy {
        Policy::new(&Config::default())
    }

    /// How often memory can be moved until nothing is left.
    fn moves_left(moving: &mut MovingTime, policy: &Policy) -> u64 {
        let mut moves = 0;
        while moving.is_left() {
            moving.spend(policy);
            moves += 1;
        }
        moves
    }

    #[test]
    fn a_share_of_the_time_spent_elsewhere_is_for_moving() {
        let policy = policy();
        let mut moving = MovingTime::new(&policy);
        assert_eq!(
            moves_left(&mut moving, &policy),
            policy.moving_burst_us.div_ceil(policy.move_us)
        );
        moving.left_ns = 0;
        moving.refill(&policy, 3 * SECOND, (0, 0), MUCH);
        let share_us = 3 * SECOND / 100 * policy.moving_percent;
        assert_eq!(moves_left(&mut moving, &policy), share_us.div_ceil(policy.move_us));
        // The same time is not counted twice, nor where the clock goes back.
        moving.refill(&policy, 3 * SECOND, (0, 0), MUCH);
        moving.refill(&policy, SECOND, (0, 0), MUCH);
        moving.refill(&policy, 3 * SECOND, (0, 0), MUCH);
        assert!(!moving.is_left());
    }

    #[test]
    fn with_no_percent_nothing_is_moved_after_the_burst() {
        let policy = Policy::new(&Config { moving_percent: 0, ..Config::default() });
        let mut moving = MovingTime::new(&policy);
        assert!(moves_left(&mut moving, &policy) > 0);
        moving.refill(&policy, 3600 * SECOND, (0, 0), MUCH);
        assert!(!moving.is_left());
    }

    #[test]
    fn a_program_that_only_allocates_may_move_no_more_than_the_burst() {
        let policy = policy();
        let per_second = SECOND * 1000 / policy.allocation_ns;
        for allocations in [per_second, 3 * per_second, u64::MAX] {
            let mut moving = MovingTime::new(&policy);
            moves_left(&mut moving, &policy);
            moving.refill(&policy, SECOND, (0, allocations), MUCH);
            assert!(!moving.is_left(), "{allocations} allocations in a second");
        }
        let mut moving = MovingTime::new(&policy);
        moves_left(&mut moving, &policy);
        moving.refill(&policy, SECOND, (0, per_second / 2), MUCH);
        assert!(moving.is_left(), "half of the second is spent elsewhere");
    }

    #[test]
    fn the_time_in_which_a_heap_is_served_is_spent_elsewhere_by_others() {
        let policy = policy();
        for (next, counted) in [(7, 0), (8, SECOND)] {
            let mut moving = MovingTime::new(&policy);
            moving.refill(&policy, SECOND, (7, u64::MAX), MUCH);
            moving.finish(2 * SECOND);
            moving.refill(&policy, 2 * SECOND, (next, 0), MUCH);
            let left_us = policy.moving_burst_us + counted / 100 * policy.moving_percent;
            assert_eq!(moving.left_ns / 1000, left_us as i64, "heap {next} after heap 7");
        }
    }

    #[test]
    fn what_is_kept_moves_live_memory_a_few_times() {
        let policy = policy();
        let live = 1024 * GRANULE;
        let mut moving = MovingTime::new(&policy);
        moving.refill(&policy, 3600 * SECOND, (0, 0), live);
        let most = policy.moving_turns * 1024 + policy.moving_burst_us.div_ceil(policy.move_us);
        assert_eq!(moves_left(&mut moving, &policy), most);
        moving.refill(&policy, u64::MAX, (0, 0), Bytes::MAX);
        assert!(moving.is_left());
    }
}
