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

// log(sum(exp(row))) from sum(exp(row - shift)). A row of -inf has no exits: its
// normalizer is +inf, which makes every log-probability -inf and every probability
// 0 with no further case. NaN and +inf give NaN.
template <typename T>
MBRNNT_HD T LogNormalizer(T shift, T sum_of_exp) {
  const T sum = shift + Log(sum_of_exp);
  return sum_of_exp == T{} ? Constant<T>(INFINITY) : sum;
}

// Of an arc that reads class v of a row.
template <typename L>
MBRNNT_HD Real<L> ArcLogProb(const L* logits, int64_t v, Real<L> log_normalizer, Real<L> sigma) {
  using T = Real<L>;
  if (v < 0) return v == kNoLabelLeft ? -T(INFINITY) : T(NAN);
  return ToReal(logits[v]) - log_normalizer - sigma;
}

// How arc posteriors become logit gradients.
template <typename T>
struct GradientRule {
  T label_weight;  // 1 + fastemit_lambda: weighs the label arcs' posteriors
  T clamp;         // 0: none

  MBRNNT_HD T Weigh(T posterior, bool is_label) const {
    return is_label ? label_weight * posterior : posterior;
  }
  // probability: softmax of the logit; occupancy: sum of all arcs' weighed
  // posteriors; own: the part of it whose arcs read this class. A Number is a T or a
  // SIMD register of them.
  template <typename Number>
  MBRNNT_HD Number LogitGradient(Number probability, T occupancy, Number own, T cotangent) const {
    Number gradient = probability * occupancy - own;
    if (clamp > T(0)) {
      const Number most = Constant<Number>(clamp), least = Constant<Number>(-clamp);
      gradient = gradient > most ? most : (gradient < least ? least : gradient);
    }
    return gradient * cotangent;
  }
};

}  // namespace mbrnnt
