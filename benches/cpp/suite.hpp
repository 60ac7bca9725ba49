// Which workloads a program runs, and the options that all programs share.
#pragma once

#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "workloads.hpp"

namespace bench {

/// The command line: `--quick`, `--suite NAME`, `--mode NAME`, `--device NAME`, `--name NAME`.
struct CommandLine {
  Effort effort;
  std::string suite = "standard";  ///< standard, growth, statistics or history.
  std::string mode;                ///< Which way in, or which allocator; the program's own.
  std::string device = "auto";
  std::string name;                ///< The peer's name in the table, if not the program's choice.
  bool quick = false;
  std::vector<std::string> rest;

  CommandLine(int argc, char** argv) {
    for (int k = 1; k < argc; ++k) {
      const std::string word = argv[k];
      const bool has_value = k + 1 < argc;
      if (word == "--quick") {
        quick = true;
        effort = Effort::quick();
      } else if (word == "--suite" && has_value) {
        suite = argv[++k];
      } else if (word == "--mode" && has_value) {
        mode = argv[++k];
      } else if (word == "--device" && has_value) {
        device = argv[++k];
      } else if (word == "--name" && has_value) {
        name = argv[++k];
      } else {
        rest.push_back(word);
      }
    }
  }
};

using MakeStreams = std::function<std::vector<Stream>(int)>;

inline std::string sizeName(std::size_t bytes) {
  if (bytes >= kMiB) {
    return std::to_string(bytes / kMiB) + " MiB";
  }
  return bytes >= kKiB ? std::to_string(bytes / kKiB) + " KiB" : std::to_string(bytes) + " B";
}

constexpr std::size_t kHotSizes[] = {512, 64 * kKiB, kMiB, 32 * kMiB};
constexpr int kThreads[] = {1, 2, 4, 8, 16};

/// The five workloads. Each number of threads gets streams that nothing was allocated on before, so
/// that none of them finds more at hand than the others.
template <typename Client>
void standardSuite(const CommandLine& line, const Report& report, Client& client,
                   const MakeStreams& make_streams) {
  const std::vector<Stream> one = make_streams(1);
  for (const std::size_t bytes : kHotSizes) {
    report.time("hot " + sizeName(bytes), hotPair(line.effort, client, one[0], bytes));
  }
  report.time("layer", decoderLayers(line.effort, client, one[0]));
  report.time("random, 512 live",
              randomReplacement(line.effort, client, one[0], 512, 8 * kMiB));
  for (const int threads : kThreads) {
    const std::string name = std::to_string(threads) + (threads == 1 ? " thread" : " threads");
    const std::vector<Stream> own = make_streams(threads);
    report.rate(name + ", own streams", threadsRate(line.effort, client, own, threads));
    report.rate(name + ", one stream",
                threadsRate(line.effort, client, make_streams(1), threads));
  }
}

/// A hot pair on each stream in turn; each has 16 blocks live.
template <typename Client>
Sampled hotInTurn(const Effort& effort, Client& client, const std::vector<Stream>& streams) {
  std::vector<std::unique_ptr<LiveSet<Client>>> sets;
  for (const Stream each : streams) {
    sets.push_back(std::make_unique<LiveSet<Client>>(client, each, 1, 16, 64 * kKiB));
  }
  // With thousands of streams, the first pair of each would else be among those measured.
  for (const Stream each : streams) {
    client.free(client.alloc(1024, each), 1024, each);
  }
  std::size_t at = 0;
  return sampleTime(effort, [&](std::uint64_t count) {
    for (std::uint64_t k = 0; k < count; ++k) {
      const Stream each = streams[at];
      client.free(client.alloc(1024, each), 1024, each);
      at = at + 1 == streams.size() ? 0 : at + 1;
    }
  });
}

/// Does cost grow with what is live, or with the number of streams?
template <typename Client>
void growthSuite(const CommandLine& line, const Report& report, Client& client,
                 const MakeStreams& make_streams) {
  const Stream stream = make_streams(1)[0];
  for (const std::size_t live : {std::size_t{100}, std::size_t{10000}, std::size_t{1000000}}) {
    if (line.quick && live > 10000) {
      continue;
    }
    const std::string name = std::to_string(live) + " live";
    LiveSet<Client> set(client, stream, 1, live, 8 * kKiB);
    report.time("hot, " + name, hotPair(line.effort, client, stream, 1024));
    report.time("random, " + name,
                sampleTime(line.effort, [&](std::uint64_t count) { set.replace(count); }));
  }
  for (const int many : {1, 10, 100, 1000}) {
    const Sampled ns = hotInTurn(line.effort, client, make_streams(many));
    report.time("hot in turn, " + std::to_string(many) + (many == 1 ? " stream" : " streams"), ns);
  }
}

/// What it costs that another thread reads the statistics every millisecond.
template <typename Client>
void statisticsSuite(const CommandLine& line, const Report& report, Client& client,
                     const MakeStreams& make_streams) {
  const Stream stream = make_streams(1)[0];
  const auto measure = [&](const std::string& suffix) {
    report.time("hot 512 B, " + suffix, hotPair(line.effort, client, stream, 512));
    report.time("random, 512 live, " + suffix,
                randomReplacement(line.effort, client, stream, 512, 8 * kMiB));
  };
  measure("nobody reads");
  std::atomic<bool> stop{false};
  std::thread reader([&] {
    client.enterThread();
    while (!stop.load(std::memory_order_relaxed)) {
      client.readStatistics();
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  });
  measure("statistics read");
  stop.store(true);
  reader.join();
}

/// What a history costs: of 100,000 events, without and with contexts; and when it is over.
template <typename Client>
void historySuite(const CommandLine& line, const Report& report, Client& client,
                  const MakeStreams& make_streams) {
  const Stream stream = make_streams(1)[0];
  const auto measure = [&](const std::string& suffix) {
    report.time("hot 512 B, " + suffix, hotPair(line.effort, client, stream, 512));
    report.time("random, 512 live, " + suffix,
                randomReplacement(line.effort, client, stream, 512, 8 * kMiB));
    report.rate("4 threads, own streams, " + suffix,
                threadsRate(line.effort, client, make_streams(4), 4));
  };
  measure("no history");
  client.recordHistory(true, false);
  measure("history");
  client.recordHistory(true, true);
  measure("history with contexts");
  client.recordHistory(false, false);
  measure("history over");
}

/// Runs the suite that the command line names; false if there is none of that name.
template <typename Client>
bool runSuite(const CommandLine& line, const Report& report, Client& client,
              const MakeStreams& make_streams) {
  client.enterThread();
  if (line.suite == "standard") {
    standardSuite(line, report, client, make_streams);
  } else if (line.suite == "growth") {
    growthSuite(line, report, client, make_streams);
  } else if (line.suite == "statistics") {
    if constexpr (Client::kHasStatistics) {
      statisticsSuite(line, report, client, make_streams);
    }
  } else if (line.suite == "history") {
    if constexpr (Client::kHasStatistics) {
      historySuite(line, report, client, make_streams);
    }
  } else {
    std::fprintf(stderr, "unknown suite '%s': standard, growth, statistics or history\n",
                 line.suite.c_str());
    return false;
  }
  return true;
}

}  // namespace bench
