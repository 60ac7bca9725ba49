// What the server computes with: queues of work on a GPU, or on a simulated one.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include <plugalloc/types.h>

#include "pattern.h"

namespace server {

/// The arguments of `expand` and `reduce`; see kernels.h. Device memory; `bias` may be null.
struct Operands {
  Word* dst = nullptr;
  const Word* src = nullptr;
  const Word* bias = nullptr;
  std::size_t count = 0;  ///< Words of `dst`.
  std::size_t times = 1;  ///< How many words of the longer side belong to one of the shorter.
  Word scale = 1;
};

/// A stream with work on it. Work is queued in order; nothing but `synchronize` waits.
class Queue {
 public:
  virtual ~Queue() = default;
  /// The stream, as allocators know it.
  [[nodiscard]] virtual cudaStream_t stream() const = 0;
  /// dst[i] = src[i / times] * scale + bias[i]
  virtual void expand(const Operands& operands) = 0;
  /// dst[i] = scale * (sum of the `times` words from src[i * times] on) + bias[i]
  virtual void reduce(const Operands& operands) = 0;
  /// dst[c] += sum of column c of a matrix.
  virtual void addColumns(Word* dst, const Word* src, std::size_t rows, std::size_t columns) = 0;
  virtual void zero(Word* dst, std::size_t count) = 0;
  /// Between device memory, or device memory and a buffer of `Machine::makeHostBuffer`.
  virtual void copy(Word* dst, const Word* src, std::size_t count) = 0;
  /// Makes later work wait for what is queued on `other` now.
  virtual void waitFor(const Queue& other) = 0;
  virtual void synchronize() = 0;
};

/// Memory of the host that the device copies from and to.
using HostBuffer = std::shared_ptr<Word>;

/// A device.
class Machine {
 public:
  virtual ~Machine() = default;
  /// "cuda" or "sim".
  [[nodiscard]] virtual const char* kind() const = 0;
  /// The device's name, for people.
  [[nodiscard]] virtual std::string name() const = 0;
  /// Called by each thread before it queues work or allocates.
  virtual void enterThread() = 0;
  [[nodiscard]] virtual std::unique_ptr<Queue> makeQueue() = 0;
  [[nodiscard]] virtual HostBuffer makeHostBuffer(std::size_t words) = 0;
  /// Bytes of the device that somebody uses, as its driver counts.
  [[nodiscard]] virtual std::size_t usedBytes() = 0;
};

}  // namespace server
