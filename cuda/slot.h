// What a build of the sweep has in registers of an arc table, and what one chunk needs in shared
// memory.
#pragma once

#include "cuda/sweep.h"

namespace mbrnnt::cuda {

// The arcs that a build of the sweep has in registers: labels of durations 0 to kLongestLabel, and
// blanks of the durations whose bits are set.
template <int kLongestLabel, uint32_t kBlankBits>
struct Planes {
  static constexpr int kLabels = kLongestLabel + 1;
  static constexpr int kCount = kLabels + __builtin_popcount(kBlankBits);
  static_assert(kLongestLabel <= kChunk && kBlankBits < 2u << kChunk, "the windows are a chunk");
  static_assert(kCount <= SweepPlan::kMaxPlanes, "the plan has no room");
  // Threads that bring weights: as many as keep up with the one warp that walks, which is the
  // second one: warps go around four schedulers, and the first has more of them than the others.
  static constexpr int kProducers = kCount > 5 ? 256 : 128;
  static constexpr int kThreads = kWarp + kProducers;
  static constexpr int kNodesPerProducer = kBlock / kProducers;
  static_assert(kBlankBits & 0b10, "the first blank is of one frame");

  // Durations of the blanks, four bits each: with a known plane nothing is left of this.
  static constexpr uint32_t Durations() {
    uint32_t durations = 0;
    for (int d = kChunk; d > 0; --d) {
      if (kBlankBits >> d & 1u) durations = durations << 4 | uint32_t(d);
    }
    return durations;
  }
  static constexpr uint32_t kDurations = Durations();
  static constexpr MBRNNT_HD Arc At(int plane) {
    if (plane < kLabels) return {plane, 1};
    return {static_cast<int32_t>(kDurations >> 4 * (plane - kLabels) & 15u), 0};
  }
  static constexpr MBRNNT_HD int Of(Arc arc) {  // -1: not here
    for (int p = 0; p < kCount; ++p) {
      if (At(p).duration == arc.duration && At(p).emits == arc.emits) return p;
    }
    return -1;
  }
};

// What a chunk needs.
template <typename P>
struct Slot {
  float4 weights[P::kCount][2][kWarp];  // 0 or normal; four steps of a lane together
  alignas(16) uint64_t border[Borders::kWords];
  alignas(16) uint32_t exact[P::kProducers / kWarp];  // of each warp: there are other weights

  __device__ __forceinline__ float& At(int plane, int lane, int step) {
    return reinterpret_cast<float*>(&weights[plane][step / 4][lane])[step % 4];
  }
};

// A block's shared memory.
template <typename P>
struct BlockMemory {
  static constexpr int kSaved = (P::kLabels > 1 ? 2 : 1) * kChunk + 1;

  Slot<P> slots[2];
  // What the walking warp had on its way when the chunk began, for ExactChunk.
  double saved[kSaved][kWarp];
};

}  // namespace mbrnnt::cuda
