// Arc log-probabilities -> losses and posteriors.
//
// The nodes of an anti-diagonal d = t + u do not depend on each other and are computed side by
// side. So an utterance is laid out by diagonals first: an arc leads from column u of diagonal d
// to column u + emits of diagonal d + steps, and what neighbouring arcs need stands side by side.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/loops.h"
#include "cpu/pages.h"

namespace mbrnnt::cpu {
namespace {

// Where the diagonals stand: T + 1 rows, and diagonals that are T + 1 apart share one. They fit, as
// their nodes' columns are no more than T apart. So a place belongs to one node (t, u), t in 0..T.
// Before a row's first column, and so behind the last one of the row before, is one that stays
// empty: a label's arc would come from there to u = 0, and lead there from u = U.
//
// An arc of duration n that would come from before the first frame, t - n < 0, is looked up at the
// node of t - n + T + 1. That is one of the last n frames, from where no such arc leads: its weight
// is 0.
class Diagonals {
 public:
  explicit Diagonals(Extent extent)
      : extent_(extent), rows_(extent.frames + 1), width_(1 + extent.labels + 1) {}

  int64_t rows() const { return rows_; }
  int64_t width() const { return width_; }
  int64_t size() const { return rows_ * width_ + 1; }  // 1: the last row has one behind it, too
  // That of the final node.
  int64_t Last() const { return extent_.frames + extent_.labels; }
  // The columns whose t is one of 0..T.
  int64_t Begin(int64_t d) const { return std::max<int64_t>(0, d - extent_.frames); }
  int64_t End(int64_t d) const { return std::min(extent_.labels, d) + 1; }
  int64_t RowOf(int64_t d) const { return d % rows_; }
  int64_t AtRow(int64_t row, int64_t u) const { return row * width_ + 1 + u; }
  int64_t At(int64_t d, int64_t u) const { return AtRow(RowOf(d), u); }
  // The row of the diagonal `steps` behind one of this row or, negative, before it; fewer steps
  // than there are rows. (RowOf divides: for every arc that would cost as much as the nodes do.)
  int64_t After(int64_t row, int64_t steps) const {
    const int64_t to = row + steps;
    return to >= rows_ ? to - rows_ : to < 0 ? to + rows_ : to;
  }

 private:
  Extent extent_;
  int64_t rows_, width_;
};

// Enough for any utterance: planes for its arcs, alphas and, with posteriors, betas. Behind them
// is what the loops read beyond the last one.
int64_t SizeOfPlace(int64_t frames, int64_t columns, int64_t num_arcs, bool with_posteriors) {
  const Diagonals diagonals(Extent{frames, columns - 1, true});
  return diagonals.size() * 2 * (num_arcs + (with_posteriors ? 2 : 1)) + kReadBeyond;
}
template <typename T>
int64_t SizeOfPlace(const LatticeStage<T>& s) {
  return SizeOfPlace(s.batch.max_frames, s.batch.columns, s.table.size, s.posteriors != nullptr);
}

// An utterance, and a place that it is computed in.
template <typename T>
class Utterance {
 public:
  Utterance(const LatticeStage<T>& stage, int64_t b, int64_t place)
      : s_(stage),
        b_(b),
        lattice_(stage.LatticeOf(b)),
        diagonals_(lattice_.extent),
        numbers_(stage.workspace + place * SizeOfPlace(stage)) {}

  int64_t num_rows() const { return diagonals_.rows(); }
  int64_t num_diagonals() const { return diagonals_.Last() + 1; }

  // Rows' weights, by the log-probabilities of their nodes; 0 where no arc is. No node has a number
  // yet.
  void ReadRows(int64_t first, int64_t last) {
    const int64_t begin = first * diagonals_.width();
    const int64_t end = last < num_rows() ? last * diagonals_.width() : diagonals_.size();
    const auto fill_with_zero = [&](ScaledRow<T> numbers) {
      std::fill(numbers.mantissas + begin, numbers.mantissas + end, T(0));
      std::fill(numbers.exponents + begin, numbers.exponents + end, -T(INFINITY));
    };
    fill_with_zero(Alphas());
    if (s_.posteriors) fill_with_zero(Betas());
    for (int64_t row = first; row < last; ++row) {
      for (int64_t d = row; d < num_diagonals(); d += num_rows()) ReadDiagonal(d);
    }
  }

  void WriteAlphas() {
    if (!lattice_.extent.valid) {
      s_.losses[b_] = T(NAN);
      return;
    }
    Walk</*kForward=*/true>(Alphas());
    const auto alphas = [&](int64_t t, int64_t u) {
      const ScaledRow<T> node = Alphas() + diagonals_.At(t + u, u);
      return Scaled<T>{*node.mantissas, *node.exponents};
    };
    Scaled<T> likelihood = alphas(lattice_.extent.frames, lattice_.extent.labels);
    for (int64_t u = 0; u <= lattice_.extent.labels; ++u) {
      if (EndsInNan(lattice_, alphas, u)) likelihood.mantissa = T(NAN);
    }
    s_.likelihoods[b_] = likelihood;
    s_.losses[b_] = Loss(likelihood);
  }
  void WriteBetas() {
    if (lattice_.extent.valid) Walk</*kForward=*/false>(Betas());
  }

