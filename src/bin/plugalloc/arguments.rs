//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use plugalloc::Bytes;

/// What stands on the command line.
#[derive(Debug, Parser)]
#[command(
    name = "plugalloc",
    version,
    about = "A CUDA memory allocator: replay recorded traces through it, with or without a GPU",
    after_help = "Exit status: 0 where everything completed, 1 where a trace did not, 2 for \
                  wrong usage."
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Replay allocation traces and show what they took: memory, time, driver calls
    #[command(
        long_about = "Replay allocation traces and show what they took: memory, time, driver \
            calls.\n\n\
            A trace is a CSV file, plain or compressed with gzip, with the columns \
            op,id,bytes,stream,time_us. A trace that cannot be read, or that runs out of \
            memory, is reported; the others are still replayed."
    )]
    Replay(ReplayArguments),
    /// Show what this machine's driver and GPUs offer, and what plugalloc uses of it
    Doctor {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Show the options in force: the defaults, changed by the environment and by CONF
    Config {
        /// More options, such as `steal:False,max_handle_mb:16`
        #[arg(value_name = "CONF")]
        config: Option<String>,
    },
}

#[derive(Args, Debug)]
pub(crate) struct ReplayArguments {
    /// Where the memory comes from: sim, the simulated GPU, or cuda:N, a real one
    #[arg(long, default_value = "sim", value_parser = parse_device)]
    pub(crate) device: DeviceChoice,
    /// How much memory the device has, such as 80GiB; by default 200GiB on sim, all there is on
    /// cuda
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) capacity: Option<Bytes>,
    /// Options of the allocator, such as `steal:False,max_handle_mb:16`, on top of the
    /// environment's
    #[arg(long, value_name = "CONF")]
    pub(crate) config: Option<String>,
    /// Which of the allocator's faces is called
    #[arg(long, value_enum, default_value_t = Via::Cpp)]
    pub(crate) via: Via,
    /// Look for the least capacity in which each trace completes, too
    #[arg(long)]
    pub(crate) least: bool,
    /// Print one JSON object a line instead of a table
    #[arg(long)]
    pub(crate) json: bool,
    /// Write DIR/TRACE.pickle with all memory after the last event and the history up to it, for
    /// PyTorch's `_memory_viz.py` or <https://pytorch.org/memory_viz>; recording takes time, which
    /// is in what is shown
    #[arg(long, value_name = "DIR")]
    pub(crate) snapshots: Option<PathBuf>,
    /// The traces; by default those of the source tree
    #[arg(value_name = "TRACE")]
    pub(crate) traces: Vec<PathBuf>,
}

/// A device that can be replayed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeviceChoice {
    Sim,
    Cuda(i32),
}

impl std::fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            DeviceChoice::Sim => f.write_str("sim"),
            DeviceChoice::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

/// Which face of the allocator is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Via {
    /// The C++ class, through its virtual calls
    Cpp,
    /// The Rust methods
    Rust,
}

impl std::fmt::Display for Via {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Via::Cpp => "cpp",
            Via::Rust => "rust",
        })
    }
}

fn parse_device(text: &str) -> Result<DeviceChoice, String> {
    match text {
        "sim" => return Ok(DeviceChoice::Sim),
        "cuda" => return Ok(DeviceChoice::Cuda(0)),
        _ => {}
    }
    let index = text.strip_prefix("cuda:").filter(|digits| is_digits(digits));
    index
        .and_then(|digits| digits.parse().ok())
        .map(DeviceChoice::Cuda)
        .ok_or_else(|| "expected sim, cuda or cuda:N".to_owned())
}

/// The most memory that a device may be said to have.
const MOST: Bytes = 1 << 60;

/// A whole number of bytes, or of the unit behind it; all units are powers of 1024.
fn parse_size(text: &str) -> Result<Bytes, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &text[digits.len()..] {
        "" | "B" => 0,
        "K" | "KiB" => 10,
        "M" | "MiB" => 20,
        "G" | "GiB" => 30,
        "T" | "TiB" => 40,
        _ => return Err("expected a number of bytes, or a unit KiB, MiB, GiB, TiB".to_owned()),
    };
    if !is_digits(digits) {
        return Err("expected a whole number such as 80GiB".to_owned());
    }
    let bytes = digits.parse::<Bytes>().ok().and_then(|number| number.checked_mul(1 << shift));
    match bytes {
        None => Err("too large for 64 bits".to_owned()),
        Some(bytes) if bytes > MOST => Err("a device has at most 1 EiB (1048576TiB)".to_owned()),
        Some(0) => Err("a device has at least one byte".to_owned()),
        Some(bytes) => Ok(bytes),
    }
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_their_units() {
        assert_eq!(parse_size("512"), Ok(512));
        assert_eq!(parse_size("80GiB"), Ok(80 << 30));
        assert_eq!(parse_size("2M"), Ok(2 << 20));
        for wrong in ["", "G", "-1", "1.5G", "80GB", "0", "99999999999T", "+1", "1048577T"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn devices_are_read() {
        assert_eq!(parse_device("sim"), Ok(DeviceChoice::Sim));
        assert_eq!(parse_device("cuda"), Ok(DeviceChoice::Cuda(0)));
        assert_eq!(parse_device("cuda:3"), Ok(DeviceChoice::Cuda(3)));
        for wrong in ["", "cpu", "cuda:", "cuda:-1", "cuda:+1", "sim:0"] {
            assert!(parse_device(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        <Arguments as clap::CommandFactory>::command().debug_assert();
    }
}
