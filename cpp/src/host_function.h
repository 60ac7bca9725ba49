// A function of the host on its way to a stream. Internal.
#pragma once

#include <functional>

namespace plugalloc {
namespace bridge {

/// What the bridge carries, and the stream destroys once it has run.
struct HostFunction {
  std::function<void()> body;
};

/// Runs it. Whatever it throws ends the process: on a stream there is nobody to catch it.
void run_host_function(const HostFunction& function) noexcept;

}  // namespace bridge
}  // namespace plugalloc
