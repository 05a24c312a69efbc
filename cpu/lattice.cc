#include <cmath>

#include "cpu/kernels.h"

namespace mbrnnt::cpu {
namespace {

template <typename T>
void SweepForward(const Lattice<T>& lattice, NodeNumbers<T> alphas) {
  for (int64_t t = 0; t < lattice.extent.frames; ++t) {
    for (int64_t u = 0; u <= lattice.extent.labels; ++u) {
      alphas(t, u) = AlphaAt(lattice, alphas, t, u);
    }
  }
}

template <typename T>
void SweepBackward(const Lattice<T>& lattice, NodeNumbers<T> betas) {
  for (int64_t t = lattice.extent.frames - 1; t >= 0; --t) {
    for (int64_t u = lattice.extent.labels; u >= 0; --u) {
      betas(t, u) = BetaAt(lattice, betas, t, u);
    }
  }
}

template <typename T>
Scaled<T> Likelihood(const Lattice<T>& lattice, NodeNumbers<T> alphas) {
  if (!lattice.extent.valid) return {T(NAN), T(0)};
  return AlphaAt(lattice, alphas, lattice.extent.frames, lattice.extent.labels);
}

// Frame t of one utterance.
template <typename T>
void WritePosteriors(const Lattice<T>& lattice, NodeNumbers<T> alphas, NodeNumbers<T> betas,
                     Scaled<T> likelihood, int64_t t, T* posteriors) {
  const T padding = lattice.extent.valid ? T(0) : T(NAN);
  for (int64_t u = 0; u < lattice.columns; ++u) {
    T* node = posteriors + (t * lattice.columns + u) * lattice.table.size;
    const bool inside = lattice.extent.Contains(t, u);
    for (int a = 0; a < lattice.table.size; ++a) {
      node[a] = inside ? ArcPosterior(lattice, alphas, betas, likelihood, t, u, a) : padding;
    }
  }
}

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
        const NodeNumbers<T> alphas = s.Of(s.alphas, b);
        SweepForward(lattice, alphas);
        s.likelihoods[b] = Likelihood(lattice, alphas);
        s.losses[b] = -Log(s.likelihoods[b]);
      } else {
        SweepBackward(lattice, s.Of(s.betas, b));
      }
    }
  });
  if (!s.posteriors) return;
  parallel_for(s.batch.size * max_frames, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t b = row / max_frames;
      WritePosteriors(s.LatticeOf(b), s.Of(s.alphas, b), s.Of(s.betas, b), s.likelihoods[b],
                      row % max_frames, s.posteriors + b * nodes * s.table.size);
    }
  });
}

template void ComputeLattice(const LatticeStage<float>&, const ParallelFor&);
template void ComputeLattice(const LatticeStage<double>&, const ParallelFor&);

}  // namespace mbrnnt::cpu
