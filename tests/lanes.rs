//! What threads have cached is there for all, whether they used streams of their own or one stream
//! together, whose heap is then split into lanes.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::sync::{Barrier, Mutex};
use std::thread;

use plugalloc::device::sim::{SimMachine, SimOptions};
use plugalloc::units::{Address, Bytes, KIB, MIB};
use plugalloc::{Allocator, Config, DeviceId, StreamId};

const GPU: DeviceId = DeviceId(0);
const STREAM: StreamId = StreamId(64);
const CAPACITY: u64 = 512 * MIB;
const THREADS: usize = 16;

/// Allocates and frees all the time, of sizes that differ from thread to thread. Gives the range of
/// addresses that its large blocks lie in: each heap has one of its own.
fn churn(allocator: &Allocator, thread: u64, stream: StreamId) -> Address {
    for round in 0..400 {
        let size = |k: u64| (1 + (thread * 7 + round * 3 + k * 5) % 40) * 48 * KIB;
        let blocks: Vec<u64> =
            (0..6).map(|k| allocator.allocate(GPU, size(k), stream).unwrap()).collect();
        blocks.into_iter().for_each(|block| allocator.free(block).unwrap());
    }
    let large = allocator.allocate(GPU, 2 * MIB, stream).unwrap();
    let (range, _) = allocator.base_allocation(large).unwrap();
    allocator.free(large).unwrap();
    range
}

/// How often threads churn at most until a stream has lanes.
const CHURNS: usize = 200;

/// Of each size, how many blocks a thread has live at once: small ones, and large ones of which
/// some are kept aside when freed. 26 MiB in all.
const HELD: [(Bytes, usize); 4] = [(40 * KIB, 50), (MIB, 4), (5 * MIB, 2), (10 * MIB, 1)];

/// Sixteen threads churn until there are so many heaps, fill most of the device, free all of it,
/// and sleep with it in the cache. Then each of these streams gets the whole device in one piece.
fn take_what_sleeping_threads_cached(
    config: Config,
    heaps: usize,
    stream_of: impl Fn(u64) -> StreamId + Sync,
    takers: &[StreamId],
) {
    let options = SimOptions { capacity: CAPACITY, ..SimOptions::default() };
    let machine = SimMachine::new(options).unwrap();
    let allocator = Allocator::new(machine.as_devices(), config).unwrap();
    let (all, and_taker) = (Barrier::new(THREADS), Barrier::new(THREADS + 1));
    let ranges = Mutex::new(BTreeSet::new());
    let sleep_with_a_full_cache = |thread: u64| {
        let stream = stream_of(thread);
        for _ in 0..CHURNS {
            let range = churn(&allocator, thread, stream);
            ranges.lock().unwrap().insert(range);
            all.wait();
            let enough = ranges.lock().unwrap().len() >= heaps;
            all.wait();
            if enough {
                break;
            }
        }
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
    let ranges = ranges.into_inner().unwrap().len();
    assert!(ranges >= heaps, "{ranges} heaps where {heaps} were expected");
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
