//! Reading and writing one value of a configuration text.

use super::Config;
use super::keys::{Rule, Value};
use super::scan::{Scanner, Token, Word};
use crate::error::ConfigError;
use crate::units::{Bytes, MIB};

type Read<T> = Result<T, ConfigError>;

/// Reads the value that comes next into its field of `config`.
pub(super) fn read(value: Value, scanner: &mut Scanner<'_>, config: &mut Config) -> Read<()> {
    match value {
        Value::Backend => read_backend(scanner)?,
        Value::Expandable => {
            config.expandable_segments = read_flag(scanner)?;
            config.expandable_with_tools = config.expandable_segments;
        }
        Value::Flag(field) => {
            let flag = read_flag(scanner)?;
            if let Some(field) = field {
                *field(config) = flag;
            }
        }
        Value::Mebibytes(rule, field) => {
            let bytes = read_mebibytes(scanner, rule)?;
            if let Some(field) = field {
                *field(config) = bytes;
            }
        }
        Value::MebibyteLimit(field) => {
            *field(config) = Some(read_mebibytes(scanner, Rule::Any)?);
        }
        Value::Count(rule, field) => {
            let (number, _) = read_count(scanner, rule)?;
            if let Some(field) = field {
                *field(config) = number;
            }
        }
        Value::Fraction { ends, field } => *field(config) = read_fraction(scanner, ends)?,
        Value::Divisions(field) => *field(config) = read_divisions(scanner)?,
        Value::Share => read_share(scanner)?,
        Value::ShareByName => read_share_by_name(scanner)?,
    }
    Ok(())
}

/// The value of its field as [`read`] understands it; `None` where nothing is to be said. `config`
/// is only looked at.
pub(super) fn show(value: Value, config: &mut Config) -> Option<String> {
    match value {
        Value::Flag(Some(field)) => Some(if *field(config) { "True" } else { "False" }.to_owned()),
        Value::Mebibytes(_, Some(field)) => Some((*field(config) / MIB).to_string()),
        Value::MebibyteLimit(field) => field(config).map(|bytes| (bytes / MIB).to_string()),
        Value::Count(_, Some(field)) => Some(field(config).to_string()),
        Value::Fraction { ends, field } => {
            let fraction = *field(config);
            (ends || fraction != 0.0).then(|| fraction.to_string())
        }
        Value::Divisions(field) => Some(show_divisions(field(config))),
        Value::Expandable => match (config.expandable_segments, config.expandable_with_tools) {
            (true, true) => Some("True".to_owned()),
            // Named, it would hold with tools, too.
            (true, false) => None,
            (false, _) => Some("False".to_owned()),
        },
        Value::Backend
        | Value::Flag(None)
        | Value::Mebibytes(_, None)
        | Value::Count(_, None)
        | Value::Share
        | Value::ShareByName => None,
    }
}

fn read_backend(scanner: &mut Scanner<'_>) -> Read<()> {
    let word = scanner.word("native")?;
    match word.text {
        "native" => Ok(()),
        "cudaMallocAsync" => Err(scanner.error(
            word.position,
            "plugalloc itself is the backend, and cudaMallocAsync is another one",
            "native, or no such key",
        )),
        other => Err(scanner.error(word.position, format!("unknown backend '{other}'"), "native")),
    }
}

fn read_flag(scanner: &mut Scanner<'_>) -> Read<bool> {
    let word = scanner.word("True or False")?;
    match word.text {
        "True" => Ok(true),
        "False" => Ok(false),
        other => Err(scanner.error(word.position, format!("found '{other}'"), "True or False")),
    }
}

fn read_mebibytes(scanner: &mut Scanner<'_>, rule: Rule) -> Read<Bytes> {
    let (number, position) = read_count(scanner, rule)?;
    number.checked_mul(MIB).ok_or_else(|| {
        let most = format!("at most {} MiB", u64::MAX / MIB);
        scanner.error(position, format!("{number} MiB is too large"), &most)
    })
}

/// A whole number that obeys the rule, and where it stands.
fn read_count(scanner: &mut Scanner<'_>, rule: Rule) -> Read<(u64, usize)> {
    let expected = rule.to_string();
    let word = scanner.word(&expected)?;
    let number = whole_number(scanner, word, &expected)?;
    if rule.allows(number) {
        return Ok((number, word.position));
    }
    Err(scanner.error(word.position, format!("{number} is out of range"), &expected))
}

/// Digits and nothing else. `str::parse` alone would let a plus sign through.
fn whole_number(scanner: &Scanner<'_>, word: Word<'_>, expected: &str) -> Read<u64> {
    let text = word.text;
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        let problem = format!("'{text}' is not a whole number");
        return Err(scanner.error(word.position, problem, expected));
    }
    text.parse().map_err(|_| {
        scanner.error(word.position, format!("{text} does not fit in 64 bits"), expected)
    })
}

