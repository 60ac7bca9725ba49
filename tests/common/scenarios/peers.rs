//! One allocator over two devices that reach each other.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use plugalloc::Allocator;
use plugalloc::units::{Address, Bytes, MIB, StreamId};

use super::{Kind, Place, Site, graphs, sites, skip, while_blocked};

/// Two places of one machine, and an allocator over both, as seen from each; `None` with a printed
/// reason where the devices do not reach each other.
fn pair(places: &[Place; 2], kind: Kind) -> Option<[Site; 2]> {
    for (from, to) in [(0, 1), (1, 0)] {
        let (device, peer) = (&places[from].device, &places[to].device);
        if !device.can_access_peer(peer.id()).unwrap() {
            skip(&format!("{} cannot reach {}", device.name(), peer.name()));
            return None;
        }
    }
    sites(places, kind).try_into().ok()
}

/// The allocator of both.
fn allocator(pair: &[Site; 2]) -> &Allocator {
    &pair[0].allocator
}

#[track_caller]
fn finish(pair: &[Site; 2]) {
    // Nothing of either may wait for the other.
    pair.iter().for_each(|site| site.device().synchronize().unwrap());
    pair.iter().for_each(Site::finish);
}

/// A block of the owner that the guest is to reach.
struct Block {
    at: Address,
    bytes: Bytes,
    what: &'static str,
}

/// Memory that is put together of what lies elsewhere.
fn moved_memory(owner: &Site, stream: StreamId) -> Vec<Block> {
    owner.limit(owner.reserved() + 80 * MIB);
    let pieces = [0; 4].map(|_| owner.allocate(18 * MIB, stream));
    owner.free(pieces[0]);
    owner.free(pieces[2]);
    // Only the two together have room for this.
    let whole = owner.allocate(36 * MIB, stream);
    let block = |at, bytes, what| Block { at, bytes, what };
    vec![
        block(whole, 36 * MIB, "a block of memory that has moved"),
        block(pieces[1], 18 * MIB, "a block beside memory that has moved"),
        block(pieces[3], 18 * MIB, "another block beside memory that has moved"),
    ]
}

/// The guest reads what the owner writes, and the owner what the guest writes.
fn pass_to_and_fro(owner: &Site, guest: &Site, block: &Block) {
    let Block { at, bytes, what } = *block;
    let (ours, theirs) = (owner.stream(), guest.stream());
    owner.paint(at, bytes, 0x11, ours);
    owner.device().stream_synchronize(ours).unwrap();
    let copy = guest.allocate(bytes, theirs);
    guest.paint(copy, bytes, 0, theirs);
    guest.copy(copy, at, bytes, theirs);
    let text = format!("{what}, copied from {} to {}", owner.id, guest.id);
    guest.assert_painted((copy, bytes), 0x11, theirs, &text);
    // On a GPU a kernel of the guest writes through the guest's own mapping.
    guest.paint(at, bytes, 0x22, theirs);
    if let Err(error) = guest.device().stream_synchronize(theirs) {
        panic!("{what} of {}, written by {}: {error}", owner.id, guest.id);
    }
    let text = format!("{what} of {}, written by {}", owner.id, guest.id);
    owner.assert_painted((at, bytes), 0x22, ours, &text);
    guest.paint(copy, bytes, 0x33, theirs);
    guest.copy(at, copy, bytes, theirs);
    guest.device().stream_synchronize(theirs).unwrap();
    let text = format!("{what} of {}, copied from {}", owner.id, guest.id);
    owner.assert_painted((at, bytes), 0x33, ours, &text);
    guest.free(copy);
    owner.end_stream(ours);
    guest.end_stream(theirs);
}

pub(crate) fn each_reaches_the_others_memory_whenever_it_was_mapped(
    places: &[Place; 2],
    kind: Kind,
) {
    let Some(pair) = pair(places, kind) else { return };
    for (owner, guest) in [(&pair[0], &pair[1]), (&pair[1], &pair[0])] {
        let (stream, other) = (owner.stream(), owner.stream());
        let block = |bytes, on, what| Block { at: owner.allocate(bytes, on), bytes, what };
        let mut blocks = vec![
            block(4096, stream, "a small block from before"),
            block(9 * MIB, stream, "a block from before"),
        ];
        guest.device().enable_peer_access(owner.device().id()).unwrap();
        blocks.push(block(4096, other, "a small block from later"));
        blocks.push(block(20 * MIB, other, "a block from later"));
        if kind == Kind::Handles {
            blocks.extend(moved_memory(owner, other));
        }
        blocks.iter().for_each(|block| pass_to_and_fro(owner, guest, block));
        // Again, with memory that comes and goes.
        for bytes in [5 * MIB, 30 * MIB] {
            owner.allocator.empty_cache().unwrap();
            owner.allocator.set_memory_fraction(owner.id, 1.0).unwrap();
            let fresh = block(bytes, stream, "a block after the cache was emptied");
            pass_to_and_fro(owner, guest, &fresh);
            owner.free(fresh.at);
        }
        blocks.into_iter().for_each(|block| owner.free(block.at));
        owner.end_stream(stream);
        owner.end_stream(other);
    }
    finish(&pair);
}

