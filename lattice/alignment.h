// The most probable path of one utterance: from its betas in the numbers of best.h, it can be
// followed from the first node on, and nothing else has to be kept.
#pragma once

#include <cstdint>

#include "lattice/best.h"
#include "lattice/stages.h"

namespace mbrnnt {

// The first of the arcs that are best at a node. (t, u) has one.
template <typename T, typename Betas>
MBRNNT_HD int BestArcAt(const BestLattice<T>& lattice, const Betas& betas, int64_t t, int64_t u) {
  int best = 0;
  double most = ArcBeta(lattice, betas, t, u, 0).log_prob;
  for (int a = 1; a < lattice.table.size; ++a) {
    const double log_prob = ArcBeta(lattice, betas, t, u, a).log_prob;
    if (log_prob > most) {
      most = log_prob;
      best = a;
    }
  }
  return best;
}

// The log-probability of the best path, -inf if there is none. NaN if a length is out of range, if
// some arc's beta is (`poisoned`), or if no number holds it.
template <typename T, typename Betas>
MBRNNT_HD T PathLogProb(const BestLattice<T>& lattice, const Betas& betas, bool poisoned) {
  if (poisoned || !lattice.extent.valid) return T(NAN);
  const Best start = lattice.extent.frames > 0   ? betas(0, 0)
                     : lattice.extent.labels > 0 ? Best::Zero()
                                                 : Best::One();
  const T log_prob = static_cast<T>(start.log_prob);
  if (Best::IsLost(log_prob)) return -T(INFINITY);
  return log_prob < T(INFINITY) ? log_prob : T(NAN);
}

// All results of utterance b, whose path is of this log-probability: `best_arc` says which arc it
// takes at a node. Several threads may go along together, of which one `writes`.
template <typename T, typename BestArc>
MBRNNT_HD void WriteAlignment(const AlignmentStage<T>& s, int64_t b, const BestLattice<T>& lattice,
                              T log_prob, const BestArc& best_arc, bool writes = true) {
  const int64_t max_labels = s.batch.columns - 1, max_arcs = s.MaxArcs();
  int32_t* const arcs = s.arcs + b * max_arcs;
  int32_t* const frames = s.frames + b * max_labels;
  int32_t* const durations = s.durations + b * max_labels;
  T* const label_log_probs = s.label_log_probs + b * max_labels;

  int64_t t = 0, u = 0, n = 0;
  // (Only the final node is behind the last frame. A NaN is not above -inf.)
  for (; log_prob > -T(INFINITY) && t < lattice.extent.frames; ++n) {
    const int a = best_arc(t, u);
    const Arc arc = lattice.table.arcs[a];
    if (writes) arcs[n] = a;
    if (writes && arc.emits) {
      frames[u] = static_cast<int32_t>(t);
      durations[u] = arc.duration;
      label_log_probs[u] = lattice.ArcLogProb(t, u, a);
    }
    t += arc.duration;
    u += arc.emits;
  }
  if (!writes) return;
  s.log_probs[b] = log_prob;
  for (; n < max_arcs; ++n) arcs[n] = -1;
  for (; u < max_labels; ++u) {
    frames[u] = durations[u] = -1;
    label_log_probs[u] = T(0);
  }
}

}  // namespace mbrnnt
