#include <algorithm>
#include <cmath>

#include "cpu/kernels.h"
#include "cpu/loops.h"

namespace mbrnnt::cpu {
template <typename L>
void ComputeArcLogProbs(const ArcLogProbsStage<L>& s, const ParallelFor& parallel_for) {
  using T = Real<L>;
  const auto log_normalizers = BestRowLoops<L>().log_normalizers;
  const int64_t columns = s.batch.columns, num_arcs = s.arc_classes.size;
  parallel_for(s.batch.size * s.batch.max_frames, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t b = row / s.batch.max_frames, t = row % s.batch.max_frames;
      const Extent extent = s.batch.ExtentOf(b);
      const int32_t* labels = s.batch.LabelsOf(s.labels, b);
      const int64_t inside = extent.ColumnsAt(t);
      const L* logits = s.logits + row * columns * s.num_classes;
      LogNormalizer<T>* normalizers = s.log_normalizers + row * columns;
      T* arc_log_probs = s.arc_log_probs + row * columns * num_arcs;

      log_normalizers(logits, inside, s.num_classes, normalizers);
      for (int64_t u = 0; u < inside; ++u) {
        for (int a = 0; a < num_arcs; ++a) {
          const int64_t v = s.arc_classes.ClassAt(a, labels, u, extent.labels, s.num_classes);
          arc_log_probs[u * num_arcs + a] =
              ArcLogProb(logits + u * s.num_classes, v, normalizers[u], s.sigma);
        }
      }
      std::fill(normalizers + inside, normalizers + columns, LogNormalizer<T>::None());
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
