#include <algorithm>
#include <cmath>

#include "cpu/kernels.h"
#include "cpu/loops.h"
#include "cpu/pages.h"

namespace mbrnnt::cpu {
namespace {

// One node. `gradients` may be `logits`.
template <typename L>
void WriteRow(const LogitGradientsStage<L>& s, const RowLoops<L>& loops, int64_t node,
              const int32_t* labels, int64_t u, int64_t num_labels, GradientRule<Real<L>> rule,
              Real<L> cotangent) {
  using T = Real<L>;
  const Emission& emission = s.emission;
  const int64_t row_size = emission.RowSize();
  const L* logits = s.logits + node * row_size;
  L* gradients = s.logit_gradients + node * row_size;
  const T* posteriors = s.posteriors + node * emission.num_arcs;

  for (int h = 0; h < emission.num_heads; ++h) {
    ReadClasses<T> read;
    T occupancy = 0;
    bool visited = false;
    for (int a = 0; a < emission.num_arcs; ++a) {
      const int64_t v =
          h == 0 ? emission.TokenAt(a, labels, u, num_labels) : emission.classes[h][a];
      if (v == kNothing) continue;
      const T posterior = rule.Weigh(posteriors[a], h == 0 && emission.IsLabel(a));
      occupancy += posterior;
      visited |= posterior != T(0);
      // An arc without a class is not there; its posterior is 0, or NaN like the others.
      if (v >= 0) read.Add(v, posterior);
    }
    const int64_t size = emission.sizes[h];
    if (visited) {
      const LogNormalizer<T> normalizer = s.log_normalizers[node * emission.num_heads + h];
      loops.gradient(logits, size, logits + row_size, normalizer.shift,
                     rule.Factor(occupancy, normalizer), read, rule, cotangent, gradients);
    } else {  // no path comes through: nothing to read
      std::fill_n(gradients, size, FromReal<L>(T(0)));
    }
    logits += size;
    gradients += size;
  }
}

}  // namespace

template <typename L>
void ComputeLogitGradients(const LogitGradientsStage<L>& s, const ParallelFor& parallel_for) {
  using T = Real<L>;
  const RowLoops<L> loops = BestRowLoops<L>();
  const int64_t columns = s.batch.columns, row_size = s.emission.RowSize();
  if (s.logit_gradients != s.logits) {
    const int64_t nodes = s.batch.size * s.batch.NodesPerUtterance();
    PreferHugePages(s.logit_gradients, nodes * row_size * int64_t{sizeof(L)});
  }
  parallel_for(s.batch.size * s.batch.max_frames, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t b = row / s.batch.max_frames, t = row % s.batch.max_frames;
      const Extent extent = s.batch.ExtentOf(b);
      const int32_t* labels = s.batch.LabelsOf(s.labels, b);
      const int64_t inside = extent.ColumnsAt(t);
      for (int64_t u = 0; u < inside; ++u) {
        WriteRow(s, loops, row * columns + u, labels, u, extent.labels, s.RuleOf(b),
                 s.cotangents[b]);
      }
      const T padding = extent.valid ? T(0) : T(NAN);
      std::fill(s.logit_gradients + (row * columns + inside) * row_size,
                s.logit_gradients + (row + 1) * columns * row_size, FromReal<L>(padding));
    }
  });
}

template void ComputeLogitGradients(const LogitGradientsStage<float>&, const ParallelFor&);
template void ComputeLogitGradients(const LogitGradientsStage<double>&, const ParallelFor&);
template void ComputeLogitGradients(const LogitGradientsStage<BFloat16>&, const ParallelFor&);
template void ComputeLogitGradients(const LogitGradientsStage<Float16>&, const ParallelFor&);

}  // namespace mbrnnt::cpu
