//! Time, as policies see it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Means that the time is real.
const REAL: u64 = u64::MAX;

/// Microseconds since the allocator was made: real ones, or those of a recorded run that is
/// replayed faster than it happened.
#[derive(Debug)]
pub struct Clock {
    start: Instant,
    set: AtomicU64,
}

impl Default for Clock {
    fn default() -> Self {
        Clock { start: Instant::now(), set: AtomicU64::new(REAL) }
    }
}

impl Clock {
    /// Microseconds since the clock was made, or what was last [set](Clock::set_us).
    pub fn now_us(&self) -> u64 {
        match self.set.load(Ordering::Relaxed) {
            REAL => self.start.elapsed().as_micros() as u64,
            set => set,
        }
    }

    /// From here on the clock stands at `us` until it is set again. A replay sets it to the time of
    /// each event, so that what is limited by time is limited by the time of the run that was
    /// recorded.
    ///
    /// ```
    /// let clock = plugalloc::device::Clock::default();
    /// clock.set_us(1_000_000);
    /// assert_eq!(clock.now_us(), 1_000_000);
    /// ```
    #[inline]
    pub fn set_us(&self, us: u64) {
        self.set.store(us.min(REAL - 1), Ordering::Relaxed);
    }
}
