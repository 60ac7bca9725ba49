//! How an NVTX tool is loaded and started, and how it gives its functions. All unsafe code of this
//! room stands here.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering};

use super::calls::{CounterDescription, HeapDescription, RegionsDescription, RegionsEnd};

unsafe extern "C" {
    fn dlopen(path: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
    fn dlerror() -> *const c_char;
}

const RTLD_LAZY: c_int = 1;

/// The version of NVTX whose interface this is.
const VERSION: u16 = 3;

/// The functions of one module, by number; null where there is none. The tool writes them while it
/// starts, and never again.
type Slots = Box<[AtomicPtr<c_void>]>;

fn empty_slots(count: usize) -> Slots {
    (0..count).map(|_| AtomicPtr::default()).collect()
}

/// The numbers of the modules of NVTX itself are places here, and these are how many functions each
/// has. The first of each is none.
const MODULES: [usize; 7] = [0, 16, 9, 15, 7, 16, 7];
/// The module of the functions with domains.
const CORE2: usize = 5;
const DOMAIN_CREATE: usize = 12;

/// The functions of NVTX itself, as the tool sees them: for each module an array of places for
/// functions.
struct Tables {
    slots: Vec<Slots>,
    places: Vec<Box<[*const AtomicPtr<c_void>]>>,
}

// SAFETY: the pointers lead to `slots`, which live as long and are shared as atomics.
unsafe impl Send for Tables {}
// SAFETY: as above.
unsafe impl Sync for Tables {}

fn tables() -> &'static Tables {
    static TABLES: OnceLock<Tables> = OnceLock::new();
    TABLES.get_or_init(|| {
        let slots: Vec<Slots> = MODULES.into_iter().map(empty_slots).collect();
        let place = |slots: &Slots| {
            // Place 0 is empty, and one beyond the last ends the array.
            let filled = slots.iter().skip(1).map(std::ptr::from_ref);
            let ends = [std::ptr::null(); 1];
            ends.into_iter().chain(filled).chain(ends).collect()
        };
        let places = slots.iter().map(place).collect();
        Tables { slots, places }
    })
}

/// What a tool asks for the functions of NVTX itself.
#[repr(C)]
struct Callbacks {
    size: usize,
    get_module: extern "C" fn(u32, *mut *const *const AtomicPtr<c_void>, *mut u32) -> c_int,
}

/// What tells a tool the version, and takes the tool's.
#[repr(C)]
struct VersionInfo {
    size: usize,
    version: u32,
    reserved: u32,
    set_tool_version: extern "C" fn(u32),
}

static CALLBACKS: Callbacks = Callbacks { size: size_of::<Callbacks>(), get_module };
static VERSION_INFO: VersionInfo = VersionInfo {
    size: size_of::<VersionInfo>(),
    version: VERSION as u32,
    reserved: 0,
    set_tool_version,
};

extern "C" fn get_module(
    module: u32,
    out: *mut *const *const AtomicPtr<c_void>,
    out_count: *mut u32,
) -> c_int {
    let Some(&count) = MODULES.get(module as usize).filter(|count| **count > 0) else {
        return 0;
    };
    if !out.is_null() {
        // SAFETY: the tool passes a place for one pointer, or none.
        unsafe { out.write(tables().places[module as usize].as_ptr()) };
    }
    if !out_count.is_null() {
        // SAFETY: the tool passes a place for one integer, or none.
        unsafe { out_count.write(count as u32) };
    }
    1
}

extern "C" fn set_tool_version(_version: u32) {}

extern "C" fn export_table(id: u32) -> *const c_void {
    match id {
        1 => (&raw const CALLBACKS).cast(),
        3 => (&raw const VERSION_INFO).cast(),
        _ => std::ptr::null(),
    }
}

/// The functions of an extension, as the tool sees them.
#[repr(C)]
struct Segment {
    id: usize,
    count: usize,
    functions: *const AtomicPtr<c_void>,
}

/// What a tool is told of an extension.
#[repr(C)]
struct Extension {
    version: u16,
    size: u16,
    module: u16,
    compatibility: u16,
    segments: usize,
    first: *const Segment,
    export: Option<extern "C" fn(u32) -> isize>,
    more: *const c_void,
}

/// How many functions an extension has room for.
const SLOTS: usize = 63;
const MEMORY: u16 = 1;
const COUNTERS: u16 = 4;
/// Both extensions are those of this revision.
pub(super) const COMPATIBILITY: u16 = 0x0102;

