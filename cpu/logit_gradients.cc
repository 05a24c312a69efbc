#include <algorithm>
#include <cmath>

#include "cpu/kernels.h"
#include "cpu/loops.h"
#include "cpu/pages.h"
#include "cpu/rows.h"

namespace mbrnnt::cpu {
namespace {

// What a head's gradients are made of, of up to kRows rows.
template <typename T>
struct Head {
  Column<T> shifts, factors;
  Column<T> own[kMaxArcs];  // for each class that is read: the weighed posteriors of its arcs
  Column<bool> visited;     // does a path come through?
};

// Nodes of a frame, at most kRows, from column u on. The gradients may be in place.
template <typename L>
void WriteNodes(const LogitGradientsStage<L>& s, const RowLoops<L>& loops, const Reads* all_reads,
                int64_t b, int64_t node, int64_t u, int num_rows, int64_t num_labels) {
  using T = Real<L>;
  const Emission& emission = s.emission;
  const int num_arcs = emission.num_arcs, num_heads = emission.num_heads;
  const int64_t row_size = emission.RowSize();
  const int32_t* labels = s.batch.LabelsOf(s.labels, b);
  const T cotangent = s.cotangents[b];
  const L* logits = s.logits + node * row_size;
  L* gradients = s.logit_gradients + node * row_size;

  Column<T> posteriors[kMaxArcs];
  ReadColumns(s.posteriors + node * num_arcs, num_arcs, num_rows, num_arcs, posteriors);
  for (int h = 0; h < num_heads; ++h) {
    const Reads& reads = all_reads[h];
    const int64_t size = emission.sizes[h];
    const GradientRule<T> rule = s.RuleOf(b, h);
    Head<T> head;
    Column<T> occupancy = {};
    std::fill(head.visited, head.visited + kRows, false);
    for (int i = 0; i < reads.size; ++i) std::fill(head.own[i], head.own[i] + kRows, T(0));
    for (int a = 0; a < num_arcs; ++a) {
      const int i = reads.of_arc[a];
      if (i < 0) continue;
      for (int r = 0; r < kRows; ++r) {
        const T posterior = rule.Weigh(posteriors[a][r], emission.IsLabel(a));
        occupancy[r] += posterior;
        head.visited[r] |= posterior != T(0);  // (the parts of a pull-back may cancel each other)
        head.own[i][r] += posterior;
      }
    }
    for (int r = 0; r < num_rows; ++r) {
      const LogNormalizer<T> normalizer = s.log_normalizers[(node + r) * num_heads + h];
      head.shifts[r] = normalizer.shift;
      head.factors[r] = rule.Factor(occupancy[r], normalizer);
    }
    if (HasFew(emission, h)) {
      Column<T> scores[kRows], own[kRows];
      ReadColumns(logits, row_size, num_rows, size, scores);
      std::fill(own[0], own[size], T(0));
      for (int i = 0; i < reads.size; ++i) {
        const int32_t v = emission.classes[h][reads.arcs[i]];
        std::copy(head.own[i], head.own[i] + kRows, own[v]);
      }
      loops.few_gradients(scores, size, head.shifts, head.factors, own, rule, cotangent);
      for (int r = 0; r < num_rows; ++r) {
        for (int64_t v = 0; v < size && !head.visited[r]; ++v) scores[v][r] = 0;
      }
      WriteColumns(scores, num_rows, size, gradients, row_size);
    } else {
      for (int r = 0; r < num_rows; ++r) {
        if (!head.visited[r]) {
          std::fill_n(gradients + r * row_size, size, FromReal<L>(T(0)));
          continue;
        }
        ReadClasses<T> read;
        for (int i = 0; i < reads.size; ++i) {
          const int a = reads.arcs[i];
          const int64_t v =
              h == 0 ? emission.TokenAt(a, labels, u + r, num_labels) : emission.classes[h][a];
          // An arc without a class is not there; its posterior is 0, or NaN like the others.
          if (v >= 0) read.Add(v, head.own[i][r]);
        }
        const L* row = logits + r * row_size;
        loops.gradient(row, size, row + row_size, head.shifts[r], head.factors[r], read, rule,
                       cotangent, gradients + r * row_size);
      }
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
  const Reads reads[kMaxHeads] = {Reads(s.emission, 0),
                                  Reads(s.emission, s.emission.num_heads - 1)};
  const int64_t columns = s.batch.columns, row_size = s.emission.RowSize();
  if (s.logit_gradients != s.logits) {
    const int64_t nodes = s.batch.size * s.batch.NodesPerUtterance();
    PreferHugePages(s.logit_gradients, nodes * row_size * int64_t{sizeof(L)});
  }
  parallel_for(s.batch.size * s.batch.max_frames, [&](int64_t begin, int64_t end) {
    for (int64_t frame = begin; frame < end; ++frame) {
      const int64_t b = frame / s.batch.max_frames, t = frame % s.batch.max_frames;
      const Extent extent = s.batch.ExtentOf(b);
      const int64_t inside = extent.ColumnsAt(t), node = frame * columns;
      for (int64_t u = 0; u < inside; u += kRows) {
        const int num_rows = static_cast<int>(std::min<int64_t>(kRows, inside - u));
        WriteNodes(s, loops, reads, b, node + u, u, num_rows, extent.labels);
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
