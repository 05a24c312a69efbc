// How a kernel walks over rows of logits: a block goes over the columns of a frame, a group of
// lanes takes a row, and of the row first single elements and then 16 bytes a lane at a time.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "cuda/device.h"
#include "cuda/pack.h"
#include "cuda/ptx.h"
#include "lattice/stages.h"

namespace mbrnnt::cuda {

// ---- the lanes that share a row --------------------------------------------------

// Consecutive lanes of a warp that work on one row: the whole warp on long rows, a part of it on
// short ones, of which a warp then does several in about the instructions of one.
template <int kLanes>
struct LaneGroup {
  unsigned lane;  // within the group
  unsigned mask;  // of the group within the warp

  static __device__ __forceinline__ LaneGroup OfThisThread() {
    const unsigned in_warp = threadIdx.x % kWarp, lane = ptx::Kept(in_warp % kLanes);
    return {lane, (kAllLanes >> (kWarp - kLanes)) << (in_warp - lane)};
  }
  // A constant where it can be one: the compiler need not gather the lanes then.
  __device__ __forceinline__ unsigned Mask() const { return kLanes == kWarp ? kAllLanes : mask; }

  // Of each `kOf` consecutive lanes.
  template <int kOf = kLanes, typename T>
  __device__ __forceinline__ T Sum(T x) const {
#pragma unroll
    for (int step = kOf / 2; step > 0; step /= 2) x += __shfl_xor_sync(Mask(), x, step, kLanes);
    return x;
  }
  // Not for NaN.
  template <typename T>
  __device__ __forceinline__ T Max(T x) const {
    if constexpr (kLanes == kWarp && sizeof(T) == 4 && ptx::kFromSm80) {
      // Integers are reduced by one instruction; those of negative floats are ordered upside down.
      const auto ordered = [](int bits) { return bits ^ (bits >> 31 & 0x7fffffff); };
      return __int_as_float(ordered(__reduce_max_sync(Mask(), ordered(__float_as_int(x)))));
    } else {
#pragma unroll
      for (int step = kLanes / 2; step > 0; step /= 2) {
        x = Larger(x, __shfl_xor_sync(Mask(), x, step, kLanes));
      }
      return x;
    }
  }
  template <typename T>
  __device__ __forceinline__ T From(T x, int lane) const {
    return __shfl_sync(Mask(), x, lane, kLanes);
  }
  __device__ __forceinline__ bool Any(bool x) const { return __any_sync(Mask(), x) != 0; }

  // The halves of the lanes, where each does the same for a head of its own.
  static constexpr unsigned kHalf = kLanes / 2;
  __device__ __forceinline__ bool InUpperHalf() const { return lane >= kHalf; }
  // What the lane in the same place of the other half has.
  template <typename T>
  __device__ __forceinline__ T FromOtherHalf(T x) const {
    return __shfl_xor_sync(Mask(), x, kHalf, kLanes);
  }
  // In the lower half the sum of all lanes' x, in the upper one that of their y.
  template <typename T>
  __device__ __forceinline__ T SumOfEither(T x, T y) const {
    const T others = FromOtherHalf(InUpperHalf() ? x : y);
    return Sum<kHalf>((InUpperHalf() ? y : x) + others);
  }
  __device__ __forceinline__ void Sync() const { __syncwarp(Mask()); }
};

// ---- the parts of a row ------------------------------------------------------------

// Packs from the first multiple of 16 bytes on, and the elements before and behind them: singles,
// numbered through. (Unsigned throughout: a signed division by a power of two is three
// instructions.)
template <typename L>
struct RowParts {
  static constexpr unsigned kPack = Pack<L>::kSize;
  unsigned head, packs, singles;

