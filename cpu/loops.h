// The loops where nearly all of the time goes: over rows of V logits, and over the
// nodes of an anti-diagonal. They are compiled once for every
// instruction set in CMakeLists.txt and chosen at run time; everything else is
// compiled once, for the baseline.
#pragma once

#include <cstdint>

#include "cpu/reads.h"
#include "lattice/number.h"
#include "lattice/scaled.h"
#include "lattice/stages.h"

namespace mbrnnt::cpu {

// Nodes at a time, at most, in the loops over rows.
inline constexpr int kNodes = 32;

// The row stages at n consecutive nodes of utterance b: of a frame, from column u on.
template <typename L>
struct RowLoops {
  using T = Real<L>;
  // Fetches the row behind the last one, too.
  void (*arc_log_probs)(const ArcLogProbsStage<L>& stage, const Reads& reads, int64_t b,
                        int64_t node, int64_t u, int n);
  // `scales`: of every node and head what makes exp(logit - shift) a probability.
  void (*logit_gradients)(const LogitGradientsStage<L>& stage, const Reads& reads,
                          const Shares<T>& shares, const T* scales, int64_t b, int64_t node,
                          int64_t u, int n);
};

// Scaled numbers side by side: mantissas and exponents apart, as SIMD wants them.
template <typename T>
struct ScaledRow {
  T* mantissas;
  T* exponents;

  ScaledRow operator+(int64_t n) const { return {mantissas + n, exponents + n}; }
};

// What an arc brings to the nodes of an anti-diagonal: its probability at each node that it leaves,
// and what there is at its other ends.
template <typename T>
struct ArcRow {
  ScaledRow<T> weights, numbers;
};

// The lattice's loops write rows of n numbers and nothing else, but read them up to the next whole
// register: as many numbers at most.
inline constexpr int64_t kReadBeyond = 16;

template <typename T>
struct LatticeLoops {
  // Of nodes whose log-probabilities are `stride` apart: those of one arc are written side by side,
  // and those of the next one `next_arc` further.
  void (*weights)(int64_t n, int num_arcs, const T* log_probs, int64_t stride, ScaledRow<T> weights,
                  int64_t next_arc);
  // What the arcs bring, summed.
  void (*sum_over_arcs)(int64_t n, int num_arcs, const ArcRow<T>* arcs, ScaledRow<T> sums);
  // All arcs' of each node, from the numbers at their two ends: `numbers` are betas.
  void (*posteriors)(int64_t n, int num_arcs, ScaledRow<T> alphas, const ArcRow<T>* arcs,
                     Scaled<T> likelihood, T* posteriors, int64_t stride);
};

// The best loops that this processor runs, or those that the environment variable
// JAX_MBRNNT_CPU_ISA names (baseline, avx2, avx512, avx512_bf16), if it runs them.
template <typename L>
RowLoops<L> BestRowLoops();
template <typename T>
LatticeLoops<T> BestLatticeLoops();

// Defined by loops.cc, once in each of these namespaces.
#define MBRNNT_DECLARE_LOOPS(isa) \
  namespace isa {                 \
  template <typename L>           \
  RowLoops<L> ForRows();          \
  template <typename T>           \
  LatticeLoops<T> ForLattices();  \
  }
MBRNNT_DECLARE_LOOPS(baseline)
MBRNNT_DECLARE_LOOPS(avx2)
MBRNNT_DECLARE_LOOPS(avx512)
MBRNNT_DECLARE_LOOPS(avx512_bf16)
#undef MBRNNT_DECLARE_LOOPS

}  // namespace mbrnnt::cpu
