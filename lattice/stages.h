// What a stage is asked to do, in plain pointers: `ffi/` fills these in from
// XLA's buffers, `cpu/` and `cuda/` carry them out. Row-major and dense; B, T and U+1 as in Batch,
// V the logits' last axis (all heads' classes), H the heads, A the arcs.
#pragma once

#include <cstdint>

#include "lattice/best.h"
#include "lattice/emission.h"
#include "lattice/lattice.h"
#include "lattice/number.h"

namespace mbrnnt {

// logits -> log-probability of every arc. The only stage that knows sigma.
template <typename L>
struct ArcLogProbsStage {
  Batch batch;
  Emission emission;
  const L* logits;                          // [B, T, U+1, V]
  const int32_t* labels;                    // [B, U]
  const Real<L>* sigmas;                    // [B]
  Real<L>* arc_log_probs;                   // [B, T, U+1, A]
  LogNormalizer<Real<L>>* log_normalizers;  // [B, T, U+1, H]
};

// Arc log-probabilities -> losses and, unless `posteriors` is null, the arcs'
// posteriors. The only stage that knows time. `posteriors` may be `arc_log_probs`.
template <typename T>
struct LatticeStage {
  Batch batch;
  ArcTable table;
  const T* arc_log_probs;            // [B, T, U+1, A]
  T* losses;                         // [B]
  T* posteriors;                     // [B, T, U+1, A] or null
  Scaled<T>* likelihoods = nullptr;  // [B]
  T* workspace = nullptr;            // what a room keeps of the nodes, as its Workspace says

  template <typename Index = int64_t>
  MBRNNT_HD Lattice<T, Index> LatticeOf(int64_t b) const {
    const Extent extent = batch.ExtentOf(b);
    return {{static_cast<Index>(extent.frames), static_cast<Index>(extent.labels), extent.valid},
            batch.columns,
            table,
            arc_log_probs + b * batch.NodesPerUtterance() * table.size};
  }
};

template <typename T>
using BestLattice = Lattice<T, int64_t, Best>;

// Arc log-probabilities -> the most probable path and what it says of the labels.
template <typename T>
struct AlignmentStage {
  Batch batch;
  ArcTable table;
  const T* arc_log_probs;  // [B, T, U+1, A]
  int32_t* frames;         // [B, U], where each label is emitted; -1 where there is none
  int32_t* durations;      // [B, U], of its arc; -1 likewise
  T* label_log_probs;      // [B, U], of its arc; 0 likewise
  int32_t* arcs;           // [B, T + U], the path; -1 behind it
  T* log_probs;            // [B], the path's
  Best* betas;             // [B, T, U+1], in an order of the room's own

  // A blank takes a frame, and a label a label.
  MBRNNT_HD int64_t MaxArcs() const { return batch.max_frames + batch.columns - 1; }
  MBRNNT_HD BestLattice<T> LatticeOf(int64_t b) const {
    return {batch.ExtentOf(b), batch.columns, table,
            arc_log_probs + b * batch.NodesPerUtterance() * table.size};
  }
};

// Posteriors -> gradient of the logits. `logit_gradients` may be `logits`.
template <typename L>
struct LogitGradientsStage {
  Batch batch;
  Emission emission;
  bool clamped;  // if not, all clamps are 0, and a room need not look at them
  const L* logits;
  const int32_t* labels;
  const LogNormalizer<Real<L>>* log_normalizers;
  const Real<L>* posteriors;
  const Real<L>* label_weights;  // [B], as in GradientRule
  const Real<L>* clamps;         // [B], likewise
  const Real<L>* cotangents;     // [B]
  L* logit_gradients;            // [B, T, U+1, V]

  // FastEmit and the clamp are of the first head.
  MBRNNT_HD GradientRule<Real<L>> RuleOf(int64_t b, int head = 0) const {
    using T = Real<L>;
    if (head > 0) return {T(1), T(0)};
    return {label_weights[b], clamped ? clamps[b] : T(0)};
  }
};

}  // namespace mbrnnt