  // `all`: kAllSingles where a row that is walked along with this one is aligned otherwise.
  static constexpr unsigned kAllSingles = ~0u;
  static __device__ __forceinline__ RowParts Of(const L* row, unsigned size, unsigned all = 0) {
    const auto address = static_cast<unsigned>(reinterpret_cast<uintptr_t>(row));
    const unsigned unaligned = (0u - address) / unsigned{sizeof(L)} % kPack;
    const unsigned head = min(unaligned | all, size), packs = (size - head) / kPack;
    return {head, packs, size - packs * kPack};
  }
  // Where a single stands in the row.
  __device__ __forceinline__ unsigned Single(unsigned i) const {
    return i < head ? i : i + packs * kPack;
  }
};

// As many packs a lane are on their way at once. The exponentials of doubles want the registers.
template <typename L>
inline constexpr int kRound = sizeof(L) == 8 ? 2 : 4;

// From one of a lane's packs to the next.
template <typename L, int kLanes>
inline constexpr unsigned kStep = kLanes * Pack<L>::kSize;

// Goes over `count` packs, of which the first of this lane stands at `from`: full(packs) is called
// for each round of kRound a lane, kStep apart, and rest(packs, left) for a last one in which
// `left` packs, of all lanes together, are there and `padding` for the others.
template <int kLanes, typename L, typename Full, typename Rest>
__device__ __forceinline__ void ForEachRound(const L* from, unsigned count, Pack<L> padding,
                                             LaneGroup<kLanes> group, const Full& full,
                                             const Rest& rest) {
  constexpr unsigned kPacks = kRound<L> * kLanes;  // a round's, of all lanes
  Pack<L> packs[kRound<L>];
  unsigned left = count;
  // The condition is the same in all lanes: where it is not, a warp runs the two ways one after
  // the other.
#pragma unroll 1
  for (; left >= kPacks; left -= kPacks, from += kRound<L> * kStep<L, kLanes>) {
#pragma unroll
    for (int k = 0; k < kRound<L>; ++k) packs[k] = Pack<L>::Load(from + k * kStep<L, kLanes>);
    full(packs);
  }
  if (left == 0) return;
#pragma unroll
  for (int k = 0; k < kRound<L>; ++k) {
    packs[k] = padding;
    if (group.lane + k * kLanes < left) packs[k] = Pack<L>::Load(from + k * kStep<L, kLanes>);
  }
  group.Sync();  // Nobody needs it, but the compiler would use one before it loads the next.
  rest(packs, left);
}

// ---- walking over the nodes of a batch ----------------------------------------------

inline constexpr int kRowThreads = 256;  // of a block, at most

// A frame of an utterance, whose nodes are its first columns.
struct FramePlace {
  int64_t b, t;
  int64_t node;     // of column 0, its number in the whole batch
  unsigned inside;  // how many columns are nodes
  bool valid;       // the utterance's lengths
};

// What does not change along a frame is computed once for all its rows.
template <typename Body>
__device__ __forceinline__ void ForEachFrame(const Batch& batch, const Body& body) {
  for (int64_t b = blockIdx.y; b < batch.size; b += gridDim.y) {
    for (int64_t t = blockIdx.x; t < batch.max_frames; t += gridDim.x) {
      const Extent extent = batch.ExtentOf(b);  // kept, it would take registers from the rows
      const int64_t node = (b * batch.max_frames + t) * batch.columns;
      body(FramePlace{b, t, node, static_cast<unsigned>(extent.ColumnsAt(t)), extent.valid});
    }
  }
}
template <int kLanes, typename Body>
__device__ __forceinline__ void ForEachColumn(const Batch& batch, const Body& body) {
  const unsigned columns = static_cast<unsigned>(batch.columns), step = blockDim.x / kLanes;
#pragma unroll 1
  for (unsigned u = threadIdx.x / kLanes; u < columns; u += step) body(u, u + step);
}

// What a frame has for each of its columns, `width` elements a column: in registers that are
// computed once, and one instruction for a column's address.
template <typename T>
class ColumnsOf {
 public:
  __device__ __forceinline__ explicit ColumnsOf(T* first) : first_(first), bytes_(sizeof(T)) {}
  __device__ __forceinline__ ColumnsOf(T* first, unsigned width)
      : first_(first), bytes_(ptx::Kept(width * unsigned{sizeof(T)})) {}
  __device__ __forceinline__ T* operator[](unsigned column) const {
    return first_.Behind(column, bytes_);
  }

 private:
  ptx::GlobalAddress<T> first_;
  unsigned bytes_;  // of a column
};

// ---- the arcs of a node --------------------------------------------------------------

// What the arc of this lane reads of a head: arc a is lane a's.
struct LaneArc {
  // What is no label, nor anything that stands in `fixed`.
  static constexpr int32_t kNoLabel = -3;
  int32_t fixed;  // a class, kNextLabel, or, in a lane without an arc as well, kNothing

  static __device__ __forceinline__ LaneArc Of(const Emission& emission, int head, unsigned lane) {
    const bool exists = lane < static_cast<unsigned>(emission.num_arcs);
    return {exists ? emission.classes[head][lane] : kNothing};
  }
  __device__ __forceinline__ bool ReadsNothing() const { return fixed == kNothing; }
  __device__ __forceinline__ bool IsLabel() const { return fixed == kNextLabel; }
};

// ---- launching -----------------------------------------------------------------------

// A row this short is worked on by a few lanes, so many for each of its heads.
inline constexpr int kFewLanes = 8;
inline constexpr int64_t kShortRowBytes = 1024;

template <int kLanes>
Grid FrameGrid(const Batch& batch) {
  constexpr int64_t kMostY = 65535;
  // Short rows: fewer warps a frame, which share out what each computes once to more rows.
  constexpr int kMostThreads = kLanes < kWarp ? kRowThreads / 2 : kRowThreads;
  int threads = kWarp;
  while (threads < kMostThreads && threads < batch.columns * kLanes) threads *= 2;
  const auto utterances = static_cast<unsigned>(batch.size < kMostY ? batch.size : kMostY);
  return {dim3(batch.size > 0 ? BlocksFor(batch.max_frames) : 0, utterances), threads};
}

template <int n>
using Int = std::integral_constant<int, n>;

// Launches the build for a stage's rows: launch(Int<lanes>, Int<heads>).
template <typename L, typename Stage, typename LaunchBuild>
Status LaunchOverRows(const char* name, const Stage& stage, const LaunchBuild& launch) {
  const Emission& emission = stage.emission;
  const int64_t row_bytes = emission.RowSize() * int64_t{sizeof(L)};
  // Both are factors of 32 bits in a column's address.
  const bool fits = row_bytes <= UINT32_MAX && stage.batch.columns <= INT32_MAX;
  if (!fits) return {cudaErrorInvalidValue, name};
  const auto with_heads = [&](auto heads) {
    constexpr int kFew = kFewLanes * heads;
    const bool few = row_bytes <= kShortRowBytes && emission.num_arcs <= kFew;
    return few ? launch(Int<kFew>(), heads) : launch(Int<kWarp>(), heads);
  };
  return emission.num_heads == 1 ? with_heads(Int<1>()) : with_heads(Int<2>());
}

}  // namespace mbrnnt::cuda
