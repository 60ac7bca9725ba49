//! The table of keys. A new option is a field of [`Config`] and one entry here.

use super::Config;
use crate::units::Bytes;

/// One key of the configuration text.
#[derive(Debug)]
pub(super) struct Key {
    /// As users write it.
    pub(super) name: &'static str,
    /// The same key under another name.
    pub(super) alias: Option<&'static str>,
    /// What its value looks like, and the field that it sets.
    pub(super) value: Value,
}

/// A kind of value with the field that it sets. Where there is none, the value is checked and has
/// no effect.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value {
    /// `native`.
    Backend,
    /// `True` or `False`.
    Flag(Option<fn(&mut Config) -> &mut bool>),
    /// `True` or `False`, of [`Config::expandable_segments`], which also knows not to be named.
    Expandable,
    /// A whole number of MiB.
    Mebibytes(Rule, Option<fn(&mut Config) -> &mut Bytes>),
    /// A whole number of MiB, where the field also knows "no limit", which has no text.
    MebibyteLimit(fn(&mut Config) -> &mut Option<Bytes>),
    /// A whole number.
    Count(Rule, Option<fn(&mut Config) -> &mut u64>),
    /// A fraction between 0 and 1, where `ends` tells whether 0 and 1 themselves are allowed. A
    /// field that is 0 where 0 is not allowed is off, which has no text.
    Fraction { ends: bool, field: fn(&mut Config) -> &mut f64 },
    /// A number of divisions for all sizes, or a list by size.
    Divisions(fn(&mut Config) -> &mut [u32; 16]),
    /// A fraction of the device's memory, or a size with a unit.
    Share,
    /// A list of names, each with a [`Share`](Value::Share).
    ShareByName,
}

/// What a whole number must obey.
#[derive(Clone, Copy, Debug)]
pub(super) enum Rule {
    /// Nothing.
    Any,
    /// No less than this.
    AtLeast(u64),
    /// Between these, both included.
    Between(u64, u64),
    /// No more than this.
    AtMost(u64),
    /// A power of two between these, both included.
    PowerOfTwo { least: u64, most: u64 },
}

impl Rule {
    /// True where `number` obeys.
    pub(super) fn allows(self, number: u64) -> bool {
        match self {
            Rule::Any => true,
            Rule::AtLeast(least) => number >= least,
            Rule::Between(least, most) => (least..=most).contains(&number),
            Rule::AtMost(most) => number <= most,
            Rule::PowerOfTwo { least, most } => {
                number.is_power_of_two() && (least..=most).contains(&number)
            }
        }
    }
}

impl std::fmt::Display for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Rule::Any => write!(f, "a whole number"),
            Rule::AtLeast(least) => write!(f, "a whole number of at least {least}"),
            Rule::Between(least, most) => write!(f, "a whole number from {least} to {most}"),
            Rule::AtMost(most) => write!(f, "a whole number of at most {most}"),
            Rule::PowerOfTwo { least, most } => {
                write!(f, "a power of two from {least} to {most}")
            }
        }
    }
}

const fn key(name: &'static str, value: Value) -> Key {
    Key { name, alias: None, value }
}

const fn key_or(name: &'static str, alias: &'static str, value: Value) -> Key {
    Key { name, alias: Some(alias), value }
}

/// The keys whose values depend on each other; see `check_relations` in `parse.rs`.
pub(super) const LARGE_SEGMENT: &str = "large_segment_size_mb";
pub(super) const MAX_SPLIT: &str = "max_split_size_mb";
pub(super) const MAX_ROUNDING: &str = "max_non_split_rounding_mb";

/// PyTorch's least; a segment above 1 TiB could not be had from any device.
const SEGMENT_RULE: Rule = Rule::Between(11, 1 << 20);
/// A handle above 1 TiB could not be made by any device.
const HANDLE_RULE: Rule = Rule::PowerOfTwo { least: 2, most: 1 << 20 };
const THREADS_RULE: Rule = Rule::PowerOfTwo { least: 1, most: 128 };

