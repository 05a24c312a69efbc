// Compiled once per instruction set: MBRNNT_ISA names the namespace. Whatever is
// called here must be inlined, lest the linker keep one copy for all of them.
#include "cpu/loops.h"

#include <algorithm>
#include <cmath>

#include "cpu/simd.h"

namespace mbrnnt::cpu::MBRNNT_ISA {
namespace {

// ---- a row of logits -----------------------------------------------------------

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

// One logarithm for a register of rows: where V is small it costs as much as the rest.
template <typename T>
MBRNNT_HD void TakeLogSums(T* sums) {
  for (int i = 0; i < kRows; i += kLanes<T>) Store(sums + i, LogSum(Load(sums + i)));
}

template <typename L>
void LogNormalizers(const L* logits, int num_rows, int64_t num_classes, int64_t row_size,
                    Real<L>* shifts, Real<L>* log_sums) {
  for (int i = 0; i < kRows; ++i) log_sums[i] = 0;
  for (int i = 0; i < num_rows; ++i) {
    const auto of_row = RowSumOfExp(logits + i * row_size, num_classes, row_size);
    shifts[i] = of_row.shift;
    log_sums[i] = of_row.sum;
  }
  TakeLogSums(log_sums);
}

template <typename T>
void FewLogNormalizers(const Column<T>* scores, int64_t num_classes, T* shifts, T* log_sums) {
  using V = Vec<T>;
  for (int i = 0; i < kRows; i += kLanes<T>) {
    V maximum = Constant<V>(-T(INFINITY)), sum = {};
    for (int64_t v = 0; v < num_classes; ++v) maximum = Maximum(maximum, Load(scores[v] + i));
    const V shift = maximum == -T(INFINITY) ? V{} : maximum;
    for (int64_t v = 0; v < num_classes; ++v) sum += Exp(Load(scores[v] + i) - shift);
    Store(shifts + i, shift);
    Store(log_sums + i, sum);
  }
  TakeLogSums(log_sums);
}

template <typename T>
void FewGradients(Column<T>* scores, int64_t num_classes, const T* shifts, const T* factors,
                  const Column<T>* own, GradientRule<T> rule, T cotangent) {
  using V = Vec<T>;
  for (int i = 0; i < kRows; i += kLanes<T>) {
    const V shift = Load(shifts + i), factor = Load(factors + i);
    for (int64_t v = 0; v < num_classes; ++v) {
      const V share =
          Exp(Load(scores[v] + i) - shift) * factor;  // (the law's factor is one number)
      Store(scores[v] + i, rule.LogitGradient(share, T(1), Load(own[v] + i), cotangent));
    }
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

// ---- nodes of the lattice --------------------------------------------------------

// The law on a register of numbers at a time. The last one of a row is read and computed whole,
// whatever stands behind the row, and stored as far as the row goes.

static_assert(kVectorBytes / sizeof(float) <= kReadBeyond, "more must stand behind a row");

template <typename T>
MBRNNT_HD Scaled<Vec<T>> LoadScaled(ScaledRow<T> row, int64_t i) {
  return {Load(row.mantissas + i), Load(row.exponents + i)};
}
template <typename T>
MBRNNT_HD void StoreUpTo(T* to, Vec<T> v, int64_t n) {
  n < kLanes<T> ? StoreFirst(to, v, n) : Store(to, v);
}

template <typename T>
void Weights(int64_t n, int num_arcs, const T* log_probs, int64_t stride, ScaledRow<T> weights,
             int64_t next_arc) {
  constexpr int64_t kSize = kLanes<T>;
  for (int64_t u = 0; u < n; u += kSize) {
    for (int64_t a = 0; a < num_arcs; a += kSize) {
      const int64_t nodes = std::min(kSize, n - u), arcs = std::min(kSize, num_arcs - a);
      Vec<T> tile[kSize];
      for (int i = 0; i < kSize; ++i) {
        const T* node = log_probs + (u + std::min<int64_t>(i, nodes - 1)) * stride + a;
        tile[i] = arcs < kSize ? LoadFirst(node, arcs) : Load(node);
      }
      Transpose(tile);
      for (int i = 0; i < kSize; ++i) {
        if (i >= arcs) break;
        const ScaledRow<T> of_arc = weights + ((a + i) * next_arc + u);
        const Scaled<Vec<T>> weight = FromLog(tile[i]);
        StoreUpTo(of_arc.mantissas, weight.mantissa, nodes);
        StoreUpTo(of_arc.exponents, weight.exponent, nodes);
      }
    }
  }
}

template <typename T>
void SumsOverArcs(int64_t n, int num_arcs, const ArcRow<T>* arcs, ScaledRow<T> sums) {
  for (int64_t i = 0; i < n; i += kLanes<T>) {
    const auto sum = SumOverArcs<Vec<T>>(num_arcs, [&](int a) {
      return Multiply(LoadScaled(arcs[a].numbers, i), LoadScaled(arcs[a].weights, i));
    });
    StoreUpTo(sums.mantissas + i, sum.mantissa, n - i);
    StoreUpTo(sums.exponents + i, sum.exponent, n - i);
  }
}

template <typename T>
void Posteriors(int64_t n, int num_arcs, ScaledRow<T> alphas, const ArcRow<T>* arcs,
                Scaled<T> likelihood, T* posteriors, int64_t stride) {
  constexpr int kSize = kLanes<T>;
  const Scaled<Vec<T>> likelihoods{Constant<Vec<T>>(likelihood.mantissa),
                                   Constant<Vec<T>>(likelihood.exponent)};
  for (int64_t i = 0; i < n; i += kSize) {
    const Scaled<Vec<T>> alpha = LoadScaled(alphas, i);
    for (int a = 0; a < num_arcs; a += kSize) {
      Vec<T> tile[kSize];
      for (int k = 0; k < kSize; ++k) {
        if (a + k < num_arcs) {
          const ArcRow<T>& arc = arcs[a + k];
          const auto arc_betas = Multiply(LoadScaled(arc.weights, i), LoadScaled(arc.numbers, i));
          tile[k] = Posterior(alpha, arc_betas, likelihoods);
        } else {
          tile[k] = Vec<T>{};
        }
      }
      Transpose(tile);
      for (int k = 0; k < kSize; ++k) {
        if (i + k < n) StoreUpTo(posteriors + (i + k) * stride + a, tile[k], num_arcs - a);
      }
    }
  }
}

}  // namespace

template <typename L>
RowLoops<L> ForRows() {
  using T = Real<L>;
  return {&LogNormalizers<L>, &RowGradient<L>, &FewLogNormalizers<T>, &FewGradients<T>};
}
template <typename T>
LatticeLoops<T> ForLattices() {
  return {&Weights<T>, &SumsOverArcs<T>, &Posteriors<T>};
}

template RowLoops<float> ForRows();
template RowLoops<double> ForRows();
template RowLoops<BFloat16> ForRows();
template RowLoops<Float16> ForRows();
template LatticeLoops<float> ForLattices();
template LatticeLoops<double> ForLattices();

}  // namespace mbrnnt::cpu::MBRNNT_ISA
