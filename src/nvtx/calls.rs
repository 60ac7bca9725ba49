//! What a tool is told, and the structures in which it is told.

use std::ffi::{CStr, CString, c_char, c_void};

use super::abi::{COMPATIBILITY, Domain, Functions};
use crate::units::{Address, Bytes};

/// A span of addresses.
#[repr(C)]
struct Range {
    bytes: usize,
    start: *const c_void,
}

/// A heap: memory that is divided further.
#[repr(C)]
pub(super) struct HeapDescription {
    compatibility: u16,
    size: u16,
    reserved: u32,
    usage: u32,
    kind: u32,
    range_size: usize,
    range: *const Range,
    category: u32,
    name_kind: u32,
    name: *const c_char,
}

/// Regions: pieces of a heap that are in use.
#[repr(C)]
pub(super) struct RegionsDescription {
    compatibility: u16,
    size: u16,
    kind: u32,
    heap: *mut c_void,
    count: usize,
    range_size: usize,
    ranges: *const Range,
    out: *mut *mut c_void,
}

/// Regions whose use ends.
#[repr(C)]
pub(super) struct RegionsEnd {
    compatibility: u16,
    size: u16,
    reference_kind: u32,
    count: usize,
    reference_size: usize,
    references: *const *const c_void,
}

/// What the values of a counter mean.
#[repr(C)]
struct CounterMeaning {
    size: u32,
    id: u16,
    version: u16,
    next: *const c_void,
    flags: u64,
    unit: *const c_char,
    numerator: u64,
    denominator: u64,
    limit_kind: i64,
    least: i64,
    most: i64,
}

/// A counter.
#[repr(C)]
pub(super) struct CounterDescription {
    size: usize,
    schema: u64,
    name: *const c_char,
    description: *const c_char,
    scope: u64,
    meaning: *const CounterMeaning,
    id: u64,
}

/// A heap whose memory is used only where regions are.
const SUB_ALLOCATOR: u32 = 1;
/// Memory by its address.
const VIRTUAL_ADDRESS: u32 = 1;
const BY_POINTER: u32 = 1;
const TEXT: u32 = 1;
/// Payloads that are signed integers of 64 bits.
const INT64: u64 = 17;
/// The counter is of the whole process.
const PROCESS: u64 = 21;
const COUNTER_MEANING: u16 = 5;
const COUNTER_MEANING_VERSION: u16 = 2;
/// Values are absolute, and hold until the next one.
const ABSOLUTE_UNTIL_NEXT: u64 = 1 << 4 | 3 << 8;

/// What a tool gives for a heap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HeapId(pub(super) usize);

/// What a tool gives for a counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CounterId(u64);

/// A name under which a tool is spoken to.
#[derive(Clone, Copy, Debug)]
pub(super) struct DomainId(usize);

impl DomainId {
    fn raw(self) -> Domain {
        self.0 as Domain
    }
}

impl Functions {
    /// Whether the tool wants to know of memory.
    pub(super) fn has_memory(&self) -> bool {
        self.heap_register.is_some() && self.regions_register.is_some()
    }

    /// Whether the tool takes counters.
    pub(super) fn has_counters(&self) -> bool {
        self.counter_register.is_some() && self.counter_sample.is_some()
    }

    pub(super) fn create_domain(&self, name: &CStr) -> DomainId {
        DomainId(self.domain_create.map_or(0, |create| create(name.as_ptr()) as usize))
    }

    /// Announces memory that is divided further; `None` where the tool refuses it.
    pub(super) fn register_heap(
        &self,
        domain: DomainId,
        (start, bytes): (Address, Bytes),
        name: &CString,
    ) -> Option<HeapId> {
        let range = range(start, bytes);
        let described = HeapDescription {
            compatibility: COMPATIBILITY,
            size: size_of::<HeapDescription>() as u16,
            reserved: 0,
            usage: SUB_ALLOCATOR,
            kind: VIRTUAL_ADDRESS,
            range_size: size_of::<Range>(),
            range: &raw const range,
            category: 0,
            name_kind: TEXT,
            name: name.as_ptr(),
        };
        let heap = self.heap_register?(domain.raw(), &raw const described) as usize;
        // Both mean that the tool does not know it.
        (heap != 0 && heap != usize::MAX).then_some(HeapId(heap))
    }

    pub(super) fn unregister_heap(&self, domain: DomainId, heap: HeapId) {
        if let Some(unregister) = self.heap_unregister {
            unregister(domain.raw(), heap.0 as *mut c_void);
        }
    }

    /// Announces that a piece of a heap is in use.
    pub(super) fn register_region(
        &self,
        domain: DomainId,
        heap: HeapId,
        (start, bytes): (Address, Bytes),
    ) {
        let range = range(start, bytes);
        let described = RegionsDescription {
            compatibility: COMPATIBILITY,
            size: size_of::<RegionsDescription>() as u16,
            kind: VIRTUAL_ADDRESS,
            heap: heap.0 as *mut c_void,
            count: 1,
            range_size: size_of::<Range>(),
            ranges: &raw const range,
            out: std::ptr::null_mut(),
        };
        if let Some(register) = self.regions_register {
            register(domain.raw(), &raw const described);
        }
    }

    /// Announces that pieces are no longer in use, by where they start.
    pub(super) fn unregister_regions(&self, domain: DomainId, starts: &[Address]) {
        let references: Vec<*const c_void> = starts.iter().map(|&start| pointer(start)).collect();
        let described = RegionsEnd {
            compatibility: COMPATIBILITY,
            size: size_of::<RegionsEnd>() as u16,
            reference_kind: BY_POINTER,
            count: references.len(),
            reference_size: size_of::<*const c_void>(),
            references: references.as_ptr(),
        };
        if let Some(unregister) = self.regions_unregister {
            unregister(domain.raw(), &raw const described);
        }
    }

    /// Makes a counter of bytes.
    pub(super) fn register_counter(
        &self,
        domain: DomainId,
        name: &CStr,
        description: &CStr,
    ) -> Option<CounterId> {
        let meaning = CounterMeaning {
            size: size_of::<CounterMeaning>() as u32,
            id: COUNTER_MEANING,
            version: COUNTER_MEANING_VERSION,
            next: std::ptr::null(),
            flags: ABSOLUTE_UNTIL_NEXT,
            unit: c"B".as_ptr(),
            numerator: 1,
            denominator: 1,
            limit_kind: 0,
            least: 0,
            most: 0,
        };
        let described = CounterDescription {
            size: size_of::<CounterDescription>(),
            schema: INT64,
            name: name.as_ptr(),
            description: description.as_ptr(),
            scope: PROCESS,
            meaning: &raw const meaning,
            id: 0,
        };
        let id = self.counter_register?(domain.raw(), &raw const described);
        (id != 0 && id != u64::MAX).then_some(CounterId(id))
    }

    pub(super) fn sample(&self, domain: DomainId, counter: CounterId, value: i64) {
        if let Some(sample) = self.counter_sample {
            sample(domain.raw(), counter.0, value);
        }
    }
}

fn pointer(address: Address) -> *const c_void {
    std::ptr::without_provenance(address as usize)
}

fn range(start: Address, bytes: Bytes) -> Range {
    Range { bytes: bytes as usize, start: pointer(start) }
}
