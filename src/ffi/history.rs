//! Histories, snapshots and whoever is told of events, over the bridge.

use std::sync::Arc;

use cxx::{SharedPtr, UniquePtr};

use super::bridge::ffi;
use super::error::{guarded, guarded_or};
use super::records::ffi as records;
use crate::allocator::Allocator;
use crate::config::Config;
use crate::engine::{OutOfMemoryEvent, OutOfMemoryObserver};
use crate::error::{Error, Result};
use crate::observe::history::Tracker;
use crate::observe::{
    Action, Annotation, BlockState, Context, ContextSource, HistoryOptions, RecordContext,
    Snapshot, SnapshotBlock, SnapshotSegment, TraceEntry, labels,
};
use crate::pluggable::Metadata;
use crate::units::{Address, DeviceId, PoolId};

/// A context of a C++ program.
struct CppContext(SharedPtr<records::GatheredContext>);

/// The C++ context in one, if it is one.
fn unwrapped(context: Option<&Context>) -> SharedPtr<records::GatheredContext> {
    let inner = context.and_then(|context| context.downcast_ref::<CppContext>());
    inner.map_or_else(SharedPtr::null, |context| context.0.clone())
}

fn source_of(source: UniquePtr<ffi::CppContextSource>) -> Option<ContextSource> {
    let gather = move || {
        let context = ffi::gather_context(source.as_ref()?);
        let wrap = |context| -> Context { Arc::new(CppContext(context)) };
        (!context.is_null()).then(|| wrap(context))
    };
    Some(Arc::new(gather))
}

fn skipped(names: &[String]) -> Result<Vec<Action>> {
    let action = |name: &String| {
        Action::from_name(name).ok_or_else(|| Error::InvalidArgument {
            argument: "skip_actions",
            value: name.clone(),
            expected: format!("any of {}", Action::ALL.map(Action::name).join(", ")),
        })
    };
    names.iter().map(action).collect()
}

impl From<&TraceEntry> for records::TraceRecord {
    fn from(entry: &TraceEntry) -> records::TraceRecord {
        let text = |text: &Option<Arc<str>>| text.as_ref().map_or("", |text| text).to_owned();
        records::TraceRecord {
            action: entry.action as u8,
            device: entry.device.0,
            address: entry.address,
            bytes: entry.bytes,
            stream: entry.stream.0,
            pool: entry.pool.into(),
            time_us: entry.time_us,
            context: unwrapped(entry.context.as_ref()),
            compile_context: text(&entry.compile_context),
            user_metadata: text(&entry.user_metadata),
        }
    }
}

impl From<&SnapshotBlock> for records::BlockRecord {
    fn from(block: &SnapshotBlock) -> records::BlockRecord {
        records::BlockRecord {
            bytes: block.bytes,
            requested: block.requested,
            allocated: block.state == BlockState::ActiveAllocated,
            active: block.state != BlockState::Inactive,
            context: unwrapped(block.context.as_ref()),
        }
    }
}

impl From<&SnapshotSegment> for records::SegmentRecord {
    fn from(segment: &SnapshotSegment) -> records::SegmentRecord {
        records::SegmentRecord {
            device: segment.device.0,
            address: segment.address,
            total: segment.total,
            requested: segment.requested,
            allocated: segment.allocated,
            active: segment.active,
            stream: segment.stream.0,
            is_large: segment.is_large,
            is_expandable: segment.is_expandable,
            pool: segment.pool.into(),
            registration_counter: segment.registration_counter,
            blocks: segment.blocks.iter().map(Into::into).collect(),
        }
    }
}

impl From<&Annotation> for records::AnnotationRecord {
    fn from(mark: &Annotation) -> records::AnnotationRecord {
        let pair = |(key, value): &(String, String)| records::TextPair {
            key: key.clone(),
            value: value.clone(),
        };
        records::AnnotationRecord {
            device: mark.device.0,
            time_us: mark.time_us,
            metadata: mark.metadata.iter().map(pair).collect(),
        }
    }
}

