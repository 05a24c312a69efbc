// An array on the device, of exactly the size that is asked for. Copied there and back
// whole. Plain CUDA: nvcc builds it as well as a host compiler over tests/simt/.
#pragma once

#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

namespace mbrnnt::test {

inline void ExpectSuccess(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(size_t size) : size_(size) {
    if (size > 0) ExpectSuccess(cudaMalloc(&data_, Bytes()), "cudaMalloc");
  }
  explicit DeviceArray(const std::vector<T>& host) : DeviceArray(host.size()) {
    if (size_ == 0) return;
    ExpectSuccess(cudaMemcpy(data_, host.data(), Bytes(), cudaMemcpyHostToDevice), "to device");
  }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  ~DeviceArray() { cudaFree(data_); }

  T* data() { return data_; }
  const T* data() const { return data_; }
  std::vector<T> Fetch() const {
    std::vector<T> host(size_);
    if (size_ > 0) {
      ExpectSuccess(cudaMemcpy(host.data(), data_, Bytes(), cudaMemcpyDeviceToHost), "to host");
    }
    return host;
  }

 private:
  size_t Bytes() const { return size_ * sizeof(T); }

  T* data_ = nullptr;
  size_t size_;
};

}  // namespace mbrnnt::test
