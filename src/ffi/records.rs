//! The records that cross the bridge, apart from its functions.

#![allow(
    missing_docs,
    unreachable_pub,
    missing_debug_implementations,
    clippy::undocumented_unsafe_blocks,
    clippy::multiple_unsafe_ops_per_block,
    reason = "cxx generates the bodies, for which it argues; visibility ends at this crate"
)]

#[cxx::bridge(namespace = "plugalloc::bridge")]
pub(crate) mod ffi {
    /// Which error it is; the C++ exceptions and the variants of `Error` match one to one.
    #[derive(Debug)]
    enum ErrorKind {
        OutOfMemory,
        SizeTooLarge,
        InvalidDevice,
        InvalidPointer,
        Config,
        Device,
        Unsupported,
        InvalidArgument,
        Checkpoint,
        AlreadyInitialized,
        Callback,
        Internal,
        /// A C++ exception that is none of ours: what a function of the program threw.
        Foreign,
    }

    struct StreamUsageRecord {
        stream: u64,
        allocated: u64,
        cached: u64,
    }

    /// An error as plain data. Fields that a kind does not use are empty.
    struct ErrorRecord {
        kind: ErrorKind,
        message: String,
        /// Key, driver call, operation, argument, allocator, function or check.
        subject: String,
        /// Problem, detail, why, value, hint or text.
        detail: String,
        /// What was expected, or who cannot do it.
        other: String,
        device: i32,
        requested: u64,
        total: u64,
        free: u64,
        allocated: u64,
        reserved: u64,
        pending: u64,
        limit: u64,
        largest_free_block: u64,
        fragmentation: f64,
        streams: Vec<StreamUsageRecord>,
        address: u64,
        /// `PointerFault`, `DeviceErrorKind` or `CheckpointFault`, in declaration order.
        fault: u32,
        block_start: u64,
        block_bytes: u64,
        /// Position in a text, the number of devices, or `PointerUse`, in declaration order.
        position: u64,
        pool: PoolKey,
    }

    #[derive(Clone, Copy, Default)]
    struct StatRecord {
        current: i64,
        peak: i64,
        allocated: i64,
        freed: i64,
    }

    /// Three numbers sets: all, small pool, large pool.
    #[derive(Clone, Copy, Default)]
    struct StatArrayRecord {
        all: StatRecord,
        small_pool: StatRecord,
        large_pool: StatRecord,
    }

    #[derive(Clone, Copy, Default)]
    struct StatsRecord {
        allocation: StatArrayRecord,
        segment: StatArrayRecord,
        active: StatArrayRecord,
        inactive_split: StatArrayRecord,
        allocated_bytes: StatArrayRecord,
        reserved_bytes: StatArrayRecord,
        active_bytes: StatArrayRecord,
        inactive_split_bytes: StatArrayRecord,
        requested_bytes: StatArrayRecord,
        oversize_allocations: StatRecord,
        oversize_segments: StatRecord,
        num_alloc_retries: i64,
        num_ooms: i64,
        num_sync_all_streams: i64,
        num_device_alloc: i64,
        num_device_free: i64,
        max_split_size: i64,
    }

    /// The two numbers that name a pool.
    #[derive(Clone, Copy, Debug)]
    struct PoolKey {
        first: u64,
        second: u64,
    }

    /// One event of a history.
    struct TraceRecord {
        /// `Action`, in declaration order.
        action: u8,
        device: i32,
        address: u64,
        bytes: u64,
        stream: u64,
        pool: PoolKey,
        time_us: u64,
        context: SharedPtr<GatheredContext>,
        compile_context: String,
        user_metadata: String,
    }

    struct BlockRecord {
        bytes: u64,
        requested: u64,
        allocated: bool,
        active: bool,
        context: SharedPtr<GatheredContext>,
    }

    struct SegmentRecord {
        device: i32,
        address: u64,
        total: u64,
        requested: u64,
        allocated: u64,
        active: u64,
        stream: u64,
        is_large: bool,
        is_expandable: bool,
        pool: PoolKey,
        registration_counter: u64,
        blocks: Vec<BlockRecord>,
    }

    /// A request that failed, as observers are told.
    struct OutOfMemoryRecord {
        device: i32,
        /// What would have been taken from the device.
        segment: u64,
        requested: u64,
        allocated: u64,
        limit: u64,
        total: u64,
        free: u64,
        at_limit: bool,
    }

    struct TextPair {
        key: String,
        value: String,
    }

    struct AnnotationRecord {
        device: i32,
        time_us: u64,
        metadata: Vec<TextPair>,
    }

    struct SnapshotRecord {
        segments: Vec<SegmentRecord>,
        /// How many devices there are; each event knows its own.
        devices: usize,
        traces: Vec<TraceRecord>,
        annotations: Vec<AnnotationRecord>,
        garbage_collection_threshold: f64,
        /// `u64::MAX` where there is none.
        max_split_size: u64,
        expandable_segments: bool,
        record_stream_reuse: bool,
        settings: String,
        roundup_power2_divisions: Vec<u32>,
    }

    unsafe extern "C++" {
        include!("plugalloc/snapshot.h");

        #[namespace = "plugalloc"]
        type GatheredContext;
    }
}

// SAFETY: contexts are gathered, shared and destroyed on whichever thread calls the allocator, one
// or several at a time; the contract of `GatheredContext` says so to whoever derives from it.
unsafe impl Send for ffi::GatheredContext {}
// SAFETY: as above.
unsafe impl Sync for ffi::GatheredContext {}
