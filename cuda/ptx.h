// Instructions that CUDA C++ has no name for. (tests/simt/cuda/ptx.h says in C++ what they do.)
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "lattice/number.h"

namespace mbrnnt::cuda::ptx {

// 2^x within 2 ulp; a denormal result is 0. exp2f and __expf keep denormals, at the price of a
// comparison and two multiplications.
__device__ __forceinline__ float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Whether the device has reductions over a warp and the maximum of pairs.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
inline constexpr bool kFromSm80 = false;
#else
inline constexpr bool kFromSm80 = true;
#endif

// The larger number in each half of two words, of a NaN and a number the number. The intrinsics
// (__hmax2) want their own types of pairs, of which a word of memory is none.
template <typename L>
__device__ __forceinline__ uint32_t MaxOfPairs(uint32_t a, uint32_t b);
template <>
__device__ __forceinline__ uint32_t MaxOfPairs<BFloat16>(uint32_t a, uint32_t b) {
  uint32_t larger;
  asm("max.bf16x2 %0, %1, %2;" : "=r"(larger) : "r"(a), "r"(b));
  return larger;
}
template <>
__device__ __forceinline__ uint32_t MaxOfPairs<Float16>(uint32_t a, uint32_t b) {
  uint32_t larger;
  asm("max.f16x2 %0, %1, %2;" : "=r"(larger) : "r"(a), "r"(b));
  return larger;
}

// x, which the compiler does not know how to compute any more: what is computed once for many rows
// stays in a register, where it would be computed for each of them anew.
template <typename T>
__device__ __forceinline__ T Kept(T x) {
  if constexpr (std::is_same_v<T, float>) {
    asm("" : "+f"(x));
  } else if constexpr (std::is_same_v<T, double>) {
    asm("" : "+d"(x));
  } else if constexpr (sizeof(T) == 4) {
    asm("" : "+r"(x));
  } else {
    asm("" : "+l"(x));
  }
  return x;
}

// An address in global memory, kept likewise, and others behind it, all of which the compiler still
// knows to be global: through any other pointer, loads and stores have to find out where they go.
template <typename T>
class GlobalAddress {
 public:
  __device__ __forceinline__ explicit GlobalAddress(T* pointer)
      : address_(Kept(uint64_t{__cvta_generic_to_global(pointer)})) {}
  // `count` times `bytes` behind it. Written in C++, it takes two instructions more.
  __device__ __forceinline__ T* Behind(unsigned count, unsigned bytes) const {
    uint64_t address;
    asm("mad.wide.u32 %0, %1, %2, %3;" : "=l"(address) : "r"(count), "r"(bytes), "l"(address_));
    return static_cast<T*>(__cvta_global_to_generic(address));
  }

 private:
  uint64_t address_;
};

// An address in shared memory, kept likewise: a pointer is put together anew wherever it is used.
class SharedAddress {
 public:
  __device__ __forceinline__ explicit SharedAddress(const void* pointer)
      : address_(Kept(static_cast<unsigned>(__cvta_generic_to_shared(pointer)))) {}
  template <typename T>
  __device__ __forceinline__ T* Behind(unsigned bytes) const {
    return static_cast<T*>(__cvta_shared_to_generic(address_ + bytes));
  }

 private:
  unsigned address_;
};

// Words of 8 bytes that another block may read or write meanwhile: each of them is whole, and
// nothing else is in order with them.
__device__ __forceinline__ uint64_t LoadRelaxed(const uint64_t* p) {
  uint64_t x;
  asm volatile("ld.relaxed.gpu.global.b64 %0, [%1];" : "=l"(x) : "l"(p));
  return x;
}
__device__ __forceinline__ void StoreRelaxed(uint64_t* p, uint64_t x) {
  asm volatile("st.relaxed.gpu.global.b64 [%0], %1;" ::"l"(p), "l"(x));
}
__device__ __forceinline__ void StoreRelaxed2(uint64_t* p, uint64_t a, uint64_t b) {
  asm volatile("st.relaxed.gpu.global.v2.b64 [%0], {%1, %2};" ::"l"(p), "l"(a), "l"(b));
}

// A barrier of the block at which warps may arrive from different places of a kernel.
__device__ __forceinline__ void SyncBlock() { asm volatile("barrier.sync 0;" ::: "memory"); }

// x * 2^29: one multiplication, where a compiler makes two shifts of it.
__device__ __forceinline__ uint64_t ShiftLeft29(uint32_t x) {
  uint32_t factor;
  asm("mov.u32 %0, 0x20000000;" : "=r"(factor));
  uint64_t product;
  asm("mul.wide.u32 %0, %1, %2;" : "=l"(product) : "r"(x), "r"(factor));
  return product;
}

}  // namespace mbrnnt::cuda::ptx
