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

// What an arc reads of a head: a class by its number within the head, or one of these. The next
// label is a class of the first head.
inline constexpr int32_t kNextLabel = -1, kNothing = -2;
// Why an arc that reads a label has no class: none is left, or it is outside [0, the head's size).
inline constexpr int64_t kNoLabelLeft = -3, kNoSuchClass = -4;
inline constexpr int kMaxHeads = 2;

// How a row of scores becomes arc log-probabilities: it is split into heads, one behind the other
// and each with its own log-softmax, of which an arc reads at most one class each. The
// log-probability of an arc is the sum of what it reads.
struct Emission {
  int32_t num_arcs, num_heads;
  int64_t sizes[kMaxHeads];  // of the heads
  int32_t classes[kMaxHeads][kMaxArcs];

  MBRNNT_HD int64_t RowSize() const { return num_heads == 1 ? sizes[0] : sizes[0] + sizes[1]; }
  MBRNNT_HD bool IsLabel(int a) const { return classes[0][a] == kNextLabel; }
  // What arc a reads of the first head in column u of an utterance with these labels; of the others
  // it is known for all columns.
  MBRNNT_HD int64_t TokenAt(int a, const int32_t* labels, int64_t u, int64_t num_labels) const {
    if (!IsLabel(a)) return classes[0][a];
    if (u >= num_labels) return kNoLabelLeft;
    const int64_t v = labels[u];
    return v >= 0 && v < sizes[0] ? v : kNoSuchClass;
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

template <typename T>
MBRNNT_HD T LogProb(T logit, LogNormalizer<T> normalizer) {
  return (logit - normalizer.shift) - normalizer.log_sum;
}
// Of arc a, which reads `token` of the first head of a row. The normalizers are those of the heads.
template <typename L>
MBRNNT_HD Real<L> ArcLogProb(const Emission& emission, int a, int64_t token, const L* logits,
                             const LogNormalizer<Real<L>>* normalizers, Real<L> sigma) {
  using T = Real<L>;
  if (token == kNoLabelLeft) return -T(INFINITY);
  if (token == kNoSuchClass) return T(NAN);
  T sum = token == kNothing ? T(0) : LogProb(ToReal(logits[token]), normalizers[0]);
  if (emission.num_heads > 1) {
    const int32_t v = emission.classes[1][a];
    if (v != kNothing) sum += LogProb(ToReal(logits[emission.sizes[0] + v]), normalizers[1]);
  }
  return sum - sigma;
}

// How arc posteriors become logit gradients, in each head by those of the arcs that read it. A head
// that no arc reads, or no path's arc, is not looked at: its gradient is 0.
template <typename T>
struct GradientRule {
  T label_weight;  // 1 + fastemit_lambda: weighs the label arcs' posteriors
  T clamp;         // 0: none

  MBRNNT_HD T Weigh(T posterior, bool is_label) const {
    return is_label ? label_weight * posterior : posterior;
  }
  // What turns exp(logit - shift) into its probability times the occupancy, the sum of the head's
  // weighed posteriors: one number for a head of a row.
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
