//! What can be seen of the allocator from outside. This room reads the others and changes none of
//! them.

#![forbid(unsafe_code)]

pub mod events;
pub mod format;
pub(crate) mod history;
pub mod labels;
pub mod snapshot;
pub mod statistics;

pub use events::{
    Action, Annotation, Context, ContextSource, HistoryOptions, RecordContext, TraceEntry,
};
pub use format::{Frame, FramesOf};
pub use labels::{pop_compile_context, push_compile_context, set_user_metadata, user_metadata};
pub use snapshot::{BlockState, Snapshot, SnapshotBlock, SnapshotSegment};
pub use statistics::{DeviceStatistics, Stat, StatArray};
