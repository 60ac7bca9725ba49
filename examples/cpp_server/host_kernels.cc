#include "host_kernels.h"

namespace server {

void expandOnHost(const Operands& operands) {
  for (std::size_t i = 0; i < operands.count; ++i) {
    const Word more = operands.bias == nullptr ? 0 : operands.bias[i];
    operands.dst[i] = operands.src[i / operands.times] * operands.scale + more;
  }
}

void reduceOnHost(const Operands& operands) {
  const Word* next = operands.src;
  for (std::size_t i = 0; i < operands.count; ++i) {
    Word sum = 0;
    for (std::size_t j = 0; j < operands.times; ++j) {
      sum += *next++;
    }
    operands.dst[i] = sum * operands.scale + (operands.bias == nullptr ? 0 : operands.bias[i]);
  }
}

void addColumnsOnHost(Word* dst, const Word* src, std::size_t rows, std::size_t columns) {
  for (std::size_t row = 0; row < rows; ++row) {
    for (std::size_t column = 0; column < columns; ++column) {
      dst[column] += src[row * columns + column];
    }
  }
}

}  // namespace server
