//! Memory shared between processes. A test runs itself again as the process that shares; the one
//! that opens is its parent, which may fetch its child's file descriptors wherever that is possible
//! at all.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use common::{A, B, GPU, capacity, fault, plain};
use plugalloc::device::Device;
use plugalloc::device::sim::{SimDevice, SimMachine, SimOptions};
use plugalloc::error::{DriverCall, Error, PointerFault};
use plugalloc::units::{Address, Bytes, GIB, GRANULE, MIB};
use plugalloc::{Allocator, Config, SharedMemory};

/// Set in the environment of the process that shares.
const CHILD: &str = "PLUGALLOC_IPC_CHILD";
const BYTES: Bytes = 9 * MIB + 4096;

fn open(options: SimOptions) -> (Arc<SimDevice>, Arc<Allocator>) {
    let machine = SimMachine::new(options).unwrap();
    let allocator = Arc::new(Allocator::new(machine.as_devices(), Config::default()).unwrap());
    (machine.device(0), allocator)
}

fn finish(device: &SimDevice, allocator: &Allocator) {
    allocator.is_quiescent().unwrap();
    allocator.empty_cache().unwrap();
    // A process that another test starts has all descriptors, also of exported memory, until it
    // runs its program.
    let start = Instant::now();
    while device.ledger().used > 0 && start.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(device.ledger().used, 0);
}

fn read(device: &SimDevice, at: Address, bytes: Bytes) -> Vec<u8> {
    let mut found = vec![0u8; bytes as usize];
    // SAFETY: the memory stays there, and nobody else uses it, until the copy has run.
    unsafe { device.copy_async(found.as_mut_ptr() as Address, at, bytes, B) }.unwrap();
    found
}

