//! Tests of the loop, over a client that only keeps accounts.

use std::cell::RefCell;
use std::collections::HashMap;

use plugalloc::error::{InvalidPointer, OutOfMemory, PointerFault};
use plugalloc::{Bytes, Result};

use super::*;

/// Gives addresses 512 bytes apart, up to a capacity.
struct Ledger {
    capacity: Bytes,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    next: Address,
    live: HashMap<Address, (Bytes, StreamId)>,
    streams: Vec<u64>,
}

impl Ledger {
    fn new(capacity: Bytes) -> Self {
        Ledger { capacity, state: RefCell::default() }
    }

    fn live(&self) -> Bytes {
        self.state.borrow().live.values().map(|(bytes, _)| bytes).sum()
    }
}

impl Client for Ledger {
    fn allocate(&self, bytes: Bytes, stream: StreamId) -> Result<Address> {
        if bytes == 0 {
            return Ok(0);
        }
        if self.live() + bytes > self.capacity {
            return Err(Error::OutOfMemory(Box::<OutOfMemory>::default()));
        }
        let mut state = self.state.borrow_mut();
        state.next += 512;
        let address = state.next;
        state.live.insert(address, (bytes, stream));
        state.streams.push(stream.0);
        Ok(address)
    }

    fn free(&self, address: Address) -> Result<()> {
        match self.state.borrow_mut().live.remove(&address) {
            Some(_) => Ok(()),
            None => {
                let fault = PointerFault::Foreign;
                Err(Error::InvalidPointer(InvalidPointer::new(address, fault)))
            }
        }
    }
}

fn trace(body: &str) -> Trace {
    Trace::read(format!("op,id,bytes,stream,time_us\n{body}").as_bytes()).unwrap()
}

fn streams(trace: &Trace) -> Vec<StreamId> {
    trace.streams.iter().map(|number| StreamId(number * 8)).collect()
}

const BODY: &str = "a,0,600,0,0\na,1,300,2,1\nf,0,600,0,2\na,2,500,0,3\na,3,0,0,4\nf,3,0,0,5\n";

#[test]
fn every_event_reaches_the_client_on_its_stream() {
    let (client, trace) = (Ledger::new(900), trace(BODY));
    let mut outcome =
        replay(&client, &trace, &streams(&trace), &Clock::default(), OnOutOfMemory::Stop);
    assert_eq!((outcome.events, outcome.ooms), (6, 0));
    assert_eq!(outcome.failure, None);
    assert_eq!(client.state.borrow().streams, [0, 16, 0]);
    assert_eq!(client.live(), 800);
    free_rest(&client, &mut outcome).unwrap();
    assert_eq!(client.live(), 0);
}

#[test]
fn an_allocation_that_does_not_fit_is_counted_and_its_free_passed_over() {
    let (client, trace) = (Ledger::new(550), trace(BODY));
    let outcome =
        replay(&client, &trace, &streams(&trace), &Clock::default(), OnOutOfMemory::Count);
    assert_eq!((outcome.events, outcome.ooms), (6, 2));
    assert_eq!(outcome.failure, None);
    assert_eq!(client.live(), 300);
}

#[test]
fn a_probe_ends_at_the_first_allocation_that_does_not_fit() {
    let (client, trace) = (Ledger::new(550), trace(BODY));
    let outcome = replay(&client, &trace, &streams(&trace), &Clock::default(), OnOutOfMemory::Stop);
    assert_eq!((outcome.events, outcome.ooms), (1, 1));
}

#[test]
fn another_error_ends_the_replay_and_is_told() {
    /// Refuses every free.
    struct Refusing(Ledger);
    impl Client for Refusing {
        fn allocate(&self, bytes: Bytes, stream: StreamId) -> Result<Address> {
            self.0.allocate(bytes, stream)
        }
        fn free(&self, address: Address) -> Result<()> {
            self.0.free(address + 1)
        }
    }
    let (client, trace) = (Refusing(Ledger::new(10_000)), trace(BODY));
    let outcome =
        replay(&client, &trace, &streams(&trace), &Clock::default(), OnOutOfMemory::Count);
    assert_eq!(outcome.events, 3);
    let failure = outcome.failure.unwrap();
    assert!(failure.starts_with("event 3, freeing: "), "{failure}");
}
