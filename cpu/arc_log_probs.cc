#include <algorithm>
#include <cmath>

#include "cpu/kernels.h"
#include "cpu/loops.h"
#include "cpu/rows.h"

namespace mbrnnt::cpu {
namespace {

// Nodes of a frame, at most kRows, from column u on.
template <typename L>
void WriteNodes(const ArcLogProbsStage<L>& s, const RowLoops<L>& loops, const Reads* reads,
                int64_t b, int64_t node, int64_t u, int num_rows, int64_t num_labels) {
  using T = Real<L>;
  const Emission& emission = s.emission;
  const int num_arcs = emission.num_arcs, num_heads = emission.num_heads;
  const int64_t row_size = emission.RowSize();
  const int32_t* labels = s.batch.LabelsOf(s.labels, b);
  const L* head = s.logits + node * row_size;

  Column<T> sums[kMaxArcs];
  std::fill(sums[0], sums[num_arcs], T(0));
  for (int h = 0; h < num_heads; ++h) {
    const int64_t size = emission.sizes[h];
    Column<T> shifts, log_sums, scores[kMaxArcs];
    if (HasFew(emission, h)) {
      ReadColumns(head, row_size, num_rows, size, scores);
      loops.few_log_normalizers(scores, size, shifts, log_sums);
    } else {
      loops.log_normalizers(head, num_rows, size, row_size, shifts, log_sums);
    }
    Column<T> log_probs[kMaxArcs];
    for (int i = 0; i < reads[h].size; ++i) {
      for (int r = 0; r < num_rows; ++r) {
        const int a = reads[h].arcs[i];
        const int64_t v =
            h == 0 ? emission.TokenAt(a, labels, u + r, num_labels) : emission.classes[h][a];
        log_probs[i][r] = v >= 0              ? ToReal(head[r * row_size + v])
                          : v == kNoLabelLeft ? -T(INFINITY)
                                              : T(NAN);
      }
      for (int r = 0; r < kRows; ++r) {
        log_probs[i][r] = LogProb(log_probs[i][r], {shifts[r], log_sums[r]});
      }
    }
    for (int a = 0; a < num_arcs; ++a) {
      const int i = reads[h].of_arc[a];
      for (int r = 0; r < kRows && i >= 0; ++r) sums[a][r] += log_probs[i][r];
    }
    for (int r = 0; r < num_rows; ++r)
      s.log_normalizers[(node + r) * num_heads + h] = {shifts[r], log_sums[r]};
    head += size;
  }
  for (int a = 0; a < num_arcs; ++a) {
    for (int r = 0; r < kRows; ++r) sums[a][r] -= s.sigmas[b];
    if (emission.IsLabel(a) && u + num_rows > num_labels) sums[a][num_rows - 1] = -T(INFINITY);
  }
  WriteColumns(sums, num_rows, num_arcs, s.arc_log_probs + node * num_arcs, num_arcs);
}

}  // namespace

template <typename L>
void ComputeArcLogProbs(const ArcLogProbsStage<L>& s, const ParallelFor& parallel_for) {
  using T = Real<L>;
  const RowLoops<L> loops = BestRowLoops<L>();
  const Reads reads[kMaxHeads] = {Reads(s.emission, 0),
                                  Reads(s.emission, s.emission.num_heads - 1)};
  const int64_t columns = s.batch.columns;
  const int num_arcs = s.emission.num_arcs, num_heads = s.emission.num_heads;
  parallel_for(s.batch.size * s.batch.max_frames, [&](int64_t begin, int64_t end) {
    for (int64_t frame = begin; frame < end; ++frame) {
      const int64_t b = frame / s.batch.max_frames, t = frame % s.batch.max_frames;
      const Extent extent = s.batch.ExtentOf(b);
      const int64_t inside = extent.ColumnsAt(t), node = frame * columns;
      for (int64_t u = 0; u < inside; u += kRows) {
        const int num_rows = static_cast<int>(std::min<int64_t>(kRows, inside - u));
        WriteNodes(s, loops, reads, b, node + u, u, num_rows, extent.labels);
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
