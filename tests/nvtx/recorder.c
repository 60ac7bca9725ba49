// A tool that speaks NVTX and writes down what it is told: one line a call, into the file that
// RECORD names.

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static FILE* record(void) {
  static FILE* file;
  if (!file) {
    file = fopen(getenv("RECORD"), "w");
    if (!file) abort();
    setvbuf(file, NULL, _IOLBF, 0);
  }
  return file;
}

struct range {
  size_t bytes;
  const void* start;
};
struct heap {
  uint16_t compatibility, size;
  uint32_t reserved, usage, type;
  size_t range_size;
  const struct range* range;
  uint32_t category, name_type;
  const char* name;
};
struct regions {
  uint16_t compatibility, size;
  uint32_t type;
  void* heap;
  size_t count, range_size;
  const struct range* ranges;
  void** out;
};
struct regions_end {
  uint16_t compatibility, size;
  uint32_t reference_type;
  size_t count, reference_size;
  const void* const* references;
};
struct meaning {
  uint32_t size;
  uint16_t id, version;
  const void* next;
  uint64_t flags;
  const char* unit;
  uint64_t numerator, denominator;
  int64_t limit_type, least, most;
};
struct counter {
  size_t size;
  uint64_t schema;
  const char *name, *description;
  uint64_t scope;
  const struct meaning* meaning;
  uint64_t id;
};

static char the_domain;

static void check(int fine, const char* what) {
  if (!fine) fprintf(record(), "wrong %s\n", what);
}

static void* domain_create(const char* name) {
  fprintf(record(), "domain %s\n", name);
  return &the_domain;
}

static void* heap_register(void* domain, const struct heap* heap) {
  static uintptr_t last;
  check(domain == &the_domain, "domain");
  check(heap->compatibility == 0x0102 && heap->size == sizeof *heap, "heap header");
  check(heap->usage == 1 && heap->type == 1 && heap->range_size == 16, "heap");
  check(heap->name_type == 1 && strlen(heap->name) > 0, "heap name");
  fprintf(record(), "heap %zu %zu %zu %s\n", (size_t)++last, (size_t)heap->range->start,
          heap->range->bytes, heap->name);
  return (void*)last;
}

static void heap_unregister(void* domain, void* heap) {
  check(domain == &the_domain, "domain");
  fprintf(record(), "heap_end %zu\n", (size_t)heap);
}

static void regions_register(void* domain, const struct regions* regions) {
  check(domain == &the_domain, "domain");
  check(regions->compatibility == 0x0102 && regions->size == sizeof *regions, "regions header");
  check(regions->type == 1 && regions->range_size == 16, "regions");
  for (size_t i = 0; i < regions->count; ++i) {
    fprintf(record(), "region %zu %zu %zu\n", (size_t)regions->heap,
            (size_t)regions->ranges[i].start, regions->ranges[i].bytes);
  }
}

static void regions_unregister(void* domain, const struct regions_end* regions) {
  check(domain == &the_domain, "domain");
  check(regions->compatibility == 0x0102 && regions->size == sizeof *regions, "end header");
  check(regions->reference_type == 1 && regions->reference_size == sizeof(void*), "end");
  for (size_t i = 0; i < regions->count; ++i) {
    fprintf(record(), "region_end %zu\n", (size_t)regions->references[i]);
  }
}

static uint64_t counter_register(void* domain, const struct counter* counter) {
  static uint64_t last = (uint64_t)1 << 32;
  check(domain == &the_domain, "domain");
  check(counter->size == sizeof *counter && counter->schema == 17 && counter->id == 0, "counter");
  check(counter->meaning->id == 5 && counter->meaning->version == 2, "counter meaning");
  check(counter->meaning->size == sizeof *counter->meaning, "counter meaning size");
  check(!strcmp(counter->meaning->unit, "B"), "counter unit");
  fprintf(record(), "counter %zu %s\n", (size_t)++last, counter->name);
  return last;
}

static void counter_sample(void* domain, uint64_t counter, int64_t value) {
  check(domain == &the_domain, "domain");
  fprintf(record(), "sample %zu %lld\n", (size_t)counter, (long long)value);
}

struct callbacks {
  size_t size;
  int (*get_module)(uint32_t module, void**** table, uint32_t* count);
};
struct version {
  size_t size;
  uint32_t version, reserved;
  void (*set_tool_version)(uint32_t);
};

int InitializeInjectionNvtx2(const void* (*export_table)(uint32_t)) {
  record();
  const struct callbacks* callbacks = export_table(1);
  const struct version* version = export_table(3);
  void*** table = NULL;
  uint32_t count = 0;
  check(callbacks->size == sizeof *callbacks && version->version == 3, "tables");
  version->set_tool_version(3);
  check(!callbacks->get_module(0, &table, &count) && !callbacks->get_module(99, &table, &count),
        "modules that do not exist");
  for (uint32_t module = 1; module <= 6; ++module) {
    check(callbacks->get_module(module, &table, &count) && count > 6 && !table[0], "module");
    check(!table[count], "end of the module");
  }
  if (!callbacks->get_module(5, &table, &count) || count != 16) return 0;
  *table[12] = (void*)domain_create;
  return getenv("REFUSE") == NULL;
}

struct segment {
  size_t id, count;
  void** functions;
};
struct extension {
  uint16_t version, size, module, compatibility;
  size_t segments;
  struct segment* first;
  void* export_function;
  const void* more;
};

int InitializeInjectionNvtxExtension(struct extension* extension) {
  struct segment* segment = extension->first;
  check(extension->version == 3 && extension->size == sizeof *extension && extension->segments == 1, "extension");
  check(segment->count == 63, "segment");
  if (extension->compatibility != 0x0102) return 0;
  if (extension->module == 1) {
    segment->functions[0] = (void*)heap_register;
    segment->functions[1] = (void*)heap_unregister;
    segment->functions[3] = (void*)regions_register;
    segment->functions[5] = (void*)regions_unregister;
    return 1;
  }
  if (extension->module == 4 && !getenv("NO_COUNTERS")) {
    segment->functions[0] = (void*)counter_register;
    segment->functions[1] = (void*)counter_sample;
    return 1;
  }
  return 0;
}
