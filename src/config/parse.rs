//! The text form of a [`Config`], and the environment variables that hold it.
//!
//! # Syntax
//!
//! `key:value,key:[a:b,c:d]`. Whitespace around keys, values and separators is ignored. A boolean
//! is exactly `True` or `False`. A number is of digits, with no sign; a fraction may have a point
//! and an exponent. A key may stand once. Whatever breaks these rules is a [`ConfigError`] with the
//! key, the byte at which reading stopped, what was found there and what would be right; nothing is
//! skipped.
//!
//! # Keys
//!
//! | key | value | default | meaning |
//! |---|---|---|---|
//! | `backend` | `native` | `native` | accepted for PyTorch's sake; `cudaMallocAsync` is refused |
//! | `large_segment_size_mb` | MiB, 11 to 1048576 | 20 | [`Config::large_segment_size`] |
//! | `max_split_size_mb` | MiB, at least the large segment's | no limit | [`Config::max_split_size`] |
//! | `max_non_split_rounding_mb` | MiB, at least the large segment's | the large segment's | [`Config::max_non_split_rounding`] |
//! | `roundup_power2_divisions` | 0, a power of two, or `[256:1,512:2,>:8]` | 0 | [`Config::roundup_power2_divisions`] |
//! | `garbage_collection_threshold` | above 0, below 1 | off | [`Config::garbage_collection_threshold`] |
//! | `expandable_segments` | boolean | `True` | [`Config::expandable_segments`], and with tools ([`Config::expandable_with_tools`]) only where it is written |
//! | `per_process_memory_fraction` | 0 to 1 | 1 | [`Config::memory_fraction`] |
//! | `throw_on_cudamalloc_oom` | boolean | `False` | [`Config::fail_at_limit`] |
//! | `graph_capture_record_stream_reuse` | boolean | `False` | no effect: [`Config::graph_capture_record_stream_reuse`] |
//! | `caching` | boolean | `True` | [`Config::caching`] |
//! | `steal` | boolean | `True` | [`Config::steal`] |
//! | `moving_percent` | a whole number up to 100 | 33 | [`Config::moving_percent`] |
//! | `max_handle_mb` | MiB, a power of two from 2 to 1048576 | 64 | [`Config::max_handle`] |
//! | `release_idle_ms` | a whole number up to 2^40 | 0 | [`Config::release_idle_ms`] |
//! | `gpu_direct_rdma` | boolean | `False` | [`Config::gpu_direct_rdma`] |
//! | `release_lock_on_cudamalloc`, `release_lock_on_hipmalloc` | boolean | | no effect: a driver call holds up no other stream that finds memory at hand |
//! | `expandable_segments_reserve` | fraction, or size such as `40G` | | no effect: addresses are reserved as needed |
//! | `expandable_segments_reserve_by_class` | `[name:0.25,other:40G]` | | no effect, as above |
//! | `pinned_use_cuda_host_register`, `pinned_use_hip_host_register` | boolean | | no effect: there is no pinned host memory here, so too for all below |
//! | `pinned_num_register_threads` | a power of two up to 128 | | |
//! | `pinned_use_background_threads` | boolean | | |
//! | `pinned_reserve_segment_size_mb` | MiB, at least 1 | | |
//! | `pinned_free_catch_all` | boolean | | |
//! | `pinned_max_round_threshold_mb` | MiB | | |
//! | `pinned_max_cached_size_mb` | MiB | | |
//!
//! In a list of `roundup_power2_divisions` each pair is a size in MiB and the divisions of the
//! sizes from there to its double; the first pair holds for smaller sizes too, `>` for all larger
//! ones, and a size that is skipped is not rounded.

use std::ffi::OsString;

use super::keys::{KEYS, LARGE_SEGMENT, MAX_ROUNDING, MAX_SPLIT, find, nearest};
use super::scan::{Scanner, Token, Word};
use super::{Config, value};
use crate::error::ConfigError;
use crate::units::MIB;

/// The variables that may hold a configuration, the first that is set first.
pub const VARIABLES: [&str; 3] =
    ["PLUGALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"];

/// The variable that turns caching off where it is set to anything but nothing or `0`.
pub const NO_CACHING_VARIABLE: &str = "PYTORCH_NO_CUDA_MEMORY_CACHING";

