// Arc log-probabilities -> losses and posteriors.
//
// Both directions are one walk over anti-diagonals, whose nodes do not depend on each
// other and so are computed side by side. In the walk's coordinates rows are i = 0..T:
// frames t = i forward, t = T - i backward; columns are j = 0..U: u = j forward,
// u = U - j backward. It starts at (0, 0), a node forward and the final node backward;
// an arc leads from (i, j) to (i + duration, j + emits). Its weight stands at the
// node (t, u) that it leaves: at the walk's near end forward, at the far end backward.
#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/loops.h"

namespace mbrnnt::cpu {
namespace {

// Rows of Scaled numbers.
template <typename T>
class ScaledRows {
 public:
  ScaledRows(int64_t rows, int64_t columns)
      : rows_(rows), width_(columns + kRowPadding), numbers_(2 * rows * width_) {}

  // They go around: the last few anti-diagonals are kept.
  ScaledRow<T> Row(int64_t i) {
    T* row = numbers_.data() + i % rows_ * 2 * width_;
    return {row, row + width_};
  }

 private:
  int64_t rows_, width_;
  std::vector<T> numbers_;
};

// The log-probabilities of arc a at the n nodes (t, u), (t + dt, u + du) and so on; -inf
// where there is no such arc. Those that have it are consecutive, whichever way a line goes.
template <typename T>
void ReadArc(const Lattice<T>& lattice, int a, int64_t t, int64_t u, int64_t dt, int64_t du,
             int64_t n, T* log_probs) {
  int64_t begin = 0, end = n;
  while (begin < end && !lattice.HasArc(t + begin * dt, u + begin * du, a)) ++begin;
  while (begin < end && !lattice.HasArc(t + (end - 1) * dt, u + (end - 1) * du, a)) --end;
  const int64_t num_arcs = lattice.table.size, step = (dt * lattice.columns + du) * num_arcs;
  const T* first = lattice.arc_log_probs + (t * lattice.columns + u) * num_arcs + a;
  std::fill(log_probs, log_probs + begin, -T(INFINITY));
  for (int64_t i = begin; i < end; ++i) log_probs[i] = first[i * step];
  std::fill(log_probs + end, log_probs + n, -T(INFINITY));
}

template <typename T, bool kForward>
class Walk {
 public:
  explicit Walk(const Lattice<T>& lattice)
      : lattice_(lattice),
        loops_(BestLatticeLoops<T>()),
        num_frames_(lattice.extent.frames),
        num_labels_(lattice.extent.labels),
        log_probs_(lattice.table.size * (num_labels_ + 1 + kRowPadding)),
        numbers_(1, 1) {
    int64_t longest = 0;
    for (int a = 0; a < lattice.table.size; ++a) {
      const int64_t steps = StepsOf(a);
      if (lattice.table.arcs[a].duration > num_frames_) continue;  // never there
      longest = std::max(longest, steps);
      // Forward, an arc's weights wait for as long as it takes to its other end.
      weights_.push_back({a, steps, ScaledRows<T>(kForward ? steps + 1 : 1, num_labels_ + 1)});
    }
    numbers_ = ScaledRows<T>(longest + 1, num_labels_ + 1);
  }

  // Writes alphas (betas) into `nodes` and returns the number at the walk's end.
  Scaled<T> Run(NodeNumbers<T> nodes) {
    const int64_t last = num_frames_ + num_labels_;
    for (int64_t diagonal = 0; diagonal <= last; ++diagonal) {
      const int64_t begin = Begin(diagonal), end = End(diagonal);
      ReadWeights(diagonal);
      const ScaledRow<T> row = numbers_.Row(diagonal);
      std::fill(row.mantissas + begin, row.mantissas + end, T(0));
      std::fill(row.exponents + begin, row.exponents + end, -T(INFINITY));
      for (Weights& weights : weights_) AddArc(diagonal, weights, row);
      loops_.rescale(end - begin, row + begin);
      if (diagonal == 0) row.mantissas[0] = T(1), row.exponents[0] = T(0);
      for (int64_t j = begin; j < end; ++j) {
        const int64_t t = FrameOf(diagonal - j);
        if (t < num_frames_) nodes(t, ColumnOf(j)) = {row.mantissas[j], row.exponents[j]};
      }
    }
    const ScaledRow<T> row = numbers_.Row(last);
    return {row.mantissas[num_labels_], row.exponents[num_labels_]};
  }

 private:
  struct Weights {
    int arc;
    int64_t steps;  // anti-diagonals between the arc's ends
    ScaledRows<T> ring;
  };

  int64_t StepsOf(int a) const {
    return int64_t{lattice_.table.arcs[a].duration} + lattice_.table.arcs[a].emits;
  }
  int64_t FrameOf(int64_t i) const { return kForward ? i : num_frames_ - i; }
  int64_t ColumnOf(int64_t j) const { return kForward ? j : num_labels_ - j; }
  // The columns j of an anti-diagonal whose rows are 0..T.
  int64_t Begin(int64_t diagonal) const { return std::max<int64_t>(0, diagonal - num_frames_); }
  int64_t End(int64_t diagonal) const { return std::min(num_labels_, diagonal) + 1; }

  // The weights of the arcs that leave this anti-diagonal's nodes; Zero where none does.
  // All are read before any is converted, which waits for what has just been stored.
  void ReadWeights(int64_t diagonal) {
    const int64_t begin = Begin(diagonal), size = End(diagonal) - begin;
    const int64_t t = FrameOf(diagonal - begin), u = ColumnOf(begin);
    const int64_t du = kForward ? 1 : -1;
    T* log_probs = log_probs_.data();
    for (const Weights& weights : weights_) {
      ReadArc(lattice_, weights.arc, t, u, -du, du, size, log_probs);
      log_probs += num_labels_ + 1 + kRowPadding;
    }
    log_probs = log_probs_.data();
    for (Weights& weights : weights_) {
      loops_.from_logs(size, log_probs, weights.ring.Row(diagonal) + begin);
      log_probs += num_labels_ + 1 + kRowPadding;
    }
  }

