//! What tools are told of memory. The tool is a library made here by the C compiler, which writes
//! down what it is told; the allocators run in child processes that load it.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a helper of a test fails as the test does")]

#[path = "common/mod.rs"]
mod common;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{A, B, C, GPU, Rig, capacity, plain};
use plugalloc::Config;
use plugalloc::error::DriverCall;
use plugalloc::nvtx::{Status, status};
use plugalloc::units::{Address, Bytes, MIB, PoolId};

/// Set in the environment of a child to the name of the part that it plays.
const CHILD: &str = "PLUGALLOC_NVTX_CHILD";

/// Makes the tool. `None` without a C compiler.
fn recorder() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("nvtx");
    std::fs::create_dir_all(&folder).unwrap();
    // Tests run side by side, and none may load a file that another is writing.
    let unique = format!("recorder-{}-{:?}", std::process::id(), std::thread::current().id());
    let library = folder.join(unique.replace(['(', ')'], "")).with_extension("so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/nvtx/recorder.c");
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-Wall", "-Werror", "-o"]).arg(&library).arg(source);
    match compiler.status() {
        Ok(status) => {
            assert!(status.success());
            Some(library)
        }
        Err(problem) => {
            println!("skipped: no C compiler here ({problem})");
            None
        }
    }
}

/// Runs a part in a child with a tool, and returns what it printed.
fn run(part: &str, tool: &Path, more: &[(&str, &str)]) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", part, "--nocapture"]).env(CHILD, part);
    command.env("NVTX_INJECTION64_PATH", tool);
    command.envs(more.iter().copied());
    let output = command.output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{printed}{complained}");
    output
}

fn is_child(part: &str) -> bool {
    std::env::var(CHILD).is_ok_and(|told| told == part)
}

/// Runs a part under the recording tool, and returns what was recorded.
fn recorded(part: &str, more: &[(&str, &str)]) -> Option<(Record, Output)> {
    let tool = recorder()?;
    let file = tool.with_extension("txt");
    let mut all = vec![("RECORD", file.to_str().unwrap())];
    all.extend_from_slice(more);
    let output = run(part, &tool, &all);
    let text = std::fs::read_to_string(file).unwrap();
    Some((Record::read(&text), output))
}

/// What a tool knows, kept while its record is read; whatever does not fit is a failure.
#[derive(Default)]
struct Record {
    /// By number: where a heap starts, and its bytes.
    heaps: HashMap<u64, (Address, Bytes)>,
    /// By where a region starts: its bytes and heap.
    regions: BTreeMap<Address, (Bytes, u64)>,
    /// Every region that there was, in order.
    all_regions: Vec<(Address, Bytes)>,
    all_heaps: usize,
    counters: HashMap<u64, String>,
    /// By the counter's name: the last value, and the largest.
    samples: HashMap<String, (i64, i64)>,
}

impl Record {
    fn read(text: &str) -> Record {
        let mut record = Record::default();
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let number = |at: usize| words[at].parse::<u64>().unwrap();
            match words[0] {
                "domain" => assert_eq!(words[1], "plugalloc"),
                "heap" => record.heap(number(1), number(2), number(3), &words[4..].join(" ")),
                "heap_end" => record.heap_end(number(1)),
                "region" => record.region(number(1), number(2), number(3)),
                "region_end" => assert!(record.regions.remove(&number(1)).is_some(), "{line}"),
                "counter" => {
                    record.counters.insert(number(1), words[2..].join(" "));
                }
                "sample" => record.sample(number(1), words[2].parse().unwrap()),
                _ => panic!("{line}"),
            }
        }
        record
    }

    fn heap(&mut self, id: u64, start: Address, bytes: Bytes, name: &str) {
        assert_eq!(name, "plugalloc, device 0");
        let overlaps =
            |&(other, length): &(Address, Bytes)| other < start + bytes && start < other + length;
        assert!(!self.heaps.values().any(overlaps), "heap at {start:#x}");
        self.heaps.insert(id, (start, bytes));
        self.all_heaps += 1;
    }

    fn heap_end(&mut self, id: u64) {
        let (start, bytes) = self.heaps.remove(&id).unwrap();
        let inside = self.regions.range(start..start + bytes).next();
        assert!(inside.is_none(), "{inside:?} is in use in the heap at {start:#x}");
    }

    fn region(&mut self, heap: u64, start: Address, bytes: Bytes) {
        let (heap_start, heap_bytes) = self.heaps[&heap];
        assert!(heap_start <= start && start + bytes <= heap_start + heap_bytes);
        let before = self.regions.range(..start + bytes).next_back();
        let overlaps = before.is_some_and(|(&other, &(length, _))| other + length > start);
        assert!(!overlaps, "region at {start:#x}");
        self.regions.insert(start, (bytes, heap));
        self.all_regions.push((start, bytes));
    }

    fn sample(&mut self, counter: u64, value: i64) {
        let name = self.counters[&counter].clone();
        let (last, most) = self.samples.entry(name).or_insert((0, 0));
        (*last, *most) = (value, (*most).max(value));
    }
}

