// What a launch may ask for.
#include <mutex>
#include <unordered_map>

#include "cuda_runtime_api.h"

namespace simt {
namespace {

std::mutex limits_mutex;
std::unordered_map<const void*, size_t> dynamic_shared_limits;  // of kernels that raised theirs

}  // namespace

cudaError_t CheckLaunch(const cudaLaunchConfig_t& config, const void* kernel) {
  const dim3 grid = config.gridDim, block = config.blockDim;
  if (!kernel) return cudaErrorInvalidDeviceFunction;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffff || grid.y > 65535 ||
      grid.z > 65535) {
    return cudaErrorInvalidConfiguration;
  }
  // Each factor is bounded before they are multiplied.
  if (block.x == 0 || block.y == 0 || block.z == 0 || block.x > 1024 || block.y > 1024 ||
      block.z > 64 || size_t{block.x} * block.y * block.z > kMaxThreads) {
    return cudaErrorInvalidConfiguration;
  }
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    const cudaLaunchAttributeID id = config.attrs[i].id;
    if (id != cudaLaunchAttributeIgnore &&
        id != cudaLaunchAttributeProgrammaticStreamSerialization) {
      return cudaErrorNotSupported;
    }
  }
  if (config.dynamicSmemBytes <= kDefaultDynamicShared) return cudaSuccess;
  const std::lock_guard<std::mutex> lock(limits_mutex);
  const auto limit = dynamic_shared_limits.find(kernel);
  const bool raised =
      limit != dynamic_shared_limits.end() && config.dynamicSmemBytes <= limit->second;
  return raised ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace simt

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (!kernel) return simt::Answer(cudaErrorInvalidDeviceFunction);
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 ||
      static_cast<size_t>(value) > simt::kMaxDynamicShared) {
    return simt::Answer(cudaErrorInvalidValue);
  }
  const std::lock_guard<std::mutex> lock(simt::limits_mutex);
  simt::dynamic_shared_limits[kernel] = static_cast<size_t>(value);
  return cudaSuccess;
}
