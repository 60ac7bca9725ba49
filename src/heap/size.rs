//! Sizes: how a request is rounded, which arena serves it, and which bin a block belongs to.

use crate::units::{Bytes, GRANULE, KIB, MIB, align_up};

/// Large requests below this share segments of one size.
const OWN_SEGMENT: Bytes = 10 * MIB;

/// Requests of at most this many bytes live in the small arena, as in PyTorch (`kSmallSize`).
pub(crate) const SMALL_MAX: Bytes = MIB;
/// The unit of the small arena, PyTorch's `kMinBlockSize`.
pub(crate) const SMALL_UNIT: Bytes = 512;
/// The unit of the large arena. A request there is longer than 1 MiB, so that rounding costs under
/// 0.4 %.
pub(crate) const LARGE_UNIT: Bytes = 4 * KIB;

/// The segment that a large request of `bytes` takes, where requests that share one have segments
/// of `shared` bytes. The sizes are PyTorch's.
pub(crate) fn large_segment(bytes: Bytes, shared: Bytes) -> Bytes {
    align_up(if bytes < OWN_SEGMENT { shared.max(bytes) } else { bytes }, GRANULE)
}

/// Which blocks are not split, where memory comes as whole segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Whole {
    /// Blocks of so many bytes or more: they serve requests of as many bytes,
    pub(crate) limit: Bytes,
    /// which leave less than this unused.
    pub(crate) rounding: Bytes,
    /// The segments that requests share, which may be as long as the limit and are split.
    pub(crate) shared: Bytes,
}

/// Where requests of one kind live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ArenaKind {
    /// Requests of up to [`SMALL_MAX`].
    Small = 0,
    /// All others.
    Large = 1,
}

impl ArenaKind {
    pub(crate) const ALL: [ArenaKind; 2] = [ArenaKind::Small, ArenaKind::Large];

    /// The arena that serves a request of `bytes`.
    #[inline]
    pub(crate) fn of(bytes: Bytes) -> ArenaKind {
        if bytes <= SMALL_MAX { ArenaKind::Small } else { ArenaKind::Large }
    }

    /// log2 of the addresses in which no more than one block starts that is handed out or kept
    /// aside: each is as long as the shortest request of the arena, or longer.
    #[inline]
    pub(crate) fn unit_shift(self) -> u32 {
        match self {
            ArenaKind::Small => SMALL_UNIT.trailing_zeros(),
            ArenaKind::Large => SMALL_MAX.trailing_zeros(),
        }
    }

    /// How many block starts fit into one granule.
    pub(crate) fn starts_per_granule(self) -> usize {
        (GRANULE >> self.unit_shift()) as usize
    }
}

/// The number of size classes of the small arena: one a unit up to 16 KiB, then 16 a power of two.
/// A block is up to 6 % longer than its request for that, and 3 % on average; small requests are
/// under 1.5 % of what recorded models have live at their peak (4 % on a server), so that it comes
/// to less than 0.02 % of the memory. In return, most blocks fit the next request of their size.
pub(crate) const CLASSES: usize = 128;
/// The class of every large request.
pub(crate) const LARGE_CLASS: u8 = 128;

/// The class of each number of units, less one. A look-up costs a third of the computation.
static CLASS_OF_UNITS: [u8; (SMALL_MAX / SMALL_UNIT) as usize] = classes_of_units();

const fn classes_of_units() -> [u8; (SMALL_MAX / SMALL_UNIT) as usize] {
    let mut classes = [0; (SMALL_MAX / SMALL_UNIT) as usize];
    let mut units = 0;
    while units < classes.len() {
        let shift = (units | 31).ilog2() - 4;
        classes[units] = (shift as usize * 16 + (units >> shift)) as u8;
        units += 1;
    }
    classes
}

/// The size class of a request of 1 byte to [`SMALL_MAX`].
#[inline(always)]
pub(crate) fn class_of(bytes: Bytes) -> u8 {
    debug_assert!(bytes > 0 && bytes <= SMALL_MAX);
    CLASS_OF_UNITS[((bytes - 1) >> SMALL_UNIT.trailing_zeros()) as usize]
}

/// The size of the blocks of a class, in bytes.
#[inline]
pub(crate) const fn class_bytes(class: u8) -> Bytes {
    let class = class as u64;
    if class < 32 {
        return (class + 1) * SMALL_UNIT;
    }
    let shift = class / 16 - 1;
    ((class - shift * 16 + 1) << shift) * SMALL_UNIT
}

/// The same by a look-up, which for the hot path costs less.
#[inline(always)]
pub(crate) fn class_bytes_of(class: u8) -> Bytes {
    Bytes::from(BYTES_OF_CLASS[usize::from(class)])
}

/// A class is a byte, so that none is out of bounds.
static BYTES_OF_CLASS: [u32; 256] = bytes_of_classes();

const fn bytes_of_classes() -> [u32; 256] {
    let mut bytes = [0; 256];
    let mut class = 0;
    while class < CLASSES {
        bytes[class] = class_bytes(class as u8) as u32;
        class += 1;
    }
    bytes
}

/// How many of the next larger classes have blocks that are at most an eighth longer.
#[inline]
pub(crate) fn classes_near(class: u8) -> u8 {
    ((class + 1) / 8).min(2).min(LARGE_CLASS - 1 - class)
}

