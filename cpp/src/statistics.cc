// Statistics between the bridge and the public structs: the fields have the same names.
#include "statistics.h"

#include "plugalloc/src/ffi/bridge.rs.h"

namespace plugalloc {
namespace bridge {

namespace {

Stat convert(const StatRecord& stat) {
  return {stat.current, stat.peak, stat.allocated, stat.freed};
}
StatRecord convert(const Stat& stat) {
  return {stat.current, stat.peak, stat.allocated, stat.freed};
}
StatArray convert(const StatArrayRecord& array) {
  return {convert(array.all), convert(array.small_pool), convert(array.large_pool)};
}
StatArrayRecord convert(const StatArray& array) {
  return {convert(array[0]), convert(array[1]), convert(array[2])};
}

/// Copies every field; the two types differ only in those that `convert` turns into each other.
template <typename To, typename From>
To copyFields(const From& from) {
  To to{};
  to.allocation = convert(from.allocation);
  to.segment = convert(from.segment);
  to.active = convert(from.active);
  to.inactive_split = convert(from.inactive_split);
  to.allocated_bytes = convert(from.allocated_bytes);
  to.reserved_bytes = convert(from.reserved_bytes);
  to.active_bytes = convert(from.active_bytes);
  to.inactive_split_bytes = convert(from.inactive_split_bytes);
  to.requested_bytes = convert(from.requested_bytes);
  to.oversize_allocations = convert(from.oversize_allocations);
  to.oversize_segments = convert(from.oversize_segments);
  to.num_alloc_retries = from.num_alloc_retries;
  to.num_ooms = from.num_ooms;
  to.num_sync_all_streams = from.num_sync_all_streams;
  to.num_device_alloc = from.num_device_alloc;
  to.num_device_free = from.num_device_free;
  to.max_split_size = from.max_split_size;
  return to;
}

}  // namespace

DeviceStats toStats(const StatsRecord& record) { return copyFields<DeviceStats>(record); }
StatsRecord toRecord(const DeviceStats& stats) { return copyFields<StatsRecord>(stats); }

}  // namespace bridge
}  // namespace plugalloc
