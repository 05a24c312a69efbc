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
//
// What numbers these are is open: with those of scaled.h they are probabilities, and beta is a sum
// over paths; those of best.h are logarithms, which Multiply adds and of which Add takes the larger
// one, so that beta is the best path's.
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

  // The frames of the shortest blank, INT32_MAX if there is none.
  MBRNNT_HD int32_t LeastBlank() const {
    int32_t least = INT32_MAX;
    for (int a = 0; a < size; ++a) {
      if (!arcs[a].emits && arcs[a].duration < least) least = arcs[a].duration;
    }
    return least;
  }
};

MBRNNT_HD uint32_t Unsigned(int32_t x) { return static_cast<uint32_t>(x); }
MBRNNT_HD uint64_t Unsigned(int64_t x) { return static_cast<uint64_t>(x); }

// The true size of one utterance inside its padded block. `valid` is false when
// a length was negative or larger than the padded size; it holds no node then.
template <typename Index>
struct BasicExtent {
  Index frames;  // T
  Index labels;  // U
  bool valid;

  MBRNNT_HD bool Contains(Index t, Index u) const {
    // (A negative number is a large unsigned one.)
    return (Unsigned(t) < Unsigned(frames)) & (Unsigned(u) < Unsigned(labels + 1));
  }
  // How many of a frame's columns are nodes: the first ones.
  MBRNNT_HD Index ColumnsAt(Index t) const { return t < frames ? labels + 1 : 0; }
};
using Extent = BasicExtent<int64_t>;

// A padded batch: `size` blocks of [max_frames, columns] nodes, columns = max U + 1.
struct Batch {
  int64_t size;
  int64_t max_frames;
  int64_t columns;
  const int32_t* logit_lengths;
  const int32_t* label_lengths;

  MBRNNT_HD int64_t NodesPerUtterance() const { return max_frames * columns; }
  MBRNNT_HD const int32_t* LabelsOf(const int32_t* labels, int64_t b) const {
    return labels + b * (columns - 1);
  }
  MBRNNT_HD Extent ExtentOf(int64_t b) const {
    const int64_t frames = logit_lengths[b], labels = label_lengths[b];
    const bool valid = frames >= 0 && frames <= max_frames && labels >= 0 && labels < columns;
    return valid ? Extent{frames, labels, true} : Extent{0, -1, false};
  }
};

// Nodes are counted in `Index`; a GPU has no 64-bit integers but what it makes of 32-bit ones. What
// arcs weigh is a `Number`.
template <typename T, typename Index = int64_t, typename Number = Scaled<T>>
struct Lattice {
  BasicExtent<Index> extent;
  int64_t columns;
  const ArcTable& table;   // a GPU thread's own copy of it would be in slow memory
  const T* arc_log_probs;  // [max_frames, columns, table.size]

  MBRNNT_HD T ArcLogProb(Index t, Index u, int a) const {
    return arc_log_probs[(t * columns + u) * table.size + a];
  }
  MBRNNT_HD Number Weight(Index t, Index u, int a) const {
    return Number::FromLog(ArcLogProb(t, u, a));
  }
  // Does such an arc lead from (t, u), a node, to another one? A blank of the last column may lead
  // to the final one, which is a row further.
  MBRNNT_HD bool HasArc(Index t, Index u, Arc arc) const {
    const Index rows = extent.frames + (!arc.emits & (u == extent.labels));
    return extent.Contains(t, u) & (u + arc.emits <= extent.labels) & (arc.duration < rows - t);
  }
  MBRNNT_HD bool HasArc(Index t, Index u, int a) const { return HasArc(t, u, table.arcs[a]); }
};

// The recursions take alphas and betas as anything that is called with t and u: a traversal keeps
// them in an order of its own.

// What the arcs bring to a node, summed from the last arc to the first: the label
// arc, whose summand a traversal by anti-diagonals has last, comes last.
template <typename Summand>
MBRNNT_HD auto SumOverArcs(int num_arcs, const Summand& summand) {
  auto sum = summand(num_arcs - 1);
  for (int a = num_arcs - 2; a >= 0; --a) sum = Add(sum, summand(a));
  return Rescaled(sum);
}

