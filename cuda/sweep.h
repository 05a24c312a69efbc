// The two ways over the lattice's nodes that write alphas, betas, likelihoods and
// losses: a simple one for any arc table, and a fast one for the usual ones.
#pragma once

#include <optional>

#include "cuda/device.h"
#include "lattice/stages.h"

namespace mbrnnt::cuda {

// Row of node (t, u) in the diagonal order: the nodes of one anti-diagonal, which are
// computed at once, are neighbours. Rows wrap, so that there are as many as frames.
struct DiagonalOrder {
  uint32_t rows;

  explicit MBRNNT_HD DiagonalOrder(const Batch& batch)
      : rows(batch.max_frames > 0 ? static_cast<uint32_t>(batch.max_frames) : 1) {}
  MBRNNT_HD int64_t RowOf(int64_t t, int64_t u) const {
    const uint32_t diagonal = static_cast<uint32_t>(t + u);
    if (diagonal < rows) return diagonal;
    // A division is slow, and fewer labels than frames need none.
    return diagonal - rows < rows ? diagonal - rows : diagonal % rows;
  }
};

// Numbers of the nodes in the diagonal order.
template <typename T>
struct DiagonalNumbers {
  Scaled<T>* data;  // [rows, columns]
  int64_t columns;
  DiagonalOrder order;

  MBRNNT_HD DiagonalNumbers(const Batch& batch, Scaled<T>* plane, int64_t b)
      : data(plane + b * batch.NodesPerUtterance()), columns(batch.columns), order(batch) {}
  MBRNNT_HD Scaled<T>& operator()(int64_t t, int64_t u) const {
    return data[order.RowOf(t, u) * columns + u];
  }
};

// Losses and likelihoods, both in their own place of the stage.
template <typename T>
__device__ __forceinline__ void StoreLikelihood(const LatticeStage<T>& s, int64_t b,
                                                Scaled<T> likelihood) {
  s.likelihoods[b] = likelihood;
  s.losses[b] = Loss(likelihood);
}

// One block for an utterance and a direction, a barrier for every anti-diagonal, and
// the law as it is written. What the fast sweep is tested against.
template <typename T>
Status SweepSimply(const LatticeStage<T>& stage, cudaStream_t stream);

// How the fast sweep goes about a lattice.
struct SweepPlan {
  // Its planes of weights: the label arc, the blank of one frame, then the longer
  // blanks that fit into the padded frames. `arcs` says which arc of the table each is.
  int32_t num_planes;
  int32_t arcs[kMaxArcs];
  // What a longer blank carries is on its way in a ring of rows, as many as it has frames.
  struct Ring {
    int32_t first_row, end_row;
  };
  Ring rings[kMaxArcs];  // of the planes from the third on
  int32_t threads;       // columns at a time
  int32_t rows;          // of shared memory, a Scaled for every thread each
  int64_t shared_bytes;  // of all rows
};

// Nothing where the fast sweep cannot go: an arc table that is not a label of no
// frame, a blank of one frame and longer blanks (TDT's), blanks so long that what they
// carry does not fit into shared memory, sizes beyond 32 bits.
template <typename T>
std::optional<SweepPlan> PlanSweep(const LatticeStage<T>& stage, int64_t shared_bytes);

template <typename T>
Status SweepFast(const LatticeStage<T>& stage, const SweepPlan& plan, cudaStream_t stream);

}  // namespace mbrnnt::cuda
