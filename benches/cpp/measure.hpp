// Clock, samples and output of the host-time measurements. Every program prints one JSON object a
// measure; `benches/table.py` adds up the rounds.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

namespace bench {

using Clock = std::chrono::steady_clock;

inline double nanosecondsSince(Clock::time_point start) {
  return std::chrono::duration<double, std::nano>(Clock::now() - start).count();
}

/// How long to measure.
struct Effort {
  int samples = 7;             ///< Samples of each measure; the median and the best are printed.
  double sample_ns = 20e6;     ///< The length of a sample.
  double threads_ns = 150e6;   ///< The length of a sample with threads.
  int threads_samples = 3;     ///< Samples of each measure with threads.

  static Effort quick() { return {3, 2e6, 20e6, 1}; }
};

/// What was measured: less is better for nanoseconds, more for a rate.
struct Sampled {
  double median;
  double best;
};

inline Sampled summary(std::vector<double> samples, bool less_is_better) {
  std::sort(samples.begin(), samples.end());
  const double median = samples[samples.size() / 2];
  return {median, less_is_better ? samples.front() : samples.back()};
}

/// Nanoseconds that one of the operations takes of which `work(n)` does `n`. The number a sample is
/// found by doubling, which also warms up.
template <typename Work>
Sampled sampleTime(const Effort& effort, Work&& work) {
  std::uint64_t count = 16;
  double last_ns = 0;
  for (;;) {
    const auto start = Clock::now();
    work(count);
    last_ns = nanosecondsSince(start);
    if (last_ns >= effort.sample_ns / 4) {
      break;
    }
    count *= 2;
  }
  count = std::max<std::uint64_t>(1, static_cast<std::uint64_t>(
                                         static_cast<double>(count) * effort.sample_ns / last_ns));
  std::vector<double> samples;
  for (int sample = 0; sample < effort.samples; ++sample) {
    const auto start = Clock::now();
    work(count);
    samples.push_back(nanosecondsSince(start) / static_cast<double>(count));
  }
  return summary(std::move(samples), true);
}

/// Prints measures of one way into one allocator.
class Report {
 public:
  explicit Report(std::string peer) : peer_(std::move(peer)) {}

  void time(const std::string& workload, Sampled ns) const { line(workload, "ns", ns); }
  void rate(const std::string& workload, Sampled mpairs) const {
    line(workload, "Mpairs/s", mpairs);
  }

 private:
  void line(const std::string& workload, const char* unit, Sampled sampled) const {
    std::printf(
        R"({"peer": "%s", "workload": "%s", "unit": "%s", "median": %.4g, "best": %.4g})"
        "\n",
        peer_.c_str(), workload.c_str(), unit, sampled.median, sampled.best);
    std::fflush(stdout);
  }

  std::string peer_;
};

/// A generator that is the same in every program and language here (SplitMix64).
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}

  std::uint64_t next() {
    state_ += 0x9e3779b97f4a7c15;
    std::uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  /// Uniform in [0, 1).
  double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }

 private:
  std::uint64_t state_;
};

}  // namespace bench
