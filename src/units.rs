//! Sizes, addresses and identifiers.
//!
//! Byte counts and device addresses are plain 64-bit integers under two names; everything that
//! identifies something is a type of its own, so that a stream cannot be passed where a pool is
//! meant.

/// A number of bytes.
pub type Bytes = u64;

/// An address in a device's (virtual) address space. On the simulated device it is also a host
/// address.
pub type Address = u64;

/// One kibibyte.
pub const KIB: Bytes = 1 << 10;
/// One mebibyte.
pub const MIB: Bytes = 1 << 20;
/// One gibibyte.
pub const GIB: Bytes = 1 << 30;

/// The unit in which physical device memory is handed out and mapped (CUDA's minimum and
/// recommended granularity on every GPU since Volta), and the page of the address-to-block map.
pub const GRANULE: Bytes = 2 * MIB;

/// Requests of this many bytes or more are refused before anything is looked up, as PyTorch does.
pub const MAX_REQUEST: Bytes = 1 << 60;

/// The index of a device, from zero, as CUDA counts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceId(pub i32);

impl DeviceId {
    /// The index as it is used for arrays; `None` where it is negative.
    ///
    /// ```
    /// use plugalloc::DeviceId;
    /// assert_eq!(DeviceId(1).index(), Some(1));
    /// assert_eq!(DeviceId(-1).index(), None);
    /// ```
    pub fn index(self) -> Option<usize> {
        usize::try_from(self.0).ok()
    }
}

impl std::fmt::Display for DeviceId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "device {}", self.0)
    }
}

/// A stream: the value of its `cudaStream_t`. Zero is the legacy default stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub u64);

impl StreamId {
    /// CUDA's legacy default stream.
    pub const DEFAULT: StreamId = StreamId(0);
}

impl std::fmt::Display for StreamId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "stream {:#x}", self.0)
    }
}

/// A memory pool, as PyTorch identifies them: `(0, 0)` is the default pool, `(n, 0)` is made by a
/// graph capture and `(0, n)` by a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct PoolId(pub u64, pub u64);

impl PoolId {
    /// The pool that serves every allocation for which nothing else was asked.
    pub const DEFAULT: PoolId = PoolId(0, 0);
}

/// The smallest multiple of `align` (a power of two) that is not less than `value`.
///
/// ```
/// assert_eq!(plugalloc::units::align_up(513, 512), 1024);
/// ```
#[inline]
pub const fn align_up(value: u64, align: u64) -> u64 {
    debug_assert!(align.is_power_of_two());
    (value + align - 1) & !(align - 1)
}

/// The largest multiple of `align` (a power of two) that is not more than `value`.
///
/// ```
/// assert_eq!(plugalloc::units::align_down(1023, 512), 512);
/// ```
#[inline]
pub const fn align_down(value: u64, align: u64) -> u64 {
    debug_assert!(align.is_power_of_two());
    value & !(align - 1)
}

/// A byte count as people read it: two decimals and a binary unit, as in PyTorch's messages.
///
/// ```
/// assert_eq!(plugalloc::units::format_bytes(1536 << 20), "1.50 GiB");
/// assert_eq!(plugalloc::units::format_bytes(512), "512 bytes");
/// ```
pub fn format_bytes(bytes: Bytes) -> String {
    let value = bytes as f64;
    if bytes <= KIB {
        format!("{bytes} bytes")
    } else if bytes <= MIB {
        format!("{:.2} KiB", value / KIB as f64)
    } else if bytes <= GIB {
        format!("{:.2} MiB", value / MIB as f64)
    } else {
        format!("{:.2} GiB", value / GIB as f64)
    }
}

/// An array on the heap, filled without a copy of it on the stack.
pub(crate) fn boxed<T, const N: usize>(items: impl Iterator<Item = T>) -> Box<[T; N]> {
    let items: Box<[T]> = items.collect();
    match items.try_into() {
        Ok(array) => array,
        Err(_) => unreachable!("as many items as there are places"),
    }
}

/// Makes room for so many more in a table that only grows. It is four times as long afterwards, and
/// between a kibibyte and a mebibyte sixteen times: copying what is in it, to pages that were never
/// touched, costs more than addresses that are not touched.
pub(crate) fn make_room<T>(table: &mut Vec<T>, more: usize) {
    if table.capacity() - table.len() < more {
        table.reserve_exact(room_for::<T>(table.len(), more));
    }
}

/// How many more there is to be room for in a table that only grows, of so many, when as many as
/// this come to it.
pub(crate) fn room_for<T>(length: usize, more: usize) -> usize {
    const OFTEN_OUTGROWN: std::ops::Range<u64> = KIB..MIB;
    let is_outgrown = OFTEN_OUTGROWN.contains(&((length * size_of::<T>()) as u64));
    let times = if is_outgrown { 16 } else { 4 };
    more.max((times - 1) * length).max(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alignment_keeps_aligned_values() {
        assert_eq!(align_up(1024, 512), 1024);
        assert_eq!(align_down(1024, 512), 1024);
        assert_eq!(align_up(0, 512), 0);
    }

    #[test]
    fn a_table_that_grows_is_copied_a_few_times() {
        let mut table: Vec<u64> = Vec::new();
        let mut rooms = Vec::new();
        for number in 0..1_100_000 {
            make_room(&mut table, 1);
            if rooms.last() != Some(&table.capacity()) {
                rooms.push(table.capacity());
            }
            table.push(number);
        }
        assert_eq!(rooms, [4, 16, 64, 256, 4096, 65_536, 1_048_576, 4_194_304]);
        make_room(&mut table, 20_000_000);
        assert!(table.capacity() >= 21_100_000);
    }

    #[test]
    fn sizes_change_unit_after_the_boundary() {
        assert_eq!(format_bytes(1024), "1024 bytes");
        assert_eq!(format_bytes(1025), "1.00 KiB");
        assert_eq!(format_bytes(2 * MIB), "2.00 MiB");
    }
}
