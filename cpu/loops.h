// The loops where nearly all of the time goes: over a row of V logits, and over the
// nodes of an anti-diagonal or of a frame. They are compiled once for every
// instruction set in CMakeLists.txt and chosen at run time; everything else is
// compiled once, for the baseline.
#pragma once

#include <cstdint>

#include "lattice/emission.h"
#include "lattice/number.h"
#include "lattice/scaled.h"

namespace mbrnnt::cpu {

template <typename L>
struct RowLoops {
  using T = Real<L>;
  // log(sum(exp(row))), see LogNormalizer. Fetches the row behind this one, too.
  T (*log_normalizer)(const L* logits, int64_t num_classes);
  // The gradient of a row as if no arc read any of its classes. May be in place.
  void (*gradient)(const L* logits, int64_t num_classes, T log_normalizer, T occupancy,
                   GradientRule<T> rule, T cotangent, L* gradients);
};

// Scaled numbers side by side: mantissas and exponents apart, as SIMD wants them.
template <typename T>
struct ScaledRow {
  T* mantissas;
  T* exponents;

  ScaledRow operator+(int64_t n) const { return {mantissas + n, exponents + n}; }
};

// The lattice's loops read rows of n numbers up to the next whole register, and write
// there, too, unless said otherwise.
inline constexpr int64_t kRowPadding = 16;

template <typename T>
struct LatticeLoops {
  void (*from_logs)(int64_t n, const T* log_probs, ScaledRow<T> weights);
  // sums += a * b; no sum behind the n changes.
  void (*add_products)(int64_t n, ScaledRow<T> a, ScaledRow<T> b, ScaledRow<T> sums);
  void (*rescale)(int64_t n, ScaledRow<T> numbers);
  // Of an arc, from its weights and the numbers at its two ends.
  void (*posteriors)(int64_t n, ScaledRow<T> alphas, ScaledRow<T> weights, ScaledRow<T> betas,
                     Scaled<T> likelihood, T* posteriors);
};

// The best loops that this processor runs, or those that the environment variable
// JAX_MBRNNT_CPU_ISA names (baseline, avx2, avx512), if it runs them.
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
#undef MBRNNT_DECLARE_LOOPS

}  // namespace mbrnnt::cpu