#[track_caller]
fn assert_filled(device: &SimDevice, at: Address, value: u8, bytes: Bytes) {
    assert!(read(device, at, bytes).iter().all(|&byte| byte == value), "not all {value:#x}");
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes_of(hex: &str) -> Vec<u8> {
    let digits = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
    (0..hex.len()).step_by(2).map(digits).collect()
}

/// What the sharing process does: shares memory with a pattern, waits until the other has answered
/// in it, and gives it back.
fn share_and_wait(options: SimOptions) {
    let (device, allocator) = open(options);
    let before = allocator.allocate(GPU, 3 * MIB, A).unwrap();
    let block = allocator.allocate(GPU, BYTES, A).unwrap();
    device.fill_async(block, 0x5a, BYTES, A).unwrap();
    let shared = allocator.share(block).unwrap();
    assert_eq!(allocator.share(block).unwrap(), shared);
    println!("\nSHARED {} {}", shared.offset, hex(&shared.handle));
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    assert_eq!(line.trim(), "answered");
    assert_filled(&device, block, 0xa5, BYTES);
    allocator.free(block).unwrap();
    allocator.free(before).unwrap();
    finish(&device, &allocator);
    println!("\nENDED");
}

/// The process that shares, as its parent sees it.
struct Sharer {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Sharer {
    fn start(test: &str) -> Sharer {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(CHILD, test);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a child");
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Sharer { child, input, output: BufReader::new(output) }
    }

    /// The next line that begins so, without that.
    fn line(&mut self, mark: &str) -> String {
        loop {
            let mut line = String::new();
            assert!(self.output.read_line(&mut line).unwrap() > 0, "no {mark} came");
            if let Some(rest) = line.strip_prefix(mark) {
                return rest.trim().to_owned();
            }
        }
    }

    fn shared(&mut self) -> (Bytes, Vec<u8>) {
        let line = self.line("SHARED ");
        let (offset, handle) = line.split_once(' ').unwrap();
        (offset.parse().unwrap(), bytes_of(handle))
    }

    fn answer(mut self) {
        writeln!(self.input, "answered").unwrap();
        self.end();
    }

    /// Waits for the end of a process that may wait for nothing itself.
    fn end(mut self) {
        self.line("ENDED");
        assert!(self.child.wait().unwrap().success());
    }
}

/// Opens what a child shares, reads it, answers in it, and closes it.
fn open_what_a_child_shares(test: &str, options: SimOptions, kind: u8) {
    if std::env::var(CHILD).is_ok_and(|name| name == test) {
        return share_and_wait(options);
    }
    let mut sharer = Sharer::start(test);
    let (offset, handle) = sharer.shared();
    assert_eq!(&handle[..6], [b'p', b'l', b'u', b'g', 1, kind]);
    let (device, allocator) = open(options);
    let first = match allocator.open_shared(GPU, &handle) {
        Err(Error::Unsupported { why, .. }) => {
            println!("skipped: {why}");
            return sharer.child.kill().unwrap();
        }
        opened => opened.unwrap(),
    };
    let second = allocator.open_shared(GPU, &handle).unwrap();
    assert_eq!((first.address(), first.bytes()), (second.address(), second.bytes()));
    assert!(first.bytes() >= offset + BYTES);
    assert_eq!(fault(allocator.free(first.address())), PointerFault::Foreign);
    let at = first.address() + offset;
    assert_filled(&device, at, 0x5a, BYTES);
    drop(second);
    device.fill_async(at, 0xa5, BYTES, A).unwrap();
    assert_filled(&device, at, 0xa5, BYTES);
    let (start, bytes) = (first.address(), first.bytes());
    drop(first);
    let gone = device.fill_async(start, 1, bytes, A).unwrap_err();
    assert!(gone.to_string().contains("neither") || gone.to_string().contains("mapped"), "{gone}");
    sharer.answer();
    finish(&device, &allocator);
}

#[test]
fn virtual_memory_is_shared_by_file_descriptors() {
    let test = "virtual_memory_is_shared_by_file_descriptors";
    open_what_a_child_shares(test, capacity(GIB), b'e');
}

#[test]
fn segments_are_shared_by_legacy_handles() {
    open_what_a_child_shares("segments_are_shared_by_legacy_handles", plain(GIB), b'c');
}

#[test]
fn queued_work_on_opened_memory_is_waited_for_before_it_is_closed() {
    let test = "queued_work_on_opened_memory_is_waited_for_before_it_is_closed";
    if std::env::var(CHILD).is_ok_and(|name| name == test) {
        return share_and_wait(capacity(GIB));
    }
    let mut sharer = Sharer::start(test);
    let (offset, handle) = sharer.shared();
    let (device, allocator) = open(capacity(GIB));
    let opened = match allocator.open_shared(GPU, &handle) {
        Err(Error::Unsupported { why, .. }) => {
            println!("skipped: {why}");
            return sharer.child.kill().unwrap();
        }
        opened => opened.unwrap(),
    };
    device.hold(A).unwrap();
    device.fill_async(opened.address() + offset, 0xa5, BYTES, A).unwrap();
    // The device cannot be waited for while a stream is held: the memory stays mapped.
    let again = opened.address();
    drop(opened);
    device.resume(A).unwrap();
    assert_filled(&device, again + offset, 0xa5, BYTES);
    // Whoever opens or closes something next closes it for good.
    let opened = allocator.open_shared(GPU, &handle).unwrap();
    drop(opened);
    assert!(device.fill_async(again, 1, 1, A).is_err());
    sharer.answer();
    finish(&device, &allocator);
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn an_export_ends_when_its_allocation_is_freed() {
    let (device, allocator) = open(capacity(64 * MIB));
    let block = allocator.allocate(GPU, 20 * MIB, A).unwrap();
    let shared = allocator.share(block).unwrap();
    assert_eq!(allocator.share(block + 5 * MIB).unwrap().offset, shared.offset + 5 * MIB);
    let quiet = allocator.is_quiescent().unwrap_err().to_string();
    assert!(quiet.contains("pinned"), "{quiet}");
    allocator.free(block).unwrap();
    allocator.is_quiescent().unwrap();
    // Its memory serves others again, handles and all.
    let other = allocator.allocate(GPU, 60 * MIB, B).unwrap();
    allocator.free(other).unwrap();
    let again = allocator.allocate(GPU, 20 * MIB, A).unwrap();
    allocator.share(again).unwrap();
    allocator.record_stream(again, B).unwrap();
    allocator.free(again).unwrap();
    allocator.process_events().unwrap();
    finish(&device, &allocator);
}

#[test]
fn exports_leave_no_descriptors_behind() {
    // A process of its own: other tests open files at the same time.
    let test = "exports_leave_no_descriptors_behind";
    if std::env::var(CHILD).is_ok_and(|name| name == test) {
        let (device, allocator) = open(capacity(GIB));
        let block = allocator.allocate(GPU, 40 * MIB, A).unwrap();
        let before = descriptors();
        allocator.share(block).unwrap();
        assert!(descriptors() > before);
        allocator.free(block).unwrap();
        assert_eq!(descriptors(), before);
        finish(&device, &allocator);
        println!("\nENDED");
        return;
    }
    Sharer::start(test).end();
}

#[test]
fn memory_is_opened_in_its_own_process_where_it_has_descriptors() {
    let (device, allocator) = open(capacity(GIB));
    let block = allocator.allocate(GPU, BYTES, A).unwrap();
    let SharedMemory { offset, handle, .. } = allocator.share(block).unwrap();
    let opened = allocator.open_shared(GPU, &handle).unwrap();
    device.fill_async(opened.address() + offset, 0x42, BYTES, A).unwrap();
    assert_filled(&device, block, 0x42, BYTES);
    drop(opened);
    allocator.free(block).unwrap();
    finish(&device, &allocator);
}

/// The descriptors of the second allocation have the numbers that those of the first one had.
#[test]
fn what_is_shared_later_is_not_taken_for_what_is_still_open() {
    // A process of its own: other tests open files at the same time.
    let test = "what_is_shared_later_is_not_taken_for_what_is_still_open";
    if std::env::var(CHILD).is_ok_and(|name| name == test) {
        let (device, allocator) = open(capacity(GIB));
        let (user, opener) = open(capacity(GIB));
        let blocks = [0x11, 0x22].map(|value| {
            let block = allocator.allocate(GPU, 16 * MIB, A).unwrap();
            device.fill_async(block, value, 16 * MIB, A).unwrap();
            (block, value)
        });
        let opened = blocks.map(|(block, value)| {
            let shared = allocator.share(block).unwrap();
            let opened = opener.open_shared(GPU, &shared.handle).unwrap();
            assert_filled(&user, opened.address() + shared.offset, value, 16 * MIB);
            allocator.free(block).unwrap();
            opened
        });
        drop(opened);
        finish(&user, &opener);
        finish(&device, &allocator);
        println!("\nENDED");
        return;
    }
    Sharer::start(test).end();
}

/// Whoever gets a handle may have sent it already when another thread shares the same.
#[test]
fn threads_that_share_an_allocation_get_the_same_handle() {
    let (device, allocator) = open(capacity(64 * MIB));
    for _ in 0..1500 {
        let block = allocator.allocate(GPU, MIB, A).unwrap();
        let start = Barrier::new(3);
        let share = || {
            start.wait();
            allocator.share(block).unwrap()
        };
        let shared = std::thread::scope(|scope| {
            let threads = [(); 3].map(|()| scope.spawn(share));
            threads.map(|thread| thread.join().unwrap())
        });
        let last = allocator.share(block).unwrap();
        assert!(shared.iter().all(|one| *one == last), "{shared:?}, then {last:?}");
        allocator.free(block).unwrap();
    }
    finish(&device, &allocator);
}

#[test]
fn what_is_no_shared_memory_is_refused() {
    let (device, allocator) = open(capacity(GIB));
    for bytes in [&b""[..], b"plug", &[0; 64], &[2, b'c', 0, 0, 0, 0, 0, 0]] {
        let error = allocator.open_shared(GPU, bytes).unwrap_err();
        assert!(matches!(error, Error::InvalidArgument { .. }), "{error}");
    }
    let block = allocator.allocate(GPU, MIB, A).unwrap();
    let mut handle = allocator.share(block).unwrap().handle;
    let process = u32::MAX.to_le_bytes();
    handle[8..12].copy_from_slice(&process);
    let error = allocator.open_shared(GPU, &handle).unwrap_err();
    assert!(matches!(&error, Error::Unsupported { why, .. } if why.contains("pidfd_getfd")));
    allocator.free(block).unwrap();
    assert_eq!(fault(allocator.share(block)), PointerFault::DoubleFree);
    assert_eq!(fault(allocator.share(0x1000)), PointerFault::Foreign);
    allocator.set_caching(false);
    let direct = allocator.allocate(GPU, MIB, A).unwrap();
    assert!(matches!(allocator.share(direct), Err(Error::Unsupported { .. })));
    allocator.free(direct).unwrap();
    finish(&device, &allocator);
}

#[test]
fn a_failed_import_leaves_nothing_behind() {
    let (device, allocator) = open(capacity(GIB));
    let block = allocator.allocate(GPU, 40 * MIB, A).unwrap();
    let handle = allocator.share(block).unwrap().handle;
    drop(allocator.open_shared(GPU, &handle).unwrap());
    let used = device.ledger().used;
    use DriverCall::{ImportHandle, Map, Reserve, SetAccess};
    for (call, nth) in [(Reserve, 1), (ImportHandle, 2), (Map, 1), (Map, 3), (SetAccess, 2)] {
        device.fail_nth(call, nth);
        allocator.open_shared(GPU, &handle).unwrap_err();
        device.clear_faults();
        assert_eq!(device.ledger().used, used, "{call}");
    }
    let opened = allocator.open_shared(GPU, &handle).unwrap();
    assert!(opened.bytes() >= 40 * MIB && opened.bytes().is_multiple_of(GRANULE));
    drop(opened);
    allocator.free(block).unwrap();
    finish(&device, &allocator);
}

/// Nothing stays mapped to it, and it goes back later.
#[test]
fn an_import_whose_handle_cannot_be_given_back_leaves_nothing_behind() {
    let (device, allocator) = open(capacity(GIB));
    let block = allocator.allocate(GPU, 40 * MIB, A).unwrap();
    let handle = allocator.share(block).unwrap().handle;
    for nth in [1, 2] {
        device.fail_nth(DriverCall::Release, nth);
        match allocator.open_shared(GPU, &handle).unwrap_err() {
            Error::Device(error) => assert_eq!(error.call, DriverCall::Release, "{error}"),
            error => panic!("{error}"),
        }
    }
    drop(allocator.open_shared(GPU, &handle).unwrap());
    allocator.free(block).unwrap();
    allocator.is_valid().unwrap();
    finish(&device, &allocator);
}

/// Shares an allocation with its own process, which tries to open it, or opens and closes it, while
/// calls fail; everything goes back later: with the next opening, when the cache is emptied, or
/// with the allocator.
fn fail_while_open(
    faults: &[(DriverCall, u64)],
    opens: bool,
    later: impl Fn(&Arc<Allocator>, &[u8]),
) {
    let (device, allocator) = open(capacity(GIB));
    let block = allocator.allocate(GPU, 40 * MIB, A).unwrap();
    let handle = allocator.share(block).unwrap().handle;
    let opened = opens.then(|| allocator.open_shared(GPU, &handle).unwrap());
    faults.iter().for_each(|&(call, nth)| device.fail_nth(call, nth));
    match opened {
        Some(opened) => drop(opened),
        None => drop(allocator.open_shared(GPU, &handle).unwrap_err()),
    }
    device.clear_faults();
    later(&allocator, &handle);
    allocator.free(block).unwrap();
    drop(allocator);
    let made = |call| device.ledger().calls(call);
    let failed = faults.iter().filter(|(call, _)| *call == DriverCall::FreeAddress).count();
    assert_eq!(made(DriverCall::FreeAddress), made(DriverCall::Reserve) + failed as u64);
    assert_eq!(device.ledger().used, 0, "{faults:?}");
}

#[test]
fn what_cannot_be_given_back_of_an_import_goes_back_later() {
    use DriverCall::{DeviceSynchronize, FreeAddress, Map, Release, SetAccess, Unmap};
    let open_and_close = |allocator: &Arc<Allocator>, handle: &[u8]| {
        drop(allocator.open_shared(GPU, handle).unwrap());
    };
    let failing: [&[_]; 4] = [
        &[(Map, 3), (Unmap, 1)],
        &[(Map, 3), (FreeAddress, 1)],
        &[(SetAccess, 2), (Unmap, 1)],
        &[(Release, 2), (FreeAddress, 1)],
    ];
    let closing: [&[_]; 3] = [&[(Unmap, 1)], &[(FreeAddress, 1)], &[(DeviceSynchronize, 1)]];
    let cases = failing.map(|faults| (faults, false)).into_iter();
    for (faults, opens) in cases.chain(closing.map(|faults| (faults, true))) {
        fail_while_open(faults, opens, open_and_close);
        fail_while_open(faults, opens, |allocator, _| allocator.empty_cache().unwrap());
        fail_while_open(faults, opens, |_, _| {});
    }
}

/// It would be the last that holds memory of the device.
#[test]
fn an_import_that_could_not_be_closed_goes_back_before_a_request_fails() {
    let (device, allocator) = open(capacity(64 * MIB));
    let block = allocator.allocate(GPU, 40 * MIB, A).unwrap();
    let opened = allocator.open_shared(GPU, &allocator.share(block).unwrap().handle).unwrap();
    allocator.free(block).unwrap();
    allocator.empty_cache().unwrap();
    // Closing waits for the device, which has work that does not run.
    device.hold(A).unwrap();
    device.host_function(A, Box::new(|| {})).unwrap();
    drop(opened);
    assert!(device.ledger().used >= 40 * MIB);
    device.resume(A).unwrap();
    let all = allocator.allocate(GPU, 60 * MIB, B).unwrap();
    allocator.free(all).unwrap();
    finish(&device, &allocator);
}
