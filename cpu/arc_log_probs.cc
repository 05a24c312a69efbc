#include <algorithm>
#include <cmath>

#include "cpu/kernels.h"
#include "cpu/loops.h"

namespace mbrnnt::cpu {
template <typename L>
void ComputeArcLogProbs(const ArcLogProbsStage<L>& s, const ParallelFor& parallel_for) {
  using T = Real<L>;
  const auto log_normalizers = BestRowLoops<L>().log_normalizers;
  const int64_t columns = s.batch.columns, row_size = s.emission.RowSize();
  const int num_arcs = s.emission.num_arcs, num_heads = s.emission.num_heads;
  parallel_for(s.batch.size * s.batch.max_frames, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t b = row / s.batch.max_frames, t = row % s.batch.max_frames;
      const Extent extent = s.batch.ExtentOf(b);
      const int32_t* labels = s.batch.LabelsOf(s.labels, b);
      const int64_t inside = extent.ColumnsAt(t);
      const L* logits = s.logits + row * columns * row_size;
      LogNormalizer<T>* normalizers = s.log_normalizers + row * columns * num_heads;
      T* arc_log_probs = s.arc_log_probs + row * columns * num_arcs;

      log_normalizers(logits, inside, s.emission, normalizers);
      for (int64_t u = 0; u < inside; ++u) {
        for (int a = 0; a < num_arcs; ++a) {
          const int64_t token = s.emission.TokenAt(a, labels, u, extent.labels);
          arc_log_probs[u * num_arcs + a] = ArcLogProb(s.emission, a, token, logits + u * row_size,
                                                       normalizers + u * num_heads, s.sigmas[b]);
        }
      }
      std::fill(normalizers + inside * num_heads, normalizers + columns * num_heads,
                LogNormalizer<T>::None());
      std::fill(arc_log_probs + inside * num_arcs, arc_log_probs + columns * num_arcs,
                -T(INFINITY));
    }
  });
}

template void ComputeArcLogProbs(const ArcLogProbsStage<float>&, const ParallelFor&);
template void ComputeArcLogProbs(const ArcLogProbsStage<double>&, const ParallelFor&);
template void ComputeArcLogProbs(const ArcLogProbsStage<BFloat16>&, const ParallelFor&);
template void ComputeArcLogProbs(const ArcLogProbsStage<Float16>&, const ParallelFor&);

}  // namespace mbrnnt::cpu
