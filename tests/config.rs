//! The configuration text: what is read, what is refused and where, and the way back to text.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use plugalloc::config::key_names;
use plugalloc::error::ConfigError;
use plugalloc::units::MIB;
use plugalloc::{Allocator, Config, Error};

fn parse(text: &str) -> Config {
    Config::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn refuse(text: &str) -> ConfigError {
    match Config::parse(text) {
        Ok(config) => panic!("{text} was read as {config:?}"),
        Err(error) => error,
    }
}

/// A text, the key at fault, the position, and a part of the message.
fn assert_refused(text: &str, key: &str, position: usize, part: &str) {
    let error = refuse(text);
    assert_eq!((error.key.as_str(), error.position), (key, position), "{text}: {error}");
    assert!(error.to_string().contains(part), "{text}: {error}");
}

#[test]
fn nothing_gives_the_defaults() {
    assert_eq!(parse(""), Config::default());
    assert_eq!(parse(" \t\n"), Config::default());
}

#[test]
fn every_key_sets_its_field() {
    let config = parse(
        "backend:native,large_segment_size_mb:32,max_split_size_mb:64,max_non_split_rounding_mb:48,\
         roundup_power2_divisions:8,garbage_collection_threshold:0.8,expandable_segments:False,\
         per_process_memory_fraction:0.5,throw_on_cudamalloc_oom:True,\
         graph_capture_record_stream_reuse:True,caching:False,steal:False,moving_percent:8,\
         max_handle_mb:16,release_idle_ms:250,gpu_direct_rdma:True",
    );
    assert_eq!(config.large_segment_size, 32 * MIB);
    assert_eq!(config.max_split_size, Some(64 * MIB));
    assert_eq!(config.max_non_split_rounding, 48 * MIB);
    assert_eq!(config.roundup_power2_divisions, [8; 16]);
    assert_eq!(config.garbage_collection_threshold, 0.8);
    assert_eq!(config.memory_fraction, 0.5);
    assert_eq!((config.max_handle, config.release_idle_ms), (16 * MIB, 250));
    assert_eq!(config.moving_percent, 8);
    assert!(config.fail_at_limit && config.graph_capture_record_stream_reuse);
    assert!(config.gpu_direct_rdma);
    assert!(!config.expandable_segments && !config.caching && !config.steal);
}

#[test]
fn keys_without_effect_are_read_and_change_nothing() {
    for pair in [
        "release_lock_on_cudamalloc:True",
        "release_lock_on_hipmalloc:False",
        "expandable_segments_reserve:0.5",
        "expandable_segments_reserve:40G",
        "expandable_segments_reserve_by_class:[main:0.25,side:1.5G]",
        "expandable_segments_reserve_by_class:[]",
        "pinned_use_cuda_host_register:True",
        "pinned_use_hip_host_register:True",
        "pinned_num_register_threads:128",
        "pinned_use_background_threads:True",
        "pinned_reserve_segment_size_mb:1",
        "pinned_free_catch_all:True",
        "pinned_max_round_threshold_mb:0",
        "pinned_max_cached_size_mb:4",
    ] {
        assert_eq!(parse(pair), Config::default(), "{pair}");
    }
}

#[test]
fn whitespace_between_tokens_is_ignored() {
    assert_eq!(parse(" steal : False ,\n max_handle_mb: 4 "), parse("steal:False,max_handle_mb:4"));
}

#[test]
fn separators_are_checked() {
    assert_refused("steal;True", "steal;True", 0, "unknown key");
    assert_refused("steal", "steal", 5, "the text ends; expected ':'");
    assert_refused("steal,True", "steal", 5, "expected ':'");
    assert_refused("steal:", "steal", 6, "expected True or False");
    assert_refused("steal:True caching:True", "steal", 11, "expected ','");
    assert_refused("steal:True:False", "steal", 10, "expected ','");
    assert_refused("steal:[True]", "steal", 6, "expected True or False");
    assert_refused("steal:True,", "", 11, "the text ends; expected a key");
    assert_refused(",steal:True", "", 0, "found ','; expected a key");
    assert_refused("steal:True,,caching:True", "", 11, "expected a key");
}

#[test]
fn booleans_are_exact() {
    for word in ["true", "TRUE", "1", "yes", "Tru"] {
        assert_refused(&format!("caching:{word}"), "caching", 8, "expected True or False");
    }
}

#[test]
fn unknown_keys_are_named_with_the_nearest() {
    assert_refused("steal:True,max_split_size:20", "max_split_size", 11, "'max_split_size_mb'");
    assert_refused("Caching:True", "Caching", 0, "did you mean 'caching'?");
    assert_refused("zzzzqqqqxxxx:1", "zzzzqqqqxxxx", 0, "one of backend, ");
}

#[test]
fn repeated_keys_are_refused_with_both_positions() {
    assert_refused("steal:True,steal:True", "steal", 11, "position 0 already");
    let alias = "release_lock_on_cudamalloc:True,release_lock_on_hipmalloc:True";
    assert_refused(alias, "release_lock_on_hipmalloc", 32, "position 0 already");
}

#[test]
fn numbers_have_no_sign_no_garbage_and_no_overflow() {
    for word in ["+64", "-64", "64MB", "6_4", "0x40", "6.4", "sixty"] {
        assert_refused(&format!("max_handle_mb:{word}"), "max_handle_mb", 14, "whole number");
    }
    let digits = "max_split_size_mb:99999999999999999999";
    assert_refused(digits, "max_split_size_mb", 18, "64 bits");
    let bytes = "max_split_size_mb:17592186044416";
    assert_refused(bytes, "max_split_size_mb", 18, "at most 17592186044415 MiB");
    assert_eq!(
        parse("max_split_size_mb:17592186044415").max_split_size,
        Some(u64::MAX - (MIB - 1))
    );
    for word in ["-0.5", "+0.5", "inf", "nan", "0.5x", "", ".", "1e999"] {
        let text = format!("per_process_memory_fraction:{word}");
        assert_eq!(refuse(&text).key, "per_process_memory_fraction", "{text}");
    }
    assert_eq!(parse("per_process_memory_fraction:5e-1").memory_fraction, 0.5);
}

#[test]
fn ranges_are_checked() {
    assert_refused(
        "large_segment_size_mb:10",
        "large_segment_size_mb",
        22,
        "a whole number from 11 to 1048576",
    );
    assert_refused("large_segment_size_mb:1048577", "large_segment_size_mb", 22, "to 1048576");
    for fraction in ["0", "1", "1.5", "0.0"] {
        let text = format!("garbage_collection_threshold:{fraction}");
        assert_refused(&text, "garbage_collection_threshold", 29, "above 0 and below 1");
    }
    assert_eq!(parse("per_process_memory_fraction:0").memory_fraction, 0.0);
    assert_eq!(parse("per_process_memory_fraction:1").memory_fraction, 1.0);
    let above = "per_process_memory_fraction:1.01";
    assert_refused(above, "per_process_memory_fraction", 28, "from 0 to 1");
    for number in ["0", "1", "3", "2097152"] {
        let text = format!("max_handle_mb:{number}");
        assert_refused(&text, "max_handle_mb", 14, "a power of two from 2");
    }
    for number in ["0", "3", "256"] {
        let text = format!("pinned_num_register_threads:{number}");
        assert_refused(&text, "pinned_num_register_threads", 28, "from 1 to 128");
    }
    let reserve = "pinned_reserve_segment_size_mb:0";
    assert_refused(reserve, "pinned_reserve_segment_size_mb", 31, "at least 1");
    assert_refused("expandable_segments_reserve:0", "expandable_segments_reserve", 28, "above 0");
    assert_refused("expandable_segments_reserve:4X", "expandable_segments_reserve", 28, "40G");
}

#[test]
fn limits_of_large_blocks_are_checked_against_the_segment() {
    assert_refused("max_split_size_mb:19", "max_split_size_mb", 0, "at least 20");
    assert_refused("max_non_split_rounding_mb:19", "max_non_split_rounding_mb", 0, "at least 20");
    let later = "max_split_size_mb:20,large_segment_size_mb:32";
    assert_refused(later, "max_split_size_mb", 0, "at least 32");
    assert_eq!(
        parse("max_split_size_mb:12,large_segment_size_mb:12").max_split_size,
        Some(12 * MIB)
    );
}

#[test]
fn rounding_follows_the_large_segment_until_it_is_set() {
    assert_eq!(parse("large_segment_size_mb:32").max_non_split_rounding, 32 * MIB);
    let mut config = parse("max_non_split_rounding_mb:40");
    config.apply("large_segment_size_mb:32").unwrap();
    assert_eq!(config.max_non_split_rounding, 40 * MIB);
    let error = config.apply("large_segment_size_mb:64").unwrap_err();
    assert_eq!((error.key.as_str(), error.position), ("max_non_split_rounding_mb", 0));
}

#[test]
fn other_backends_are_refused() {
    assert_refused("backend:cudaMallocAsync", "backend", 8, "plugalloc itself is the backend");
    assert_refused("backend:other", "backend", 8, "unknown backend 'other'");
}

#[test]
fn divisions_are_read_by_size() {
    let config = parse("roundup_power2_divisions:[256:1,512:2,1024:4,>:8]");
    let expected = [1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 4, 8, 8, 8, 8, 8];
    assert_eq!(config.roundup_power2_divisions, expected);
    let gap = parse("roundup_power2_divisions:[1:2,4:8]").roundup_power2_divisions;
    assert_eq!(gap[..4], [2, 0, 8, 0]);
    assert_eq!(parse("roundup_power2_divisions:[>:4]").roundup_power2_divisions, [4; 16]);
    assert_eq!(parse("roundup_power2_divisions:[65536:4]").roundup_power2_divisions, [4; 16]);
    assert_eq!(parse("roundup_power2_divisions:0").roundup_power2_divisions, [0; 16]);
}

#[test]
fn divisions_that_make_no_sense_are_refused() {
    let key = "roundup_power2_divisions";
    for (value, at, part) in [
        ("3", 0, "power of two"),
        ("[256:3]", 5, "0 or a power of two"),
        ("[300:2]", 1, "300 cannot stand here"),
        ("[0:2]", 1, "cannot stand here"),
        ("[131072:2]", 1, "cannot stand here"),
        ("[512:2,256:2]", 7, "above the one before"),
        ("[256:2,256:2]", 7, "above the one before"),
        ("[>:2,256:2]", 4, "expected ']'"),
        ("[]", 1, "found ']'"),
        ("[256:2", 6, "expected ']'"),
        ("[256:2,]", 7, "found ']'"),
        ("[256;2]", 1, "not a whole number"),
        ("4294967296", 0, "do not work"),
    ] {
        assert_refused(&format!("{key}:{value}"), key, key.len() + 1 + at, part);
    }
}

#[test]
fn apply_keeps_what_is_not_named() {
    let mut config = parse("steal:False,max_handle_mb:4");
    config.apply("max_handle_mb:8").unwrap();
    assert_eq!(config, parse("steal:False,max_handle_mb:8"));
}

#[test]
fn apply_with_an_error_changes_nothing() {
    let before = parse("steal:False,max_handle_mb:4");
    let mut config = before.clone();
    config.apply("max_handle_mb:8,max_split_size_mb:1").unwrap_err();
    config.apply("max_handle_mb:8,large_segment_size_mb:4").unwrap_err();
    assert_eq!(config, before);
}

#[test]
fn the_defaults_survive_the_way_through_text() {
    assert_eq!(parse(&Config::default().to_text()), Config::default());
}

/// A generator of numbers that are random enough; the seed is printed on failure.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }

    fn flag(&mut self) -> bool {
        self.below(2) == 1
    }

    fn config(&mut self) -> Config {
        let mut config = Config::default();
        let segment_mib = 11 + self.below(100);
        config.large_segment_size = segment_mib * MIB;
        config.max_split_size = self.flag().then(|| (segment_mib + self.below(1 << 40)) * MIB);
        config.max_non_split_rounding = (segment_mib + self.below(100)) * MIB;
        let classes_set = 1 + self.below(16) as usize;
        for class in 0..classes_set {
            let exponent = self.below(33);
            config.roundup_power2_divisions[class] = if exponent == 32 { 0 } else { 1 << exponent };
        }
        if self.flag() {
            config.garbage_collection_threshold = (1 + self.below(999)) as f64 / 1000.0;
        }
        config.memory_fraction = self.below(1 << 50) as f64 / (1u64 << 50) as f64;
        config.moving_percent = self.below(101);
        config.max_handle = (2 << self.below(20)) * MIB;
        config.release_idle_ms = self.below(1 << 40);
        for flag in [
            &mut config.expandable_segments,
            &mut config.fail_at_limit,
            &mut config.graph_capture_record_stream_reuse,
            &mut config.caching,
            &mut config.steal,
            &mut config.gpu_direct_rdma,
        ] {
            *flag = self.flag();
        }
        config
    }
}

