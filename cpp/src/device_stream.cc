// Streams of an allocator's device: each method is one call of that device.
#include "plugalloc/device_stream.h"

#include <string>
#include <utility>

#include "caching_state.h"
#include "errors.h"
#include "handles.h"
#include "host_function.h"
#include "plugalloc/caching_allocator.h"
#include "plugalloc/src/ffi/bridge.rs.h"
#include "thread_values.h"

namespace plugalloc {
namespace bridge {

void run_host_function(const HostFunction& function) noexcept { function.body(); }

}  // namespace bridge
}  // namespace plugalloc

PLUGALLOC_BEGIN_NAMESPACE

using bridge::check;

struct __attribute__((visibility("hidden"))) DeviceStream::State {
  std::shared_ptr<CachingAllocator::State> engine;
  int device = 0;
  std::uint64_t id = 0;
};

DeviceStream::DeviceStream(CUDAAllocator& allocator, int device)
    : state_(std::make_unique<State>()) {
  const auto* const caching = dynamic_cast<const CachingAllocator*>(&allocator);
  if (caching == nullptr) {
    throw UnsupportedError("DeviceStream", allocator.name(),
                           "only a caching allocator knows its device; use the streams of the "
                           "source of the memory");
  }
  state_->engine = caching->state_;
  state_->device = device == -1 ? bridge::currentDeviceInline() : device;
  check(state_->engine->core->stream_create(state_->device, state_->id));
}

DeviceStream::~DeviceStream() {
  // Nobody is left to tell: a stream that cannot be destroyed is one of a lost device.
  (void)state_->engine->core->stream_destroy(state_->device, state_->id);
}

cudaStream_t DeviceStream::get() const noexcept { return bridge::toStream(state_->id); }

int DeviceStream::device() const noexcept { return state_->device; }

void DeviceStream::launchHostFunc(std::function<void()> function) {
  if (!function) {
    bridge::throwInvalidArgument("function", "(empty)", "a function");
  }
  auto shared = std::make_unique<bridge::HostFunction>(bridge::HostFunction{std::move(function)});
  check(state_->engine->core->host_function(state_->device, state_->id, std::move(shared)));
}

void DeviceStream::waitFor(const DeviceStream& other) {
  if (other.state_->device != state_->device) {
    bridge::throwInvalidArgument("stream", "of device " + std::to_string(other.state_->device),
                                 "a stream of device " + std::to_string(state_->device));
  }
  check(state_->engine->core->stream_wait(state_->device, state_->id, other.state_->id));
}

void DeviceStream::synchronize() const {
  check(state_->engine->core->synchronize(state_->device, state_->id));
}

void CachingAllocator::retireStream(DeviceIndex device, cudaStream_t stream) {
  check(state_->core->stream_retire(device, bridge::toNumber(stream)));
}

PLUGALLOC_END_NAMESPACE