/// The variable in which a tool that speaks NVTX leaves the path of its library.
pub const NVTX_VARIABLE: &str = "NVTX_INJECTION64_PATH";

/// The library of the tool that wants to be told of memory, if there is one.
pub(crate) fn nvtx_injection() -> Option<OsString> {
    std::env::var_os(NVTX_VARIABLE).filter(|path| !path.is_empty())
}

/// Where each key of the table begins in the text, for those that occur.
type Positions = [Option<usize>; KEYS.len()];

impl Config {
    /// The defaults, changed as the text says.
    ///
    /// ```
    /// use plugalloc::Config;
    /// let config = Config::parse("max_split_size_mb:64, caching:False")?;
    /// assert_eq!(config.max_split_size, Some(64 << 20));
    /// assert!(!config.caching);
    ///
    /// let error = Config::parse("expandible_segments:True").unwrap_err();
    /// assert!(error.to_string().contains("did you mean 'expandable_segments'"));
    /// # Ok::<(), plugalloc::error::ConfigError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The first breach of the syntax, the first unknown or repeated key, or the first value out of
    /// range.
    pub fn parse(text: &str) -> Result<Config, ConfigError> {
        let mut config = Config::default();
        config.apply(text)?;
        Ok(config)
    }

    /// Changes what the text names and keeps the rest, except that `max_non_split_rounding` follows
    /// `large_segment_size` as long as the two were equal.
    ///
    /// ```
    /// use plugalloc::Config;
    /// let mut config = Config::parse("steal:False")?;
    /// assert!(config.apply("caching:False,steal:Maybe").is_err());
    /// assert!(config.caching, "a text with an error changes nothing");
    /// # Ok::<(), plugalloc::error::ConfigError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`parse`](Config::parse); nothing is changed then.
    pub fn apply(&mut self, text: &str) -> Result<(), ConfigError> {
        let mut next = self.clone();
        let positions = read_pairs(text, &mut next)?;
        let is_set = |name| find(name).is_some_and(|index| positions[index].is_some());
        let followed = self.max_non_split_rounding == self.large_segment_size;
        if followed && is_set(LARGE_SEGMENT) && !is_set(MAX_ROUNDING) {
            next.max_non_split_rounding = next.large_segment_size;
        }
        check_relations(&next, &positions)?;
        *self = next;
        Ok(())
    }

    /// The defaults, changed as the environment says: by the first of [`VARIABLES`] that is set,
    /// even if to nothing, and then by [`NO_CACHING_VARIABLE`], which turns caching off.
    ///
    /// # Errors
    ///
    /// As [`parse`](Config::parse), with the variable named; also where its value is not UTF-8.
    pub fn from_environment() -> Result<Config, ConfigError> {
        from_variables(|name| std::env::var_os(name))
    }

    /// The options in force as a text that [`parse`](Config::parse) turns into an equal `Config`.
    ///
    /// Every key that has an effect is written, save those that are off and have no word for it,
    /// and `expandable_segments:True` where that is not to hold under tools.
    /// Sizes that are no multiple of 1 MiB, which only a program can set, are written rounded down.
    ///
    /// ```
    /// use plugalloc::Config;
    /// let config = Config::parse("roundup_power2_divisions:[256:2,>:4]")?;
    /// assert_eq!(Config::parse(&config.to_text())?, config);
    /// # Ok::<(), plugalloc::error::ConfigError>(())
    /// ```
    pub fn to_text(&self) -> String {
        let mut config = self.clone();
        let pairs = KEYS.iter().filter_map(|key| {
            Some(format!("{}:{}", key.name, value::show(key.value, &mut config)?))
        });
        pairs.collect::<Vec<_>>().join(",")
    }

    /// Fails where a field holds a value that its key would refuse, by itself or beside others:
    /// fields can be set to anything.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let read = read_pairs(&self.to_text(), &mut Config::default());
        read.and_then(|positions| check_relations(self, &positions)).map_err(|mut error| {
            // Nobody wrote the text that the position is in.
            error
                .problem
                .push_str(" (a field that the program set; the position is that in to_text)");
            error
        })
    }
}

