//! Errors inside deleters, which never throw: kept, and reported by the next call that may. A
//! process of its own, since what is kept is the process's.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use plugalloc::Error;
use plugalloc::cpp::PluggableAllocator;

#[test]
fn an_error_of_a_deleter_is_reported_by_the_next_allocation() {
    let allocator = PluggableAllocator::new(
        |bytes, _, _| Ok(if bytes > 512 { 0x2000 } else { 0x1000 }),
        |address, _, _, _| assert_ne!(address, 0x2000, "this source refuses one address"),
    )
    .expect("a C++ object");

    // A pointer freed twice.
    let block = allocator.raw_alloc(512).expect("given");
    allocator.call_raw_deleter(block).expect("has a deleter");
    allocator.call_raw_deleter(block).expect("deleters do not throw");
    let error = allocator.raw_alloc(512).expect_err("left by the deleter");
    assert!(error.is_invalid_pointer(), "{error}");
    let block = allocator.raw_alloc(512).expect("reported once");
    allocator.raw_delete(block).expect("live");

    // A free function that fails: the allocation is gone all the same.
    let data = allocator.allocate(1024).expect("given");
    drop(data);
    let error = allocator.empty_cache().expect_err("left by the deleter");
    assert!(matches!(&error, Error::Callback { text, .. } if text.contains("refuses")), "{error}");
    assert_eq!(allocator.statistics(0).expect("device 0").allocation.all.current, 0);
    allocator.empty_cache().expect("reported once");
}
