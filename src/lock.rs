//! The lock of a heap: taken and given back on every call, so that each of the two has to be cheap.
//!
//! An ordinary lock is given back with an atomic exchange, since it has to learn whether anybody
//! waits: about 20 cycles, as many as taking it. This one is given back with a plain store, and
//! whoever finds it taken comes back by himself: at once a few times, then after letting others
//! run, then after sleeps of up to a tenth of a millisecond. It is taken for less than that, save
//! while the driver is called under it.

use std::time::Duration;

use parking_lot::lock_api::{self, GuardNoSend, RawMutex};

use crate::sync::{AtomicBool, Ordering, sleep, spin_loop, yield_now};

/// A value behind such a lock.
pub(crate) type Mutex<T> = lock_api::Mutex<PollingLock, T>;
/// Access to it.
pub(crate) type MutexGuard<'a, T> = lock_api::MutexGuard<'a, PollingLock, T>;

/// How often a thread looks again at once, and then after yielding.
const SPINS: u32 = 64;
const YIELDS: u32 = 16;
/// How long it sleeps between looks after that, at first and at most.
const FIRST_SLEEP: Duration = Duration::from_micros(5);
const LONGEST_SLEEP: Duration = Duration::from_micros(100);

/// The lock itself.
#[derive(Debug)]
pub(crate) struct PollingLock(AtomicBool);

impl PollingLock {
    #[cold]
    fn lock_contended(&self) {
        let mut looks = 0;
        let mut pause = FIRST_SLEEP;
        loop {
            // Looking leaves the line shared; only a lock that is free is worth a write.
            if !self.0.load(Ordering::Relaxed) && self.try_lock() {
                return;
            }
            looks += 1;
            if looks < SPINS {
                spin_loop();
            } else if looks < SPINS + YIELDS {
                yield_now();
            } else {
                sleep(pause);
                pause = (pause * 2).min(LONGEST_SLEEP);
            }
        }
    }
}

// SAFETY: the flag is false exactly while nobody has the lock: only the thread that changed it from
// false to true has it, and it alone changes it back. The exchange acquires what the store of the
// last holder released.
unsafe impl RawMutex for PollingLock {
    #[allow(clippy::declare_interior_mutable_const, reason = "the trait wants it so")]
    const INIT: PollingLock = PollingLock(AtomicBool::new(false));

    type GuardMarker = GuardNoSend;

    #[inline]
    fn lock(&self) {
        if !self.try_lock() {
            self.lock_contended();
        }
    }

    #[inline]
    fn try_lock(&self) -> bool {
        self.0.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    #[inline]
    unsafe fn unlock(&self) {
        self.0.store(false, Ordering::Release);
    }

    #[inline]
    fn is_locked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(all(test, loom))]
mod model;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_take_turns_and_none_loses_a_count() {
        let count = Mutex::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..20_000).for_each(|_| *count.lock() += 1));
            }
        });
        assert_eq!(count.into_inner(), 80_000);
    }

    #[test]
    fn a_thread_waits_for_a_lock_that_is_held_long() {
        let lock = Mutex::new(0);
        let held = lock.lock();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| *lock.lock() = 2);
            std::thread::sleep(Duration::from_millis(5));
            assert!(!waiting.is_finished());
            assert!(lock.try_lock().is_none());
            drop(held);
        });
        assert_eq!(lock.into_inner(), 2);
    }
}