/// Reads every pair of the text into `config`.
fn read_pairs(text: &str, config: &mut Config) -> Result<Positions, ConfigError> {
    let mut scanner = Scanner::new(text);
    let mut positions: Positions = [None; KEYS.len()];
    if scanner.peek().0 == Token::End {
        return Ok(positions);
    }
    loop {
        scanner.set_key("");
        let word = scanner.word("a key")?;
        scanner.set_key(word.text);
        let index = find(word.text).ok_or_else(|| unknown_key(&scanner, word))?;
        if let Some(first) = positions[index].replace(word.position) {
            let problem = format!("the key stands at position {first} already");
            return Err(scanner.error(word.position, problem, "each key once"));
        }
        scanner.separator(':')?;
        value::read(KEYS[index].value, &mut scanner, config)?;
        if scanner.peek().0 == Token::End {
            return Ok(positions);
        }
        scanner.separator(',')?;
    }
}

fn unknown_key(scanner: &Scanner<'_>, word: Word<'_>) -> ConfigError {
    let expected = match nearest(word.text) {
        Some(known) => format!("a known key (did you mean '{known}'?)"),
        None => {
            let names: Vec<_> = KEYS.iter().map(|key| key.name).collect();
            format!("one of {}", names.join(", "))
        }
    };
    scanner.error(word.position, "unknown key", &expected)
}

/// Checks what no value can be checked for alone: the two limits of large blocks against the
/// segment.
fn check_relations(config: &Config, positions: &Positions) -> Result<(), ConfigError> {
    let segment_mib = config.large_segment_size / MIB;
    let limits =
        [(MAX_SPLIT, config.max_split_size), (MAX_ROUNDING, Some(config.max_non_split_rounding))];
    for (name, limit) in limits {
        let position = [name, LARGE_SEGMENT]
            .iter()
            .find_map(|key| find(key).and_then(|index| positions[index]));
        // A relation that the text does not touch is none of its faults.
        let (Some(limit), Some(position)) = (limit, position) else {
            continue;
        };
        if limit < config.large_segment_size {
            return Err(ConfigError {
                key: name.to_owned(),
                position,
                problem: format!("{} MiB is too small", limit / MIB),
                expected: format!("at least {segment_mib}, the value of {LARGE_SEGMENT}"),
            });
        }
    }
    Ok(())
}

/// [`Config::from_environment`] over any set of variables.
fn from_variables(lookup: impl Fn(&str) -> Option<OsString>) -> Result<Config, ConfigError> {
    let mut config = Config::default();
    let set = VARIABLES.iter().find_map(|name| lookup(name).map(|text| (name, text)));
    if let Some((name, text)) = set {
        let text = text.into_string().map_err(|_| ConfigError {
            key: String::new(),
            position: 0,
            problem: format!("{name} is not UTF-8"),
            expected: "text".to_owned(),
        })?;
        config.apply(&text).map_err(|error| ConfigError {
            problem: format!("{} (in {name})", error.problem),
            ..error
        })?;
    }
    if lookup(NO_CACHING_VARIABLE).is_some_and(|value| !value.is_empty() && value != "0") {
        config.caching = false;
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
        from_variables(|name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, text)| OsString::from(text))
        })
    }

    #[test]
    fn first_variable_that_is_set_wins() {
        let own = ("PLUGALLOC_CONF", "max_handle_mb:2");
        let cuda = ("PYTORCH_CUDA_ALLOC_CONF", "max_handle_mb:4");
        let newer = ("PYTORCH_ALLOC_CONF", "max_handle_mb:8");
        assert_eq!(with(&[newer, cuda, own]).unwrap().max_handle, 2 * MIB);
        assert_eq!(with(&[newer, cuda]).unwrap().max_handle, 4 * MIB);
        assert_eq!(with(&[newer]).unwrap().max_handle, 8 * MIB);
        assert_eq!(with(&[("PLUGALLOC_CONF", ""), cuda]).unwrap(), Config::default());
        assert_eq!(with(&[]).unwrap(), Config::default());
    }

    #[test]
    fn caching_is_turned_off_by_its_variable() {
        let caching = |value| with(&[(NO_CACHING_VARIABLE, value)]).unwrap().caching;
        assert!(!caching("1"));
        assert!(caching("0"));
        assert!(caching(""));
    }

    #[test]
    fn errors_name_the_variable() {
        let error = with(&[("PYTORCH_ALLOC_CONF", "steal:true")]).unwrap_err();
        assert_eq!((error.key.as_str(), error.position), ("steal", 6));
        assert!(error.to_string().contains("PYTORCH_ALLOC_CONF"), "{error}");
    }
}
