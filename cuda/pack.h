// 16 bytes of a row of logits, the most that a thread loads or stores at once, and the numbers in
// them: one instruction for each number out of a word, one for each word of results.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

#include "cuda/ptx.h"
#include "lattice/number.h"

namespace mbrnnt::cuda {

// lattice/number.h by the hardware's conversions.
__device__ __forceinline__ float Widen(float x) { return x; }
__device__ __forceinline__ double Widen(double x) { return x; }
__device__ __forceinline__ float Widen(BFloat16 x) { return ToReal(x); }  // a shift
__device__ __forceinline__ float Widen(Float16 x) { return __half2float(__ushort_as_half(x.bits)); }

template <typename L>
__device__ __forceinline__ L Narrow(Real<L> x) {
  return x;
}
template <>
__device__ __forceinline__ BFloat16 Narrow<BFloat16>(float x) {
  return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
}
template <>
__device__ __forceinline__ Float16 Narrow<Float16>(float x) {
  return {__half_as_ushort(__float2half_rn(x))};
}

// The two numbers in a word: `which` is 0 for the lower half, 1 for the upper.
template <typename L>
__device__ __forceinline__ float WidenHalf(uint32_t word, int which);
template <>
__device__ __forceinline__ float WidenHalf<BFloat16>(uint32_t word, int which) {
  return __uint_as_float(which == 0 ? word << 16 : word & 0xffff0000u);
}
template <>
__device__ __forceinline__ float WidenHalf<Float16>(uint32_t word, int which) {
  return Widen(Float16{static_cast<uint16_t>(which == 0 ? word : word >> 16)});
}

template <typename L>
__device__ __forceinline__ uint32_t NarrowPair(float lower, float upper);
template <>
__device__ __forceinline__ uint32_t NarrowPair<BFloat16>(float lower, float upper) {
  return BitCast<uint32_t>(__floats2bfloat162_rn(lower, upper));
}
template <>
__device__ __forceinline__ uint32_t NarrowPair<Float16>(float lower, float upper) {
  return BitCast<uint32_t>(__floats2half2_rn(lower, upper));
}

template <typename L>
struct Pack {
  static constexpr int kSize = 16 / sizeof(L);
  uint32_t words[4];

  static __device__ __forceinline__ Pack Load(const L* from) {
    return BitCast<Pack>(*reinterpret_cast<const uint4*>(from));
  }
  // By an intrinsic: before sm_100 an assignment becomes four stores of 4 bytes. What is written
  // here is not read again soon.
  __device__ __forceinline__ void Store(L* to) const {
    __stcs(reinterpret_cast<uint4*>(to), make_uint4(words[0], words[1], words[2], words[3]));
  }

  // number(i) in place i.
  template <typename Number>
  static __device__ __forceinline__ Pack Of(const Number& number) {
    Pack pack;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (sizeof(L) == 2) {
        pack.words[i] = NarrowPair<L>(number(2 * i), number(2 * i + 1));
      } else if constexpr (sizeof(L) == 4) {
        pack.words[i] = __float_as_uint(number(i));
      } else {
        pack.words[i] = static_cast<uint32_t>(BitCast<uint64_t>(number(i / 2)) >> i % 2 * 32);
      }
    }
    return pack;
  }
  static __device__ __forceinline__ Pack Filled(Real<L> x) {
    return Of([&](int) { return x; });
  }

  __device__ __forceinline__ Real<L> operator[](int i) const {
    if constexpr (sizeof(L) == 2) {
      return WidenHalf<L>(words[i / 2], i % 2);
    } else if constexpr (sizeof(L) == 4) {
      return __uint_as_float(words[i]);
    } else {
      return BitCast<double>(uint64_t{words[2 * i + 1]} << 32 | words[2 * i]);
    }
  }
};

// Of a NaN and a number: the number.
__device__ __forceinline__ float Smaller(float x, float y) { return fminf(x, y); }
__device__ __forceinline__ double Smaller(double x, double y) { return fmin(x, y); }
__device__ __forceinline__ float Larger(float x, float y) { return fmaxf(x, y); }
__device__ __forceinline__ double Larger(double x, double y) { return fmax(x, y); }

// The largest of `largest` and the packs' numbers; NaN counts as nothing.
template <typename L, int kPacks>
__device__ __forceinline__ Real<L> Largest(Real<L> largest, const Pack<L> (&packs)[kPacks]) {
  constexpr int kSize = Pack<L>::kSize;
  if constexpr (sizeof(L) == 2 && ptx::kFromSm80) {
    uint32_t pair = packs[0].words[0];
#pragma unroll
    for (int i = 1; i < kPacks * 4; ++i) pair = ptx::MaxOfPairs<L>(pair, packs[i / 4].words[i % 4]);
    return Larger(Larger(largest, WidenHalf<L>(pair, 0)), WidenHalf<L>(pair, 1));
  } else {
#pragma unroll
    for (int i = 0; i < kPacks * kSize; ++i) largest = Larger(largest, packs[i / kSize][i % kSize]);
    return largest;
  }
}

}  // namespace mbrnnt::cuda
