//! Shared memory as bytes, in which it travels to another process.
//!
//! ```text
//!   0  4  "plug"
//!   4  1  version of what follows: 1
//!   5  1  kind: 'e' file descriptors, 'f' fabric handles, 'c' a legacy handle
//!   6  2  0
//!   8  4  process that has the file descriptors; 0 for the other kinds
//!  12  4  number of handles
//!  16  8  which export of the process it is
//!  24     for each handle: 8 bytes length, then
//!           'e'   8  the number of the file descriptor in that process
//!           'f'  64  the fabric handle
//!           'c'  64  the legacy handle (cudaIpcMemHandle_t) of a whole segment
//! ```
//!
//! Integers are little-endian. The memory of the handles is contiguous in this order. File
//! descriptors have the numbers of earlier ones that were closed, so that only the number of the
//! export tells memory from what was shared before and may still be open.

use crate::device::IpcHandle;
use crate::error::{Error, Result};
use crate::units::{Bytes, GRANULE};

const MARK: &[u8; 4] = b"plug";
const VERSION: u8 = 1;

/// One piece of shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece<T> {
    pub(super) bytes: Bytes,
    pub(super) handle: T,
}

/// What is shared, in the order of addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Shared {
    /// File descriptors of a process.
    Descriptors(u32, Vec<Piece<i32>>),
    Fabric(Vec<Piece<[u8; 64]>>),
    Legacy(Piece<IpcHandle>),
}

fn invalid(value: String) -> Error {
    Error::InvalidArgument {
        argument: "handle of shared memory",
        value,
        expected: "the bytes that a plugalloc allocator of version 1 of the format shared"
            .to_owned(),
    }
}

impl Shared {
    pub(super) fn to_bytes(&self, export: u64) -> Vec<u8> {
        let (kind, process, count) = match self {
            Shared::Descriptors(process, pieces) => (b'e', *process, pieces.len()),
            Shared::Fabric(pieces) => (b'f', 0, pieces.len()),
            Shared::Legacy(_) => (b'c', 0, 1),
        };
        let mut out = MARK.to_vec();
        out.extend([VERSION, kind, 0, 0]);
        out.extend(process.to_le_bytes());
        out.extend((count as u32).to_le_bytes());
        out.extend(export.to_le_bytes());
        match self {
            Shared::Descriptors(_, pieces) => pieces.iter().for_each(|piece| {
                out.extend(piece.bytes.to_le_bytes());
                out.extend(i64::from(piece.handle).to_le_bytes());
            }),
            Shared::Fabric(pieces) => pieces.iter().for_each(|piece| {
                out.extend(piece.bytes.to_le_bytes());
                out.extend(piece.handle);
            }),
            Shared::Legacy(piece) => {
                out.extend(piece.bytes.to_le_bytes());
                out.extend(piece.handle.0);
            }
        }
        out
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Shared> {
        let cut = || invalid(format!("of {} bytes, which end too early", bytes.len()));
        let mut rest = bytes;
        if take::<4>(&mut rest) != Some(*MARK) {
            return Err(invalid("without the mark \"plug\" in front".to_owned()));
        }
        let [version, kind, ..] = take::<4>(&mut rest).ok_or_else(cut)?;
        if version != VERSION {
            return Err(invalid(format!("of version {version} of the format")));
        }
        let process = u32::from_le_bytes(take(&mut rest).ok_or_else(cut)?);
        let count = u32::from_le_bytes(take(&mut rest).ok_or_else(cut)?) as usize;
        take::<8>(&mut rest).ok_or_else(cut)?;
        let shared = match kind {
            b'e' => {
                let number = |raw: [u8; 8]| i32::try_from(i64::from_le_bytes(raw)).ok();
                Shared::Descriptors(process, pieces(&mut rest, count, number).ok_or_else(cut)?)
            }
            b'f' => Shared::Fabric(pieces(&mut rest, count, Some).ok_or_else(cut)?),
            b'c' if count == 1 => {
                let found = pieces(&mut rest, 1, |raw: [u8; 64]| Some(IpcHandle(raw)));
                Shared::Legacy(*found.ok_or_else(cut)?.first().ok_or_else(cut)?)
            }
            other => {
                let kind = other.escape_ascii();
                return Err(invalid(format!("of {count} pieces of kind '{kind}'")));
            }
        };
        if !rest.is_empty() {
            return Err(invalid(format!("with {} bytes too many", rest.len())));
        }
        Ok(shared)
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (front, back) = rest.split_first_chunk::<N>()?;
    *rest = back;
    Some(*front)
}

/// So many pieces, each with a handle of `N` bytes; `None` where the bytes end, or make no sense.
fn pieces<const N: usize, T>(
    rest: &mut &[u8],
    count: usize,
    handle: impl Fn([u8; N]) -> Option<T>,
) -> Option<Vec<Piece<T>>> {
    let one = |_| {
        let bytes = Bytes::from_le_bytes(take(rest)?);
        let sound = bytes > 0 && bytes < 1 << 47 && bytes.is_multiple_of(GRANULE);
        sound.then_some(Piece { bytes, handle: handle(take(rest)?)? })
    };
    (count > 0).then(|| (0..count).map(one).collect())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Shared> {
        let (bytes, handle) = (2 * GRANULE, [7; 64]);
        vec![
            Shared::Descriptors(
                41,
                vec![Piece { bytes, handle: 3 }, Piece { bytes: GRANULE, handle: 9 }],
            ),
            Shared::Fabric(vec![Piece { bytes, handle }]),
            Shared::Legacy(Piece { bytes, handle: IpcHandle(handle) }),
        ]
    }

    #[test]
    fn what_is_shared_survives_the_journey() {
        for shared in all() {
            assert_eq!(Shared::from_bytes(&shared.to_bytes(9)).unwrap(), shared);
        }
    }

    #[test]
    fn bytes_that_are_cut_or_wrong_are_refused_and_never_more_than_that() {
        for shared in all() {
            let bytes = shared.to_bytes(9);
            for end in 0..bytes.len() {
                assert!(Shared::from_bytes(&bytes[..end]).is_err(), "{end} bytes of {shared:?}");
            }
            for at in 0..32 {
                for bit in 0..8 {
                    let mut wrong = bytes.clone();
                    wrong[at] ^= 1 << bit;
                    let _ = Shared::from_bytes(&wrong);
                }
            }
            let mut longer = bytes.clone();
            longer.push(0);
            assert!(Shared::from_bytes(&longer).is_err());
            let mut newer = bytes;
            newer[4] = 2;
            let error = Shared::from_bytes(&newer).unwrap_err().to_string();
            assert!(error.contains("version 2"), "{error}");
        }
    }
}