  // To where they belong.
  void WritePosteriors(int64_t d) {
    const int num_arcs = lattice_.table.size;
    const int64_t begin = BeginOfNodes(d), n = diagonals_.End(d) - begin;
    const int64_t row = diagonals_.RowOf(d);
    ArcRow<T> arcs[kMaxArcs];
    for (int a = 0; a < num_arcs; ++a) {
      const Arc arc = lattice_.table.arcs[a];
      // An arc beyond the final node is none, whatever number it finds.
      const int64_t to =
          diagonals_.After(row, std::min({Steps(arc), diagonals_.Last() - d, num_rows() - 1}));
      arcs[a] = {Arcs(a) + diagonals_.AtRow(row, begin),
                 Betas() + diagonals_.AtRow(to, begin + arc.emits)};
    }
    T* posteriors = s_.posteriors + b_ * s_.batch.NodesPerUtterance() * num_arcs;
    loops_.posteriors(n, num_arcs, Alphas() + diagonals_.AtRow(row, begin), arcs,
                      s_.likelihoods[b_], posteriors + InMemory(d, begin), InMemory(0, 1));
  }

  // What of a frame is no node.
  void WritePadding(int64_t t) const {
    const int64_t num_arcs = lattice_.table.size, columns = lattice_.columns;
    T* frame = s_.posteriors + (b_ * s_.batch.max_frames + t) * columns * num_arcs;
    const T padding = lattice_.extent.valid ? T(0) : T(NAN);
    std::fill(frame + lattice_.extent.ColumnsAt(t) * num_arcs, frame + columns * num_arcs, padding);
  }

 private:
  // Diagonals between an arc's ends.
  static int64_t Steps(Arc arc) { return int64_t{arc.duration} + arc.emits; }

  // Planes, in the order of `diagonals_`.
  ScaledRow<T> Planes(int64_t i) const {
    T* const mantissas = numbers_ + 2 * i * diagonals_.size();
    return {mantissas, mantissas + diagonals_.size()};
  }
  ScaledRow<T> Alphas() const { return Planes(0); }
  ScaledRow<T> Arcs(int a) const { return Planes(1 + a); }
  ScaledRow<T> Betas() const { return Planes(1 + lattice_.table.size); }

  // The nodes of a diagonal, from this column to End's, are side by side in `diagonals_`, and
  // InMemory(0, 1) apart in the arcs' log-probabilities.
  int64_t BeginOfNodes(int64_t d) const {
    return std::max<int64_t>(0, d - (lattice_.extent.frames - 1));
  }
  int64_t InMemory(int64_t d, int64_t u) const {
    return ((d - u) * lattice_.columns + u) * lattice_.table.size;
  }

  void ReadDiagonal(int64_t d) {
    const int num_arcs = lattice_.table.size;
    const int64_t row = diagonals_.RowOf(d), end = diagonals_.End(d), begin = BeginOfNodes(d);
    if (begin < end) {
      loops_.weights(end - begin, num_arcs, lattice_.arc_log_probs + InMemory(d, begin),
                     InMemory(0, 1), Arcs(0) + diagonals_.AtRow(row, begin), 2 * diagonals_.size());
    }
    for (int a = 0; a < num_arcs; ++a) {
      const Arc arc = lattice_.table.arcs[a];
      const ScaledRow<T> arcs = Arcs(a) + diagonals_.AtRow(row, 0);
      const auto remove = [&](int64_t u) {
        arcs.mantissas[u] = T(0);
        arcs.exponents[u] = -T(INFINITY);
      };
      remove(-1);
      if (row + 1 == num_rows()) remove(lattice_.extent.labels + 1);
      if (arc.emits && end > lattice_.extent.labels) remove(lattice_.extent.labels);
      // Too long for the frames that are left: from the first column on.
      int64_t u = diagonals_.Begin(d);
      if (d - u + arc.duration < lattice_.extent.frames) continue;
      for (; u < end && !lattice_.HasArc(d - u, u, arc); ++u) remove(u);
    }
  }

