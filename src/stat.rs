//! One quantity over time: the number from which statistics are made. It is counted in the rooms
//! below and shown by `observe`.

/// One quantity over time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stat {
    /// Now.
    pub current: i64,
    /// The most since the last reset of peaks.
    pub peak: i64,
    /// All increases since the last reset of accumulated statistics.
    pub allocated: i64,
    /// All decreases since the last reset of accumulated statistics.
    pub freed: i64,
}

impl Stat {
    /// Counts an increase.
    pub(crate) fn increase(&mut self, by: i64) {
        self.current += by;
        self.allocated += by;
        self.peak = self.peak.max(self.current);
    }

    /// Counts a decrease.
    pub(crate) fn decrease(&mut self, by: i64) {
        self.current -= by;
        self.freed += by;
    }

    pub(crate) fn reset_peak(&mut self) {
        self.peak = self.current;
    }

    pub(crate) fn reset_accumulated(&mut self) {
        self.allocated = 0;
        self.freed = 0;
    }
}

/// One quantity, in all and by the size of the requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatArray {
    /// Both pools together.
    pub all: Stat,
    /// Requests of at most 1 MiB.
    pub small_pool: Stat,
    /// Larger requests.
    pub large_pool: Stat,
}
