// What the programs in this folder share. They are plain CUDA: nvcc builds them as well.
#pragma once

#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

#include "tests/native/device_array.h"
#include "tests/native/expect.h"

using mbrnnt::test::DeviceArray;

template <typename... Parameters, typename... Arguments>
cudaError_t TryLaunch(dim3 grid, dim3 block, size_t dynamic_shared_size,
                      void (*kernel)(Parameters...), Arguments... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = dynamic_shared_size;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

template <typename... Parameters, typename... Arguments>
void Launch(dim3 grid, dim3 block, size_t dynamic_shared_size, void (*kernel)(Parameters...),
            Arguments... arguments) {
  const cudaError_t launched = TryLaunch(grid, block, dynamic_shared_size, kernel, arguments...);
  const cudaError_t finished = cudaDeviceSynchronize();
  if (launched != cudaSuccess || finished != cudaSuccess) {
    std::fprintf(stderr, "%s, %s\n", cudaGetErrorString(launched), cudaGetErrorString(finished));
    std::exit(1);
  }
}
