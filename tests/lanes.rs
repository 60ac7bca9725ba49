//! What threads have cached is there for all, whether they used streams of their own or one stream
//! together, whose heap is then split into lanes.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Barrier, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use plugalloc::device::sim::{SimMachine, SimOptions};
use plugalloc::units::{Address, Bytes, KIB, MIB};
use plugalloc::{Allocator, Config, DeviceId, StreamId};

const GPU: DeviceId = DeviceId(0);
const STREAM: StreamId = StreamId(64);
const CAPACITY: u64 = 512 * MIB;
const THREADS: usize = 16;

/// Allocates and frees all the time, of sizes that differ from thread to thread.
fn churn(allocator: &Allocator, thread: u64, stream: StreamId) {
    for round in 0..400 {
        let size = |k: u64| (1 + (thread * 7 + round * 3 + k * 5) % 40) * 48 * KIB;
        let blocks: Vec<u64> =
            (0..6).map(|k| allocator.allocate(GPU, size(k), stream).unwrap()).collect();
        blocks.into_iter().for_each(|block| allocator.free(block).unwrap());
    }
}

/// The first block that the calling thread's heap keeps aside of a size that nothing else has. It
/// is another one in each heap, and the same one for all threads of a heap that ask in turn.
fn kept_aside(allocator: &Allocator, stream: StreamId) -> Address {
    let block = allocator.allocate(GPU, 3 * KIB, stream).unwrap();
    allocator.free(block).unwrap();
    block
}

fn distinct(addresses: &Mutex<[Address; THREADS]>) -> usize {
    addresses.lock().unwrap().iter().collect::<BTreeSet<_>>().len()
}

/// So many blocks side by side are walked through under the lock of their heap when one is asked
/// what memory is around it: long enough for other threads to find the lock taken.
const WALKED: usize = 20_000;

/// When the test gives up: lanes come within a few rounds of churning.
const PATIENCE: Duration = Duration::from_secs(60);

/// One test at a time, so that the numbers of a test's threads, by which they are spread among
/// lanes, are consecutive.
static ALONE: Mutex<()> = Mutex::new(());

/// Of each size, how many blocks a thread has live at once: small ones, and large ones of which
/// some are kept aside when freed. 26 MiB in all.
const HELD: [(Bytes, usize); 4] = [(40 * KIB, 50), (MIB, 4), (5 * MIB, 2), (10 * MIB, 1)];

/// Sixteen threads churn, and get into each other's way, until there are so many heaps, fill most
/// of the device, free all of it, and sleep with it in the cache. Then each of these streams gets
/// the whole device in one piece.
fn take_what_sleeping_threads_cached(
    config: Config,
    heaps: usize,
    stream_of: impl Fn(u64) -> StreamId + Sync,
    takers: &[StreamId],
) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let options = SimOptions { capacity: CAPACITY, ..SimOptions::default() };
    let machine = SimMachine::new(options).unwrap();
    let allocator = Allocator::new(machine.as_devices(), config).unwrap();
    let walked: Vec<Address> =
        (0..WALKED).map(|_| allocator.allocate(GPU, 512, stream_of(0)).unwrap()).collect();
    let (all, and_taker) = (Barrier::new(THREADS), Barrier::new(THREADS + 1));
    let (kept, churned) = (Mutex::new([0; THREADS]), Barrier::new(THREADS + 1));
    let (churning, started) = (AtomicBool::new(true), Instant::now());
    let sleep_with_a_full_cache = |thread: u64| {
        let stream = stream_of(thread);
        while churning.load(Ordering::Relaxed) {
            churn(&allocator, thread, stream);
            all.wait();
            // In turn.
            let mut kept_by = kept.lock().unwrap();
            kept_by[thread as usize] = kept_aside(&allocator, stream);
            drop(kept_by);
            if all.wait().is_leader() {
                let go_on = distinct(&kept) < heaps && started.elapsed() < PATIENCE;
                churning.store(go_on, Ordering::Relaxed);
            }
            all.wait();
        }
        churned.wait();
        churned.wait();
        let sizes = HELD.iter().flat_map(|&(bytes, count)| vec![bytes; count]);
        let blocks: Vec<Address> =
            sizes.map(|bytes| allocator.allocate(GPU, bytes, stream).unwrap()).collect();
        all.wait();
        blocks.into_iter().for_each(|block| allocator.free(block).unwrap());
        and_taker.wait();
        and_taker.wait();
    };
    thread::scope(|scope| {
        let work = &sleep_with_a_full_cache;
        for thread in 0..THREADS as u64 {
            scope.spawn(move || work(thread));
        }
        while churning.load(Ordering::Relaxed) {
            allocator.base_allocation(walked[0]).unwrap();
            // Lets others come to the lock, and to the processor.
            thread::sleep(Duration::from_millis(1));
        }
        churned.wait();
        walked.iter().for_each(|&block| allocator.free(block).unwrap());
        churned.wait();
        and_taker.wait();
        // The sixteen have freed everything and sleep.
        let used = machine.device(0).ledger().used;
        assert!(used >= 400 * MIB, "only {used} bytes are cached");
        let found: Vec<_> = takers
            .iter()
            .map(|&stream| {
                let all = allocator.allocate(GPU, CAPACITY, stream)?;
                allocator.free(all)
            })
            .collect();
        and_taker.wait();
        found.into_iter().for_each(|result| result.unwrap());
    });
    assert_eq!(allocator.statistics(GPU).unwrap().num_ooms, 0);
    let found = distinct(&kept);
    assert!(found >= heaps, "{found} heaps where {heaps} were expected");
    allocator.is_valid().unwrap();
    allocator.is_quiescent().unwrap();
    allocator.empty_cache().unwrap();
    assert_eq!(machine.device(0).ledger().used, 0);
}

#[test]
fn what_threads_cached_on_streams_of_their_own_serves_any_stream() {
    let own = |thread| StreamId(64 * (thread + 1));
    let takers = [StreamId(4096), own(0), own(15)];
    take_what_sleeping_threads_cached(Config::default(), THREADS, own, &takers);
}

#[test]
fn what_threads_cached_on_one_stream_serves_it_and_any_other() {
    let takers = [STREAM, StreamId(128), STREAM];
    take_what_sleeping_threads_cached(Config::default(), 4, |_| STREAM, &takers);
}

#[test]
fn lanes_of_one_stream_share_memory_also_where_stealing_is_off() {
    let mut config = Config::default();
    config.steal = false;
    take_what_sleeping_threads_cached(config, 4, |_| STREAM, &[STREAM]);
}
