// What a benchmark does with the device: memory, real data, time.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <random>
#include <vector>

#include "cuda/kernels.h"
#include "tests/native/device_array.h"

namespace mbrnnt::benchmarks {

using test::DeviceArray;

inline void Check(cudaError_t error, const char* what) { test::ExpectSuccess(error, what); }
inline void Check(cuda::Status status) {
  Check(status.error, status.kernel ? status.kernel : "launch");
  Check(cudaGetLastError(), "launch");
}

// NaN in any format.
template <typename T>
void Poison(DeviceArray<T>& array) {
  Check(cudaMemset(array.data(), 0xff, array.Bytes()), "memset");
}

// Repeats the values to the end of the array.
template <typename T>
void Fill(DeviceArray<T>& array, const std::vector<T>& values) {
  size_t filled = std::min(values.size(), array.size());
  const size_t bytes = filled * sizeof(T);
  Check(cudaMemcpy(array.data(), values.data(), bytes, cudaMemcpyHostToDevice), "to device");
  while (filled < array.size()) {
    const size_t next = std::min(filled, array.size() - filled);
    Check(
        cudaMemcpy(array.data() + filled, array.data(), next * sizeof(T), cudaMemcpyDeviceToDevice),
        "copy");
    filled += next;
  }
}

// 64 MB of float32: more than an L2 cache holds. Never zeros, they may run faster than real data.
template <typename L>
std::vector<L> RandomLogits() {
  static const std::vector<float> normals = [] {
    std::mt19937 random_bits(20221107);
    std::normal_distribution<float> normal(0, 2);
    std::vector<float> values(1 << 24);
    for (float& x : values) x = normal(random_bits);
    return values;
  }();
  std::vector<L> logits(normals.size());
  for (size_t i = 0; i < logits.size(); ++i) logits[i] = FromReal<L>(Real<L>(normals[i]));
  return logits;
}

struct Times {
  double median, min, max;  // us
};

// Reads all of an array of zeros. What it would write if it found anything keeps the compiler from
// leaving the reading out.
static __global__ void ReadZerosKernel(const uint4* zeros, int64_t size, unsigned* found) {
  unsigned all = 0;
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < size;
       i += int64_t{gridDim.x} * blockDim.x) {
    const uint4 x = zeros[i];
    all |= x.x | x.y | x.z | x.w;
  }
  if (all != 0) *found = all;
}

// Times what a stream does between two events.
class Stopwatch {
 public:
  explicit Stopwatch(int repeats) : repeats_(repeats), others_((256 << 20) / sizeof(uint4)) {
    Check(cudaMemset(others_.data(), 0, others_.Bytes()), "cudaMemset");
    Check(cudaStreamCreate(&stream_), "cudaStreamCreate");
    Check(cudaEventCreate(&start_), "cudaEventCreate");
    Check(cudaEventCreate(&stop_), "cudaEventCreate");
  }
  ~Stopwatch() {
    cudaEventDestroy(start_);
    cudaEventDestroy(stop_);
    cudaStreamDestroy(stream_);
  }
  cudaStream_t stream() const { return stream_; }

  // `prepare` is not timed. Then the L2 cache is full of something else, which was only read: lines
  // that were written would go to memory while `run` is timed. Reading takes long enough that all
  // of `run` is queued before the first event passes.
  Times Time(const std::function<void()>& prepare, const std::function<void()>& run) {
    std::vector<double> us;
    for (int i = -3; i < repeats_; ++i) {
      prepare();
      ReadZerosKernel<<<2048, 512, 0, stream_>>>(others_.data(), others_.size(),
                                                 &others_.data()->x);
      Check(cudaGetLastError(), "ReadZerosKernel");
      Check(cudaEventRecord(start_, stream_), "cudaEventRecord");
      run();
      Check(cudaEventRecord(stop_, stream_), "cudaEventRecord");
      Check(cudaStreamSynchronize(stream_), "run");
      float ms = 0;
      Check(cudaEventElapsedTime(&ms, start_, stop_), "cudaEventElapsedTime");
      if (i >= 0) us.push_back(1e3 * ms);  // the first three warm up
    }
    std::sort(us.begin(), us.end());
    return {us[us.size() / 2], us.front(), us.back()};
  }

 private:
  int repeats_;
  DeviceArray<uint4> others_;  // more than an L2 cache holds
  cudaStream_t stream_ = nullptr;
  cudaEvent_t start_ = nullptr, stop_ = nullptr;
};

}  // namespace mbrnnt::benchmarks
