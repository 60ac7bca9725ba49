// What is asked of the server: the model's dimensions, and the stream of requests.
#pragma once

#include <cstddef>
#include <cstdint>
#include <random>

namespace server {

/// The model, and how much of it is used at once.
struct Load {
  int workers = 0;          ///< Threads, each with a stream for its work and one for uploads.
  int requests = 0;         ///< For each worker, after the warm-up.
  int warmup = 0;           ///< For each worker: not timed.
  std::size_t layers = 0;   ///< Of the model.
  std::size_t hidden = 0;   ///< Words of one token; whole heads (kHead words).
  std::size_t longest = 0;  ///< Tokens of the longest prompt.
  /// Conversations that each worker holds at most; of none, each request stands alone.
  std::size_t sessions = 0;
  bool random_shapes = true;
};

/// One request: prompts of a batch of like conversations, and a few tokens to be generated.
struct Request {
  bool opens = false;      ///< Opens a session; otherwise it continues one.
  std::size_t pick = 0;    ///< Continues the session of this number, modulo how many there are.
  std::size_t batch = 1;   ///< Prompts, where it opens a session.
  std::size_t length = 1;  ///< Tokens of each prompt.
  int steps = 0;           ///< Tokens generated after the prompt.
  int turns = 0;           ///< Later requests of the session, where it opens one.
};

/// The requests that one worker gets. The same for every allocator: they depend on the load, the
/// number of the worker, and how many sessions it has.
class Requests {
 public:
  Requests(const Load& load, int worker);
  [[nodiscard]] Request next(std::size_t sessions);

 private:
  [[nodiscard]] std::size_t between(std::size_t low, std::size_t high);
  void shape(Request& request);
  void shapeOfOpening(Request& request);

  const Load& load_;
  std::mt19937 random_;
};

}  // namespace server