  // Alphas from the first diagonal on, betas from the last one back.
  template <bool kForward>
  void Walk(ScaledRow<T> numbers) {
    const int64_t last = diagonals_.Last();
    const ScaledRow<T> start =
        numbers + (kForward ? diagonals_.At(0, 0) : diagonals_.At(last, lattice_.extent.labels));
    *start.mantissas = T(1);
    *start.exponents = T(0);
    for (int64_t step = 1; step <= last; ++step) {
      const int64_t d = kForward ? step : last - step;
      const int64_t begin = diagonals_.Begin(d), n = diagonals_.End(d) - begin;
      const int64_t row = diagonals_.RowOf(d);
      ArcRow<T> arcs[kMaxArcs];
      int num_arcs = 0;
      for (int a = 0; a < lattice_.table.size; ++a) {
        const Arc arc = lattice_.table.arcs[a];
        const int64_t steps = Steps(arc);
        // No node has it: its other ends are on no diagonal, or it is too long for the frames. (It
        // would be looked up in the very row that is written.)
        if (steps > std::min(step, lattice_.extent.frames)) continue;
        const int64_t others = diagonals_.AtRow(diagonals_.After(row, kForward ? -steps : steps),
                                                begin + (kForward ? -arc.emits : arc.emits));
        const int64_t tails = kForward ? others : diagonals_.AtRow(row, begin);
        arcs[num_arcs++] = {Arcs(a) + tails, numbers + others};
      }
      if (num_arcs == 0) continue;
      loops_.sum_over_arcs(n, num_arcs, arcs, numbers + diagonals_.AtRow(row, begin));
    }
  }

  const LatticeStage<T>& s_;
  const int64_t b_;
  const Lattice<T> lattice_;
  const LatticeLoops<T> loops_ = BestLatticeLoops<T>();
  const Diagonals diagonals_;
  T* const numbers_;
};

// A task is a thread's: it takes utterances until none is left, one after the other in the same
// place, which so stays in its cache.
template <typename T>
void ComputeByUtterances(const LatticeStage<T>& s, const ParallelFor& parallel_for,
                         int64_t num_threads) {
  std::atomic<int64_t> next{0};
  parallel_for(std::min(s.batch.size, num_threads), [&](int64_t begin, int64_t end) {
    for (int64_t place = begin; place < end; ++place) {
      for (int64_t b; (b = next.fetch_add(1, std::memory_order_relaxed)) < s.batch.size;) {
        Utterance<T> utterance(s, b, place);
        utterance.ReadRows(0, utterance.num_rows());
        utterance.WriteAlphas();
        if (!s.posteriors) continue;
        utterance.WriteBetas();
        for (int64_t d = 0; d < utterance.num_diagonals(); ++d) utterance.WritePosteriors(d);
        for (int64_t t = 0; t < s.batch.max_frames; ++t) utterance.WritePadding(t);
      }
    }
  });
}

// Tasks are rows, then directions, diagonals and frames of an utterance: none waits for another.
template <typename T>
void ComputeByParts(const LatticeStage<T>& s, const ParallelFor& parallel_for) {
  std::vector<Utterance<T>> utterances;
  utterances.reserve(s.batch.size);
  for (int64_t b = 0; b < s.batch.size; ++b) utterances.emplace_back(s, b, /*place=*/b);
  const auto for_parts = [&](int64_t parts, const auto& body) {
    parallel_for(s.batch.size * parts, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) body(utterances[task / parts], task % parts);
    });
  };
  for_parts(s.batch.max_frames + 1, [](Utterance<T>& utterance, int64_t row) {
    if (row < utterance.num_rows()) utterance.ReadRows(row, row + 1);
  });
  for_parts(2, [](Utterance<T>& utterance, int64_t direction) {
    direction == 0 ? utterance.WriteAlphas() : utterance.WriteBetas();
  });
  for_parts(s.batch.max_frames + s.batch.columns, [](Utterance<T>& utterance, int64_t d) {
    if (d < utterance.num_diagonals()) utterance.WritePosteriors(d);
  });
  for_parts(s.batch.max_frames,
            [](Utterance<T>& utterance, int64_t t) { utterance.WritePadding(t); });
}

}  // namespace

int64_t Workspace::NumbersPerUtterance(int64_t frames, int64_t columns, int64_t num_arcs,
                                       bool with_posteriors) {
  return 2 + SizeOfPlace(frames, columns, num_arcs, with_posteriors);  // 2: its likelihood
}

template <typename T>
void ComputeLattice(const LatticeStage<T>& stage, const ParallelFor& parallel_for,
                    int64_t num_threads) {
  // XLA keeps the workspace where the gradient will be written.
  PreferHugePages(stage.workspace, stage.batch.size * SizeOfPlace(stage) * sizeof(T));
  if (!stage.posteriors || stage.batch.size >= 2 * num_threads) {
    ComputeByUtterances(stage, parallel_for, num_threads);
  } else {
    ComputeByParts(stage, parallel_for);
  }
}

template void ComputeLattice(const LatticeStage<float>&, const ParallelFor&, int64_t);
template void ComputeLattice(const LatticeStage<double>&, const ParallelFor&, int64_t);

}  // namespace mbrnnt::cpu
