//! The workloads through Rust's `Allocator`, in the format of the C++ programs beside this file.
//!
//! ```text
//! cargo bench --bench rust_host -- [--quick] [--device auto|cuda|sim]
//! ```
//!
//! The sizes come from the same generator and the samples are taken in the same way; what the
//! workloads are is said in `benches/cpp/workloads.hpp`.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use plugalloc::open::{SimSize, open_allocator};
use plugalloc::{Address, Allocator, Bytes, DeviceId, Result, StreamId};

const DEVICE: DeviceId = DeviceId(0);
const KIB: Bytes = 1 << 10;
const MIB: Bytes = 1 << 20;
const HOT_SIZES: [(Bytes, &str); 4] =
    [(512, "512 B"), (64 * KIB, "64 KiB"), (MIB, "1 MiB"), (32 * MIB, "32 MiB")];

/// How long to measure.
#[derive(Clone, Copy)]
struct Effort {
    samples: usize,
    sample_ns: f64,
    threads_ns: f64,
    threads_samples: usize,
}

const FULL: Effort = Effort { samples: 7, sample_ns: 20e6, threads_ns: 150e6, threads_samples: 3 };
const QUICK: Effort = Effort { samples: 3, sample_ns: 2e6, threads_ns: 20e6, threads_samples: 1 };

fn report(workload: &str, unit: &str, mut samples: Vec<f64>) {
    samples.sort_by(f64::total_cmp);
    let median = samples[samples.len() / 2];
    let best = samples[if unit == "ns" { 0 } else { samples.len() - 1 }];
    println!(
        "{{\"peer\": \"plugalloc Rust\", \"workload\": \"{workload}\", \"unit\": \"{unit}\", \
         \"median\": {median:.2}, \"best\": {best:.2}}}"
    );
}

/// Nanoseconds of one of the operations of which `work(n)` does `n`.
fn sample_time(effort: Effort, mut work: impl FnMut(u64) -> Result<()>) -> Result<Vec<f64>> {
    let mut timed = |count: u64| {
        let start = Instant::now();
        work(count).map(|()| start.elapsed().as_nanos() as f64)
    };
    let mut count = 16;
    let mut last_ns = timed(count)?;
    while last_ns < effort.sample_ns / 4.0 {
        count *= 2;
        last_ns = timed(count)?;
    }
    let count = ((count as f64 * effort.sample_ns / last_ns) as u64).max(1);
    (0..effort.samples).map(|_| Ok(timed(count)? / count as f64)).collect()
}

/// SplitMix64, as in the C++ programs.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

fn hot_pair(allocator: &Allocator, stream: StreamId, bytes: Bytes, count: u64) -> Result<()> {
    for _ in 0..count {
        allocator.free(allocator.allocate(DEVICE, bytes, stream)?)?;
    }
    Ok(())
}

fn decoder_layers(allocator: &Allocator, stream: StreamId, passes: u64) -> Result<()> {
    const LIFETIME: usize = 6;
    const LAYER: [Bytes; 10] = [
        4 * MIB,
        12 * MIB,
        512,
        64 * KIB,
        4 * MIB,
        16 * MIB,
        2 * KIB,
        16 * MIB,
        4 * MIB,
        256 * KIB,
    ];
    let mut blocks = [0; 80];
    for _ in 0..passes {
        for k in 0..blocks.len() + LIFETIME {
            if k < blocks.len() {
                let bytes = LAYER[k % LAYER.len()] + 512 * (k / LAYER.len()) as Bytes;
                blocks[k] = allocator.allocate(DEVICE, bytes, stream)?;
            }
            if k >= LIFETIME {
                allocator.free(blocks[k - LIFETIME])?;
            }
        }
    }
    Ok(())
}

/// Live blocks of which a random one is replaced, again and again.
struct LiveSet<'a> {
    allocator: &'a Allocator,
    stream: StreamId,
    sizes: Vec<Bytes>,
    places: Vec<u32>,
    blocks: Vec<Address>,
    next_size: usize,
    next_place: usize,
}