/// The address that a program named so in what it printed.
fn said(text: &str, name: &str) -> Address {
    let after = text.split(name).nth(1).unwrap();
    after.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn without_the_variable_there_is_no_tool() {
    if std::env::var_os("NVTX_INJECTION64_PATH").is_none() {
        assert_eq!(status(), Status::Absent);
    }
}

#[test]
fn a_tool_that_cannot_run_is_named_and_harms_nothing() {
    let part = "a_tool_that_cannot_run_is_named_and_harms_nothing";
    if is_child(part) {
        let rig = Rig::of(64 * MIB);
        let at = rig.allocator.allocate(GPU, 1000, A).unwrap();
        rig.allocator.free(at).unwrap();
        rig.allocator.is_quiescent().unwrap();
        println!("status {:?}", status());
        return;
    }
    let said = |output: Output| String::from_utf8_lossy(&output.stdout).into_owned();
    let missing = said(run(part, Path::new("/nowhere/tool.so"), &[]));
    assert!(missing.contains("Failed(\"/nowhere/tool.so: "), "{missing}");
    if let Some((_, output)) = recorded(part, &[("REFUSE", "1")]) {
        assert!(said(output).contains("refused to start"));
    }
    let Some((record, output)) = recorded(part, &[("NO_COUNTERS", "1")]) else { return };
    assert!(said(output).contains("Attached { memory: true, counters: false }"));
    assert_eq!((record.all_regions.len(), record.counters.len()), (1, 0));
}

#[test]
fn a_region_is_what_was_asked_for_and_ends_with_the_allocation() {
    let part = "a_region_is_what_was_asked_for_and_ends_with_the_allocation";
    if is_child(part) {
        let rig = Rig::of(256 * MIB);
        let allocate = |bytes| rig.allocator.allocate(GPU, bytes, A).unwrap();
        let (small, large) = (allocate(1001), allocate(40 * MIB + 1));
        println!("small {small} large {large}");
        rig.allocator.free(small).unwrap();
        let again = allocate(900);
        println!("again {again} end");
        assert!(rig.allocator.free(again + 512).is_err());
        // `large` and `again` stay.
        return;
    }
    let Some((record, output)) = recorded(part, &[]) else { return };
    let text = String::from_utf8_lossy(&output.stdout);
    let said = |name: &str| said(&text, name);
    assert_eq!(record.all_regions[0], (said("small "), 1001));
    assert_eq!(*record.all_regions.last().unwrap(), (said("again "), 900));
    assert_eq!(record.regions[&said("large ")].0, 40 * MIB + 1);
    let in_use = (40 * MIB + 1 + 900) as i64;
    assert_eq!(record.samples["device 0: bytes in use"].0, in_use);
    assert!(record.samples["device 0: bytes reserved"].0 >= in_use);
}

/// A workload on little memory, so that handles move between streams: prints its peak.
fn churn(rig: &Rig, seed: u64) {
    println!("seed {seed}");
    let mut state = seed;
    let mut below = |limit: u64| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) % limit
    };
    let mut live: Vec<(Address, Bytes)> = Vec::new();
    let (mut in_use, mut peak) = (0, 0);
    for _ in 0..600 {
        if live.len() > 12 || (!live.is_empty() && below(3) == 0) {
            let (at, bytes) = live.swap_remove(below(live.len() as u64) as usize);
            if below(3) == 0 {
                rig.allocator.record_stream(at, [A, B, C][below(3) as usize]).unwrap();
            }
            rig.allocator.free(at).unwrap();
            in_use -= bytes;
            continue;
        }
        let order = 8 + below(17);
        let bytes = 1 + below(1 << order);
        match rig.allocator.allocate(GPU, bytes, [A, B, C][below(3) as usize]) {
            Ok(at) => {
                live.push((at, bytes));
                in_use += bytes;
                peak = peak.max(in_use);
            }
            Err(error) => assert!(error.is_out_of_memory(), "{error}"),
        }
    }
    for (at, _) in live {
        rig.allocator.free(at).unwrap();
    }
    rig.allocator.process_events().unwrap();
    rig.allocator.is_quiescent().unwrap();
    rig.allocator.empty_cache().unwrap();
    println!("peak {peak} end");
}

