// What a stage is asked to do, in plain pointers: `ffi/` fills these in from
// XLA's buffers, `cpu/` and `cuda/` carry them out. Row-major and dense; B, T,
// U+1, V and A as in Batch, the logits' last axis and the arc table.
#pragma once

#include <cstdint>

#include "lattice/emission.h"
#include "lattice/lattice.h"
#include "lattice/number.h"

namespace mbrnnt {

// logits -> log-probability of every arc. The only stage that knows sigma.
template <typename L>
struct ArcLogProbsStage {
  Batch batch;
  int64_t num_classes;  // V
  ArcClasses arc_classes;
  Real<L> sigma;
  const L* logits;                          // [B, T, U+1, V]
  const int32_t* labels;                    // [B, U]
  Real<L>* arc_log_probs;                   // [B, T, U+1, A]
  LogNormalizer<Real<L>>* log_normalizers;  // [B, T, U+1]
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

// Posteriors -> gradient of the logits. `logit_gradients` may be `logits`.
template <typename L>
struct LogitGradientsStage {
  Batch batch;
  int64_t num_classes;
  ArcClasses arc_classes;
  GradientRule<Real<L>> rule;
  const L* logits;
  const int32_t* labels;
  const LogNormalizer<Real<L>>* log_normalizers;
  const Real<L>* posteriors;
  const Real<L>* cotangents;  // [B]
  L* logit_gradients;         // [B, T, U+1, V]
};

}  // namespace mbrnnt