/// Every key, in the order in which a configuration is shown.
pub(super) const KEYS: &[Key] = &[
    key("backend", Value::Backend),
    key(LARGE_SEGMENT, Value::Mebibytes(SEGMENT_RULE, Some(|c| &mut c.large_segment_size))),
    key(MAX_SPLIT, Value::MebibyteLimit(|c| &mut c.max_split_size)),
    key(MAX_ROUNDING, Value::Mebibytes(Rule::Any, Some(|c| &mut c.max_non_split_rounding))),
    key("roundup_power2_divisions", Value::Divisions(|c| &mut c.roundup_power2_divisions)),
    key(
        "garbage_collection_threshold",
        Value::Fraction { ends: false, field: |c| &mut c.garbage_collection_threshold },
    ),
    key("expandable_segments", Value::Expandable),
    key(
        "per_process_memory_fraction",
        Value::Fraction { ends: true, field: |c| &mut c.memory_fraction },
    ),
    key("throw_on_cudamalloc_oom", Value::Flag(Some(|c| &mut c.fail_at_limit))),
    key(
        "graph_capture_record_stream_reuse",
        Value::Flag(Some(|c| &mut c.graph_capture_record_stream_reuse)),
    ),
    key("caching", Value::Flag(Some(|c| &mut c.caching))),
    key("steal", Value::Flag(Some(|c| &mut c.steal))),
    key("moving_percent", Value::Count(Rule::AtMost(100), Some(|c| &mut c.moving_percent))),
    key("max_handle_mb", Value::Mebibytes(HANDLE_RULE, Some(|c| &mut c.max_handle))),
    key("release_idle_ms", Value::Count(Rule::AtMost(1 << 40), Some(|c| &mut c.release_idle_ms))),
    key("gpu_direct_rdma", Value::Flag(Some(|c| &mut c.gpu_direct_rdma))),
    // A driver call holds up nobody here who finds memory at hand, save on the same stream.
    key_or("release_lock_on_cudamalloc", "release_lock_on_hipmalloc", Value::Flag(None)),
    // Address space is reserved as it is needed, whatever these say.
    key("expandable_segments_reserve", Value::Share),
    key("expandable_segments_reserve_by_class", Value::ShareByName),
    // There is no pinned host memory here.
    key_or("pinned_use_cuda_host_register", "pinned_use_hip_host_register", Value::Flag(None)),
    key("pinned_num_register_threads", Value::Count(THREADS_RULE, None)),
    key("pinned_use_background_threads", Value::Flag(None)),
    key("pinned_reserve_segment_size_mb", Value::Mebibytes(Rule::AtLeast(1), None)),
    key("pinned_free_catch_all", Value::Flag(None)),
    key("pinned_max_round_threshold_mb", Value::Mebibytes(Rule::Any, None)),
    key("pinned_max_cached_size_mb", Value::Mebibytes(Rule::Any, None)),
];

/// The place in [`KEYS`] of the key or alias `name`.
pub(super) fn find(name: &str) -> Option<usize> {
    KEYS.iter().position(|key| key.name == name || key.alias == Some(name))
}

/// The name of every key, aliases included, in the order of the table.
///
/// ```
/// assert!(plugalloc::config::key_names().any(|name| name == "expandable_segments"));
/// ```
pub fn key_names() -> impl Iterator<Item = &'static str> {
    KEYS.iter().flat_map(|key| std::iter::once(key.name).chain(key.alias))
}

/// The known key that takes the fewest edits to reach from `name`, unless most of it had to change.
pub(super) fn nearest(name: &str) -> Option<&'static str> {
    let wanted = name.to_ascii_lowercase();
    let (distance, known) =
        key_names().map(|known| (edit_distance(&wanted, known), known)).min()?;
    (distance * 2 <= known.len().min(wanted.len().max(1) * 2)).then_some(known)
}

/// How many insertions, deletions and replacements of a byte turn one word into the other.
fn edit_distance(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in to.bytes().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edit_distance_counts_edits() {
        assert_eq!(edit_distance("steal", "steal"), 0);
        assert_eq!(edit_distance("stael", "steal"), 2);
        assert_eq!(edit_distance("", "steal"), 5);
    }

    #[test]
    fn a_name_unlike_all_keys_has_no_nearest() {
        assert_eq!(nearest("max_split_size"), Some("max_split_size_mb"));
        assert_eq!(nearest("Expandable_Segments"), Some("expandable_segments"));
        assert_eq!(nearest("zzzzqqqqxxxx"), None);
    }

    #[test]
    fn no_name_occurs_twice() {
        let mut names: Vec<_> = key_names().collect();
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]));
    }
}
