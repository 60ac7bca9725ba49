//! Why a pointer was refused, and what was asked about it.

use super::Error;
use crate::units::{Address, Bytes};

/// What is wrong with a pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PointerFault {
    /// This allocator never handed the address out, or has given its memory back since.
    Foreign,
    /// The address lies inside a live allocation that starts elsewhere.
    Interior {
        /// Where that allocation starts.
        start: Address,
        /// How long it is.
        bytes: Bytes,
    },
    /// The allocation at this address was freed before.
    DoubleFree,
}

/// What was to be done with a pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PointerUse {
    /// To free it.
    Free,
    /// To record a stream that uses it.
    RecordStream,
    /// To tell or take over the allocation that starts there.
    Find,
    /// To tell the memory around it.
    Base,
    /// To keep its memory in place.
    Pin,
    /// To share its memory with other processes.
    Share,
    /// To close memory of another process.
    Close,
}

impl PointerUse {
    /// Every use, in declaration order.
    pub const ALL: [PointerUse; 7] = [
        PointerUse::Free,
        PointerUse::RecordStream,
        PointerUse::Find,
        PointerUse::Base,
        PointerUse::Pin,
        PointerUse::Share,
        PointerUse::Close,
    ];

    /// As it stands in a message.
    fn words(self) -> &'static str {
        match self {
            PointerUse::Free => "free",
            PointerUse::RecordStream => "record a stream for",
            PointerUse::Find => "look up",
            PointerUse::Base => "find the memory around",
            PointerUse::Pin => "pin",
            PointerUse::Share => "share",
            PointerUse::Close => "close",
        }
    }
}

/// A pointer with which the call can do nothing. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidPointer {
    /// The pointer.
    pub address: Address,
    /// What is wrong with it.
    pub fault: PointerFault,
    /// What was to be done with it.
    pub purpose: PointerUse,
}

impl InvalidPointer {
    /// A pointer that was to be freed.
    pub fn new(address: Address, fault: PointerFault) -> InvalidPointer {
        InvalidPointer { address, fault, purpose: PointerUse::Free }
    }
}

impl Error {
    /// The same error about a pointer with which something else was to be done.
    #[cold]
    pub(crate) fn when_asked_to(self, purpose: PointerUse) -> Error {
        match self {
            Error::InvalidPointer(pointer) => InvalidPointer { purpose, ..pointer }.into(),
            other => other,
        }
    }
}

impl std::fmt::Display for InvalidPointer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let address = self.address;
        let to = self.purpose.words();
        write!(f, "Trying to {to} a pointer not allocated here: {address:#x}")?;
        match self.fault {
            PointerFault::Foreign => Ok(()),
            PointerFault::Interior { start, bytes } => write!(
                f,
                " lies {} bytes inside the allocation of {bytes} bytes at {start:#x}; pass that \
                 address instead",
                address - start
            ),
            PointerFault::DoubleFree if self.purpose == PointerUse::Free => {
                write!(f, " was freed already (double free)")
            }
            PointerFault::DoubleFree => write!(f, " was freed already"),
        }
    }
}

impl From<InvalidPointer> for Error {
    fn from(error: InvalidPointer) -> Self {
        Error::InvalidPointer(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_says_what_was_asked_for() {
        let text = |purpose, fault| InvalidPointer { address: 0x1000, fault, purpose }.to_string();
        let foreign = "a pointer not allocated here: 0x1000";
        assert_eq!(
            text(PointerUse::Free, PointerFault::Foreign),
            format!("Trying to free {foreign}")
        );
        assert_eq!(
            text(PointerUse::Pin, PointerFault::Foreign),
            format!("Trying to pin {foreign}")
        );
        for to in PointerUse::ALL {
            let is_free = to == PointerUse::Free;
            assert_eq!(text(to, PointerFault::DoubleFree).contains("double free"), is_free);
            assert_eq!(text(to, PointerFault::Foreign).contains("to free"), is_free);
        }
    }
}
