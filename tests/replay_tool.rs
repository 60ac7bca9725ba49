//! The program `plugalloc`: what it prints, where, and with which exit status.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const HEADER: &str = "op,id,bytes,stream,time_us\n";
const GOOD: &str =
    "a,0,3000000,0,0\na,1,5000000,1,10\nf,0,3000000,0,20\na,2,0,0,30\na,3,700,0,2500\n";

/// Runs the program with nothing of this process' configuration.
fn plugalloc(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_plugalloc"));
    for variable in [
        "PLUGALLOC_CONF",
        "PYTORCH_CUDA_ALLOC_CONF",
        "PYTORCH_ALLOC_CONF",
        "PYTORCH_NO_CUDA_MEMORY_CACHING",
    ] {
        command.env_remove(variable);
    }
    command.args(arguments).output().unwrap()
}

fn replay(arguments: &[&str]) -> Output {
    plugalloc(&[&["replay", "--via", "rust"], arguments].concat())
}

fn status(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// A file that is removed with its test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str, content: &[u8]) -> Scratch {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let path = directory.join(format!("{}-{name}", std::process::id()));
        std::fs::write(&path, content).unwrap();
        Scratch(path)
    }

    fn trace(name: &str, body: &str) -> Scratch {
        Scratch::new(name, format!("{HEADER}{body}").as_bytes())
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A file that cannot be removed harms no other test.
        let _ = std::fs::remove_file(&self.0);
    }
}

