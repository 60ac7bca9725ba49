//! `plugalloc doctor`: what this machine offers, and what of it plugalloc uses.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;

use plugalloc::config::parse::NVTX_VARIABLE;
use plugalloc::device::HandleTypes;
use plugalloc::device::cuda::report::{Ability, DeviceReport, Report, report};
use plugalloc::error::DeviceError;
use plugalloc::nvtx::{self, Status};
use plugalloc::units::{Bytes, format_bytes};
use serde_json::{Value, json};

/// Prints the report. The status says whether there is a GPU that plugalloc can use.
pub(crate) fn run(json: bool) -> ExitCode {
    let found = report();
    // After the devices, because tools of CUDA demand that CUDA was initialised before.
    let tool = nvtx::status();
    let text = match (&found, json) {
        (Ok(report), true) => report_json(report, &tool).to_string(),
        (Ok(report), false) => report_text(report, &tool),
        (Err(error), true) => {
            json!({ "error": error.detail, "nvtx": tool_json(&tool) }).to_string()
        }
        (Err(error), false) => failure_text(error, &tool),
    };
    let printed = writeln!(std::io::stdout(), "{}", text.trim_end()).is_ok();
    let usable = found.is_ok_and(|report| report.devices.iter().all(|each| each.free.is_ok()));
    if usable && printed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn failure_text(error: &DeviceError, tool: &Status) -> String {
    format!(
        "no usable GPU: {}\n\
         plugalloc runs on the simulated device here (--device sim, or \"auto\"), which shares \
         memory by file descriptor and legacy handle.\n\
         NVTX tool: {}",
        error.detail,
        tool_text(tool)
    )
}

/// The tool that is told of memory, if there is one.
fn tool_text(tool: &Status) -> String {
    match tool {
        Status::Absent => format!("none ({NVTX_VARIABLE} is not set)"),
        Status::Attached { memory: true, counters: true } => "told of blocks and bytes".to_owned(),
        Status::Attached { memory: true, counters: false } => "told of blocks".to_owned(),
        Status::Attached { memory: false, counters: true } => "told of bytes".to_owned(),
        Status::Failed(why) => format!("cannot be started: {why}"),
        _ => "runs, and wants to know nothing of memory".to_owned(),
    }
}

fn tool_json(tool: &Status) -> Value {
    match tool {
        Status::Absent => Value::Null,
        Status::Attached { memory, counters } => json!({ "memory": memory, "counters": counters }),
        Status::Failed(why) => json!({ "error": why }),
        other => json!(format!("{other:?}")),
    }
}

fn report_text(report: &Report, tool: &Status) -> String {
    let (major, minor) = report.driver_version;
    let mut text = format!("CUDA driver: serves CUDA {major}.{minor}\n");
    for device in &report.devices {
        text.push('\n');
        let (major, minor) = device.compute_capability;
        line(&mut text, &device.device.to_string(), &device.name);
        line(&mut text, "  compute capability", &format!("{major}.{minor}"));
        line(&mut text, "  PCI address", &device.pci);
        for (name, value) in rows(device) {
            line(&mut text, &format!("  {name}"), &value);
        }
        line(&mut text, "  plugalloc uses", &used(device));
    }
    text.push('\n');
    line(&mut text, "NVTX tool", &tool_text(tool));
    text
}

fn line(text: &mut String, name: &str, value: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{:<24}{value}", format!("{name}:"));
}

fn rows(device: &DeviceReport) -> [(&'static str, String); 11] {
    let grain = |bytes: Option<Bytes>| bytes.map_or("none".to_owned(), format_bytes);
    let free = match &device.free {
        Ok(free) => format_bytes(*free),
        Err(problem) => format!("unknown: {problem}"),
    };
    let context = match device.used.primary_context {
        true => "primary, as in the CUDA runtime",
        false => "that of this thread",
    };
    let peers: Vec<String> = device.peers.iter().map(|peer| peer.0.to_string()).collect();
    let peers = if peers.is_empty() { "none".to_owned() } else { peers.join(", ") };
    [
        ("memory", format!("{}, free {free}", format_bytes(device.total))),
        ("unified addressing", yes(device.unified_addressing)),
        ("virtual memory", yes(device.virtual_memory)),
        ("granularity", grain(device.granularity_minimum)),
        ("  recommended", grain(device.granularity_recommended)),
        ("file descriptors", ability(&device.file_descriptors)),
        ("fabric handles", ability(&device.fabric)),
        ("network (RDMA)", ability(&device.rdma)),
        ("legacy IPC handles", yes(device.legacy_ipc)),
        ("context", context.to_owned()),
        ("reaches devices", peers),
    ]
}

fn yes(able: bool) -> String {
    if able { "yes" } else { "no" }.to_owned()
}

fn ability(ability: &Ability) -> String {
    match ability {
        Ability::Works => "yes".to_owned(),
        Ability::Missing => "no".to_owned(),
        Ability::Refused(why) => format!("no; claimed, but refused: {why}"),
        other => format!("{other:?}"),
    }
}

/// What is used of a device, and why.
fn used(device: &DeviceReport) -> String {
    let Some(grain) = device.used.virtual_memory else {
        return "whole segments of cuMemAlloc, because there is no virtual memory management; idle \
                memory cannot move between streams"
            .to_owned();
    };
    let grain = format_bytes(grain);
    let handles = match device.used.handles {
        HandleTypes { file_descriptor: true, fabric: true } => {
            "shared by file descriptor or fabric handle"
        }
        HandleTypes { file_descriptor: true, fabric: false } => "shared by file descriptor",
        HandleTypes { file_descriptor: false, fabric: true } => "shared by fabric handle",
        HandleTypes::NONE => "not shared, because no type of handle works",
    };
    let rdma = if device.rdma.works() {
        "reached by network cards with gpu_direct_rdma:True"
    } else {
        "not reached by network cards"
    };
    format!("virtual memory in handles of {grain} and more, {handles}, {rdma}")
}

fn report_json(report: &Report, tool: &Status) -> Value {
    let (major, minor) = report.driver_version;
    let devices: Vec<Value> = report.devices.iter().map(device_json).collect();
    let version = format!("{major}.{minor}");
    json!({ "driver_version": version, "devices": devices, "nvtx": tool_json(tool) })
}

fn device_json(device: &DeviceReport) -> Value {
    let (major, minor) = device.compute_capability;
    let peers: Vec<i32> = device.peers.iter().map(|peer| peer.0).collect();
    json!({
        "device": device.device.0,
        "name": device.name,
        "pci": device.pci,
        "compute_capability": format!("{major}.{minor}"),
        "total": device.total,
        "free": device.free.as_ref().ok(),
        "problem": device.free.as_ref().err(),
        "unified_addressing": device.unified_addressing,
        "virtual_memory": device.virtual_memory,
        "granularity_minimum": device.granularity_minimum,
        "granularity_recommended": device.granularity_recommended,
        "file_descriptors": ability_json(&device.file_descriptors),
        "fabric": ability_json(&device.fabric),
        "rdma": ability_json(&device.rdma),
        "legacy_ipc": device.legacy_ipc,
        "peers": peers,
        "used": {
            "granularity": device.used.virtual_memory,
            "file_descriptors": device.used.handles.file_descriptor,
            "fabric": device.used.handles.fabric,
            "primary_context": device.used.primary_context,
        },
    })
}

/// True, false, or why it was refused.
fn ability_json(ability: &Ability) -> Value {
    match ability {
        Ability::Refused(why) => json!(why),
        other => json!(other.works()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plugalloc::error::{DeviceErrorKind, DriverCall};

    #[test]
    fn a_machine_without_a_gpu_is_told_what_was_looked_for() {
        let error = DeviceError {
            call: DriverCall::Open,
            device: 0,
            kind: DeviceErrorKind::NoDevice,
            detail: "no CUDA driver: looked for libcuda.so".to_owned(),
        };
        let text = failure_text(&error, &Status::Absent);
        assert!(text.contains("libcuda.so"), "{text}");
        assert!(text.contains("NVTX_INJECTION64_PATH is not set"), "{text}");
        assert!(text.contains("sim"), "{text}");
    }

    #[test]
    fn a_tool_is_told_from_one_that_cannot_run() {
        let failed = Status::Failed("tool.so: no such file".to_owned());
        assert!(tool_text(&failed).contains("no such file"));
        assert_eq!(tool_json(&failed), json!({ "error": "tool.so: no such file" }));
        assert_eq!(tool_json(&Status::Absent), Value::Null);
    }

    #[test]
    fn a_refused_ability_says_why() {
        let refused = Ability::Refused("CUDA_ERROR_NOT_PERMITTED".to_owned());
        assert!(ability(&refused).contains("NOT_PERMITTED"));
        assert_eq!(ability_json(&refused), json!("CUDA_ERROR_NOT_PERMITTED"));
        assert_eq!(ability_json(&Ability::Works), json!(true));
    }
}
