//! Contexts, and what a call changes in its thread while it runs.

use std::ffi::{c_int, c_uint};

use cudarc::driver::sys::{CUcontext, CUresult, CUstreamCaptureMode};

use super::driver::{Code, Driver};

/// Where the work of a device goes: its primary context, or one of the program.
#[derive(Clone, Copy, Debug)]
pub(super) struct Context {
    raw: CUcontext,
    /// What tells it from a later context at the same place; drivers before CUDA 12 do not know.
    id: Option<u64>,
}

// SAFETY: a context belongs to the process; the driver lets every thread use it at any time.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl PartialEq for Context {
    fn eq(&self, other: &Context) -> bool {
        (self.raw, self.id) == (other.raw, other.id)
    }
}

impl Context {
    /// The primary context of a device, made if nobody has made it yet.
    pub(super) fn retain(driver: &Driver, ordinal: c_int) -> Result<Context, Code> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: writes one pointer; the driver checks the ordinal.
        unsafe { (driver.context_retain)(&raw mut raw, ordinal) }.check()?;
        Ok(Context { raw, id: id_of(driver, raw)? })
    }

    /// The context that is current in this thread and the device that it belongs to, unless that is
    /// the device's primary one.
    pub(super) fn of_program(driver: &Driver) -> Result<Option<(c_int, Context)>, Code> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: writes one pointer.
        unsafe { (driver.context_current)(&raw mut raw) }.check()?;
        if raw.is_null() {
            return Ok(None);
        }
        let mut ordinal = 0;
        // SAFETY: writes one integer.
        unsafe { (driver.context_device)(&raw mut ordinal) }.check()?;
        let (mut flags, mut active) = (0, 0);
        // SAFETY: writes two integers.
        unsafe { (driver.context_state)(ordinal, &raw mut flags, &raw mut active) }.check()?;
        if active != 0 {
            let primary = Context::retain(driver, ordinal)?;
            Context::release(driver, ordinal);
            if primary.raw == raw {
                return Ok(None);
            }
        }
        Ok(Some((ordinal, Context { raw, id: id_of(driver, raw)? })))
    }

    /// Whether it still is what it was: not destroyed, nor another one in the same place. A context
    /// whose work has failed is alive, and tells of that itself.
    pub(super) fn is_alive(self, driver: &Driver) -> bool {
        match id_of(driver, self.raw) {
            Ok(now) => now == self.id,
            Err(code) => {
                !code.is(CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED)
                    && !code.is(CUresult::CUDA_ERROR_INVALID_CONTEXT)
            }
        }
    }

    /// Takes one `retain` back.
    pub(super) fn release(driver: &Driver, ordinal: c_int) {
        // SAFETY: the caller has retained it, so the count stays right.
        let _code = unsafe { (driver.context_release)(ordinal) };
    }

    /// The driver's pointer.
    pub(super) fn raw(self) -> CUcontext {
        self.raw
    }

    /// Makes the context current in this thread until the result is dropped. Cheap where it is.
    pub(super) fn enter(self, driver: &Driver) -> Result<Current<'_>, Code> {
        let mut current = std::ptr::null_mut();
        // SAFETY: writes one pointer.
        unsafe { (driver.context_current)(&raw mut current) }.check()?;
        if current == self.raw {
            return Ok(Current { pushed: None });
        }
        // SAFETY: the primary context is retained for the life of the process; another one is the
        // program's, whose end the driver tells.
        unsafe { (driver.context_push)(self.raw) }.check()?;
        Ok(Current { pushed: Some(driver) })
    }
}

/// The number of a context, which no other one of this process has, if the driver knows it.
fn id_of(driver: &Driver, context: CUcontext) -> Result<Option<u64>, Code> {
    let Some(context_id) = driver.context_id else {
        return Ok(None);
    };
    let mut id = 0;
    // SAFETY: writes one integer; the driver tells a context that was destroyed.
    unsafe { context_id(context, &raw mut id) }.check()?;
    Ok(Some(id))
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
