//! The allocator over a GPU, in one thread.

use plugalloc::Error;
use plugalloc::device::Device;
use plugalloc::units::{Address, Bytes, MIB, StreamId};

use crate::{GPU, Numbers, gpu};

#[test]
fn blocks_keep_their_bytes_while_others_come_and_go() {
    let Some(gpu) = gpu() else { return };
    let allocator = gpu.allocator();
    let streams = [StreamId::DEFAULT, gpu.device.stream_create().unwrap()];
    let mut live: Vec<(Address, Bytes, u8, StreamId)> = Vec::new();
    let mut numbers = Numbers::new(1);
    for step in 0..400u32 {
        if live.len() > 40 || (!live.is_empty() && numbers.below(3) == 0) {
            let (at, bytes, value, stream) =
                live.swap_remove(numbers.below(live.len() as u64) as usize);
            gpu.assert_filled(at, bytes, value, stream);
            allocator.free(at).unwrap();
        } else {
            let (bytes, value) = (numbers.size(), step as u8);
            let stream = streams[numbers.below(2) as usize];
            let at = allocator.allocate(GPU, bytes, stream).unwrap();
            gpu.device.fill_async(at, value, bytes, stream).unwrap();
            live.push((at, bytes, value, stream));
        }
    }
    allocator.is_valid().unwrap();
    for (at, bytes, value, stream) in live {
        gpu.assert_filled(at, bytes, value, stream);
        allocator.free(at).unwrap();
    }
    allocator.is_quiescent().unwrap();
    drop(allocator);
    gpu.device.stream_destroy(streams[1]).unwrap();
}

#[test]
fn a_block_is_not_reused_while_a_recorded_stream_is_busy() {
    let Some(gpu) = gpu() else { return };
    let allocator = gpu.allocator();
    let (owner, user) = (StreamId::DEFAULT, gpu.device.stream_create().unwrap());
    for bytes in [4096, 5 * MIB, 40 * MIB] {
        let shared = allocator.allocate(GPU, bytes, owner).unwrap();
        allocator.record_stream(shared, user).unwrap();
        gpu.keep_busy(user, 200);
        gpu.device.fill_async(shared, 7, bytes, user).unwrap();
        allocator.free(shared).unwrap();
        let next = allocator.allocate(GPU, bytes, owner).unwrap();
        assert!(!gpu.is_idle(user), "the allocation waited for the busy stream");
        gpu.device.fill_async(next, 1, bytes, owner).unwrap();
        gpu.device.stream_synchronize(owner).unwrap();
        gpu.device.stream_synchronize(user).unwrap();
        gpu.assert_filled(next, bytes, 1, owner);
        allocator.free(next).unwrap();
        allocator.process_events().unwrap();
    }
    allocator.is_quiescent().unwrap();
    drop(allocator);
    gpu.device.stream_destroy(user).unwrap();
}

#[test]
fn memory_stolen_from_a_busy_stream_is_used_after_it() {
    let Some(gpu) = gpu() else { return };
    let allocator = gpu.allocator();
    let total = gpu.device.memory_info().unwrap().total;
    let (busy, thief) = (gpu.device.stream_create().unwrap(), gpu.device.stream_create().unwrap());
    let bytes = 48 * MIB;
    // Room for one block, not for two.
    allocator.set_memory_fraction(GPU, 64.0 * MIB as f64 / total as f64).unwrap();
    for round in 0..5u8 {
        let first = allocator.allocate(GPU, bytes, busy).unwrap();
        gpu.keep_busy(busy, 100);
        gpu.device.fill_async(first, 200, bytes, busy).unwrap();
        allocator.free(first).unwrap();
        let second = allocator.allocate(GPU, bytes, thief).unwrap();
        gpu.device.fill_async(second, round, bytes, thief).unwrap();
        gpu.device.stream_synchronize(busy).unwrap();
        gpu.assert_filled(second, bytes, round, thief);
        allocator.free(second).unwrap();
    }
    let statistics = allocator.statistics(GPU).unwrap();
    println!("{statistics:?}");
    allocator.is_quiescent().unwrap();
    drop(allocator);
    gpu.device.stream_destroy(busy).unwrap();
    gpu.device.stream_destroy(thief).unwrap();
}

