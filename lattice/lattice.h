// The lattice of a transducer and its recursions, for one utterance.
//
// Nodes (t, u), 0 <= t < T frames, 0 <= u <= U labels, and one final node (T, U).
// An arc of duration d leads from (t, u) to (t + d, u + 1) if it emits the next
// label and to (t + d, u) if it is a blank. An arc is there only if its head is a
// node; the final node is entered by blanks alone. RNN-T, multi-blank and TDT
// differ in their arc table and in nothing below.
//
//   alpha(0,0) = 1    alpha(n) = sum over arcs a: m -> n of alpha(m) * p_a(m)
//   beta(T,U)  = 1    beta(n)  = sum over arcs a: n -> m of p_a(n) * beta(m)
//   likelihood = alpha(T,U) = beta(0,0)
//   posterior of arc a: n -> m  =  alpha(n) * p_a(n) * beta(m) / likelihood
//
// The final node makes every border an ordinary case: T = 0 and U = 0 gives
// likelihood 1, T = 0 and U > 0 gives 0, an utterance that no path fits gives 0.
#pragma once

#include <cstdint>

#include "lattice/macros.h"
#include "lattice/scaled.h"

namespace mbrnnt {

inline constexpr int kMaxArcs = 32;

struct Arc {
  int32_t duration;
  int32_t emits;  // 1: takes the next label, 0: a blank
};

// A model's arcs. Passed by value, so that a GPU kernel needs no copy of it.
struct ArcTable {
  int32_t size;
  Arc arcs[kMaxArcs];
};

// The true size of one utterance inside its padded block. `valid` is false when
// a length was negative or larger than the padded size; it holds no node then.
struct Extent {
  int64_t frames;  // T
  int64_t labels;  // U
  bool valid;

  MBRNNT_HD bool Contains(int64_t t, int64_t u) const {
    return t >= 0 && t < frames && u >= 0 && u <= labels;
  }
};

// A padded batch: `size` blocks of [max_frames, columns] nodes, columns = max U + 1.
struct Batch {
  int64_t size;
  int64_t max_frames;
  int64_t columns;
  const int32_t* logit_lengths;
  const int32_t* label_lengths;

  MBRNNT_HD int64_t NodesPerUtterance() const { return max_frames * columns; }
  MBRNNT_HD Extent ExtentOf(int64_t b) const {
    const int64_t frames = logit_lengths[b], labels = label_lengths[b];
    const bool valid = frames >= 0 && frames <= max_frames && labels >= 0 && labels < columns;
    return valid ? Extent{frames, labels, true} : Extent{0, -1, false};
  }
};

template <typename T>
struct Lattice {
  Extent extent;
  int64_t columns;
  ArcTable table;
  const T* arc_log_probs;  // [max_frames, columns, table.size]

  MBRNNT_HD int64_t Node(int64_t t, int64_t u) const { return t * columns + u; }
  MBRNNT_HD Scaled<T> Weight(int64_t node, int arc) const {
    return FromLog(arc_log_probs[node * table.size + arc]);
  }
  // May an arc end in (t, u)? In the final node only if it is a blank.
  MBRNNT_HD bool IsHead(Arc arc, int64_t t, int64_t u) const {
    return extent.Contains(t, u) || (t == extent.frames && u == extent.labels && !arc.emits);
  }
};

// Sum over the paths from (0, 0) to (t, u). At the final node: the likelihood.
template <typename T>
MBRNNT_HD Scaled<T> AlphaAt(const Lattice<T>& lattice, const Scaled<T>* alphas, int64_t t,
                            int64_t u) {
  if (t == 0 && u == 0) return Scaled<T>::One();
  Scaled<T> sum = Scaled<T>::Zero();
  for (int a = 0; a < lattice.table.size; ++a) {
    const Arc arc = lattice.table.arcs[a];
    const int64_t from_t = t - arc.duration, from_u = u - arc.emits;
    if (!lattice.extent.Contains(from_t, from_u) || !lattice.IsHead(arc, t, u)) continue;
    const int64_t from = lattice.Node(from_t, from_u);
    sum = Add(sum, Multiply(alphas[from], lattice.Weight(from, a)));
  }
  return Rescaled(sum);
}

// Weight of the arc times the sum over the paths from its head to the final node.
template <typename T>
MBRNNT_HD Scaled<T> ArcBeta(const Lattice<T>& lattice, const Scaled<T>* betas, int64_t t, int64_t u,
                            int a) {
  const Arc arc = lattice.table.arcs[a];
  const int64_t to_t = t + arc.duration, to_u = u + arc.emits;
  if (!lattice.IsHead(arc, to_t, to_u)) return Scaled<T>::Zero();
  const Scaled<T> weight = lattice.Weight(lattice.Node(t, u), a);
  return to_t == lattice.extent.frames ? weight : Multiply(weight, betas[lattice.Node(to_t, to_u)]);
}

// Sum over the paths from (t, u) to the final node.
template <typename T>
MBRNNT_HD Scaled<T> BetaAt(const Lattice<T>& lattice, const Scaled<T>* betas, int64_t t,
                           int64_t u) {
  Scaled<T> sum = Scaled<T>::Zero();
  for (int a = 0; a < lattice.table.size; ++a) sum = Add(sum, ArcBeta(lattice, betas, t, u, a));
  return Rescaled(sum);
}

// P(the path takes this arc | labels). An impossible utterance (likelihood 0) has
// posterior 0 everywhere, a poisoned one (NaN) has NaN.
template <typename T>
MBRNNT_HD T ArcPosterior(const Lattice<T>& lattice, const Scaled<T>* alphas, const Scaled<T>* betas,
                         Scaled<T> likelihood, int64_t t, int64_t u, int a) {
  if (!(likelihood.mantissa > T(0))) return likelihood.mantissa;
  const T posterior =
      Ratio(Multiply(alphas[lattice.Node(t, u)], ArcBeta(lattice, betas, t, u, a)), likelihood);
  // Past 2^24 an exponent is no longer exact: where every path has to cross a mask such as -1e9
  // the posteriors cannot be trusted, but they are bounded still.
  return posterior > T(1) ? T(1) : posterior;
}

}  // namespace mbrnnt
