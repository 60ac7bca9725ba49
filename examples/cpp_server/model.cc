#include "model.h"

#include <utility>

namespace server {

namespace {

/// A cache has room for a multiple of so many tokens.
constexpr std::size_t kTokensOfAPage = 16;
/// How much wider a layer is inside.
constexpr std::size_t kWide = 4;
/// Odd factors, which lose no bit of a wrong word.
constexpr Word kQuery = 3;
constexpr Word kKey = 5;
constexpr Word kValue = 7;
constexpr Word kScore = 11;
constexpr Word kNarrow = 13;

}  // namespace

Activation Model::embed(const Tensor& input, const Pattern& pattern, std::size_t rows) {
  Activation x{take(rows * load_.hidden), pattern.expandedToHeads(), rows};
  queue_.expand({x.tensor.words(), input.words(), nullptr, x.tensor.size(), kHead, 1});
  return x;
}

Activation Model::forward(Session& session, Activation x) {
  makeRoom(session, session.rows + x.rows);
  const std::size_t before = session.rows;
  for (std::size_t layer = 0; layer < load_.layers; ++layer) {
    session.rows = before;
    x = attend(session, layer, x);
    x = feedForward(x);
  }
  return x;
}

void Model::makeRoom(Session& session, std::size_t rows) {
  if (rows <= session.capacity) {
    return;
  }
  const std::size_t page = kTokensOfAPage * session.batch;
  const std::size_t capacity = (rows + page - 1) / page * page;
  session.keys.resize(load_.layers);
  session.values.resize(load_.layers);
  for (std::size_t layer = 0; layer < load_.layers; ++layer) {
    session.keys[layer] = grown(session.keys[layer], session.rows, capacity);
    session.values[layer] = grown(session.values[layer], session.rows, capacity);
  }
  session.capacity = capacity;
}

/// A copy with more room. The old tensor is freed by the caller, while the copy is still queued.
Tensor Model::grown(const Tensor& tensor, std::size_t rows, std::size_t capacity) {
  Tensor larger = take(capacity * load_.hidden);
  if (rows > 0) {
    queue_.copy(larger.words(), tensor.words(), rows * load_.hidden);
  }
  return larger;
}

/// Appends keys and values of new rows to the cache of one layer.
void Model::remember(Session& session, std::size_t layer, const Tensor& query,
                     const Pattern& pattern, std::size_t rows) {
  const std::size_t words = rows * load_.hidden;
  const std::size_t at = session.rows * load_.hidden;
  queue_.expand({session.keys[layer].words() + at, query.words(), nullptr, words, 1, kKey});
  queue_.expand({session.values[layer].words() + at, query.words(), nullptr, words, 1, kValue});
  const Pattern columns = pattern.summedByColumn(rows, load_.hidden);
  session.columns = session.columns.plus(columns.times(kKey)).plus(columns.times(kValue));
  session.rows += rows;
}

/// A score for each head of each row and each token so far, summed up and added to the row.
Activation Model::attend(Session& session, std::size_t layer, const Activation& x) {
  const std::size_t words = x.tensor.size();
  const std::size_t heads = words / kHead;
  Tensor query = take(words);
  queue_.expand({query.words(), x.tensor.words(), nullptr, words, 1, kQuery});
  Pattern pattern = x.pattern.times(kQuery);
  remember(session, layer, query, pattern, x.rows);

  Tensor pooled = take(heads);
  queue_.reduce({pooled.words(), query.words(), nullptr, heads, kHead, 1});
  query.clear();
  const std::size_t tokens = session.rows / session.batch;
  Tensor scores = take(heads * tokens);
  queue_.expand({scores.words(), pooled.words(), nullptr, heads * tokens, tokens, 1});
  pooled.clear();
  const Tensor sums = take(heads);
  queue_.reduce({sums.words(), scores.words(), nullptr, heads, tokens, kScore});
  scores.clear();
  pattern = pattern.summedByHead().times(static_cast<Word>(tokens) * kScore).expandedToHeads();

  Activation y{take(words), pattern.plus(x.pattern), x.rows};
  queue_.expand({y.tensor.words(), sums.words(), x.tensor.words(), words, kHead, 1});
  return y;
}

Activation Model::feedForward(const Activation& x) {
  const std::size_t words = x.tensor.size();
  const Tensor wide = take(words * kWide);
  queue_.expand({wide.words(), x.tensor.words(), nullptr, words * kWide, kWide, 1});
  Activation y{take(words), x.pattern.times(kWide * kNarrow).plus(x.pattern), x.rows};
  queue_.reduce({y.tensor.words(), wide.words(), x.tensor.words(), words, kWide, kNarrow});
  return y;
}

Activation Model::firstRows(const Activation& x, std::size_t rows) {
  Activation first{take(rows * load_.hidden), x.pattern, rows};
  queue_.expand({first.tensor.words(), x.tensor.words(), nullptr, first.tensor.size(), 1, 1});
  return first;
}

void Model::addTo(const Tensor& result, const Activation& x) {
  queue_.addColumns(result.words(), x.tensor.words(), x.rows, load_.hidden);
}

void Model::addTo(const Tensor& result, const Session& session) {
  for (std::size_t layer = 0; layer < load_.layers; ++layer) {
    queue_.addColumns(result.words(), session.keys[layer].words(), session.rows, load_.hidden);
    queue_.addColumns(result.words(), session.values[layer].words(), session.rows, load_.hidden);
  }
}

}  // namespace server
