// The command line.
#pragma once

#include <string>

#include "load.h"

namespace server {

/// What the program was asked to do.
struct Options {
  std::string allocator = "plugalloc";  ///< "plugalloc", "cudaMalloc" or "cudaMallocAsync".
  std::string device = "auto";          ///< "auto", "cuda" or "sim".
  std::string conf;                     ///< For plugalloc, as PLUGALLOC_CONF.
  bool keep = true;                     ///< Whether cudaMallocAsync's pool keeps its memory.
  bool json = false;
  Load load;  ///< Zeros stand for what is usual on the device.
};

/// Reads the command line. Prints what is wrong, or the help that was asked for, and exits.
Options parse(int count, char** values);
/// Fills in what is usual: on a GPU a load that keeps it busy for seconds, on the simulator one
/// that a small machine serves in a moment.
void settle(Load& load, bool gpu);

}  // namespace server
