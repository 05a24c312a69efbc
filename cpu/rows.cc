// Compiled once per instruction set: MBRNNT_ISA names the namespace. Whatever is
// called here must be inlined, lest the linker keep one copy for all of them.
#include "cpu/rows.h"

#include <cmath>

#include "cpu/exp.h"

namespace mbrnnt::cpu::MBRNNT_ISA {
namespace {

// The row is read twice, the second time from the first-level cache.
template <typename L>
Real<L> RowLogNormalizer(const L* logits, int64_t num_classes) {
  using T = Real<L>;
  T maximum = -T(INFINITY);
#pragma omp simd reduction(max : maximum)
  for (int64_t v = 0; v < num_classes; ++v) {
    const T x = ToReal(logits[v]);
    maximum = x > maximum ? x : maximum;
  }
  const T shift = Shift(maximum);
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t v = 0; v < num_classes; ++v) sum += Exp(ToReal(logits[v]) - shift);
  return LogNormalizer(shift, sum);
}

template <typename L>
void RowGradient(const L* logits, int64_t num_classes, Real<L> log_normalizer, Real<L> occupancy,
                 GradientRule<Real<L>> rule, Real<L> cotangent, L* gradients) {
  using T = Real<L>;
#pragma omp simd
  for (int64_t v = 0; v < num_classes; ++v) {
    const T probability = Exp(ToReal(logits[v]) - log_normalizer);
    gradients[v] = FromReal<L>(rule.LogitGradient(probability, occupancy, T(0), cotangent));
  }
}

}  // namespace

template <typename L>
RowLoops<L> Loops() {
  return {&RowLogNormalizer<L>, &RowGradient<L>};
}

template RowLoops<float> Loops();
template RowLoops<double> Loops();
template RowLoops<BFloat16> Loops();
template RowLoops<Float16> Loops();

}  // namespace mbrnnt::cpu::MBRNNT_ISA
