//! The policy of physical memory, in one place: of which sizes handles are made, and when growing
//! is preferred to stealing. It is judged by two measures, reserved over live peak and driver time;
//! `docs/policy-notes.md` has the measurements that chose it.

use crate::config::Config;
use crate::units::{Bytes, GRANULE, KIB, MIB};

/// What the driver's calls cost on an H100, in microseconds. Save for giving memory back, the price
/// is by the handle, whatever its length.
pub(crate) mod price {
    use crate::units::{Bytes, MIB};

    pub(crate) const CREATE_US: u64 = 14;
    /// `cuMemMap` and `cuMemSetAccess`.
    pub(crate) const MAP_US: u64 = 30;
    pub(crate) const UNMAP_US: u64 = 18;

    pub(crate) fn release_us(bytes: Bytes) -> u64 {
        13 + bytes / MIB
    }
}

/// The choices.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    /// The largest handle that is made; a power of two.
    pub(crate) max_handle: Bytes,
    /// The same save where streams that share memory keep the driver busy.
    pub(crate) usual_handle: Bytes,
    /// A handle for a request is as long as the geometric mean of the request and this length: a
    /// longer one saves calls, one at a time and in proportion to the request, and costs memory at
    /// its edges in proportion to its own length.
    pub(crate) request_length: Bytes,
    /// Handles longer than this fraction of the most that was ever live are cut up when they move.
    pub(crate) peak_share: u64,
    /// The same where several streams share memory and the driver takes more than `1/busy_share` of
    /// all time. Whoever needs memory waits there while handles of others move, one after the
    /// other: they are longer, for fewer calls, and up to some percent more memory.
    pub(crate) busy_share: u64,
    pub(crate) busy_request_length: Bytes,
    pub(crate) busy_peak_share: u64,
    /// Handles longer than this fraction of it are not made.
    pub(crate) made_share: u64,
    /// Memory is taken from the device without stealing as long as what is reserved stays within
    /// `1 + 1/slack_share` of the most that was ever live.
    pub(crate) slack_share: u64,
    /// A plan with one piece fewer may take this many bytes more.
    pub(crate) piece_bytes: Bytes,
    /// What moving a handle costs in microseconds: one `cuMemMap` and one `cuMemSetAccess` on an
    /// H100.
    pub(crate) move_us: u64,
    /// Small requests are served by other heaps' memory once that was not used for so many
    /// microseconds: what a heap at work leaves unused for a moment it needs again, and heaps that
    /// took it from each other in turn would do little else.
    pub(crate) rest_us: u64,
    /// How many microseconds may be spent on moving from the start, and how many percent of the
    /// time that a program does not spend on allocations, of which each is taken to last so many
    /// nanoseconds. Of that so much is kept, besides the burst, as moving all live memory so many
    /// times takes.
    pub(crate) moving_burst_us: u64,
    pub(crate) moving_percent: u64,
    pub(crate) allocation_ns: u64,
    pub(crate) moving_turns: u64,
    /// Streams wait for each other rather than take more memory from the device once it is beyond
    /// `1 + 1/waiting_share` of the most that was ever live.
    pub(crate) waiting_share: u64,
    /// The driver may take this share of all time,
    pub(crate) driver_share: u64,
    /// and one request this share of what is left of it.
    pub(crate) left_share: u64,
    /// Remainders are lent before a request fails, and with no more handles in use than this
    /// sooner: to look at what everybody leaves takes time in proportion to them, while requests of
    /// all streams wait, and what there is to be had in large memory is a smaller part of it. With
    /// more, memory is not kept side by side either, for the same reason.
    pub(crate) few_handles: usize,
    /// The shortest remainder that is lent to small requests in place of a page of their own.
    pub(crate) lent_to_small: Bytes,
    /// Requests shorter than this are made up of whole handles between remainders even where idle
    /// memory would serve them where it lies, if that saves so many bytes for each call,
    pub(crate) early_loan_request: Bytes,
    pub(crate) early_loan_worth: Bytes,
    /// as long as the driver has taken less than this share of all time.
    pub(crate) early_loan_share: u64,
    /// A device is mostly empty as long as less than this share of it is reserved. Where several
    /// streams share memory there, it is kept side by side, so that less of it has to move, at some
    /// tenths of a percent more.
    pub(crate) roomy_share: u64,
    /// There nothing is lent while less than so many percent of the most that was ever live are:
    /// what loans save counts near the peak alone, and idle memory that lies where it is costs no
    /// call,
    pub(crate) lending_live_percent: u64,
    /// and a run of idle views that has at least this share of a request is continued into the hole
    /// beside it, rather than all of the request's memory moved to another place.
    pub(crate) run_share: u64,
    /// There a request is served from a run of another heap that is longer by two granules and this
    /// share of the request, at most, without a look at everything that is idle.
    pub(crate) near_share: u64,
    /// Whether idle memory of other heaps is used at all.
    pub(crate) steal: bool,
}

