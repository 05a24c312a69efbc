// Posteriors -> logit gradients: one read and one write of the row, which may be the
// same memory, and one exponential an element.
#include "cuda/roles.h"
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
  // That of a lane of the group, for classes that no arc reads.
  template <typename Group>
  __device__ __forceinline__ RowGradient From(int lane, const Group& group) const {
    return {exponential.From(lane, group),
            factor,
            {group.From(folded.factor, lane), kClamp ? group.From(folded.bound, lane) : T(0)}};
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

// What this lane's arc brings to a head: its weighed posterior, 0 if it does not read the head, and
// the class that it reads.
template <typename T>
struct Share {
  T own;
  int32_t v;
};

// What the arcs that read `which` class bring together. Every lane of them adds up the same.
template <typename T, int kLanes>
__device__ __forceinline__ T SumOfClass(int32_t which, Share<T> share, int num_arcs,
                                        LaneGroup<kLanes> group) {
  T sum = 0;
  int a = 0;
#pragma unroll 1
  do {
    const T others = group.From(share.own, a);
    if (group.From(share.v, a) == which) sum += others;
  } while (++a < num_arcs);
  return sum;
}

// `kClamp`: something may have a clamp. What has none is clamped to all numbers.
template <bool kClamp, typename L>
__device__ __forceinline__ GradientRule<Real<L>> RuleOf(const LogitGradientsStage<L>& s, int64_t b,
                                                        int head) {
  using T = Real<L>;
  auto rule = s.RuleOf(b, head);
  if (!kClamp) rule.clamp = T(0);
  if (kClamp && !(rule.clamp > T(0))) rule.clamp = T(INFINITY);
  return rule;
}

// The second head's gradient at a node, whatever its arcs read, and what lane a's arc a brings to
// the first. For arcs that are not laid out in halves, and for a node where only label arcs have a
// posterior and they weigh nothing: by single elements, and apart from what the others need.
template <typename L, bool kClamp, int kLanes>
__device__ __attribute__((noinline)) Share<Real<L>> SecondHead(const LogitGradientsStage<L>& s,
                                                               int64_t b, int64_t t, unsigned u,
                                                               int32_t label,
                                                               LaneGroup<kLanes> group) {
  using T = Real<L>;
  const auto rule = RuleOf<kClamp>(s, b, 1);
  const T cotangent = s.cotangents[b];
  const int64_t node = (b * s.batch.max_frames + t) * s.batch.columns + u;
  const int num_arcs = s.emission.num_arcs;
  const auto first = LaneArc::Of(s.emission, 0, group.lane);
  const auto second = LaneArc::Of(s.emission, 1, group.lane);
  const bool exists = group.lane < static_cast<unsigned>(num_arcs);
  const T posterior = exists ? s.posteriors[node * num_arcs + group.lane] : T(0);

  const Share<T> share{second.ReadsNothing() ? T(0) : posterior, second.fixed};
  const bool any = group.Any(share.own != T(0));
  const auto gradient = RowGradient<T, kClamp>::Of(rule, group.Sum(share.own),
                                                   s.log_normalizers[2 * node + 1], cotangent);
  const auto size = static_cast<unsigned>(s.emission.sizes[1]);
  const int64_t start = node * s.emission.RowSize() + s.emission.sizes[0];
#pragma unroll 1
  for (unsigned v = group.lane; v - group.lane < size; v += kLanes) {
    const T of_class = SumOfClass(static_cast<int32_t>(v), share, num_arcs, group);
    if (v >= size) continue;
    T x = 0;
    if (any) x = gradient.OfArcs(Widen(s.logits[start + v]), of_class, rule, cotangent);
    s.logit_gradients[start + v] = Narrow<L>(x);
  }
  const T weighed = s.RuleOf(b, 0).Weigh(posterior, first.IsLabel());
  return {first.ReadsNothing() ? T(0) : weighed,
          first.IsLabel() && label < s.emission.sizes[0] ? label : first.fixed};
}

// Blocks that a multiprocessor holds: as many as have registers enough not to spill.
template <typename L>
constexpr int kBlocks = sizeof(L) == 8 ? 1 : 3;

template <typename L, int kLanes, int kHeads, bool kClamp>
__global__ void __launch_bounds__(kRowThreads, kBlocks<L>)
    LogitGradientsKernel(const __grid_constant__ LogitGradientsStage<L> s,
                         const __grid_constant__ Roles roles) {
  using T = Real<L>;
  const auto group = LaneGroup<kLanes>::OfThisThread();
  const int arc = roles.arcs[group.lane];
  const int32_t fixed = roles.classes[group.lane];
  const bool reads_label = fixed == kNextLabel;
  const unsigned num_arcs = s.emission.num_arcs;
  const auto size = static_cast<unsigned>(s.emission.sizes[0]);  // of the first head
  const unsigned row_size = kHeads == 1 ? size : size + static_cast<unsigned>(s.emission.sizes[1]);
  const unsigned limit = kHeads == 1 ? size : ptx::Kept(reads_label ? size : row_size);
  const auto apart =
      reinterpret_cast<uintptr_t>(s.logits) ^ reinterpret_cast<uintptr_t>(s.logit_gradients);
  const unsigned all_singles = ptx::Kept(apart % 16 == 0 ? 0 : RowParts<L>::kAllSingles);
  ForEachFrame(s.batch, [&](const FramePlace& frame) {
    const T cotangent = s.cotangents[frame.b], outside = frame.valid ? T(0) : T(NAN);
    // Those of two heads have a half of the lanes each.
    const auto own_rule = RuleOf<kClamp>(s, frame.b, kHeads > 1 && group.InUpperHalf());
    const T weight = ptx::Kept(own_rule.Weigh(T(1), kHeads > 1 || reads_label));
    const ColumnsOf labels(s.batch.LabelsOf(s.labels, frame.b));
    const ColumnsOf rows(s.logits + frame.node * row_size, row_size);
    const ColumnsOf gradients(s.logit_gradients + frame.node * row_size, row_size);
    // Lanes without an arc look at the first one's.
    const ColumnsOf posteriors(s.posteriors + frame.node * num_arcs + max(arc, 0), num_arcs);
    const ColumnsOf log_normalizers(
        s.log_normalizers + frame.node * kHeads + group.lane / (kLanes / kHeads), kHeads);
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
      const L* from = rows[u];
      L* to = gradients[u];
      const T posterior = arc < 0 ? T(0) : start.posterior;
      auto rule = own_rule;
      auto normalizer = start.normalizer;
      Share<T> share{weight * posterior, reads_label ? start.label : fixed};
      const bool as_laid_out = group.Any(share.own != T(0));
      if (!as_laid_out) {  // padding, or no path comes through: nothing to read
        const bool second =
            kHeads > 1 && u < frame.inside && (!roles.in_halves || group.Any(posterior != T(0)));
        if (second) {
          share = SecondHead<L, kClamp>(s, frame.b, frame.t, u, start.label, group);
          normalizer = {group.From(normalizer.shift, 0), group.From(normalizer.log_sum, 0)};
          if (kClamp) rule.clamp = group.From(rule.clamp, 0);
        }
        if (!second || !group.Any(share.own != T(0))) {
          Fill(to, second ? size : row_size, outside, group);
          return;
        }
      }
      // The logit of this lane's class, before anyone overwrites it; it is looked at when the row
      // is done. An arc without a class is not there; its posterior is 0, or NaN like the others.
      const bool has_class = static_cast<unsigned>(share.v) < limit;
      L logit{};
      if (has_class) logit = from[share.v];
      T occupancy, of_class;  // the sums over all arcs and over those that read the class
      if (kHeads > 1 && as_laid_out) {
        const T of_half = group.template Sum<group.kHalf>(posterior);
        const T of_other = group.FromOtherHalf(of_half);
        occupancy =
            weight * of_half + of_other;  // of this half's head: the upper one's weight is 1
        of_class = posterior + group.FromOtherHalf(posterior);
        if (!group.InUpperHalf()) {
          of_class = reads_label ? weight * of_half : of_other;
          if (start.label == roles.classes[1]) of_class = occupancy;  // a label that is the blank
        }
      } else {
        occupancy = group.Sum(share.own);
        of_class = share.own;
        // A label that is a blank's class shares it with the blank.
        if (kHeads > 1 || group.Any(roles.shared || fixed == start.label)) {
          of_class = SumOfClass(share.v, share, num_arcs, group);
        }
      }
      const auto gradient = RowGradient<T, kClamp>::Of(rule, occupancy, normalizer, cotangent);
      group.Sync();  // every lane has its logit (a shuffle or a vote orders no accesses to memory)
      Map(from, to, size, all_singles, kHeads > 1 ? gradient.From(0, group) : gradient, group);
      group.Sync();  // the row is written, and the classes of its arcs go over it
      if (has_class) {
        to[share.v] = Narrow<L>(gradient.OfArcs(Widen(logit), of_class, rule, cotangent));
      }
    });
  });
}

}  // namespace

template <typename L>
Status ComputeLogitGradients(const LogitGradientsStage<L>& stage, cudaStream_t stream) {
  constexpr auto kName = "LogitGradientsKernel";
  return LaunchOverRows<L>(kName, stage, [&](auto lanes, auto heads) {
    const auto kernel = stage.clamped ? LogitGradientsKernel<L, lanes, heads, true>
                                      : LogitGradientsKernel<L, lanes, heads, false>;
    return Launch(kName, kernel, FrameGrid<lanes>(stage.batch), stream, stage,
                  Roles::Of(stage.emission, lanes));
  });
}

template Status ComputeLogitGradients(const LogitGradientsStage<float>&, cudaStream_t);
template Status ComputeLogitGradients(const LogitGradientsStage<double>&, cudaStream_t);
template Status ComputeLogitGradients(const LogitGradientsStage<BFloat16>&, cudaStream_t);
template Status ComputeLogitGradients(const LogitGradientsStage<Float16>&, cudaStream_t);

}  // namespace mbrnnt::cuda
