//! `plugalloc`: replays recorded allocation traces through the allocator, and shows its
//! configuration.

mod accounts;
mod arguments;
mod client;
mod client_cpp;
mod doctor;
mod job;
mod least;
mod machine;
mod metered;
mod replay;
mod report;
mod trace;
mod trace_error;
mod trace_lines;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use plugalloc::Config;

use arguments::{Arguments, Command, ReplayArguments};
use job::Job;
use report::Report;
use trace::Trace;

/// The traces of the source tree, which are replayed where none is named.
const TRACES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/traces");

/// The arguments, or what they refer to, make no sense; clap exits with the same status.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Replay(arguments) => replay_all(&arguments),
        Command::Doctor { json } => return doctor::run(json),
        Command::Config { config } => show_config(config.as_deref()),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(message) => {
            eprintln!("plugalloc: {message}");
            ExitCode::from(USAGE)
        }
    }
}

/// The configuration of the environment, changed by `text`.
fn configuration(text: Option<&str>) -> Result<Config, String> {
    let mut config = Config::from_environment().map_err(|error| error.to_string())?;
    config.apply(text.unwrap_or_default()).map_err(|error| error.to_string())?;
    Ok(config)
}

fn show_config(text: Option<&str>) -> Result<bool, String> {
    let text = configuration(text)?.to_text();
    Ok(writeln!(std::io::stdout(), "{text}").is_ok())
}

/// Replays every trace; true where all of them completed.
fn replay_all(arguments: &ReplayArguments) -> Result<bool, String> {
    let config = configuration(arguments.config.as_deref())?;
    let traces = match arguments.traces.as_slice() {
        [] => traces_of_the_tree(Path::new(TRACES))?,
        named => named.to_vec(),
    };
    if let Some(directory) = &arguments.snapshots {
        check_directory(directory)?;
        check_names(&traces)?;
    }
    let progress = progress_bar(traces.len());
    let mut completed = true;
    let mut reports = Vec::new();
    for path in &traces {
        let name = trace_name(path);
        progress.set_message(name.clone());
        match replay_one(path, name, arguments, &config, &progress) {
            Ok(report) => {
                completed &= report.is_complete();
                for problem in &report.problems {
                    progress.suspend(|| eprintln!("plugalloc: {}: {problem}", path.display()));
                }
                if arguments.json {
                    completed &= progress.suspend(|| print_line(&report.to_json()));
                }
                reports.push(report);
            }
            Err(message) => {
                completed = false;
                progress.suspend(|| eprintln!("plugalloc: {}: {message}", path.display()));
            }
        }
        progress.inc(1);
    }
    progress.finish_and_clear();
    if !arguments.json && !reports.is_empty() {
        completed &= print_line(&report::table(&reports, arguments.least));
    }
    Ok(completed)
}

fn replay_one(
    path: &Path,
    name: String,
    arguments: &ReplayArguments,
    config: &Config,
    progress: &ProgressBar,
) -> Result<Report, String> {
    let trace = Trace::open(path).map_err(|error| error.to_string())?;
    let job = Job {
        name,
        trace: &trace,
        device: arguments.device,
        capacity: arguments.capacity,
        via: arguments.via,
        config,
        snapshots: arguments.snapshots.as_deref(),
    };
    job.run(arguments.least, progress).map_err(|error| error.to_string())
}

/// Prints a line and says whether that worked: whoever reads may have gone.
fn print_line(text: &str) -> bool {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).is_ok()
}

/// The file name without what says that it is a trace.
fn trace_name(path: &Path) -> String {
    let name = path.file_name().map(OsStr::to_string_lossy).unwrap_or_default();
    let name = name.strip_suffix(".gz").unwrap_or(&name);
    name.strip_suffix(".csv").unwrap_or(name).to_owned()
}

/// Fails where there is no such directory to write to, before the replay that would be in vain.
fn check_directory(directory: &Path) -> Result<(), String> {
    let problem = match std::fs::metadata(directory) {
        Ok(found) if found.is_dir() => return Ok(()),
        Ok(_) => "this is no directory".to_owned(),
        Err(error) => error.to_string(),
    };
    let directory = directory.display();
    Err(format!("--snapshots {directory}: {problem}; name a directory that exists"))
}

/// Fails where the snapshot of one trace would take the place of another's.
fn check_names(traces: &[PathBuf]) -> Result<(), String> {
    let mut seen = HashMap::new();
    for path in traces {
        if let Some(other) = seen.insert(trace_name(path), path) {
            let (other, path) = (other.display(), path.display());
            return Err(format!("the snapshots of {other} and {path} would have the same name"));
        }
    }
    Ok(())
}

fn traces_of_the_tree(directory: &Path) -> Result<Vec<PathBuf>, String> {
    let is_trace = |path: &PathBuf| {
        let name = path.to_string_lossy();
        name.ends_with(".csv") || name.ends_with(".csv.gz")
    };
    let entries = std::fs::read_dir(directory).into_iter().flatten();
    let mut paths: Vec<PathBuf> =
        entries.filter_map(|entry| Some(entry.ok()?.path())).filter(is_trace).collect();
    paths.sort();
    if paths.is_empty() {
        let directory = directory.display();
        return Err(format!("no trace is named, and there is none in {directory}; name one"));
    }
    Ok(paths)
}

/// A bar on the error stream, which shows nothing where that is no terminal.
fn progress_bar(traces: usize) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(traces as u64), ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{bar:20} {pos}/{len} {msg}") {
        bar.set_style(style);
    }
    bar
}
