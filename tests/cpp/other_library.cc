// What another library of the program hands over.
#include <plugalloc/plugalloc.h>

__attribute__((visibility("default"))) plugalloc::DataPtr borrowedElsewhere(void* data);

plugalloc::DataPtr borrowedElsewhere(void* data) {
  return plugalloc::DataPtr(data, plugalloc::Device{});
}
