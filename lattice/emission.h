// From logits to arc log-probabilities and back: the arithmetic of one node's row
// of V logits. How a row is traversed (SIMD lanes, a warp) is a room's business.
#pragma once

#include <cmath>
#include <cstdint>

#include "lattice/exp.h"
#include "lattice/lattice.h"
#include "lattice/macros.h"
#include "lattice/number.h"

namespace mbrnnt {

// Class that an arc reads: a fixed one for a blank, the next label for kNextLabel.
inline constexpr int32_t kNextLabel = -1;
// Why an arc reads no class: no label is left, or the label is outside [0, V).
inline constexpr int64_t kNoLabelLeft = -1, kNoSuchClass = -2;

struct ArcClasses {
  int32_t size;
  int32_t classes[kMaxArcs];

  MBRNNT_HD bool IsLabel(int a) const { return classes[a] == kNextLabel; }
  // What arc a reads in column u of an utterance with these labels.
  MBRNNT_HD int64_t ClassAt(int a, const int32_t* labels, int64_t u, int64_t num_labels,
                            int64_t num_classes) const {
    if (!IsLabel(a)) return classes[a];
    if (u >= num_labels) return kNoLabelLeft;
    const int64_t v = labels[u];
    return v >= 0 && v < num_classes ? v : kNoSuchClass;
  }
};

// The row's logits are shifted by their maximum before exp, by 0 where all are -inf.
template <typename T>
MBRNNT_HD T Shift(T maximum) {
  return maximum == -T(INFINITY) ? T(0) : maximum;
}

// log(sum(exp(row))) in two numbers, whose sum it is. One number would have the size of the logits,
// and round what is subtracted from it to that size's digits: an offset that all logits of a row
// share must not cost any.
template <typename T>
struct alignas(2 * sizeof(T)) LogNormalizer {  // one load, one store
  T shift;
  T log_sum;  // log(sum(exp(row - shift)))

  // Of a row that is not looked at.
  static MBRNNT_HD LogNormalizer None() { return {T(0), T(0)}; }
};

// A row of -inf has no exits: with a shift of 0 every log-probability is -inf and every probability
// 0 with no further case, if only the logarithm is finite. NaN and +inf give NaN.
template <typename T>
MBRNNT_HD T LogSum(T sum_of_exp) {
  const T log_sum = Log(sum_of_exp);
  return sum_of_exp == T{} ? T{} : log_sum;
}

// Of an arc that reads this logit of a row.
template <typename T>
MBRNNT_HD T ArcLogProb(T logit, LogNormalizer<T> normalizer, T sigma) {
  return (logit - normalizer.shift) - normalizer.log_sum - sigma;
}
// Of an arc that reads class v of a row.
template <typename L>
MBRNNT_HD Real<L> ArcLogProb(const L* logits, int64_t v, LogNormalizer<Real<L>> normalizer,
                             Real<L> sigma) {
  using T = Real<L>;
  if (v < 0) return v == kNoLabelLeft ? -T(INFINITY) : T(NAN);
  return ArcLogProb(ToReal(logits[v]), normalizer, sigma);
}

// How arc posteriors become logit gradients.
template <typename T>
struct GradientRule {
  T label_weight;  // 1 + fastemit_lambda: weighs the label arcs' posteriors
  T clamp;         // 0: none

  MBRNNT_HD T Weigh(T posterior, bool is_label) const {
    return is_label ? label_weight * posterior : posterior;
  }
  // What turns exp(logit - shift) into its probability times the occupancy, the sum of all arcs'
  // weighed posteriors: one number for a row.
  static MBRNNT_HD T Factor(T occupancy, LogNormalizer<T> normalizer) {
    return occupancy * Exp(-normalizer.log_sum);
  }
  // exponential: exp(logit - shift); own: the part of the occupancy whose arcs read this class. A
  // Number is a T or a SIMD register of them.
  template <typename Number>
  MBRNNT_HD Number LogitGradient(Number exponential, T factor, Number own, T cotangent) const {
    Number gradient = exponential * factor - own;
    if (clamp > T(0)) {
      const Number most = Constant<Number>(clamp), least = Constant<Number>(-clamp);
      gradient = gradient > most ? most : (gradient < least ? least : gradient);
    }
    return gradient * cotangent;
  }
  // LogitGradient of a class that no arc reads, with the cotangent in what is computed once for a
  // row: it is exponential * factor, between -bound and bound if there is a clamp. That is one
  // product an element in the place of two, for a room that counts instructions. The law's bounds
  // come before the cotangent; as they are symmetric, they come after it with its size in them.
  struct Folded {
    T factor, bound;
  };
  MBRNNT_HD Folded Fold(T factor, T cotangent) const {
    const T folded = factor * cotangent, size = cotangent < T(0) ? -cotangent : cotangent;
    // NaN where the factor is NaN or infinite: the gradient may be NaN there, and the hardware's
    // minimum and maximum of NaN and a number are the number.
    return {folded, clamp * size + T(0) * folded};
  }
};

}  // namespace mbrnnt
