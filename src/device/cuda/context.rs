//! Contexts, and what a call changes in its thread while it runs.

use std::ffi::{c_int, c_uint};

use cudarc::driver::sys::{CUcontext, CUstreamCaptureMode};

use super::driver::{Code, Driver};

/// The primary context of a device.
#[derive(Clone, Copy, Debug)]
pub(super) struct Context(CUcontext);

// SAFETY: a context belongs to the process; the driver lets every thread use it at any time.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    /// The primary context of a device, made if nobody has made it yet.
    pub(super) fn retain(driver: &Driver, ordinal: c_int) -> Result<Context, Code> {
        let mut context = std::ptr::null_mut();
        // SAFETY: writes one pointer; the driver checks the ordinal.
        unsafe { (driver.context_retain)(&raw mut context, ordinal) }.check()?;
        Ok(Context(context))
    }

    /// Takes one `retain` back.
    pub(super) fn release(driver: &Driver, ordinal: c_int) {
        // SAFETY: the caller has retained it, so the count stays right.
        let _code = unsafe { (driver.context_release)(ordinal) };
    }

    /// The driver's pointer.
    pub(super) fn raw(self) -> CUcontext {
        self.0
    }

    /// Makes the context current in this thread until the result is dropped. Cheap where it is.
    pub(super) fn enter(self, driver: &Driver) -> Result<Current<'_>, Code> {
        let mut current = std::ptr::null_mut();
        // SAFETY: writes one pointer.
        unsafe { (driver.context_current)(&raw mut current) }.check()?;
        if current == self.0 {
            return Ok(Current { pushed: None });
        }
        // SAFETY: the context is retained for the life of the process.
        unsafe { (driver.context_push)(self.0) }.check()?;
        Ok(Current { pushed: Some(driver) })
    }
}

/// While this lives, a context is current in this thread.
pub(super) struct Current<'a> {
    pushed: Option<&'a Driver>,
}

impl Drop for Current<'_> {
    fn drop(&mut self) {
        if let Some(driver) = self.pushed {
            let mut popped = std::ptr::null_mut();
            // SAFETY: takes off what `enter` has pushed in this thread. Fails only where the driver
            // has ended, and then nothing is current.
            let _code = unsafe { (driver.context_pop)(&raw mut popped) };
        }
    }
}

/// While this lives, calls of this thread are allowed during captures of other work.
pub(super) struct Relaxed<'a> {
    driver: &'a Driver,
    before: c_uint,
}

impl<'a> Relaxed<'a> {
    pub(super) fn enter(driver: &'a Driver) -> Result<Relaxed<'a>, Code> {
        let mut mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED as c_uint;
        // SAFETY: exchanges one integer with this thread's mode.
        unsafe { (driver.capture_exchange_mode)(&raw mut mode) }.check()?;
        Ok(Relaxed { driver, before: mode })
    }
}

impl Drop for Relaxed<'_> {
    fn drop(&mut self) {
        // SAFETY: gives the thread the mode back that it had.
        let _code = unsafe { (self.driver.capture_exchange_mode)(&raw mut self.before) };
    }
}
