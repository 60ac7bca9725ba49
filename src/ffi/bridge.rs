//! The bridge between the Rust core and the C++ classes.
//!
//! Upper half: what C++ calls. Lower half: what Rust calls, so that its tests and tools go through
//! the same C++ objects and virtual methods as a C++ program.

#![allow(
    missing_docs,
    unreachable_pub,
    missing_debug_implementations,
    clippy::undocumented_unsafe_blocks,
    clippy::multiple_unsafe_ops_per_block,
    reason = "cxx generates the bodies, for which it argues; visibility ends at this crate"
)]

use super::caching::{CachingCore, open_caching};
use super::checkpoints::{SavedCheckpoint, no_checkpoint};
use super::error::take_last_error;
use super::history::{
    HistoryCore, pop_compile_context, push_compile_context, set_user_metadata, user_metadata,
};
use super::pluggable::{PluggableCore, SourceFns, new_pluggable_core};
use super::pools::RustFilter;

#[cxx::bridge(namespace = "plugalloc::bridge")]
pub(crate) mod ffi {
    /// An address, or a status other than 0 and an error that waits in the thread.
    #[derive(Clone, Copy, Debug)]
    struct AllocResult {
        address: u64,
        status: u32,
    }

    /// One live allocation of user functions.
    #[derive(Clone, Copy, Debug, Default)]
    struct EntryRecord {
        bytes: u64,
        stream: u64,
        device: i32,
    }

