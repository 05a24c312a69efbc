#include <algorithm>
#include <cmath>
#include <optional>

#include "cpu/kernels.h"
#include "cpu/loops.h"
#include "cpu/pages.h"

namespace mbrnnt::cpu {

template <typename L>
void ComputeLogitGradients(const LogitGradientsStage<L>& s, const ParallelFor& parallel_for) {
  using T = Real<L>;
  const RowLoops<L> loops = BestRowLoops<L>();
  const Reads reads(s.emission);
  const int num_heads = s.emission.num_heads;
  const int64_t columns = s.batch.columns, row_size = s.emission.RowSize();
  if (s.logit_gradients != s.logits) {
    const int64_t nodes = s.batch.size * s.batch.NodesPerUtterance();
    PreferHugePages(s.logit_gradients, nodes * row_size * int64_t{sizeof(L)});
  }
  parallel_for(s.batch.size * s.batch.max_frames, [&](int64_t begin, int64_t end) {
    std::optional<Shares<T>> shares;
    for (int64_t frame = begin; frame < end; ++frame) {
      const int64_t b = frame / s.batch.max_frames, t = frame % s.batch.max_frames;
      if (frame == begin || t == 0) shares.emplace(s, reads, b);
      const Extent extent = s.batch.ExtentOf(b);
      const int64_t inside = extent.ColumnsAt(t), node = frame * columns;
      for (int64_t u = 0; u < inside; u += kNodes) {
        const int n = static_cast<int>(std::min<int64_t>(kNodes, inside - u));
        T scales[kMaxHeads * kNodes];
        const LogNormalizer<T>* normalizers = s.log_normalizers + (node + u) * num_heads;
#pragma omp simd  // an exponential for every head of a row
        for (int i = 0; i < n * num_heads; ++i) {
          scales[i] = GradientRule<T>::Factor(T(1), normalizers[i]);
        }
        loops.logit_gradients(s, reads, *shares, scales, b, node + u, u, n);
      }
      const T padding = extent.valid ? T(0) : T(NAN);
      std::fill(s.logit_gradients + (node + inside) * row_size,
                s.logit_gradients + (node + columns) * row_size, FromReal<L>(padding));
    }
  });
}

template void ComputeLogitGradients(const LogitGradientsStage<float>&, const ParallelFor&);
template void ComputeLogitGradients(const LogitGradientsStage<double>&, const ParallelFor&);
template void ComputeLogitGradients(const LogitGradientsStage<BFloat16>&, const ParallelFor&);
template void ComputeLogitGradients(const LogitGradientsStage<Float16>&, const ParallelFor&);

}  // namespace mbrnnt::cpu
