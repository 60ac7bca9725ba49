//! What code that shares memory without a lock is made of: the standard library's atomics and
//! `parking_lot`'s mutex; or, while it is model-checked, [loom](https://docs.rs/loom)'s, which run
//! a test in every order that the memory model allows. `tests/run.sh model` does that.

pub(crate) use std::sync::atomic::Ordering;

#[cfg(all(test, loom))]
pub(crate) use self::checked::*;
#[cfg(not(all(test, loom)))]
pub(crate) use self::real::*;

/// Whether this is for the model checker: tables are small then, since it tries all there is.
pub(crate) const MODEL: bool = cfg!(all(test, loom));

#[cfg(not(all(test, loom)))]
mod real {
    pub(crate) use std::hint::spin_loop;
    pub(crate) use std::sync::OnceLock;
    pub(crate) use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize};
    pub(crate) use std::thread::{sleep, yield_now};

    pub(crate) use parking_lot::{Mutex, MutexGuard};
}

/// The same names over loom's.
#[cfg(all(test, loom))]
#[allow(clippy::expect_used, reason = "a test fails by panicking")]
mod checked {
    use std::sync::atomic::Ordering;
    use std::time::Duration;

    pub(crate) use loom::hint::spin_loop;
    pub(crate) use loom::sync::MutexGuard;
    pub(crate) use loom::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize};
    pub(crate) use loom::thread::yield_now;

    /// Time does not pass in a model: others go on.
    pub(crate) fn sleep(_: Duration) {
        yield_now();
    }

    /// Can be made in a constant, as the standard one: loom hears of it at its first use, which
    /// therefore comes before it is shared.
    #[derive(Debug)]
    pub(crate) struct AtomicBool {
        at_first: bool,
        made: std::sync::OnceLock<loom::sync::atomic::AtomicBool>,
    }

    impl AtomicBool {
        pub(crate) const fn new(value: bool) -> Self {
            AtomicBool { at_first: value, made: std::sync::OnceLock::new() }
        }

        fn made(&self) -> &loom::sync::atomic::AtomicBool {
            self.made.get_or_init(|| loom::sync::atomic::AtomicBool::new(self.at_first))
        }

        pub(crate) fn load(&self, order: Ordering) -> bool {
            self.made().load(order)
        }

        pub(crate) fn store(&self, value: bool, order: Ordering) {
            self.made().store(value, order);
        }

        pub(crate) fn compare_exchange(
            &self,
            current: bool,
            new: bool,
            success: Ordering,
            failure: Ordering,
        ) -> Result<bool, bool> {
            self.made().compare_exchange(current, new, success, failure)
        }
    }

    /// What loom lacks. Whoever reads a value has seen all that came before it was set, as with the
    /// standard one; only one thread at a time may set it.
    #[derive(Debug)]
    pub(crate) struct OnceLock<T> {
        is_set: loom::sync::atomic::AtomicBool,
        value: std::sync::OnceLock<T>,
    }

    impl<T> OnceLock<T> {
        pub(crate) fn new() -> Self {
            let is_set = loom::sync::atomic::AtomicBool::new(false);
            OnceLock { is_set, value: std::sync::OnceLock::new() }
        }

        pub(crate) fn get(&self) -> Option<&T> {
            if self.is_set.load(Ordering::Acquire) { self.value.get() } else { None }
        }

        pub(crate) fn set(&self, value: T) -> Result<(), T> {
            self.value.set(value)?;
            self.is_set.store(true, Ordering::Release);
            Ok(())
        }

        pub(crate) fn get_or_init(&self, value: impl FnOnce() -> T) -> &T {
            if self.get().is_none() {
                let _ = self.set(value());
            }
            self.get().expect("only one thread at a time sets it")
        }
    }

    /// With the signatures of `parking_lot`'s.
    #[derive(Debug)]
    pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Mutex(loom::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().expect("no test goes on after a panic")
        }

        pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
            self.0.try_lock().ok()
        }

        pub(crate) fn into_inner(self) -> T {
            self.0.into_inner().expect("no test goes on after a panic")
        }
    }
}
