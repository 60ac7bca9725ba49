//! The replay itself: a loop over events that calls a client, and nothing else.

use std::time::{Duration, Instant};

use plugalloc::device::Clock;
use plugalloc::units::format_bytes;
use plugalloc::{Address, Error, StreamId};

use crate::client::Client;
use crate::trace::{Event, Trace};

/// What to do with an allocation that does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnOutOfMemory {
    /// Count it, and go on without it.
    Count,
    /// Count it, and end there.
    Stop,
}

/// What a replay has seen.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// How long the loop took.
    pub(crate) elapsed: Duration,
    /// How many events were replayed.
    pub(crate) events: usize,
    /// How many allocations did not fit.
    pub(crate) ooms: u64,
    /// The error other than a lack of memory that ended the replay.
    pub(crate) failure: Option<String>,
    /// What is live now: the address of each allocation, or 0.
    addresses: Vec<Address>,
}

impl Outcome {
    /// The mean time of one event in nanoseconds.
    pub(crate) fn ns_per_event(&self) -> f64 {
        self.elapsed.as_nanos() as f64 / self.events.max(1) as f64
    }
}

/// Replays the trace, whose streams are those of `streams` in order. The allocator's clock is set
/// to the times of the trace, so that it takes no more of a second for itself than it would have
/// had. Reading the clock and everything else that is not the allocator's happens before or after
/// the loop that is timed.
pub(crate) fn replay(
    client: &impl Client,
    trace: &Trace,
    streams: &[StreamId],
    clock: &Clock,
    policy: OnOutOfMemory,
) -> Outcome {
    assert_eq!(trace.streams.len(), streams.len());
    let mut outcome = Outcome { addresses: vec![0; trace.allocations], ..Outcome::default() };
    let start = Instant::now();
    for (event, &time_us) in trace.events.iter().zip(&trace.times_us) {
        outcome.events += 1;
        clock.set_us(time_us);
        let result = match *event {
            Event::Allocate { allocation, stream, bytes } => {
                client.allocate(bytes, streams[stream as usize]).map(|address| {
                    outcome.addresses[allocation as usize] = address;
                })
            }
            Event::Free { allocation } => {
                match std::mem::take(&mut outcome.addresses[allocation as usize]) {
                    // Nothing was asked for, or it did not fit.
                    0 => Ok(()),
                    address => client.free(address),
                }
            }
        };
        if let Err(error) = result
            && !goes_on(&mut outcome, *event, &error, policy)
        {
            break;
        }
    }
    outcome.elapsed = start.elapsed();
    outcome
}

/// Notes an error, and says whether the replay goes on.
#[cold]
fn goes_on(outcome: &mut Outcome, event: Event, error: &Error, policy: OnOutOfMemory) -> bool {
    if error.is_out_of_memory() {
        outcome.ooms += 1;
        return policy == OnOutOfMemory::Count;
    }
    let what = match event {
        Event::Allocate { bytes, .. } => format!("allocating {}", format_bytes(bytes)),
        Event::Free { .. } => "freeing".to_owned(),
    };
    outcome.failure = Some(format!("event {}, {what}: {error}", outcome.events));
    false
}

/// Frees what a replay left live.
pub(crate) fn free_rest(client: &impl Client, outcome: &mut Outcome) -> Result<(), Error> {
    for address in std::mem::take(&mut outcome.addresses) {
        if address != 0 {
            client.free(address)?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "replay_tests.rs"]
mod tests;
