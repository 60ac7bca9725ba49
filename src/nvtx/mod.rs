//! What tools are told of memory: compute-sanitizer, Nsight and whatever else speaks NVTX.
//!
//! To a tool that looks at device memory by itself, all blocks in a piece of memory that an
//! allocator has taken from the driver are one allocation. Through NVTX an allocator tells which
//! blocks there are, so that a read past the end of one is found though it stays inside the piece,
//! and how many bytes are in use and reserved, over time.
//!
//! A tool is a library whose path stands in the environment (`NVTX_INJECTION64_PATH`; the tools set
//! it). It is loaded when the first allocator is made. Without one nothing is loaded or told, and
//! allocations cost what they cost anyway.
//!
//! A tool is told of each segment as a heap, and of each allocation with the bytes that were asked
//! for. A block counts as in use until it is freed, though other streams may still use it. The
//! tools refuse heaps in mapped memory, so that under one which is told of memory an allocator
//! takes whole segments, unless its configuration names `expandable_segments:True`
//! ([`expandable_with_tools`](crate::Config::expandable_with_tools)); then a tool that takes
//! counters gets these, and of blocks nobody is told.

#![deny(unsafe_code)]

#[allow(unsafe_code, reason = "the interface of tools is one of C")]
mod abi;
mod announcer;
mod calls;

use std::ffi::CString;
use std::sync::OnceLock;

pub(crate) use announcer::Announcer;

use crate::config::nvtx_injection;
use abi::Functions;
use calls::DomainId;

/// What there is of a tool.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Status {
    /// No tool is wanted.
    Absent,
    /// A tool runs.
    Attached {
        /// Whether it wants to know of memory.
        memory: bool,
        /// Whether it takes counters.
        counters: bool,
    },
    /// A tool is wanted, and could not be started: why.
    Failed(String),
}

/// A tool that runs.
#[derive(Debug)]
struct Tool {
    functions: Functions,
    domain: DomainId,
}

fn tool() -> &'static Result<Option<Tool>, String> {
    static TOOL: OnceLock<Result<Option<Tool>, String>> = OnceLock::new();
    TOOL.get_or_init(|| {
        let Some(path) = nvtx_injection() else {
            return Ok(None);
        };
        let shown = path.display().to_string();
        let failed = |why: String| format!("{shown}: {why}");
        let path = CString::new(path.into_encoded_bytes());
        let path = path.map_err(|_| failed("a path has no zero".to_owned()))?;
        let functions = abi::start(&path).map_err(failed)?;
        let domain = functions.create_domain(c"plugalloc");
        Ok(Some(Tool { functions, domain }))
    })
}

/// Whether a tool runs; starts it if one is wanted. Tools of CUDA demand that CUDA was initialised
/// before.
pub fn status() -> Status {
    match tool() {
        Ok(None) => Status::Absent,
        Ok(Some(tool)) => Status::Attached {
            memory: tool.functions.has_memory(),
            counters: tool.functions.has_counters(),
        },
        Err(why) => Status::Failed(why.clone()),
    }
}