  // What an arc brings from the anti-diagonal where it comes from.
  void AddArc(int64_t diagonal, Weights& weights, ScaledRow<T> row) {
    const int64_t from = diagonal - weights.steps;
    const int64_t emits = lattice_.table.arcs[weights.arc].emits;
    if (from < 0) return;
    const int64_t begin = std::max(Begin(diagonal), Begin(from) + emits);
    const int64_t end = std::min(End(diagonal), End(from) + emits);
    if (begin >= end) return;
    const ScaledRow<T> weight =
        kForward ? weights.ring.Row(from) + (begin - emits) : weights.ring.Row(diagonal) + begin;
    loops_.add_products(end - begin, numbers_.Row(from) + (begin - emits), weight, row + begin);
  }

  const Lattice<T>& lattice_;
  const LatticeLoops<T> loops_;
  const int64_t num_frames_, num_labels_;
  std::vector<T> log_probs_;
  std::vector<Weights> weights_;
  ScaledRows<T> numbers_;
};

// One frame's posteriors at a time. In place: an arc's posterior needs no other arc's
// log-probability.
template <typename T>
class PosteriorFrame {
 public:
  explicit PosteriorFrame(int64_t columns)
      : loops_(BestLatticeLoops<T>()),
        width_(columns + kRowPadding),
        numbers_(kMaxArcs * width_),
        alphas_(1, columns),
        betas_(1, columns),
        weights_(1, columns) {}

  void Write(const Lattice<T>& lattice, NodeNumbers<T> alphas, NodeNumbers<T> betas,
             Scaled<T> likelihood, int64_t t, T* posteriors) {
    const Extent extent = lattice.extent;
    const int64_t num_arcs = lattice.table.size;
    const int64_t inside = t < extent.frames ? extent.labels + 1 : 0;
    T* row = posteriors + t * lattice.columns * num_arcs;
    const ScaledRow<T> alpha = alphas_.Row(0), beta = betas_.Row(0), weight = weights_.Row(0);
    for (int64_t u = 0; u < inside; ++u) Set(alpha, u, alphas(t, u));
    for (int a = 0; a < num_arcs; ++a) {
      ReadArc(lattice, a, t, 0, 0, 1, inside, &numbers_[a * width_]);
    }
    for (int a = 0; a < num_arcs; ++a) {
      const Arc arc = lattice.table.arcs[a];
      const int64_t to_t = t + arc.duration;
      for (int64_t u = 0; u < inside; ++u) {
        // To the final node it is One. Where there is no arc its weight is Zero.
        const int64_t to_u = u + arc.emits;
        Set(beta, u, extent.Contains(to_t, to_u) ? betas(to_t, to_u) : Scaled<T>::One());
      }
      T* numbers = &numbers_[a * width_];
      loops_.from_logs(inside, numbers, weight);
      loops_.posteriors(inside, alpha, weight, beta, likelihood, numbers);
    }
    for (int64_t u = 0; u < inside; ++u) {
      for (int a = 0; a < num_arcs; ++a) row[u * num_arcs + a] = numbers_[a * width_ + u];
    }
    const T padding = extent.valid ? T(0) : T(NAN);
    std::fill(row + inside * num_arcs, row + lattice.columns * num_arcs, padding);
  }

 private:
  static void Set(ScaledRow<T> row, int64_t u, Scaled<T> number) {
    row.mantissas[u] = number.mantissa;
    row.exponents[u] = number.exponent;
  }

  const LatticeLoops<T> loops_;
  const int64_t width_;
  std::vector<T> numbers_;  // log-probabilities, then posteriors, a row for each arc
  ScaledRows<T> alphas_, betas_, weights_;
};

}  // namespace

template <typename T>
void ComputeLattice(const LatticeStage<T>& s, const ParallelFor& parallel_for) {
  const int64_t nodes = s.batch.NodesPerUtterance(), max_frames = s.batch.max_frames;
  // Alphas and betas do not wait for each other: a task is one direction of one utterance.
  const int64_t directions = s.posteriors ? 2 : 1;
  parallel_for(s.batch.size * directions, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t b = task / directions;
      const Lattice<T> lattice = s.LatticeOf(b);
      if (task % directions == 0) {
        s.likelihoods[b] = lattice.extent.valid ? Walk<T, true>(lattice).Run(s.Of(s.alphas, b))
                                                : Scaled<T>{T(NAN), T(0)};
        s.losses[b] = -Log(s.likelihoods[b]);
      } else if (lattice.extent.valid) {
        Walk<T, false>(lattice).Run(s.Of(s.betas, b));
      }
    }
  });
  if (!s.posteriors) return;
  parallel_for(s.batch.size * max_frames, [&](int64_t begin, int64_t end) {
    PosteriorFrame<T> posteriors(s.batch.columns);
    for (int64_t frame = begin; frame < end; ++frame) {
      const int64_t b = frame / max_frames;
      posteriors.Write(s.LatticeOf(b), s.Of(s.alphas, b), s.Of(s.betas, b), s.likelihoods[b],
                       frame % max_frames, s.posteriors + b * nodes * s.table.size);
    }
  });
}

template void ComputeLattice(const LatticeStage<float>&, const ParallelFor&);
template void ComputeLattice(const LatticeStage<double>&, const ParallelFor&);

}  // namespace mbrnnt::cpu
