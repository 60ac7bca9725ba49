//! The lines of a trace: their text, their columns, their numbers.

use std::io::{BufRead, ErrorKind};

use crate::trace_error::TraceError;

/// The columns that a trace must have; [`Columns`] refers to them by their place here.
const NAMES: [&str; 5] = ["op", "id", "bytes", "stream", "time_us"];

/// The letter in the column `op`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Allocate,
    Free,
    Reuse,
}

/// One line after the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) line: u64,
    pub(crate) operation: Operation,
    pub(crate) id: u64,
    pub(crate) bytes: u64,
    pub(crate) stream: u64,
    pub(crate) time_us: u64,
}

/// Lines with their numbers, read into one buffer.
pub(crate) struct Lines<R> {
    reader: R,
    buffer: Vec<u8>,
    number: u64,
}

impl<R: BufRead> Lines<R> {
    /// At the first line.
    pub(crate) fn new(reader: R) -> Self {
        Lines { reader, buffer: Vec::new(), number: 0 }
    }

    /// The next line and its number, from 1; `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<(u64, &str)>, TraceError> {
        self.number += 1;
        let line = self.number;
        self.buffer.clear();
        let count = self.reader.read_until(b'\n', &mut self.buffer).map_err(|error| {
            // Only a decompressor reports these two kinds.
            match error.kind() {
                ErrorKind::UnexpectedEof => TraceError::TruncatedGzip { line },
                ErrorKind::InvalidInput | ErrorKind::InvalidData => {
                    TraceError::CorruptGzip { line, error }
                }
                _ => TraceError::Read { line, error },
            }
        })?;
        if count == 0 {
            return Ok(None);
        }
        let text = std::str::from_utf8(&self.buffer).map_err(|_| TraceError::NotUtf8 { line })?;
        // Spreadsheets begin a file with a byte order mark and end lines with a carriage return.
        let text = if line == 1 { text.trim_start_matches('\u{feff}') } else { text };
        Ok(Some((line, text.trim_end_matches(['\n', '\r']))))
    }
}

/// Where each of the columns stands.
#[derive(Debug)]
pub(crate) struct Columns {
    /// For each field of a line, which of [`NAMES`] it holds.
    roles: Vec<Option<usize>>,
}

impl Columns {
    /// Finds the columns in the header.
    pub(crate) fn find(header: &str) -> Result<Columns, TraceError> {
        let found: Vec<&str> = header.split(',').map(str::trim).collect();
        for column in NAMES {
            match found.iter().filter(|name| **name == column).count() {
                0 => {
                    let found = found.iter().map(|name| (*name).to_owned()).collect();
                    return Err(TraceError::MissingColumn { column, found });
                }
                1 => {}
                _ => return Err(TraceError::RepeatedColumn { column }),
            }
        }
        let role = |name: &&str| NAMES.iter().position(|column| column == name);
        Ok(Columns { roles: found.iter().map(role).collect() })
    }

    /// Reads one line.
    pub(crate) fn record(&self, line: u64, text: &str) -> Result<Record, TraceError> {
        let mut values = [""; NAMES.len()];
        let mut found = 0;
        for field in text.split(',') {
            if let Some(Some(role)) = self.roles.get(found) {
                values[*role] = field.trim();
            }
            found += 1;
        }
        if found != self.roles.len() {
            return Err(TraceError::FieldCount { line, expected: self.roles.len(), found });
        }
        let [operation, id, bytes, stream, time_us] = values;
        let operation = match operation {
            "a" => Operation::Allocate,
            "f" => Operation::Free,
            "r" => Operation::Reuse,
            other => {
                return Err(TraceError::Operation { line, found: other.to_owned() });
            }
        };
        Ok(Record {
            line,
            operation,
            id: number(line, "id", id)?,
            bytes: number(line, "bytes", bytes)?,
            stream: number(line, "stream", stream)?,
            time_us: number(line, "time_us", time_us)?,
        })
    }
}

/// Digits and nothing else; `str::parse` alone would let a plus sign through.
fn number(line: u64, column: &'static str, text: &str) -> Result<u64, TraceError> {
    let parsed = if text.starts_with('+') { None } else { text.parse().ok() };
    parsed.ok_or_else(|| TraceError::Number { line, column, found: text.to_owned() })
}
