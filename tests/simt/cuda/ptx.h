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

class SharedAddress {
 public:
  explicit SharedAddress(const void* pointer) : address_(reinterpret_cast<uintptr_t>(pointer)) {}
  template <typename T>
  T* Behind(unsigned bytes) const {
    return reinterpret_cast<T*>(address_ + bytes);
  }

 private:
  uintptr_t address_;
};

// ---------------------------------------------------------------- Relaxed accesses

__forceinline__ uint64_t LoadRelaxed(const uint64_t* p, simt::Site site = simt::Site::Here()) {
  simt::CheckAligned(p, site);
  return simt::AtomicLoad(p, site);
}

__forceinline__ void StoreRelaxed(uint64_t* p, uint64_t x, simt::Site site = simt::Site::Here()) {
  simt::CheckAligned(p, site);
  simt::AtomicStore(p, x);
}

// 16 bytes at once, whose halves are atomic each for itself: one may be newer than the other.
__forceinline__ void LoadRelaxed2(const uint64_t* p, uint64_t& a, uint64_t& b,
                                  simt::Site site = simt::Site::Here()) {
  simt::CheckAligned(reinterpret_cast<const ulonglong2*>(p), site);
  a = simt::AtomicLoad(p, site);
  b = simt::AtomicLoad(p + 1, site);
}

__forceinline__ void StoreRelaxed2(uint64_t* p, uint64_t a, uint64_t b,
                                   simt::Site site = simt::Site::Here()) {
  simt::CheckAligned(reinterpret_cast<const ulonglong2*>(p), site);
  simt::AtomicStore(p, a);
  simt::AtomicStore(p + 1, b);
}

// ---------------------------------------------------------------- Barriers, arithmetic

// One line for all that call it: its callers are at different ones.
__forceinline__ void SyncBlock() { simt::SyncThreads(simt::Site::Here()); }

__forceinline__ uint64_t ShiftLeft29(uint32_t x) { return uint64_t{x} << 29; }

}  // namespace mbrnnt::cuda::ptx