fn gzip(content: &str) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(content.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn a_replay_prints_one_object_of_json_a_trace() {
    let plain = Scratch::trace("plain.csv", GOOD);
    let zipped = Scratch::new("zipped.csv.gz", &gzip(&format!("{HEADER}{GOOD}")));
    let output = replay(&["--json", plain.path(), zipped.path()]);
    assert_eq!(status(&output), 0, "{}", err(&output));
    let text = out(&output);
    let objects: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(objects.len(), 2);
    for object in &objects {
        assert_eq!(object["events"], 5);
        assert_eq!(object["allocations"], 4);
        assert_eq!(object["streams"], 2);
        assert_eq!(object["live_peak"], 8_000_000);
        assert_eq!(object["duration_ms"], 2.5);
        assert_eq!(object["ooms"], 0);
        let reserved = object["reserved_peak"].as_u64().unwrap();
        assert!(reserved >= 8_000_000 && reserved % (2 << 20) == 0, "{reserved}");
        assert!(object["driver_calls"].as_u64().unwrap() > 0);
        assert!(object["driver_ms"].as_f64().unwrap() > 0.0);
        assert!(object.get("least_capacity").is_none());
    }
    let name = plain.0.file_name().unwrap().to_str().unwrap();
    assert_eq!(objects[0]["trace"], name.trim_end_matches(".csv"));
}

#[test]
fn a_replay_prints_a_table_for_people() {
    let trace = Scratch::trace("table.csv", GOOD);
    let output = replay(&[trace.path()]);
    assert_eq!(status(&output), 0, "{}", err(&output));
    assert!(out(&output).contains("reserved peak"));
    assert!(!out(&output).contains("least capacity"));
    assert_eq!(err(&output), "", "a progress bar is for terminals");
}

#[test]
fn the_least_capacity_suffices_and_less_does_not() {
    let trace = Scratch::trace("least.csv", GOOD);
    let output = replay(&["--json", "--least", trace.path()]);
    assert_eq!(status(&output), 0, "{}", err(&output));
    let object: serde_json::Value = serde_json::from_str(out(&output).trim()).unwrap();
    let least = object["least_capacity"].as_u64().unwrap();
    assert!(least >= 8_000_000 && least <= object["reserved_peak"].as_u64().unwrap());
    assert!(object["least_ratio"].as_f64().unwrap() >= 1.0);
    assert!(object["driver_ms_at_least"].as_f64().unwrap() > 0.0);
    assert!(object["driver_calls_at_least"].as_u64().unwrap() > 0);
    let output = replay(&["--capacity", &least.to_string(), trace.path()]);
    assert_eq!(status(&output), 0, "{}", err(&output));
    let output = replay(&["--capacity", "8MB", trace.path()]);
    assert_eq!(status(&output), 2);
    let output = replay(&["--capacity", "4M", "--json", trace.path()]);
    assert_eq!(status(&output), 1);
    assert!(err(&output).contains("did not fit in 4.00 MiB"), "{}", err(&output));
    let object: serde_json::Value = serde_json::from_str(out(&output).trim()).unwrap();
    assert!(object["ooms"].as_u64().unwrap() > 0);
}

#[test]
fn a_bad_trace_is_reported_and_the_others_still_run() {
    let good = Scratch::trace("good.csv", GOOD);
    let bad = Scratch::trace("bad.csv", "a,0,1,0,0\nf,0,1,0,1\nf,0,1,0,2\n");
    let output = replay(&["--json", bad.path(), good.path()]);
    assert_eq!(status(&output), 1);
    assert_eq!(out(&output).lines().count(), 1);
    let expected = format!(
        "plugalloc: {}: line 4: id 0 is freed for a second time; first in line 3\n",
        bad.path()
    );
    assert_eq!(err(&output), expected);
}

#[test]
fn every_kind_of_bad_trace_exits_with_1_and_names_the_line() {
    let zipped = gzip(&format!("{HEADER}{GOOD}"));
    let cases: [(&str, Vec<u8>, &str); 11] = [
        ("empty.csv", Vec::new(), "the file is empty"),
        ("header.csv", HEADER.into(), "not followed by any event"),
        ("column.csv", b"op,id,size,stream,time_us\n".to_vec(), "line 1: no column 'bytes'"),
        ("op.csv", format!("{HEADER}m,0,1,0,0\n").into(), "line 2: unknown operation 'm'"),
        ("number.csv", format!("{HEADER}a,0,1k,0,0\n").into(), "line 2: bytes '1k'"),
        ("fields.csv", format!("{HEADER}a,0,1\n").into(), "line 2: 3 field(s), expected 5"),
        ("unknown.csv", format!("{HEADER}f,8,1,0,0\n").into(), "line 2: id 8 was never"),
        ("twice.csv", format!("{HEADER}a,8,1,0,0\na,8,1,0,0\n").into(), "first in line 2"),
        ("bytes.csv", format!("{HEADER}a,8,1,0,0\nf,8,2,0,0\n").into(), "but 1 in line 2"),
        ("text.csv", [HEADER.as_bytes(), b"a,\xff,1,0,0\n"].concat(), "line 2: not UTF-8"),
        ("half.csv.gz", zipped[..zipped.len() / 2].to_vec(), "the file is truncated"),
    ];
    for (name, content, part) in cases {
        let file = Scratch::new(name, &content);
        let output = replay(&[file.path()]);
        assert_eq!(status(&output), 1, "{name}");
        assert!(err(&output).contains(part), "{name}: {}", err(&output));
        assert!(out(&output).is_empty(), "{name}");
    }
    let output = replay(&["/nonexistent/trace.csv"]);
    assert_eq!(status(&output), 1);
    assert!(err(&output).contains("/nonexistent/trace.csv: cannot be opened"));
}

#[test]
fn wrong_usage_exits_with_2() {
    for arguments in [
        &["replay", "--unknown"][..],
        &["replay", "--device", "tpu"],
        &["replay", "--capacity", "lots"],
        &["replay", "--via", "java"],
        &["unknown"],
        &[],
    ] {
        assert_eq!(status(&plugalloc(arguments)), 2, "{arguments:?}");
    }
    let output = replay(&["--config", "steal:Maybe", "/nonexistent/trace.csv"]);
    assert_eq!(status(&output), 2);
    assert!(err(&output).contains("position 6, key 'steal'"), "{}", err(&output));
}

#[test]
fn the_configuration_is_shown_as_text() {
    let output = plugalloc(&["config", "steal:False,max_handle_mb:8"]);
    assert_eq!(status(&output), 0);
    let text = out(&output);
    assert!(text.contains("steal:False") && text.contains("max_handle_mb:8"), "{text}");
    let expected = plugalloc::Config::parse("steal:False,max_handle_mb:8").unwrap();
    assert_eq!(plugalloc::Config::parse(&text), Ok(expected));
}

#[test]
fn help_and_version_are_printed() {
    let output = plugalloc(&["--version"]);
    assert_eq!(out(&output).trim(), concat!("plugalloc ", env!("CARGO_PKG_VERSION")));
    let output = plugalloc(&["replay", "--help"]);
    assert_eq!(status(&output), 0);
    for option in ["--device", "--capacity", "--config", "--via", "--least", "--json", "[TRACE]"] {
        assert!(out(&output).contains(option), "{option}");
    }
}

#[test]
fn snapshots_are_written_where_they_are_wanted() {
    let trace = Scratch::trace("snapshots.csv", GOOD);
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let output = replay(&["--snapshots", directory.to_str().unwrap(), trace.path()]);
    assert_eq!(status(&output), 0, "{}", err(&output));
    let name = format!("{}-snapshots.pickle", std::process::id());
    let written = Scratch(directory.join(name));
    let bytes = std::fs::read(&written.0).unwrap();
    assert_eq!((&bytes[..2], bytes.last()), (&[0x80, 2][..], Some(&b'.')));
    let text = String::from_utf8_lossy(&bytes).into_owned();
    // Two of four allocations live at the end; one was of nothing.
    assert_eq!(text.matches("active_allocated").count(), 2);
    assert_eq!(text.matches("free_requested").count(), 1);
}

#[test]
fn a_directory_for_snapshots_that_is_not_there_is_told_before_the_replay() {
    let trace = Scratch::trace("nowhere.csv", GOOD);
    for directory in ["/nowhere/at/all", trace.path()] {
        let output = replay(&["--snapshots", directory, trace.path()]);
        assert_eq!(status(&output), 2);
        assert_eq!(out(&output), "", "nothing is replayed");
        let wanted = format!("--snapshots {directory}: ");
        assert!(err(&output).contains(&wanted), "{}", err(&output));
        assert!(err(&output).contains("name a directory that exists"), "{}", err(&output));
    }
}

#[test]
fn a_snapshot_that_cannot_be_written_leaves_nothing() {
    let trace = Scratch::trace("cut.csv", GOOD);
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cut-snapshots");
    let _ = std::fs::remove_dir_all(&directory);
    std::fs::create_dir(&directory).unwrap();
    // A folder that is not empty stands in the place of the file.
    let name = format!("{}-cut.pickle", std::process::id());
    std::fs::create_dir_all(directory.join(name).join("full")).unwrap();
    let output = replay(&["--snapshots", directory.to_str().unwrap(), trace.path()]);
    assert_eq!(status(&output), 1, "{}", err(&output));
    assert!(err(&output).contains("writing"), "{}", err(&output));
    assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 1);
}

#[test]
fn snapshots_do_not_overwrite_each_other() {
    let (one, two) = (Scratch::trace("x.v1.csv", GOOD), Scratch::trace("x.v2.csv", GOOD));
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("apart-snapshots");
    let _ = std::fs::remove_dir_all(&directory);
    std::fs::create_dir(&directory).unwrap();
    let into = ["--snapshots", directory.to_str().unwrap()];
    let output = replay(&[&into[..], &[one.path(), two.path()]].concat());
    assert_eq!(status(&output), 0, "{}", err(&output));
    assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 2);
    let output = replay(&[&into[..], &[one.path(), one.path()]].concat());
    assert_eq!(status(&output), 2);
    assert!(err(&output).contains("same name"), "{}", err(&output));
}
