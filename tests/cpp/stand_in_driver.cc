// A stand-in for the CUDA driver, as far as the example server calls it: shows on a machine without
// a GPU that the server passes the right arguments, in the right order, to the right streams.
//
// Work is queued, and runs as late as possible: when somebody waits for its stream. Only a free in
// stream order runs at once what is queued on its own stream, and overwrites the memory. So work
// that is not ordered after what it needs, or before the free of what it uses, gives wrong results.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <utility>

namespace {

using Word = std::uint32_t;
constexpr std::size_t kTotal = std::size_t{1} << 36;

struct Stream {
  std::deque<std::function<void()>> tasks;
  std::size_t submitted = 0;
  std::size_t completed = 0;
};

struct Event {
  Stream* stream = nullptr;
  std::size_t position = 0;
};

/// A kernel: what it does with its arguments, of which the first `pointers` are addresses.
struct Kernel {
  std::size_t pointers;
  std::size_t numbers;
  void (*run)(Word* const* pointers, const Word* numbers, std::size_t width, std::size_t height);
};

std::recursive_mutex mutex;
std::map<Stream*, bool> streams;
std::map<void*, std::size_t> blocks;
std::size_t live = 0;
std::size_t high = 0;
using Lock = std::lock_guard<std::recursive_mutex>;

void runTo(Stream& stream, std::size_t position) {
  while (stream.completed < position) {
    const std::function<void()> task = std::move(stream.tasks.front());
    stream.tasks.pop_front();
    task();
    ++stream.completed;
  }
}

int submit(Stream* stream, std::function<void()> task) {
  const Lock lock(mutex);
  stream->tasks.push_back(std::move(task));
  ++stream->submitted;
  return 0;
}

void* makeBlock(std::size_t bytes) {
  void* const block = std::malloc(bytes);
  std::memset(block, 0xcd, bytes);
  blocks[block] = bytes;
  live += bytes;
  high = live > high ? live : high;
  return block;
}

void endBlock(void* block) {
  const std::size_t bytes = blocks.at(block);
  std::memset(block, 0xdd, bytes);
  std::free(block);
  blocks.erase(block);
  live -= bytes;
}

// The threads of a kernel, one after another; 256 to a block.

void expand(Word* const* pointers, const Word* numbers, std::size_t width, std::size_t) {
  for (std::size_t i = 0; i < numbers[0] && i < width * 256; ++i) {
    const Word bias = pointers[2] == nullptr ? 0 : pointers[2][i];
    pointers[0][i] = pointers[1][i / numbers[1]] * numbers[2] + bias;
  }
}

void reduce(Word* const* pointers, const Word* numbers, std::size_t width, std::size_t) {
  for (std::size_t i = 0; i < numbers[0] && i < width * 256 / numbers[3]; ++i) {
    Word sum = 0;
    for (std::size_t j = 0; j < numbers[1]; ++j) {
      sum += pointers[1][i * numbers[1] + j];
    }
    pointers[0][i] = sum * numbers[2] + (pointers[2] == nullptr ? 0 : pointers[2][i]);
  }
}

void addColumns(Word* const* pointers, const Word* numbers, std::size_t width, std::size_t height) {
  for (std::size_t row = 0; row < numbers[0] && row < height * numbers[2]; ++row) {
    for (std::size_t column = 0; column < numbers[1] && column < width * 256; ++column) {
      pointers[0][column] += pointers[1][row * numbers[1] + column];
    }
  }
}

const std::map<std::string, Kernel> kernels = {
    {"expand", {3, 3, &expand}}, {"reduce", {3, 4, &reduce}}, {"add_columns", {2, 3, &addColumns}}};

}  // namespace

