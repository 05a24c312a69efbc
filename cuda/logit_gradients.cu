// Posteriors -> logit gradients: one read and one write of the row, which may be the
// same memory, and one exponential an element.
#include "cuda/device.h"

namespace mbrnnt::cuda {
namespace {

// A row's gradient, for one element.
template <typename L>
struct RowGradient {
  using T = Real<L>;
  GradientRule<T> rule;
  T shift, factor, cotangent;

  // own: of the arcs that read its class.
  __device__ __forceinline__ L operator()(L logit, T own = T(0)) const {
    return Narrow<L>(rule.LogitGradient(Exp(Widen(logit) - shift), factor, own, cotangent));
  }
};

// Loads `kCount` packs before it stores any: the compiler must take the two rows for one.
template <int kCount, int kLanes, typename L>
__device__ __forceinline__ void MapPacks(const L* from, L* to, const RowGradient<L>& gradient) {
  constexpr int kSize = Pack<L>::kSize;
  Pack<L> packs[kCount];
#pragma unroll
  for (int i = 0; i < kCount; ++i) packs[i] = LoadPack(from + i * kLanes * kSize);
#pragma unroll
  for (int i = 0; i < kCount * kSize; ++i) {
    L& element = packs[i / kSize].elements[i % kSize];
    element = gradient(element);
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) StorePack(to + i * kLanes * kSize, packs[i]);
}

template <typename L, int kLanes>
__device__ __forceinline__ void MapRow(const L* logits, L* gradients, int num_classes,
                                       const RowGradient<L>& gradient, LaneGroup<kLanes> group) {
  constexpr int kSize = Pack<L>::kSize;
  const RowParts parts = RowParts::Of(logits, gradients, num_classes);
  const auto map_single = [&](int begin, int end) {
    for (int v = begin + group.lane; v < end; v += kLanes) gradients[v] = gradient(logits[v]);
  };
  map_single(0, parts.head);
  const L* from = logits + parts.head;
  L* to = gradients + parts.head;
  int p = group.lane;
  for (; p + 3 * kLanes < parts.packs; p += 4 * kLanes) {
    MapPacks<4, kLanes>(from + p * kSize, to + p * kSize, gradient);
  }
  for (; p + kLanes < parts.packs; p += 2 * kLanes) {
    MapPacks<2, kLanes>(from + p * kSize, to + p * kSize, gradient);
  }
  for (; p < parts.packs; p += kLanes) {
    MapPacks<1, kLanes>(from + p * kSize, to + p * kSize, gradient);
  }
  map_single(parts.tail, num_classes);
}

template <typename L, int kLanes>
__device__ __forceinline__ void FillRow(L* gradients, int num_classes, Real<L> value,
                                        LaneGroup<kLanes> group) {
  constexpr int kSize = Pack<L>::kSize;
  const L element = Narrow<L>(value);
  Pack<L> pack;
#pragma unroll
  for (int i = 0; i < kSize; ++i) pack.elements[i] = element;
  const RowParts parts = RowParts::Of(gradients, gradients, num_classes);
  for (int v = group.lane; v < parts.head; v += kLanes) gradients[v] = element;
  for (int p = group.lane; p < parts.packs; p += kLanes) {
    StorePack(gradients + parts.head + p * kSize, pack);
  }
  for (int v = parts.tail + group.lane; v < num_classes; v += kLanes) {
    gradients[v] = element;
  }
}

// One node of the lattice. The classes that its arcs read get their share last; what
// that needs of their logits is looked at first, since the row may be overwritten.
template <typename L, int kLanes>
__device__ __forceinline__ void WriteRow(const LogitGradientsStage<L>& s, int64_t node,
                                         const int32_t* labels, int64_t u, int64_t num_labels,
                                         Real<L> cotangent, LaneGroup<kLanes> group) {
  using T = Real<L>;
  const L* logits = s.logits + node * s.num_classes;
  L* gradients = s.logit_gradients + node * s.num_classes;
  const T* posteriors = s.posteriors + node * s.arc_classes.size;
  const int num_classes = static_cast<int>(s.num_classes), num_arcs = s.arc_classes.size;

  T occupancy = 0;
  bool visited = false;
  for (int a = 0; a < num_arcs; ++a) {
    const T posterior = s.rule.Weigh(posteriors[a], s.arc_classes.IsLabel(a));
    occupancy += posterior;
    visited |= posterior != T(0);
  }
  if (!visited) {  // no path comes through: nothing to read
    FillRow(gradients, num_classes, T(0), group);
    return;
  }
  const LogNormalizer<T> normalizer = s.log_normalizers[node];
  const RowGradient<L> gradient{s.rule, normalizer.shift, s.rule.Factor(occupancy, normalizer),
                                cotangent};

  constexpr int kArcsPerLane = kMaxArcs / kLanes;
  int classes[kArcsPerLane];
  L of_classes[kArcsPerLane];
#pragma unroll
  for (int i = 0; i < kArcsPerLane; ++i) {
    const int a = group.lane + i * kLanes;
    classes[i] = -1;
    if (a >= num_arcs) continue;
    // An arc without a class is not there; its posterior is 0, or NaN like the others.
    const int64_t v = s.arc_classes.ClassAt(a, labels, u, num_labels, s.num_classes);
    if (v < 0) continue;
    T own = 0;  // of all arcs that read this class: they may share one
    for (int other = 0; other < num_arcs; ++other) {
      if (s.arc_classes.ClassAt(other, labels, u, num_labels, s.num_classes) != v) continue;
      own += s.rule.Weigh(posteriors[other], s.arc_classes.IsLabel(other));
    }
    classes[i] = static_cast<int>(v);
    of_classes[i] = gradient(logits[v], own);
  }
  group.Sync();
  MapRow(logits, gradients, num_classes, gradient, group);
  group.Sync();
#pragma unroll
  for (int i = 0; i < kArcsPerLane; ++i) {
    if (classes[i] >= 0) gradients[classes[i]] = of_classes[i];
  }
}

template <typename L, int kLanes>
__global__ void __launch_bounds__(256, 2) LogitGradientsKernel(const LogitGradientsStage<L> s) {
  using T = Real<L>;
  const auto group = LaneGroup<kLanes>::OfThisThread();
  ForEachNode<kLanes>(s.batch, [&](const NodePlace& at) {
    if (at.IsInside()) {
      WriteRow(s, at.node, s.batch.LabelsOf(s.labels, at.b), at.u, at.extent.labels,
               s.cotangents[at.b], group);
    } else {
      FillRow(s.logit_gradients + at.node * s.num_classes, static_cast<int>(s.num_classes),
              at.extent.valid ? T(0) : T(NAN), group);
    }
  });
}

}  // namespace

template <typename L>
Status ComputeLogitGradients(const LogitGradientsStage<L>& stage, cudaStream_t stream) {
  return LaunchOverRows("LogitGradientsKernel", LogitGradientsKernel<L, kFewLanes>,
                        LogitGradientsKernel<L, kWarp>, stage,
                        stage.num_classes * int64_t{sizeof(L)}, stream);
}

template Status ComputeLogitGradients(const LogitGradientsStage<float>&, cudaStream_t);
template Status ComputeLogitGradients(const LogitGradientsStage<double>&, cudaStream_t);
template Status ComputeLogitGradients(const LogitGradientsStage<BFloat16>&, cudaStream_t);
template Status ComputeLogitGradients(const LogitGradientsStage<Float16>&, cudaStream_t);

}  // namespace mbrnnt::cuda
