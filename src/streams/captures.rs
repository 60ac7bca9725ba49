//! Which captures may be under way, as far as the program has told: while one may be, no event of
//! the device is asked or waited for.

use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;

use crate::device::{Device, DeviceResult};
use crate::error::DeviceErrorKind;
use crate::units::{PoolId, StreamId};

/// The captures of one device that were announced, and the pools that allocations are sent to,
/// since a capture may be why.
#[derive(Debug, Default)]
pub(crate) struct Captures {
    /// Marks and watches together, so that the usual case is one load.
    count: AtomicU32,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    marks: u32,
    watches: Vec<Watch>,
}

/// A pool that allocations are sent to, and the streams of those that came.
#[derive(Debug)]
struct Watch {
    pool: PoolId,
    streams: Vec<StreamId>,
    /// Whether any has come.
    known: bool,
}

impl Captures {
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.lock();
        let result = change(&mut state);
        let count = state.marks + state.watches.len() as u32;
        self.count.store(count, Ordering::Release);
        result
    }

    /// A capture begins.
    pub(crate) fn mark_begin(&self) {
        self.change(|state| state.marks += 1);
    }

    /// A capture has ended; false where none had begun.
    #[must_use]
    pub(crate) fn mark_end(&self) -> bool {
        self.change(|state| {
            let begun = state.marks > 0;
            state.marks -= u32::from(begun);
            begun
        })
    }

    /// How many captures were marked that have not ended.
    pub(crate) fn marks(&self) -> u32 {
        match self.count.load(Ordering::Acquire) {
            0 => 0,
            _ => self.state.lock().marks,
        }
    }

    /// Allocations go to a pool from now on.
    pub(crate) fn watch(&self, pool: PoolId) {
        self.change(|state| state.watches.push(Watch { pool, streams: Vec::new(), known: false }));
    }

    /// One came, on this stream.
    pub(crate) fn saw(&self, pool: PoolId, stream: StreamId) {
        let mut state = self.state.lock();
        let watch = state.watches.iter_mut().find(|watch| watch.pool == pool);
        if let Some(watch) = watch.filter(|watch| !watch.streams.contains(&stream)) {
            watch.streams.push(stream);
            watch.known = true;
        }
    }

    /// A stream is about to be destroyed: it is not asked any more.
    pub(crate) fn forget(&self, stream: StreamId) {
        if self.count.load(Ordering::Acquire) > 0 {
            for watch in &mut self.state.lock().watches {
                watch.streams.retain(|&seen| seen != stream);
            }
        }
    }

    /// Allocations no longer go to a pool.
    pub(crate) fn unwatch(&self, pool: PoolId) {
        self.change(|state| state.watches.retain(|watch| watch.pool != pool));
    }

    /// Whether a capture may be under way: one was marked, or allocations are sent to a pool for
    /// streams of which one is being captured, or which are not known yet.
    pub(crate) fn may_be_under_way(&self, device: &dyn Device) -> DeviceResult<bool> {
        if self.count.load(Ordering::Acquire) == 0 {
            return Ok(false);
        }
        let state = self.state.lock();
        if state.marks > 0 || state.watches.iter().any(|watch| !watch.known) {
            return Ok(true);
        }
        for &stream in state.watches.iter().flat_map(|watch| &watch.streams) {
            match device.capture_status(stream) {
                Ok(None) => {}
                // It was destroyed.
                Err(error) if error.kind == DeviceErrorKind::Misuse => {}
                Ok(Some(_)) => return Ok(true),
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }
}
