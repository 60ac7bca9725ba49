//! What compute-sanitizer is to find, and what it is not to: see `sanitize.sh` beside this file.

use plugalloc::device::Device;
use plugalloc::nvtx::{Status, status};
use plugalloc::units::{MIB, StreamId};
use plugalloc::{Allocator, Config};

use crate::contexts::with_primary_context;
use crate::kernels::Kernels;
use crate::{GPU, gpu};

/// Set where the mistake below is wanted.
const WANTED: &str = "PLUGALLOC_OVERRUN";

/// Reads the word behind the end of a block, which lies well inside the memory that the allocator
/// has taken from the driver: no tool sees that unless it is told of blocks. The program itself is
/// none the wiser, and passes.
#[test]
fn a_read_past_the_end_of_a_block() {
    if std::env::var_os(WANTED).is_none() {
        println!("skipped: makes a mistake on purpose where {WANTED} is set");
        return;
    }
    let Some(gpu) = gpu() else { return };
    with_primary_context(|| {
        let device = gpu.device.clone() as std::sync::Arc<dyn Device>;
        let allocator = Allocator::new(vec![device], Config::from_environment().unwrap()).unwrap();
        println!("tool: {:?}", status());
        assert!(status() != Status::Absent, "without a tool nobody is told");
        let kernels = Kernels::load();
        let stream = StreamId::DEFAULT;
        let block = allocator.allocate(GPU, 1000, stream).unwrap();
        let large = allocator.allocate(GPU, 5 * MIB + 4, stream).unwrap();
        let result = allocator.allocate(GPU, 4, stream).unwrap();
        gpu.device.fill_async(block, 1, 1000, stream).unwrap();
        gpu.device.fill_async(large, 1, 5 * MIB + 4, stream).unwrap();
        // The last word is theirs, the next one is not.
        for at in [block + 996, large + 5 * MIB] {
            kernels.peek(at, result, stream);
            gpu.device.stream_synchronize(stream).unwrap();
        }
        println!("within its blocks so far");
        for at in [block + 1000, large + 5 * MIB + 4] {
            kernels.peek(at, result, stream);
            // A tool may stop the kernel, and the stream with it.
            println!("past the end: {:?}", gpu.device.stream_synchronize(stream));
        }
        for at in [block, large, result] {
            allocator.free(at).unwrap();
        }
    });
}
