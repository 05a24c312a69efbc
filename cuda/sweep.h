// The two ways over the lattice's nodes that write alphas, betas, likelihoods and losses: a simple
// one, which is the law as it is written, and a fast one for float32.
#pragma once

#include <optional>

#include "cuda/device.h"
#include "cuda/tiles.h"
#include "lattice/stages.h"

namespace mbrnnt::cuda {

// Losses and likelihoods, both in their own place of the stage. `Number` may be wider than T.
template <typename T, typename Number>
__device__ __forceinline__ void StoreLikelihood(const LatticeStage<T>& s, int64_t b,
                                                Scaled<Number> likelihood) {
  s.likelihoods[b] = {static_cast<T>(likelihood.mantissa), static_cast<T>(likelihood.exponent)};
  s.losses[b] = static_cast<T>(Loss(likelihood));
}

// ---- simply ------------------------------------------------------------------------
//
// One block for an utterance and a direction, a barrier for every anti-diagonal. What the fast
// sweep is tested against, and float64's, which is for checks.

// The nodes' numbers in diagonal order: those of one anti-diagonal, which are computed at once, are
// neighbours. Rows wrap, so that there are as many as frames.
template <typename T>
struct DiagonalNumbers {
  Scaled<T>* data;  // [rows, columns]
  int64_t columns;
  uint32_t rows;

  // `walk` counts utterances, first all forward, then all backward.
  MBRNNT_HD DiagonalNumbers(const LatticeStage<T>& s, int64_t walk)
      : data(reinterpret_cast<Scaled<T>*>(s.workspace) + walk * s.batch.NodesPerUtterance()),
        columns(s.batch.columns),
        rows(s.batch.max_frames > 0 ? static_cast<uint32_t>(s.batch.max_frames) : 1) {}
  MBRNNT_HD Scaled<T>& operator()(int64_t t, int64_t u) const {
    return data[static_cast<uint32_t>(t + u) % rows * columns + u];
  }
};

template <typename T>
Status SweepSimply(const LatticeStage<T>& stage, cudaStream_t stream);

// The lattice by this way alone.
template <typename T>
Status ComputeLatticeSimply(const LatticeStage<T>& stage, cudaStream_t stream);

// ---- by tiles ------------------------------------------------------------------------

// How the fast sweep takes an arc table.
struct SweepPlan {
  static constexpr int kMaxPlanes = 17;
  // Which of its builds, and which arc is which of its planes; -1 for none.
  int32_t build;
  int32_t arcs[kMaxPlanes];
  // Arcs by kind, a bit for each: those of the planes, and longer ones.
  uint32_t blanks, labels, long_blanks, long_labels;

  MBRNNT_HD uint32_t ShortArcs() const { return (blanks | labels) & ~(long_blanks | long_labels); }
  MBRNNT_HD bool HasLongArcs() const { return (long_blanks | long_labels) != 0; }
};

// Nothing where the fast sweep cannot go: two arcs of one kind and duration, or sizes beyond
// 32 bits.
std::optional<SweepPlan> PlanSweep(const LatticeStage<float>& stage);

Status SweepFast(const LatticeStage<float>& stage, const SweepPlan& plan, cudaStream_t stream);

}  // namespace mbrnnt::cuda
