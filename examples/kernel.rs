//! A kernel on memory of the allocator: `y = a * x + y`, launched through cudarc on a GPU. Where
//! there is no GPU it says so, and does the same with a function of the host on the simulated
//! device. The result is checked in both cases.
//!
//!     cargo run --release --example kernel

use std::error::Error as StdError;
use std::ffi::{CString, c_void};
use std::sync::Arc;

use cudarc::driver::sys::{CUfunction, CUstream};
use cudarc::driver::{CudaContext, result};
use plugalloc::error::DeviceErrorKind;
use plugalloc::{Address, Allocation, Allocator, DeviceId, Error, Stream};

const DEVICE: DeviceId = DeviceId(0);
const COUNT: usize = 1 << 20;
const FACTOR: f32 = 3.0;

/// The kernel for every GPU from sm_70 on; the driver compiles it.
const PTX: &str = "
.version 6.4
.target sm_70
.address_size 64

.visible .entry saxpy(
    .param .u64 p_y, .param .u64 p_x, .param .f32 p_a, .param .u32 p_count)
{
    .reg .pred %past;
    .reg .b32 %i, %block, %threads, %thread, %count;
    .reg .f32 %a, %left, %right;
    .reg .b64 %x, %y;

    ld.param.u32 %count, [p_count];
    mov.u32 %block, %ctaid.x;
    mov.u32 %threads, %ntid.x;
    mov.u32 %thread, %tid.x;
    mad.lo.u32 %i, %block, %threads, %thread;
    setp.ge.u32 %past, %i, %count;
    @%past ret;

    ld.param.f32 %a, [p_a];
    ld.param.u64 %x, [p_x];
    ld.param.u64 %y, [p_y];
    cvta.to.global.u64 %x, %x;
    cvta.to.global.u64 %y, %y;
    mad.wide.u32 %x, %i, 4, %x;
    mad.wide.u32 %y, %i, 4, %y;
    ld.global.f32 %left, [%x];
    ld.global.f32 %right, [%y];
    fma.rn.f32 %right, %a, %left, %right;
    st.global.f32 [%y], %right;
    ret;
}
";

type Outcome<T> = Result<T, Box<dyn StdError>>;

/// Two vectors of `COUNT` floats in device memory.
struct Vectors {
    x: Allocation,
    y: Allocation,
}

/// The kernel, and the context in which it was loaded.
struct Kernel {
    function: CUfunction,
    _context: Arc<CudaContext>,
}

impl Kernel {
    /// Compiles it in the primary context, which the allocator uses as well.
    fn load() -> Outcome<Kernel> {
        let context = CudaContext::new(0)?;
        context.bind_to_thread()?;
        let text = CString::new(PTX)?;
        // SAFETY: a text that ends with a zero is one of the images that the driver accepts.
        let module = unsafe { result::module::load_data(text.as_ptr().cast()) }?;
        // SAFETY: the module was loaded just now, in the context that is current.
        let function = unsafe { result::module::get_function(module, CString::new("saxpy")?) }?;
        Ok(Kernel { function, _context: context })
    }

    /// Queues it on the stream.
    fn launch(&self, vectors: &Vectors, stream: &Stream) -> Outcome<()> {
        const THREADS: u32 = 256;
        let (mut y, mut x) = (vectors.y.address(), vectors.x.address());
        let (mut factor, mut count) = (FACTOR, COUNT as u32);
        let mut arguments: [*mut c_void; 4] = [
            (&raw mut y).cast(),
            (&raw mut x).cast(),
            (&raw mut factor).cast(),
            (&raw mut count).cast(),
        ];
        let grid = (count.div_ceil(THREADS), 1, 1);
        let handle = stream.id().0 as CUstream;
        // SAFETY: the arguments have the kernel's types, in its order; each vector has `count`
        // floats, and lives until work queued after this has run.
        unsafe {
            result::launch_kernel(self.function, grid, (THREADS, 1, 1), 0, handle, &mut arguments)
        }?;
        Ok(())
    }
}

/// What the kernel does, queued as a function of the host: memory of the simulated device is memory
/// of the host.
fn launch_on_host(vectors: &Vectors, stream: &Stream) -> plugalloc::Result<()> {
    let (x, y) = (vectors.x.address(), vectors.y.address());
    stream.host_function(Box::new(move || {
        // SAFETY: the memory is mapped, has `COUNT` floats, and nobody writes it meanwhile: what
        // is queued before has run, and what is queued later waits.
        let x = unsafe { std::slice::from_raw_parts(x as *const f32, COUNT) };
        // SAFETY: as above, and it is another allocation.
        let y = unsafe { std::slice::from_raw_parts_mut(y as *mut f32, COUNT) };
        for (right, left) in y.iter_mut().zip(x) {
            *right = FACTOR.mul_add(*left, *right);
        }
    }))
}

/// An allocator over the GPU and its kernel, or over the simulator and none.
fn open() -> Outcome<(Arc<Allocator>, Option<Kernel>)> {
    match Allocator::builder().device("cuda").build() {
        Ok(allocator) => Ok((allocator, Some(Kernel::load()?))),
        Err(Error::Device(error)) if error.kind == DeviceErrorKind::NoDevice => {
            println!("{error}; using the simulated device");
            Ok((Allocator::builder().device("sim").build()?, None))
        }
        Err(error) => Err(error.into()),
    }
}

/// Device memory with these floats in it.
fn upload(allocator: &Arc<Allocator>, stream: &Stream, from: &[f32]) -> Outcome<Allocation> {
    let bytes = size_of_val(from) as u64;
    let memory = allocator.alloc(DEVICE, bytes, stream.id())?;
    // SAFETY: the floats are borrowed until the copy has run.
    unsafe { stream.copy(memory.address(), from.as_ptr() as Address, bytes) }?;
    stream.synchronize()?;
    Ok(memory)
}

fn main() -> Outcome<()> {
    let (allocator, kernel) = open()?;
    let stream = Stream::new(&allocator, DEVICE)?;
    let x: Vec<f32> = (0..COUNT).map(|i| (i % 1000) as f32).collect();
    let y: Vec<f32> = (0..COUNT).map(|i| (i % 77) as f32).collect();
    let vectors =
        Vectors { x: upload(&allocator, &stream, &x)?, y: upload(&allocator, &stream, &y)? };
    match &kernel {
        Some(kernel) => kernel.launch(&vectors, &stream)?,
        None => launch_on_host(&vectors, &stream)?,
    }
    let mut sums = vec![0f32; COUNT];
    // SAFETY: the memory stays there, and nobody else uses it, until the copy has run.
    unsafe { stream.copy(sums.as_mut_ptr() as Address, vectors.y.address(), vectors.y.bytes()) }?;
    stream.synchronize()?;

    // These numbers are small and whole, so that the sums are exact on every device.
    let is_right = |i: usize| sums[i] == FACTOR * x[i] + y[i];
    let wrong = (0..COUNT).filter(|&i| !is_right(i)).count();
    let device = allocator.device(DEVICE)?.name();
    println!("{COUNT} sums on {device}, {wrong} wrong");
    drop(vectors);
    drop(stream);
    allocator.process_events()?;
    allocator.is_quiescent()?;
    if wrong == 0 { Ok(()) } else { Err(format!("{wrong} sums are wrong").into()) }
}

#[test]
fn every_sum_is_right() {
    main().unwrap();
}