/// A decimal number of no sign; `str::parse` alone would let signs, `inf` and `NaN` through.
fn decimal_number(text: &str) -> Option<f64> {
    let starts = text.starts_with(|c: char| c.is_ascii_digit() || c == '.');
    let numeric = |c: char| c.is_ascii_digit() || matches!(c, '.' | 'e' | 'E' | '-' | '+');
    if !starts || !text.chars().all(numeric) {
        return None;
    }
    text.parse().ok().filter(|number: &f64| number.is_finite())
}

fn read_fraction(scanner: &mut Scanner<'_>, ends: bool) -> Read<f64> {
    let expected = if ends {
        "a number from 0 to 1, both included"
    } else {
        "a number above 0 and below 1; leave the key out to turn it off"
    };
    let word = scanner.word(expected)?;
    let Some(number) = decimal_number(word.text) else {
        let problem = format!("'{}' is not a number", word.text);
        return Err(scanner.error(word.position, problem, expected));
    };
    let inside = if ends { (0.0..=1.0).contains(&number) } else { number > 0.0 && number < 1.0 };
    if !inside {
        let problem = format!("{} is out of range", word.text);
        return Err(scanner.error(word.position, problem, expected));
    }
    Ok(number)
}

const DIVISIONS: &str = "0 or a power of two";
const DIVISIONS_LIST: &str =
    "0, a power of two, or a list such as [256:1,512:2,1024:4,>:8] of MiB and divisions";
const BOUNDARY: &str = "a power of two from 1 to 65536, above the one before it, or '>'";

fn read_divisions(scanner: &mut Scanner<'_>) -> Read<[u32; 16]> {
    if !scanner.skip('[') {
        let word = scanner.word(DIVISIONS_LIST)?;
        return Ok([division(scanner, word, DIVISIONS_LIST)?; 16]);
    }
    let mut classes = [0; 16];
    // The first class that no pair has set yet; `None` before the first pair.
    let mut next: Option<usize> = None;
    let mut last_boundary = 0;
    loop {
        let boundary = scanner.word(BOUNDARY)?;
        if boundary.text == ">" {
            scanner.separator(':')?;
            let word = scanner.word(DIVISIONS)?;
            classes[next.unwrap_or(0)..].fill(division(scanner, word, DIVISIONS)?);
            // Whatever followed would be set twice.
            scanner.separator(']')?;
            return Ok(classes);
        }
        let mib = whole_number(scanner, boundary, BOUNDARY)?;
        if !mib.is_power_of_two() || mib > 1 << 16 || mib <= last_boundary {
            let problem = format!("{mib} cannot stand here");
            return Err(scanner.error(boundary.position, problem, BOUNDARY));
        }
        last_boundary = mib;
        scanner.separator(':')?;
        let word = scanner.word(DIVISIONS)?;
        let divisions = division(scanner, word, DIVISIONS)?;
        // 64 GiB shares the last class with 32 GiB, as in PyTorch.
        let class = (mib.ilog2() as usize).min(classes.len() - 1);
        if next.is_none() {
            classes[..class].fill(divisions);
        }
        classes[class] = divisions;
        next = Some(class + 1);
        if !scanner.skip(',') {
            scanner.separator(']')?;
            return Ok(classes);
        }
    }
}

fn division(scanner: &Scanner<'_>, word: Word<'_>, expected: &str) -> Read<u32> {
    let number = whole_number(scanner, word, expected)?;
    match u32::try_from(number) {
        Ok(divisions) if divisions == 0 || divisions.is_power_of_two() => Ok(divisions),
        _ => Err(scanner.error(word.position, format!("{number} divisions do not work"), expected)),
    }
}

fn show_divisions(classes: &[u32; 16]) -> String {
    let last = classes[15];
    // Every class from here on has the divisions of the last one.
    let tail = classes.iter().rposition(|&divisions| divisions != last).map_or(0, |i| i + 1);
    if tail == 0 {
        return last.to_string();
    }
    let pairs: Vec<String> =
        (0..tail).map(|class| format!("{}:{}", 1u64 << class, classes[class])).collect();
    format!("[{},>:{last}]", pairs.join(","))
}

const SHARE: &str = "a fraction above 0 such as 0.5, or a size such as 512M or 40G";

fn read_share(scanner: &mut Scanner<'_>) -> Read<()> {
    let word = scanner.word(SHARE)?;
    let number = word.text.strip_suffix(['K', 'M', 'G', 'T']).unwrap_or(word.text);
    match decimal_number(number) {
        Some(share) if share > 0.0 => Ok(()),
        _ => Err(scanner.error(word.position, format!("'{}' is neither", word.text), SHARE)),
    }
}

fn read_share_by_name(scanner: &mut Scanner<'_>) -> Read<()> {
    scanner.separator('[')?;
    if scanner.peek().0 == Token::Separator(']') {
        return scanner.separator(']');
    }
    loop {
        scanner.word("the name of a class of streams")?;
        scanner.separator(':')?;
        read_share(scanner)?;
        if !scanner.skip(',') {
            return scanner.separator(']');
        }
    }
}
