//! Allocations, frees, and the work in between.

use plugalloc::device::Device;
use plugalloc::error::{DeviceErrorKind, Error};
use plugalloc::units::{Address, Bytes, StreamId};

use super::graphs::Graph;
use super::streams::GRAVE;
use super::{Block, Storm};

/// So many bytes at each end of a block are written and read.
pub(super) const ENDS: Bytes = 32;

/// The spans at the ends of a block.
pub(super) fn ends(at: Address, requested: Bytes) -> [(Address, Bytes); 2] {
    let bytes = requested.min(ENDS);
    [(at, bytes), (at + requested - bytes, bytes)]
}

/// What queued work reads into, and what it should find.
#[derive(Debug)]
pub(super) struct Cell {
    bytes: Box<[u8]>,
    value: u8,
    at: Address,
    stream: StreamId,
    /// The step in which it was queued.
    step: u64,
}

impl Cell {
    pub(super) fn new(
        (at, bytes): (Address, Bytes),
        value: u8,
        stream: StreamId,
        step: u64,
    ) -> Cell {
        Cell { bytes: vec![!value; bytes as usize].into(), value, at, stream, step }
    }

    pub(super) fn address(&mut self) -> Address {
        self.bytes.as_mut_ptr() as Address
    }

    #[track_caller]
    fn check(&self) {
        let Cell { bytes, value, at, stream, step } = self;
        let right = bytes.iter().all(|byte| byte == value);
        assert!(right, "step {step}: {stream} read {bytes:x?} at {at:#x} instead of {value:#x}");
    }
}

/// What has been read, or will be when the work has run.
#[derive(Debug, Default)]
pub(super) struct Journal {
    cells: Vec<Cell>,
    /// Those of graphs that are gone, some of which were never launched.
    unread: Vec<Cell>,
}

impl Journal {
    /// Checks what has been read, once all work has run.
    #[track_caller]
    pub(super) fn check<'a>(&mut self, graphs: impl Iterator<Item = &'a mut Graph>) -> u64 {
        let read = self.cells.len() as u64;
        self.cells.drain(..).for_each(|cell| cell.check());
        self.unread.clear();
        for graph in graphs.filter(|graph| graph.launched) {
            graph.launched = false;
            for cell in &mut graph.cells {
                cell.check();
                cell.bytes.fill(!cell.value);
            }
        }
        read
    }

    /// A graph goes, which may still run.
    pub(super) fn keep(&mut self, graph: Graph) {
        match graph.launched {
            true => self.cells.extend(graph.cells),
            false => self.unread.extend(graph.cells),
        }
    }
}

