// A walk through a tile: where it is in the lattice, and which arcs it takes.
#pragma once

#include "cuda/tiles.h"

namespace mbrnnt::cuda {

// The walk through a tile in one direction, of one utterance.
struct TileWalk {
  Lattice<float, int32_t> lattice;
  Tiling tiling;
  int32_t tile;
  bool forward;
  NodeNumbers numbers;
  Borders borders;

  __device__ __forceinline__ int RowOf(int step, int lane) const {
    return step - lane - tiling.Skew(tile);
  }
  __device__ __forceinline__ int ColumnOf(int lane) const { return tile * kWarp + lane; }

  // An arc that leaves (i, j) in the walk's direction: backward, one of the lattice that enters it.
  __device__ __forceinline__ bool HasArc(int i, int j, Arc arc) const {
    const int t = FrameOf(i), u = LabelOf(j);
    return forward ? lattice.HasArc(t, u, arc)
                   : lattice.HasArc(t - arc.duration, u - arc.emits, arc);
  }
  // Its log-probability: of arc number a of the table, which is `arc`.
  __device__ __forceinline__ float ArcLogProb(int i, int j, Arc arc, int a) const {
    return LogProbs(i, j)[Offset(arc, a)];
  }
  // The same in two parts, the first of which is not memory where (i, j) is no node. (Where there
  // are no frames there is none at all.)
  __device__ __forceinline__ const float* LogProbs(int i, int j) const {
    const int64_t node = FrameOf(i) * lattice.columns + LabelOf(j);
    return lattice.arc_log_probs + (tiling.frames > 0 ? node * lattice.table.size : 0);
  }
  __device__ __forceinline__ int Offset(Arc arc, int a) const {
    const auto columns = static_cast<int>(lattice.columns);
    return forward ? a : a - (arc.duration * columns + arc.emits) * lattice.table.size;
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
  __device__ __forceinline__ int FrameOf(int i) const {
    return forward ? i : lattice.extent.frames - i;
  }
  __device__ __forceinline__ int LabelOf(int j) const {
    return forward ? j : lattice.extent.labels - j;
  }
};

}  // namespace mbrnnt::cuda
