// Logits -> arc log-probabilities. Each logit is read once: the maximum and the sum
// of a row are kept online (Milakov and Gimelshein 2018, arXiv 1805.02867).
#include <cmath>

#include "cuda/device.h"

namespace mbrnnt::cuda {
namespace {

// log(sum(exp(x))) of the numbers taken in so far.
template <typename T>
struct OnlineLogSumExp {
  T maximum = -T(INFINITY);
  T sum = T(0);  // of exp(x - Shift(maximum))

  __device__ __forceinline__ void MoveTo(T new_maximum) {
    sum *= Exp(maximum - Shift(new_maximum));
    maximum = new_maximum;
  }
  // Takes in number(0) to number(kCount - 1), each of which it asks for twice.
  template <int kCount, typename Number>
  __device__ __forceinline__ void TakeIn(const Number& number) {
    T largest = maximum;
#pragma unroll
    for (int i = 0; i < kCount; ++i) largest = number(i) > largest ? number(i) : largest;
    MoveTo(largest);
    const T shift = Shift(largest);
#pragma unroll
    for (int i = 0; i < kCount; ++i) sum += Exp(number(i) - shift);
  }
};

// Loads `kCount` packs before it looks at any, to have as many on their way.
template <int kCount, int kLanes, typename L>
__device__ __forceinline__ void TakeInPacks(const L* first, OnlineLogSumExp<Real<L>>& row) {
  constexpr int kSize = Pack<L>::kSize;
  Pack<L> packs[kCount];
#pragma unroll
  for (int i = 0; i < kCount; ++i) packs[i] = LoadPack(first + i * kLanes * kSize);
  row.template TakeIn<kCount * kSize>(
      [&](int i) { return Widen(packs[i / kSize].elements[i % kSize]); });
}

template <typename L, int kLanes>
__device__ __forceinline__ LogNormalizer<Real<L>> RowLogNormalizer(const L* logits, int num_classes,
                                                                   LaneGroup<kLanes> group) {
  constexpr int kSize = Pack<L>::kSize;
  const RowParts parts = RowParts::Of(logits, logits, num_classes);
  OnlineLogSumExp<Real<L>> row;
  const auto take_in_single = [&](int begin, int end) {
    for (int v = begin + group.lane; v < end; v += kLanes) {
      row.template TakeIn<1>([&](int) { return Widen(logits[v]); });
    }
  };
  take_in_single(0, parts.head);
  const L* packs = logits + parts.head;
  int p = group.lane;
  for (; p + 3 * kLanes < parts.packs; p += 4 * kLanes) {
    TakeInPacks<4, kLanes>(packs + p * kSize, row);
  }
  for (; p + kLanes < parts.packs; p += 2 * kLanes) {
    TakeInPacks<2, kLanes>(packs + p * kSize, row);
  }
  for (; p < parts.packs; p += kLanes) TakeInPacks<1, kLanes>(packs + p * kSize, row);
  take_in_single(parts.tail, num_classes);

  row.MoveTo(group.Max(row.maximum));
  return {Shift(row.maximum), LogSum(group.Sum(row.sum))};
}

template <typename L, int kLanes>
__global__ void __launch_bounds__(256, 2) ArcLogProbsKernel(const ArcLogProbsStage<L> s) {
  using T = Real<L>;
  const auto group = LaneGroup<kLanes>::OfThisThread();
  const int num_classes = static_cast<int>(s.num_classes), num_arcs = s.arc_classes.size;
  ForEachNode<kLanes>(s.batch, [&](const NodePlace& at) {
    T* arc_log_probs = s.arc_log_probs + at.node * num_arcs;
    auto normalizer = LogNormalizer<T>::None();
    if (at.IsInside()) {
      const L* logits = s.logits + at.node * s.num_classes;
      const int32_t* labels = s.batch.LabelsOf(s.labels, at.b);
      normalizer = RowLogNormalizer(logits, num_classes, group);
      for (int a = group.lane; a < num_arcs; a += kLanes) {
        const int64_t v = s.arc_classes.ClassAt(a, labels, at.u, at.extent.labels, s.num_classes);
        arc_log_probs[a] = ArcLogProb(logits, v, normalizer, s.sigma);
      }
    } else {
      for (int a = group.lane; a < num_arcs; a += kLanes) arc_log_probs[a] = -T(INFINITY);
    }
    if (group.lane == 0) s.log_normalizers[at.node] = normalizer;
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
