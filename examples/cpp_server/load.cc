#include "load.h"

#include <algorithm>

namespace server {

Requests::Requests(const Load& load, int worker)
    : load_(load), random_(1000 + static_cast<std::uint32_t>(worker)) {}

std::size_t Requests::between(std::size_t low, std::size_t high) {
  return std::uniform_int_distribution<std::size_t>(low, std::max(low, high))(random_);
}

Request Requests::next(std::size_t sessions) {
  Request request;
  request.opens = sessions == 0 || (sessions < load_.sessions && between(0, 1) == 0);
  request.pick = between(0, 1'000'000);
  if (load_.random_shapes) {
    shape(request);
  } else {
    request.length = std::max<std::size_t>(1, load_.longest / (request.opens ? 8 : 32));
    request.steps = 2;
    request.turns = 4;
  }
  if (load_.sessions == 0) {
    request.turns = 0;
  }
  return request;
}

void Requests::shape(Request& request) {
  request.steps = static_cast<int>(between(0, 4));
  if (request.opens) {
    shapeOfOpening(request);
  } else {
    request.length = between(1, load_.longest / 16);
  }
}

/// Most are short chats, some of which arrive together and are run as one batch; some come with a
/// document; a few fill the context.
void Requests::shapeOfOpening(Request& request) {
  const std::size_t kind = between(0, 99);
  const std::size_t longest = load_.longest;
  if (kind < 65) {
    request.length = between(std::max<std::size_t>(1, longest / 64), longest / 8);
    request.batch = between(0, 99) < 60 ? 1 : between(2, 8);
  } else if (kind < 92) {
    request.length = between(longest / 8, longest / 2);
  } else {
    request.length = between(longest / 2, longest);
  }
  std::geometric_distribution<int> turns(0.2);
  request.turns = turns(random_);
}

}  // namespace server
