#include "sim_machine.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include <plugalloc/device_stream.h>

#include "host_kernels.h"

namespace server {

namespace {

class SimQueue final : public Queue {
 public:
  explicit SimQueue(plugalloc::CUDAAllocator& allocator) : stream_(allocator) {}

  [[nodiscard]] cudaStream_t stream() const override { return stream_.get(); }
  void expand(const Operands& operands) override {
    stream_.launchHostFunc([operands] { expandOnHost(operands); });
  }
  void reduce(const Operands& operands) override {
    stream_.launchHostFunc([operands] { reduceOnHost(operands); });
  }
  void addColumns(Word* dst, const Word* src, std::size_t rows, std::size_t columns) override {
    stream_.launchHostFunc([=] { addColumnsOnHost(dst, src, rows, columns); });
  }
  void zero(Word* dst, std::size_t count) override {
    stream_.launchHostFunc([=] { std::fill_n(dst, count, Word{0}); });
  }
  void copy(Word* dst, const Word* src, std::size_t count) override {
    stream_.launchHostFunc([=] { std::memcpy(dst, src, count * sizeof(Word)); });
  }
  void waitFor(const Queue& other) override {
    stream_.waitFor(static_cast<const SimQueue&>(other).stream_);
  }
  void synchronize() override { stream_.synchronize(); }

 private:
  plugalloc::DeviceStream stream_;
};

class SimMachine final : public Machine {
 public:
  explicit SimMachine(std::shared_ptr<plugalloc::CUDAAllocator> allocator)
      : allocator_(std::move(allocator)) {}

  [[nodiscard]] const char* kind() const override { return "sim"; }
  [[nodiscard]] std::string name() const override { return "simulated device"; }
  void enterThread() override {}
  [[nodiscard]] std::unique_ptr<Queue> makeQueue() override {
    return std::make_unique<SimQueue>(*allocator_);
  }
  [[nodiscard]] HostBuffer makeHostBuffer(std::size_t words) override {
    return {new Word[words](), std::default_delete<Word[]>()};
  }
  [[nodiscard]] std::size_t usedBytes() override {
    const auto [free, total] = allocator_->getMemoryInfo(0);
    return total - free;
  }

 private:
  std::shared_ptr<plugalloc::CUDAAllocator> allocator_;
};

}  // namespace

std::unique_ptr<Machine> makeSimMachine(std::shared_ptr<plugalloc::CUDAAllocator> allocator) {
  return std::make_unique<SimMachine>(std::move(allocator));
}

}  // namespace server
