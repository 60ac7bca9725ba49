//! How much memory a server takes: many streams at full speed, each with sessions of random sizes,
//! on a GPU with a time of its own, in which kernels and the driver's calls take about what they
//! take on an H200.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../common/mod.rs"]
mod common;
mod gpu;
mod load;

use std::sync::Arc;
use std::time::Instant;

use common::{GPU, Random};
use gpu::Gpu;
use load::{Load, Op, Script};
use plugalloc::error::DriverCall;
use plugalloc::units::{Address, Bytes, StreamId};
use plugalloc::{Allocator, Config};

/// What a call of the allocator takes that does not call the driver.
const CALL_NS: u64 = 100;

/// One worker, with its streams.
struct Worker {
    script: Script,
    at: usize,
    left: usize,
    now: u64,
    started: u64,
    work: StreamId,
    uploads: StreamId,
    tensors: Vec<(Address, Bytes)>,
}

/// What came of it.
#[derive(Debug, Default)]
struct Outcome {
    requests: u64,
    seconds: f64,
    p50_us: u64,
    p99_us: u64,
    live_peak: Bytes,
    reserved_peak: Bytes,
    driver_ms: u64,
    creates: u64,
    maps: u64,
    host_ms: u64,
}

struct Server {
    gpu: Arc<Gpu>,
    allocator: Allocator,
    live: Bytes,
    live_peak: Bytes,
}

impl Server {
    fn step(&mut self, worker: &mut Worker) {
        let op = worker.script.ops[worker.at];
        let mut now = worker.now + if let Op::Launch { .. } = op { 0 } else { CALL_NS };
        self.gpu.begin(now);
        self.allocator.clock().set_us(now / 1000);
        let mut locked = false;
        match op {
            Op::Take { tensor, bytes, upload } => {
                let stream = if upload { worker.uploads } else { worker.work };
                let address = self.allocator.allocate(GPU, bytes, stream).unwrap();
                locked = true;
                if worker.tensors.len() <= tensor as usize {
                    worker.tensors.resize(tensor as usize + 1, (0, 0));
                }
                worker.tensors[tensor as usize] = (address, bytes);
                self.live += bytes;
                self.live_peak = self.live_peak.max(self.live);
            }
            Op::Free(tensor) => {
                let (address, bytes) = worker.tensors[tensor as usize];
                self.allocator.free(address).unwrap();
                self.live -= bytes;
            }
            Op::Launch { bytes, upload } => {
                self.gpu.launch(if upload { worker.uploads } else { worker.work }, bytes);
            }
            Op::HandOver(tensor) => {
                self.gpu.follow(worker.work, worker.uploads);
                let (address, _) = worker.tensors[tensor as usize];
                self.allocator.record_stream(address, worker.work).unwrap();
            }
            Op::Wait => self.gpu.wait(worker.work),
        }
        now = self.gpu.end(locked);
        worker.now = now;
    }
}

fn workers(load: Load, seed: u64) -> Vec<Worker> {
    let worker = |number: usize| {
        let mut script = Script::new(load, seed + number as u64);
        script.next();
        let stream = |k: usize| StreamId(0x100 * (2 * number + k + 1) as u64);
        let (work, uploads) = (stream(0), stream(1));
        let (at, left, tensors) = (0, load.requests, Vec::new());
        Worker { script, at, left, now: 0, started: 0, work, uploads, tensors }
    };
    (0..load.workers).map(worker).collect()
}

/// Lets every worker serve its requests, each operation of whichever worker's time has come.
fn serve(load: Load, seed: u64) -> Outcome {
    let gpu = Gpu::new();
    let allocator = Allocator::new(vec![gpu.clone()], Config::default()).unwrap();
    let mut server = Server { gpu, allocator, live: 0, live_peak: 0 };
    let mut workers = workers(load, seed);
    let mut latencies = Vec::new();
    let start = Instant::now();
    let mut end = 0;
    while let Some(worker) = workers.iter_mut().filter(|w| w.left > 0).min_by_key(|w| w.now) {
        server.step(worker);
        worker.at += 1;
        if worker.at == worker.script.ops.len() {
            latencies.push((worker.now - worker.started) / 1000);
            (worker.at, worker.started) = (0, worker.now);
            worker.left -= 1;
            worker.script.next();
            end = end.max(worker.now);
        }
    }
    latencies.sort_unstable();
    let statistics = server.allocator.statistics(GPU).unwrap();
    Outcome {
        requests: latencies.len() as u64,
        seconds: end as f64 / 1e9,
        p50_us: latencies[latencies.len() / 2],
        p99_us: latencies[latencies.len() * 99 / 100],
        live_peak: server.live_peak,
        reserved_peak: statistics.reserved_bytes.all.peak as Bytes,
        driver_ms: server.gpu.driver_us() / 1000,
        creates: server.gpu.calls(DriverCall::Create),
        maps: server.gpu.calls(DriverCall::Map),
        host_ms: start.elapsed().as_millis() as u64,
    }
}

fn show(name: &str, outcome: &Outcome) {
    let mib = |bytes: Bytes| bytes >> 20;
    println!(
        "{name}: {:.0}/s in {:.2} s, p50 {} us, p99 {} us, live {} MiB, reserved {} MiB, {:.4}, \
         driver {} ms, {} creates, {} maps, host {} ms",
        outcome.requests as f64 / outcome.seconds,
        outcome.seconds,
        outcome.p50_us,
        outcome.p99_us,
        mib(outcome.live_peak),
        mib(outcome.reserved_peak),
        outcome.reserved_peak as f64 / outcome.live_peak as f64,
        outcome.driver_ms,
        outcome.creates,
        outcome.maps,
        outcome.host_ms,
    );
}

/// The load of `benches/server.sh` on a GPU.
fn full(random_shapes: bool) -> Load {
    let (layers, hidden, longest, sessions) = (4, 1024, 2048, 32);
    Load { workers: 8, requests: 3000, layers, hidden, longest, sessions, random_shapes }
}

/// So few sessions and requests that it takes seconds.
fn short(random_shapes: bool) -> Load {
    Load { requests: 400, sessions: 8, ..full(random_shapes) }
}

/// Reserved memory stays near what is live, although most of what is idle is another stream's and
/// all streams are at work. Where moving was limited to a sixtieth of the time this was 1.5.
#[test]
fn streams_at_work_share_memory() {
    let seed = Random::seed(1000);
    if std::env::var_os("PLUGALLOC_SERVING").is_some() {
        // For comparison: all of the load, which takes half a minute without optimisation.
        show("all, random", &serve(full(true), seed));
        show("all, fixed", &serve(full(false), seed));
        // Where each request stands alone, and with few sessions; then the same with tensors of
        // four and eight times the size, and fewer requests.
        for (hidden, longest) in [(1024, 2048), (4096, 2048), (4096, 4096)] {
            let requests = 3000 * 1024 / hidden as usize;
            for (workers, sessions) in [(8, 0), (16, 0), (8, 1), (8, 2), (8, 8)] {
                let load = Load { workers, requests, hidden, longest, sessions, ..full(true) };
                let name = format!("{workers} workers, {sessions} sessions, {hidden} x {longest}");
                show(&name, &serve(load, seed));
            }
        }
    }
    let outcome = serve(short(true), seed);
    show("random", &outcome);
    let most = outcome.live_peak + outcome.live_peak / 5;
    assert!(outcome.reserved_peak <= most, "{outcome:?}");
}
