//! Whether this process is a copy of one that uses CUDA.

use std::ffi::c_int;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

/// What a forked child is told.
pub(super) const REFUSAL: &str = "this process was forked from one that had opened the device, and \
    CUDA does not work in such a child; start it anew (exec, or Python's \"spawn\")";

static CHILD: AtomicBool = AtomicBool::new(false);

unsafe extern "C" {
    fn pthread_atfork(
        prepare: Option<extern "C" fn()>,
        parent: Option<extern "C" fn()>,
        child: Option<extern "C" fn()>,
    ) -> c_int;
}

extern "C" fn note_child() {
    CHILD.store(true, Ordering::Relaxed);
}

/// Starts to watch for forks. From now on children know what they are.
pub(super) fn watch() {
    static WATCH: Once = Once::new();
    WATCH.call_once(|| {
        // SAFETY: the handler only stores to an atomic, which is allowed after a fork. It fails
        // only for want of memory; then a child gets the driver's own errors.
        let _status = unsafe { pthread_atfork(None, None, Some(note_child)) };
    });
}

/// Whether this process was forked after [`watch`].
pub(super) fn is_child() -> bool {
    CHILD.load(Ordering::Relaxed)
}
