// What the programs in this folder share. They are plain CUDA: nvcc builds them as well.
#pragma once

#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

#define EXPECT(condition)                                                          \
  do {                                                                             \
    if (!(condition)) {                                                            \
      std::fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                                                \
    }                                                                              \
  } while (false)

// An array on the device. Copied there and back whole.
template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(size_t size) : size_(size) {
    EXPECT(cudaMalloc(&data_, size * sizeof(T)) == cudaSuccess);
  }
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) {
    EXPECT(cudaMemcpy(data_, values.data(), size_ * sizeof(T), cudaMemcpyHostToDevice) ==
           cudaSuccess);
  }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  ~DeviceArray() { cudaFree(data_); }

  T* data() { return data_; }
  std::vector<T> Values() const {
    std::vector<T> values(size_);
    EXPECT(cudaMemcpy(values.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost) ==
           cudaSuccess);
    return values;
  }

 private:
  T* data_ = nullptr;
  size_t size_;
};

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