#[test]
fn random_configurations_survive_the_way_through_text() {
    for seed in 1..=500u64 {
        let config = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)).config();
        let text = config.to_text();
        match Config::parse(&text) {
            Ok(back) => assert_eq!(back, config, "seed {seed}: {text}"),
            Err(error) => panic!("seed {seed}: {text}: {error}"),
        }
    }
}

#[test]
fn broken_texts_never_panic() {
    let pieces =
        ["steal", ":", ",", "[", "]", "True", " ", "64", "roundup_power2_divisions", ">", "é"];
    for seed in 1..=2000u64 {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let length = random.below(12);
        let text: String =
            (0..length).map(|_| pieces[random.below(pieces.len() as u64) as usize]).collect();
        if let Err(error) = Config::parse(&text) {
            assert!(error.position <= text.len(), "seed {seed}: {text}");
            assert!(text.is_char_boundary(error.position), "seed {seed}: {text}");
        }
    }
}

#[test]
fn every_key_is_documented() {
    let document = include_str!("../docs/CONFIG.md");
    let module = include_str!("../src/config/parse.rs");
    for name in key_names() {
        assert!(document.contains(&format!("`{name}`")), "docs/CONFIG.md lacks {name}");
        assert!(module.contains(&format!("`{name}`")), "src/config/parse.rs lacks {name}");
    }
}

