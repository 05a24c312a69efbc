// An array on the device, of exactly the size that is asked for. Copied there and back
// whole. Plain CUDA: nvcc builds it as well as a host compiler over tests/simt/.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>
#include <vector>

namespace mbrnnt::test {

struct CudaError : std::runtime_error {
  cudaError_t error;
  CudaError(cudaError_t error, const char* what)
      : std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error)), error(error) {}
};

inline void ExpectSuccess(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // an allocation that failed is no reason to fail later
  throw CudaError(error, what);
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
  size_t size() const { return size_; }
  size_t Bytes() const { return size_ * sizeof(T); }
  std::vector<T> Fetch() const { return Fetch(0, size_); }
  std::vector<T> Fetch(size_t begin, size_t end) const {
    std::vector<T> host(end - begin);
    if (end > begin) {
      const size_t bytes = host.size() * sizeof(T);
      ExpectSuccess(cudaMemcpy(host.data(), data_ + begin, bytes, cudaMemcpyDeviceToHost),
                    "to host");
    }
    return host;
  }

 private:
  T* data_ = nullptr;
  size_t size_;
};

}  // namespace mbrnnt::test
