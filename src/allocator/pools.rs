//! Private pools: memory apart from the rest, for graphs above all.

use std::collections::HashSet;
use std::sync::Arc;

use crate::allocator::Allocator;
use crate::engine::SegmentSource;
use crate::error::Result;
use crate::units::{Address, DeviceId, PoolId, StreamId};

/// # Private pools
///
/// A pool has heaps of its own, one for each stream. It is in use until it was released as often as
/// it was created and begun, and until then its memory stays where it is, idle or not: it is
/// neither moved nor given back, and serves the pool's own streams alone. That is what a captured
/// graph needs, which goes on using what was allocated and freed while it was captured.
///
/// Errors: a device that is not there is [`InvalidDevice`](crate::Error::InvalidDevice), a pool
/// that is not in the state that a method needs
/// [`InvalidArgument`](crate::Error::InvalidArgument), which says what it expected. All methods may
/// be called from any thread.
///
/// ```
/// use plugalloc::device::Device;
/// use plugalloc::{Allocator, DeviceId, PoolId, Stream};
///
/// let (gpu, pool) = (DeviceId(0), PoolId(1, 0));
/// let allocator = Allocator::builder().device("sim").build()?;
/// let stream = Stream::new(&allocator, gpu)?;
/// let id = stream.id();
///
/// allocator.begin_allocate_to_pool(gpu, pool, move |stream| stream == id)?;
/// allocator.device(gpu)?.capture_begin(id)?;
/// let scratch = allocator.allocate(gpu, 1 << 20, id)?;
/// stream.fill(scratch, 7, 1 << 20)?;
/// allocator.free(scratch)?;
/// let graph = allocator.device(gpu)?.capture_end(id)?;
/// allocator.end_allocate_to_pool(gpu, pool)?;
///
/// // Others allocate, and the graph still has its memory.
/// let other = allocator.allocate(gpu, 1 << 20, id)?;
/// assert_ne!(other, scratch);
/// allocator.device(gpu)?.graph_launch(graph, id)?;
///
/// allocator.free(other)?;
/// allocator.device(gpu)?.graph_destroy(graph)?;
/// allocator.release_pool(gpu, pool)?;
/// # Ok::<(), plugalloc::Error>(())
/// ```
impl Allocator {
    /// Makes a pool with one use, or gives it one more. With a `source`, a new pool takes its
    /// memory from there, in whole segments; the source is kept until the pool has given all of
    /// them back.
    ///
    /// # Errors
    /// For [`PoolId::DEFAULT`], and for a source where the pool is in use already.
    pub fn create_or_incref_pool(
        &self,
        device: DeviceId,
        pool: PoolId,
        source: Option<Arc<dyn SegmentSource>>,
    ) -> Result<()> {
        self.enter(device)?.create_or_incref_pool(pool, source)
    }

    /// Sends allocations to the pool, which is made if need be and gets one more use: those on
    /// streams for which `filter` is true, from any thread. Where several pools are open, the one
    /// that was opened last is asked first. Where pools ended that graphs used, or 64 others, the
    /// device is waited for, so that this one can have their memory.
    ///
    /// What is captured may use memory again that the same stream used in the pool before, also
    /// without a capture. Whoever launches the graph on another stream makes that wait for it.
    ///
    /// While a pool is open and one of its streams is being captured, or none has allocated yet, no
    /// event of the device is asked, frees that wait for other streams go on waiting, and nothing
    /// is given back.
    ///
    /// `filter` is called with locks held: it must not call the allocator.
    ///
    /// # Errors
    /// Where allocations go to the pool already.
    pub fn begin_allocate_to_pool(
        &self,
        device: DeviceId,
        pool: PoolId,
        filter: impl Fn(StreamId) -> bool + Send + Sync + 'static,
    ) -> Result<()> {
        self.enter(device)?.begin_pool(pool, Box::new(move |stream| Ok(filter(stream))))
    }

    /// The same with a filter that can fail; an allocation fails with its error.
    pub(crate) fn begin_pool(
        &self,
        device: DeviceId,
        pool: PoolId,
        filter: crate::engine::StreamFilter,
    ) -> Result<()> {
        self.enter(device)?.begin_pool(pool, filter)
    }

