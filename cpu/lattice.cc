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

// Rows of Scaled numbers. Before and behind a row's own numbers are Zeros: a loop reads some of
// them, at nodes that no arc leaves. (Behind they may turn NaN beside a NaN; no arc leads back.)
template <typename T>
class ScaledRows {
 public:
  ScaledRows(int64_t rows, int64_t columns)
      : rows_(rows), width_(1 + columns + kRowPadding), numbers_(2 * rows * width_) {}

  int64_t rows() const { return rows_; }
  // They go around: the last few anti-diagonals are kept. Those before the first are Zero.
  ScaledRow<T> Row(int64_t i) {
    T* row = numbers_.data() + (i + rows_) % rows_ * 2 * width_ + 1;
    return {row, row + width_};
  }

 private:
  int64_t rows_, width_;
  std::vector<T> numbers_;
};

// The log-probabilities of arc a at the n nodes (t, u), (t + dt, u + du) and so on; -inf
// where there is no such arc, and in the padding. Those that have it are consecutive,
// whichever way a line goes.
template <typename T>
void ReadArc(const Lattice<T>& lattice, int a, int64_t t, int64_t u, int64_t dt, int64_t du,
             int64_t n, T* log_probs) {
  int64_t begin = 0, end = n;
  while (begin < end && !lattice.HasArc(t + begin * dt, u + begin * du, a)) ++begin;
  while (begin < end && !lattice.HasArc(t + (end - 1) * dt, u + (end - 1) * du, a)) --end;
  const int64_t num_arcs = lattice.table.size, step = (dt * lattice.columns + du) * num_arcs;
  const int64_t first = (t * lattice.columns + u) * num_arcs + a;  // a node or not
  std::fill(log_probs, log_probs + begin, -T(INFINITY));
  for (int64_t i = begin; i < end; ++i) log_probs[i] = lattice.arc_log_probs[first + i * step];
  std::fill(log_probs + end, log_probs + n + kRowPadding, -T(INFINITY));
}

template <typename T, bool kForward>
class Walk {
 public:
  explicit Walk(const Lattice<T>& lattice)
      : lattice_(lattice),
        loops_(BestLatticeLoops<T>()),
        num_frames_(lattice.extent.frames),
        num_labels_(lattice.extent.labels),
        numbers_(1, 1) {
    int64_t longest = 0;
    for (int a = 0; a < lattice.table.size; ++a) {
      if (lattice.table.arcs[a].duration > num_frames_) continue;  // never there
      arcs_.push_back(a);
      longest = std::max(longest, StepsOf(a));
    }
    log_probs_.resize(arcs_.size() * LogProbsWidth());
    numbers_ = ScaledRows<T>(longest + 1, num_labels_ + 1);
  }

  // Writes alphas (betas) into `nodes` and returns the number at the walk's end.
  Scaled<T> Run(NodeNumbers<T> nodes) {
    const int64_t last = num_frames_ + num_labels_;
    for (int64_t diagonal = 0; diagonal <= last; ++diagonal) {
      const int64_t begin = Begin(diagonal), end = End(diagonal);
      const ScaledRow<T> row = numbers_.Row(diagonal);
      Sum(diagonal, begin, end - begin, row + begin);
      if (diagonal == 0) row.mantissas[0] = T(1), row.exponents[0] = T(0);
      // The row's last user began further left.
      const int64_t old_begin = Begin(diagonal - numbers_.rows());
      std::fill(row.mantissas + old_begin, row.mantissas + begin, T(0));
      std::fill(row.exponents + old_begin, row.exponents + begin, -T(INFINITY));
      for (int64_t j = begin; j < end; ++j) {
        const int64_t t = FrameOf(diagonal - j);
        if (t < num_frames_) nodes(t, ColumnOf(j)) = {row.mantissas[j], row.exponents[j]};
      }
    }
    const ScaledRow<T> row = numbers_.Row(last);
    return {row.mantissas[num_labels_], row.exponents[num_labels_]};
  }