/// The size at which a request is served, or nearly; at least one unit.
#[inline]
pub(crate) fn rounded(bytes: Bytes) -> Bytes {
    match ArenaKind::of(bytes) {
        ArenaKind::Small => class_bytes(class_of(bytes.max(1))),
        ArenaKind::Large => rounded_large(bytes),
    }
}

/// The size at which a large request is served.
#[inline(always)]
pub(crate) fn rounded_large(bytes: Bytes) -> Bytes {
    align_up(bytes, LARGE_UNIT)
}

/// How sizes are rounded up before that: into how many equal steps each power of two is divided, by
/// size class (below 2 MiB, then each power of two); 0 or 1 leaves sizes alone. PyTorch's
/// `roundup_power2_divisions`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Divisions([u32; 16]);

impl Divisions {
    /// `None` where no class is divided, so that the hot path has one thing to ask.
    pub(crate) fn new(by_class: [u32; 16]) -> Option<Divisions> {
        by_class.iter().any(|&n| n > 1).then_some(Divisions(by_class))
    }

    /// The request rounded up to the next step of its class.
    pub(crate) fn apply(&self, bytes: Bytes) -> Bytes {
        let bytes = align_up(bytes.max(1), SMALL_UNIT);
        let class = (bytes.ilog2().saturating_sub(20)).min(15) as usize;
        let steps = u64::from(self.0[class]);
        if steps <= 1 || bytes <= SMALL_UNIT * steps {
            return bytes;
        }
        let floor = 1u64 << bytes.ilog2();
        align_up(bytes, (floor / steps).max(SMALL_UNIT))
    }
}

/// log2 of how many bins each power of two has: neighbours differ by 3 %.
const SUB_BITS: u32 = 5;
const SUB_BINS: u64 = 1 << SUB_BITS;
/// Bins for blocks of up to 2^47 bytes, the span of an address space.
/// (larger requests share the last bin, and find nothing there).
pub(crate) const BIN_COUNT: usize = 35 * SUB_BINS as usize;

/// The bin of a block of `bytes`: one a unit below 16 KiB, then 32 a power of two.
#[inline]
pub(crate) fn bin_of(bytes: Bytes) -> usize {
    let units = bytes / SMALL_UNIT;
    // How many powers of two it is beyond the first bins: what is left of it by that is below
    // `SUB_BINS` in those, and in each power of two from there to twice that.
    let beyond = (units | SUB_BINS).ilog2() - SUB_BITS;
    let bin = u64::from(beyond) * SUB_BINS + (units >> beyond);
    (bin as usize).min(BIN_COUNT - 1)
}

/// The bin that begins with the blocks of a class.
#[inline(always)]
pub(crate) fn bin_of_class(class: u8) -> usize {
    // Below 32 units each has a class and a bin; from there on there are two bins to a class.
    let class = usize::from(class);
    (class + 1).max((2 * class).saturating_sub(30))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_never_decrease_with_size() {
        let mut last = 0;
        let mut bytes = SMALL_UNIT;
        while bytes < 1 << 46 {
            let bin = bin_of(bytes);
            assert!(bin >= last && bin < BIN_COUNT, "{bytes} bytes in bin {bin} after {last}");
            last = bin;
            bytes += (bytes / 100).max(SMALL_UNIT) / SMALL_UNIT * SMALL_UNIT;
        }
    }

    #[test]
    fn requests_are_rounded_to_the_unit_of_their_arena() {
        assert_eq!(rounded(1), 512);
        assert_eq!(rounded(513), 1024);
        assert_eq!(rounded(0), 512);
        assert_eq!(rounded(MIB), MIB);
        assert_eq!(rounded(MIB + 1), MIB + 4096);
    }

    #[test]
    fn classes_rise_with_size_and_waste_at_most_six_percent() {
        let mut last = 0;
        for bytes in (1..=SMALL_MAX).step_by(37).chain([SMALL_MAX]) {
            let class = class_of(bytes);
            assert!(class == last || class == last + 1, "{bytes} bytes: {class} after {last}");
            last = class;
            let served = class_bytes(class);
            assert!(served >= bytes, "{bytes} bytes in blocks of {served}");
            let exact = align_up(bytes, SMALL_UNIT);
            assert!((served - exact) * 16 <= exact, "{bytes} bytes in blocks of {served}");
            assert_eq!(class_of(served), class);
            assert_eq!(class_bytes_of(class), served);
            assert!(bin_of(served - SMALL_UNIT) < bin_of(served), "a class begins a bin");
            assert_eq!(bin_of_class(class), bin_of(served));
        }
        assert_eq!(last as usize, CLASSES - 1);
    }

    #[test]
    fn divisions_round_to_steps_between_powers_of_two() {
        let mut by_class = [0; 16];
        by_class[0] = 4;
        let divisions = Divisions::new(by_class).unwrap();
        // PyTorch's documentation: 1200 bytes with 4 divisions lie between 1024 and 2048, in steps
        // of 256; below 512 bytes a step the unit wins.
        assert_eq!(divisions.apply(1200), 1536);
        assert_eq!(divisions.apply(1100 * KIB), 1280 * KIB);
        assert_eq!(Divisions::new([1; 16]), None);
    }
}
