// Arc log-probabilities -> the most probable path, an utterance at a time.
#include "lattice/alignment.h"

#include "cpu/kernels.h"

namespace mbrnnt::cpu {
namespace {

template <typename T>
void Align(const AlignmentStage<T>& s, int64_t b) {
  const BestLattice<T> lattice = s.LatticeOf(b);
  Best* const block = s.betas + b * s.batch.NodesPerUtterance();
  const auto betas = [&](int64_t t, int64_t u) -> Best& { return block[t * lattice.columns + u]; };
  bool poisoned = false;
  for (int64_t t = lattice.extent.frames - 1; t >= 0; --t) {
    for (int64_t u = lattice.extent.labels; u >= 0; --u) {
      const Best beta = BetaAt(lattice, betas, t, u);
      poisoned |= beta.IsPoisoned();
      betas(t, u) = beta;
    }
  }
  WriteAlignment(s, b, lattice, PathLogProb(lattice, betas, poisoned),
                 [&](int64_t t, int64_t u) { return BestArcAt(lattice, betas, t, u); });
}

}  // namespace

template <typename T>
void ComputeAlignment(const AlignmentStage<T>& stage, const ParallelFor& parallel_for) {
  parallel_for(stage.batch.size, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) Align(stage, b);
  });
}

template void ComputeAlignment(const AlignmentStage<float>&, const ParallelFor&);
template void ComputeAlignment(const AlignmentStage<double>&, const ParallelFor&);

}  // namespace mbrnnt::cpu
