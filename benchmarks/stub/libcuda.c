/* A libcuda.so.1 that does nothing.
 *
 * It has the entry points that Triton's launcher resolves and lets each succeed at once: all that
 * Triton does on the host for a launch really runs, no device is needed, and the driver's own cost
 * is absent.  The device it plays is an H100.
 */
#include <stdint.h>

typedef int result;
static unsigned long long launches, next_handle = 0x1000;

unsigned long long stub_launches(void) { return launches; }

/* The first parameters of the last launch, of as many as one asks for; each of 64 bits. */
unsigned long long stub_noted[16];
static unsigned asked;
void stub_note(unsigned count) { asked = count; }

result cuInit(unsigned flags) { return 0; }
result cuDriverGetVersion(int *version) { *version = 13000; return 0; }
result cuGetErrorString(result error, const char **text) { *text = "stub"; return 0; }
result cuDeviceGetCount(int *count) { *count = 1; return 0; }
result cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
result cuDeviceGetAttribute(int *value, int attribute, int device) {
  switch (attribute) {
  case 1: *value = 1024; break;    /* threads per block */
  case 10: *value = 32; break;     /* warp size */
  case 12: *value = 65536; break;  /* registers per block */
  case 16: *value = 132; break;    /* multiprocessors */
  case 75: *value = 9; break;      /* compute capability */
  case 76: *value = 0; break;
  case 81: *value = 233472; break; /* shared memory per multiprocessor */
  case 82: *value = 65536; break;  /* registers per multiprocessor */
  case 97: *value = 232448; break; /* shared memory a block may ask for */
  default: *value = 0;
  }
  return 0;
}
result cuCtxGetCurrent(void **context) { *context = (void *)1; return 0; }
result cuCtxSetCurrent(void *context) { return 0; }
result cuCtxGetDevice(int *device) { *device = 0; return 0; }
result cuCtxGetLimit(uint64_t *value, int limit) { *value = 1 << 20; return 0; }
result cuCtxSetLimit(int limit, uint64_t value) { return 0; }
result cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)1; return 0; }
result cuDevicePrimaryCtxRelease(int device) { return 0; }
result cuDevicePrimaryCtxRelease_v2(int device) { return 0; }
result cuModuleLoadData(void **module, const void *image) { *module = (void *)(uintptr_t)(next_handle += 16); return 0; }
result cuModuleGetFunction(void **function, void *module, const char *name) {
  *function = (void *)(uintptr_t)(next_handle += 16);
  return 0;
}
result cuModuleUnload(void *module) { return 0; }
result cuFuncGetAttribute(int *value, int attribute, void *function) { *value = attribute == 0 ? 1024 : 0; return 0; }
result cuFuncSetAttribute(void *function, int attribute, int value) { return 0; }
result cuFuncSetCacheConfig(void *function, int config) { return 0; }
result cuStreamIsCapturing(void *stream, int *status) { *status = 0; return 0; }
result cuPointerGetAttribute(void *out, int attribute, unsigned long long pointer) {
  *(unsigned long long *)out = pointer;
  return 0;
}
result cuPointerGetAttributes(unsigned count, int *attributes, void **data, unsigned long long pointer) { return 0; }
result cuOccupancyMaxActiveClusters(int *count, void *function, const void *config) { *count = 1; return 0; }
result cuLaunchKernelEx(const void *config, void *function, void **parameters, void **extra) {
  for (unsigned i = 0; i < asked; ++i) stub_noted[i] = *(unsigned long long *)parameters[i];
  ++launches;
  return 0;
}
result cuTensorMapEncodeTiled(void) { return 0; }
result cuTensorMapEncodeIm2col(void) { return 0; }
