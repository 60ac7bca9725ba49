//! The search for the least capacity in which a trace completes.

use plugalloc::Bytes;
use plugalloc::units::{GRANULE, align_up};

/// The search ends where it has the answer to this share of the live peak.
const RESOLUTION: Bytes = 2000;

/// The least capacity for which `probe` gives something, with what it gave; `None` where even
/// `most` does not suffice. `live_peak` is less than the answer or equal to it, `reserved_peak` is
/// where it is expected. Every capacity that is returned was probed.
///
/// # Errors
/// The first error of `probe`.
pub(crate) fn least_capacity<T, E>(
    live_peak: Bytes,
    reserved_peak: Bytes,
    most: Bytes,
    mut probe: impl FnMut(Bytes) -> Result<Option<T>, E>,
) -> Result<Option<(Bytes, T)>, E> {
    // Memory comes in granules, so nothing below the next one can suffice.
    let mut low = align_up(live_peak.max(1), GRANULE).min(most);
    if let Some(found) = probe(low)? {
        return Ok(Some((low, found)));
    }
    let mut high = reserved_peak.clamp(low, most);
    let mut best = loop {
        match probe(high)? {
            Some(found) => break found,
            None if high == most => return Ok(None),
            // What sufficed with room to spare may not do so without: look further up.
            None => {
                low = high;
                high = high.saturating_add(high / 16 + GRANULE).min(most);
            }
        }
    };
    while high - low > (live_peak / RESOLUTION).max(1) {
        let middle = low + (high - low) / 2;
        match probe(middle)? {
            Some(found) => (high, best) = (middle, found),
            None => low = middle,
        }
    }
    Ok(Some((high, best)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use plugalloc::units::{GIB, MIB};

    /// Searches where `answer` suffices, and returns what was found with the number of probes.
    fn search(live: Bytes, reserved: Bytes, most: Bytes, answer: Bytes) -> (Option<Bytes>, u32) {
        let mut probes = 0;
        let found = least_capacity(live, reserved, most, |capacity| {
            probes += 1;
            Ok::<_, ()>((capacity >= answer).then_some(capacity))
        });
        let found = found.unwrap().map(|(capacity, probed)| {
            assert_eq!(capacity, probed, "the result of the least probe is returned");
            capacity
        });
        (found, probes)
    }

    #[test]
    fn a_perfect_fit_takes_one_probe() {
        let live = 5 * GIB + 17;
        assert_eq!(search(live, 6 * GIB, 200 * GIB, live), (Some(5 * GIB + 2 * MIB), 1));
    }

    #[test]
    fn the_answer_is_within_the_resolution() {
        let (live, answer) = (5 * GIB, 5 * GIB + 123 * MIB);
        let (found, probes) = search(live, 6 * GIB, 200 * GIB, answer);
        let found = found.unwrap();
        assert!(found >= answer && found - answer <= live / RESOLUTION, "{found}");
        assert!(probes < 15, "{probes}");
    }

    #[test]
    fn an_answer_above_the_reserved_peak_is_found() {
        let (live, answer) = (5 * GIB, 8 * GIB);
        let found = search(live, 6 * GIB, 200 * GIB, answer).0.unwrap();
        assert!(found >= answer && found - answer <= live / RESOLUTION, "{found}");
    }

    #[test]
    fn nothing_is_found_where_the_most_does_not_suffice() {
        assert_eq!(search(5 * GIB, 6 * GIB, 7 * GIB, 8 * GIB).0, None);
        assert_eq!(search(5 * GIB, 6 * GIB, 4 * GIB, 8 * GIB).0, None);
    }

    #[test]
    fn a_trace_of_nothing_takes_one_granule() {
        assert_eq!(search(0, 0, GIB, 0).0, Some(GRANULE));
    }
}
