// A CUDA driver of one device that has no device: it keeps contexts and handles as a driver does, so
// that what is asked of it, in which context, can be seen. FABRIC, RDMA and STICKY in the
// environment say what it can do and what has happened.

#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
  SUCCESS = 0,
  INVALID_VALUE = 1,
  OUT_OF_MEMORY = 2,
  INVALID_CONTEXT = 201,
  ILLEGAL_ADDRESS = 700,
  DESTROYED = 709,
  NOT_PERMITTED = 800,
};

struct context {
  uint64_t id;  // 0: destroyed
};

// The primary context, and room for one more: so the next one lies where the last one lay.
static struct context primary, other;
static uint64_t last_id;
static int primary_users;
static __thread struct context* stack[8];
static __thread int depth;

// What was asked for last, for the test.
uint32_t fake_handle_types;
uint8_t fake_rdma;
struct context* fake_context;
int fake_broken;

static int enter(void) {
  fake_context = depth ? stack[depth - 1] : NULL;
  if (!fake_context) return INVALID_CONTEXT;
  if (fake_broken) return ILLEGAL_ADDRESS;
  return fake_context->id ? SUCCESS : DESTROYED;
}

int cuInit(unsigned flags) { return flags; }
int cuDriverGetVersion(int* version) { return *version = 12040, 0; }
int cuGetErrorName(int code, const char** out) {
  *out = code == ILLEGAL_ADDRESS ? "CUDA_ERROR_ILLEGAL_ADDRESS" : "CUDA_ERROR";
  return 0;
}
int cuGetErrorString(int code, const char** out) { return *out = "some error", 0 * code; }
int cuDeviceGetCount(int* count) { return *count = 1, 0; }
int cuDeviceGetName(char* name, int length, int device) {
  snprintf(name, length, "device of the test");
  return device;
}
int cuDeviceGetAttribute(int* value, unsigned attribute, int device) {
  int rdma = getenv("RDMA") != NULL, fabric = getenv("FABRIC") != NULL;
  *value = attribute == 102 || attribute == 103 || attribute == 41 || attribute == 125 ||
           (rdma && (attribute == 110 || attribute == 116)) || (fabric && attribute == 128);
  return device;
}
int cuDeviceTotalMem_v2(size_t* bytes, int device) { return *bytes = 1 << 30, device; }
int cuDeviceCanAccessPeer(int* able, int device, int peer) { return *able = 0, device + peer; }

int cuDevicePrimaryCtxRetain(struct context** context, int device) {
  if (!primary.id) primary.id = ++last_id;
  ++primary_users;
  *context = &primary;
  return device;
}
int cuDevicePrimaryCtxRelease_v2(int device) { return --primary_users, device; }
int cuDevicePrimaryCtxReset_v2(int device) { return primary.id = 0, device; }
int cuDevicePrimaryCtxGetState(int device, unsigned* flags, int* active) {
  *flags = 0;
  *active = primary_users > 0;
  return device;
}
int cuCtxCreate_v2(struct context** context, unsigned flags, int device) {
  if (other.id) return OUT_OF_MEMORY;
  other.id = ++last_id;
  stack[depth++] = *context = &other;
  return flags + device;
}
int cuCtxDestroy_v2(struct context* context) {
  context->id = 0;
  if (depth && stack[depth - 1] == context) --depth;
  return 0;
}
int cuCtxGetCurrent(struct context** context) {
  return *context = depth ? stack[depth - 1] : NULL, 0;
}
int cuCtxGetDevice(int* device) { return *device = 0, depth ? 0 : INVALID_CONTEXT; }
int cuCtxPushCurrent_v2(struct context* context) { return stack[depth++] = context, 0; }
int cuCtxPopCurrent_v2(struct context** context) {
  if (!depth) return INVALID_CONTEXT;
  return *context = stack[--depth], 0;
}
int cuCtxGetId(struct context* context, uint64_t* id) {
  if (fake_broken) return ILLEGAL_ADDRESS;
  *id = context->id;
  return *id ? 0 : DESTROYED;
}
int cuCtxSynchronize(void) { return enter(); }
int cuCtxEnablePeerAccess(struct context* context, unsigned flags) { return !context + flags; }
int cuThreadExchangeStreamCaptureMode(unsigned* mode) { return *mode = 0, 0; }

int cuMemGetInfo_v2(size_t* free, size_t* total) { return *free = *total = 1 << 30, enter(); }
int cuMemAlloc_v2(uint64_t* address, size_t bytes) { return *address = bytes, enter(); }
int cuMemFree_v2(uint64_t address) { return address ? enter() : INVALID_VALUE; }

