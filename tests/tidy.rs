//! The rules of the house that can be read off the source: which room may use which, how long files
//! and lines may be, and where `unsafe` and the driver's crate may stand.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

/// The rooms from the lowest to the highest; those of one line do not use each other, save the
/// files of the Rust API, which are one room.
const ROOMS: [&[&str]; 15] = [
    &["units"],
    &["sync"],
    &["lock", "page_map"],
    &["error"],
    &["stat"],
    &["config"],
    &["device"],
    &["nvtx"],
    &["heap"],
    &["pages"],
    &["streams", "observe"],
    &["engine"],
    &["allocator", "builder", "allocation", "interop", "open", "pluggable"],
    &["ffi"],
    &["cpp"],
];

/// The line of the Rust API.
const FACES: usize = 12;

/// One source file.
struct Source {
    /// From the root of the repository, with slashes.
    path: String,
    text: String,
}

impl Source {
    fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(index, line)| (index + 1, line))
    }

    /// Lines that are not comments alone.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        self.lines().filter(|(_, line)| !line.trim_start().starts_with("//"))
    }

    /// How many lines stand before the unit tests.
    fn length(&self) -> usize {
        self.lines().take_while(|(_, line)| !line.starts_with("#[cfg(test)]")).count()
    }

    /// The room of a file under `src`: its folder, or its own name.
    fn room(&self) -> Option<&str> {
        let inside = self.path.strip_prefix("src/")?;
        let (room, _) = inside.split_once('/').or_else(|| inside.split_once('.'))?;
        (room != "bin" && room != "lib").then_some(room)
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn collect(folder: &Path, extensions: &[&str], found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, extensions, found);
        } else if path.extension().is_some_and(|found| extensions.iter().any(|e| found == *e)) {
            found.push(path);
        }
    }
}

/// Every file in these folders that ends so.
fn sources(folders: &[&str], extensions: &[&str]) -> Vec<Source> {
    let mut paths = Vec::new();
    for folder in folders {
        collect(&root().join(folder), extensions, &mut paths);
    }
    paths.sort();
    assert!(!paths.is_empty(), "no files in {folders:?}");
    let read = |path: &PathBuf| Source {
        path: path.strip_prefix(root()).unwrap().to_str().unwrap().replace('\\', "/"),
        text: fs::read_to_string(path).unwrap(),
    };
    paths.iter().map(read).collect()
}

fn rust() -> Vec<Source> {
    sources(&["src", "tests", "examples", "benches"], &["rs"])
}

fn cpp() -> Vec<Source> {
    sources(&["cpp", "tests", "examples", "benches"], &["h", "hpp", "cc", "cpp"])
}

/// Fails with all that was found, so that one run shows all there is to do.
#[track_caller]
fn assert_none(rule: &str, found: &[String]) {
    assert!(found.is_empty(), "{rule}:\n  {}", found.join("\n  "));
}

fn rank(room: &str) -> Option<usize> {
    ROOMS.iter().position(|rooms| rooms.contains(&room))
}

