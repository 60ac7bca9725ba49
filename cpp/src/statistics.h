// Statistics between the bridge and the public structs. Internal.
#pragma once

#include "plugalloc/types.h"

namespace plugalloc {
namespace bridge {

struct StatsRecord;

DeviceStats toStats(const StatsRecord& record);
StatsRecord toRecord(const DeviceStats& stats);

}  // namespace bridge
}  // namespace plugalloc