#[test]
fn documented_defaults_are_those_in_force() {
    let document = include_str!("../docs/CONFIG.md");
    let module = include_str!("../src/config/parse.rs");
    for pair in Config::default().to_text().split(',') {
        let (key, value) = pair.split_once(':').unwrap();
        // One is documented as that of another key, the other has no effect.
        if ["max_non_split_rounding_mb", "graph_capture_record_stream_reuse"].contains(&key) {
            continue;
        }
        for text in [document, module] {
            let row = text.lines().find(|line| line.contains(&format!("| `{key}` |"))).unwrap();
            let shown = [format!("| {value} |"), format!("| `{value}` |")];
            assert!(shown.iter().any(|cell| row.contains(cell)), "default {value}: {row}");
        }
    }
}

#[test]
fn a_field_that_no_text_could_set_is_refused_with_its_key() {
    type Set = fn(&mut Config);
    let wrong: [(&str, Set); 12] = [
        ("max_handle_mb", |config| config.max_handle = 0),
        ("max_handle_mb", |config| config.max_handle = 3 * MIB),
        ("large_segment_size_mb", |config| config.large_segment_size = MIB),
        ("roundup_power2_divisions", |config| config.roundup_power2_divisions[3] = 3),
        ("garbage_collection_threshold", |config| config.garbage_collection_threshold = 5.0),
        ("garbage_collection_threshold", |config| config.garbage_collection_threshold = -0.5),
        ("garbage_collection_threshold", |config| config.garbage_collection_threshold = f64::NAN),
        ("per_process_memory_fraction", |config| config.memory_fraction = f64::NAN),
        ("max_split_size_mb", |config| config.max_split_size = Some(19 * MIB)),
        ("max_split_size_mb", |config| config.max_split_size = Some(20 * MIB - 1)),
        ("max_non_split_rounding_mb", |config| config.max_non_split_rounding = 0),
        ("max_non_split_rounding_mb", |config| config.large_segment_size = 64 * MIB),
    ];
    for (key, set) in wrong {
        let mut config = Config::default();
        set(&mut config);
        match Allocator::new(Vec::new(), config) {
            Err(Error::Config(error)) => {
                assert_eq!(error.key, key, "{error}");
                assert!(error.problem.contains("a field that the program set"), "{error}");
            }
            other => panic!("{key}: {other:?}"),
        }
    }
}
