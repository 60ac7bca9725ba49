//! The allocator's options: plain data with defaults, and the text form in which users write them.

mod keys;
pub mod parse;
mod scan;
mod value;

pub use keys::key_names;
pub(crate) use parse::nvtx_injection;

use crate::units::{Bytes, MIB};

/// The options of an [`Allocator`](crate::Allocator).
///
/// They can be set one by one here, or read from a text such as
/// `expandable_segments:True,garbage_collection_threshold:0.8`, in the syntax of PyTorch's
/// `PYTORCH_CUDA_ALLOC_CONF`, whose keys are understood. The table of keys is in [`parse`]. What a
/// key would refuse, by itself or beside others, is refused here, too, when an allocator is made.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// Blocks of this size or more are never split, on a device without virtual memory management;
    /// `None`: no limit. At least `large_segment_size`. Key `max_split_size_mb`.
    pub max_split_size: Option<Bytes>,
    /// By how much a block of `max_split_size` or more may exceed a request that it serves; no less
    /// than `large_segment_size`. Key `max_non_split_rounding_mb`.
    pub max_non_split_rounding: Bytes,
    /// What one segment for requests between 1 and 10 MiB takes on a device without virtual memory
    /// management. Key `large_segment_size_mb`.
    ///
    /// `max_split_size` and `max_non_split_rounding` are at least this. A text that names this key
    /// alone sets the latter to the same; a program does so itself.
    pub large_segment_size: Bytes,
    /// Into how many equal steps each power of two is divided when sizes are rounded up, by size
    /// class (from 1 MiB to 32 GiB); 0 or 1: off. Key `roundup_power2_divisions`.
    pub roundup_power2_divisions: [u32; 16],
    /// The share of the limit above which idle memory is given back to the device before more is
    /// taken; 0: off. Key `garbage_collection_threshold`.
    pub garbage_collection_threshold: f64,
    /// Whether memory is taken through virtual memory management where the device has it. Key
    /// `expandable_segments`.
    ///
    /// Under a tool that is told of memory ([`nvtx`](crate::nvtx)) whole segments are taken all the
    /// same, unless [`expandable_with_tools`](Config::expandable_with_tools) says otherwise.
    pub expandable_segments: bool,
    /// Whether `expandable_segments` holds under a tool that is told of memory, too. It is not told
    /// of blocks then, because the tools take no mapped memory. A text that names the key
    /// `expandable_segments` sets this to the same.
    pub expandable_with_tools: bool,
    /// The share of a device's memory that may be taken; 1: all. Key `per_process_memory_fraction`.
    pub memory_fraction: f64,
    /// Fail at once, waiting for no stream, where the memory fraction would be exceeded. Key
    /// `throw_on_cudamalloc_oom`.
    pub fail_at_limit: bool,
    /// Without effect: PyTorch lets blocks that several streams used be reused within a capture
    /// where the graph orders it; here they come back when the capture has ended. Key
    /// `graph_capture_record_stream_reuse`.
    pub graph_capture_record_stream_reuse: bool,
    /// Whether freed memory is kept for reuse. Key `caching`; `PYTORCH_NO_CUDA_MEMORY_CACHING=1`
    /// turns it off.
    pub caching: bool,
    /// Whether idle memory of one stream serves another before more is taken. Key `steal`.
    pub steal: bool,
    /// How many percent of the time that a program does not spend on allocations may go to moving
    /// idle memory from stream to stream by calls of the driver; beyond that, memory is taken from
    /// the device instead. Fewer make the slowest requests of several streams at work faster, for
    /// more memory. Key `moving_percent`.
    pub moving_percent: u64,
    /// The largest physical handle that is made, in bytes. So long ones are made where streams that
    /// share memory keep the driver busy; elsewhere they have up to 16 MiB, or up to a quarter of
    /// this where that is more. Key `max_handle_mb`.
    pub max_handle: Bytes,
    /// Memory that was idle throughout so many milliseconds goes back to the device; 0: off. Key
    /// `release_idle_ms`.
    pub release_idle_ms: u64,
    /// Whether network cards reach the memory, once it is registered with them. Key
    /// `gpu_direct_rdma`.
    pub gpu_direct_rdma: bool,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            max_split_size: None,
            max_non_split_rounding: 20 * MIB,
            large_segment_size: 20 * MIB,
            roundup_power2_divisions: [0; 16],
            garbage_collection_threshold: 0.0,
            expandable_segments: true,
            expandable_with_tools: false,
            memory_fraction: 1.0,
            fail_at_limit: false,
            graph_capture_record_stream_reuse: false,
            caching: true,
            steal: true,
            moving_percent: 33,
            max_handle: 64 * MIB,
            release_idle_ms: 0,
            gpu_direct_rdma: false,
        }
    }
}
