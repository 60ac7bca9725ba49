//! What an inference server does with memory, in Rust: worker threads with a stream each serve
//! requests of random shapes; inputs arrive on an upload stream and are used on the worker's.
//!
//!     cargo run --release --example serve

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use plugalloc::units::{KIB, format_bytes};
use plugalloc::{Allocator, DeviceId, Result, Stream};

const WORKERS: u64 = 4;
const REQUESTS: u64 = 500;
const DEVICE: DeviceId = DeviceId(0);

/// A small generator of numbers (xorshift), so that every run serves the same requests.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// Serves one request of `tokens` tokens: an input, a chain of activations, an output that is
/// checked.
fn serve(allocator: &Arc<Allocator>, upload: &Stream, work: &Stream, tokens: u64) -> Result<bool> {
    let bytes = tokens * 4 * KIB;
    let input = allocator.alloc(DEVICE, bytes, upload.id())?;
    upload.fill(input.address(), tokens as u8, bytes)?;
    upload.synchronize()?;
    // The input belongs to the upload stream and is read on the worker's.
    input.record_stream(work.id())?;
    let mut previous = input;
    for _layer in 0..6 {
        let next = allocator.alloc(DEVICE, bytes, work.id())?;
        // SAFETY: both are allocations of the device.
        unsafe { work.copy(next.address(), previous.address(), bytes) }?;
        previous = next;
    }
    let mut result = [0u8; 16];
    // SAFETY: nobody looks at the result before the copy has run.
    unsafe { work.copy(result.as_mut_ptr() as u64, previous.address(), result.len() as u64) }?;
    work.synchronize()?;
    Ok(result == [tokens as u8; 16])
}

fn main() -> Result<()> {
    let allocator = Allocator::builder().device("sim").build()?;
    let wrong = AtomicU64::new(0);
    let start = Instant::now();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS)
            .map(|worker| {
                let (allocator, wrong) = (&allocator, &wrong);
                scope.spawn(move || -> Result<()> {
                    let upload = Stream::new(allocator, DEVICE)?;
                    let work = Stream::new(allocator, DEVICE)?;
                    let mut numbers = Numbers(worker + 1);
                    for _ in 0..REQUESTS {
                        let tokens = 1 + numbers.below(255);
                        if !serve(allocator, &upload, &work, tokens)? {
                            wrong.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                    Ok(())
                })
            })
            .collect();
        workers.into_iter().try_for_each(|worker| worker.join().unwrap_or(Ok(())))
    })?;
    let seconds = start.elapsed().as_secs_f64();
    let statistics = allocator.statistics(DEVICE)?;
    let wrong = wrong.load(Ordering::Relaxed);
    println!("{} requests, {wrong} wrong", WORKERS * REQUESTS);
    assert_eq!(wrong, 0, "results are wrong");
    println!("{:.0} requests a second", (WORKERS * REQUESTS) as f64 / seconds);
    let peak = |stat: plugalloc::observe::Stat| format_bytes(stat.peak as u64);
    println!("peak allocated {}", peak(statistics.allocated_bytes.all));
    println!("peak reserved  {}", peak(statistics.reserved_bytes.all));
    allocator.process_events()?;
    allocator.is_quiescent()
}

#[test]
fn every_request_is_served_right() {
    main().unwrap();
}
