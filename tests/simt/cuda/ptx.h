// Stand-in for cuda/ptx.h, which is found here first: the words of that file that the emulator
// cannot read, for they are PTX.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace mbrnnt::cuda {

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

}  // namespace mbrnnt::cuda
