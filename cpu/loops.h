// The loops where nearly all of the time goes: over a row of V logits, and over the
// nodes of an anti-diagonal or of a frame. They are compiled once for every
// instruction set in CMakeLists.txt and chosen at run time; everything else is
// compiled once, for the baseline.
#pragma once

#include <cstdint>
#include <type_traits>

#include "lattice/emission.h"
#include "lattice/number.h"
#include "lattice/scaled.h"

namespace mbrnnt::cpu {

// The classes that a node's arcs read, with the arcs' weighed posteriors; anything behind them.
template <typename T>
struct ReadClasses {
  using Class = std::conditional_t<sizeof(T) == sizeof(int32_t), int32_t, int64_t>;
  int size = 0;
  Class classes[kMaxArcs];
  T posteriors[kMaxArcs];

  void Add(int64_t v, T posterior) {
    classes[size] = static_cast<Class>(v);
    posteriors[size++] = posterior;
  }
};

// Rows that are computed side by side, a number of each in a column: as many as the widest register
// takes. What stands behind the rows that there are may be anything.
inline constexpr int kRows = 16;
template <typename T>
using Column = T[kRows];

template <typename L>
struct RowLoops {
  using T = Real<L>;
  // Shifts and logarithms of a head of consecutive rows. Fetches the row behind them, too.
  void (*log_normalizers)(const L* logits, int num_rows, int64_t num_classes, int64_t row_size,
                          T* shifts, T* log_sums);
  // The gradient of a row's head, see GradientRule. May be in place. Fetches `next`, that of the
  // next row.
  void (*gradient)(const L* logits, int64_t num_classes, const L* next, T shift, T factor,
                   const ReadClasses<T>& read, GradientRule<T> rule, T cotangent, L* gradients);
  // The same of a head of a few classes, with the rows side by side: in its columns `scores`, and
  // `own`, what is read of each class. The gradients take the scores' place.
  void (*few_log_normalizers)(const Column<T>* scores, int64_t num_classes, T* shifts, T* log_sums);
  void (*few_gradients)(Column<T>* scores, int64_t num_classes, const T* shifts, const T* factors,
                        const Column<T>* own, GradientRule<T> rule, T cotangent);
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
