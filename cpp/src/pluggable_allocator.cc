// The allocator over user functions. The functions are called here, on the C++ side, so that their
// exceptions reach the caller as they are; what is known of their pointers is kept in Rust.
#include "plugalloc/pluggable_allocator.h"

#include <string>
#include <utility>

#include "deleter_registry.h"
#include "errors.h"
#include "handles.h"
#include "pluggable_state.h"
#include "plugalloc/src/ffi/bridge.rs.h"
#include "plugalloc/stream.h"
#include "statistics.h"
#include "thread_values.h"

PLUGALLOC_BEGIN_NAMESPACE

using bridge::check;
using bridge::toNumber;
using Registry = bridge::DeleterRegistry<PluggableAllocator::State>;

PluggableAllocator::PluggableAllocator(AllocFn alloc_fn, FreeFn free_fn) {
  if (!alloc_fn) {
    bridge::throwInvalidArgument("alloc_fn", "(empty)", "a function that gives memory");
  }
  if (!free_fn) {
    bridge::throwInvalidArgument("free_fn", "(empty)", "a function that takes memory back");
  }
  State::Functions functions;
  functions.alloc = std::move(alloc_fn);
  functions.free = std::move(free_fn);
  state_ = std::make_shared<State>(std::move(functions));
  Registry::add(state_);
}

PluggableAllocator::PluggableAllocator(const PluggableAllocator& other)
    : CUDAAllocator(), state_(std::make_shared<State>(other.state_->call)) {
  check(state_->core->copy_fractions(*other.state_->core));
  Registry::add(state_);
}

PluggableAllocator::~PluggableAllocator() { Registry::retire(state_); }

void PluggableAllocator::set_init_fn(std::function<void(int)> init_fn) {
  state_->call.init = std::move(init_fn);
}
void PluggableAllocator::set_reset_fn(std::function<void()> reset_fn) {
  state_->call.reset = std::move(reset_fn);
}
void PluggableAllocator::set_memory_fraction_fn(
    std::function<void(double, int)> memory_fraction_fn) {
  state_->call.memory_fraction = std::move(memory_fraction_fn);
}
void PluggableAllocator::set_base_alloc_fn(
    std::function<void*(void*, std::size_t*)> base_alloc_fn) {
  state_->call.base_alloc = std::move(base_alloc_fn);
}
void PluggableAllocator::set_record_stream_fn(
    std::function<void(void*, cudaStream_t)> record_stream_fn) {
  state_->call.record_stream = std::move(record_stream_fn);
}
void PluggableAllocator::set_begin_allocate_to_pool(
    std::function<void(int, MempoolId_t, std::function<bool(cudaStream_t)>)> begin_fn) {
  state_->call.begin_pool = std::move(begin_fn);
}
void PluggableAllocator::set_end_allocate_to_pool_fn(std::function<void(int, MempoolId_t)> end_fn) {
  state_->call.end_pool = std::move(end_fn);
}
void PluggableAllocator::set_end_allocate_to_pool(std::function<void(int, MempoolId_t)> end_fn) {
  set_end_allocate_to_pool_fn(std::move(end_fn));
}
void PluggableAllocator::set_release_pool(std::function<void(int, MempoolId_t)> release_fn) {
  state_->call.release_pool = std::move(release_fn);
}
void PluggableAllocator::set_copy_data_fn(
    std::function<void(void*, const void*, std::size_t)> copy_fn) {
  state_->call.copy_data = std::move(copy_fn);
}

const char* PluggableAllocator::name() const noexcept { return "pluggable"; }

void* PluggableAllocator::allocateOn(int device, std::size_t nbytes, cudaStream_t stream) {
  bridge::throwPendingDeleterError();
  check(state_->core->check_request(device));
  void* const block = state_->call.alloc(nbytes, device, stream);
  if (block != nullptr) {
    check(state_->core->record(toNumber(block), nbytes, device, toNumber(stream)));
  } else if (nbytes != 0) {
    check(state_->core->out_of_memory(nbytes, device, toNumber(stream)));
  }
  return block;
}

void* PluggableAllocator::raw_alloc_with_stream(std::size_t nbytes, cudaStream_t stream) {
  return allocateOn(bridge::currentDeviceInline(), nbytes, stream);
}

