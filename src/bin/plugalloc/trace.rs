//! A trace as it is replayed, and how it is built from the lines of a file.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;
use plugalloc::Bytes;

use crate::trace_error::TraceError;
use crate::trace_lines::{Columns, Lines, Operation, Record};

/// One step of a replay. Allocations are numbered from 0 without gaps, and so are streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Allocate { allocation: u32, stream: u32, bytes: Bytes },
    Free { allocation: u32 },
}

/// A trace in memory.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trace {
    /// The steps, in order; a free of memory that became reusable later stands there.
    pub(crate) events: Vec<Event>,
    /// When each step happened, in microseconds since the first.
    pub(crate) times_us: Vec<u64>,
    /// How many allocations there are, in all.
    pub(crate) allocations: usize,
    /// The streams as the file numbers them, in the order of their first use.
    pub(crate) streams: Vec<u64>,
    /// The most bytes that were asked for and not freed at any one time.
    pub(crate) live_peak: Bytes,
    /// From the first event to the last.
    pub(crate) duration_us: u64,
}

impl Trace {
    /// Reads a file, plain or compressed.
    pub(crate) fn open(path: &Path) -> Result<Trace, TraceError> {
        let mut reader = BufReader::new(File::open(path).map_err(TraceError::Open)?);
        let begin = reader.fill_buf().map_err(|error| TraceError::Read { line: 1, error })?;
        if begin.starts_with(&[0x1f, 0x8b]) {
            Trace::read(BufReader::new(MultiGzDecoder::new(reader)))
        } else {
            Trace::read(reader)
        }
    }

    /// Reads lines.
    pub(crate) fn read(reader: impl BufRead) -> Result<Trace, TraceError> {
        let mut lines = Lines::new(reader);
        let columns = match lines.next()? {
            Some((_, header)) => Columns::find(header)?,
            None => return Err(TraceError::Empty),
        };
        let mut builder = Builder::default();
        while let Some((number, line)) = lines.next()? {
            builder.add(columns.record(number, line)?)?;
        }
        builder.finish()
    }
}

/// What the lines have told of one allocation.
struct Allocation {
    /// The line that allocates it.
    line: u64,
    bytes: Bytes,
    stream: u64,
    /// The line that frees it.
    freed: Option<u64>,
    /// The line from which it can be used again, where that is not the same.
    reusable: Option<u64>,
}

#[derive(Default)]
struct Builder {
    allocations: Vec<Allocation>,
    /// From the id in the file to the place in `allocations`.
    ids: HashMap<u64, u32>,
    steps: Vec<(Operation, u32, u64)>,
    first_us: Option<u64>,
    last_us: u64,
}

impl Builder {
    fn add(&mut self, record: Record) -> Result<(), TraceError> {
        let index = match record.operation {
            Operation::Allocate => self.allocate(&record)?,
            Operation::Free => self.free(&record)?,
            Operation::Reuse => self.reuse(&record)?,
        };
        self.steps.push((record.operation, index, record.time_us));
        // Threads may have written their events slightly out of order.
        self.first_us = Some(self.first_us.unwrap_or(u64::MAX).min(record.time_us));
        self.last_us = self.last_us.max(record.time_us);
        Ok(())
    }

    fn allocate(&mut self, record: &Record) -> Result<u32, TraceError> {
        let Record { line, id, .. } = *record;
        let index =
            u32::try_from(self.allocations.len()).map_err(|_| TraceError::TooLong { line })?;
        if let Some(earlier) = self.ids.insert(id, index) {
            let first = self.allocations[earlier as usize].line;
            return Err(TraceError::RepeatedId { line, id, first });
        }
        self.allocations.push(Allocation {
            line,
            bytes: record.bytes,
            stream: record.stream,
            freed: None,
            reusable: None,
        });
        Ok(index)
    }

    fn free(&mut self, record: &Record) -> Result<u32, TraceError> {
        let Record { line, id, .. } = *record;
        let (index, allocation) = self.known(record)?;
        match allocation.freed.replace(line) {
            Some(first) => Err(TraceError::RepeatedFree { line, id, first }),
            None => Ok(index),
        }
    }

    fn reuse(&mut self, record: &Record) -> Result<u32, TraceError> {
        let Record { line, id, .. } = *record;
        let (index, allocation) = self.known(record)?;
        if allocation.freed.is_none() {
            return Err(TraceError::ReuseBeforeFree { line, id });
        }
        match allocation.reusable.replace(line) {
            Some(first) => Err(TraceError::RepeatedReuse { line, id, first }),
            None => Ok(index),
        }
    }

    /// The allocation that a later line is about, which must agree with it.
    fn known(&mut self, record: &Record) -> Result<(u32, &mut Allocation), TraceError> {
        let Record { line, id, .. } = *record;
        let index = *self.ids.get(&id).ok_or(TraceError::UnknownId { line, id })?;
        let allocation = &mut self.allocations[index as usize];
        let pairs = [
            ("bytes", record.bytes, allocation.bytes),
            ("stream", record.stream, allocation.stream),
        ];
        for (column, found, expected) in pairs {
            if found != expected {
                let first = allocation.line;
                return Err(TraceError::Mismatch { line, id, column, found, expected, first });
            }
        }
        Ok((index, allocation))
    }

    fn finish(self) -> Result<Trace, TraceError> {
        let Some(first_us) = self.first_us else {
            return Err(TraceError::NoEvents);
        };
        let mut trace = Trace {
            allocations: self.allocations.len(),
            duration_us: self.last_us - first_us,
            ..Trace::default()
        };
        let mut streams = HashMap::new();
        // Wider than any sum of 64-bit sizes that fits in memory.
        let (mut live, mut live_peak) = (0u128, 0u128);
        for (operation, index, time_us) in self.steps {
            let allocation = &self.allocations[index as usize];
            let bytes = u128::from(allocation.bytes);
            match operation {
                Operation::Allocate => {
                    let stream = *streams.entry(allocation.stream).or_insert_with(|| {
                        trace.streams.push(allocation.stream);
                        trace.streams.len() as u32 - 1
                    });
                    let bytes = allocation.bytes;
                    trace.events.push(Event::Allocate { allocation: index, stream, bytes });
                    trace.times_us.push(time_us.saturating_sub(first_us));
                    live += u128::from(bytes);
                    live_peak = live_peak.max(live);
                }
                Operation::Free if allocation.reusable.is_some() => {}
                Operation::Free | Operation::Reuse => {
                    trace.events.push(Event::Free { allocation: index });
                    trace.times_us.push(time_us.saturating_sub(first_us));
                    live -= bytes;
                }
            }
        }
        trace.live_peak = Bytes::try_from(live_peak).unwrap_or(Bytes::MAX);
        Ok(trace)
    }
}

#[cfg(test)]
#[path = "trace_tests.rs"]
mod tests;
