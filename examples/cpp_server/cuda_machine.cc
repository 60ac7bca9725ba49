#include "cuda_machine.h"

#include <array>
#include <utility>

#include "kernels.h"

namespace server {

namespace {

constexpr unsigned kThreads = 256;
constexpr unsigned kWarp = 32;
constexpr unsigned kRowsOfABlock = 64;
/// Sums of fewer words than this are left to one thread each.
constexpr std::size_t kShortSum = 16;

DevicePointer address(const void* pointer) { return reinterpret_cast<DevicePointer>(pointer); }

unsigned blocks(std::size_t threads) {
  return static_cast<unsigned>((threads + kThreads - 1) / kThreads);
}

/// The kernels of kernels.h, compiled by the driver.
struct Kernels {
  explicit Kernels(const CudaDriver& driver) {
    void* module = nullptr;
    driver.check(driver.module_load(&module, kKernels), "cuModuleLoadData");
    driver.check(driver.module_function(&expand, module, "expand"), "cuModuleGetFunction");
    driver.check(driver.module_function(&reduce, module, "reduce"), "cuModuleGetFunction");
    driver.check(driver.module_function(&add_columns, module, "add_columns"),
                 "cuModuleGetFunction");
  }
  void* expand = nullptr;
  void* reduce = nullptr;
  void* add_columns = nullptr;
};

class CudaQueue final : public Queue {
 public:
  CudaQueue(std::shared_ptr<CudaDriver> driver, const Kernels& kernels)
      : driver_(std::move(driver)), kernels_(kernels) {
    constexpr unsigned kNonBlocking = 1;
    constexpr unsigned kDisableTiming = 2;
    driver_->check(driver_->stream_create(&stream_, kNonBlocking), "cuStreamCreate");
    driver_->check(driver_->event_create(&event_, kDisableTiming), "cuEventCreate");
  }
  ~CudaQueue() override {
    driver_->event_destroy(event_);
    driver_->stream_destroy(stream_);
  }

  [[nodiscard]] cudaStream_t stream() const override { return stream_; }

  void expand(const Operands& operands) override {
    launch(kernels_.expand, blocks(operands.count), 1, address(operands.dst), address(operands.src),
           address(operands.bias), static_cast<Word>(operands.count),
           static_cast<Word>(operands.times), operands.scale);
  }

  void reduce(const Operands& operands) override {
    const Word lanes = operands.times < kShortSum ? 1 : kWarp;
    launch(kernels_.reduce, blocks(operands.count * lanes), 1, address(operands.dst),
           address(operands.src), address(operands.bias), static_cast<Word>(operands.count),
           static_cast<Word>(operands.times), operands.scale, lanes);
  }

  void addColumns(Word* dst, const Word* src, std::size_t rows, std::size_t columns) override {
    const auto chunks = static_cast<unsigned>((rows + kRowsOfABlock - 1) / kRowsOfABlock);
    launch(kernels_.add_columns, blocks(columns), chunks, address(dst), address(src),
           static_cast<Word>(rows), static_cast<Word>(columns), Word{kRowsOfABlock});
  }

  void zero(Word* dst, std::size_t count) override {
    driver_->check(driver_->set_words_async(address(dst), 0, count, stream_), "cuMemsetD32Async");
  }

  void copy(Word* dst, const Word* src, std::size_t count) override {
    const std::size_t bytes = count * sizeof(Word);
    driver_->check(driver_->copy_async(address(dst), address(src), bytes, stream_),
                   "cuMemcpyAsync");
  }

  void waitFor(const Queue& other) override {
    // The wait refers to this record; the event is free for the next one at once.
    driver_->check(driver_->event_record(event_, other.stream()), "cuEventRecord");
    driver_->check(driver_->stream_wait_event(stream_, event_, 0), "cuStreamWaitEvent");
  }

  void synchronize() override {
    driver_->check(driver_->stream_synchronize(stream_), "cuStreamSynchronize");
  }

 private:
  template <typename... Arguments>
  void launch(void* kernel, unsigned width, unsigned height, Arguments... arguments) {
    std::array<void*, sizeof...(arguments)> pointers{&arguments...};
    driver_->check(driver_->launch(kernel, width, height, 1, kThreads, 1, 1, 0, stream_,
                                   pointers.data(), nullptr),
                   "cuLaunchKernel");
  }

  std::shared_ptr<CudaDriver> driver_;
  const Kernels& kernels_;
  cudaStream_t stream_ = nullptr;
  void* event_ = nullptr;
};

class CudaMachine final : public Machine {
 public:
  explicit CudaMachine(std::shared_ptr<CudaDriver> driver)
      : driver_(std::move(driver)), kernels_(*driver_) {}

  [[nodiscard]] const char* kind() const override { return "cuda"; }
  [[nodiscard]] std::string name() const override {
    std::array<char, 256> text{};
    driver_->check(driver_->device_get_name(text.data(), text.size() - 1, driver_->device()),
                   "cuDeviceGetName");
    return text.data();
  }
  void enterThread() override { driver_->enterThread(); }
  [[nodiscard]] std::unique_ptr<Queue> makeQueue() override {
    return std::make_unique<CudaQueue>(driver_, kernels_);
  }
  [[nodiscard]] HostBuffer makeHostBuffer(std::size_t words) override {
    void* buffer = nullptr;
    driver_->check(driver_->host_alloc(&buffer, words * sizeof(Word), 0), "cuMemHostAlloc");
    return {static_cast<Word*>(buffer), [driver = driver_](Word* p) { driver->host_free(p); }};
  }
  [[nodiscard]] std::size_t usedBytes() override {
    std::size_t free = 0;
    std::size_t total = 0;
    driver_->check(driver_->mem_get_info(&free, &total), "cuMemGetInfo");
    return total - free;
  }

 private:
  std::shared_ptr<CudaDriver> driver_;
  Kernels kernels_;
};

}  // namespace

std::unique_ptr<Machine> makeCudaMachine(std::shared_ptr<CudaDriver> driver) {
  return std::make_unique<CudaMachine>(std::move(driver));
}

}  // namespace server
