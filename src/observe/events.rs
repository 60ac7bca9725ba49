//! Events: what a history consists of.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::units::{Address, Bytes, DeviceId, PoolId, StreamId};

/// Where in a program something happened, as the program gathers it: a stack, a name. It is
/// dropped on whichever thread frees memory, with locks of the allocator held: its drop must not
/// call the allocator, nor wait for another thread.
pub type Context = Arc<dyn Any + Send + Sync>;

/// What gathers the context of the calling thread; called without any lock of the allocator, but
/// inside of its calls: it must not call the allocator.
pub type ContextSource = Arc<dyn Fn() -> Option<Context> + Send + Sync>;

/// What happened. The names are those of PyTorch's trace entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Memory was handed out.
    Alloc,
    /// The program freed it.
    FreeRequested,
    /// It can be used again: at once, or when the streams that were recorded are done with it.
    FreeCompleted,
    /// A whole segment was taken from the device, or from where a pool has its memory.
    SegmentAlloc,
    /// A whole segment is about to be given back.
    SegmentFree,
    /// Memory serves a stream at these addresses from now on.
    SegmentMap,
    /// It does not any more: it was given back, or serves elsewhere.
    SegmentUnmap,
    /// A snapshot was taken.
    Snapshot,
    /// A request failed for want of memory.
    OutOfMemory,
    /// Whatever the program adds.
    UserDefined,
}

impl Action {
    /// Every action, in PyTorch's order.
    pub const ALL: [Action; 10] = [
        Action::Alloc,
        Action::FreeRequested,
        Action::FreeCompleted,
        Action::SegmentAlloc,
        Action::SegmentFree,
        Action::SegmentMap,
        Action::SegmentUnmap,
        Action::Snapshot,
        Action::OutOfMemory,
        Action::UserDefined,
    ];

    /// The name that snapshots use.
    pub fn name(self) -> &'static str {
        match self {
            Action::Alloc => "alloc",
            Action::FreeRequested => "free_requested",
            Action::FreeCompleted => "free_completed",
            Action::SegmentAlloc => "segment_alloc",
            Action::SegmentFree => "segment_free",
            Action::SegmentMap => "segment_map",
            Action::SegmentUnmap => "segment_unmap",
            Action::Snapshot => "snapshot",
            Action::OutOfMemory => "oom",
            Action::UserDefined => "user_defined",
        }
    }

    /// The action of a name.
    ///
    /// ```
    /// use plugalloc::observe::Action;
    /// assert_eq!(Action::from_name("oom"), Some(Action::OutOfMemory));
    /// assert_eq!(Action::from_name("malloc"), None);
    /// ```
    pub fn from_name(name: &str) -> Option<Action> {
        Action::ALL.into_iter().find(|action| action.name() == name)
    }

    /// A bit of its own.
    pub(crate) fn bit(self) -> u16 {
        1 << self as u16
    }
}

/// When contexts are gathered; each includes those before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum RecordContext {
    /// Not at all.
    #[default]
    Never = 0,
    /// At allocations, for what is live.
    State = 1,
    /// They are kept in the history too.
    Alloc = 2,
    /// At frees as well.
    All = 3,
}

/// One event.
#[derive(Clone)]
#[non_exhaustive]
pub struct TraceEntry {
    /// What happened.
    pub action: Action,
    /// The device.
    pub device: DeviceId,
    /// The address; for [`Action::OutOfMemory`] the bytes that the device had free.
    pub address: Address,
    /// Bytes: asked for (allocations and frees), of the segment or what was mapped, for
    /// [`Action::OutOfMemory`] of the memory that would have been taken, for [`Action::Snapshot`]
    /// of all that was active.
    pub bytes: Bytes,
    /// The stream.
    pub stream: StreamId,
    /// The pool.
    pub pool: PoolId,
    /// Microseconds since 1970, by the system's clock.
    pub time_us: u64,
    /// Where it happened, if that was gathered. A free for which nothing was has the context of
    /// the allocation.
    pub context: Option<Context>,
    /// What the thread compiled (see [`push_compile_context`](super::push_compile_context)).
    pub compile_context: Option<Arc<str>>,
    /// The thread's text (see [`set_user_metadata`](super::set_user_metadata)).
    pub user_metadata: Option<Arc<str>>,
}

impl fmt::Debug for TraceEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TraceEntry")
            .field("action", &self.action)
            .field("device", &self.device)
            .field("address", &self.address)
            .field("bytes", &self.bytes)
            .field("stream", &self.stream)
            .field("pool", &self.pool)
            .field("time_us", &self.time_us)
            .finish_non_exhaustive()
    }
}

/// A mark that the program set.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Annotation {
    /// The device.
    pub device: DeviceId,
    /// Microseconds since 1970, by the system's clock.
    pub time_us: u64,
    /// What was passed, in that order.
    pub metadata: Vec<(String, String)>,
}

/// How a history is recorded.
///
/// ```
/// use plugalloc::observe::{Action, HistoryOptions};
/// let options = HistoryOptions { max_entries: 1000, ..HistoryOptions::default() };
/// assert!(!options.skip.contains(&Action::Alloc));
/// ```
#[derive(Clone, Default)]
pub struct HistoryOptions {
    /// The most events that are kept of each device; older ones go. An event takes about 100
    /// bytes. 0 keeps none.
    pub max_entries: usize,
    /// When contexts are gathered.
    pub when: RecordContext,
    /// What gathers them; needed unless that is never.
    pub source: Option<ContextSource>,
    /// Whether what was recorded before is forgotten.
    pub clear: bool,
    /// Events that are not kept.
    pub skip: Vec<Action>,
}

impl HistoryOptions {
    /// # Errors
    /// [`Error::InvalidArgument`] where contexts are to be gathered and nothing is named that
    /// gathers them.
    pub(crate) fn check(&self) -> Result<()> {
        if self.when == RecordContext::Never || self.source.is_some() {
            return Ok(());
        }
        Err(Error::InvalidArgument {
            argument: "source of contexts",
            value: "none".to_owned(),
            expected: "what gathers contexts, unless they are never gathered".to_owned(),
        })
    }
}

impl fmt::Debug for HistoryOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HistoryOptions")
            .field("max_entries", &self.max_entries)
            .field("when", &self.when)
            .field("source", &self.source.is_some())
            .field("clear", &self.clear)
            .field("skip", &self.skip)
            .finish()
    }
}
