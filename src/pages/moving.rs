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
    /// What was spent since that.
    spent_ns: i64,
}

/// A move counts with the time that it really took, up to so many times its price: a thread may
/// also wait there for something else.
const DEAREST: i64 = 3;

impl MovingTime {
    /// At the start of the clock.
    pub(crate) fn new(policy: &Policy) -> Self {
        MovingTime { left_ns: nanoseconds(policy.moving_burst_us), seen_us: 0, spent_ns: 0 }
    }

    /// Adds what came up to `now_us`, while the heap that asks served so many `allocations`. So
    /// much is `live` on the device.
    ///
    /// What other heaps served meanwhile is left out: either they come here themselves before long,
    /// or other threads served it at the same time.
    pub(crate) fn refill(&mut self, policy: &Policy, now_us: u64, allocations: u64, live: Bytes) {
        let passed = nanoseconds(now_us.saturating_sub(self.seen_us));
        let allocating = signed(allocations.saturating_mul(policy.allocation_ns));
        let elsewhere = passed.saturating_sub(allocating).max(0);
        let turn_us = (live / GRANULE).saturating_mul(policy.move_us);
        let most_us = turn_us.saturating_mul(policy.moving_turns);
        let most = nanoseconds(most_us.saturating_add(policy.moving_burst_us));
        let left = self.left_ns.saturating_add(elsewhere / signed(policy.moving_share));
        self.left_ns = left.min(most);
        self.seen_us = self.seen_us.max(now_us);
    }

    /// Whether memory may be moved. A program that allocates more often than its memory can be
    /// rearranged gets more memory instead; so does one that does hardly anything but allocate,
    /// which moving would slow down by as much as it takes.
    pub(crate) fn is_left(&self) -> bool {
        self.left_ns > 0
    }

    /// A handle has been moved.
    pub(crate) fn spend(&mut self, policy: &Policy) {
        let price = nanoseconds(policy.move_us);
        self.left_ns = self.left_ns.saturating_sub(price);
        self.spent_ns = self.spent_ns.saturating_add(price);
    }

    /// The request is served: what that took up to `now_us` is no time spent elsewhere. On a device
    /// where moves take three times their price a third of that time would pay for them otherwise,
    /// for ever.
    pub(crate) fn finish(&mut self, now_us: u64) {
        let took = nanoseconds(now_us.saturating_sub(self.seen_us));
        let dearest = self.spent_ns.saturating_mul(DEAREST);
        let more = took.min(dearest).saturating_sub(self.spent_ns).max(0);
        self.left_ns = self.left_ns.saturating_sub(more);
        self.seen_us = self.seen_us.max(now_us);
        self.spent_ns = 0;
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
        moving.refill(&policy, 3 * SECOND, 0, MUCH);
        let share_us = 3 * SECOND / policy.moving_share;
        assert_eq!(moves_left(&mut moving, &policy), share_us.div_ceil(policy.move_us));
        // The same time is not counted twice, nor where the clock goes back.
        moving.refill(&policy, 3 * SECOND, 0, MUCH);
        moving.refill(&policy, SECOND, 0, MUCH);
        moving.refill(&policy, 3 * SECOND, 0, MUCH);
        assert!(!moving.is_left());
    }

    #[test]
    fn a_program_that_only_allocates_may_move_no_more_than_the_burst() {
        let policy = policy();
        let per_second = SECOND * 1000 / policy.allocation_ns;
        for allocations in [per_second, 3 * per_second, u64::MAX] {
            let mut moving = MovingTime::new(&policy);
            moves_left(&mut moving, &policy);
            moving.refill(&policy, SECOND, allocations, MUCH);
            assert!(!moving.is_left(), "{allocations} allocations in a second");
        }
        let mut moving = MovingTime::new(&policy);
        moves_left(&mut moving, &policy);
        moving.refill(&policy, SECOND, per_second / 2, MUCH);
        assert!(moving.is_left(), "half of the second is spent elsewhere");
    }

    #[test]
    fn moves_that_take_longer_count_for_more_and_pay_for_no_others() {
        let policy = policy();
        for (took, counted) in [(0, 1), (1, 1), (2, 2), (3, 3), (100, 3)] {
            let mut moving = MovingTime::new(&policy);
            moving.refill(&policy, SECOND, 0, 0);
            (0..10).for_each(|_| moving.spend(&policy));
            let end = SECOND + 10 * policy.move_us * took;
            moving.finish(end);
            moving.refill(&policy, end, 0, 0);
            let left = policy.moving_burst_us - 10 * policy.move_us * counted;
            assert_eq!(moving.left_ns, nanoseconds(left), "each took {took} times its price");
        }
    }

    #[test]
    fn what_is_kept_moves_live_memory_a_few_times() {
        let policy = policy();
        let live = 1024 * GRANULE;
        let mut moving = MovingTime::new(&policy);
        moving.refill(&policy, 3600 * SECOND, 0, live);
        let most = policy.moving_turns * 1024 + policy.moving_burst_us.div_ceil(policy.move_us);
        assert_eq!(moves_left(&mut moving, &policy), most);
        moving.refill(&policy, u64::MAX, 0, Bytes::MAX);
        assert!(moving.is_left());
    }
}