 private:
  // Anti-diagonals between an arc's ends.
  int64_t StepsOf(int a) const {
    return int64_t{lattice_.table.arcs[a].duration} + lattice_.table.arcs[a].emits;
  }
  int64_t LogProbsWidth() const { return num_labels_ + 1 + kRowPadding; }
  int64_t FrameOf(int64_t i) const { return kForward ? i : num_frames_ - i; }
  int64_t ColumnOf(int64_t j) const { return kForward ? j : num_labels_ - j; }
  // The columns j of an anti-diagonal whose rows are 0..T.
  int64_t Begin(int64_t diagonal) const { return std::max<int64_t>(0, diagonal - num_frames_); }
  int64_t End(int64_t diagonal) const { return std::min(num_labels_, diagonal) + 1; }

  // What the arcs bring to the n nodes from column `begin` on. All log-probabilities are read
  // before any is used: a wide load waits for the narrow stores before it.
  void Sum(int64_t diagonal, int64_t begin, int64_t n, ScaledRow<T> sums) {
    ArcRow<T> rows[kMaxArcs];
    const int64_t t = FrameOf(diagonal - begin), u = ColumnOf(begin), du = kForward ? 1 : -1;
    for (size_t k = 0; k < arcs_.size(); ++k) {
      const Arc arc = lattice_.table.arcs[arcs_[k]];
      const int64_t back_t = kForward ? arc.duration : 0, back_u = kForward ? arc.emits : 0;
      T* log_probs = &log_probs_[k * LogProbsWidth()];
      ReadArc(lattice_, arcs_[k], t - back_t, u - back_u, -du, du, n, log_probs);
      const int64_t from = diagonal - StepsOf(arcs_[k]);
      rows[k] = {log_probs, numbers_.Row(from) + (begin - arc.emits)};
    }
    if (!arcs_.empty()) loops_.sum_over_arcs(n, static_cast<int>(arcs_.size()), rows, sums);
  }

  const Lattice<T>& lattice_;
  const LatticeLoops<T> loops_;
  const int64_t num_frames_, num_labels_;
  std::vector<int> arcs_;
  std::vector<T> log_probs_;  // a row for each arc
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
        ones_(1, columns) {
    for (int64_t u = 0; u < columns; ++u) ones_.Row(0).mantissas[u] = T(1);
  }

  void Write(const Lattice<T>& lattice, NodeNumbers<T> alphas, NodeNumbers<T> betas,
             Scaled<T> likelihood, int64_t t, T* posteriors) {
    const Extent extent = lattice.extent;
    const int64_t num_arcs = lattice.table.size;
    const int64_t inside = extent.ColumnsAt(t);
    T* row = posteriors + t * lattice.columns * num_arcs;
    const ScaledRow<T> alpha = alphas_.Row(0), beta = betas_.Row(0);
    for (int a = 0; a < num_arcs; ++a) {
      ReadArc(lattice, a, t, 0, 0, 1, inside, &numbers_[a * width_]);
    }
    Read(alphas, t, inside, alpha);
    int64_t frame = -1;  // whose betas have been read: arcs of one duration share them
    for (int a = 0; a < num_arcs; ++a) {
      const Arc arc = lattice.table.arcs[a];
      const int64_t to_t = t + arc.duration;
      if (to_t < extent.frames && to_t != frame) Read(betas, frame = to_t, inside, beta);
      // To the final node it is One. Where there is no arc its weight is Zero.
      const ScaledRow<T> to = to_t < extent.frames ? beta + arc.emits : ones_.Row(0);
      T* numbers = &numbers_[a * width_];
      loops_.posteriors(inside, alpha, numbers, to, likelihood, numbers);
    }
    for (int64_t u = 0; u < inside; ++u) {
      for (int a = 0; a < num_arcs; ++a) row[u * num_arcs + a] = numbers_[a * width_ + u];
    }
    const T padding = extent.valid ? T(0) : T(NAN);
    std::fill(row + inside * num_arcs, row + lattice.columns * num_arcs, padding);
  }

