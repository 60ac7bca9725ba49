//! What can be wrong with a trace. Lines are counted from 1, the header included.

use std::io;

/// Why a trace cannot be replayed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TraceError {
    #[error("cannot be opened: {0}")]
    Open(io::Error),
    #[error("line {line}: cannot be read: {error}")]
    Read { line: u64, error: io::Error },
    #[error("the file is empty; expected a header such as op,id,bytes,stream,time_us")]
    Empty,
    #[error("the header is not followed by any event")]
    NoEvents,
    #[error("line {line}: the gzip stream ends here, before its end; the file is truncated")]
    TruncatedGzip { line: u64 },
    #[error("line {line}: the gzip stream is damaged: {error}")]
    CorruptGzip { line: u64, error: io::Error },
    #[error("line {line}: not UTF-8")]
    NotUtf8 { line: u64 },
    #[error("line 1: no column '{column}'; found {}", .found.join(","))]
    MissingColumn { column: &'static str, found: Vec<String> },
    #[error("line 1: two columns '{column}'")]
    RepeatedColumn { column: &'static str },
    #[error("line {line}: {found} field(s), expected {expected} as in the header")]
    FieldCount { line: u64, expected: usize, found: usize },
    #[error("line {line}: unknown operation '{found}'; expected a, f or r")]
    Operation { line: u64, found: String },
    #[error("line {line}: {column} '{found}' is not a whole number of 64 bits")]
    Number { line: u64, column: &'static str, found: String },
    #[error("line {line}: id {id} is allocated for a second time; first in line {first}")]
    RepeatedId { line: u64, id: u64, first: u64 },
    #[error("line {line}: id {id} was never allocated")]
    UnknownId { line: u64, id: u64 },
    #[error("line {line}: id {id} is freed for a second time; first in line {first}")]
    RepeatedFree { line: u64, id: u64, first: u64 },
    #[error("line {line}: id {id} becomes reusable for a second time; first in line {first}")]
    RepeatedReuse { line: u64, id: u64, first: u64 },
    #[error("line {line}: id {id} becomes reusable before it is freed")]
    ReuseBeforeFree { line: u64, id: u64 },
    #[error("line {line}: {column} of id {id} is {found}, but {expected} in line {first}")]
    Mismatch { line: u64, id: u64, column: &'static str, found: u64, expected: u64, first: u64 },
    #[error("line {line}: more than {} allocations", u32::MAX)]
    TooLong { line: u64 },
}