pub(crate) fn a_block_waits_for_a_recorded_stream_of_the_other_device(
    places: &[Place; 2],
    kind: Kind,
) {
    let Some(pair) = pair(places, kind) else { return };
    for (owner, guest) in [(&pair[0], &pair[1]), (&pair[1], &pair[0])] {
        guest.device().enable_peer_access(owner.device().id()).unwrap();
        let (ours, theirs) = (owner.stream(), guest.stream());
        for bytes in [4096, 5 * MIB, 40 * MIB] {
            let block = owner.allocate(bytes, ours);
            let next = queue_late_work(owner, guest, (block, bytes), (ours, theirs));
            let text = "memory that was handed out while the other device was busy";
            owner.assert_painted((next, bytes), 0x22, ours, text);
            owner.free(next);
            allocator(&pair).process_events().unwrap();
            assert_eq!(owner.active(), 0, "the free has come to pass");
        }
        owner.end_stream(ours);
        guest.end_stream(theirs);
    }
    finish(&pair);
}

/// Frees a block that the guest, which is held up, is still to write to, and allocates in the
/// meantime: gives what was allocated.
fn queue_late_work(
    owner: &Site,
    guest: &Site,
    (block, bytes): (Address, Bytes),
    (ours, theirs): (StreamId, StreamId),
) -> Address {
    let mut found = 0;
    while_blocked(guest.device(), theirs, |open| {
        guest.paint(block, bytes, 0xdd, theirs);
        owner.allocator.record_stream(block, theirs).unwrap();
        owner.free(block);
        let count = if bytes > MIB { 1 } else { 8 };
        let others: Vec<Address> = (0..count).map(|_| owner.allocate(bytes, ours)).collect();
        for &other in &others {
            assert_ne!(other, block, "{bytes} bytes that {} still writes to", guest.id);
            owner.paint(other, bytes, 0x22, ours);
        }
        owner.allocator.process_events().unwrap();
        assert_eq!(owner.active(), count + 1, "blocks in use, and one that waits");
        found = others[0];
        others[1..].iter().for_each(|&other| owner.free(other));
        open.send(()).unwrap();
        guest.device().stream_synchronize(theirs).unwrap();
    });
    found
}

pub(crate) fn a_free_waits_while_the_recorded_stream_of_the_other_device_is_captured(
    places: &[Place; 2],
    kind: Kind,
) {
    let Some(pair) = pair(places, kind) else { return };
    let [owner, guest] = &pair;
    let theirs = guest.stream();
    let block = owner.allocate(6 * MIB, StreamId::DEFAULT);
    guest.device().capture_begin(theirs).unwrap();
    owner.allocator.record_stream(block, theirs).unwrap();
    owner.free(block);
    for _ in 0..3 {
        allocator(&pair).process_events().unwrap();
        assert_eq!(owner.active(), 1, "the stream is being captured");
    }
    let graph = guest.device().capture_end(theirs).unwrap();
    // Nothing was recorded on the stream so far.
    guest.end_stream(theirs);
    guest.device().synchronize().unwrap();
    allocator(&pair).process_events().unwrap();
    assert_eq!(owner.active(), 0, "the capture has ended");
    guest.device().graph_destroy(graph).unwrap();
    finish(&pair);
}

pub(crate) fn a_recorded_stream_of_the_other_device_may_be_destroyed(
    places: &[Place; 2],
    kind: Kind,
) {
    let Some(pair) = pair(places, kind) else { return };
    for (owner, guest) in [(&pair[0], &pair[1]), (&pair[1], &pair[0])] {
        let theirs = guest.stream();
        let block = owner.allocate(6 * MIB, StreamId::DEFAULT);
        owner.allocator.record_stream(block, theirs).unwrap();
        let sleep = || thread::sleep(Duration::from_millis(30));
        guest.device().host_function(theirs, Box::new(sleep)).unwrap();
        owner.free(block);
        guest.allocator.retire_stream(guest.id, theirs).unwrap();
        guest.device().stream_destroy(theirs).unwrap();
        guest.device().synchronize().unwrap();
        allocator(&pair).process_events().unwrap();
        assert_eq!(owner.active(), 0, "the stream has ended, and its work has run");
    }
    finish(&pair);
}

