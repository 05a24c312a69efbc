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
              const int32_t* labels, int64_t u, int64_t num_labels, Real<L> cotangent) {
  using T = Real<L>;
  const L* logits = s.logits + node * s.num_classes;
  L* gradients = s.logit_gradients + node * s.num_classes;
  const T* posteriors = s.posteriors + node * s.arc_classes.size;

  ReadClasses<T> read;
  T occupancy = 0;
  bool visited = false;
  for (int a = 0; a < s.arc_classes.size; ++a) {
    const T posterior = s.rule.Weigh(posteriors[a], s.arc_classes.IsLabel(a));
    occupancy += posterior;
    visited |= posterior != T(0);
    const int64_t v = s.arc_classes.ClassAt(a, labels, u, num_labels, s.num_classes);
    // An arc without a class is not there; its posterior is 0, or NaN like the others.
    if (v >= 0) read.Add(v, posterior);
  }
  if (!visited) {  // no path comes through: nothing to read
    std::fill_n(gradients, s.num_classes, FromReal<L>(T(0)));
    return;
  }

  const LogNormalizer<T> normalizer = s.log_normalizers[node];
  loops.gradient(logits, s.num_classes, normalizer.shift, s.rule.Factor(occupancy, normalizer),
                 read, s.rule, cotangent, gradients);
}

}  // namespace

template <typename L>
void ComputeLogitGradients(const LogitGradientsStage<L>& s, const ParallelFor& parallel_for) {
  using T = Real<L>;
  const RowLoops<L> loops = BestRowLoops<L>();
  if (s.logit_gradients != s.logits) {
    const int64_t nodes = s.batch.size * s.batch.NodesPerUtterance();
    PreferHugePages(s.logit_gradients, nodes * s.num_classes * int64_t{sizeof(L)});
  }
  const int64_t columns = s.batch.columns;
  parallel_for(s.batch.size * s.batch.max_frames, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t b = row / s.batch.max_frames, t = row % s.batch.max_frames;
      const Extent extent = s.batch.ExtentOf(b);
      const int32_t* labels = s.batch.LabelsOf(s.labels, b);
      const int64_t inside = extent.ColumnsAt(t);
      for (int64_t u = 0; u < inside; ++u) {
        WriteRow(s, loops, row * columns + u, labels, u, extent.labels, s.cotangents[b]);
      }
      const T padding = extent.valid ? T(0) : T(NAN);
      std::fill(s.logit_gradients + (row * columns + inside) * s.num_classes,
                s.logit_gradients + (row + 1) * columns * s.num_classes, FromReal<L>(padding));
    }
  });
}

template void ComputeLogitGradients(const LogitGradientsStage<float>&, const ParallelFor&);
template void ComputeLogitGradients(const LogitGradientsStage<double>&, const ParallelFor&);
template void ComputeLogitGradients(const LogitGradientsStage<BFloat16>&, const ParallelFor&);
template void ComputeLogitGradients(const LogitGradientsStage<Float16>&, const ParallelFor&);

}  // namespace mbrnnt::cpu
