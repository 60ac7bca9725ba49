//! Tests of the reader: what it makes of a good trace, and each way in which one can be bad.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::*;

fn read(text: &str) -> Result<Trace, TraceError> {
    Trace::read(text.as_bytes())
}

fn lines(body: &str) -> Result<Trace, TraceError> {
    read(&format!("op,id,bytes,stream,time_us\n{body}"))
}

/// The message about a body; its first line is line 2.
fn message(body: &str) -> String {
    lines(body).unwrap_err().to_string()
}

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

fn unzip(bytes: &[u8]) -> Result<Trace, TraceError> {
    Trace::read(BufReader::new(MultiGzDecoder::new(bytes)))
}

#[test]
fn events_follow_the_file() {
    let trace = lines("a,7,100,3,5\na,9,50,0,6\nf,7,100,3,8\n").unwrap();
    let allocate = |allocation, stream, bytes| Event::Allocate { allocation, stream, bytes };
    let expected = [allocate(0, 0, 100), allocate(1, 1, 50), Event::Free { allocation: 0 }];
    assert_eq!(trace.events, expected);
    assert_eq!(trace.streams, [3, 0]);
    assert_eq!((trace.allocations, trace.live_peak, trace.duration_us), (2, 150, 3));
}

#[test]
fn memory_in_use_by_another_stream_is_freed_where_it_becomes_reusable() {
    let trace = lines("a,0,10,0,0\nf,0,10,0,1\na,1,20,0,2\nr,0,10,0,3\n").unwrap();
    assert_eq!(trace.events.len(), 3);
    assert_eq!(trace.events[2], Event::Free { allocation: 0 });
    assert_eq!(trace.live_peak, 30);
}

#[test]
fn columns_are_found_by_name() {
    let trace = read("note,time_us,stream,bytes,id,op\nx,4,1,512,0,a\n").unwrap();
    assert_eq!(trace.events, [Event::Allocate { allocation: 0, stream: 0, bytes: 512 }]);
}

#[test]
fn line_endings_and_marks_of_other_systems_are_read() {
    let trace = read("\u{feff}op,id,bytes,stream,time_us\r\na, 0,1,0,0\r\nf,0,1,0,9").unwrap();
    assert_eq!((trace.events.len(), trace.duration_us), (2, 9));
}

#[test]
fn compressed_traces_are_read() {
    let trace = unzip(&gzip("op,id,bytes,stream,time_us\na,0,1,0,0\n")).unwrap();
    assert_eq!(trace.allocations, 1);
}

#[test]
fn huge_sizes_do_not_overflow() {
    let most = u64::MAX;
    let trace = lines(&format!("a,0,{most},0,0\na,1,{most},0,0\nf,0,{most},0,0\n")).unwrap();
    assert_eq!(trace.live_peak, most);
}

#[test]
fn an_empty_trace_is_named() {
    assert!(matches!(read(""), Err(TraceError::Empty)));
    assert!(matches!(unzip(&gzip("")), Err(TraceError::Empty)));
    assert!(matches!(lines(""), Err(TraceError::NoEvents)));
}

#[test]
fn a_missing_column_is_named_with_what_was_found() {
    let error = read("op,id,size,stream,time_us\n").unwrap_err().to_string();
    assert_eq!(error, "line 1: no column 'bytes'; found op,id,size,stream,time_us");
    let error = read("op,id,bytes,stream,time_us,id\n").unwrap_err().to_string();
    assert_eq!(error, "line 1: two columns 'id'");
}

#[test]
fn a_line_with_other_fields_than_the_header_is_named() {
    assert_eq!(message("a,0,1,0\n"), "line 2: 4 field(s), expected 5 as in the header");
    assert_eq!(message("a,0,1,0,0\n\n"), "line 3: 1 field(s), expected 5 as in the header");
}

#[test]
fn an_unknown_operation_is_named() {
    assert_eq!(message("x,0,1,0,0\n"), "line 2: unknown operation 'x'; expected a, f or r");
}

#[test]
fn numbers_that_do_not_parse_are_named_by_column() {
    for (body, part) in [
        ("a,-1,1,0,0", "id '-1'"),
        ("a,0,+1,0,0", "bytes '+1'"),
        ("a,0,18446744073709551616,0,0", "bytes '18446744073709551616'"),
        ("a,0,1,main,0", "stream 'main'"),
        ("a,0,1,0,0.5", "time_us '0.5'"),
        ("a,0,1,0,", "time_us ''"),
    ] {
        let expected = format!("line 2: {part} is not a whole number of 64 bits");
        assert_eq!(message(body), expected);
    }
}

#[test]
fn ids_that_repeat_name_both_lines() {
    let error = message("a,5,1,0,0\nf,5,1,0,0\na,5,1,0,0\n");
    assert_eq!(error, "line 4: id 5 is allocated for a second time; first in line 2");
    let error = message("a,5,1,0,0\nf,5,1,0,0\nf,5,1,0,0\n");
    assert_eq!(error, "line 4: id 5 is freed for a second time; first in line 3");
    let error = message("a,5,1,0,0\nf,5,1,0,0\nr,5,1,0,0\nr,5,1,0,0\n");
    assert_eq!(error, "line 5: id 5 becomes reusable for a second time; first in line 4");
}

#[test]
fn ids_without_their_earlier_lines_are_named() {
    assert_eq!(message("f,3,1,0,0\n"), "line 2: id 3 was never allocated");
    let error = message("a,3,1,0,0\nr,3,1,0,0\n");
    assert_eq!(error, "line 3: id 3 becomes reusable before it is freed");
}

#[test]
fn lines_that_contradict_the_allocation_are_named() {
    let error = message("a,3,100,0,0\nf,3,101,0,0\n");
    assert_eq!(error, "line 3: bytes of id 3 is 101, but 100 in line 2");
    let error = message("a,3,100,0,0\nf,3,100,1,0\n");
    assert_eq!(error, "line 3: stream of id 3 is 1, but 0 in line 2");
}

#[test]
fn bytes_that_are_no_text_are_named() {
    let error = Trace::read(&b"op,id,bytes,stream,time_us\na,\xff,1,0,0\n"[..]).unwrap_err();
    assert_eq!(error.to_string(), "line 2: not UTF-8");
}

#[test]
fn a_truncated_or_damaged_gzip_stream_is_named() {
    let body: String = (0..5000).map(|id| format!("a,{id},{},0,0\n", id * 7919)).collect();
    let bytes = gzip(&format!("op,id,bytes,stream,time_us\n{body}"));
    let error = unzip(&bytes[..bytes.len() / 2]).unwrap_err();
    let TraceError::TruncatedGzip { line } = error else { panic!("{error}") };
    assert!((100..5000).contains(&line), "{line}");
    // The checksum at the end is missing: every line was read, but not certainly all of them.
    let error = unzip(&bytes[..bytes.len() - 4]).unwrap_err();
    assert!(matches!(error, TraceError::TruncatedGzip { .. }), "{error}");
    let mut damaged = bytes.clone();
    let last = damaged.len() - 6;
    damaged[last] ^= 1;
    let error = unzip(&damaged).unwrap_err();
    assert!(matches!(error, TraceError::CorruptGzip { .. }), "{error}");
}

#[test]
fn a_file_that_does_not_exist_is_named() {
    let error = Trace::open(Path::new("/nonexistent/trace.csv")).unwrap_err();
    assert!(matches!(error, TraceError::Open(_)), "{error}");
}
