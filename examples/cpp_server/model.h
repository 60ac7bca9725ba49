// The model: what a small transformer does with memory, in whole numbers that can be checked.
#pragma once

#include <cstddef>
#include <vector>

#include <plugalloc/cuda_allocator.h>

#include "load.h"
#include "machine.h"
#include "tensor.h"

namespace server {

/// A tensor with rows of `hidden` words, and what they must be.
struct Activation {
  Tensor tensor;
  Pattern pattern;
  std::size_t rows = 0;
};

/// A conversation, or a batch of like ones: its key-value cache stays between requests.
struct Session {
  std::vector<Tensor> keys;    ///< By layer, room for `capacity` rows.
  std::vector<Tensor> values;  ///< The same.
  Pattern columns;             ///< What the columns of all of these add up to.
  std::size_t batch = 1;
  std::size_t rows = 0;
  std::size_t capacity = 0;
  int turns = 0;  ///< Requests to come.
};

/// The model as one worker runs it.
class Model {
 public:
  Model(plugalloc::CUDAAllocator& allocator, Queue& queue, Gauge& gauge, const Load& load)
      : allocator_(allocator), queue_(queue), gauge_(gauge), load_(load) {}

  /// Memory on the current stream.
  [[nodiscard]] Tensor take(std::size_t words) { return {allocator_, gauge_, words}; }
  /// The prompt, a word a head, as rows.
  [[nodiscard]] Activation embed(const Tensor& input, const Pattern& pattern, std::size_t rows);
  /// Runs all layers over `x`, whose keys and values the session takes in. Throws with the session
  /// fit for nothing but to be closed.
  [[nodiscard]] Activation forward(Session& session, Activation x);
  /// The rows with which the next token starts.
  [[nodiscard]] Activation firstRows(const Activation& x, std::size_t rows);
  /// Adds the columns of `x` to a row of results.
  void addTo(const Tensor& result, const Activation& x);
  /// Adds the columns of all keys and values.
  void addTo(const Tensor& result, const Session& session);

 private:
  void makeRoom(Session& session, std::size_t rows);
  [[nodiscard]] Tensor grown(const Tensor& tensor, std::size_t rows, std::size_t capacity);
  void remember(Session& session, std::size_t layer, const Tensor& query, const Pattern& pattern,
                std::size_t rows);
  [[nodiscard]] Activation attend(Session& session, std::size_t layer, const Activation& x);
  [[nodiscard]] Activation feedForward(const Activation& x);

  plugalloc::CUDAAllocator& allocator_;
  Queue& queue_;
  Gauge& gauge_;
  const Load& load_;
};

}  // namespace server