    /// Allocations no longer go to the pool. Its uses stay as they are.
    ///
    /// # Errors
    /// Where they did not.
    pub fn end_allocate_to_pool(&self, device: DeviceId, pool: PoolId) -> Result<()> {
        self.enter(device)?.end_pool(pool)
    }

    /// Gives one use of the pool up. With the last one, its memory serves others as any idle memory
    /// does, and what is live in it stays so until it is freed. If the pool was used in a capture,
    /// that begins once the device has been waited for, which happens when memory is short, the
    /// cache is emptied, or another pool is opened: the pool's graphs must not be launched any
    /// more, but may still be running.
    ///
    /// # Errors
    /// Where the pool has no use, or the last is given up while allocations go to it.
    pub fn release_pool(&self, device: DeviceId, pool: PoolId) -> Result<()> {
        self.enter(device)?.release_pool(pool)
    }

    /// How many uses the pool has; 0 where there is no such pool.
    ///
    /// # Errors
    /// Only for a device that is not there.
    pub fn pool_use_count(&self, device: DeviceId, pool: PoolId) -> Result<u32> {
        Ok(self.enter(device)?.pool_use_count(pool))
    }

    /// Lets requests outside of pools that would fail otherwise take what this pool has free on
    /// their stream, or no longer. They do not make the pool larger. Turning it off for a pool that
    /// is not there is fine.
    ///
    /// # Errors
    /// For turning it on where there is no such pool.
    pub fn set_use_on_oom(&self, device: DeviceId, pool: PoolId, use_on_oom: bool) -> Result<()> {
        self.enter(device)?.set_use_on_oom(pool, use_on_oom)
    }

    /// From now on each request in the pool takes a segment of its own, which is not divided: 2 MiB
    /// for up to 1 MiB, `large_segment_size` for less than 10 MiB, else the next multiple of 2 MiB.
    /// A segment that was freed serves any request that fits into it. Such allocations count as
    /// large in the statistics.
    ///
    /// # Errors
    /// Where there is no such pool.
    pub fn set_no_split(&self, device: DeviceId, pool: PoolId) -> Result<()> {
        self.enter(device)?.set_no_split(pool)
    }

    /// Whether the live allocations of the pool are exactly these.
    ///
    /// # Errors
    /// Where there is no such pool.
    pub fn pool_holds_exactly(
        &self,
        device: DeviceId,
        pool: PoolId,
        expected: &HashSet<Address>,
    ) -> Result<bool> {
        self.enter(device)?.pool_holds_exactly(pool, expected)
    }

    /// Gives back what a pool without uses has cached, on all devices; of a pool in use nothing.
    /// [`PoolId::DEFAULT`] stands for everything, as [`empty_cache`](Allocator::empty_cache). May
    /// wait for the device.
    ///
    /// A pool that is not there has nothing to give back, which is no error: a pool without uses is
    /// gone with the last of its memory, and who releases one and empties it, as PyTorch's
    /// `MemPool` does at its end, need not know whether that was before.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) where a driver call fails.
    pub fn empty_pool(&self, pool: PoolId) -> Result<()> {
        self.check_outside()?;
        let results: Vec<_> = self.engines.iter().map(|engine| engine.empty_pool(pool)).collect();
        results.into_iter().collect()
    }

    /// Tells that a capture begins on the device, for captures that use no pool, or whose stream
    /// has not allocated yet: until as many have ended, no event of the device is asked and nothing
    /// is given back.
    ///
    /// # Errors
    /// Only for a device that is not there.
    pub fn mark_capture_begin(&self, device: DeviceId) -> Result<()> {
        self.enter(device)?.mark_capture_begin();
        Ok(())
    }

    /// Tells that a capture has ended.
    ///
    /// # Errors
    /// Where as many have ended as were marked to begin.
    pub fn mark_capture_end(&self, device: DeviceId) -> Result<()> {
        self.enter(device)?.mark_capture_end()
    }

    /// The pool whose memory an address lies in.
    pub(crate) fn pool_at(&self, address: Address) -> Option<PoolId> {
        self.map.get(address).map(|(shard, _)| shard.pool_id())
    }
}