fn set_config(out: &mut records::SnapshotRecord, config: &Config) {
    out.garbage_collection_threshold = config.garbage_collection_threshold;
    out.max_split_size = config.max_split_size.unwrap_or(u64::MAX);
    out.expandable_segments = config.expandable_segments;
    out.record_stream_reuse = config.graph_capture_record_stream_reuse;
    out.settings = config.to_text();
    out.roundup_power2_divisions = config.roundup_power2_divisions.to_vec();
}

/// An allocator whose events can be recorded.
trait Recorded: Send + Sync {
    fn record_history(&self, options: &HistoryOptions) -> Result<()>;
    fn stop_history(&self) -> Result<()>;
    fn is_history_enabled(&self) -> bool;
    fn annotate(&self, device: DeviceId, metadata: &[(String, String)]) -> Result<()>;
    /// Of all pools, or of one.
    fn snapshot(&self, pool: Option<PoolId>, traces: bool) -> Result<Snapshot>;
    fn context_of(&self, address: Address) -> Result<Option<Context>>;
    fn track(&self, tracker: Tracker) -> Result<()>;
    fn observe_out_of_memory(&self, observer: OutOfMemoryObserver);
}

impl Recorded for Allocator {
    fn record_history(&self, options: &HistoryOptions) -> Result<()> {
        Allocator::record_history(self, options)
    }

    fn stop_history(&self) -> Result<()> {
        Allocator::stop_history(self)
    }

    fn is_history_enabled(&self) -> bool {
        Allocator::is_history_enabled(self)
    }

    fn annotate(&self, device: DeviceId, metadata: &[(String, String)]) -> Result<()> {
        self.record_annotation(device, metadata)
    }

    fn snapshot(&self, pool: Option<PoolId>, traces: bool) -> Result<Snapshot> {
        Allocator::snapshot(self, pool, traces)
    }

    fn context_of(&self, address: Address) -> Result<Option<Context>> {
        Allocator::context_of(self, address)
    }

    fn track(&self, tracker: Tracker) -> Result<()> {
        self.track_events(move |event| tracker(event))
    }

    fn observe_out_of_memory(&self, observer: OutOfMemoryObserver) {
        Allocator::observe_out_of_memory(self, move |event| observer(event));
    }
}

impl Recorded for Metadata {
    fn record_history(&self, options: &HistoryOptions) -> Result<()> {
        Metadata::record_history(self, options)
    }

    fn stop_history(&self) -> Result<()> {
        Metadata::stop_history(self)
    }

    fn is_history_enabled(&self) -> bool {
        Metadata::is_history_enabled(self)
    }

    fn annotate(&self, device: DeviceId, metadata: &[(String, String)]) -> Result<()> {
        Metadata::annotate(self, device, metadata)
    }

    fn snapshot(&self, pool: Option<PoolId>, traces: bool) -> Result<Snapshot> {
        match pool {
            None => Metadata::snapshot(self, traces),
            Some(_) => Err(Error::Unsupported {
                operation: "a snapshot of one pool".to_owned(),
                by: "pluggable".to_owned(),
                why: "only the user's functions know which pool an allocation is from".to_owned(),
            }),
        }
    }

    fn context_of(&self, address: Address) -> Result<Option<Context>> {
        Metadata::context_of(self, address)
    }

    fn track(&self, tracker: Tracker) -> Result<()> {
        Metadata::track(self, tracker)
    }

    fn observe_out_of_memory(&self, observer: OutOfMemoryObserver) {
        Metadata::observe_out_of_memory(self, observer);
    }
}

/// What C++ calls about the events of an allocator, of either kind.
pub(crate) struct HistoryCore(Arc<dyn Recorded>);

impl HistoryCore {
    pub(crate) fn of_caching(allocator: Arc<Allocator>) -> HistoryCore {
        HistoryCore(allocator)
    }

