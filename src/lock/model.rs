//! The lock in every order of its steps that the memory model allows.

use std::sync::Arc;

use loom::cell::UnsafeCell;
use loom::thread;

use super::*;

/// Counts, and lets the checker watch that each access has seen the one before it.
struct Guarded {
    watched: UnsafeCell<()>,
    count: u32,
}

impl Guarded {
    /// Under a lock: the checker knows it only from its atomics.
    fn behind_a_lock() -> Arc<Mutex<Guarded>> {
        let lock = Mutex::new(Guarded { watched: UnsafeCell::new(()), count: 0 });
        assert!(!lock.is_locked());
        Arc::new(lock)
    }

    fn add(&mut self) {
        self.watched.with_mut(|_| self.count += 1);
    }
}

#[test]
fn holders_take_turns_and_see_what_the_last_one_wrote() {
    loom::model(|| {
        let lock = Guarded::behind_a_lock();
        let other = Arc::clone(&lock);
        let thread = thread::spawn(move || {
            other.lock().add();
            other.lock().add();
        });
        lock.lock().add();
        thread.join().unwrap();
        assert_eq!(lock.lock().count, 3);
    });
}

#[test]
fn three_threads_never_have_it_at_once() {
    loom::model(|| {
        let lock = Guarded::behind_a_lock();
        // Only one waits: waiters that let each other run could go on so for ever, in a model.
        let other = Arc::clone(&lock);
        let waiting = thread::spawn(move || other.lock().add());
        let other = Arc::clone(&lock);
        let trying = thread::spawn(move || other.try_lock().map(|mut held| held.add()).is_some());
        let tried = lock.try_lock().map(|mut held| held.add()).is_some();
        waiting.join().unwrap();
        let counts = 1 + u32::from(tried) + u32::from(trying.join().unwrap());
        assert_eq!(lock.try_lock().map(|held| held.count), Some(counts));
    });
}