impl Policy {
    pub(crate) fn new(config: &Config) -> Self {
        Policy {
            max_handle: config.max_handle,
            usual_handle: (config.max_handle / 4).max(16 * MIB).min(config.max_handle),
            request_length: 3 * MIB,
            peak_share: 900,
            busy_share: 20,
            busy_request_length: 12 * MIB,
            busy_peak_share: 56,
            made_share: 32,
            slack_share: 300,
            piece_bytes: MIB,
            move_us: 30,
            rest_us: 3_000,
            moving_burst_us: 10_000,
            moving_percent: config.moving_percent,
            allocation_ns: 200,
            moving_turns: 2,
            waiting_share: 20,
            driver_share: 110,
            left_share: 4,
            few_handles: 1024,
            lent_to_small: 512 * KIB,
            early_loan_request: 24 * MIB,
            early_loan_worth: 128 * KIB,
            early_loan_share: 112,
            roomy_share: 8,
            lending_live_percent: 70,
            run_share: 4,
            near_share: 4,
            steal: config.steal,
        }
    }

    /// Whether the driver takes so much time that calls count for more than memory, where several
    /// streams share it.
    pub(crate) fn is_busy(&self, spent_us: u64, now_us: u64) -> bool {
        spent_us > now_us / self.busy_share
    }

    /// The longest handle of all.
    fn most(&self, busy: bool) -> Bytes {
        if busy { self.max_handle } else { self.usual_handle }
    }

    /// The longest handle that is made for a request of `request` bytes; `grain` is how long
    /// handles may be.
    pub(crate) fn longest_made(&self, request: Bytes, grain: Bytes, busy: bool) -> Bytes {
        let length = if busy { self.busy_request_length } else { self.request_length };
        let most = request.saturating_mul(length).isqrt().clamp(GRANULE, self.most(busy));
        most.min(grain.max(GRANULE))
    }

    /// The size of a new handle for a gap of which `remaining` bytes are left, of at most
    /// `longest`.
    pub(crate) fn handle_size(&self, remaining: Bytes, longest: Bytes) -> Bytes {
        1 << longest.min(remaining.max(GRANULE)).ilog2()
    }

    /// How long the handles of a request may be: short enough that making all that the request may
    /// need takes a share of the time that is left to the driver, and not so long that a few of
    /// them, each pinned by one block, are much of a small device.
    pub(crate) fn grain(
        &self,
        request: Bytes,
        live_peak: Bytes,
        (spent_us, now_us): (u64, u64),
        busy: bool,
    ) -> Bytes {
        let left_us = (now_us / self.driver_share).saturating_sub(spent_us) / self.left_share;
        let most = self.most(busy).min(live_peak / self.made_share).max(GRANULE);
        match left_us / (price::CREATE_US + price::MAP_US) {
            0 => most,
            handles => (request / handles).max(GRANULE).next_power_of_two().min(most),
        }
    }

    /// Whether a request is made up of whole handles between remainders while there is idle memory
    /// that would serve it where it lies: that costs a call for each handle and each remainder, and
    /// keeps what the request's last handle has beyond it from being one more remainder.
    pub(crate) fn may_lend_early(&self, request: Bytes, spent_us: u64, now_us: u64) -> bool {
        let calls = request / GRANULE + 1;
        let saved = GRANULE - request % GRANULE;
        request < self.early_loan_request
            && saved >= calls * self.early_loan_worth
            && spent_us + calls * self.move_us < now_us / self.early_loan_share
    }

    /// Whether most of a device was never taken.
    pub(crate) fn is_roomy(&self, reserved: Bytes, capacity: Bytes) -> bool {
        reserved < capacity / self.roomy_share
    }

    /// Whether anything is lent on a mostly empty device before a request would fail: not while
    /// much of what was taken is idle.
    pub(crate) fn may_lend_in_room(&self, live: Bytes, live_peak: Bytes) -> bool {
        live >= live_peak / 100 * self.lending_live_percent
    }

    /// How long a run of idle views may be from which a request of `request` bytes is served
    /// without a look at all others.
    pub(crate) fn longest_run(&self, request: Bytes) -> Bytes {
        request.saturating_add(request / self.near_share).saturating_add(2 * GRANULE)
    }

    /// Whether a request takes memory that queued work still uses, and waits for it, rather than
    /// let what is reserved grow to this.
    pub(crate) fn may_wait(&self, reserved: Bytes, live_peak: Bytes) -> bool {
        reserved > live_peak + live_peak / self.waiting_share
    }

