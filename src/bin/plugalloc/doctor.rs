//! `plugalloc doctor`: what this machine offers, and what of it plugalloc uses.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;

use plugalloc::device::HandleTypes;
use plugalloc::device::cuda::report::{Ability, DeviceReport, Report, report};
use plugalloc::error::DeviceError;
use plugalloc::units::{Bytes, format_bytes};
use serde_json::{Value, json};

/// Prints the report. The status says whether there is a GPU that plugalloc can use.
pub(crate) fn run(json: bool) -> ExitCode {
    let found = report();
    let text = match (&found, json) {
        (Ok(report), true) => report_json(report).to_string(),
        (Ok(report), false) => report_text(report),
        (Err(error), true) => json!({ "error": error.detail }).to_string(),
        (Err(error), false) => failure_text(error),
    };
    let printed = writeln!(std::io::stdout(), "{}", text.trim_end()).is_ok();
    let usable = found.is_ok_and(|report| report.devices.iter().all(|each| each.free.is_ok()));
    if usable && printed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn failure_text(error: &DeviceError) -> String {
    format!(
        "no usable GPU: {}\n\
         plugalloc runs on the simulated device here (--device sim, or \"auto\").",
        error.detail
    )
}

fn report_text(report: &Report) -> String {
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
    text
}

fn line(text: &mut String, name: &str, value: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{:<24}{value}", format!("{name}:"));
}

fn rows(device: &DeviceReport) -> [(&'static str, String); 10] {
    let grain = |bytes: Option<Bytes>| bytes.map_or("none".to_owned(), format_bytes);
    let free = match &device.free {
        Ok(free) => format_bytes(*free),
        Err(problem) => format!("unknown: {problem}"),
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
    let rdma = if device.used.rdma { "open to network cards" } else { "closed to network cards" };
    format!("virtual memory in handles of {grain} and more, {handles}, {rdma}")
}

fn report_json(report: &Report) -> Value {
    let (major, minor) = report.driver_version;
    let devices: Vec<Value> = report.devices.iter().map(device_json).collect();
    json!({ "driver_version": format!("{major}.{minor}"), "devices": devices })
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
            "rdma": device.used.rdma,
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
        let text = failure_text(&error);
        assert!(text.contains("libcuda.so"), "{text}");
        assert!(text.contains("sim"), "{text}");
    }

    #[test]
    fn a_refused_ability_says_why() {
        let refused = Ability::Refused("CUDA_ERROR_NOT_PERMITTED".to_owned());
        assert!(ability(&refused).contains("NOT_PERMITTED"));
        assert_eq!(ability_json(&refused), json!("CUDA_ERROR_NOT_PERMITTED"));
        assert_eq!(ability_json(&Ability::Works), json!(true));
    }
}
