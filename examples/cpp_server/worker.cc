#include "worker.h"

#include <utility>

#include <plugalloc/error.h>
#include <plugalloc/stream.h>

namespace server {

Worker::Worker(Machine& machine, plugalloc::CUDAAllocator& allocator, Gauge& gauge,
               const Load& load, int number)
    : allocator_(allocator),
      gauge_(gauge),
      load_(load),
      work_(machine.makeQueue()),
      uploads_(machine.makeQueue()),
      prompt_(machine.makeHostBuffer(load.longest * load.hidden / kHead)),
      result_(machine.makeHostBuffer(load.hidden)),
      model_(allocator, *work_, gauge, load),
      requests_(load, number) {}

void Worker::serve(int requests) {
  const plugalloc::StreamGuard guard(work_->stream());
  for (int i = 0; i < requests; ++i) {
    serveOne();
  }
}

void Worker::closeSessions() { sessions_.clear(); }

void Worker::serveOne() {
  const Request request = requests_.next(sessions_.size());
  const auto start = std::chrono::steady_clock::now();
  try {
    const std::size_t number = choose(request);
    Session& session = sessions_[number];
    if (!run(session, request)) {
      ++tally.wrong;
    }
    if (session.turns-- == 0) {
      close(number);
    }
    const std::chrono::duration<double, std::micro> taken =
        std::chrono::steady_clock::now() - start;
    tally.latencies.push_back(taken.count());
  } catch (const plugalloc::OutOfMemoryError&) {
    // What was queued still reads the prompt, and a session that stopped half way is of no use.
    work_->synchronize();
    uploads_->synchronize();
    closeSessions();
    ++tally.refused;
  }
}

/// The session that the request is for, opened if need be.
std::size_t Worker::choose(const Request& request) {
  if (request.opens) {
    Session session;
    session.batch = request.batch;
    session.turns = request.turns;
    sessions_.push_back(std::move(session));
    return sessions_.size() - 1;
  }
  const std::size_t number = request.pick % sessions_.size();
  Session& session = sessions_[number];
  const std::size_t tokens = session.rows / session.batch + request.length;
  if (tokens > 2 * load_.longest) {
    // Longer than the model can look back: the conversation goes on without its past.
    Session anew;
    anew.batch = session.batch;
    anew.turns = session.turns;
    session = std::move(anew);
  }
  return number;
}

void Worker::close(std::size_t session) {
  std::swap(sessions_[session], sessions_.back());
  sessions_.pop_back();
}

bool Worker::run(Session& session, const Request& request) {
  const std::size_t rows = session.batch * request.length;
  const Pattern prompt{++served_ * 2654435761U, 2 * served_ + 1, 0};
  Tensor input = upload(prompt, rows * load_.hidden / kHead);
  Activation x = model_.embed(input, prompt, rows);
  input.clear();

  const Tensor result = model_.take(load_.hidden);
  work_->zero(result.words(), result.size());
  Pattern expected;
  for (int step = 0; step <= request.steps; ++step) {
    if (step > 0) {
      x = model_.firstRows(x, session.batch);
    }
    x = model_.forward(session, std::move(x));
    model_.addTo(result, x);
    expected = expected.plus(x.pattern.summedByColumn(x.rows, load_.hidden));
  }
  model_.addTo(result, session);
  return isRight(result, expected.plus(session.columns));
}

/// Brings the prompt to the device on the second stream, and hands it over to the first.
Tensor Worker::upload(const Pattern& prompt, std::size_t words) {
  for (std::size_t i = 0; i < words; ++i) {
    prompt_.get()[i] = prompt.at(static_cast<Word>(i));
  }
  const plugalloc::StreamGuard guard(uploads_->stream());
  Tensor input(allocator_, gauge_, words);
  uploads_->copy(input.words(), prompt_.get(), words);
  work_->waitFor(*uploads_);
  allocator_.recordStream(input.data(), work_->stream());
  return input;
}

/// Waits for the result, and looks at every word of it.
bool Worker::isRight(const Tensor& result, const Pattern& expected) {
  work_->copy(result_.get(), result.words(), result.size());
  work_->synchronize();
  for (std::size_t i = 0; i < result.size(); ++i) {
    if (result_.get()[i] != expected.at(static_cast<Word>(i))) {
      return false;
    }
  }
  return true;
}

}  // namespace server