    extern "Rust" {
        fn take_last_error() -> ErrorRecord;

        type CachingCore;
        fn open_caching(
            device: &str,
            conf: &str,
            sim_capacity: u64,
            sim_devices: i32,
        ) -> Result<Box<CachingCore>>;
        /// An address; 0 for zero bytes; 1 where an error waits in the thread.
        fn alloc(self: &CachingCore, device: i32, bytes: u64, stream: u64) -> u64;
        /// False where an error waits in the thread.
        fn free(self: &CachingCore, address: u64) -> bool;
        /// Whether anything was allocated, or `mark_initialized` called.
        fn is_initialized(self: &CachingCore) -> bool;
        fn mark_initialized(self: &CachingCore);
        fn claim_of(self: &CachingCore, address: u64) -> u8;
        fn is_idle(self: &CachingCore) -> bool;
        fn record_stream(self: &CachingCore, address: u64, stream: u64) -> u32;
        fn empty_cache(self: &CachingCore) -> u32;
        fn set_fraction(self: &CachingCore, device: i32, fraction: f64) -> u32;
        fn fraction(self: &CachingCore, device: i32, out: &mut f64) -> u32;
        fn set_caching(self: &CachingCore, caching: bool) -> u32;
        fn is_caching(self: &CachingCore) -> bool;
        fn memory_info(self: &CachingCore, device: i32, free: &mut u64, total: &mut u64) -> u32;
        fn largest_free_block(self: &CachingCore, device: i32, bytes: &mut u64) -> u32;
        fn base_allocation(
            self: &CachingCore,
            address: u64,
            start: &mut u64,
            bytes: &mut u64,
        ) -> u32;
        fn statistics(self: &CachingCore, device: i32, out: &mut StatsRecord) -> u32;
        fn reset_peaks(self: &CachingCore, device: i32) -> u32;
        fn reset_accumulated(self: &CachingCore, device: i32) -> u32;
        fn copy(
            self: &CachingCore,
            device: i32,
            to: u64,
            from: u64,
            bytes: u64,
            stream: u64,
        ) -> u32;
        fn synchronize(self: &CachingCore, device: i32, stream: u64) -> u32;
        fn enable_peer(self: &CachingCore, device: i32, peer: i32) -> u32;
        fn stream_create(self: &CachingCore, device: i32, stream: &mut u64) -> u32;
        fn stream_retire(self: &CachingCore, device: i32, stream: u64) -> u32;
        fn stream_destroy(self: &CachingCore, device: i32, stream: u64) -> u32;
        fn stream_wait(self: &CachingCore, device: i32, stream: u64, other: u64) -> u32;
        fn host_function(
            self: &CachingCore,
            device: i32,
            stream: u64,
            function: UniquePtr<HostFunction>,
        ) -> u32;

        // Pools: an id is two numbers.
        fn empty_pool(self: &CachingCore, pool: PoolKey) -> u32;
        fn begin_pool(
            self: &CachingCore,
            device: i32,
            pool: PoolKey,
            filter: UniquePtr<StreamFilter>,
        ) -> u32;
        fn end_pool(self: &CachingCore, device: i32, pool: PoolKey) -> u32;
        fn release_pool(self: &CachingCore, device: i32, pool: PoolKey) -> u32;
        fn pool_use_count(self: &CachingCore, device: i32, pool: PoolKey, out: &mut i32) -> u32;
        fn create_pool(
            self: &CachingCore,
            device: i32,
            pool: PoolKey,
            source: SharedPtr<CUDAAllocator>,
        ) -> u32;
        fn set_use_on_oom(self: &CachingCore, device: i32, pool: PoolKey, on: bool) -> u32;
        fn set_no_split(self: &CachingCore, device: i32, pool: PoolKey) -> u32;
        fn pool_holds_exactly(
            self: &CachingCore,
            device: i32,
            pool: PoolKey,
            expected: &[u64],
            out: &mut bool,
        ) -> u32;
        fn mark_capture(self: &CachingCore, device: i32, begin: bool) -> u32;

        type SavedCheckpoint;
        fn no_checkpoint() -> Box<SavedCheckpoint>;
        fn checkpoint_pool(
            self: &CachingCore,
            device: i32,
            pool: PoolKey,
            out: &mut SavedCheckpoint,
        ) -> u32;
        fn restore_pool(
            self: &CachingCore,
            device: i32,
            checkpoint: &SavedCheckpoint,
            freed: &mut Vec<u64>,
            allocated: &mut Vec<u64>,
        ) -> u32;

        // What stays in place, what is mapped, and what others share.
        fn pin(
            self: &CachingCore,
            at: u64,
            device: &mut i32,
            number: &mut u64,
            address: &mut u64,
            bytes: &mut u64,
        ) -> u32;
        fn unpin(self: &CachingCore, device: i32, number: u64) -> u32;
        fn observe_mappings(
            self: &CachingCore,
            observer: UniquePtr<CppObserver>,
            number: &mut u64,
        ) -> u32;
        fn unobserve_mappings(self: &CachingCore, number: u64, found: &mut bool) -> u32;
        fn share(self: &CachingCore, address: u64, offset: &mut u64, handle: &mut Vec<u8>) -> u32;
        fn open_shared(self: &CachingCore, device: i32, handle: &[u8], address: &mut u64) -> u32;
        fn close_shared(self: &CachingCore, device: i32, address: u64) -> u32;

        // What happens, and what there is.
        type HistoryCore;
        fn history(self: &CachingCore) -> Box<HistoryCore>;
        fn record_history(
            self: &HistoryCore,
            max_entries: usize,
            when: u8,
            source: UniquePtr<CppContextSource>,
            clear: bool,
            skip: Vec<String>,
        ) -> u32;
        fn stop_history(self: &HistoryCore) -> u32;
        fn is_history_enabled(self: &HistoryCore) -> bool;
        fn annotate(self: &HistoryCore, device: i32, metadata: Vec<TextPair>) -> u32;
        fn snapshot(
            self: &HistoryCore,
            pool: PoolKey,
            traces: bool,
            out: &mut SnapshotRecord,
        ) -> u32;
        fn dump_snapshot(self: &HistoryCore, json: bool, out: &mut Vec<u8>) -> u32;
        fn context_of(self: &HistoryCore, address: u64) -> SharedPtr<GatheredContext>;
        fn track(self: &HistoryCore, tracker: UniquePtr<CppTracker>) -> u32;
        fn observe_failures(self: &HistoryCore, to: UniquePtr<CppOutOfMemoryObserver>) -> u32;
        fn push_compile_context(name: &str);
        fn pop_compile_context();
        fn set_user_metadata(text: &str);
        fn user_metadata() -> String;

        type RustFilter;
        fn matches(self: &RustFilter, stream: u64, out: &mut bool) -> u32;

        type PluggableCore;
        fn new_pluggable_core() -> Box<PluggableCore>;
        fn record(self: &PluggableCore, address: u64, bytes: u64, device: i32, stream: u64) -> u32;
        fn take(self: &PluggableCore, address: u64, out: &mut EntryRecord) -> u32;
        fn find(self: &PluggableCore, address: u64, out: &mut EntryRecord) -> u32;
        fn owns(self: &PluggableCore, address: u64) -> bool;
        fn is_idle(self: &PluggableCore) -> bool;
        fn out_of_memory(self: &PluggableCore, bytes: u64, device: i32, stream: u64) -> u32;
        fn history(self: &PluggableCore) -> Box<HistoryCore>;
        fn check_request(self: &PluggableCore, device: i32) -> u32;
        fn set_fraction(self: &PluggableCore, device: i32, fraction: f64) -> u32;
        fn fraction(self: &PluggableCore, device: i32, out: &mut f64) -> u32;
        fn statistics(self: &PluggableCore, device: i32, out: &mut StatsRecord) -> u32;
        fn reset_peaks(self: &PluggableCore, device: i32) -> u32;
        fn reset_accumulated(self: &PluggableCore, device: i32) -> u32;
        fn copy_fractions(self: &PluggableCore, from: &PluggableCore) -> u32;

        type SourceFns;
        fn alloc(self: &SourceFns, bytes: u64, device: i32, stream: u64) -> AllocResult;
        fn free(self: &SourceFns, address: u64, bytes: u64, device: i32, stream: u64) -> u32;
    }

