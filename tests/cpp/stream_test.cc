// The current device and stream of a thread.
#include <doctest/doctest.h>
#include <plugalloc/plugalloc.h>

#include <cstdint>
#include <thread>

using namespace plugalloc;

namespace {

cudaStream_t streamOf(std::uintptr_t number) { return reinterpret_cast<cudaStream_t>(number); }
int provideDevice() { return 3; }
cudaStream_t provideStream(int device) {
  return streamOf(100 + static_cast<std::uintptr_t>(device));
}

}  // namespace

TEST_CASE("GuardsRestoreWhatWas") {
  CHECK(currentDevice() == 0);
  CHECK(currentStream() == nullptr);
  {
    const StreamGuard outer(streamOf(1), 2);
    CHECK(currentDevice() == 2);
    CHECK(currentStream() == streamOf(1));
    {
      const DeviceGuard inner(5);
      const StreamGuard stream(streamOf(7));
      CHECK(currentDevice() == 5);
      CHECK(currentStream() == streamOf(7));
      CHECK(currentStream(2) == streamOf(1));
    }
    CHECK(currentDevice() == 2);
    CHECK(currentStream(5) == nullptr);
  }
  CHECK(currentDevice() == 0);
  CHECK(currentStream(2) == nullptr);
}

TEST_CASE("EachThreadHasItsOwn") {
  const StreamGuard guard(streamOf(9), 1);
  std::thread([] {
    CHECK(currentDevice() == 0);
    CHECK(currentStream(1) == nullptr);
  }).join();
}

TEST_CASE("ProvidersAnswerForThreadsThatSetNothing") {
  setCurrentDeviceProvider(&provideDevice);
  setCurrentStreamProvider(&provideStream);
  CHECK(currentDevice() == 3);
  CHECK(currentStream() == streamOf(103));
  {
    const StreamGuard guard(nullptr, 4);
    CHECK(currentDevice() == 4);
    CHECK(currentStream() == nullptr);
  }
  setCurrentDevice(6);
  CHECK(currentDevice() == 6);
  setCurrentDevice(-1);
  CHECK(currentDevice() == 3);
  setCurrentStream(streamOf(8));
  CHECK(currentStream() == streamOf(8));
  resetCurrentStream();
  CHECK(currentStream() == streamOf(103));
  setCurrentDeviceProvider(nullptr);
  setCurrentStreamProvider(nullptr);
  CHECK(currentDevice() == 0);
}

TEST_CASE("DevicesOutOfRangeAreRefused") {
  CHECK_THROWS_AS(setCurrentDevice(-2), InvalidArgumentError);
  CHECK_THROWS_AS(setCurrentDevice(kMaxDevices), InvalidArgumentError);
  CHECK_THROWS_AS(setCurrentStream(nullptr, kMaxDevices), InvalidArgumentError);
  CHECK_THROWS_AS(DeviceGuard(-1), InvalidArgumentError);
  CHECK_THROWS_AS(StreamGuard(nullptr, kMaxDevices), InvalidArgumentError);
  CHECK(currentDevice() == 0);
  CHECK(currentStream(1000) == nullptr);
}
