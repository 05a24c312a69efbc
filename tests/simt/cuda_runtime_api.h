// The host's side of the stand-in for CUDA: errors, one device, its memory, launches.
//
// Everything is done when a call returns; streams are names that nobody looks at.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <tuple>
#include <utility>

#include "simt.h"

// ---------------------------------------------------------------- Errors

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInvalidDeviceFunction = 98,
  cudaErrorInvalidDevice = 101,
  cudaErrorNotSupported = 801,
};

inline const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidDeviceFunction:
      return "cudaErrorInvalidDeviceFunction";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    case cudaErrorNotSupported:
      return "cudaErrorNotSupported";
  }
  return "unrecognized error code";
}

inline const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorInvalidDeviceFunction:
      return "invalid device function";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorNotSupported:
      return "operation not supported";
  }
  return "unrecognized error code";
}

namespace simt {

inline thread_local cudaError_t last_error = cudaSuccess;

inline cudaError_t Answer(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

}  // namespace simt

inline cudaError_t cudaPeekAtLastError() { return simt::last_error; }
inline cudaError_t cudaGetLastError() { return std::exchange(simt::last_error, cudaSuccess); }

// ---------------------------------------------------------------- Device and streams

enum cudaDeviceAttr {
  cudaDevAttrMaxThreadsPerBlock = 1,
  cudaDevAttrMaxSharedMemoryPerBlock = 8,
  cudaDevAttrWarpSize = 10,
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};

inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device != 0) return simt::Answer(cudaErrorInvalidDevice);
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
      *value = simt::kMaxThreads;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = simt::kDefaultDynamicShared;
      return cudaSuccess;
    case cudaDevAttrWarpSize:
      *value = simt::kWarpSize;
      return cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
      *value = 2;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = simt::kMaxDynamicShared;
      return cudaSuccess;
  }
  return simt::Answer(cudaErrorInvalidValue);
}

typedef struct CUstream_st* cudaStream_t;

inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }

// ---------------------------------------------------------------- Memory

enum cudaMemcpyKind {
  cudaMemcpyHostToHost = 0,
  cudaMemcpyHostToDevice = 1,
  cudaMemcpyDeviceToHost = 2,
  cudaMemcpyDeviceToDevice = 3,
  cudaMemcpyDefault = 4,
};

// A block of the heap of exactly this size, so that AddressSanitizer sees the first byte beyond,
// filled with NaN.
template <typename T>
cudaError_t cudaMalloc(T** pointer, size_t size) {
  void* block = nullptr;
  if (size > 0 && posix_memalign(&block, 256, size) != 0) {
    return simt::Answer(cudaErrorMemoryAllocation);
  }
  if (size > 0) std::memset(block, 0xff, size);
  *pointer = static_cast<T*>(block);
  return cudaSuccess;
}

inline cudaError_t cudaFree(void* pointer) {
  std::free(pointer);
  return cudaSuccess;
}

inline cudaError_t cudaMemcpy(void* to, const void* from, size_t size, cudaMemcpyKind) {
  if (size > 0) std::memcpy(to, from, size);
  return cudaSuccess;
}

inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size, cudaMemcpyKind kind,
                                   cudaStream_t = nullptr) {
  return cudaMemcpy(to, from, size, kind);
}

inline cudaError_t cudaMemset(void* to, int value, size_t size) {
  if (size > 0) std::memset(to, value, size);
  return cudaSuccess;
}

inline cudaError_t cudaMemsetAsync(void* to, int value, size_t size, cudaStream_t = nullptr) {
  return cudaMemset(to, value, size);
}

// ---------------------------------------------------------------- Launches

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };

// Holds for all OS threads, as with CUDA.
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value);

template <typename T>
cudaError_t cudaFuncSetAttribute(T* kernel, cudaFuncAttribute attribute, int value) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), attribute, value);
}

struct cudaFuncAttributes {
  int maxThreadsPerBlock;
};

// Nothing has to be loaded here.
template <typename T>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, T*) {
  *attributes = {1024};
  return cudaSuccess;
}

enum cudaLaunchAttributeID {
  cudaLaunchAttributeIgnore = 0,
  cudaLaunchAttributeProgrammaticStreamSerialization = 6,
};

union cudaLaunchAttributeValue {
  char pad[64];
  int programmaticStreamSerializationAllowed;
};

struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  cudaLaunchAttributeValue val;
};

struct cudaLaunchConfig_t {
  dim3 gridDim;
  dim3 blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned int numAttrs;
};

namespace simt {

// What a device would answer to a launch with this configuration.
cudaError_t CheckLaunch(const cudaLaunchConfig_t& config, const void* kernel);

}  // namespace simt

// The arguments are converted to the kernel's parameters once; every thread gets its own copy.
template <typename... Expected, typename... Actual>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Expected...),
                               Actual&&... actual) {
  static_assert(sizeof...(Expected) == sizeof...(Actual), "as many arguments as parameters");
  const void* const address = reinterpret_cast<const void*>(kernel);
  const cudaError_t error = simt::CheckLaunch(*config, address);
  if (error != cudaSuccess) return simt::Answer(error);

  using Launch = std::pair<void (*)(Expected...), std::tuple<std::remove_cv_t<Expected>...>>;
  const Launch launch{kernel, {static_cast<Expected>(std::forward<Actual>(actual))...}};
  const auto run = [](const void* erased) {
    const Launch& launch = *static_cast<const Launch*>(erased);
    std::apply(launch.first, launch.second);
  };
  simt::Run({address, run, &launch}, config->gridDim, config->blockDim, config->dynamicSmemBytes);
  return cudaSuccess;
}