// Sum over the paths from (0, 0) to (t, u). At the final node: the likelihood.
template <typename T, typename Number, typename Alphas>
MBRNNT_HD Number AlphaAt(const Lattice<T, int64_t, Number>& lattice, const Alphas& alphas,
                         int64_t t, int64_t u) {
  if (t == 0 && u == 0) return Number::One();
  return SumOverArcs(lattice.table.size, [&](int a) {
    const Arc arc = lattice.table.arcs[a];
    const int64_t from_t = t - arc.duration, from_u = u - arc.emits;
    return lattice.HasArc(from_t, from_u, a)
               ? Multiply(alphas(from_t, from_u), lattice.Weight(from_t, from_u, a))
               : Number::Zero();
  });
}

// Weight of the arc times the sum over the paths from its head to the final node.
template <typename T, typename Index, typename Number, typename Betas>
MBRNNT_HD Number ArcBeta(const Lattice<T, Index, Number>& lattice, const Betas& betas, Index t,
                         Index u, int a) {
  if (!lattice.HasArc(t, u, a)) return Number::Zero();
  const Arc arc = lattice.table.arcs[a];
  const Number weight = lattice.Weight(t, u, a);
  const Index to_t = t + arc.duration;
  return to_t == lattice.extent.frames ? weight : Multiply(weight, betas(to_t, u + arc.emits));
}

// Sum over the paths from (t, u) to the final node.
template <typename T, typename Number, typename Betas>
MBRNNT_HD Number BetaAt(const Lattice<T, int64_t, Number>& lattice, const Betas& betas, int64_t t,
                        int64_t u) {
  return SumOverArcs(lattice.table.size, [&](int a) { return ArcBeta(lattice, betas, t, u, a); });
}

// Does a NaN come to its end in column u? An arc that is there poisons its utterance, also where no
// path to the final node comes by. A NaN goes along the arcs to a node that none leaves: one from
// where the shortest blank is too long.
template <typename T, typename Number, typename Alphas>
MBRNNT_HD bool EndsInNan(const Lattice<T, int64_t, Number>& lattice, const Alphas& alphas,
                         int64_t u) {
  bool any = false;
  const int64_t least = lattice.table.LeastBlank(), frames = lattice.extent.frames;
  for (int64_t t = frames > least ? frames - least : 0; t < frames; ++t) {
    any |= alphas(t, u).IsPoisoned();
  }
  return any;
}

// The negative log-likelihood; of a certain utterance +0, not -0.
template <typename T>
MBRNNT_HD T Loss(Scaled<T> likelihood) {
  return T(0) - Log(likelihood);
}

// An impossible utterance (likelihood 0) has posterior 0 everywhere, a poisoned one (NaN) has NaN.
template <typename T>
MBRNNT_HD T BoundedPosterior(T ratio, Scaled<T> likelihood) {
  // Past 2^24 an exponent is no longer exact: where every path has to cross a mask such as -1e9
  // the posteriors cannot be trusted, but they are bounded still.
  const T posterior = ratio > Constant<T>(1) ? Constant<T>(1) : ratio;
  return likelihood.mantissa > T{} ? posterior : likelihood.mantissa;
}

// P(the path takes an arc | labels), with `arc_beta` as ArcBeta has it. All arcs of a node take one
// division: alpha / likelihood.
template <typename T>
MBRNNT_HD Scaled<T> AlphaShare(Scaled<T> alpha, Scaled<T> likelihood) {
  return {alpha.mantissa / likelihood.mantissa, alpha.exponent - likelihood.exponent};
}
template <typename T>
MBRNNT_HD T Posterior(Scaled<T> alpha_share, Scaled<T> arc_beta, Scaled<T> likelihood) {
  const Scaled<T> ratio = Multiply(alpha_share, arc_beta);
  return BoundedPosterior(ratio.mantissa * PowerOfTwo(ratio.exponent), likelihood);
}

}  // namespace mbrnnt
