// What the program prints.
#pragma once

#include <cstddef>
#include <string>

#include "load.h"
#include "server.h"

namespace server {

/// Where and with what a load was served.
struct Setting {
  std::string allocator;          ///< As on the command line.
  std::string device;             ///< "cuda" or "sim".
  std::string device_name;        ///< For people.
  std::size_t reserved_peak = 0;  ///< Bytes that the allocator held at once, at most.
};

/// The latency below which a share `share` of the requests lies, in microseconds; 0 without any.
double percentile(const Result& result, double share);
void printText(const Setting& setting, const Load& load, const Result& result);
/// One object on one line; sizes in bytes, latencies in microseconds.
void printJson(const Setting& setting, const Load& load, const Result& result);

}  // namespace server
