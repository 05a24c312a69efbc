// What the kernels share: the hardware's exp and conversions, 16 bytes of a row of
// logits at a time, the group of lanes that works on a row, and launching.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <utility>

#include "cuda/kernels.h"
#include "lattice/number.h"

namespace mbrnnt::cuda {

inline constexpr int kWarp = 32;
// A row this short is worked on by a few lanes: most of a warp would only wait.
inline constexpr int kFewLanes = 8;
inline constexpr int64_t kShortRowBytes = 256;

// exp of a number that is at most about 0. Absolute errors of 1e-7, which is what a
// probability asks for; infinities and NaN as in std::exp.
__device__ __forceinline__ float Exp(float x) { return __expf(x); }
__device__ __forceinline__ double Exp(double x) { return exp(x); }

// lattice/number.h in one instruction each.
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

// The most that one thread loads or stores at once.
template <typename L>
struct Pack {
  static constexpr int kSize = 16 / sizeof(L);
  L elements[kSize];
};

template <typename L>
__device__ __forceinline__ Pack<L> LoadPack(const L* from) {
  return BitCast<Pack<L>>(*reinterpret_cast<const uint4*>(from));
}
template <typename L>
__device__ __forceinline__ void StorePack(L* to, Pack<L> pack) {
  *reinterpret_cast<uint4*>(to) = BitCast<uint4>(pack);
}

// A row of logits: single elements up to the first multiple of 16 bytes, packs, and
// the elements that are left. All single where a second row is aligned otherwise.
struct RowParts {
  int head, packs, tail;  // the tail's first element

  template <typename L>
  static __device__ __forceinline__ RowParts Of(const L* row, const L* other, int size) {
    const auto address = reinterpret_cast<uintptr_t>(row);
    if ((address ^ reinterpret_cast<uintptr_t>(other)) % 16 != 0) return {size, 0, size};
    const int unaligned = static_cast<int>((16 - address % 16) % 16 / sizeof(L));
    const int head = unaligned < size ? unaligned : size;
    const int packs = (size - head) / Pack<L>::kSize;
    return {head, packs, head + packs * Pack<L>::kSize};
  }
};

// Consecutive lanes of a warp that work on one row: the whole warp on long rows, a
// part of it on short ones.
template <int kLanes>
struct LaneGroup {
  int lane;       // within the group
  unsigned mask;  // of the group within the warp

  static __device__ __forceinline__ LaneGroup OfThisThread() {
    const int in_warp = threadIdx.x % kWarp, lane = in_warp % kLanes;
    return {lane, (0xffffffffu >> (kWarp - kLanes)) << (in_warp - lane)};
  }
  template <typename T>
  __device__ __forceinline__ T Max(T x) const {
    for (int step = kLanes / 2; step > 0; step /= 2) {
      const T other = __shfl_xor_sync(mask, x, step, kLanes);
      x = other > x ? other : x;
    }
    return x;
  }
  template <typename T>
  __device__ __forceinline__ T Sum(T x) const {
    for (int step = kLanes / 2; step > 0; step /= 2) x += __shfl_xor_sync(mask, x, step, kLanes);
    return x;
  }
  __device__ __forceinline__ void Sync() const { __syncwarp(mask); }
};

// ---- walking over the nodes of a batch ------------------------------------------

// The node that a group of lanes works on.
struct NodePlace {
  int64_t b, t, u;
  int64_t node;  // its number in the whole batch
  Extent extent;

  __device__ __forceinline__ bool IsInside() const { return extent.Contains(t, u); }
};

// A block goes over the columns of one frame, a group of lanes takes a column.
template <int kLanes, typename Body>
__device__ __forceinline__ void ForEachNode(const Batch& batch, const Body& body) {
  const int64_t rows = batch.size * batch.max_frames;
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const int64_t b = row / batch.max_frames, t = row % batch.max_frames;
    const Extent extent = batch.ExtentOf(b);
    for (int64_t u = threadIdx.x / kLanes; u < batch.columns; u += blockDim.x / kLanes) {
      body(NodePlace{b, t, u, row * batch.columns + u, extent});
    }
  }
}

// ---- launching ---------------------------------------------------------------

struct Grid {
  dim3 blocks;
  int threads;
};

// No launch at all where there is no block, and none on OnlyLoading().
template <typename... Parameters, typename... Arguments>
Status Launch(const char* name, void (*kernel)(Parameters...), const Grid& grid,
              cudaStream_t stream, Arguments&&... arguments) {
  if (grid.blocks.x == 0) return {};
  if (stream == OnlyLoading()) {
    cudaFuncAttributes attributes;
    return {cudaFuncGetAttributes(&attributes, kernel), name};
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = grid.blocks;
  config.blockDim = dim3(grid.threads);
  config.stream = stream;
  return {cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...), name};
}

// One block for each of n, or several rounds where a grid cannot hold as many.
inline unsigned BlocksFor(int64_t n) {
  constexpr int64_t kMost = (int64_t{1} << 31) - 1;
  return static_cast<unsigned>(n < kMost ? n : kMost);
}

// For ForEachNode.
template <int kLanes>
Grid FrameGrid(const Batch& batch) {
  constexpr int kThreads = 256;
  int threads = kWarp;
  while (threads < kThreads && threads < batch.columns * kLanes) threads *= 2;
  return {dim3(BlocksFor(batch.size * batch.max_frames)), threads};
}

// One of two builds of a kernel over rows of logits: for short ones and for others.
template <typename Stage>
Status LaunchOverRows(const char* name, void (*few_lanes)(Stage), void (*whole_warps)(Stage),
                      const Stage& stage, int64_t row_bytes, cudaStream_t stream) {
  if (row_bytes <= kShortRowBytes) {
    return Launch(name, few_lanes, FrameGrid<kFewLanes>(stage.batch), stream, stage);
  }
  return Launch(name, whole_warps, FrameGrid<kWarp>(stage.batch), stream, stage);
}

}  // namespace mbrnnt::cuda
