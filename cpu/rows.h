// The two loops over a row of V logits, where nearly all of the time goes. They
// are compiled once for every instruction set in CMakeLists.txt and chosen at run
// time; everything else is compiled once, for the baseline.
#pragma once

#include <cstdint>

#include "lattice/emission.h"
#include "lattice/number.h"

namespace mbrnnt::cpu {

template <typename L>
struct RowLoops {
  using T = Real<L>;
  // log(sum(exp(row))), see LogNormalizer.
  T (*log_normalizer)(const L* logits, int64_t num_classes);
  // The gradient of a row as if no arc read any of its classes. May be in place.
  void (*gradient)(const L* logits, int64_t num_classes, T log_normalizer, T occupancy,
                   GradientRule<T> rule, T cotangent, L* gradients);
};

// The best loops that this processor runs.
template <typename L>
RowLoops<L> BestRowLoops();

// Defined by rows.cc, once in each of these namespaces.
namespace baseline {
template <typename L>
RowLoops<L> Loops();
}
namespace avx2 {
template <typename L>
RowLoops<L> Loops();
}

}  // namespace mbrnnt::cpu