void* PluggableAllocator::raw_alloc(std::size_t nbytes) {
  const int device = bridge::currentDeviceInline();
  return allocateOn(device, nbytes, currentStream(device));
}

void PluggableAllocator::raw_delete(void* ptr) {
  if (ptr != nullptr) {
    state_->release(ptr);
  }
}

DataPtr PluggableAllocator::allocate(std::size_t nbytes) {
  const int device = bridge::currentDeviceInline();
  void* const block = allocateOn(device, nbytes, currentStream(device));
  return DataPtr(block, block, &Registry::release,
                 Device{DeviceType::CUDA, static_cast<DeviceIndex>(device)});
}

DeleterFnPtr PluggableAllocator::raw_deleter() const { return &Registry::release; }

void PluggableAllocator::copy_data(void* dest, const void* src, std::size_t count) const {
  if (!state_->call.copy_data) {
    throw UnsupportedError("copy_data", name(),
                           "only the user knows how this memory is copied; call set_copy_data_fn");
  }
  state_->call.copy_data(dest, src, count);
}

bool PluggableAllocator::initialized() {
  return state_->initialized.load(std::memory_order_acquire);
}

void PluggableAllocator::init(int device_count) {
  if (state_->call.init) {
    state_->call.init(device_count);
  }
  state_->initialized.store(true, std::memory_order_release);
}

void PluggableAllocator::emptyCache(MempoolId_t) {
  bridge::throwPendingDeleterError();
  if (state_->call.reset) {
    state_->call.reset();
  }
}

void PluggableAllocator::recordStream(const DataPtr& pointer, cudaStream_t stream) {
  if (state_->call.record_stream && pointer.get() != nullptr) {
    state_->call.record_stream(pointer.get(), stream);
  }
}

DeviceStats PluggableAllocator::getDeviceStats(DeviceIndex device) {
  bridge::StatsRecord record{};
  check(state_->core->statistics(device, record));
  return bridge::toStats(record);
}

void PluggableAllocator::resetAccumulatedStats(DeviceIndex device) {
  check(state_->core->reset_accumulated(device));
}

void PluggableAllocator::resetPeakStats(DeviceIndex device) {
  check(state_->core->reset_peaks(device));
}

double PluggableAllocator::getMemoryFraction(DeviceIndex device) {
  double fraction = 1.0;
  check(state_->core->fraction(device, fraction));
  return fraction;
}

void PluggableAllocator::setMemoryFraction(double fraction, DeviceIndex device) {
  check(state_->core->set_fraction(device, fraction));
  if (state_->call.memory_fraction) {
    state_->call.memory_fraction(fraction, device);
  }
}

void PluggableAllocator::enable(bool) {}

bool PluggableAllocator::isEnabled() const { return true; }

void PluggableAllocator::cacheInfo(DeviceIndex device, std::size_t*) {
  check(state_->core->check_request(device));
}

void* PluggableAllocator::getBaseAllocation(void* ptr, std::size_t* size) {
  if (state_->call.base_alloc) {
    if (size != nullptr && state_->core->owns(toNumber(ptr))) {
      bridge::EntryRecord entry{};
      check(state_->core->find(toNumber(ptr), entry));
      *size = entry.bytes;
    }
    return state_->call.base_alloc(ptr, size);
  }
  bridge::EntryRecord entry{};
  check(state_->core->find(toNumber(ptr), entry));
  if (size != nullptr) {
    *size = entry.bytes;
  }
  return ptr;
}

void PluggableAllocator::beginAllocateToPool(DeviceIndex device, MempoolId_t mempool_id,
                                             std::function<bool(cudaStream_t)> filter) {
  if (state_->call.begin_pool) {
    state_->call.begin_pool(device, mempool_id, std::move(filter));
  }
}

void PluggableAllocator::endAllocateToPool(DeviceIndex device, MempoolId_t mempool_id) {
  if (state_->call.end_pool) {
    state_->call.end_pool(device, mempool_id);
  }
}

void PluggableAllocator::releasePool(DeviceIndex device, MempoolId_t mempool_id) {
  if (state_->call.release_pool) {
    state_->call.release_pool(device, mempool_id);
  }
}

PLUGALLOC_END_NAMESPACE
