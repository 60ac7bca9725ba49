// The workloads, over any client with
//
//     void* alloc(std::size_t bytes, Stream stream);
//     void free(void* pointer, std::size_t bytes, Stream stream);
//     void enterThread();       // called first on every thread
//     void readStatistics();    // whatever the allocator can tell; only if kHasStatistics
//     void recordHistory(bool on, bool contexts);  // the same
//
// so that each allocator does the same work. Nothing touches the memory.
#pragma once

#include <atomic>
#include <cmath>
#include <cstddef>
#include <string>
#include <thread>
#include <vector>

#include "measure.hpp"

struct CUstream_st;

namespace bench {

using Stream = CUstream_st*;

constexpr std::size_t kKiB = 1024;
constexpr std::size_t kMiB = 1024 * kKiB;

/// One allocation and its free at once, again and again: the cache hit.
template <typename Client>
Sampled hotPair(const Effort& effort, Client& client, Stream stream, std::size_t bytes) {
  return sampleTime(effort, [&](std::uint64_t count) {
    for (std::uint64_t k = 0; k < count; ++k) {
      client.free(client.alloc(bytes, stream), bytes, stream);
    }
  });
}

/// The temporaries of eight decoder layers of slightly different sizes; each lives until six more
/// have been allocated. A time is that of one allocation with its free.
template <typename Client>
Sampled decoderLayers(const Effort& effort, Client& client, Stream stream) {
  constexpr std::size_t kLifetime = 6;
  const std::size_t layer[] = {4 * kMiB, 12 * kMiB, 512,       64 * kKiB, 4 * kMiB,
                               16 * kMiB, 2 * kKiB, 16 * kMiB, 4 * kMiB,  256 * kKiB};
  std::vector<std::size_t> sizes;
  for (std::size_t k = 0; k < 8; ++k) {
    for (const std::size_t bytes : layer) {
      sizes.push_back(bytes + k * 512);
    }
  }
  std::vector<void*> blocks(sizes.size());
  Sampled per_pass = sampleTime(effort, [&](std::uint64_t count) {
    for (std::uint64_t pass = 0; pass < count; ++pass) {
      for (std::size_t k = 0; k < sizes.size() + kLifetime; ++k) {
        if (k < sizes.size()) {
          blocks[k] = client.alloc(sizes[k], stream);
        }
        if (k >= kLifetime) {
          client.free(blocks[k - kLifetime], sizes[k - kLifetime], stream);
        }
      }
    }
  });
  const double allocations = static_cast<double>(sizes.size());
  return {per_pass.median / allocations, per_pass.best / allocations};
}

/// A set of live blocks in which a random one is replaced, again and again. Sizes are log-uniform
/// from 512 bytes to `max_bytes`.
template <typename Client>
class LiveSet {
 public:
  LiveSet(Client& client, Stream stream, std::uint64_t seed, std::size_t live,
          std::size_t max_bytes)
      : client_(client), stream_(stream), sizes_(4096), places_(1 << 16), blocks_(live) {
    Random random(seed);
    const double span = std::log2(static_cast<double>(max_bytes)) - 9.0;
    for (std::size_t& bytes : sizes_) {
      bytes = static_cast<std::size_t>(std::exp2(9.0 + span * random.uniform()));
    }
    for (std::size_t& place : places_) {
      place = static_cast<std::size_t>(random.next() % live);
    }
    for (Block& block : blocks_) {
      fill(block);
    }
    replace(4 * std::min<std::size_t>(live, 100000));
  }
  ~LiveSet() {
    for (const Block& block : blocks_) {
      client_.free(block.pointer, block.bytes, stream_);
    }
  }
  LiveSet(const LiveSet&) = delete;
  LiveSet& operator=(const LiveSet&) = delete;

  void replace(std::uint64_t count) {
    for (std::uint64_t k = 0; k < count; ++k) {
      Block& block = blocks_[places_[next_place_++ & 0xffff]];
      client_.free(block.pointer, block.bytes, stream_);
      fill(block);
    }
  }

 private:
  struct Block {
    void* pointer = nullptr;
    std::size_t bytes = 0;
  };

  void fill(Block& block) {
    block.bytes = sizes_[next_size_++ & 4095];
    block.pointer = client_.alloc(block.bytes, stream_);
  }

  Client& client_;
  Stream stream_;
  std::vector<std::size_t> sizes_;
  std::vector<std::size_t> places_;
  std::vector<Block> blocks_;
  std::size_t next_size_ = 0;
  std::size_t next_place_ = 0;
};

template <typename Client>
Sampled randomReplacement(const Effort& effort, Client& client, Stream stream, std::size_t live,
                          std::size_t max_bytes) {
  LiveSet<Client> set(client, stream, 1, live, max_bytes);
  return sampleTime(effort, [&](std::uint64_t count) { set.replace(count); });
}

/// What one thread of `threadsRate` does until told to stop: pairs a nanosecond.
template <typename Client>
double threadRate(Client& client, Stream stream, std::uint64_t seed, std::atomic<int>& ready,
                  const std::atomic<int>& phase) {
  client.enterThread();
  LiveSet<Client> set(client, stream, seed, 64, kMiB);
  ready.fetch_add(1);
  while (phase.load(std::memory_order_acquire) == 0) {
    std::this_thread::yield();
  }
  constexpr std::uint64_t kBatch = 64;
  std::uint64_t pairs = 0;
  const auto start = Clock::now();
  while (phase.load(std::memory_order_relaxed) == 1) {
    set.replace(kBatch);
    pairs += kBatch;
  }
  const double elapsed = nanosecondsSince(start);
  // Until all have measured nobody leaves: the last frees of a set are no part of the workload.
  ready.fetch_sub(1);
  while (ready.load() > 0) {
    std::this_thread::yield();
  }
  return static_cast<double>(pairs) / elapsed;
}

/// Million pairs a second of all threads together, each replacing in a live set of its own, on the
/// stream `streams[t % streams.size()]`.
template <typename Client>
Sampled threadsRate(const Effort& effort, Client& client, const std::vector<Stream>& streams,
                    int threads) {
  std::vector<double> samples;
  for (int sample = 0; sample < effort.threads_samples; ++sample) {
    std::atomic<int> ready{0};
    std::atomic<int> phase{0};
    std::vector<double> rates(static_cast<std::size_t>(threads));
    std::vector<std::thread> team;
    for (std::size_t t = 0; t < rates.size(); ++t) {
      team.emplace_back([&, t] {
        const Stream stream = streams[t % streams.size()];
        rates[t] = threadRate(client, stream, 7 + t, ready, phase);
      });
    }
    while (ready.load() < threads) {
      std::this_thread::yield();
    }
    phase.store(1, std::memory_order_release);
    std::this_thread::sleep_for(std::chrono::duration<double, std::nano>(effort.threads_ns));
    phase.store(2, std::memory_order_release);
    double total = 0;
    for (std::size_t t = 0; t < rates.size(); ++t) {
      team[t].join();
      total += rates[t];
    }
    samples.push_back(1e3 * total);
  }
  return summary(std::move(samples), false);
}

}  // namespace bench