impl Storm {
    /// A call may have to wait for work that this thread holds back.
    #[track_caller]
    pub(super) fn may_wait<T>(&mut self, result: plugalloc::error::Result<T>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(Error::Device(error)) if error.kind == DeviceErrorKind::Misuse => {
                let waits = error.detail.contains("would wait for ever");
                assert!(waits && !self.held.is_empty(), "{error}");
                self.seen.waits_refused += 1;
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    pub(super) fn allocate(&mut self) {
        let lane = self.any_lane();
        let most = match self.random.below(8) {
            0 => self.capacity,
            _ => self.capacity / 5,
        };
        let bytes = self.random.size(most);
        let name = self.lanes[lane].name;
        match self.rig.try_allocate(bytes, name) {
            Ok(at) => self.welcome(at, bytes, lane),
            Err(error) => self.refused(error, bytes, lane),
        }
    }

    /// What must be true of memory that was handed out, which is written then.
    fn welcome(&mut self, at: Address, bytes: Bytes, lane: usize) {
        self.seen.allocated += 1;
        let info = self.rig.allocator.block(at).unwrap();
        let (stream, life) = (self.lanes[lane].name, self.lanes[lane].life);
        assert_eq!((info.requested, info.stream), (bytes, stream));
        assert!(at.is_multiple_of(512) && info.bytes >= bytes);
        self.assert_apart(at, info.bytes);
        if let Some(books) = &self.books {
            assert!(books.lock().covers(at, info.bytes), "nobody was told of {info:?}");
        }
        self.lanes[lane].known = true;
        let pool = self.pool_of(at, stream);
        let block = Block {
            requested: bytes,
            served: info.bytes,
            stream,
            life,
            value: None,
            pool,
            captured: None,
            users: Vec::new(),
            recorded: false,
            exported: false,
        };
        self.live.insert(at, block);
        self.end_graphs_over(at, info.bytes);
        if self.is_capturing(lane) {
            return self.write_captured(at, lane);
        }
        if let Some((place, _)) = pool {
            self.fork(place, stream);
        }
        self.write(at);
    }

    fn assert_apart(&self, start: Address, bytes: Bytes) {
        if let Some((before, block)) = self.live.range(..=start).next_back() {
            assert!(before + block.served <= start, "{start:#x} lies in {before:#x}, {block:?}");
        }
        if let Some((after, block)) = self.live.range(start..).next() {
            assert!(start + bytes <= *after, "{start:#x} runs into {after:#x}, {block:?}");
        }
    }

    /// Queues writing a block's ends on its own stream.
    pub(super) fn write(&mut self, at: Address) {
        let value = self.random.below(256) as u8;
        let Some(block) = self.live.get_mut(&at) else { return };
        block.value = Some(value);
        for (at, bytes) in ends(at, block.requested) {
            self.rig.device().fill_async(at, value, bytes, block.stream).unwrap();
        }
    }

    /// Queues reading a block's ends. What a graph writes is there once it has run, and read by it.
    fn read(&mut self, at: Address, block: &Block, stream: StreamId) {
        let Some(value) = block.value.filter(|_| block.captured.is_none()) else { return };
        for (at, bytes) in ends(at, block.requested) {
            let mut cell = Cell::new((at, bytes), value, stream, self.steps);
            let to = cell.address();
            // SAFETY: the cell is as long as that, and is kept until its stream has run the copy.
            unsafe { self.rig.device().copy_async(to, at, bytes, stream) }.unwrap();
            self.journal.cells.push(cell);
        }
    }

    pub(super) fn free(&mut self) {
        if let Some(at) = self.any_block() {
            self.free_block(at);
        }
    }

    /// So many that memory is short no more, or whole handles are idle.
    pub(super) fn free_many(&mut self) {
        let share = 1 + self.random.below(3);
        let all: Vec<Address> = self.live.keys().copied().collect();
        for at in all {
            if self.random.below(4) < share {
                self.free_block(at);
            }
        }
    }

    /// Frees a block after it was read once more by all who use it.
    pub(super) fn free_block(&mut self, at: Address) {
        let Some(block) = self.live.remove(&at) else { return };
        self.imports.retain(|import| import.0 != at);
        match self.lane_of(block.life) {
            Some(lane) if self.is_capturing(lane) => self.read_captured(at, &block, lane),
            Some(lane) => {
                let stream = self.lanes[lane].name;
                self.read(at, &block, stream);
                if let Some((place, _)) = block.pool {
                    self.join(place, stream);
                }
            }
            None => {}
        }
        for &life in &block.users {
            if let Some(lane) = self.lane_of(life).filter(|&lane| !self.is_capturing(lane)) {
                self.read(at, &block, self.lanes[lane].name);
            }
        }
        self.rig.free(at);
        assert!(self.rig.allocator.free(at).is_err(), "freed twice");
    }

    /// Another stream uses a block as well: the block's own may have ended, and this one have got
    /// its name.
    pub(super) fn record(&mut self) {
        let Some(at) = self.any_block() else { return };
        let lane = self.any_lane();
        let (user, life) = (self.lanes[lane].name, self.lanes[lane].life);
        let block = self.live[&at].clone();
        if life == block.life {
            return;
        }
        let recorded = self.rig.allocator.record_stream(at, user);
        if let Err(error) = &recorded {
            // A stream that is being captured cannot wait for one of its name.
            assert!(self.is_capturing(lane), "{error}");
            return;
        }
        if let Some(block) = self.live.get_mut(&at) {
            block.recorded = true;
        }
        let owner = self.lane_of(block.life);
        if self.is_capturing(lane) || owner.is_some_and(|owner| self.is_capturing(owner)) {
            return;
        }
        let earlier = owner.map_or(GRAVE, |owner| self.lanes[owner].name);
        self.order(earlier, user);
        self.read(at, &block, user);
        if let Some(block) = self.live.get_mut(&at)
            && !block.users.contains(&life)
        {
            block.users.push(life);
        }
    }
}
