//! Snapshots as text and bytes for others to read: PyTorch's structure, as JSON and as a pickle
//! that `torch/cuda/_memory_viz.py` and the web viewer (<https://pytorch.org/memory_viz>) load.
//!
//! The pickle is of protocol 2 and has only dictionaries, lists, pairs, texts, numbers and truth
//! values, since the viewer reads no more.

use super::events::{Action, Annotation, Context, TraceEntry};
use super::snapshot::{Snapshot, SnapshotBlock, SnapshotSegment};
use crate::config::Config;
use crate::units::PoolId;

/// A place in a program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    /// The source file.
    pub filename: String,
    /// The line in it.
    pub line: u32,
    /// The function.
    pub name: String,
}

/// What turns a context into the places that it stands for, the innermost first.
pub type FramesOf<'a> = &'a dyn Fn(&Context) -> Vec<Frame>;

/// What both formats can hold.
enum Value {
    Int(i128),
    Float(f64),
    Truth(bool),
    Text(String),
    Pair(Box<Value>, Box<Value>),
    List(Vec<Value>),
    /// Entries in order.
    Dict(Vec<(&'static str, Value)>),
    /// The same with keys that are made.
    Table(Vec<(String, Value)>),
}

use Value::{Dict, Float, Int, List, Pair, Table, Text, Truth};

impl Snapshot {
    /// The snapshot as JSON. `frames` tells what contexts stand for; without it there are none.
    ///
    /// ```
    /// use plugalloc::{Allocator, DeviceId, StreamId};
    ///
    /// let allocator = Allocator::builder().device("sim").build()?;
    /// let block = allocator.allocate(DeviceId(0), 1 << 20, StreamId::DEFAULT)?;
    /// let text = allocator.snapshot(None, true)?.to_json(None);
    /// assert!(text.contains("\"state\": \"active_allocated\""));
    /// allocator.free(block)?;
    /// # Ok::<(), plugalloc::Error>(())
    /// ```
    pub fn to_json(&self, frames: Option<FramesOf<'_>>) -> String {
        let mut out = String::new();
        Builder { frames }.snapshot(self).write_json(&mut out);
        out
    }

    /// The snapshot as a pickle of protocol 2: what `torch.cuda.memory._dump_snapshot` writes.
    pub fn to_pickle(&self, frames: Option<FramesOf<'_>>) -> Vec<u8> {
        let mut out = vec![0x80, 2];
        Builder { frames }.snapshot(self).write_pickle(&mut out);
        out.push(b'.');
        out
    }
}

/// Turns a snapshot into values, under PyTorch's names.
struct Builder<'a> {
    frames: Option<FramesOf<'a>>,
}

fn text(text: &str) -> Value {
    Text(text.to_owned())
}

fn pair(PoolId(first, second): PoolId) -> Value {
    Pair(Box::new(Int(first.into())), Box::new(Int(second.into())))
}

impl Builder<'_> {
    fn snapshot(&self, snapshot: &Snapshot) -> Value {
        let traces = snapshot.device_traces.iter();
        let trace = |trace: &Vec<TraceEntry>| List(trace.iter().map(|e| self.event(e)).collect());
        Dict(vec![
            ("segments", List(snapshot.segments.iter().map(|s| self.segment(s)).collect())),
            ("device_traces", List(traces.map(trace).collect())),
            ("allocator_settings", settings(&snapshot.config)),
            ("external_annotations", List(snapshot.annotations.iter().map(annotation).collect())),
        ])
    }

