//! Streams that are blocked by a function of the host.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use plugalloc::device::Device;
use plugalloc::units::StreamId;

/// The longest that a stream is blocked: a call that waits for it ends then, and a check fails.
const BLOCKED: Duration = Duration::from_secs(20);

/// Runs `body` while a function of the host blocks the stream, and hands it what opens the gate,
/// which also opens when the body ends.
///
/// The function is queued by another thread, because a device may run it in the thread that queues
/// it.
pub(crate) fn while_blocked(device: &dyn Device, stream: StreamId, body: impl FnOnce(Sender<()>)) {
    let (open, gate) = channel::<()>();
    let (entered, entry) = channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            let function = move || {
                entered.send(()).unwrap();
                // If the sender has gone, the body has failed: let the stream go on.
                if gate.recv_timeout(BLOCKED) == Err(RecvTimeoutError::Timeout) {
                    eprintln!("nobody has opened {stream} for {BLOCKED:?}: something waits for it");
                }
            };
            device.host_function(stream, Box::new(function)).unwrap();
        });
        entry.recv().unwrap();
        body(open);
    });
}
