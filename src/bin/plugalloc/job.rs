//! One trace on one device: a fresh allocator over a fresh device for each run, and the checks
//! after it.

use std::path::Path;
use std::sync::Arc;

use indicatif::ProgressBar;
use plugalloc::observe::HistoryOptions;
use plugalloc::units::format_bytes;
use plugalloc::{Allocator, Bytes, Config, DeviceId, Error, StreamId};

use crate::arguments::{DeviceChoice, Via};
use crate::client::{Client, RustClient};
use crate::client_cpp::CppClient;
use crate::least::least_capacity;
use crate::machine::{Machine, Usage};
use crate::replay::{OnOutOfMemory, Outcome, free_rest, replay};
use crate::report::{Least, Report};
use crate::trace::Trace;

/// What is replayed, and how.
#[derive(Debug)]
pub(crate) struct Job<'a> {
    /// The trace's name.
    pub(crate) name: String,
    pub(crate) trace: &'a Trace,
    pub(crate) device: DeviceChoice,
    /// The memory that the device has; `None`: the device's own.
    pub(crate) capacity: Option<Bytes>,
    pub(crate) via: Via,
    pub(crate) config: &'a Config,
    /// Where a snapshot is written.
    pub(crate) snapshots: Option<&'a Path>,
}

/// The most events of a history that are kept: some hundred megabytes.
const MOST_EVENTS: usize = 1_000_000;

/// One replay.
struct Sample {
    outcome: Outcome,
    /// What the device counted until the last event.
    usage: Usage,
    /// The memory that the device has.
    total: Bytes,
    /// What went wrong, out of memory excepted.
    problems: Vec<String>,
}

/// What one replay runs on.
struct Bench<'a> {
    allocator: &'a Allocator,
    machine: &'a Machine,
    streams: &'a [StreamId],
    snapshots: Option<&'a Path>,
}

