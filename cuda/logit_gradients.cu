// Posteriors -> logit gradients: one read and one write of the row, which may be the
// same memory, and one exponential an element.
#include "cuda/row_exponential.h"
#include "cuda/rows.h"

namespace mbrnnt::cuda {
namespace {

// A row's gradient, by GradientRule. `kClamp`: whether it has a clamp.
template <typename T, bool kClamp>
struct RowGradient {
  RowExponential<T> exponential;
  T factor;  // of exponentials, to probability times occupancy
  typename GradientRule<T>::Folded folded;

  static __device__ __forceinline__ RowGradient Of(const GradientRule<T>& rule, T occupancy,
                                                   LogNormalizer<T> normalizer, T cotangent) {
    const auto exponential = RowExponential<T>::Of(normalizer.shift);
    const T factor = occupancy * exponential.Reciprocal(normalizer);
    return {exponential, factor, rule.Fold(factor, cotangent)};
  }
  // Of a class that no arc reads.
  __device__ __forceinline__ T operator()(T logit) const {
    const T gradient = exponential(logit) * folded.factor;
    return kClamp ? Smaller(Larger(gradient, -folded.bound), folded.bound) : gradient;
  }
  // Of a class whose arcs have the share `own` of the occupancy.
  __device__ __forceinline__ T OfArcs(T logit, T own, const GradientRule<T>& rule,
                                      T cotangent) const {
    const GradientRule<T> clamped_or_not{rule.label_weight, kClamp ? rule.clamp : T(0)};
    return clamped_or_not.LogitGradient(exponential(logit), factor, own, cotangent);
  }
};

// Of `size` logits that follow each other in memory. A round of packs is loaded before any of them
// is stored: the compiler must take the two rows for one.
template <typename L, bool kClamp, int kLanes>
__device__ __forceinline__ void Map(const L* from, L* to, unsigned size, unsigned all_singles,
                                    const RowGradient<Real<L>, kClamp>& gradient,
                                    LaneGroup<kLanes> group) {
  const auto parts = RowParts<L>::Of(to, size, all_singles);
#pragma unroll 1
  for (unsigned i = group.lane; i < parts.singles; i += kLanes) {
    const unsigned v = parts.Single(i);
    to[v] = Narrow<L>(gradient(Widen(from[v])));
  }
  const auto map = [&](const Pack<L>& pack, int k) {
    Pack<L>::Of([&](int i) { return gradient(pack[i]); }).Store(to + k * kStep<L, kLanes>);
  };
  const unsigned first = parts.head + group.lane * Pack<L>::kSize;
  to += first;
  ForEachRound(
      from + first, parts.packs, Pack<L>{}, group,
      [&](const Pack<L>(&packs)[kRound<L>]) {
#pragma unroll
        for (int k = 0; k < kRound<L>; ++k) map(packs[k], k);
        to += kRound<L> * kStep<L, kLanes>;
      },
      [&](const Pack<L>(&packs)[kRound<L>], unsigned left) {
#pragma unroll
        for (int k = 0; k < kRound<L>; ++k) {
          if (group.lane + k * kLanes < left) map(packs[k], k);
        }
      });
}

template <typename L, int kLanes>
__device__ __forceinline__ void Fill(L* to, unsigned size, Real<L> value, LaneGroup<kLanes> group) {
  const auto parts = RowParts<L>::Of(to, size);
#pragma unroll 1
  for (unsigned i = group.lane; i < parts.singles; i += kLanes) {
    to[parts.Single(i)] = Narrow<L>(value);
  }
  const auto pack = Pack<L>::Filled(value);
#pragma unroll 1
  for (unsigned p = group.lane; p < parts.packs; p += kLanes) {
    pack.Store(to + parts.head + p * Pack<L>::kSize);
  }
}

// What the arcs that read class v share of the occupancy. Every lane of them adds up the same.
template <typename T, int kLanes>
__device__ __forceinline__ T SumOfClass(T own, int32_t v, int num_arcs, LaneGroup<kLanes> group) {
  T sum = 0;
  int a = 0;
#pragma unroll 1
  do {
    const T others = group.From(own, a);
    if (group.From(v, a) == v) sum += others;
  } while (++a < num_arcs);
  return sum;
}

// Blocks that a multiprocessor holds: as many as have registers enough not to spill.
template <typename L>
constexpr int kBlocks = sizeof(L) == 8 ? 1 : 3;

template <typename L, int kLanes, bool kClamp>
__global__ void __launch_bounds__(kRowThreads, kBlocks<L>)
    LogitGradientsKernel(const __grid_constant__ LogitGradientsStage<L> s) {
  using T = Real<L>;
  const auto group = LaneGroup<kLanes>::OfThisThread();
  const auto arc = LaneArc::Of(s.arc_classes, group.lane);
  const bool share_classes =
      group.Any(SumOfClass(1, arc.fixed, s.arc_classes.size, group) > 1 && arc.Exists());
  const T weight = ptx::Kept(s.rule.Weigh(T(1), arc.IsLabel()));
  const auto num_classes = static_cast<unsigned>(s.num_classes);
  const unsigned num_arcs = s.arc_classes.size;
  const auto apart =
      reinterpret_cast<uintptr_t>(s.logits) ^ reinterpret_cast<uintptr_t>(s.logit_gradients);
  const unsigned all_singles = ptx::Kept(apart % 16 == 0 ? 0 : RowParts<L>::kAllSingles);
  ForEachFrame(s.batch, [&](const FramePlace& frame) {
    const T cotangent = s.cotangents[frame.b], outside = frame.valid ? T(0) : T(NAN);
    const ColumnsOf labels(s.batch.LabelsOf(s.labels, frame.b));
    const ColumnsOf rows(s.logits + frame.node * num_classes, num_classes);
    const ColumnsOf gradients(s.logit_gradients + frame.node * num_classes, num_classes);
    // Lanes without an arc look at the last one's.
    const ColumnsOf posteriors(s.posteriors + frame.node * num_arcs + min(group.lane, num_arcs - 1),
                               num_arcs);
    const ColumnsOf log_normalizers(s.log_normalizers + frame.node);
    // What a row starts with is fetched one row ahead: otherwise its posteriors, its label, the
    // label's logit and its packs would wait for memory one after the other.
    struct Start {
      T posterior;
      LogNormalizer<T> normalizer;
      int32_t label;
    };
    const auto fetch = [&](unsigned u) {
      Start start{T(0), LogNormalizer<T>::None(), LaneArc::kNoLabel};
      if (u < frame.inside) {
        start.normalizer = *log_normalizers[u];
        start.posterior = *posteriors[u];
        if (u + 1 < frame.inside) start.label = *labels[u];
      }
      return start;
    };
    Start next = fetch(threadIdx.x / kLanes);
    ForEachColumn<kLanes>(s.batch, [&](unsigned u, unsigned next_u) {
      const Start start = next;
      next = fetch(next_u);
      T own = arc.Exists() ? weight * start.posterior : T(0);
      if (!group.Any(own != T(0))) {  // padding, or no path comes through: nothing to read
        Fill(gradients[u], num_classes, outside, group);
        return;
      }
      const int32_t v = arc.IsLabel() ? start.label : arc.fixed;
      // The logit that this lane's arc reads, before anyone overwrites it; it is looked at when the
      // row is done. An arc without a class is not there; its posterior is 0, or NaN like the
      // others.
      const L* from = rows[u];
      const bool has_class = static_cast<unsigned>(v) < num_classes;
      L logit{};
      if (has_class) logit = from[v];
      const T occupancy = group.Sum(own);
      // A label that is a blank's class shares it with the blank.
      if (group.Any(share_classes || arc.fixed == start.label)) {
        own = SumOfClass(own, v, num_arcs, group);
      }
      const auto gradient =
          RowGradient<T, kClamp>::Of(s.rule, occupancy, start.normalizer, cotangent);
      L* to = gradients[u];
      group.Sync();  // every lane has its logit (a shuffle or a vote orders no accesses to memory)
      Map(from, to, num_classes, all_singles, gradient, group);
      group.Sync();  // the row is written, and the classes of its arcs go over it
      if (has_class) to[v] = Narrow<L>(gradient.OfArcs(Widen(logit), own, s.rule, cotangent));
    });
  });
}

template <typename L, int kLanes>
auto* KernelFor(const LogitGradientsStage<L>& stage) {
  const bool clamps = stage.rule.clamp > Real<L>(0);
  return clamps ? LogitGradientsKernel<L, kLanes, true> : LogitGradientsKernel<L, kLanes, false>;
}

}  // namespace

template <typename L>
Status ComputeLogitGradients(const LogitGradientsStage<L>& stage, cudaStream_t stream) {
  return LaunchOverRows("LogitGradientsKernel", KernelFor<L, kFewLanes>(stage),
                        KernelFor<L, kWarp>(stage), stage, stage.num_classes * int64_t{sizeof(L)},
                        stream);
}

template Status ComputeLogitGradients(const LogitGradientsStage<float>&, cudaStream_t);
template Status ComputeLogitGradients(const LogitGradientsStage<double>&, cudaStream_t);
template Status ComputeLogitGradients(const LogitGradientsStage<BFloat16>&, cudaStream_t);
template Status ComputeLogitGradients(const LogitGradientsStage<Float16>&, cudaStream_t);

}  // namespace mbrnnt::cuda