    fn segment(&self, segment: &SnapshotSegment) -> Value {
        let kind = if segment.is_large { "large" } else { "small" };
        Dict(vec![
            ("device", Int(segment.device.0.into())),
            ("address", Int(segment.address.into())),
            ("total_size", Int(segment.total.into())),
            ("allocated_size", Int(segment.allocated.into())),
            ("active_size", Int(segment.active.into())),
            ("requested_size", Int(segment.requested.into())),
            ("stream", Int(segment.stream.0.into())),
            ("segment_type", text(kind)),
            ("segment_pool_id", pair(segment.pool)),
            ("is_expandable", Truth(segment.is_expandable)),
            ("frames", self.frames_of(None)),
            ("blocks", List(segment.blocks.iter().map(|b| self.block(b)).collect())),
        ])
    }

    fn block(&self, block: &SnapshotBlock) -> Value {
        Dict(vec![
            ("address", Int(block.address.into())),
            ("size", Int(block.bytes.into())),
            ("requested_size", Int(block.requested.into())),
            ("state", text(block.state.name())),
            ("frames", self.frames_of(block.context.as_ref())),
        ])
    }

    fn event(&self, entry: &TraceEntry) -> Value {
        let at = match entry.action {
            Action::OutOfMemory => "device_free",
            _ => "addr",
        };
        let mut event = vec![
            ("action", text(entry.action.name())),
            (at, Int(entry.address.into())),
            ("size", Int(entry.bytes.into())),
            ("stream", Int(entry.stream.0.into())),
            ("time_us", Int(entry.time_us.into())),
            ("compile_context", text(entry.compile_context.as_deref().unwrap_or("N/A"))),
            ("user_metadata", text(entry.user_metadata.as_deref().unwrap_or_default())),
            ("pool_id", pair(entry.pool)),
        ];
        if entry.context.is_some() {
            event.push(("frames", self.frames_of(entry.context.as_ref())));
        }
        Dict(event)
    }

    fn frames_of(&self, context: Option<&Context>) -> Value {
        let frames = context.zip(self.frames).map_or_else(Vec::new, |(context, of)| of(context));
        let frame = |frame: Frame| {
            Dict(vec![
                ("filename", Text(frame.filename)),
                ("line", Int(frame.line.into())),
                ("name", Text(frame.name)),
            ])
        };
        List(frames.into_iter().map(frame).collect())
    }
}

fn annotation(mark: &Annotation) -> Value {
    let own = mark.metadata.iter().map(|(key, value)| (key.clone(), text(value)));
    let ours = [
        ("device".to_owned(), Int(mark.device.0.into())),
        ("time_us".to_owned(), Int(mark.time_us.into())),
    ];
    Table(own.chain(ours).collect())
}

fn settings(config: &Config) -> Value {
    let divisions = config.roundup_power2_divisions.iter().enumerate();
    let divisions = divisions.map(|(class, &steps)| ((1u64 << class).to_string(), steps));
    Dict(vec![
        ("PYTORCH_CUDA_ALLOC_CONF", Text(config.to_text())),
        ("max_split_size", Int(config.max_split_size.map_or(-1, Into::into))),
        ("garbage_collection_threshold", Float(config.garbage_collection_threshold)),
        ("expandable_segments", Truth(config.expandable_segments)),
        ("graph_capture_record_stream_reuse", Truth(config.graph_capture_record_stream_reuse)),
        (
            "roundup_power2_divisions",
            Table(divisions.map(|(class, steps)| (class, Int(steps.into()))).collect()),
        ),
    ])
}

/// Writes what stands between brackets.
fn separated<T>(
    out: &mut String,
    (open, close): (char, char),
    items: impl Iterator<Item = T>,
    mut write: impl FnMut(&mut String, T),
) {
    out.push(open);
    for (at, item) in items.enumerate() {
        if at > 0 {
            out.push_str(", ");
        }
        write(out, item);
    }
    out.push(close);
}

fn quote(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if u32::from(c) < 0x20 => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
}

