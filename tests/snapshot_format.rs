//! Snapshots as files: what Python reads of them.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests fail as tests do")]

mod common;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use common::{A, B, GPU, Rig};
use plugalloc::observe::{
    Context, Frame, HistoryOptions, RecordContext, set_user_metadata, user_metadata,
};
use plugalloc::units::MIB;

/// Reads both files, looks that they say the same, that the pickle has only what the web viewer
/// reads, and that each part has the keys of PyTorch's.
const READER: &str = r#"
import json, pickle, pickletools, sys

KNOWN = {"PROTO", "STOP", "MARK", "EMPTY_DICT", "EMPTY_LIST", "SETITEMS", "APPENDS", "TUPLE2",
         "BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "NEWTRUE", "NEWFALSE"}
SEGMENT = {"device", "address", "total_size", "allocated_size", "active_size", "requested_size",
           "stream", "segment_type", "segment_pool_id", "is_expandable", "frames", "blocks"}
BLOCK = {"address", "size", "requested_size", "state", "frames"}
EVENT = {"action", "addr", "size", "stream", "time_us", "compile_context", "user_metadata",
         "pool_id"}

def lists(value):
    if isinstance(value, (list, tuple)):
        return [lists(each) for each in value]
    if isinstance(value, dict):
        return {key: lists(each) for key, each in value.items()}
    return value

data = open(sys.argv[1], "rb").read()
used = {opcode.name for opcode, _, _ in pickletools.genops(data)}
assert used <= KNOWN, used - KNOWN
snapshot = pickle.loads(data)
assert lists(snapshot) == json.load(open(sys.argv[2], encoding="utf-8"))
for segment in snapshot["segments"]:
    assert segment.keys() == SEGMENT, segment.keys()
    assert isinstance(segment["segment_pool_id"], tuple)
    assert sum(block["size"] for block in segment["blocks"]) == segment["total_size"]
    for block in segment["blocks"]:
        assert block.keys() == BLOCK, block.keys()
for event in (event for trace in snapshot["device_traces"] for event in trace):
    keys = event.keys() - {"frames"}
    at = "device_free" if event["action"] == "oom" else "addr"
    assert keys == EVENT - {"addr"} | {at}, keys
settings = snapshot["allocator_settings"]
assert settings["max_split_size"] == -1 and settings["roundup_power2_divisions"]["32768"] == 0
actions = [event["action"] for event in snapshot["device_traces"][0]]
blocks = [block for segment in snapshot["segments"] for block in segment["blocks"]]
states = sorted(block["state"] for block in blocks if block["requested_size"])
frames = [frame["name"] for block in blocks for frame in block["frames"]]
texts = {event["user_metadata"] for event in snapshot["device_traces"][0]}
marks = [mark["name"] for mark in snapshot["external_annotations"]]
print(" ".join(actions), states, frames, sorted(texts), marks, sep="|")
"#;

#[test]
fn python_reads_pytorchs_structure() {
    let rig = Rig::of(64 * MIB);
    let source = || -> Option<Context> { Some(Arc::new(user_metadata())) };
    let options = HistoryOptions {
        max_entries: 1000,
        when: RecordContext::Alloc,
        source: Some(Arc::new(source)),
        ..HistoryOptions::default()
    };
    rig.allocator.record_history(&options).unwrap();
    set_user_metadata("größer \"als\" 1 MiB");
    let kept = rig.allocate(3 * MIB, A);
    set_user_metadata("");
    rig.out_of_memory(80 * MIB, A);
    let waiting = rig.allocate(1000, A);
    rig.allocator.record_annotation(GPU, &[("name".into(), "step".into())]).unwrap();
    rig.device().hold(B).unwrap();
    rig.fill(waiting, 1, 1000, B);
    rig.allocator.record_stream(waiting, B).unwrap();
    rig.free(waiting);

    let frames = |context: &Context| {
        let name = context.downcast_ref::<String>().unwrap().clone();
        vec![Frame { filename: "request.rs".to_owned(), line: 7, name }]
    };
    let snapshot = rig.allocator.snapshot(None, true).unwrap();
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let file = |end: &str| directory.join(format!("snapshot-{}.{end}", std::process::id()));
    let (pickle, json) = (file("pickle"), file("json"));
    std::fs::write(&pickle, snapshot.to_pickle(Some(&frames))).unwrap();
    std::fs::write(&json, snapshot.to_json(Some(&frames))).unwrap();
    let read = Command::new("python3").args(["-c", READER]).args([&pickle, &json]).output();
    let read = read.expect("python3, which tests/run.sh needs");
    let _ = (std::fs::remove_file(pickle), std::fs::remove_file(json));
    assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
    let told = String::from_utf8(read.stdout).unwrap();
    let told: Vec<_> = told.trim_end().split('|').collect();
    let events = "segment_map segment_map alloc oom segment_map alloc free_requested";
    assert_eq!(told[0], events);
    assert_eq!(told[1], "['active_allocated', 'active_pending_free']");
    assert_eq!(told[2], "['', 'größer \"als\" 1 MiB']");
    assert_eq!(told[3], "['', 'größer \"als\" 1 MiB']");
    assert_eq!(told[4], "['step']");

    rig.device().resume(B).unwrap();
    rig.free(kept);
    rig.finish();
}
