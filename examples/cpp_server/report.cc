#include "report.h"

#include <algorithm>
#include <cinttypes>
#include <cmath>
#include <cstdio>

namespace server {

namespace {

constexpr double kMiB = 1U << 20;

double rate(const Result& result) {
  return static_cast<double>(result.latencies.size()) / result.seconds;
}

double mebibytes(std::size_t bytes) { return static_cast<double>(bytes) / kMiB; }

/// The text as a JSON string. A device's name has quotes only where somebody jokes.
std::string quoted(const std::string& text) {
  std::string result = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      result += '\\';
    }
    result += c;
  }
  return result + '"';
}

}  // namespace

double percentile(const Result& result, double share) {
  const std::size_t count = result.latencies.size();
  if (count == 0) {
    return 0;
  }
  const double rank = std::ceil(share * static_cast<double>(count));
  const auto index = static_cast<std::size_t>(std::max(rank, 1.0)) - 1;
  return result.latencies[std::min(index, count - 1)];
}

void printText(const Setting& setting, const Load& load, const Result& result) {
  std::printf("%s on %s (%s), %s shapes, %d workers\n", setting.allocator.c_str(),
              setting.device.c_str(), setting.device_name.c_str(),
              load.random_shapes ? "random" : "fixed", load.workers);
  std::printf("  %zu requests in %.3f s, %" PRIu64 " refused, %" PRIu64 " wrong\n",
              result.latencies.size(), result.seconds, result.refused, result.wrong);
  std::printf("  throughput   %.0f requests/s, %.0f allocations/s\n", rate(result),
              static_cast<double>(result.allocations) / result.seconds);
  std::printf("  latency      p50 %.0f us, p90 %.0f us, p99 %.0f us, max %.0f us\n",
              percentile(result, 0.5), percentile(result, 0.9), percentile(result, 0.99),
              percentile(result, 1));
  std::printf(
      "  memory       live peak %.0f MiB, reserved peak %.0f MiB, in use at the end %.0f MiB\n",
      mebibytes(result.live_peak), mebibytes(setting.reserved_peak), mebibytes(result.used_at_end));
}

void printJson(const Setting& setting, const Load& load, const Result& result) {
  std::printf("{\"allocator\": %s, \"device\": %s, \"device_name\": %s, \"shapes\": \"%s\"",
              quoted(setting.allocator).c_str(), quoted(setting.device).c_str(),
              quoted(setting.device_name).c_str(), load.random_shapes ? "random" : "fixed");
  std::printf(", \"workers\": %d, \"sessions\": %zu, \"requests\": %zu", load.workers,
              load.sessions, result.latencies.size());
  std::printf(", \"refused\": %" PRIu64 ", \"wrong\": %" PRIu64, result.refused, result.wrong);
  std::printf(", \"seconds\": %.6f, \"requests_per_second\": %.3f, \"allocations\": %" PRIu64,
              result.seconds, rate(result), result.allocations);
  std::printf(", \"p50_us\": %.1f, \"p90_us\": %.1f, \"p99_us\": %.1f, \"max_us\": %.1f",
              percentile(result, 0.5), percentile(result, 0.9), percentile(result, 0.99),
              percentile(result, 1));
  std::printf(", \"live_peak\": %zu, \"reserved_peak\": %zu, \"used_at_end\": %zu}\n",
              result.live_peak, setting.reserved_peak, result.used_at_end);
}

}  // namespace server