 private:
  // Nothing of another utterance stays behind them.
  static void Read(NodeNumbers<T> nodes, int64_t t, int64_t n, ScaledRow<T> row) {
    for (int64_t u = 0; u < n; ++u) {
      row.mantissas[u] = nodes(t, u).mantissa;
      row.exponents[u] = nodes(t, u).exponent;
    }
    std::fill_n(row.mantissas + n, kRowPadding, T(0));
    std::fill_n(row.exponents + n, kRowPadding, T(0));
  }

  const LatticeLoops<T> loops_;
  const int64_t width_;
  std::vector<T> numbers_;  // log-probabilities, then posteriors, a row for each arc
  ScaledRows<T> alphas_, betas_, ones_;
};

// What there is to do for one utterance: posteriors last.
template <typename T>
class Utterance {
 public:
  Utterance(const LatticeStage<T>& stage, int64_t b)
      : s_(stage),
        b_(b),
        lattice_(stage.LatticeOf(b)),
        alphas_(stage.Of(stage.alphas, b)),
        betas_(stage.Of(stage.betas, b)) {}

  void WriteAlphas() const {
    s_.likelihoods[b_] =
        lattice_.extent.valid ? Walk<T, true>(lattice_).Run(alphas_) : Scaled<T>{T(NAN), T(0)};
    s_.losses[b_] = -Log(s_.likelihoods[b_]);
  }
  void WriteBetas() const {
    if (lattice_.extent.valid) Walk<T, false>(lattice_).Run(betas_);
  }
  void WritePosteriors(int64_t t, PosteriorFrame<T>& frame) const {
    T* posteriors = s_.posteriors + b_ * s_.batch.NodesPerUtterance() * s_.table.size;
    frame.Write(lattice_, alphas_, betas_, s_.likelihoods[b_], t, posteriors);
  }

 private:
  const LatticeStage<T>& s_;
  const int64_t b_;
  const Lattice<T> lattice_;
  const NodeNumbers<T> alphas_, betas_;
};

// A task is an utterance: each thread is woken once.
template <typename T>
void ComputeByUtterances(const LatticeStage<T>& s, const ParallelFor& parallel_for) {
  parallel_for(s.batch.size, [&](int64_t begin, int64_t end) {
    PosteriorFrame<T> frame(s.batch.columns);
    for (int64_t b = begin; b < end; ++b) {
      const Utterance<T> utterance(s, b);
      utterance.WriteAlphas();
      if (!s.posteriors) continue;
      utterance.WriteBetas();
      for (int64_t t = 0; t < s.batch.max_frames; ++t) utterance.WritePosteriors(t, frame);
    }
  });
}

// A task is a direction of an utterance, then a frame: alphas and betas do not wait for each
// other, nor frames' posteriors.
template <typename T>
void ComputeByDirections(const LatticeStage<T>& s, const ParallelFor& parallel_for) {
  parallel_for(2 * s.batch.size, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const Utterance<T> utterance(s, task / 2);
      task % 2 == 0 ? utterance.WriteAlphas() : utterance.WriteBetas();
    }
  });
  const int64_t max_frames = s.batch.max_frames;
  parallel_for(s.batch.size * max_frames, [&](int64_t begin, int64_t end) {
    PosteriorFrame<T> frame(s.batch.columns);
    for (int64_t task = begin; task < end; ++task) {
      Utterance<T>(s, task / max_frames).WritePosteriors(task % max_frames, frame);
    }
  });
}

}  // namespace

template <typename T>
void ComputeLattice(const LatticeStage<T>& stage, const ParallelFor& parallel_for,
                    int64_t num_threads) {
  if (!stage.posteriors || stage.batch.size >= 2 * num_threads) {
    ComputeByUtterances(stage, parallel_for);
  } else {
    ComputeByDirections(stage, parallel_for);
  }
}

template void ComputeLattice(const LatticeStage<float>&, const ParallelFor&, int64_t);
template void ComputeLattice(const LatticeStage<double>&, const ParallelFor&, int64_t);

}  // namespace mbrnnt::cpu
