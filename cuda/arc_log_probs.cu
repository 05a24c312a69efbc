// Logits -> arc log-probabilities. Each logit is read once: the maximum and the sum
// of a row are kept online (Milakov and Gimelshein 2018, arXiv 1805.02867).
#include <cmath>

#include "cuda/row_exponential.h"
#include "cuda/rows.h"

namespace mbrnnt::cuda {
namespace {

// The sum of the exponentials of the logits taken in so far, shifted by the largest of them (but at
// least by -kHuge, so that it is a number). NaN drops out of the maximum, and stays in the sum.
template <typename T>
struct OnlineSum {
  using Exponential = RowExponential<T>;
  T largest = -Exponential::kHuge;
  Exponential exponential = Exponential::Usual(-Exponential::kHuge);
  T sum = 0;

  // Returns what turns the sum into one of exponentials that are shifted by `new_largest`.
  __device__ __forceinline__ T MoveTo(T new_largest) {
    const Exponential earlier = exponential;
    largest = new_largest;
    exponential = Exponential::Usual(new_largest);
    return exponential.Over(earlier);
  }
  // The maximum of all the packs first, then one factor for what was summed before.
  template <typename L, int kPacks>
  __device__ __forceinline__ void TakeIn(const Pack<L> (&packs)[kPacks]) {
    constexpr int kSize = Pack<L>::kSize, kNumbers = kPacks * kSize, kParts = 4;
    const T factor = MoveTo(Largest(largest, packs));
    T parts[kParts] = {};  // chains of additions that do not wait for each other
#pragma unroll
    for (int i = 0; i < kNumbers; ++i) {
      const T x = exponential(packs[i / kSize][i % kSize]);
      parts[i % kParts] = i < kParts ? x : parts[i % kParts] + x;
    }
    sum = sum * factor + ((parts[0] + parts[1]) + (parts[2] + parts[3]));
  }
  __device__ __forceinline__ void TakeIn(T x) {
    const T factor = MoveTo(Larger(largest, x));
    sum = sum * factor + exponential(x);
  }
};

// Of a row whose largest logit is -inf, +inf, or huge. Rare, and apart from what the others need.
template <typename L, int kLanes>
__device__ __attribute__((noinline)) LogNormalizer<Real<L>> UnusualLogNormalizer(
    const L* logits, unsigned size, LaneGroup<kLanes> group) {
  using T = Real<L>;
  T largest = -T(INFINITY), sum = 0;
#pragma unroll 1
  for (unsigned v = group.lane; v < size; v += kLanes) largest = Larger(largest, Widen(logits[v]));
  const T shift = Shift(group.Max(largest));
  const auto exponential = RowExponential<T>::Huge(shift);
#pragma unroll 1
  for (unsigned v = group.lane; v < size; v += kLanes) sum += exponential(Widen(logits[v]));
  return {shift, LogSum(group.Sum(sum))};
}

// Of `size` logits that follow each other in memory.
template <typename L, int kLanes>
__device__ __forceinline__ LogNormalizer<Real<L>> LogNormalizerOf(const L* logits, unsigned size,
                                                                  LaneGroup<kLanes> group) {
  using T = Real<L>;
  constexpr unsigned kPack = Pack<L>::kSize;
  const auto parts = RowParts<L>::Of(logits, size);
  OnlineSum<T> row;
#pragma unroll 1
  for (unsigned i = group.lane; i < parts.singles; i += kLanes) {
    row.TakeIn(Widen(logits[parts.Single(i)]));
  }
  ForEachRound(
      logits + parts.head + group.lane * kPack, parts.packs,
      Pack<L>::Filled(-T(INFINITY)),  // adds nothing
      group, [&](const Pack<L>(&packs)[kRound<L>]) { row.TakeIn(packs); },
      [&](const Pack<L>(&packs)[kRound<L>], unsigned left) {
#pragma unroll
        for (unsigned k = 0; k < kRound<L>; ++k) {
          const Pack<L> pack[1] = {packs[k]};
          if (k * kLanes < left) row.TakeIn(pack);
        }
      });
  const T largest = group.Max(row.largest);
  if (!(fabs(largest) < RowExponential<T>::kHuge)) {
    return UnusualLogNormalizer(logits, size, group);
  }
  const T factor = row.MoveTo(largest);
  return {largest, row.exponential.LogSum(largest, group.Sum(row.sum * factor))};
}

// Blocks that a multiprocessor holds: as many as have registers enough not to spill.
template <typename L>
constexpr int kBlocks = sizeof(L) == 8   ? 2
                        : ptx::kFromSm80 ? 4
                                         : 3;

template <typename L, int kLanes>
__global__ void __launch_bounds__(kRowThreads, kBlocks<L>)
    ArcLogProbsKernel(const __grid_constant__ ArcLogProbsStage<L> s) {
  using T = Real<L>;
  const auto group = LaneGroup<kLanes>::OfThisThread();
  const auto arc = LaneArc::Of(s.arc_classes, group.lane);
  const auto num_classes = static_cast<unsigned>(s.num_classes);
  const unsigned num_arcs = s.arc_classes.size;
  ForEachFrame(s.batch, [&](const FramePlace& frame) {
    const ColumnsOf labels(s.batch.LabelsOf(s.labels, frame.b));
    const ColumnsOf rows(s.logits + frame.node * num_classes, num_classes);
    const ColumnsOf arc_log_probs(s.arc_log_probs + frame.node * num_arcs + group.lane, num_arcs);
    const ColumnsOf log_normalizers(s.log_normalizers + frame.node);
    ForEachColumn<kLanes>(s.batch, [&](unsigned u, unsigned) {
      auto normalizer = LogNormalizer<T>::None();
      T log_prob = -T(INFINITY);  // of an arc that has no label left, and in padding
      if (u < frame.inside) {
        const L* logits = rows[u];
        const bool has_label = arc.IsLabel() && u + 1 < frame.inside;
        const int32_t v = has_label ? *labels[u] : arc.fixed;
        normalizer = LogNormalizerOf(logits, num_classes, group);
        if (has_label || arc.fixed >= 0) {
          const bool has_class = static_cast<unsigned>(v) < num_classes;
          log_prob = ArcLogProb(has_class ? Widen(logits[v]) : T(NAN), normalizer, s.sigma);
        }
      }
      if (arc.Exists()) *arc_log_probs[u] = log_prob;
      if (group.lane == 0) *log_normalizers[u] = normalizer;
    });
  });
}

}  // namespace

template <typename L>
Status ComputeArcLogProbs(const ArcLogProbsStage<L>& stage, cudaStream_t stream) {
  return LaunchOverRows("ArcLogProbsKernel", ArcLogProbsKernel<L, kFewLanes>,
                        ArcLogProbsKernel<L, kWarp>, stage, stage.num_classes * int64_t{sizeof(L)},
                        stream);
}

template Status ComputeArcLogProbs(const ArcLogProbsStage<float>&, cudaStream_t);
template Status ComputeArcLogProbs(const ArcLogProbsStage<double>&, cudaStream_t);
template Status ComputeArcLogProbs(const ArcLogProbsStage<BFloat16>&, cudaStream_t);
template Status ComputeArcLogProbs(const ArcLogProbsStage<Float16>&, cudaStream_t);

}  // namespace mbrnnt::cuda
