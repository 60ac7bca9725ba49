//! Captures, and the graphs that come of them.

use std::collections::HashMap;
use std::ffi::c_uint;

use cudarc::driver::sys::{
    CUgraph, CUgraphExec, CUresult, CUstreamCaptureMode, CUstreamCaptureStatus,
};

use super::CudaDevice;
use super::driver::Code;
use super::streams::raw;
use crate::device::{CaptureId, DeviceResult};
use crate::error::DriverCall;
use crate::units::StreamId;

/// What stands for a capture that has no number, because it is spoilt, or because it is that of
/// another stream that holds the legacy default stream up. The driver counts from 1.
const NAMELESS: CaptureId = CaptureId(0);

/// The finished captures of a device, ready to run.
#[derive(Debug, Default)]
pub(super) struct Graphs {
    ready: HashMap<CaptureId, Graph>,
}

/// A graph that can be launched.
#[derive(Debug)]
struct Graph(CUgraphExec);

// SAFETY: a graph may be used by any thread, though only by one at a time, which the lock around
// `Graphs` sees to.
unsafe impl Send for Graph {}

pub(super) fn begin(device: &CudaDevice, stream: StreamId) -> DeviceResult<CaptureId> {
    // Relaxed, so that any thread may end the capture.
    let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED as c_uint;
    device.call(DriverCall::CaptureBegin, |driver| {
        // SAFETY: the stream exists, which is the caller's contract.
        unsafe { (driver.capture_begin)(raw(stream), mode) }
    })?;
    Ok(status(device, stream)?.unwrap_or(NAMELESS))
}

pub(super) fn end(device: &CudaDevice, stream: StreamId) -> DeviceResult<CaptureId> {
    let id = status(device, stream)?;
    let mut graph = std::ptr::null_mut();
    device.call(DriverCall::CaptureEnd, |driver| {
        // SAFETY: the stream exists, which is the caller's contract; writes one handle.
        unsafe { (driver.capture_end)(raw(stream), &raw mut graph) }
    })?;
    let Some(id) = id.filter(|_| !graph.is_null()) else {
        return Err(device.misuse(DriverCall::CaptureEnd, format!("{stream} was not capturing")));
    };
    let ready = instantiate(device, graph)?;
    device.graphs.lock().ready.insert(id, ready);
    Ok(id)
}

/// Makes a captured graph ready to be launched, and gives the graph itself back.
fn instantiate(device: &CudaDevice, graph: CUgraph) -> DeviceResult<Graph> {
    let mut ready = std::ptr::null_mut();
    device.relaxed_call(DriverCall::CaptureEnd, |driver| {
        // SAFETY: the graph was made by the end of a capture just now; writes one handle.
        let made = unsafe { (driver.graph_instantiate)(&raw mut ready, graph, 0) };
        // SAFETY: nobody else has the graph, and what was made of it does not need it.
        let _code = unsafe { (driver.graph_destroy)(graph) };
        made
    })?;
    Ok(Graph(ready))
}

pub(super) fn status(device: &CudaDevice, stream: StreamId) -> DeviceResult<Option<CaptureId>> {
    let (mut status, mut id) = (0, 0);
    let mut implicit = false;
    device.call(DriverCall::CaptureStatus, |driver| {
        let (status, id) = (&raw mut status, &raw mut id);
        let null = std::ptr::null_mut();
        // SAFETY: the stream exists, which is the caller's contract; writes two integers, and
        // leaves out what has no place to go.
        let code = unsafe {
            (driver.capture_info)(raw(stream), status, id, null, null.cast(), null.cast())
        };
        implicit = code.is(CUresult::CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
        if implicit { Code(0) } else { code }
    })?;
    // The legacy default stream during a capture that it would disturb: nothing may be recorded
    // there.
    if implicit {
        return Ok(Some(NAMELESS));
    }
    Ok(if status == CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE as c_uint {
        None
    } else if status == CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_ACTIVE as c_uint {
        Some(CaptureId(id))
    } else {
        Some(NAMELESS)
    })
}

pub(super) fn launch(device: &CudaDevice, graph: CaptureId, stream: StreamId) -> DeviceResult<()> {
    let graphs = device.graphs.lock();
    let Some(ready) = graphs.ready.get(&graph) else {
        return Err(unknown(device, DriverCall::GraphLaunch, graph));
    };
    device.call(DriverCall::GraphLaunch, |driver| {
        // SAFETY: the graph lives while the lock is held; the stream exists, says the contract.
        unsafe { (driver.graph_launch)(ready.0, raw(stream)) }
    })
}

pub(super) fn destroy(device: &CudaDevice, graph: CaptureId) -> DeviceResult<()> {
    let Some(ready) = device.graphs.lock().ready.remove(&graph) else {
        return Err(unknown(device, DriverCall::GraphDestroy, graph));
    };
    device.relaxed_call(DriverCall::GraphDestroy, |driver| {
        // SAFETY: it was in the list, so it exists, and it is no longer, so nobody else uses it.
        unsafe { (driver.graph_exec_destroy)(ready.0) }
    })
}

fn unknown(device: &CudaDevice, call: DriverCall, graph: CaptureId) -> crate::error::DeviceError {
    let number = graph.0;
    device.misuse(call, format!("graph {number} does not exist, or was destroyed before"))
}
