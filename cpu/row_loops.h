// The loops over rows of logits, see loops.h. For loops.cc alone.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cpu/loops.h"
#include "cpu/simd.h"

namespace mbrnnt::cpu::MBRNNT_ISA {
namespace {

// The classes that a node's arcs read, with these arcs' weighed posteriors; anything behind them.
template <typename T>
struct ReadClasses {
  using Class = std::conditional_t<sizeof(T) == sizeof(int32_t), int32_t, int64_t>;
  int size = 0;
  Class classes[kMaxArcs];
  T posteriors[kMaxArcs];

  void Add(int64_t v, T posterior) {
    classes[size] = static_cast<Class>(v);
    posteriors[size++] = posterior;
  }
};

// Vectors at a time: enough that none waits for the one before it.
constexpr int kUnrolled = 4;

// The last vector of a row, which overlaps the one before it where the row is no
// multiple of a vector. A row that is shorter than one is padded with `filler`.
template <typename L>
struct LastVector {
  using T = Real<L>;
  static constexpr int kSize = kLanes<T>;
  Vec<T> numbers;
  int size;  // of the row, where it is shorter

  MBRNNT_HD LastVector(const L* row, int64_t num_classes, L filler) {
    size = num_classes < kSize ? static_cast<int>(num_classes) : kSize;
    if (size == kSize) {
      numbers = Load(row + num_classes - kSize);
    } else {
      L padded[kSize];
      for (int i = 0; i < kSize; ++i) padded[i] = i < size ? row[i] : filler;
      numbers = Load(padded);
    }
  }
  // `numbers`, with `filler` in place of all but the last `count` of a row's.
  MBRNNT_HD Vec<T> Last(int64_t count, T filler) const {
    if (size < kSize) return numbers;  // padded already
    const auto index = Indices<T>();
    const auto first = static_cast<std::decay_t<decltype(index[0])>>(kSize - count);
    return index >= first ? numbers : Constant<Vec<T>>(filler);
  }
  MBRNNT_HD void Store(Vec<T> gradients, L* row, int64_t num_classes) const {
    if (size == kSize) {
      MBRNNT_ISA::Store(row + num_classes - kSize, gradients);
    } else {
      L padded[kSize];
      MBRNNT_ISA::Store(padded, gradients);
      for (int i = 0; i < size; ++i) row[i] = padded[i];
    }
  }
};

// While a row is computed a later one is fetched: the processor's own prefetching stops at the
// end of a page.
template <typename L>
MBRNNT_HD void PrefetchPair(const L* logits) {
  __builtin_prefetch(logits);
  if (sizeof(L) >= sizeof(float)) __builtin_prefetch(logits + kLanes<Real<L>>);
}

template <typename T>
struct SumOfExp {
  T shift, sum;
};

// The row is read twice, the second time from the first-level cache.
template <typename L>
MBRNNT_HD SumOfExp<Real<L>> RowSumOfExp(const L* logits, int64_t num_classes, int64_t row_size) {
  using T = Real<L>;
  using V = Vec<T>;
  constexpr int64_t kSize = kLanes<T>, kBlock = kUnrolled * kSize;
  const int64_t blocks_end = num_classes - num_classes % kBlock;
  const int64_t end = num_classes - num_classes % kSize;
  const LastVector<L> last_vector(logits, num_classes, FromReal<L>(-T(INFINITY)));
  const V last = last_vector.Last(num_classes - end, -T(INFINITY));

  V maxima[kUnrolled];
  for (V& m : maxima) m = Constant<V>(-T(INFINITY));
  int64_t v = 0;
  for (; v < blocks_end; v += kBlock) {
    for (int i = 0; i < kUnrolled; i += 2) {
      const Pair<T> x = LoadPair(logits + v + i * kSize);
      maxima[i] = Maximum(maxima[i], x.a);
      maxima[i + 1] = Maximum(maxima[i + 1], x.b);
    }
  }
  for (; v < end; v += kSize) maxima[0] = Maximum(maxima[0], Load(logits + v));
  maxima[1] = Maximum(maxima[1], last);
  const T shift =
      Shift(MaximumOf(Maximum(Maximum(maxima[0], maxima[1]), Maximum(maxima[2], maxima[3]))));

  // The next row of a small V would come too late.
  const int64_t ahead = std::max<int64_t>(row_size, 8192 / sizeof(L));
  V sums[kUnrolled] = {};
  for (v = 0; v < blocks_end; v += kBlock) {
    for (int i = 0; i < kUnrolled; i += 2) {
      PrefetchPair(logits + ahead + v + i * kSize);
      const Pair<T> x = LoadPair(logits + v + i * kSize);
      sums[i] += Exp(x.a - shift);
      sums[i + 1] += Exp(x.b - shift);
    }
  }
  for (; v < end; v += kSize) sums[0] += Exp(Load(logits + v) - shift);
  sums[1] += Exp(last - shift);
  return {shift, SumOf((sums[0] + sums[1]) + (sums[2] + sums[3]))};
}

// Has a head fewer classes than a register takes, all of which are read?
template <typename T>
MBRNNT_HD bool HasFew(const HeadReads& reads) {
  return reads.all && reads.size < kLanes<T>;
}
// Its scores. Those of half precision are put together in memory, and a load of what has just been
// stored in parts waits: so some time before.
template <typename L>
MBRNNT_HD void PrepareFew(const L* from, int64_t n, Real<L>* prepared) {
  if constexpr (!std::is_same_v<L, Real<L>>) {
    for (int64_t i = 0; i < n; ++i) prepared[i] = ToReal(from[i]);
  }
}
template <typename L>
MBRNNT_HD Vec<Real<L>> LoadFew(const L* from, int64_t n, const Real<L>* prepared) {
  if constexpr (std::is_same_v<L, Real<L>>) {
    return LoadFirst(from, n);
  } else {
    return Load(prepared);
  }
}
template <typename L>
MBRNNT_HD void StoreFew(L* to, Vec<Real<L>> v, int64_t n) {
  if constexpr (std::is_same_v<L, Real<L>>) {
    StoreFirst(to, v, n);
  } else {
    L all[kLanes<Real<L>>];
    Store(all, v);
    for (int64_t i = 0; i < n; ++i) to[i] = all[i];
  }
}

// Of up to a register of rows. After each one `read` takes what it needs of it.
template <typename L, typename Read>
MBRNNT_HD LogNormalizer<Vec<Real<L>>> LogNormalizers(const L* row, int num_rows, int64_t row_size,
                                                     int64_t num_classes, const Read& read) {
  using T = Real<L>;
  T shifts[kLanes<T>] = {}, sums[kLanes<T>] = {};
  for (int r = 0; r < num_rows; ++r, row += row_size) {
    const SumOfExp<T> of_row = RowSumOfExp(row, num_classes, row_size);
    shifts[r] = of_row.shift;
    sums[r] = of_row.sum;
    read(r, row);
  }
  // One logarithm for all: where V is small it costs as much as the rest.
  return {Load(shifts), LogSum(Load(sums))};
}

// The same by columns, which are left in `scores`.
template <typename L>
MBRNNT_HD LogNormalizer<Vec<Real<L>>> FewLogNormalizers(const L* row, int num_rows,
                                                        int64_t row_size, int64_t num_classes,
                                                        Vec<Real<L>>* scores) {
  using T = Real<L>;
  using V = Vec<T>;
  const auto row_at = [&](int r) { return row + std::min(r, num_rows - 1) * row_size; };
  T prepared[kLanes<T>][kLanes<T>];
  for (int r = 0; r < kLanes<T>; ++r) PrepareFew(row_at(r), num_classes, prepared[r]);
  for (int r = 0; r < kLanes<T>; ++r) scores[r] = LoadFew(row_at(r), num_classes, prepared[r]);
  Transpose<kLanes<T>>(scores);
  V maximum = scores[0];
  for (int v = 1; v < kLanes<T>; ++v) {
    if (v < num_classes) maximum = Maximum(maximum, scores[v]);
  }
  const V shift = maximum == -T(INFINITY) ? V{} : maximum;
  V sum = {};
  for (int v = 0; v < kLanes<T>; ++v) {
    if (v < num_classes) sum += Exp(scores[v] - shift);
  }
  return {shift, LogSum(sum)};
}

// Up to a register of nodes.
template <typename L>
MBRNNT_HD void ArcLogProbsOf(const ArcLogProbsStage<L>& s, const Reads& reads, int64_t b,
                             int64_t node, int64_t u, int n) {
  using T = Real<L>;
  using V = Vec<T>;
  constexpr int kSize = kLanes<T>, kHalf = std::max(2, kSize / 2);
  const Emission& emission = s.emission;
  const int num_arcs = emission.num_arcs, num_heads = emission.num_heads;
  const int64_t row_size = emission.RowSize(), num_labels = s.batch.label_lengths[b];
  const int32_t* labels = s.batch.LabelsOf(s.labels, b);

  V log_probs[kMaxHeads][kMaxArcs];  // of the classes that are read
  const L* logits = s.logits + node * row_size;
  for (int h = 0; h < num_heads; ++h) {
    const HeadReads& head = reads.heads[h];
    const int64_t size = emission.sizes[h];
    LogNormalizer<V> normalizers;
    if (HasFew<T>(head)) {
      V scores[kSize];
      normalizers = FewLogNormalizers(logits, n, row_size, size, scores);
      for (int v = 0; v < kSize; ++v) {
        if (v < size) log_probs[h][v] = LogProb(scores[v], normalizers);
      }
    } else {
      T scores[kMaxArcs][kSize];
      for (int i = 0; i < head.size; ++i) Store(scores[i], V{});
      normalizers = LogNormalizers(logits, n, row_size, size, [&](int r, const L* row) {
        const int64_t label = head.LabelAt(emission, labels, u + r, num_labels);
        for (int i = 0; i < head.size; ++i) {
          const int64_t v = head.ClassAt(i, label);
          scores[i][r] = v >= 0 ? ToReal(row[v]) : T(NAN);
        }
      });
      for (int i = 0; i < head.size; ++i) log_probs[h][i] = LogProb(Load(scores[i]), normalizers);
    }
    T shifts[kSize], log_sums[kSize];
    Store(shifts, normalizers.shift);
    Store(log_sums, normalizers.log_sum);
    for (int r = 0; r < n; ++r) {
      s.log_normalizers[(node + r) * num_heads + h] = {shifts[r], log_sums[r]};
    }
    logits += size;
  }

  // The law's ArcLogProb, by arcs.
  const T sigma = s.sigmas[b];
  for (int first = 0; first < num_arcs; first += kSize) {
    V sums[kSize];
    for (int k = 0; k < kSize; ++k) {
      const int a = first + k;
      V sum = {};
      for (int h = 0; h < num_heads && a < num_arcs; ++h) {
        const int i = reads.heads[h].of_arc[a];
        if (i >= 0) sum += log_probs[h][i];
      }
      sums[k] = sum - sigma;
    }
    T* to = s.arc_log_probs + node * num_arcs + first;
    num_arcs - first <= kHalf ? StoreColumns<kHalf>(sums, n, num_arcs - first, num_arcs, to)
                              : StoreColumns<kSize>(sums, n, num_arcs - first, num_arcs, to);
  }
  if (u + n <= num_labels) return;
  T* last = s.arc_log_probs + (node + n - 1) * num_arcs;
  for (int a = 0; a < num_arcs; ++a) {
    if (emission.IsLabel(a)) last[a] = -T(INFINITY);  // no label is left
  }
}

template <typename L>
void ArcLogProbs(const ArcLogProbsStage<L>& s, const Reads& reads, int64_t b, int64_t node,
                 int64_t u, int n) {
  constexpr int kSize = kLanes<Real<L>>;
  for (int r = 0; r < n; r += kSize) {
    ArcLogProbsOf(s, reads, b, node + r, u + r, std::min(kSize, n - r));
  }
}

template <typename L>
void RowGradient(const L* logits, int64_t num_classes, const L* next, Real<L> shift, Real<L> factor,
                 const ReadClasses<Real<L>>& read, GradientRule<Real<L>> rule, Real<L> cotangent,
                 L* gradients) {
  using T = Real<L>;
  constexpr int64_t kSize = kLanes<T>, kBlock = kUnrolled * kSize;
  const auto gradient = [&](Vec<T> x, Vec<T> own) {
    return rule.LogitGradient(Exp(x - shift), factor, own, cotangent);
  };
  const Vec<T> none = {};
  // A gradient that is neither clamped nor rounded is a sum, whose parts may come one by one.
  // Others are computed here for the classes that arcs read, before the row is overwritten.
  const bool is_sum = std::is_same_v<L, T> && rule.clamp == T(0);
  L of_read[kMaxArcs];
  for (int i = 0; i < read.size && !is_sum; i += kSize) {
    T x[kSize] = {};
    for (int k = 0; k < kSize && i + k < read.size; ++k) x[k] = ToReal(logits[read.classes[i + k]]);
    const auto classes = LoadBits<Like<typename ReadClasses<T>::Class, T>>(read.classes + i);
    Vec<T> own = {};  // of all arcs that read a class: they may share one
    for (int j = 0; j < read.size; ++j) {
      own += classes == read.classes[j] ? Constant<Vec<T>>(read.posteriors[j]) : none;
    }
    Store(of_read + i, gradient(Load(x), own));
  }

  const int64_t end = num_classes - num_classes % kSize;
  const LastVector<L> last(logits, num_classes, FromReal<L>(T(0)));
  int64_t v = 0;
  for (; v + kBlock <= end; v += kBlock) {
    Pair<T> block[kUnrolled / 2];  // loaded before any is stored: the compiler knows no two rows
    for (int i = 0; i < kUnrolled / 2; ++i) block[i] = LoadPair(logits + v + 2 * i * kSize);
    for (int i = 0; i < kUnrolled / 2; ++i) {
      PrefetchPair(next + v + 2 * i * kSize);
      const Pair<T> x = block[i];
      StorePair(gradients + v + 2 * i * kSize, Pair<T>{gradient(x.a, none), gradient(x.b, none)});
    }
  }
  for (; v < end; v += kSize) Store(gradients + v, gradient(Load(logits + v), none));
  // In place, the last vector was loaded before the one that it overlaps was stored.
  if (end < num_classes) last.Store(gradient(last.numbers, none), gradients, num_classes);

  for (int i = 0; i < read.size; ++i) {
    L& of_class = gradients[read.classes[i]];
    of_class = is_sum ? FromReal<L>(ToReal(of_class) - read.posteriors[i] * cotangent) : of_read[i];
  }
}

// For doubles exp is a call, around which every register is saved: best of a function with few.
template <typename Body>
__attribute__((noinline)) void Apart(const Body& body) {
  body();
}

template <typename L>
void LogitGradients(const LogitGradientsStage<L>& s, const Reads& reads,
                    const Shares<Real<L>>& shares, const Real<L>* scales, int64_t b, int64_t first,
                    int64_t u, int n) {
  using T = Real<L>;
  using V = Vec<T>;
  const Emission& emission = s.emission;
  const int num_arcs = emission.num_arcs, num_heads = emission.num_heads;
  const int64_t row_size = emission.RowSize(), num_labels = s.batch.label_lengths[b];
  const int32_t* labels = s.batch.LabelsOf(s.labels, b);

  // Of all nodes first: a node's sum waits for one posterior after the other.
  alignas(V) T sums[kNodes][Shares<T>::kMaxSize];
  for (int r = 0; r < n; ++r) {
    const T* posteriors = s.posteriors + (first + r) * num_arcs;
    for (int i = 0; i < shares.size; i += kLanes<T>) {
      V sum = {};
      for (int a = 0; a < num_arcs; ++a) sum += posteriors[a] * Load(shares.weights[a] + i);
      Store(sums[r] + i, sum);
    }
  }

  const GradientRule<T> rules[kMaxHeads] = {s.RuleOf(b, 0), s.RuleOf(b, 1)};
  const T cotangent = s.cotangents[b];
  const int last = num_heads - 1;
  T prepared[2][kLanes<T>];  // of this row, and of the next one
  const auto prepare = [&](int r) {
    if (r == n || !HasFew<T>(reads.heads[last])) return;
    const int64_t size = emission.sizes[last];
    PrepareFew(s.logits + (first + r + 1) * row_size - size, size, prepared[r % 2]);
  };
  prepare(0);
  for (int r = 0; r < n; ++r) {
    const int64_t node = first + r;
    prepare(r + 1);
    const L* logits = s.logits + node * row_size;
    L* gradients = s.logit_gradients + node * row_size;
    for (int h = 0; h < num_heads; ++h) {
      const HeadReads& head = reads.heads[h];
      const int64_t size = emission.sizes[h];
      const T* own = sums[r] + shares.begin[h];
      const T occupancy = own[head.size], factor = occupancy * scales[r * num_heads + h];
      const T shift = s.log_normalizers[node * num_heads + h].shift;
      // (The parts of a pull-back may cancel each other. NaN times a weight of 0 is no visit.)
      const bool visited =
          head.is_read &&
          (occupancy != T(0) || std::any_of(own, own + head.size, [](T x) { return x != T(0); }));
      if (!visited) {  // no path comes through: nothing to read
        std::fill_n(gradients, size, FromReal<L>(T(0)));
      } else if (HasFew<T>(head)) {
        const V exponentials = Exp(LoadFew(logits, size, prepared[r % 2]) - shift);
        const V of_all = rules[h].LogitGradient(exponentials, factor, Load(own), cotangent);
        StoreFew(gradients, of_all, size);
      } else {
        ReadClasses<T> read;
        const int64_t label = head.LabelAt(emission, labels, u + r, num_labels);
        for (int i = 0; i < head.size; ++i) {
          const int64_t v = head.ClassAt(i, label);
          // An arc without a class is not there; its posterior is 0, or NaN like the others.
          if (v >= 0) read.Add(v, own[i]);
        }
        const auto write = [&] {
          RowGradient(logits, size, logits + row_size, shift, factor, read, rules[h], cotangent,
                      gradients);
        };
        if constexpr (std::is_same_v<T, double>) {
          Apart(write);
        } else {
          write();
        }
      }
      logits += size;
      gradients += size;
    }
  }
}

}  // namespace
}  // namespace mbrnnt::cpu::MBRNNT_ISA