    unsafe extern "C++" {
        include!("plugalloc/src/ffi/records.rs.h");
        type ErrorRecord = super::super::records::ffi::ErrorRecord;
        type StatsRecord = super::super::records::ffi::StatsRecord;
        type PoolKey = super::super::records::ffi::PoolKey;
        type TraceRecord = super::super::records::ffi::TraceRecord;
        type SnapshotRecord = super::super::records::ffi::SnapshotRecord;
        type TextPair = super::super::records::ffi::TextPair;
        type OutOfMemoryRecord = super::super::records::ffi::OutOfMemoryRecord;
        #[namespace = "plugalloc"]
        type GatheredContext = super::super::records::ffi::GatheredContext;

        include!("drive.h");
        include!("host_function.h");

        type HostFunction;
        fn run_host_function(function: &HostFunction);

        #[namespace = "plugalloc"]
        type CUDAAllocator;
        #[namespace = "plugalloc"]
        type DataPtr;

        fn take_driven_error() -> ErrorRecord;
        fn make_caching(core: Box<CachingCore>, out: &mut SharedPtr<CUDAAllocator>) -> u32;
        fn make_pluggable(source: Box<SourceFns>, out: &mut SharedPtr<CUDAAllocator>) -> u32;
        fn get_current(out: &mut SharedPtr<CUDAAllocator>) -> u32;
        fn change_current(allocator: &SharedPtr<CUDAAllocator>) -> u32;
        fn set_current_device(device: i32) -> u32;
        fn set_current_stream(stream: u64, device: i32) -> u32;

        fn raw_alloc(allocator: &CUDAAllocator, bytes: usize) -> AllocResult;
        fn raw_alloc_with_stream(
            allocator: &CUDAAllocator,
            bytes: usize,
            stream: u64,
        ) -> AllocResult;
        fn raw_delete(allocator: &CUDAAllocator, address: u64) -> u32;
        fn raw_deleter(allocator: &CUDAAllocator) -> u64;
        fn call_raw_deleter(allocator: &CUDAAllocator, address: u64) -> u32;
        fn allocate(allocator: &CUDAAllocator, bytes: usize, out: &mut UniquePtr<DataPtr>) -> u32;
        fn data_address(data: &DataPtr) -> u64;
        fn data_context(data: &DataPtr) -> u64;
        fn data_deleter(data: &DataPtr) -> u64;
        fn data_device(data: &DataPtr) -> i32;
        fn data_release(data: Pin<&mut DataPtr>) -> u64;

        fn name(allocator: &CUDAAllocator) -> String;
        fn init(allocator: &CUDAAllocator, device_count: i32) -> u32;
        fn initialized(allocator: &CUDAAllocator) -> bool;
        fn record_stream(allocator: &CUDAAllocator, data: &DataPtr, stream: u64) -> u32;
        fn empty_cache(allocator: &CUDAAllocator) -> u32;
        fn set_fraction(allocator: &CUDAAllocator, fraction: f64, device: i32) -> u32;
        fn fraction(allocator: &CUDAAllocator, device: i32, out: &mut f64) -> u32;
        fn enable(allocator: &CUDAAllocator, value: bool) -> u32;
        fn is_enabled(allocator: &CUDAAllocator) -> bool;
        fn cache_info(allocator: &CUDAAllocator, device: i32, largest: &mut usize) -> u32;
        fn base_allocation(
            allocator: &CUDAAllocator,
            address: u64,
            start: &mut u64,
            bytes: &mut usize,
        ) -> u32;
        fn memory_info(
            allocator: &CUDAAllocator,
            device: i32,
            free: &mut usize,
            total: &mut usize,
        ) -> u32;
        fn statistics(allocator: &CUDAAllocator, device: i32, out: &mut StatsRecord) -> u32;
        fn reset_peaks(allocator: &CUDAAllocator, device: i32) -> u32;
        fn retire_stream(on: &CUDAAllocator, device: i32, stream: u64) -> u32;
        fn reset_accumulated(allocator: &CUDAAllocator, device: i32) -> u32;
        fn copy_data(allocator: &CUDAAllocator, to: u64, from: u64, bytes: usize) -> u32;
        fn snapshot_segments(allocator: &CUDAAllocator, out: &mut usize) -> u32;

        include!("mapping_observer.h");

        type CppObserver;
        fn tell_observer(to: &CppObserver, mapped: bool, device: i32, address: u64, bytes: u64);

        include!("history.h");

        type CppContextSource;
        fn gather_context(source: &CppContextSource) -> SharedPtr<GatheredContext>;
        type CppTracker;
        fn tell_tracker(tracker: &CppTracker, event: &TraceRecord);
        type CppOutOfMemoryObserver;
        fn tell_out_of_memory(to: &CppOutOfMemoryObserver, event: &OutOfMemoryRecord);

        include!("drive_pools.h");

        type StreamFilter;
        fn filter_matches(filter: &StreamFilter, stream: u64, out: &mut bool) -> u32;
        fn segment_alloc(
            source: &CUDAAllocator,
            device: i32,
            bytes: usize,
            stream: u64,
        ) -> AllocResult;
        fn segment_free(source: &CUDAAllocator, device: i32, address: u64) -> u32;
        fn begin_pool(
            on: &CUDAAllocator,
            device: i32,
            pool: PoolKey,
            filter: Box<RustFilter>,
        ) -> u32;
        fn end_pool(on: &CUDAAllocator, device: i32, pool: PoolKey) -> u32;
        fn release_pool(on: &CUDAAllocator, device: i32, pool: PoolKey) -> u32;
        fn pool_use_count(on: &CUDAAllocator, device: i32, pool: PoolKey, out: &mut i32) -> u32;
        fn create_pool(
            on: &CUDAAllocator,
            device: i32,
            pool: PoolKey,
            source: SharedPtr<CUDAAllocator>,
        ) -> u32;
        fn set_use_on_oom(on: &CUDAAllocator, device: i32, pool: PoolKey, use_on_oom: bool) -> u32;
        fn set_no_split(on: &CUDAAllocator, device: i32, pool: PoolKey) -> u32;
        fn pool_holds_exactly(
            on: &CUDAAllocator,
            device: i32,
            pool: PoolKey,
            expected: &[u64],
            out: &mut bool,
        ) -> u32;
        fn empty_pool(on: &CUDAAllocator, pool: PoolKey) -> u32;
        fn mark_capture(on: &CUDAAllocator, device: i32, begin: bool) -> u32;

        #[namespace = "plugalloc"]
        type AllocatorState;
        #[namespace = "plugalloc"]
        type CheckpointDelta;
        fn get_checkpoint(
            on: &CUDAAllocator,
            device: i32,
            pool: PoolKey,
            out: &mut SharedPtr<AllocatorState>,
        ) -> u32;
        fn set_checkpoint(
            on: &CUDAAllocator,
            device: i32,
            state: SharedPtr<AllocatorState>,
            out: &mut UniquePtr<CheckpointDelta>,
        ) -> u32;
        fn delta_freed(delta: &CheckpointDelta) -> Vec<u64>;
        /// The last of what was allocated that was not taken yet; null where there is none.
        fn delta_take(delta: Pin<&mut CheckpointDelta>) -> UniquePtr<DataPtr>;
    }
}

