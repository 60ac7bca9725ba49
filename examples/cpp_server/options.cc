#include "options.h"

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <map>

#include "pattern.h"

namespace server {

namespace {

constexpr const char* kHelp =
    "cpp_server: an inference server's use of an allocator\n"
    "\n"
    "  --allocator plugalloc|cudaMalloc|cudaMallocAsync   (plugalloc)\n"
    "  --device auto|cuda|sim         the GPU, or the simulated one (auto: if there is no GPU)\n"
    "  --shapes random|fixed          of the requests (random)\n"
    "  --workers N                    threads, a stream each\n"
    "  --requests N, --warmup N       of each worker, timed and before that\n"
    "  --layers N, --hidden N         of the model; hidden is a multiple of 256 words\n"
    "  --longest N                    tokens of the longest prompt, at least 64\n"
    "  --sessions N                   conversations that each worker keeps at most (0, in which\n"
    "                                 each request stands alone)\n"
    "  --release-threshold max|0      of cudaMallocAsync's pool (max)\n"
    "  --conf TEXT                    options of plugalloc, as in PLUGALLOC_CONF\n"
    "  --json                         prints one object instead of a text\n";

[[noreturn]] void refuse(const std::string& problem) {
  std::fprintf(stderr, "cpp_server: %s; see --help\n", problem.c_str());
  std::exit(2);
}

/// The value, if it is one of these.
std::string oneOf(const std::string& option, const std::string& value,
                  std::initializer_list<const char*> known) {
  for (const char* const each : known) {
    if (value == each) {
      return value;
    }
  }
  refuse("'" + value + "' is no value of " + option);
}

std::size_t number(const std::string& option, const std::string& value, std::size_t least,
                   std::size_t most) {
  char* end = nullptr;
  errno = 0;
  const unsigned long long parsed = std::strtoull(value.c_str(), &end, 10);
  const bool is_number = !value.empty() && std::strspn(value.c_str(), "0123456789") == value.size();
  if (!is_number || errno != 0 || parsed < least || parsed > most) {
    refuse(option + " is a number from " + std::to_string(least) + " to " + std::to_string(most) +
           ", not '" + value + "'");
  }
  return parsed;
}

using Setters = std::map<std::string, std::function<void(const std::string&)>>;

/// What each option that takes a value does with it.
Setters settersOf(Options& options) {
  Load& load = options.load;
  return {
      {"--allocator",
       [&](const std::string& v) {
         options.allocator =
             oneOf("--allocator", v, {"plugalloc", "cudaMalloc", "cudaMallocAsync"});
       }},
      {"--device",
       [&](const std::string& v) {
         options.device = oneOf("--device", v, {"auto", "cuda", "sim"});
       }},
      {"--shapes",
       [&](const std::string& v) {
         load.random_shapes = oneOf("--shapes", v, {"random", "fixed"}) == "random";
       }},
      {"--release-threshold",
       [&](const std::string& v) {
         options.keep = oneOf("--release-threshold", v, {"max", "0"}) == "max";
       }},
      {"--conf", [&](const std::string& v) { options.conf = v; }},
      {"--workers",
       [&](const std::string& v) {
         load.workers = static_cast<int>(number("--workers", v, 1, 256));
       }},
      {"--requests",
       [&](const std::string& v) {
         load.requests = static_cast<int>(number("--requests", v, 1, 10'000'000));
       }},
      {"--warmup",
       [&](const std::string& v) {
         load.warmup = static_cast<int>(number("--warmup", v, 0, 10'000'000));
       }},
      {"--layers", [&](const std::string& v) { load.layers = number("--layers", v, 1, 256); }},
      {"--hidden",
       [&](const std::string& v) {
         load.hidden = number("--hidden", v, kHead, 4096);
         if (load.hidden % kHead != 0) {
           refuse("--hidden is a multiple of " + std::to_string(kHead));
         }
       }},
      {"--longest", [&](const std::string& v) { load.longest = number("--longest", v, 64, 8192); }},
      {"--sessions",
       [&](const std::string& v) { load.sessions = number("--sessions", v, 0, 100'000); }},
  };
}

}  // namespace

Options parse(int count, char** values) {
  Options options;
  options.load.warmup = -1;
  const Setters setters = settersOf(options);
  for (int i = 1; i < count; ++i) {
    const std::string option = values[i];
    if (option == "--help" || option == "-h") {
      std::fputs(kHelp, stdout);
      std::exit(0);
    }
    if (option == "--json") {
      options.json = true;
      continue;
    }
    const auto setter = setters.find(option);
    if (setter == setters.end()) {
      refuse("there is no option '" + option + "'");
    }
    if (++i == count) {
      refuse(option + " needs a value");
    }
    setter->second(values[i]);
  }
  return options;
}

void settle(Load& load, bool gpu) {
  const auto usual = [gpu](auto& value, auto on_gpu, auto on_sim) {
    if (value == 0) {
      value = gpu ? on_gpu : on_sim;
    }
  };
  usual(load.workers, 16, 4);
  usual(load.requests, 2000, 40);
  usual(load.layers, std::size_t{4}, std::size_t{2});
  usual(load.hidden, std::size_t{1024}, std::size_t{256});
  usual(load.longest, std::size_t{2048}, std::size_t{256});
  if (load.warmup < 0) {
    load.warmup = load.requests / 5;
  }
}

}  // namespace server