extern "C" {

int cuInit(unsigned) { return 0; }
int cuDeviceGetCount(int* count) { return *count = 1, 0; }
int cuDeviceGet(int* device, int) { return *device = 0, 0; }
int cuDevicePrimaryCtxRetain(void** context, int) { return *context = &mutex, 0; }
int cuCtxSetCurrent(void*) { return 0; }
int cuGetErrorName(int, const char** name) { return *name = "ERROR", 0; }
int cuGetErrorString(int, const char** text) { return *text = "an error", 0; }
int cuDeviceGetName(char* text, int, int) { return std::strcpy(text, "stand-in"), 0; }

int cuMemGetInfo_v2(std::size_t* free, std::size_t* total) {
  const Lock lock(mutex);
  *total = kTotal;
  *free = kTotal - live;
  return 0;
}
int cuMemAlloc_v2(void** block, std::size_t bytes) {
  const Lock lock(mutex);
  return *block = makeBlock(bytes), 0;
}
int cuMemFree_v2(void* block) {
  const Lock lock(mutex);
  for (const auto& [stream, _] : streams) {
    runTo(*stream, stream->submitted);
  }
  return endBlock(block), 0;
}
int cuMemAllocAsync(void** block, std::size_t bytes, Stream*) {
  return cuMemAlloc_v2(block, bytes);
}
int cuMemFreeAsync(void* block, Stream* stream) {
  const Lock lock(mutex);
  submit(stream, [block] { endBlock(block); });
  return runTo(*stream, stream->submitted), 0;
}
int cuDeviceGetDefaultMemPool(void** pool, int) { return *pool = &blocks, 0; }
int cuMemPoolSetAttribute(void*, int, void*) { return 0; }
int cuMemPoolGetAttribute(void*, int attribute, void* value) {
  constexpr int kReservedHigh = 6;
  const Lock lock(mutex);
  const std::uint64_t answer = high;
  return std::memcpy(value, &answer, sizeof answer), attribute == kReservedHigh ? 0 : 1;
}
int cuMemHostAlloc(void** buffer, std::size_t bytes, unsigned) {
  return *buffer = std::calloc(1, bytes), 0;
}
int cuMemFreeHost(void* buffer) { return std::free(buffer), 0; }

int cuStreamCreate(Stream** stream, unsigned) {
  const Lock lock(mutex);
  *stream = new Stream;
  streams[*stream] = true;
  return 0;
}
int cuStreamDestroy_v2(Stream* stream) {
  const Lock lock(mutex);
  runTo(*stream, stream->submitted);
  streams.erase(stream);
  delete stream;
  return 0;
}
int cuStreamSynchronize(Stream* stream) {
  const Lock lock(mutex);
  return runTo(*stream, stream->submitted), 0;
}
int cuEventCreate(Event** event, unsigned) { return *event = new Event, 0; }
int cuEventDestroy_v2(Event* event) {
  delete event;
  return 0;
}
int cuEventRecord(Event* event, Stream* stream) {
  const Lock lock(mutex);
  *event = {stream, stream->submitted};
  return 0;
}
int cuStreamWaitEvent(Stream* stream, Event* event, unsigned) {
  return submit(stream, [point = *event] { runTo(*point.stream, point.position); });
}
int cuMemcpyAsync(void* to, const void* from, std::size_t bytes, Stream* stream) {
  return submit(stream, [=] { std::memcpy(to, from, bytes); });
}
int cuMemsetD32Async(Word* to, unsigned value, std::size_t count, Stream* stream) {
  return submit(stream, [=] {
    for (std::size_t i = 0; i < count; ++i) {
      to[i] = value;
    }
  });
}

int cuModuleLoadData(void** module, const void* image) {
  const bool is_ptx = std::strstr(static_cast<const char*>(image), ".version") != nullptr;
  return *module = &mutex, is_ptx ? 0 : 218;
}
int cuModuleGetFunction(const Kernel** kernel, void*, const char* name) {
  const auto found = kernels.find(name);
  return *kernel = found == kernels.end() ? nullptr : &found->second, *kernel == nullptr ? 500 : 0;
}
int cuLaunchKernel(const Kernel* kernel, unsigned width, unsigned height, unsigned depth,
                   unsigned threads, unsigned, unsigned, unsigned, Stream* stream, void** arguments,
                   void**) {
  if (width == 0 || height == 0 || height > 65535 || depth != 1 || threads != 256) {
    return 1;
  }
  Word* pointers[3] = {};
  Word numbers[4] = {};
  for (std::size_t i = 0; i < kernel->pointers; ++i) {
    std::memcpy(&pointers[i], arguments[i], sizeof(Word*));
  }
  for (std::size_t i = 0; i < kernel->numbers; ++i) {
    std::memcpy(&numbers[i], arguments[kernel->pointers + i], sizeof(Word));
  }
  return submit(stream, [=] { kernel->run(pointers, numbers, width, height); });
}

}  // extern "C"