impl<'a> LiveSet<'a> {
    fn new(
        allocator: &'a Allocator,
        stream: StreamId,
        seed: u64,
        live: usize,
        max_bytes: Bytes,
    ) -> Result<LiveSet<'a>> {
        let mut random = Random(seed);
        let span = (max_bytes as f64).log2() - 9.0;
        let sizes = (0..4096).map(|_| (9.0 + span * random.uniform()).exp2() as Bytes).collect();
        let places = (0..1 << 16).map(|_| (random.next() % live as u64) as u32).collect();
        let blocks = Vec::with_capacity(live);
        let mut set =
            LiveSet { allocator, stream, sizes, places, blocks, next_size: 0, next_place: 0 };
        for _ in 0..live {
            let block = set.take()?;
            set.blocks.push(block);
        }
        set.replace(4 * live.min(100_000) as u64)?;
        Ok(set)
    }

    fn take(&mut self) -> Result<Address> {
        self.next_size += 1;
        self.allocator.allocate(DEVICE, self.sizes[self.next_size & 4095], self.stream)
    }

    fn replace(&mut self, count: u64) -> Result<()> {
        for _ in 0..count {
            self.next_place += 1;
            let place = self.places[self.next_place & 0xffff] as usize;
            self.allocator.free(self.blocks[place])?;
            self.blocks[place] = self.take()?;
        }
        Ok(())
    }
}

impl Drop for LiveSet<'_> {
    fn drop(&mut self) {
        for block in &self.blocks {
            let _ = self.allocator.free(*block);
        }
    }
}

/// Million pairs a second of all threads together.
fn threads_rate(
    effort: Effort,
    allocator: &Allocator,
    streams: &[StreamId],
    threads: usize,
) -> Result<Vec<f64>> {
    let sample = || {
        let (ready, phase) = (AtomicUsize::new(0), AtomicU32::new(0));
        let work = |t: usize| -> Result<f64> {
            let stream = streams[t % streams.len()];
            let set = LiveSet::new(allocator, stream, 7 + t as u64, 64, MIB);
            ready.fetch_add(1, Ordering::AcqRel);
            let mut set = set?;
            wait_until(|| phase.load(Ordering::Acquire) != 0);
            let (start, mut pairs) = (Instant::now(), 0);
            while phase.load(Ordering::Relaxed) == 1 {
                set.replace(64)?;
                pairs += 64;
            }
            let rate = f64::from(pairs) * 1e3 / start.elapsed().as_nanos() as f64;
            ready.fetch_sub(1, Ordering::AcqRel);
            wait_until(|| ready.load(Ordering::Acquire) == 0);
            Ok(rate)
        };
        std::thread::scope(|scope| {
            let work = &work;
            let team: Vec<_> = (0..threads).map(|t| scope.spawn(move || work(t))).collect();
            wait_until(|| ready.load(Ordering::Acquire) == threads);
            phase.store(1, Ordering::Release);
            std::thread::sleep(Duration::from_nanos(effort.threads_ns as u64));
            phase.store(2, Ordering::Release);
            team.into_iter().map(|thread| thread.join().unwrap_or(Ok(0.0))).sum()
        })
    };
    (0..effort.threads_samples).map(|_| sample()).collect()
}

fn wait_until(condition: impl Fn() -> bool) {
    while !condition() {
        std::thread::yield_now();
    }
}

fn new_streams(allocator: &Allocator, count: usize) -> Result<Vec<StreamId>> {
    (0..count).map(|_| Ok(allocator.device(DEVICE)?.stream_create()?)).collect()
}

fn standard_suite(effort: Effort, allocator: &Allocator) -> Result<()> {
    let stream = new_streams(allocator, 1)?[0];
    for (bytes, name) in HOT_SIZES {
        let samples = sample_time(effort, |count| hot_pair(allocator, stream, bytes, count))?;
        report(&format!("hot {name}"), "ns", samples);
    }
    let passes = sample_time(effort, |count| decoder_layers(allocator, stream, count))?;
    report("layer", "ns", passes.into_iter().map(|ns| ns / 80.0).collect());
    let mut set = LiveSet::new(allocator, stream, 1, 512, 8 * MIB)?;
    report("random, 512 live", "ns", sample_time(effort, |count| set.replace(count))?);
    drop(set);
    for threads in [1, 2, 4, 8, 16] {
        let name = if threads == 1 { "1 thread".to_owned() } else { format!("{threads} threads") };
        let own = threads_rate(effort, allocator, &new_streams(allocator, threads)?, threads)?;
        report(&format!("{name}, own streams"), "Mpairs/s", own);
        let one = threads_rate(effort, allocator, &new_streams(allocator, 1)?, threads)?;
        report(&format!("{name}, one stream"), "Mpairs/s", one);
    }
    Ok(())
}

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let value_of = |option: &str| {
        let at = words.iter().position(|word| word == option)?;
        words.get(at + 1).map(String::as_str)
    };
    // Cargo says `--bench` when it runs this as a benchmark, and nothing when it runs it as a test.
    let asked = words.iter().any(|word| word == "--bench");
    let quick = !asked || words.iter().any(|word| word == "--quick");
    let device = value_of("--device").unwrap_or(if asked { "auto" } else { "sim" });
    let allocator = open_allocator(device, "", SimSize::default())?;
    standard_suite(if quick { QUICK } else { FULL }, &allocator)
}
