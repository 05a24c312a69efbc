// Our own stand-in for CUDA's <cuda_runtime.h>: with `-Itests/simt` a C++17 compiler takes a .cu
// file for C++, and simt.cc runs its kernels. For tests alone; what our kernels do not use is not
// here, and what a GPU would let pass in silence (see simt.h) fails.
#pragma once

#include <math.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "simt.h"

// ---------------------------------------------------------------- Qualifiers

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
// Fibers of one block share their OS thread, and with it a `thread_local`. Unlike `static` it may
// follow `extern`, and it keeps launches from several OS threads apart.
#define __shared__ thread_local

inline constexpr int warpSize = simt::kWarpSize;

// ---------------------------------------------------------------- Collectives

namespace simt {

template <typename T>
T Shuffle(const char* collective, unsigned mask, T value, int source, Site site) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8),
                "CUDA shuffles int, unsigned, long, long long, float and double");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = Exchange(collective, mask, bits, source, site);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

// The first lane of the running lane's segment.
inline int SegmentBegin(int width, Site site) {
  if (width < 1 || width > kWarpSize || (width & (width - 1)) != 0) {
    Fail(site, "shuffle of width %d: has to be a power of two up to 32", width);
  }
  return Lane() & ~(width - 1);
}

}  // namespace simt

inline void __syncthreads(simt::Site site = simt::Site::Here()) { simt::SyncThreads(site); }

inline void __syncwarp(unsigned mask = 0xffffffff, simt::Site site = simt::Site::Here()) {
  simt::Exchange("__syncwarp", mask, 0, simt::Lane(), site);
}

// A lane keeps its own value where the source is out of its segment. As on the GPU, deltas and lane
// masks are taken modulo 32, and an xor may reach into an earlier segment but not into a later one.
template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize,
              simt::Site site = simt::Site::Here()) {
  const int lane = simt::SegmentBegin(width, site) + (source & (width - 1));
  return simt::Shuffle("__shfl_sync", mask, value, lane, site);
}

template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize,
                 simt::Site site = simt::Site::Here()) {
  const int own = simt::Lane(), lane = own - static_cast<int>(delta % 32);
  const bool inside = lane >= simt::SegmentBegin(width, site);
  return simt::Shuffle("__shfl_up_sync", mask, value, inside ? lane : own, site);
}

template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize,
                   simt::Site site = simt::Site::Here()) {
  const int own = simt::Lane(), lane = own + static_cast<int>(delta % 32);
  const bool inside = lane < simt::SegmentBegin(width, site) + width;
  return simt::Shuffle("__shfl_down_sync", mask, value, inside ? lane : own, site);
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = warpSize,
                  simt::Site site = simt::Site::Here()) {
  const int own = simt::Lane(), lane = own ^ (lane_mask & 31);
  const bool inside = lane < simt::SegmentBegin(width, site) + width;
  return simt::Shuffle("__shfl_xor_sync", mask, value, inside ? lane : own, site);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, simt::Site site = simt::Site::Here()) {
  return static_cast<unsigned>(
      simt::Exchange("__ballot_sync", mask, predicate != 0, simt::kBallot, site));
}

inline int __any_sync(unsigned mask, int predicate, simt::Site site = simt::Site::Here()) {
  return simt::Exchange("__any_sync", mask, predicate != 0, simt::kBallot, site) != 0;
}

inline int __all_sync(unsigned mask, int predicate, simt::Site site = simt::Site::Here()) {
  return simt::Exchange("__all_sync", mask, predicate != 0, simt::kBallot, site) == mask;
}

// On a GPU from sm_80 on.
inline int __reduce_max_sync(unsigned mask, int value, simt::Site site = simt::Site::Here()) {
  const auto bits = static_cast<uint64_t>(value);
  return static_cast<int>(simt::Exchange("__reduce_max_sync", mask, bits, simt::kMaximum, site));
}

inline void __nanosleep(unsigned, simt::Site site = simt::Site::Here()) { simt::Yield(site); }

// One OS thread runs the block: its memory accesses are in order.
inline void __threadfence_block() {}
inline void __threadfence() {}

[[noreturn]] inline void __trap(simt::Site site = simt::Site::Here()) {
  simt::Fail(site, "__trap()");
}

// ---------------------------------------------------------------- Memory

namespace simt {

template <typename T>
void CheckAligned(const T* p, Site site) {
  if (reinterpret_cast<uintptr_t>(p) % alignof(T) != 0) {
    Fail(site, "access of %zu bytes at %p, which is not a multiple of %zu", sizeof(T),
         static_cast<const void*>(p), alignof(T));
  }
}

template <typename T>
T Load(const T* p, Site site) {
  CheckAligned(p, site);
  return *p;
}

template <typename T>
void Store(T* p, T value, Site site) {
  CheckAligned(p, site);
  *p = value;
}

// The second argument of a store takes no part in deducing T, as in CUDA's overloads.
template <typename T>
using Same = std::common_type_t<T>;

}  // namespace simt

template <typename T>
T __ldg(const T* p, simt::Site site = simt::Site::Here()) {
  return simt::Load(p, site);
}
template <typename T>
T __ldcs(const T* p, simt::Site site = simt::Site::Here()) {
  return simt::Load(p, site);
}
template <typename T>
T __ldcg(const T* p, simt::Site site = simt::Site::Here()) {
  return simt::Load(p, site);
}
template <typename T>
void __stcs(T* p, simt::Same<T> value, simt::Site site = simt::Site::Here()) {
  simt::Store(p, value, site);
}
template <typename T>
void __stcg(T* p, simt::Same<T> value, simt::Site site = simt::Site::Here()) {
  simt::Store(p, value, site);
}

// ---------------------------------------------------------------- Arithmetic

namespace simt {

template <typename To, typename From>
To BitCast(From from) {
  static_assert(sizeof(To) == sizeof(From), "BitCast keeps the size");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

}  // namespace simt

inline unsigned __float_as_uint(float x) { return simt::BitCast<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return simt::BitCast<float>(x); }
inline int __float_as_int(float x) { return simt::BitCast<int>(x); }
inline float __int_as_float(int x) { return simt::BitCast<float>(x); }
inline long long __double_as_longlong(double x) { return simt::BitCast<long long>(x); }
inline double __longlong_as_double(long long x) { return simt::BitCast<double>(x); }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }

inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1.0f / x; }

// Through base 2, with the product rounded, as on the GPU: the error grows with |x| there too.
// (glibc's <math.h> declares these two names, with C linkage, and defines neither.)
extern "C" inline float __expf(float x) noexcept { return exp2f(x * 1.4426950408889634f); }
extern "C" inline float __logf(float x) noexcept { return log2f(x) * 0.6931471805599453f; }

// Integers of two types do not mix: CUDA's overloads would choose one of them in silence. A NaN
// loses against a number.
template <typename T, typename = std::enable_if_t<std::is_integral_v<T>>>
constexpr T min(T a, T b) {
  return b < a ? b : a;
}
template <typename T, typename = std::enable_if_t<std::is_integral_v<T>>>
constexpr T max(T a, T b) {
  return a < b ? b : a;
}
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }

#include "cuda_runtime_api.h"
