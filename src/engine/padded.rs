//! Values that are written apart from those that every call reads.

/// A value with cache lines of its own: what is written under a lock on the slow path must not take
/// the lines away from the threads that read their neighbours on the hot path. Two lines of 64
/// bytes, since processors fetch them in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Padded<T>(pub(crate) T);

impl<T> std::ops::Deref for Padded<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> std::ops::DerefMut for Padded<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}