    /// How many dormant views are kept beside so many active ones. Each saves a call when it wakes;
    /// but an operating system bounds the mappings of a process (the simulated device's are such),
    /// and a driver keeps tables.
    pub(crate) fn most_dormant(&self, active: usize) -> usize {
        2048 + 8 * active
    }

    /// The longest handle that moves whole. What a handle's length costs is the free memory that
    /// one live block pins with it, so that lengths have to shrink with the memory in use.
    pub(crate) fn longest_moved(&self, live_peak: Bytes, grain: Bytes, busy: bool) -> Bytes {
        let share = if busy { self.busy_peak_share } else { self.peak_share };
        1 << (live_peak / share).min(grain).max(GRANULE).ilog2()
    }

    /// How many bytes may be taken from the device rather than stolen.
    pub(crate) fn free_growth(&self, reserved: Bytes, live_peak: Bytes) -> Bytes {
        (live_peak + live_peak / self.slack_share).saturating_sub(reserved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> Policy {
        Policy::new(&Config::default())
    }

    #[test]
    fn early_loans_are_made_where_they_save_much_and_time_is_left() {
        let policy = policy();
        let day = 86_400_000_000;
        assert!(policy.may_lend_early(8 * MIB + MIB / 2, 0, day));
        assert!(!policy.may_lend_early(8 * MIB + 2 * MIB - 4 * KIB, 0, day), "nothing saved");
        assert!(!policy.may_lend_early(30 * MIB, 0, day), "too many calls");
        assert!(!policy.may_lend_early(8 * MIB + MIB / 2, day / policy.early_loan_share, day));
    }

    #[test]
    fn a_mostly_empty_device_lends_nothing_far_below_the_peak() {
        let policy = policy();
        assert!(policy.is_roomy(10_000 * MIB - 1, 80_000 * MIB));
        assert!(!policy.is_roomy(10_000 * MIB, 80_000 * MIB));
        assert!(!policy.may_lend_in_room(6_900 * MIB, 10_000 * MIB));
        assert!(policy.may_lend_in_room(7_000 * MIB, 10_000 * MIB));
    }

    #[test]
    fn handles_are_longer_where_streams_share_memory_and_the_driver_is_busy() {
        let policy = policy();
        assert!(!policy.is_busy(50_000, 1_000_000) && policy.is_busy(50_001, 1_000_000));
        let (grain, live_peak) = (64 * MIB, 3600 * MIB);
        let made = |busy| policy.handle_size(64 * MIB, policy.longest_made(8 * MIB, grain, busy));
        assert_eq!((made(false), made(true)), (4 * MIB, 8 * MIB));
        let moved = |busy| policy.longest_moved(live_peak, grain, busy);
        assert_eq!((moved(false), moved(true)), (4 * MIB, 64 * MIB));
        // No longer than what is left, than handles may be, and than one is ever made.
        assert_eq!(policy.handle_size(5 * MIB, policy.longest_made(8 * MIB, grain, true)), 4 * MIB);
        assert_eq!(policy.longest_made(8 * MIB, 4 * MIB, true), 4 * MIB);
        assert_eq!(policy.longest_made(u64::MAX, 1 << 40, true), policy.max_handle);
        assert_eq!(policy.longest_made(u64::MAX, 1 << 40, false), 16 * MIB);
        assert_eq!(policy.longest_moved(live_peak, 2 * MIB, true), GRANULE);
    }

    #[test]
    fn the_longest_handle_is_no_longer_than_is_set() {
        let usual = |mib: Bytes| {
            let max_handle = mib * MIB;
            let policy = Policy::new(&Config { max_handle, ..Config::default() });
            let most = [false, true].map(|busy| policy.longest_made(u64::MAX, 1 << 40, busy));
            assert_eq!(most[1], max_handle);
            most[0] / MIB
        };
        assert_eq!([2, 16, 32, 64, 128, 1024].map(usual), [2, 16, 16, 16, 32, 256]);
    }

    #[test]
    fn handles_are_short_on_a_small_device_and_where_time_is_left() {
        let policy = policy();
        let grain = |request, peak, time| policy.grain(request, peak, time, false);
        assert_eq!(grain(64 * MIB, 64 << 30, (0, 0)), policy.usual_handle);
        assert_eq!(policy.grain(64 * MIB, 64 << 30, (0, 0), true), policy.max_handle);
        assert_eq!(grain(64 * MIB, 128 * MIB, (0, 0)), 4 * MIB);
        assert_eq!(grain(64 * MIB, MIB, (0, 0)), GRANULE);
        let (day, most) = (86_400_000_000, 64 << 30);
        assert_eq!(grain(64 * MIB, most, (0, day)), GRANULE);
        assert_eq!(grain(64 * MIB, most, (day / policy.driver_share, day)), policy.usual_handle);
    }
}