#[test]
fn regions_lie_in_heaps_that_are_mapped_whatever_moves() {
    let part = "regions_lie_in_heaps_that_are_mapped_whatever_moves";
    if is_child(part) {
        let seed = std::env::var("SEED").unwrap().parse().unwrap();
        let config = Config::from_environment().unwrap();
        let mapped = config.expandable_with_tools;
        let options = if config.expandable_segments { capacity } else { plain };
        let rig = Rig::new(options(128 * MIB), config);
        churn(&rig, seed);
        assert_eq!(rig.ledger().calls(DriverCall::Map) > 0, mapped);
        return;
    }
    let random = u64::from(std::process::id());
    for (conf, seed) in [
        ("", 1),
        ("", random),
        ("expandable_segments:False", 3),
        ("expandable_segments:True", 4),
        ("expandable_segments:True", random),
    ] {
        let more = [("SEED", &*seed.to_string()), ("PLUGALLOC_CONF", conf)];
        let Some((record, output)) = recorded(part, &more) else { return };
        let text = String::from_utf8_lossy(&output.stdout);
        println!("{text}");
        assert!(record.regions.is_empty(), "{:?}", record.regions);
        assert!(record.heaps.is_empty(), "{:?}", record.heaps);
        if conf == "expandable_segments:True" {
            // Tools take no heap in mapped memory, so that none is offered.
            assert_eq!((record.all_heaps, record.all_regions.len()), (0, 0));
        } else {
            assert!(record.all_heaps > 5 && record.all_regions.len() > 200);
        }
        let peak: i64 =
            text.split("peak ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
        assert_eq!(record.samples["device 0: bytes in use"], (0, peak));
        assert_eq!(record.samples["device 0: bytes reserved"].0, 0);
    }
}

#[test]
fn regions_follow_a_pool_that_goes_back_to_a_checkpoint() {
    let part = "regions_follow_a_pool_that_goes_back_to_a_checkpoint";
    if is_child(part) {
        let rig = Rig::of(256 * MIB);
        let pool = PoolId(1, 0);
        rig.allocator.begin_allocate_to_pool(GPU, pool, |_| true).unwrap();
        let kept = rig.allocate(5000, A);
        let resized = rig.allocate(3 * MIB, A);
        let ended = rig.allocate(2000, B);
        let checkpoint = rig.allocator.checkpoint_pool(GPU, pool).unwrap();
        rig.free(ended);
        rig.free(resized);
        assert_eq!(rig.allocate(3 * MIB - 1, A), resized);
        rig.allocate(9 * MIB, B);
        rig.allocator.restore_pool(GPU, &checkpoint).unwrap();
        println!("kept {kept} resized {resized} ended {ended} end");
        rig.allocator.is_valid().unwrap();
        // All of them stay, as the tool is to see.
        return;
    }
    let Some((record, output)) = recorded(part, &[]) else { return };
    let text = String::from_utf8_lossy(&output.stdout);
    let said = |name: &str| said(&text, name);
    let expected = BTreeMap::from([
        (said("kept "), 5000),
        (said("resized "), 3 * MIB),
        (said("ended "), 2000),
    ]);
    let regions = record.regions.iter().map(|(&at, &(bytes, _))| (at, bytes));
    assert_eq!(regions.collect::<BTreeMap<_, _>>(), expected);
    let told = |at| record.all_regions.iter().filter(|region| region.0 == at).count();
    assert_eq!(told(said("kept ")), 1, "what stays as it is keeps its region");
    let in_use = (3 * MIB + 7000) as i64;
    assert_eq!(record.samples["device 0: bytes in use"].0, in_use);
}

#[test]
fn allocations_of_the_devices_own_are_counted() {
    let part = "allocations_of_the_devices_own_are_counted";
    if is_child(part) {
        let rig = Rig::of(256 * MIB);
        rig.allocator.set_caching(false);
        let at = rig.allocator.allocate(GPU, 5000, A).unwrap();
        rig.allocator.free(at).unwrap();
        rig.allocator.is_quiescent().unwrap();
        return;
    }
    let Some((record, _)) = recorded(part, &[]) else { return };
    // The tool sees these by itself.
    assert_eq!((record.all_heaps, record.all_regions.len()), (0, 0));
    assert_eq!(record.samples["device 0: bytes in use"], (0, 5000));
}
