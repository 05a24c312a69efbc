// What all kernels share: a warp, and launching.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <utility>

#include "cuda/kernels.h"

namespace mbrnnt::cuda {

inline constexpr int kWarp = 32;
inline constexpr unsigned kAllLanes = 0xffffffffu;

struct Grid {
  dim3 blocks;
  int threads;
};

// No launch at all where there is no block, and none on OnlyLoading().
template <typename... Parameters, typename... Arguments>
Status Launch(const char* name, void (*kernel)(Parameters...), const Grid& grid,
              cudaStream_t stream, Arguments&&... arguments) {
  if (grid.blocks.x == 0) return {};
  if (stream == OnlyLoading()) {
    cudaFuncAttributes attributes;
    return {cudaFuncGetAttributes(&attributes, kernel), name};
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = grid.blocks;
  config.blockDim = dim3(grid.threads);
  config.stream = stream;
  return {cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...), name};
}

// One block for each of n, or several rounds where a grid cannot hold as many.
inline unsigned BlocksFor(int64_t n) {
  constexpr int64_t kMost = (int64_t{1} << 31) - 1;
  return static_cast<unsigned>(n < kMost ? n : kMost);
}

}  // namespace mbrnnt::cuda
