#include <cmath>

#include "cpu/kernels.h"
#include "cpu/loops.h"

namespace mbrnnt::cpu {
template <typename L>
void ComputeArcLogProbs(const ArcLogProbsStage<L>& s, const ParallelFor& parallel_for) {
  using T = Real<L>;
  const auto log_normalizer = BestRowLoops<L>().log_normalizer;
  const int64_t columns = s.batch.columns, num_arcs = s.arc_classes.size;
  parallel_for(s.batch.size * s.batch.max_frames, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t b = row / s.batch.max_frames, t = row % s.batch.max_frames;
      const Extent extent = s.batch.ExtentOf(b);
      const int32_t* labels = s.batch.LabelsOf(s.labels, b);
      for (int64_t u = 0; u < columns; ++u) {
        const int64_t node = row * columns + u;
        T* arc_log_probs = s.arc_log_probs + node * num_arcs;
        if (!extent.Contains(t, u)) {
          s.log_normalizers[node] = T(INFINITY);
          for (int64_t a = 0; a < num_arcs; ++a) arc_log_probs[a] = -T(INFINITY);
          continue;
        }
        const L* logits = s.logits + node * s.num_classes;
        const T normalizer = s.log_normalizers[node] = log_normalizer(logits, s.num_classes);
        for (int a = 0; a < num_arcs; ++a) {
          const int64_t v = s.arc_classes.ClassAt(a, labels, u, extent.labels, s.num_classes);
          arc_log_probs[a] = ArcLogProb(logits, v, normalizer, s.sigma);
        }
      }
    }
  });
}

template void ComputeArcLogProbs(const ArcLogProbsStage<float>&, const ParallelFor&);
template void ComputeArcLogProbs(const ArcLogProbsStage<double>&, const ParallelFor&);
template void ComputeArcLogProbs(const ArcLogProbsStage<BFloat16>&, const ParallelFor&);
template void ComputeArcLogProbs(const ArcLogProbsStage<Float16>&, const ParallelFor&);

}  // namespace mbrnnt::cpu