type StartTool = extern "C" fn(extern "C" fn(u32) -> *const c_void) -> c_int;
type StartExtension = extern "C" fn(*const Extension) -> c_int;
/// What a tool gives for a name under which a program speaks to it.
pub(super) type Domain = *mut c_void;

type DomainCreate = extern "C" fn(*const c_char) -> Domain;
type HeapRegister = extern "C" fn(Domain, *const HeapDescription) -> *mut c_void;
type HeapUnregister = extern "C" fn(Domain, *mut c_void);
type RegionsRegister = extern "C" fn(Domain, *const RegionsDescription);
type RegionsUnregister = extern "C" fn(Domain, *const RegionsEnd);
type CounterRegister = extern "C" fn(Domain, *const CounterDescription) -> u64;
type CounterSample = extern "C" fn(Domain, u64, i64);

/// The functions of a tool; each may be missing.
#[derive(Debug)]
pub(super) struct Functions {
    pub(super) domain_create: Option<DomainCreate>,
    pub(super) heap_register: Option<HeapRegister>,
    pub(super) heap_unregister: Option<HeapUnregister>,
    pub(super) regions_register: Option<RegionsRegister>,
    pub(super) regions_unregister: Option<RegionsUnregister>,
    pub(super) counter_register: Option<CounterRegister>,
    pub(super) counter_sample: Option<CounterSample>,
}

/// A function of the tool, of this type.
macro_rules! function {
    ($address:expr, $kind:ty) => {{
        let address: *mut c_void = $address;
        // SAFETY: the tool has put a function of this signature here, or nothing, which is `None`.
        unsafe { std::mem::transmute::<*mut c_void, Option<$kind>>(address) }
    }};
}

/// Loads and starts a tool, or says why that does not work.
pub(super) fn start(path: &CStr) -> Result<Functions, String> {
    // SAFETY: the path ends with a zero. Its initialisers run in this process, as whoever has set
    // the variable wants.
    let library = unsafe { dlopen(path.as_ptr(), RTLD_LAZY) };
    if library.is_null() {
        return Err(last_error());
    }
    let main = function!(symbol(library, c"InitializeInjectionNvtx2"), StartTool);
    if main.is_some_and(|start| start(export_table) == 0) {
        return Err("the tool refused to start".to_owned());
    }
    let extension = symbol(library, c"InitializeInjectionNvtxExtension");
    let extension = function!(extension, StartExtension);
    let (memory, counters) = match extension {
        Some(start) => (start_extension(start, MEMORY, 1), start_extension(start, COUNTERS, 0)),
        None => (leaked_slots(), leaked_slots()),
    };
    let at = |slots: &[AtomicPtr<c_void>], number: usize| slots[number].load(Ordering::Acquire);
    Ok(Functions {
        domain_create: function!(at(&tables().slots[CORE2], DOMAIN_CREATE), DomainCreate),
        heap_register: function!(at(memory, 0), HeapRegister),
        heap_unregister: function!(at(memory, 1), HeapUnregister),
        regions_register: function!(at(memory, 3), RegionsRegister),
        regions_unregister: function!(at(memory, 5), RegionsUnregister),
        counter_register: function!(at(counters, 0), CounterRegister),
        counter_sample: function!(at(counters, 1), CounterSample),
    })
}

/// Offers an extension to the tool, and returns what functions it has for it.
fn start_extension(start: StartExtension, module: u16, id: usize) -> &'static [AtomicPtr<c_void>] {
    let slots = leaked_slots();
    let segment = Segment { id, count: SLOTS, functions: slots.as_ptr() };
    let offered = Extension {
        version: VERSION,
        size: size_of::<Extension>() as u16,
        module,
        compatibility: COMPATIBILITY,
        segments: 1,
        first: &raw const segment,
        export: None,
        more: std::ptr::null(),
    };
    if start(&raw const offered) == 0 {
        slots.iter().for_each(|slot| slot.store(std::ptr::null_mut(), Ordering::Release));
    }
    slots
}

/// Places for the functions of an extension. The tool may keep their address.
fn leaked_slots() -> &'static [AtomicPtr<c_void>] {
    Box::leak(empty_slots(SLOTS))
}

fn symbol(library: *mut c_void, name: &CStr) -> *mut c_void {
    // SAFETY: the library is open, and stays so; the name ends with a zero.
    unsafe { dlsym(library, name.as_ptr()) }
}

fn last_error() -> String {
    // SAFETY: takes nothing.
    let text = unsafe { dlerror() };
    if text.is_null() {
        return "the library cannot be loaded".to_owned();
    }
    // SAFETY: the loader's text ends with a zero, and lives until its next call in this thread.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}
