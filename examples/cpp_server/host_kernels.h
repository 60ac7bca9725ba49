// The kernels of kernels.h on the host, for the simulated device.
#pragma once

#include "machine.h"

namespace server {

void expandOnHost(const Operands& operands);
void reduceOnHost(const Operands& operands);
void addColumnsOnHost(Word* dst, const Word* src, std::size_t rows, std::size_t columns);

}  // namespace server