// SAFETY: the contract of `DeviceAllocator` is that every method may be called from any thread, and
// its objects hold nothing that belongs to one thread.
unsafe impl Send for ffi::CUDAAllocator {}
// SAFETY: as above.
unsafe impl Sync for ffi::CUDAAllocator {}
// SAFETY: a function that was given to a stream may run, and be destroyed, on any thread; the
// public header says so.
unsafe impl Send for ffi::HostFunction {}
// SAFETY: a filter is called from whichever thread allocates, one or several at a time, which the
// contract of `beginAllocateToPool` says to whoever wrote it.
unsafe impl Send for ffi::StreamFilter {}
// SAFETY: as above.
unsafe impl Sync for ffi::StreamFilter {}
// SAFETY: an observer is called by one thread at a time, whichever it is, which the contract of
// `observeMappings` says to whoever wrote it.
unsafe impl Send for ffi::CppObserver {}
// SAFETY: as above.
unsafe impl Sync for ffi::CppObserver {}
// SAFETY: it holds the address of a function, which may be called from any thread.
unsafe impl Send for ffi::CppContextSource {}
// SAFETY: as above.
unsafe impl Sync for ffi::CppContextSource {}
// SAFETY: a tracker is called from whichever thread calls the allocator, for one event of a device
// at a time, which the contract of `AllocatorTraceTracker` says to whoever wrote it.
unsafe impl Send for ffi::CppTracker {}
// SAFETY: as above.
unsafe impl Sync for ffi::CppTracker {}
// SAFETY: an observer is called from whichever thread allocates, one or several at a time, which
// the contract of `OutOfMemoryObserver` says to whoever wrote it.
unsafe impl Send for ffi::CppOutOfMemoryObserver {}
// SAFETY: as above.
unsafe impl Sync for ffi::CppOutOfMemoryObserver {}
// SAFETY: a `DataPtr` is two pointers, a deleter that may run on any thread, and a device.
unsafe impl Send for ffi::DataPtr {}
