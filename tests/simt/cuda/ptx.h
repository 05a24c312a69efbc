// Stand-in for cuda/ptx.h, before which an #include finds it: what its instructions do, in C++.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "lattice/number.h"

namespace mbrnnt::cuda::ptx {

inline float Exp2(float x) {
  const float y = exp2f(x);
  return y < 0x1p-126f ? 0.0f : y;
}

inline constexpr bool kFromSm80 = true;

template <typename L>
uint32_t MaxOfPairs(uint32_t a, uint32_t b) {
  uint32_t larger = 0;
  for (int shift : {0, 16}) {
    const auto x = static_cast<uint16_t>(a >> shift), y = static_cast<uint16_t>(b >> shift);
    const float of_a = ToReal(L{x}), of_b = ToReal(L{y});
    // Of two NaNs the one NaN that the instruction gives.
    const uint32_t nan = 0x7fff, number = fmaxf(of_a, of_b) == of_a ? x : y;
    larger |= (of_a != of_a && of_b != of_b ? nan : number) << shift;
  }
  return larger;
}

template <typename T>
T Kept(T x) {
  return x;
}

template <typename T>
class GlobalAddress {
 public:
  explicit GlobalAddress(T* pointer) : address_(reinterpret_cast<uintptr_t>(pointer)) {}
  T* Behind(unsigned count, unsigned bytes) const {
    return reinterpret_cast<T*>(address_ + uint64_t{count} * bytes);
  }

 private:
  uintptr_t address_;
};

}  // namespace mbrnnt::cuda::ptx
