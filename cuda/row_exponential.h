// The exponentials of a row, which both kernels over logits compute the same way.
#pragma once

#include <cuda_runtime.h>

#include <cmath>

#include "cuda/ptx.h"
#include "lattice/emission.h"

namespace mbrnnt::cuda {

// exp(x - shift) of a row's logits x, but for a factor that is the same for the whole row.
//
// float: exp2(x * log2(e) - minus), minus = fl(shift * log2(e)), is one multiplication-addition,
// which rounds a number near 0, and one instruction for exp2. It is exp(x - shift) * 2^excess,
// where excess = shift * log2(e) - minus is what was rounded off: up to half a unit in the last
// place of `minus`, exactly a float. LogSum and Reciprocal take it out of what is said of the row.
//
// From 2^30 on the excess would overflow exp2. Float32 numbers of that size are equal or 64 apart,
// so that a power of any base will do: with a scale of 1 every exponential is 1 or negligible.
template <typename T>
struct RowExponential {
  static constexpr float kHuge = 0x1p30f, kLog2E = 1.44269504f, kLn2 = 0.693147181f;
  float scale, minus;

  static __device__ __forceinline__ RowExponential Usual(float shift) {  // |shift| < kHuge
    return {kLog2E, shift * -kLog2E};
  }
  static __device__ __forceinline__ RowExponential Huge(float shift) { return {1.0f, -shift}; }
  static __device__ __forceinline__ RowExponential Of(float shift) {
    const float scale = fabsf(shift) < kHuge ? kLog2E : 1.0f;
    return {scale, shift * -scale};
  }
  // That of a lane of the group.
  template <typename Group>
  __device__ __forceinline__ RowExponential From(int lane, const Group& group) const {
    return {group.From(scale, lane), group.From(minus, lane)};
  }

  __device__ __forceinline__ float operator()(float x) const {
    return ptx::Exp2(fmaf(x, scale, minus));
  }
  __device__ __forceinline__ float Excess(float shift) const { return fmaf(shift, scale, minus); }

  // What turns a sum of earlier's exponentials into a sum of this one's.
  __device__ __forceinline__ float Over(RowExponential earlier) const {
    return ptx::Exp2(minus - earlier.minus);
  }
  // log(sum(exp(row - shift))), of the sum of the row's exponentials.
  __device__ __forceinline__ float LogSum(float shift, float sum) const {
    return fmaf(Excess(shift), -kLn2, mbrnnt::LogSum(sum));
  }
  // What turns an exponential into its probability.
  __device__ __forceinline__ float Reciprocal(LogNormalizer<float> normalizer) const {
    return ptx::Exp2(-fmaf(normalizer.log_sum, kLog2E, Excess(normalizer.shift)));
  }
};

// double: as it stands.
template <>
struct RowExponential<double> {
  static constexpr double kHuge = 0x1p1000;
  double shift;

  static __device__ __forceinline__ RowExponential Usual(double shift) { return {shift}; }
  static __device__ __forceinline__ RowExponential Huge(double shift) { return {shift}; }
  static __device__ __forceinline__ RowExponential Of(double shift) { return {shift}; }
  template <typename Group>
  __device__ __forceinline__ RowExponential From(int lane, const Group& group) const {
    return {group.From(shift, lane)};
  }

  __device__ __forceinline__ double operator()(double x) const { return exp(x - shift); }
  __device__ __forceinline__ double Over(RowExponential earlier) const {
    return exp(earlier.shift - shift);
  }
  __device__ __forceinline__ double LogSum(double, double sum) const { return mbrnnt::LogSum(sum); }
  __device__ __forceinline__ double Reciprocal(LogNormalizer<double> normalizer) const {
    return exp(-normalizer.log_sum);
  }
};

}  // namespace mbrnnt::cuda
