//! A machine of simulated devices, and what its devices share.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::SimDevice;
use super::faults::Faults;
use super::ledger::{Counters, flat_price};
use super::memory::Memory;
use super::queue::{Obstacle, Step};
use super::refusal::{Outcome, Refusal, misuse, not_permitted};
use super::streams::Work;
use crate::device::{Device, DeviceResult, HostFunction};
use crate::error::{DeviceError, DriverCall};
use crate::units::{Bytes, GIB, MAX_REQUEST, StreamId};

/// What a [`SimMachine`] is to be.
#[derive(Clone, Debug)]
pub struct SimOptions {
    /// How many devices there are. Default: 1.
    pub devices: usize,
    /// The memory of each device. It costs nothing until it is touched. Default: 80 GiB.
    pub capacity: Bytes,
    /// Whether the devices have virtual memory management; without it only `malloc` and `free` give
    /// memory. Default: true.
    pub virtual_memory: bool,
    /// Whether network cards reach the mapped memory, which has a price and no other effect.
    /// Default: true.
    pub rdma: bool,
    /// Whether an id that was never seen is taken for a new stream on first use, so that a program
    /// may number its streams as it likes. A stream that was destroyed stays destroyed. Default:
    /// true.
    pub adopt_streams: bool,
    /// Whether waiting for work behind a held stream blocks until another thread resumes the
    /// stream; otherwise it is an error, which a program of one thread needs. Default: false.
    pub wait_for_release: bool,
    /// Whether a capture forbids the calls that CUDA's global capture mode forbids in every thread:
    /// `malloc`, `free`, `event_query` and `event_synchronize` fail while any stream of the machine
    /// captures, and invalidate the capture. Otherwise, as in the relaxed mode, only what concerns
    /// the capturing stream itself is forbidden. Default: false.
    pub global_capture: bool,
    /// Whether there is memory of the host where memory of the device is mapped. Without it the
    /// simulation is books and addresses alone: whoever touches memory faults, copies and fills are
    /// `Unsupported`, and a measurement of host time is not one of the host's own mapping calls.
    /// Default: true.
    pub backed: bool,
}

impl Default for SimOptions {
    fn default() -> Self {
        SimOptions {
            devices: 1,
            capacity: 80 * GIB,
            virtual_memory: true,
            rdma: true,
            adopt_streams: true,
            wait_for_release: false,
            global_capture: false,
            backed: true,
        }
    }
}

/// Simulated devices that know each other: their addresses never coincide, and they can be peers.
///
/// The memory lives as long as the machine or any device of it.
///
/// ```
/// use plugalloc::device::sim::{SimMachine, SimOptions};
/// use plugalloc::device::Device;
///
/// let machine = SimMachine::new(SimOptions { devices: 2, ..SimOptions::default() })?;
/// let memory = machine.device(1).malloc(1 << 20)?;
/// machine.device(1).free(memory)?;
/// # Ok::<(), plugalloc::error::DeviceError>(())
/// ```
#[derive(Debug)]
pub struct SimMachine {
    devices: Vec<Arc<SimDevice>>,
}

impl SimMachine {
    /// Makes a machine.
    ///
    /// # Errors
    ///
    /// The host cannot make a file in memory, or a device is to have more than 1 EiB.
    pub fn new(options: SimOptions) -> DeviceResult<SimMachine> {
        let count = options.devices;
        let shared = Shared::new(options).map_err(|refusal| DeviceError {
            call: DriverCall::Open,
            device: 0,
            kind: refusal.kind,
            detail: refusal.detail,
        })?;
        let shared = Arc::new(shared);
        let device = |index| Arc::new(SimDevice::new(index, Arc::clone(&shared)));
        Ok(SimMachine { devices: (0..count).map(device).collect() })
    }

    /// A device.
    ///
    /// # Panics
    ///
    /// There is no device of this index.
    pub fn device(&self, index: usize) -> Arc<SimDevice> {
        Arc::clone(&self.devices[index])
    }

    /// All devices, by index.
    pub fn devices(&self) -> Vec<Arc<SimDevice>> {
        self.devices.clone()
    }

    /// All devices, by index, as an allocator takes them.
    pub fn as_devices(&self) -> Vec<Arc<dyn Device>> {
        self.devices.iter().map(|device| Arc::clone(device) as Arc<dyn Device>).collect()
    }
}

/// What the devices of one machine share.
pub(super) struct Shared {
    pub(super) options: SimOptions,
    pub(super) state: Mutex<State>,
    /// Told whenever work has run or a stream was resumed.
    progress: Condvar,
}

/// Everything that changes, under one lock: work refers to memory, memory must not end under work,
/// and both may belong to different devices.
pub(super) struct State {
    pub(super) memory: Memory,
    pub(super) work: Work,
    /// By device.
    pub(super) books: Vec<Books>,
}