    pub(crate) fn of_functions(metadata: Arc<Metadata>) -> HistoryCore {
        HistoryCore(metadata)
    }

    pub(crate) fn record_history(
        &self,
        max_entries: usize,
        when: u8,
        source: UniquePtr<ffi::CppContextSource>,
        clear: bool,
        skip: Vec<String>,
    ) -> u32 {
        guarded(|| {
            let when = match when {
                0 => RecordContext::Never,
                1 => RecordContext::State,
                2 => RecordContext::Alloc,
                _ => RecordContext::All,
            };
            let source = if source.is_null() { None } else { source_of(source) };
            let skip = skipped(&skip)?;
            self.0.record_history(&HistoryOptions { max_entries, when, source, clear, skip })
        })
    }

    pub(crate) fn stop_history(&self) -> u32 {
        guarded(|| self.0.stop_history())
    }

    pub(crate) fn is_history_enabled(&self) -> bool {
        guarded_or(false, || self.0.is_history_enabled())
    }

    pub(crate) fn annotate(&self, device: i32, metadata: Vec<records::TextPair>) -> u32 {
        guarded(|| {
            let pairs = metadata.into_iter().map(|pair| (pair.key, pair.value));
            self.0.annotate(DeviceId(device), &pairs.collect::<Vec<_>>())
        })
    }

    pub(crate) fn snapshot(
        &self,
        pool: ffi::PoolKey,
        traces: bool,
        out: &mut records::SnapshotRecord,
    ) -> u32 {
        guarded(|| {
            let only = (pool.first, pool.second) != (0, 0);
            let snapshot = self.0.snapshot(only.then(|| pool.into()), traces)?;
            out.segments = snapshot.segments.iter().map(Into::into).collect();
            out.devices = snapshot.device_traces.len();
            out.traces = snapshot.device_traces.iter().flatten().map(Into::into).collect();
            out.annotations = snapshot.annotations.iter().map(Into::into).collect();
            set_config(out, &snapshot.config);
            Ok(())
        })
    }

    pub(crate) fn dump_snapshot(&self, json: bool, out: &mut Vec<u8>) -> u32 {
        guarded(|| {
            let snapshot = self.0.snapshot(None, true)?;
            *out = if json { snapshot.to_json(None).into() } else { snapshot.to_pickle(None) };
            Ok(())
        })
    }

    pub(crate) fn context_of(&self, address: u64) -> SharedPtr<records::GatheredContext> {
        guarded_or(SharedPtr::null(), || {
            unwrapped(self.0.context_of(address).ok().flatten().as_ref())
        })
    }

    pub(crate) fn track(&self, tracker: UniquePtr<ffi::CppTracker>) -> u32 {
        let tell = move |event: &TraceEntry| ffi::tell_tracker(&tracker, &event.into());
        guarded(|| self.0.track(Arc::new(tell)))
    }

    pub(crate) fn observe_failures(&self, to: UniquePtr<ffi::CppOutOfMemoryObserver>) -> u32 {
        let tell = move |event: &OutOfMemoryEvent<'_>| {
            let report = event.report;
            let record = records::OutOfMemoryRecord {
                device: report.device,
                segment: event.segment,
                requested: report.requested,
                allocated: report.allocated,
                limit: report.limit,
                total: report.total,
                free: report.free,
                at_limit: event.at_limit,
            };
            ffi::tell_out_of_memory(&to, &record);
        };
        guarded(|| {
            self.0.observe_out_of_memory(Arc::new(tell));
            Ok(())
        })
    }
}

pub(crate) fn push_compile_context(name: &str) {
    guarded_or((), || labels::push_compile_context(name));
}

pub(crate) fn pop_compile_context() {
    guarded_or((), labels::pop_compile_context);
}

pub(crate) fn set_user_metadata(text: &str) {
    guarded_or((), || labels::set_user_metadata(text));
}

pub(crate) fn user_metadata() -> String {
    guarded_or(String::new(), labels::user_metadata)
}