pub(crate) fn without_caching_a_free_waits_for_the_other_device_too(
    places: &[Place; 2],
    kind: Kind,
) {
    let Some(pair) = pair(places, kind) else { return };
    allocator(&pair).set_caching(false);
    for (owner, guest) in [(&pair[0], &pair[1]), (&pair[1], &pair[0])] {
        guest.device().enable_peer_access(owner.device().id()).unwrap();
        let theirs = guest.stream();
        let opened = AtomicBool::new(false);
        let block = owner.allocate(4 * MIB, StreamId::DEFAULT);
        while_blocked(guest.device(), theirs, |open| {
            guest.paint(block, 4 * MIB, 0xdd, theirs);
            owner.allocator.record_stream(block, theirs).unwrap();
            thread::scope(|scope| {
                scope.spawn(|| {
                    thread::sleep(Duration::from_millis(100));
                    opened.store(true, Ordering::SeqCst);
                    open.send(()).unwrap();
                });
                owner.free(block);
                assert!(opened.load(Ordering::SeqCst), "{} was not waited for", guest.id);
            });
        });
        guest.end_stream(theirs);
    }
    finish(&pair);
}

pub(crate) fn statistics_limits_and_free_memory_are_each_devices_own(
    places: &[Place; 2],
    kind: Kind,
) {
    let Some(pair) = pair(places, kind) else { return };
    let [first, second] = &pair;
    let before = [first.free_memory(), second.free_memory()];
    let one = first.allocate(64 * MIB, StreamId::DEFAULT);
    assert_eq!((first.active(), second.active(), second.reserved()), (1, 0, 0));
    let two = second.allocate(160 * MIB, StreamId::DEFAULT);
    assert_eq!((first.active(), second.active()), (1, 1));
    assert_eq!((first.reserved(), second.reserved()), (64 * MIB, 160 * MIB));
    assert_eq!(allocator(&pair).block(two).unwrap().device, second.id);
    for (site, before, bytes) in [(first, before[0], 64 * MIB), (second, before[1], 160 * MIB)] {
        let free = site.free_memory();
        assert!(free + bytes <= before + 8 * MIB, "{}: {free} bytes free of {before}", site.id);
    }
    first.limit(96 * MIB);
    let refused = first.allocator.allocate(first.id, 64 * MIB, StreamId::DEFAULT).unwrap_err();
    assert!(refused.is_out_of_memory(), "{refused}");
    let three = second.allocate(64 * MIB, StreamId::DEFAULT);
    first.free(one);
    second.free(three);
    assert_eq!((first.active(), second.active()), (0, 1));
    let idle = first.reserved();
    assert_eq!(idle, 64 * MIB, "freed memory stays cached");
    allocator(&pair).empty_cache().unwrap();
    assert_eq!((first.reserved(), second.reserved()), (0, 160 * MIB));
    first.await_free(before[0], "the first device's memory");
    second.free(two);
    allocator(&pair).reset_peak_statistics(first.id).unwrap();
    let peak = |site: &Site| {
        allocator(&pair).statistics(site.id).unwrap().allocated_bytes.all.peak as Bytes
    };
    assert_eq!((peak(first), peak(second)), (0, 224 * MIB));
    finish(&pair);
    second.await_free(before[1], "the second device's memory");
}

pub(crate) fn a_pool_of_the_second_device_serves_its_graphs(places: &[Place; 2], kind: Kind) {
    let Some(pair) = pair(places, kind) else { return };
    let kept = pair[0].allocate(MIB, StreamId::DEFAULT);
    pair[0].paint(kept, MIB, 0x77, StreamId::DEFAULT);
    graphs::share_a_pool(&pair[1]);
    pair[0].assert_painted((kept, MIB), 0x77, StreamId::DEFAULT, "a block of the first device");
    pair[0].free(kept);
    finish(&pair);
}

/// Hands the names of all scenarios about two devices to a macro.
macro_rules! peer_scenarios {
    ($apply:ident) => {
        $apply! {
            each_reaches_the_others_memory_whenever_it_was_mapped,
            a_block_waits_for_a_recorded_stream_of_the_other_device,
            a_free_waits_while_the_recorded_stream_of_the_other_device_is_captured,
            a_recorded_stream_of_the_other_device_may_be_destroyed,
            without_caching_a_free_waits_for_the_other_device_too,
            statistics_limits_and_free_memory_are_each_devices_own,
            a_pool_of_the_second_device_serves_its_graphs,
        }
    };
}
pub(crate) use peer_scenarios;
