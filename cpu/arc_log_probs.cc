#include <algorithm>
#include <cmath>

#include "cpu/kernels.h"
#include "cpu/loops.h"

namespace mbrnnt::cpu {

template <typename L>
void ComputeArcLogProbs(const ArcLogProbsStage<L>& s, const ParallelFor& parallel_for) {
  using T = Real<L>;
  const RowLoops<L> loops = BestRowLoops<L>();
  const int num_arcs = s.emission.num_arcs, num_heads = s.emission.num_heads;
  const Reads reads(s.emission);
  const int64_t columns = s.batch.columns;
  parallel_for(s.batch.size * s.batch.max_frames, [&](int64_t begin, int64_t end) {
    for (int64_t frame = begin; frame < end; ++frame) {
      const int64_t b = frame / s.batch.max_frames, t = frame % s.batch.max_frames;
      const int64_t node = frame * columns, inside = s.batch.ExtentOf(b).ColumnsAt(t);
      for (int64_t u = 0; u < inside; u += kNodes) {
        const int n = static_cast<int>(std::min<int64_t>(kNodes, inside - u));
        loops.arc_log_probs(s, reads, b, node + u, u, n);
      }
      std::fill(s.log_normalizers + (node + inside) * num_heads,
                s.log_normalizers + (node + columns) * num_heads, LogNormalizer<T>::None());
      std::fill(s.arc_log_probs + (node + inside) * num_arcs,
                s.arc_log_probs + (node + columns) * num_arcs, -T(INFINITY));
    }
  });
}

template void ComputeArcLogProbs(const ArcLogProbsStage<float>&, const ParallelFor&);
template void ComputeArcLogProbs(const ArcLogProbsStage<double>&, const ParallelFor&);
template void ComputeArcLogProbs(const ArcLogProbsStage<BFloat16>&, const ParallelFor&);
template void ComputeArcLogProbs(const ArcLogProbsStage<Float16>&, const ParallelFor&);

}  // namespace mbrnnt::cpu
