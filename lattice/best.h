// Log-probabilities of best paths: the numbers with which the lattice's recursions look for the
// most probable path in the place of the sum over all of them.
//
//   scaled.h             here
//   Multiply(a, b)       a + b, neutral 0
//   Add(a, b)            max(a, b), neutral -inf
//
// In double precision, whatever the arcs' is: a float32 number keeps all its digits in a sum that
// is 2^29 times larger, so that two paths of the same arcs in another order are equally good. A NaN
// in either operand makes NaN.
#pragma once

#include <cmath>

#include "lattice/macros.h"

namespace mbrnnt {

struct Best {
  double log_prob;

  static MBRNNT_HD Best Zero() { return {-double(INFINITY)}; }
  static MBRNNT_HD Best One() { return {0.0}; }
  MBRNNT_HD bool IsPoisoned() const { return log_prob != log_prob; }
  // What is as good as -inf for Scaled is that here, and +inf is no log-probability.
  template <typename T>
  static MBRNNT_HD Best FromLog(T x) {
    if (IsLost(x)) return Zero();
    return {x == T(INFINITY) ? double(NAN) : double(x)};
  }
  // Has the binary logarithm left the range of T?
  template <typename T>
  static MBRNNT_HD bool IsLost(T x) {
    return x * T(1.4426950408889634) == -T(INFINITY);
  }
};

MBRNNT_HD Best Multiply(Best a, Best b) { return {a.log_prob + b.log_prob}; }
MBRNNT_HD Best Add(Best a, Best b) {
  // One instruction on most processors, which gives b where either is NaN. (A branch that depends
  // on which is larger cannot be foretold.)
  const double larger = a.log_prob > b.log_prob ? a.log_prob : b.log_prob;
  return {a.IsPoisoned() ? a.log_prob : larger};
}
MBRNNT_HD Best Rescaled(Best x) { return x; }

}  // namespace mbrnnt