struct properties {
  uint32_t type, handle_types, location_type, location;
  void* security;
  uint8_t compression, rdma;
  uint16_t usage;
  uint8_t reserved[4];
};
int cuMemGetAllocationGranularity(size_t* bytes, const struct properties* made, unsigned which) {
  return *bytes = 2 << 20, made->location + 0 * which;
}
// How often each handle, 77 or 78, was given out. As the real driver, this one does not survive
// one that is not alive.
static int alive[2];
static void use_handle(uint64_t handle) {
  if (handle - 77 > 1 || !alive[handle - 77]) abort();
}
int cuMemCreate(uint64_t* handle, size_t bytes, const struct properties* made, uint64_t flags) {
  const char* fabric = getenv("FABRIC");
  int status = enter();
  if (status) return status;
  if (bytes % (2 << 20) || flags || made->type != 1 || made->location_type != 1)
    return INVALID_VALUE;
  if (made->handle_types & 8 && !strcmp(fabric, "refused")) return NOT_PERMITTED;
  fake_handle_types = made->handle_types;
  fake_rdma = made->rdma;
  *handle = 77;
  return alive[0]++, 0;
}
int cuMemRelease(uint64_t handle) {
  use_handle(handle);
  return alive[handle - 77]--, enter();
}
int cuMemMap(uint64_t address, size_t bytes, size_t offset, uint64_t handle, uint64_t flags) {
  use_handle(handle);
  return address && bytes && !offset && !flags ? enter() : INVALID_VALUE;
}
int cuMemExportToShareableHandle(void* out, uint64_t handle, unsigned type, uint64_t flags) {
  use_handle(handle);
  if (flags || enter()) return INVALID_VALUE;
  if (type == 1) return *(int*)out = memfd_create("exported", MFD_CLOEXEC), 0;
  return type == 8 ? memset(out, 0xfa, 64), 0 : INVALID_VALUE;
}
int cuMemImportFromShareableHandle(uint64_t* handle, void* in, unsigned type) {
  int known = type == 1   ? fcntl((int)(intptr_t)in, F_GETFD) >= 0
              : type == 8 ? *(uint8_t*)in == 0xfa
                          : 0;
  *handle = 78;
  return known ? alive[1]++, enter() : INVALID_VALUE;
}

struct ipc {
  char bytes[64];
};
int cuIpcGetMemHandle(struct ipc* handle, uint64_t address) {
  memset(handle, (int)address, sizeof *handle);
  return enter();
}
static int opened;
int cuIpcOpenMemHandle_v2(uint64_t* address, struct ipc handle, unsigned flags) {
  *address = 0xabc000;
  if (flags != 1) return INVALID_VALUE;
  // Of this process, it says so in its own way.
  return handle.bytes[63] == 7 ? INVALID_CONTEXT : (opened++, enter());
}
int cuIpcCloseMemHandle(uint64_t address) {
  if (address != 0xabc000 || !opened--) abort();
  return enter();
}

int cuEventCreate(void** event, unsigned flags) { return *event = &last_id, enter() + 0 * flags; }
int cuEventRecord(void* event, void* stream) { return enter() + 0 * (event == stream); }

void* fake_stream_context;
int cuStreamGetCtx(void* stream, void** context) {
  if (stream == (void*)0xbad) return INVALID_VALUE;
  return *context = fake_stream_context, enter();
}

#define UNUSED(name) \
  int name(void) { return 999; }
UNUSED(cuMemcpyAsync)
UNUSED(cuMemsetD8Async)
UNUSED(cuMemAddressReserve)
UNUSED(cuMemAddressFree)
UNUSED(cuMemSetAccess)
UNUSED(cuMemUnmap)
UNUSED(cuStreamCreate)
UNUSED(cuStreamDestroy_v2)
UNUSED(cuStreamSynchronize)
UNUSED(cuStreamWaitEvent)
UNUSED(cuLaunchHostFunc)
UNUSED(cuEventDestroy_v2)
UNUSED(cuEventQuery)
UNUSED(cuEventSynchronize)
UNUSED(cuStreamBeginCapture_v2)
UNUSED(cuStreamEndCapture)
UNUSED(cuStreamGetCaptureInfo_v2)
UNUSED(cuGraphInstantiateWithFlags)
UNUSED(cuGraphDestroy)
UNUSED(cuGraphLaunch)
UNUSED(cuGraphExecDestroy)