impl Value {
    fn write_json(&self, out: &mut String) {
        match self {
            Int(number) => out.push_str(&number.to_string()),
            // No option is infinite, which JSON could not say.
            Float(number) => out.push_str(&format!("{number:?}")),
            Truth(truth) => out.push_str(if *truth { "true" } else { "false" }),
            Text(text) => quote(out, text),
            Pair(first, second) => {
                let both = [first, second].into_iter();
                separated(out, ('[', ']'), both, |out, value| value.write_json(out));
            }
            List(values) => {
                separated(out, ('[', ']'), values.iter(), |out, value| value.write_json(out));
            }
            Dict(entries) => entry_list(out, entries.iter().map(|(k, v)| (*k, v))),
            Table(entries) => entry_list(out, entries.iter().map(|(k, v)| (k.as_str(), v))),
        }
    }

    fn write_pickle(&self, out: &mut Vec<u8>) {
        match self {
            Int(number) => pickle_int(out, *number),
            Float(number) => {
                out.push(b'G');
                out.extend(number.to_be_bytes());
            }
            Truth(truth) => out.push(if *truth { 0x88 } else { 0x89 }),
            Text(text) => pickle_text(out, text),
            Pair(first, second) => {
                first.write_pickle(out);
                second.write_pickle(out);
                out.push(0x86);
            }
            List(values) => {
                out.extend(b"](");
                values.iter().for_each(|value| value.write_pickle(out));
                out.push(b'e');
            }
            Dict(entries) => pickle_dict(out, entries.iter().map(|(k, v)| (*k, v))),
            Table(entries) => pickle_dict(out, entries.iter().map(|(k, v)| (k.as_str(), v))),
        }
    }
}

fn entry_list<'a>(out: &mut String, entries: impl Iterator<Item = (&'a str, &'a Value)>) {
    separated(out, ('{', '}'), entries, |out, (key, value)| {
        quote(out, key);
        out.push_str(": ");
        value.write_json(out);
    });
}

fn pickle_dict<'a>(out: &mut Vec<u8>, entries: impl Iterator<Item = (&'a str, &'a Value)>) {
    out.extend(b"}(");
    for (key, value) in entries {
        pickle_text(out, key);
        value.write_pickle(out);
    }
    out.push(b'u');
}

fn pickle_text(out: &mut Vec<u8>, text: &str) {
    out.push(b'X');
    // A text of 4 GiB and more does not come about here.
    out.extend((text.len() as u32).to_le_bytes());
    out.extend(text.as_bytes());
}

/// The shortest form: one or two bytes, a signed word, or as many bytes as it takes.
fn pickle_int(out: &mut Vec<u8>, number: i128) {
    if let Ok(byte) = u8::try_from(number) {
        out.extend([b'K', byte]);
    } else if let Ok(word) = u16::try_from(number) {
        out.push(b'M');
        out.extend(word.to_le_bytes());
    } else if let Ok(word) = i32::try_from(number) {
        out.push(b'J');
        out.extend(word.to_le_bytes());
    } else {
        out.extend([0x8a, 9]);
        out.extend(&number.to_le_bytes()[..9]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pickled(value: &Value) -> Vec<u8> {
        let mut out = Vec::new();
        value.write_pickle(&mut out);
        out
    }

    #[test]
    fn numbers_take_the_form_that_holds_them() {
        assert_eq!(pickled(&Int(255)), [b'K', 255]);
        assert_eq!(pickled(&Int(256)), [b'M', 0, 1]);
        assert_eq!(pickled(&Int(65536)), [b'J', 0, 0, 1, 0]);
        assert_eq!(pickled(&Int(-1)), [b'J', 255, 255, 255, 255]);
        let most = [0x8a, 9, 255, 255, 255, 255, 255, 255, 255, 255, 0];
        assert_eq!(pickled(&Int(u64::MAX.into())), most);
    }

    #[test]
    fn texts_are_quoted_in_json() {
        let mut out = String::new();
        text("a \"b\" \\ \n ü").write_json(&mut out);
        assert_eq!(out, "\"a \\\"b\\\" \\\\ \\u000a ü\"");
    }
}