/// The rooms named after `crate::` in a line, also within braces.
fn rooms_in(line: &str) -> Vec<&str> {
    let is_name = |c: char| c.is_ascii_lowercase() || c == '_';
    let mut found = Vec::new();
    for (at, start) in line.match_indices("crate::") {
        let rest = &line[at + start.len()..];
        let before = line[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let inner = rest.strip_prefix('{').map(|list| list.split('}').next().unwrap_or(list));
        for part in inner.map_or(vec![rest], |list| list.split(',').collect()) {
            let part = part.trim();
            let end = part.find(|c| !is_name(c)).unwrap_or(part.len());
            if end > 0 {
                found.push(&part[..end]);
            }
        }
    }
    found
}

/// Whether a room may use another.
fn may_use(user: &str, used: &str) -> Option<bool> {
    let (user_rank, used_rank) = (rank(user)?, rank(used)?);
    if user == used || (user_rank, used_rank) == (FACES, FACES) {
        return Some(true);
    }
    if user == "heap" {
        return Some(matches!(used, "units" | "error"));
    }
    Some(used_rank < user_rank)
}

#[test]
fn rooms_use_only_those_below_them() {
    let mut found = Vec::new();
    for source in sources(&["src"], &["rs"]) {
        let Some(room) = source.room() else { continue };
        for (number, line) in source.code() {
            for used in rooms_in(line) {
                let place = format!("{}:{number}: {}", source.path, line.trim());
                match may_use(room, used) {
                    Some(true) => {}
                    Some(false) => found.push(format!("{place}  ({room} uses {used})")),
                    None => found.push(format!("{place}  (a room that has no place yet)")),
                }
            }
        }
    }
    assert_none("a room uses only rooms below it (docs/ARCHITECTURE.md)", &found);
}

#[test]
fn the_law_of_rooms_is_read_as_it_is_written() {
    assert_eq!(rooms_in("use crate::heap::{Heap, State};"), ["heap"]);
    assert_eq!(rooms_in("use crate::{units::Bytes, error};"), ["units", "error"]);
    assert_eq!(rooms_in("let x = crate::engine::foreign(y);"), ["engine"]);
    assert!(rooms_in("use super::heap; use plugalloc_crate::heap; crate::Config").is_empty());
    assert_eq!(may_use("pages", "observe"), Some(false));
    assert_eq!(may_use("streams", "observe"), Some(false));
    assert_eq!(may_use("heap", "device"), Some(false));
    assert_eq!(may_use("heap", "config"), Some(false));
    assert_eq!(may_use("allocator", "ffi"), Some(false));
    assert_eq!(may_use("builder", "open"), Some(true));
    assert_eq!(may_use("engine", "heap"), Some(true));
    assert_eq!(may_use("engine", "new_room"), None);
}

#[test]
fn every_room_has_its_place() {
    for source in sources(&["src"], &["rs"]) {
        let Some(room) = source.room() else { continue };
        assert!(rank(room).is_some(), "{}: '{room}' has no place among the rooms", source.path);
    }
}

#[test]
fn files_are_short() {
    let mut found = Vec::new();
    for source in rust().into_iter().chain(cpp()) {
        let most = if source.path.starts_with("tests/") { 600 } else { 400 };
        let length = source.length();
        if length > most {
            found.push(format!("{}: {length} lines, at most {most}", source.path));
        }
    }
    assert_none("a file is short", &found);
}

#[test]
fn lines_have_at_most_100_columns() {
    let mut found = Vec::new();
    for source in rust().into_iter().chain(cpp()) {
        // A table in a comment cannot be broken.
        let is_table =
            |line: &str| line.trim_start().trim_start_matches(['/', '!', ' ']).starts_with('|');
        for (number, line) in source.lines().filter(|(_, line)| !is_table(line)) {
            let columns = line.chars().count();
            if columns > 100 {
                found.push(format!("{}:{number}: {columns} columns", source.path));
            }
        }
    }
    assert_none("a line has at most 100 columns", &found);
}

/// Whether the word stands in the line, not as a part of another.
fn has_word(line: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        !before.is_some_and(is_part) && !after.is_some_and(is_part)
    })
}

#[test]
fn few_places_know_the_drivers_crate() {
    let mut found = Vec::new();
    for source in sources(&["src"], &["rs"]) {
        if source.path.starts_with("src/device/cuda/") || source.path == "src/interop.rs" {
            continue;
        }
        let named = source.lines().filter(|(_, line)| has_word(line, "cudarc"));
        found.extend(named.map(|(number, _)| format!("{}:{number}", source.path)));
    }
    assert_none("cudarc is named only under src/device/cuda and in src/interop.rs", &found);
}

#[test]
fn unsafe_code_stands_where_it_is_expected() {
    let allowed = [
        // Copies with memory of the host, for which only whoever asks for them can answer.
        "src/allocation.rs",
        "src/device/mod.rs",
        "src/device/sim/device.rs",
        "src/bin/plugalloc/metered.rs",
        "src/device/sim/os.rs",
        "src/device/pidfd.rs",
        "src/device/cuda/",
        "src/interop.rs",
        "src/nvtx/abi.rs",
        "src/ffi/",
        "src/cpp.rs",
        "src/lock.rs",
        "src/page_map.rs",
    ];
    let mut found = Vec::new();
    for source in sources(&["src"], &["rs"]) {
        if allowed.iter().any(|place| source.path.starts_with(place)) {
            continue;
        }
        let named = source.code().filter(|(_, line)| has_word(line, "unsafe"));
        found.extend(named.map(|(number, _)| format!("{}:{number}", source.path)));
    }
    assert_none("unsafe code stands only in the rooms that need it", &found);
}

#[test]
fn the_algorithm_forbids_unsafe_code() {
    for room in ["heap", "pages", "streams", "observe", "engine"] {
        let path = root().join("src").join(room).join("mod.rs");
        let text = fs::read_to_string(path).unwrap();
        assert!(text.contains("#![forbid(unsafe_code)]"), "src/{room}/mod.rs does not forbid it");
    }
}

#[test]
fn nothing_is_left_to_be_done_or_skipped() {
    // Put together here, so that this file does not contain them.
    let marks =
        ["to".to_owned() + "do!(", "unimpl".to_owned() + "emented!(", "#[ig".to_owned() + "nore"];
    let mut found = Vec::new();
    for source in rust() {
        for (number, line) in source.code() {
            if marks.iter().any(|mark| line.contains(mark.as_str())) {
                found.push(format!("{}:{number}: {}", source.path, line.trim()));
            }
        }
    }
    assert_none("nothing is unfinished, and no test is skipped", &found);
}
