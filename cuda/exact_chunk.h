// The sweep as the law has it, with an exponent for each number: for the chunks that do not fit
// into units (see sweep.cu). It keeps nothing: a node's arcs are looked up among the numbers that
// its lane has stored. About ten times as slow.
#pragma once

#include "cuda/ptx.h"
#include "cuda/tiles.h"

namespace mbrnnt::cuda {

// The walk through a tile in one direction, of one utterance.
struct TileWalk {
  Lattice<float> lattice;
  Tiling tiling;
  int32_t labels, tile;
  bool forward;
  NodeNumbers numbers;
  Borders borders;

  __device__ __forceinline__ int RowOf(int step, int lane) const {
    return step - lane - tiling.Skew(tile);
  }
  __device__ __forceinline__ int ColumnOf(int lane) const { return tile * kWarp + lane; }

  // Arcs of the walk: those of the lattice, which backward lead from their heads to their tails.
  // Both functions: of the arc a that leaves (i, j) in the walk's direction.
  __device__ __forceinline__ bool HasArc(int i, int j, int a) const {
    return lattice.HasArc(FrameOf(i, a), LabelOf(j, a), a);
  }
  __device__ __forceinline__ float ArcLogProb(int i, int j, int a) const {
    return lattice.ArcLogProb(FrameOf(i, a), LabelOf(j, a), a);
  }

  // The walk starts with One at (0, 0).
  __device__ __forceinline__ bool StartsIn(int chunk) const {
    return tile == 0 && chunk == tiling.Skew(0) / kChunk;
  }
  __device__ __forceinline__ bool IsStart(int step, int lane) const {
    return tile == 0 && lane == 0 && step == tiling.Skew(0);
  }
  // How many of the tile's chunks have a left border.
  __device__ __forceinline__ int BorderedChunks() const {
    return tile == 0 ? 0 : min(tiling.Chunks(tile - 1) - kLag, tiling.Chunks(tile));
  }
  // Where a chunk's right border goes, or null.
  __device__ __forceinline__ uint64_t* RightBorder(int chunk) const {
    return tile + 1 < tiling.tiles && chunk >= kLag ? borders.To(tile + 1, chunk - kLag) : nullptr;
  }

 private:
  // Of the lattice's node that has the arc.
  __device__ __forceinline__ int FrameOf(int i, int a) const {
    return forward ? i : tiling.frames - i - lattice.table.arcs[a].duration;
  }
  __device__ __forceinline__ int LabelOf(int j, int a) const {
    return forward ? j : labels - j - lattice.table.arcs[a].emits;
  }
};

__device__ __forceinline__ Scaled<double> Sum(Scaled<double> a, Scaled<double> b) {
  return Normalized(Add(a, b));
}

// What some arcs (bits by number) bring from the nodes of the lane's own column before step
// `known`: blanks to its node in `step`, labels to where the next column is a step later.
static __device__ __noinline__ Scaled<double> Pending(const TileWalk& walk, uint32_t arcs, int step,
                                                      int known) {
  const int lane = threadIdx.x % kWarp, j = walk.ColumnOf(lane);
  Scaled<double> sum = Scaled<double>::Zero();
#pragma unroll 1
  for (; arcs != 0; arcs &= arcs - 1) {
    const int a = __ffs(static_cast<int>(arcs)) - 1;
    const int from = step - walk.lattice.table.arcs[a].duration, i = walk.RowOf(from, lane);
    if (from >= known || i < 0 || !walk.HasArc(i, j, a)) continue;
    const Scaled<float> weight = FromLog(walk.ArcLogProb(i, j, a));
    const Scaled<double> number =
        walk.numbers.At(walk.numbers.ChunkAt(walk.tile, from / kChunk), lane, from % kChunk);
    sum = Sum(sum, Multiply(number, Scaled<double>{weight.mantissa, weight.exponent}));
  }
  return sum;
}

// `border`: what the tile's left neighbour has sent, or null.
static __device__ __noinline__ void ExactChunk(const TileWalk& walk, uint32_t blanks,
                                               uint32_t labels, int chunk, const uint64_t* border) {
  const int lane = threadIdx.x % kWarp, first = chunk * kChunk;
  const int64_t place = walk.numbers.ChunkAt(walk.tile, chunk);
  uint64_t* right = lane == kWarp - 1 ? walk.RightBorder(chunk) : nullptr;
  __stcg(walk.numbers.exponents + place * kWarp + lane, kOwn);
  Scaled<double> sent = Pending(walk, labels, first - 1, first);
#pragma unroll 1
  for (int k = 0; k < kChunk; ++k) {
    const int step = first + k;
    Scaled<double> number = {__shfl_up_sync(0xffffffffu, sent.mantissa, 1),
                             __shfl_up_sync(0xffffffffu, sent.exponent, 1)};
    if (lane == 0) {
      number = Scaled<double>::Zero();
      if (border != nullptr) {
        number = Unpack(LoadRelaxed(border + k), static_cast<int32_t>(LoadRelaxed(border + kChunk)));
      }
    }
    if (walk.IsStart(step, lane)) number = Sum(number, Scaled<double>::One());
    number = Sum(number, Pending(walk, blanks, step, step));
    __stcg(walk.numbers.numbers + place * kBlock + NodeNumbers::Within(lane, k), PackOwn(number));
    sent = Pending(walk, labels, step, step + 1);
    if (right != nullptr) StoreRelaxed(right + k, PackOwn(sent));
  }
  if (right != nullptr) StoreRelaxed(right + kChunk, static_cast<uint32_t>(kOwn));
}

// What is on its way when a chunk begins, in one unit for each lane.
struct Windows {
  double blanks[kChunk], labels[kChunk];  // to the nodes of a step; to the right after a step
  double sent;                            // to the right in the step before
  int32_t unit;
  bool alive;  // anything at all
};

// False if it does not fit into one unit.
static __device__ __noinline__ bool PendingWindows(const TileWalk& walk, uint32_t blanks,
                                                   uint32_t labels, int chunk, Windows& windows) {
  constexpr double kMostUnit = 1 << 28, kRange = 600;
  const int first = chunk * kChunk;
  double* const to[2] = {windows.blanks, windows.labels};
  Scaled<double> all[2 * kChunk + 1];
  double most = -INFINITY, least = INFINITY;
#pragma unroll 1
  for (int n = 0; n <= 2 * kChunk; ++n) {
    const int step = n < 2 * kChunk ? first + n % kChunk : first - 1;
    all[n] = Pending(walk, n < kChunk ? blanks : labels, step, first);
    if (all[n].mantissa == 0) continue;
    most = fmax(most, all[n].exponent);
    least = fmin(least, all[n].mantissa > 0 ? all[n].exponent : -INFINITY);
  }
  windows.alive = most > -INFINITY;
  if (windows.alive && !(fabs(most) < kMostUnit && least > most - kRange)) return false;
  if (windows.alive) windows.unit = static_cast<int32_t>(most);
#pragma unroll 1
  for (int n = 0; n <= 2 * kChunk; ++n) {
    const double x =
        windows.alive ? all[n].mantissa * PowerOfTwo(all[n].exponent - windows.unit) : 0;
    if (n < 2 * kChunk) {
      to[n / kChunk][n % kChunk] = x;
    } else {
      windows.sent = x;
    }
  }
  return true;
}

}  // namespace mbrnnt::cuda
