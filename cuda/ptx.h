// Words of the hardware for which CUDA C++ has no name. The tests have their own, in C++.
#pragma once

#include <cstdint>

namespace mbrnnt::cuda {

// Words of 8 bytes that another block may read or write meanwhile: each of them is whole, and
// nothing else is in order with them.
__device__ __forceinline__ uint64_t LoadRelaxed(const uint64_t* p) {
  uint64_t x;
  asm volatile("ld.relaxed.gpu.global.b64 %0, [%1];" : "=l"(x) : "l"(p));
  return x;
}
__device__ __forceinline__ void LoadRelaxed2(const uint64_t* p, uint64_t& a, uint64_t& b) {
  asm volatile("ld.relaxed.gpu.global.v2.b64 {%0, %1}, [%2];" : "=l"(a), "=l"(b) : "l"(p));
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

}  // namespace mbrnnt::cuda
