// The loops over the nodes of an anti-diagonal, see loops.h. For loops.cc alone.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/loops.h"
#include "cpu/simd.h"

namespace mbrnnt::cpu::MBRNNT_ISA {
namespace {

// The law on a register of numbers at a time. The last one of a row is read and computed whole,
// whatever stands behind the row, and stored as far as the row goes.

static_assert(kVectorBytes / sizeof(float) <= kReadBeyond, "more must stand behind a row");

template <typename T>
MBRNNT_HD Scaled<Vec<T>> LoadScaled(ScaledRow<T> row, int64_t i) {
  return {Load(row.mantissas + i), Load(row.exponents + i)};
}

template <typename T>
void Weights(int64_t n, int num_arcs, const T* log_probs, int64_t stride, ScaledRow<T> weights,
             int64_t next_arc) {
  constexpr int64_t kSize = kLanes<T>;
  for (int64_t u = 0; u < n; u += kSize) {
    for (int64_t a = 0; a < num_arcs; a += kSize) {
      const int64_t nodes = std::min(kSize, n - u), arcs = std::min(kSize, num_arcs - a);
      Vec<T> tile[kSize];
      for (int i = 0; i < kSize; ++i) {
        const T* node = log_probs + (u + std::min<int64_t>(i, nodes - 1)) * stride + a;
        tile[i] = LoadUpTo(node, arcs);
      }
      Transpose<kSize>(tile);
      for (int i = 0; i < kSize; ++i) {
        if (i >= arcs) break;
        const ScaledRow<T> of_arc = weights + ((a + i) * next_arc + u);
        const auto weight = Scaled<Vec<T>>::FromLog(tile[i]);
        StoreUpTo(of_arc.mantissas, weight.mantissa, nodes);
        StoreUpTo(of_arc.exponents, weight.exponent, nodes);
      }
    }
  }
}

template <typename T>
void SumsOverArcs(int64_t n, int num_arcs, const ArcRow<T>* arcs, ScaledRow<T> sums) {
  for (int64_t i = 0; i < n; i += kLanes<T>) {
    const auto sum = SumOverArcs(num_arcs, [&](int a) {
      return Multiply(LoadScaled(arcs[a].numbers, i), LoadScaled(arcs[a].weights, i));
    });
    StoreUpTo(sums.mantissas + i, sum.mantissa, n - i);
    StoreUpTo(sums.exponents + i, sum.exponent, n - i);
  }
}

template <typename T>
void Posteriors(int64_t n, int num_arcs, ScaledRow<T> alphas, const ArcRow<T>* arcs,
                Scaled<T> likelihood, T* posteriors, int64_t stride) {
  constexpr int kSize = kLanes<T>, kHalf = std::max(2, kSize / 2);
  const Scaled<Vec<T>> likelihoods{Constant<Vec<T>>(likelihood.mantissa),
                                   Constant<Vec<T>>(likelihood.exponent)};
  for (int64_t i = 0; i < n; i += kSize) {
    const auto share = AlphaShare(LoadScaled(alphas, i), likelihoods);
    for (int a = 0; a < num_arcs; a += kSize) {
      Vec<T> tile[kSize];
      for (int k = 0; k < kSize; ++k) {
        if (a + k < num_arcs) {
          const ArcRow<T>& arc = arcs[a + k];
          const auto arc_betas = Multiply(LoadScaled(arc.weights, i), LoadScaled(arc.numbers, i));
          tile[k] = Posterior(share, arc_betas, likelihoods);
        } else {
          tile[k] = Vec<T>{};
        }
      }
      const int nodes = static_cast<int>(std::min<int64_t>(kSize, n - i));
      T* to = posteriors + i * stride + a;
      num_arcs - a <= kHalf ? StoreColumns<kHalf>(tile, nodes, num_arcs - a, stride, to)
                            : StoreColumns<kSize>(tile, nodes, num_arcs - a, stride, to);
    }
  }
}

}  // namespace
}  // namespace mbrnnt::cpu::MBRNNT_ISA