impl Job<'_> {
    /// Replays the trace, and where `least` is set looks for the least capacity that suffices.
    ///
    /// # Errors
    /// Only where there is no such device or no allocator over it; what goes wrong later is in the
    /// report.
    pub(crate) fn run(&self, least: bool, progress: &ProgressBar) -> Result<Report, Error> {
        let sample = self.sample(self.capacity, OnOutOfMemory::Count, self.snapshots)?;
        let mut report = Report {
            trace: self.name.clone(),
            device: self.device.to_string(),
            via: self.via.to_string(),
            config: self.config.to_text(),
            capacity: sample.total,
            events: sample.outcome.events,
            allocations: self.trace.allocations,
            streams: self.trace.streams.len(),
            live_peak: self.trace.live_peak,
            reserved_peak: sample.usage.used_peak,
            ns_per_event: sample.outcome.ns_per_event(),
            driver_calls: sample.usage.calls,
            driver_ms: sample.usage.microseconds / 1e3,
            ooms: sample.outcome.ooms,
            duration_ms: self.trace.duration_us as f64 / 1e3,
            least: None,
            least_wanted: least,
            problems: sample.problems,
        };
        if report.ooms > 0 {
            let bytes = format_bytes(report.capacity);
            let problem = format!("{} allocation(s) did not fit in {bytes}", report.ooms);
            report.problems.push(problem);
        }
        if least && report.is_complete() {
            self.find_least(&mut report, progress)?;
        }
        Ok(report)
    }

    fn find_least(&self, report: &mut Report, progress: &ProgressBar) -> Result<(), Error> {
        let most = report.capacity;
        let mut problems = Vec::new();
        let found = least_capacity(report.live_peak, report.reserved_peak, most, |capacity| {
            progress.set_message(format!("{} in {}", self.name, format_bytes(capacity)));
            let sample = self.sample(Some(capacity), OnOutOfMemory::Stop, None)?;
            let fits = sample.outcome.ooms == 0 && sample.problems.is_empty();
            // A lack of memory is what is looked for; anything else is a fault at any capacity.
            problems.extend(sample.problems);
            Ok::<_, Error>(fits.then_some(sample.usage))
        })?;
        report.problems.extend(problems);
        match found {
            None => report.problems.push("no capacity suffices".to_owned()),
            Some((capacity, usage)) => {
                report.least = Some(Least {
                    capacity,
                    driver_calls: usage.calls,
                    driver_ms: usage.microseconds / 1e3,
                });
            }
        }
        Ok(())
    }

    fn sample(
        &self,
        capacity: Option<Bytes>,
        policy: OnOutOfMemory,
        snapshots: Option<&Path>,
    ) -> Result<Sample, Error> {
        let machine = Machine::open(self.device, capacity)?;
        let streams = machine.streams(&self.trace.streams)?;
        let allocator = Arc::new(Allocator::new(machine.devices(), self.config.clone())?);
        let bench =
            Bench { allocator: &allocator, machine: &machine, streams: &streams, snapshots };
        if snapshots.is_some() {
            let max_entries = MOST_EVENTS;
            allocator.record_history(&HistoryOptions { max_entries, ..Default::default() })?;
        }
        let sample = match self.via {
            Via::Rust => self.measure(&RustClient(Arc::clone(&allocator)), bench, policy),
            Via::Cpp => self.measure(&CppClient::new(Arc::clone(&allocator))?, bench, policy),
        };
        // The allocator may use its streams until its end.
        drop(allocator);
        machine.destroy_streams(&streams)?;
        sample
    }

    fn measure(
        &self,
        client: &impl Client,
        bench: Bench<'_>,
        policy: OnOutOfMemory,
    ) -> Result<Sample, Error> {
        let Bench { allocator, machine, streams, snapshots } = bench;
        let total = machine.total()?;
        machine.reset_usage();
        let mut outcome = replay(client, self.trace, streams, allocator.clock(), policy);
        let usage = machine.usage();
        let mut problems: Vec<String> = outcome.failure.take().into_iter().collect();
        problems.extend(snapshots.and_then(|directory| self.write_snapshot(allocator, directory)));
        if problems.is_empty() {
            let end = free_rest(client, &mut outcome)
                .and_then(|()| allocator.empty_cache())
                .and_then(|()| allocator.is_valid());
            match end {
                Err(error) => problems.push(format!("after the last event: {error}")),
                Ok(()) => problems.extend(leaks(allocator, machine)?),
            }
        }
        Ok(Sample { outcome, usage, total, problems })
    }
}

impl Job<'_> {
    /// Writes what there is, and ends the history; says what went wrong.
    fn write_snapshot(&self, allocator: &Allocator, directory: &Path) -> Option<String> {
        let path = directory.join(format!("{}.pickle", self.name));
        let taken = allocator.snapshot(None, true);
        let stopped = allocator.stop_history();
        let snapshot = match taken.and_then(|snapshot| stopped.map(|()| snapshot)) {
            Ok(snapshot) => snapshot,
            Err(error) => return Some(format!("taking a snapshot: {error}")),
        };
        let error = write_whole(&path, &snapshot.to_pickle(None)).err()?;
        Some(format!("writing {}: {error}", path.display()))
    }
}

/// Writes a file that is there as a whole or not at all; one that was there before stays meanwhile.
fn write_whole(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let part = path.with_extension("pickle.part");
    let written = std::fs::write(&part, bytes).and_then(|()| std::fs::rename(&part, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&part);
    }
    written
}

/// What was not given back, although everything was freed and the cache is empty.
fn leaks(allocator: &Allocator, machine: &Machine) -> Result<Vec<String>, Error> {
    let statistics = allocator.statistics(DeviceId(0))?;
    let kept = [
        (statistics.allocated_bytes.all.current, "allocated, by the allocator's statistics"),
        (statistics.reserved_bytes.all.current, "reserved, by the allocator's statistics"),
        (machine.usage().used.try_into().unwrap_or(i64::MAX), "given out, by the device"),
    ];
    let told =
        |(bytes, what)| format!("{bytes} bytes are still {what}, after everything was freed");
    Ok(kept.into_iter().filter(|(bytes, _)| *bytes != 0).map(told).collect())
}