/// What is kept of the calls of one device.
pub(super) struct Books {
    pub(super) counters: Counters,
    pub(super) faults: Faults,
}

impl State {
    /// Counts a call, and lets it fail if that was asked for.
    #[inline]
    pub(super) fn enter(&mut self, device: usize, call: DriverCall) -> Outcome<()> {
        let books = &mut self.books[device];
        books.counters.count(call);
        books.faults.admit(call)
    }
}

thread_local! {
    /// This thread runs a function of the host that was queued on a stream.
    static IN_HOST_FUNCTION: Cell<bool> = const { Cell::new(false) };
}

impl Shared {
    fn new(options: SimOptions) -> Outcome<Shared> {
        let SimOptions { devices, capacity, virtual_memory, adopt_streams, backed, .. } = options;
        if capacity > MAX_REQUEST {
            let most = "a simulated device has at most 1 EiB";
            return Err(misuse(format!("{most}, and {capacity} bytes are asked for")));
        }
        let mut memory = Memory::new(devices, capacity, virtual_memory)?;
        memory.backed = backed;
        let work = Work::new(devices, adopt_streams);
        let book = |_| Books { counters: Counters::new(), faults: Faults::default() };
        let books = (0..devices).map(book).collect();
        let state = Mutex::new(State { memory, work, books });
        Ok(Shared { options, state, progress: Condvar::new() })
    }

    /// Makes one call of a device: counts it, does it, charges it, and runs what it made runnable.
    pub(super) fn call<T>(
        &self,
        device: usize,
        call: DriverCall,
        body: impl FnOnce(&mut MutexGuard<'_, State>) -> Outcome<T>,
    ) -> Result<T, Refusal> {
        let mut state = self.state.lock();
        state.enter(device, call)?;
        let result = body(&mut state)?;
        state.books[device].counters.charge(flat_price(call));
        if state.work.is_busy() {
            self.drain(&mut state);
        }
        Ok(result)
    }

    /// Runs whatever can run. Functions of the host run with the machine unlocked.
    pub(super) fn drain(&self, state: &mut MutexGuard<'_, State>) {
        let mut advanced = false;
        let mut cursor = None;
        let mut advanced_in_round = false;
        loop {
            let Some(slot) = state.work.busy_after(cursor) else {
                if !advanced_in_round {
                    break;
                }
                // What ran in this round may have been waited for by a stream that was passed.
                (cursor, advanced_in_round) = (None, false);
                continue;
            };
            match state.work.step(slot) {
                Step::Blocked => cursor = Some(slot),
                Step::Advanced => (advanced, advanced_in_round) = (true, true),
                Step::Host(function) => {
                    self.run_host_function(state, slot, function);
                    (advanced, advanced_in_round) = (true, true);
                }
            }
        }
        if advanced {
            self.progress.notify_all();
        }
    }

    fn run_host_function(
        &self,
        state: &mut MutexGuard<'_, State>,
        slot: usize,
        function: HostFunction,
    ) {
        // What has run so far may be all that another thread waits for.
        self.progress.notify_all();
        let outcome = MutexGuard::unlocked(state, || {
            let outer = IN_HOST_FUNCTION.replace(true);
            let outcome = catch_unwind(AssertUnwindSafe(function));
            IN_HOST_FUNCTION.set(outer);
            outcome
        });
        state.work.finish_host(slot);
        if let Err(panic) = outcome {
            // The stream stays usable; the panic goes on in the thread that happened to run it.
            self.progress.notify_all();
            resume_unwind(panic);
        }
    }

    /// Runs and waits until `busy` names no stream any more.
    pub(super) fn wait_while(
        &self,
        state: &mut MutexGuard<'_, State>,
        busy: impl Fn(&Work) -> Option<usize>,
    ) -> Outcome<()> {
        loop {
            self.drain(state);
            let Some(slot) = busy(&state.work) else {
                return Ok(());
            };
            if IN_HOST_FUNCTION.get() {
                return Err(not_permitted(
                    "a function queued on a stream must not wait for streams",
                ));
            }
            match state.work.obstacle(slot) {
                Obstacle::None => {}
                Obstacle::Running => self.progress.wait(state),
                Obstacle::Held(_) if self.options.wait_for_release => self.progress.wait(state),
                Obstacle::Held(held) => {
                    let stream = &state.work.streams[held];
                    let (id, device) = (StreamId(stream.id), stream.device);
                    return Err(misuse(format!(
                        "would wait for ever: {id} of device {device} is held"
                    )));
                }
            }
        }
    }

    /// Tells the threads that wait that a stream may go on.
    pub(super) fn announce(&self) {
        self.progress.notify_all();
    }
}
