//! An allocator's memory in two processes. `test` is the path of the test that calls a scenario,
//! which runs in a child as well, with the other part.

use plugalloc::error::{Error, PointerFault};
use plugalloc::units::{Address, Bytes, KIB, MIB, StreamId};
use plugalloc::{ImportedMemory, SharedMemory};

use super::processes::{Other, hear, limit_life, part_in, say};
use super::{Kind, Place, Site, skip};

/// Several handles long.
const BYTES: Bytes = 40 * MIB + 4096;

/// A block that shares its page with others.
const SMALL: Bytes = 512 * KIB;

/// A block is painted in stripes of different values, so that parts of it that change places show.
fn stripes(at: Address, value: u8) -> impl Iterator<Item = (Address, Bytes, u8)> {
    let stripe = move |index: u64| {
        let start = index * MIB;
        (at + start, MIB.min(BYTES - start), value.wrapping_add(index as u8))
    };
    (0..BYTES.div_ceil(MIB)).map(stripe)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes_of(hex: &str) -> Vec<u8> {
    let digits = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
    (0..hex.len()).step_by(2).map(digits).collect()
}

fn is_able(place: &Place, kind: Kind) -> bool {
    let able = place.device.capabilities();
    let fits = match kind {
        Kind::Handles => able.virtual_memory.is_some() && able.handle_types.file_descriptor,
        Kind::Segments => able.legacy_ipc,
    };
    if !fits {
        skip(&format!("{} does not share {kind:?}", place.device.name()));
    }
    fits
}

/// A process with an allocator and a stream.
struct Party {
    site: Site,
    stream: StreamId,
}

impl Party {
    fn new(place: &Place, kind: Kind) -> Party {
        let site = Site::new(place, kind);
        let stream = site.stream();
        Party { site, stream }
    }

    /// A painted block of [`BYTES`].
    fn block(&self, value: u8) -> Address {
        let at = self.site.allocate(BYTES, self.stream);
        self.repaint(at, value, "a new block");
        at
    }

    /// Uses the device once, so that what that takes of it is not missed later.
    fn warm_up(&self) {
        let at = self.block(0);
        self.site.free(at);
        self.site.allocator.empty_cache().unwrap();
    }

    /// Shares a block with the parent.
    fn share(&self, block: Address, kind: Kind) {
        let SharedMemory { offset, handle, .. } = self.site.allocator.share(block).unwrap();
        let letter = if kind == Kind::Handles { b'e' } else { b'c' };
        assert_eq!(&handle[..6], [b'p', b'l', b'u', b'g', 1, letter]);
        say("SHARED", &format!("{offset} {}", hex(&handle)));
    }

    #[track_caller]
    fn assert_painted(&self, at: Address, value: u8, what: &str) {
        for (index, (at, bytes, value)) in stripes(at, value).enumerate() {
            let what = format!("stripe {index} of {what}");
            self.site.assert_painted((at, bytes), value, self.stream, &what);
        }
    }

    #[track_caller]
    fn repaint(&self, at: Address, value: u8, what: &str) {
        for (at, bytes, value) in stripes(at, value) {
            self.site.paint(at, bytes, value, self.stream);
        }
        self.assert_painted(at, value, what);
    }

    /// Opens what a child has shared; `None` with a printed reason where this system fetches no
    /// file descriptors.
    #[track_caller]
    fn open(&self, handle: &[u8]) -> Option<ImportedMemory> {
        match self.site.allocator.open_shared(self.site.id, handle) {
            Ok(opened) => Some(opened),
            Err(Error::Unsupported { why, .. }) => {
                skip(&why);
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    #[track_caller]
    fn finish(self) {
        self.site.end_stream(self.stream);
        self.site.finish();
    }
}

/// The process that opens, in the parent; in the child the other part is done. `None` there, and
/// where the device shares no such memory.
fn opener(place: &Place, kind: Kind, test: &str, owner: impl FnOnce(Party, Kind)) -> Option<Party> {
    if !is_able(place, kind) {
        return None;
    }
    let party = Party::new(place, kind);
    if part_in(test).is_some() {
        limit_life();
        owner(party, kind);
        return None;
    }
    Some(party)
}

/// What a child has shared: how far into the opened memory the block lies, and the handle.
#[track_caller]
fn shared_by(other: &mut Other) -> (Bytes, Vec<u8>) {
    let line = other.line("SHARED ");
    let (offset, handle) = line.split_once(' ').unwrap();
    (offset.parse().unwrap(), bytes_of(handle))
}

pub(crate) fn a_shared_block_stays_in_place_while_its_owner_moves_other_memory(
    place: &Place,
    kind: Kind,
    test: &str,
) {
    let Some(party) = opener(place, kind, test, move_memory_beside_a_shared_block) else { return };
    let mut other = Other::start(test, "share");
    let (offset, handle) = shared_by(&mut other);
    let (small_offset, small_handle) = shared_by(&mut other);
    let Some(opened) = party.open(&handle) else { return other.kill() };
    let small = party.open(&small_handle).unwrap();
    for (opened, offset) in [(&opened, offset), (&small, small_offset)] {
        println!("{} bytes at {:#x}, {offset} bytes in", opened.bytes(), opened.address());
    }
    assert!(opened.bytes() >= offset + BYTES && small.bytes() >= small_offset + SMALL);
    assert!(small_offset > 0, "something lies before it");
    let at = opened.address() + offset;
    let small_span = (small.address() + small_offset, SMALL);
    let own = party.block(0x33);
    party.assert_painted(at, 0x5a, "what the owner wrote");
    other.tell("opened");
    other.line("MOVED");
    party.assert_painted(at, 0x5a, "what the owner wrote, after it has moved other memory");
    party.site.assert_painted(small_span, 0x66, party.stream, "the small block");
    party.repaint(at, 0xa5, "what was written to the opened memory");
    let error = party.site.allocator.free(opened.address()).unwrap_err();
    let foreign = |fault| fault == PointerFault::Foreign;
    assert!(matches!(&error, Error::InvalidPointer(e) if foreign(e.fault)), "{error}");
    drop((opened, small));
    other.tell("closed");
    other.line("ENDED");
    other.end();
    party.assert_painted(own, 0x33, "a block of the process that opened");
    party.site.free(own);
    party.finish();
}

/// The owner's part: everything else moves, is given back and taken anew.
fn move_memory_beside_a_shared_block(party: Party, kind: Kind) {
    let Party { site, stream } = &party;
    site.limit(160 * MIB);
    let beside = [0; 2].map(|_| site.allocate(SMALL, *stream));
    site.paint(beside[1], SMALL, 0x66, *stream);
    let before = site.allocate(24 * MIB, *stream);
    let block = party.block(0x5a);
    let after = site.allocate(24 * MIB, *stream);
    party.share(block, kind);
    party.share(beside[1], kind);
    hear("opened");
    [beside[0], before, after].into_iter().for_each(|at| site.free(at));
    let thief = site.stream();
    for round in 0..3 {
        // Longer than what is free side by side.
        let large = site.allocate(90 * MIB, thief);
        site.paint(large, 90 * MIB, 0x70 + round, thief);
        site.assert_painted((large, 90 * MIB), 0x70 + round, thief, "memory that has moved");
        site.free(large);
        site.allocator.empty_cache().unwrap();
        let small = [0; 5].map(|_| site.allocate(7 * MIB, *stream));
        small.into_iter().for_each(|at| site.paint(at, 7 * MIB, 3, *stream));
        site.device().stream_synchronize(*stream).unwrap();
        small.into_iter().for_each(|at| site.free(at));
    }
    site.allocator.is_valid().unwrap();
    party.assert_painted(block, 0x5a, "the shared block where it is shared from");
    say("MOVED", "");
    hear("closed");
    party.assert_painted(block, 0xa5, "what the other process wrote");
    [block, beside[1]].into_iter().for_each(|at| site.free(at));
    site.end_stream(thief);
    party.finish();
    say("ENDED", "");
}

/// Physical handles only: a legacy handle must be closed before its memory is freed (`cudaFree`).
pub(crate) fn memory_given_back_by_its_owner_lives_on_where_it_is_open(place: &Place, test: &str) {
    let Some(party) = opener(place, Kind::Handles, test, |party, _| give_shared_memory_back(party))
    else {
        return;
    };
    let mut other = Other::start(test, "share");
    let (offset, handle) = shared_by(&mut other);
    let Some(opened) = party.open(&handle) else { return other.kill() };
    let at = opened.address() + offset;
    other.tell("opened");
    other.line("FREED");
    party.assert_painted(at, 0x5a, "memory that its owner has given back");
    party.repaint(at, 0xa5, "memory that its owner has given back, written anew");
    drop(opened);
    other.tell("closed");
    other.line("ENDED");
    other.end();
    party.finish();
}

fn give_shared_memory_back(party: Party) {
    let site = &party.site;
    party.warm_up();
    let before = site.free_memory();
    let block = party.block(0x5a);
    party.share(block, Kind::Handles);
    hear("opened");
    site.free(block);
    site.allocator.is_quiescent().unwrap();
    site.allocator.empty_cache().unwrap();
    assert_eq!(site.reserved(), 0);
    let free = site.free_memory();
    assert!(free + BYTES <= before + 8 * MIB, "{free} bytes free of {before}, and it is open");
    let other = party.block(0x11);
    say("FREED", "");
    hear("closed");
    party.assert_painted(other, 0x11, "memory that was taken after that");
    site.free(other);
    site.allocator.empty_cache().unwrap();
    site.await_free(before, "after the other process has closed the memory");
    party.finish();
    say("ENDED", "");
}

/// The owner's part in the scenarios below: shares a block, and looks what is in it at the end.
fn share_until_closed(party: Party, kind: Kind) {
    let block = party.block(0x5a);
    party.share(block, kind);
    hear("closed");
    party.assert_painted(block, 0xa5, "what the other process wrote last");
    party.site.free(block);
    party.finish();
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

pub(crate) fn memory_opened_twice_is_closed_twice(place: &Place, kind: Kind, test: &str) {
    let Some(party) = opener(place, kind, test, share_until_closed) else { return };
    let mut other = Other::start(test, "share");
    let (offset, handle) = shared_by(&mut other);
    let Some(first) = party.open(&handle) else { return other.kill() };
    let second = party.open(&handle).unwrap();
    assert_eq!(first.address(), second.address(), "of one allocator");
    // Another allocator of the process opens it for itself.
    let beside = Party::new(place, kind);
    let third = beside.open(&handle).unwrap();
    let places = [first.address() + offset, third.address() + offset];
    drop(first);
    party.assert_painted(places[0], 0x5a, "opened twice, closed once");
    drop(second);
    beside.assert_painted(places[1], 0x5a, "closed by one allocator, not by the other");
    let again = party.open(&handle).unwrap();
    party.repaint(again.address() + offset, 0xa6, "opened again");
    drop(again);
    let before = descriptors();
    for _ in 0..10 {
        drop(party.open(&handle).unwrap());
    }
    let after = descriptors();
    assert!(after < before + 10, "{before} file descriptors before, {after} after 10 openings");
    beside.repaint(places[1], 0xa5, "still open for the other allocator");
    drop(third);
    beside.finish();
    other.tell("closed");
    other.end();
    party.finish();
}

pub(crate) fn what_a_process_shared_cannot_be_opened_once_it_has_ended(
    place: &Place,
    kind: Kind,
    test: &str,
) {
    let Some(party) = opener(place, kind, test, share_until_closed) else { return };
    party.warm_up();
    let before = party.site.free_memory();
    let mut other = Other::start(test, "share");
    let (offset, handle) = shared_by(&mut other);
    let Some(opened) = party.open(&handle) else { return other.kill() };
    let at = opened.address() + offset;
    party.assert_painted(at, 0x5a, "while its owner lives");
    if kind == Kind::Segments {
        // The memory ends with its owner, and must not be open then.
        drop(opened);
        other.kill();
    } else {
        other.kill();
        party.assert_painted(at, 0x5a, "after its owner was killed");
        party.repaint(at, 0xa5, "after its owner was killed, written anew");
        drop(opened);
    }
    let error = party.site.allocator.open_shared(party.site.id, &handle).unwrap_err();
    println!("as wanted: {error}");
    assert!(matches!(error, Error::Unsupported { .. } | Error::Device(_)), "{error}");
    // The failed call has changed nothing.
    let block = party.block(0x44);
    party.assert_painted(block, 0x44, "a block of the process that is left");
    party.site.free(block);
    party.site.allocator.empty_cache().unwrap();
    party.site.await_free(before, "after the owner has ended, and nobody has its memory open");
    party.finish();
}

pub(crate) fn a_process_opens_its_own_handles_but_no_legacy_ones(place: &Place, kind: Kind) {
    if !is_able(place, kind) {
        return;
    }
    let (owner, beside) = (Party::new(place, kind), Party::new(place, kind));
    let block = owner.block(0x5a);
    let SharedMemory { offset, handle, .. } = owner.site.allocator.share(block).unwrap();
    if kind == Kind::Segments {
        let error = owner.site.allocator.open_shared(owner.site.id, &handle).unwrap_err();
        assert!(error.to_string().contains("only others can open"), "{error}");
    } else {
        for party in [&owner, &beside] {
            let opened = party.open(&handle).unwrap();
            let at = opened.address() + offset;
            assert_ne!(at, block);
            party.assert_painted(at, 0x5a, "what was written by way of the block");
            party.repaint(at, 0xa5, "what was written by way of the opened memory");
            owner.assert_painted(block, 0xa5, "the same by way of the block");
            owner.repaint(block, 0x5a, "the block");
        }
    }
    owner.assert_painted(block, 0x5a, "the block at the end");
    owner.site.free(block);
    owner.finish();
    beside.finish();
}

/// A handle that was changed, and in which way.
type Corrupted = (String, Vec<u8>);

/// Where the first piece of a handle begins: its length, and then what names it.
const PIECE: usize = 24;

/// Changes of a good handle, of which none must be opened.
fn corrupted(handle: &[u8], kind: Kind) -> Vec<Corrupted> {
    let with = |what: &str, at: usize, bytes: &[u8]| {
        let mut changed = handle.to_vec();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        (what.to_owned(), changed)
    };
    let cut = |length: usize| (format!("cut to {length} bytes"), handle[..length].to_vec());
    let mut found: Vec<Corrupted> = (0..handle.len()).map(cut).collect();
    found.push(("with one byte more".to_owned(), [handle, &[0]].concat()));
    found.push(with("another mark", 0, b"plum"));
    found.push(with("another version", 4, &[2]));
    found.push(with("another kind", 5, b"x"));
    found.push(with("no piece", 12, &0u32.to_le_bytes()));
    found.push(with("more pieces than there are", 12, &u32::MAX.to_le_bytes()));
    for length in [0, 5, 1 << 60] {
        found.push(with(&format!("a piece of {length} bytes"), PIECE, &u64::to_le_bytes(length)));
    }
    if kind == Kind::Segments {
        for byte in [0, 0xff] {
            found.push(with(&format!("a handle of bytes {byte:#x}"), PIECE + 8, &[byte; 64]));
        }
        return found;
    }
    let length = u64::from_le_bytes(handle[PIECE..PIECE + 8].try_into().unwrap());
    found.push(with("a piece of twice its length", PIECE, &(2 * length).to_le_bytes()));
    found.push(with("a process that does not exist", 8, &u32::MAX.to_le_bytes()));
    // The last one is standard input.
    for number in [1 << 20, -1, 1 << 40, 0i64] {
        found.push(with(&format!("file descriptor {number}"), PIECE + 8, &number.to_le_bytes()));
    }
    found
}

pub(crate) fn a_corrupted_handle_is_refused_and_harms_nothing(
    place: &Place,
    kind: Kind,
    test: &str,
) {
    if !is_able(place, kind) {
        return;
    }
    match part_in(test).as_deref() {
        // A process of its own, in case that the driver does not survive it.
        None => Other::start(test, "open").end(),
        Some("open") => {
            limit_life();
            open_corrupted_handles(place, kind, test);
        }
        Some(_) => {
            limit_life();
            share_until_closed(Party::new(place, kind), kind);
        }
    }
}

fn open_corrupted_handles(place: &Place, kind: Kind, test: &str) {
    let party = Party::new(place, kind);
    let owner = Party::new(place, kind);
    let block = owner.block(0x5a);
    let mut other = (kind == Kind::Segments).then(|| Other::start(test, "share"));
    let (offset, handle) = match &mut other {
        Some(other) => shared_by(other),
        // A process may open physical handles of its own.
        None => {
            let SharedMemory { offset, handle, .. } = owner.site.allocator.share(block).unwrap();
            (offset, handle)
        }
    };
    for (what, bytes) in corrupted(&handle, kind) {
        println!("trying {what}");
        let error = match party.site.allocator.open_shared(party.site.id, &bytes) {
            Err(error) => error,
            Ok(opened) => panic!("{what} was opened, at {:#x}", opened.address()),
        };
        println!("as wanted: {error}");
        party.site.device().memory_info().unwrap();
    }
    let opened = party.open(&handle).unwrap();
    let at = opened.address() + offset;
    party.assert_painted(at, 0x5a, "the good handle, after all that");
    party.repaint(at, 0xa5, "the same, written anew");
    drop(opened);
    if let Some(mut other) = other {
        other.tell("closed");
        other.end();
    } else {
        owner.assert_painted(block, 0xa5, "the block of the good handle");
    }
    owner.site.free(block);
    owner.finish();
    party.finish();
}

/// Hands the names of the scenarios about shared memory of either kind to a macro.
macro_rules! sharing_scenarios {
    ($apply:ident) => {
        $apply! {
            a_shared_block_stays_in_place_while_its_owner_moves_other_memory,
            memory_opened_twice_is_closed_twice,
            what_a_process_shared_cannot_be_opened_once_it_has_ended,
            a_corrupted_handle_is_refused_and_harms_nothing,
        }
    };
}
pub(crate) use sharing_scenarios;