#[test]
fn memory_changes_its_address_under_queued_work_of_its_stream() {
    let Some(gpu) = gpu() else { return };
    let allocator = gpu.allocator();
    let total = gpu.device.memory_info().unwrap().total;
    let stream = gpu.device.stream_create().unwrap();
    allocator.set_memory_fraction(GPU, 80.0 * MIB as f64 / total as f64).unwrap();
    let pieces: Vec<Address> =
        (0..4).map(|_| allocator.allocate(GPU, 18 * MIB, stream).unwrap()).collect();
    gpu.keep_busy(stream, 100);
    for &piece in &pieces {
        gpu.device.fill_async(piece, 9, 18 * MIB, stream).unwrap();
    }
    allocator.free(pieces[0]).unwrap();
    allocator.free(pieces[2]).unwrap();
    // Only the two together have room for this.
    let whole = allocator.allocate(GPU, 36 * MIB, stream).unwrap();
    gpu.device.fill_async(whole, 3, 36 * MIB, stream).unwrap();
    gpu.assert_filled(whole, 36 * MIB, 3, stream);
    gpu.assert_filled(pieces[1], 18 * MIB, 9, stream);
    gpu.assert_filled(pieces[3], 18 * MIB, 9, stream);
    for at in [pieces[1], pieces[3], whole] {
        allocator.free(at).unwrap();
    }
    allocator.is_quiescent().unwrap();
    drop(allocator);
    gpu.device.stream_destroy(stream).unwrap();
}

#[test]
fn a_small_share_of_the_memory_runs_out_and_comes_back() {
    let Some(gpu) = gpu() else { return };
    let allocator = gpu.allocator();
    allocator.set_memory_fraction(GPU, 0.005).unwrap();
    let limit = (gpu.device.memory_info().unwrap().total as f64 * 0.005) as Bytes;
    for _ in 0..3 {
        let mut live = Vec::new();
        let error = loop {
            match allocator.allocate(GPU, 7 * MIB, StreamId::DEFAULT) {
                Ok(at) => live.push(at),
                Err(error) => break error,
            }
        };
        let Error::OutOfMemory(numbers) = &error else { panic!("{error}") };
        assert_eq!(numbers.requested, 7 * MIB);
        let used = live.len() as Bytes * 7 * MIB;
        assert!(used <= limit && used + 9 * MIB > limit, "{used} of {limit}: {error}");
        live.into_iter().for_each(|at| allocator.free(at).unwrap());
    }
    allocator.is_quiescent().unwrap();
}

#[test]
fn a_request_larger_than_the_device_is_out_of_memory() {
    let Some(gpu) = gpu() else { return };
    let allocator = gpu.allocator();
    let total = gpu.device.memory_info().unwrap().total;
    let error = allocator.allocate(GPU, total + MIB, StreamId::DEFAULT).unwrap_err();
    assert!(error.is_out_of_memory(), "{error}");
    println!("{error}");
    let at = allocator.allocate(GPU, MIB, StreamId::DEFAULT).unwrap();
    allocator.free(at).unwrap();
    allocator.is_quiescent().unwrap();
}

#[test]
fn all_memory_goes_back_to_the_device() {
    let Some(gpu) = gpu() else { return };
    let before = gpu.free_memory();
    let allocator = gpu.allocator();
    let mut live: Vec<Address> = Vec::new();
    let mut numbers = Numbers::new(3);
    for _ in 0..60 {
        live.push(allocator.allocate(GPU, numbers.size(), StreamId::DEFAULT).unwrap());
    }
    live.push(allocator.allocate(GPU, 1024 * MIB, StreamId::DEFAULT).unwrap());
    assert!(gpu.free_memory() + 1024 * MIB <= before);
    live.into_iter().for_each(|at| allocator.free(at).unwrap());
    assert!(gpu.free_memory() + 1024 * MIB <= before, "freed memory stays cached");
    allocator.empty_cache().unwrap();
    let emptied = gpu.free_memory();
    assert!(emptied + 4 * MIB >= before, "{} bytes are missing", before - emptied);
    drop(allocator);
    let after = gpu.free_memory();
    assert!(after + 4 * MIB >= before, "{} bytes are missing", before - after);
}

#[test]
fn without_caching_every_allocation_is_the_devices_own() {
    let Some(gpu) = gpu() else { return };
    let before = gpu.free_memory();
    let allocator = gpu.allocator();
    allocator.set_caching(false);
    let at = allocator.allocate(GPU, 100 * MIB, StreamId::DEFAULT).unwrap();
    gpu.device.fill_async(at, 8, 100 * MIB, StreamId::DEFAULT).unwrap();
    gpu.assert_filled(at, 100 * MIB, 8, StreamId::DEFAULT);
    allocator.free(at).unwrap();
    let after = gpu.free_memory();
    assert!(after + 4 * MIB >= before, "{} bytes are missing", before - after);
}
