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

// Of logits whose largest is -inf, +inf, or huge, or of a second head with more of them than lanes.
// Rare, and apart from what the others need.
template <typename L, int kLanes>
__device__ __attribute__((noinline)) LogNormalizer<Real<L>> UnusualLogNormalizer(
    const L* logits, unsigned size, LaneGroup<kLanes> group) {
  using T = Real<L>;
  T largest = -T(INFINITY), sum = 0;
#pragma unroll 1
  for (unsigned v = group.lane; v < size; v += kLanes) largest = Larger(largest, Widen(logits[v]));
  const T shift = Shift(group.Max(largest));
  const auto exponential = RowExponential<T>::Of(shift);
#pragma unroll 1
  for (unsigned v = group.lane; v < size; v += kLanes) sum += exponential(Widen(logits[v]));
  return {shift, exponential.LogSum(shift, group.Sum(sum))};
}

// What this lane takes in of `size` logits that follow each other in memory.
template <typename L, int kLanes>
__device__ __forceinline__ OnlineSum<Real<L>> SumOfLane(const L* logits, unsigned size,
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
  return row;
}

template <typename T>
__device__ __forceinline__ bool IsUsual(T largest) {
  return fabs(largest) < RowExponential<T>::kHuge;
}

template <typename L, int kLanes>
__device__ __forceinline__ LogNormalizer<Real<L>> LogNormalizerOf(const L* logits, unsigned size,
                                                                  LaneGroup<kLanes> group) {
  auto row = SumOfLane(logits, size, group);
  const auto largest = group.Max(row.largest);
  if (!IsUsual(largest)) return UnusualLogNormalizer(logits, size, group);
  const auto factor = row.MoveTo(largest);
  return {largest, row.exponential.LogSum(largest, group.Sum(row.sum * factor))};
}

// Of a row's two heads, and the second one's logit that this lane's arc reads.
//
// `own`: the second head's logit of this lane, -inf if there is none. What is left to do when each
// lane has taken in its part of the first head is done for both at a time, in one half of the lanes
// each.
template <typename L, int kLanes>
struct TwoHeads {
  using T = Real<L>;
  LogNormalizer<T> first, second;
  T second_logit;

  __device__ __forceinline__ TwoHeads(const L* logits, unsigned first_size, unsigned second_size,
                                      T own, LaneArc arc, LaneGroup<kLanes> group) {
    using Exponential = RowExponential<T>;
    auto row = SumOfLane(logits, first_size, group);
    first.shift = group.Max(row.largest);
    second.shift = group.Max(Larger(own, -Exponential::kHuge));  // of a NaN and a number the number
    if (IsUsual(first.shift) && IsUsual(second.shift) && second_size <= kLanes) {
      const T factor = row.MoveTo(first.shift);
      const T sum = group.SumOfEither(row.sum * factor, Exponential::Usual(second.shift)(own));
      const T shift = group.InUpperHalf() ? second.shift : first.shift;
      const T log_sum = Exponential::Usual(shift).LogSum(shift, sum);
      first.log_sum = group.From(log_sum, 0);
      second.log_sum = group.From(log_sum, group.kHalf);
      second_logit = group.From(own, arc.fixed);
    } else {
      const L* others = logits + first_size;
      first = UnusualLogNormalizer(logits, first_size, group);
      second = UnusualLogNormalizer(others, second_size, group);
      second_logit = arc.ReadsNothing() ? T(0) : Widen(others[arc.fixed]);
    }
  }
};

// Blocks that a multiprocessor holds: as many as have registers enough not to spill.
template <typename L>
constexpr int kBlocks = sizeof(L) == 8   ? 2
                        : ptx::kFromSm80 ? 4
                                         : 3;

template <typename L, int kLanes, int kHeads>
__global__ void __launch_bounds__(kRowThreads, kBlocks<L>)
    ArcLogProbsKernel(const __grid_constant__ ArcLogProbsStage<L> s) {
  using T = Real<L>;
  const auto group = LaneGroup<kLanes>::OfThisThread();
  const auto arc = LaneArc::Of(s.emission, 0, group.lane);
  const auto second = LaneArc::Of(s.emission, kHeads - 1, group.lane);
  const T unread = ptx::Kept(arc.ReadsNothing() ? T(0) : T(NAN));  // where there is no such class
  const unsigned num_arcs = s.emission.num_arcs;
  const auto size = static_cast<unsigned>(s.emission.sizes[0]);
  const unsigned second_size = kHeads > 1 ? static_cast<unsigned>(s.emission.sizes[1]) : 0;
  const unsigned row_size = size + second_size;
  constexpr unsigned kOfHead = kLanes / kHeads;  // lanes, of which the first writes
  ForEachFrame(s.batch, [&](const FramePlace& frame) {
    const T sigma = s.sigmas[frame.b];
    const unsigned has_arc = ptx::Kept(frame.inside - arc.IsLabel());  // in so many columns
    const ColumnsOf labels(s.batch.LabelsOf(s.labels, frame.b));
    const ColumnsOf rows(s.logits + frame.node * row_size, row_size);
    const ColumnsOf arc_log_probs(s.arc_log_probs + frame.node * num_arcs + group.lane, num_arcs);
    const ColumnsOf log_normalizers(s.log_normalizers + frame.node * kHeads + group.lane / kOfHead,
                                    kHeads);
    ForEachColumn<kLanes>(s.batch, [&](unsigned u, unsigned) {
      auto normalizer = LogNormalizer<T>::None();
      T log_prob = -T(INFINITY);  // of an arc that has no label left, and in padding
      if (u < frame.inside) {
        const L* logits = rows[u];
        int32_t v = arc.fixed;
        if (arc.IsLabel() && u < has_arc) v = *labels[u];
        LogNormalizer<T> first, of_second;
        T second_logit;  // that the arc reads
        if constexpr (kHeads == 1) {
          first = normalizer = LogNormalizerOf(logits, size, group);
        } else {
          const T own = group.lane < second_size ? Widen(logits[size + group.lane]) : -T(INFINITY);
          const TwoHeads heads(logits, size, second_size, own, second, group);
          first = heads.first;
          normalizer = group.InUpperHalf() ? heads.second : first;
          of_second = heads.second;
          second_logit = heads.second_logit;
        }
        if (u < has_arc) {
          log_prob = unread;
          if (static_cast<unsigned>(v) < size) log_prob = LogProb(Widen(logits[v]), first);
          if (kHeads > 1 && !second.ReadsNothing()) log_prob += LogProb(second_logit, of_second);
          log_prob -= sigma;
        }
      }
      if (group.lane < num_arcs) *arc_log_probs[u] = log_prob;
      if (group.lane % kOfHead == 0) *log_normalizers[u] = normalizer;
    });
  });
}

}  // namespace

template <typename L>
Status ComputeArcLogProbs(const ArcLogProbsStage<L>& stage, cudaStream_t stream) {
  constexpr auto kName = "ArcLogProbsKernel";
  return LaunchOverRows<L>(kName, stage, [&](auto lanes, auto heads) {
    return Launch(kName, ArcLogProbsKernel<L, lanes, heads>, FrameGrid<lanes>(stage.batch), stream,
                  stage);
  });
}

template Status ComputeArcLogProbs(const ArcLogProbsStage<float>&, cudaStream_t);
template Status ComputeArcLogProbs(const ArcLogProbsStage<double>&, cudaStream_t);
template Status ComputeArcLogProbs(const ArcLogProbsStage<BFloat16>&, cudaStream_t);
template Status ComputeArcLogProbs(const ArcLogProbsStage<Float16>&, cudaStream_t);

}  // namespace mbrnnt::cuda
