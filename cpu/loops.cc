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

// The same of a register of rows: `columns` has a head's classes, fewer than a register takes, one
// behind the other, each of all rows. The sum is that of RowSumOfExp to the last bit.
template <typename T>
MBRNNT_HD SumOfExp<Vec<T>> SumsOfExp(const T (*columns)[kLanes<T>], int64_t num_classes) {
  using V = Vec<T>;
  V maximum = Constant<V>(-T(INFINITY));
  for (int64_t v = 0; v < num_classes; ++v) maximum = Maximum(maximum, Load(columns[v]));
  const V shift = maximum == -T(INFINITY) ? V{} : maximum;
  V sums[kLanes<T>] = {};
  for (int64_t v = 0; v < num_classes; ++v) sums[v] = Exp(Load(columns[v]) - shift);
  for (int half = kLanes<T> / 2; half > 0; half /= 2) {
    for (int v = 0; v < half; ++v) sums[v] += sums[v + half];
  }
  return {shift, sums[0]};
}

// One logarithm for a register of rows: where V is small it costs as much as the rest.
template <typename L>
void LogNormalizers(const L* logits, int64_t num_rows, const Emission& emission,
                    LogNormalizer<Real<L>>* log_normalizers) {
  using T = Real<L>;
  const int64_t row_size = emission.RowSize();
  const int num_heads = emission.num_heads;
  for (int64_t row = 0; row < num_rows; row += kLanes<T>) {
    const int size = static_cast<int>(std::min<int64_t>(kLanes<T>, num_rows - row));
    for (int h = 0; h < num_heads; ++h) {
      const L* head = logits + row * row_size + (h == 0 ? 0 : emission.sizes[0]);
      const int64_t num_classes = emission.sizes[h];
      T shifts[kLanes<T>] = {}, sums[kLanes<T>] = {};
      if (num_classes < kLanes<T>) {
        T columns[kLanes<T>][kLanes<T>];
        for (int64_t v = 0; v < num_classes; ++v) {
          for (int i = 0; i < kLanes<T>; ++i) {
            columns[v][i] = i < size ? ToReal(head[i * row_size + v]) : T(0);
          }
        }
        const auto of_rows = SumsOfExp<T>(columns, num_classes);
        Store(shifts, of_rows.shift);
        Store(sums, of_rows.sum);
      } else {
        for (int i = 0; i < size; ++i) {
          const SumOfExp<T> of_row = RowSumOfExp(head + i * row_size, num_classes, row_size);
          shifts[i] = of_row.shift;
          sums[i] = of_row.sum;
        }
      }
      T log_sums[kLanes<T>];
      Store(log_sums, LogSum(Load(sums)));
      for (int i = 0; i < size; ++i) {
        log_normalizers[(row + i) * num_heads + h] = {shifts[i], log_sums[i]};
      }
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
void SumsOverArcs(int64_t n, int num_arcs, const ArcRow<T>* arcs, ScaledRow<T> sums) {
  for (int64_t i = 0; i < n; i += kLanes<T>) {
    const auto sum = SumOverArcs<Vec<T>>(num_arcs, [&](int a) {
      return Multiply(LoadScaled(arcs[a].numbers, i), FromLog(Load(arcs[a].log_probs + i)));
    });
    StoreUpTo(sums.mantissas + i, sum.mantissa, n - i);
    StoreUpTo(sums.exponents + i, sum.exponent, n - i);
  }
}

template <typename T>
void Posteriors(int64_t n, ScaledRow<T> alphas, const T* log_probs, ScaledRow<T> betas,
                Scaled<T> likelihood, T* posteriors) {
  const Scaled<Vec<T>> likelihoods{Constant<Vec<T>>(likelihood.mantissa),
                                   Constant<Vec<T>>(likelihood.exponent)};
  for (int64_t i = 0; i < n; i += kLanes<T>) {
    // Unlike alphas and betas these are being written elsewhere.
    const Vec<T> x = n - i < kLanes<T> ? LoadFirst(log_probs + i, n - i) : Load(log_probs + i);
    const Scaled<Vec<T>> arc_betas = Multiply(FromLog(x), LoadScaled(betas, i));
    StoreUpTo(posteriors + i, Posterior(LoadScaled(alphas, i), arc_betas, likelihoods), n - i);
  }
}

}  // namespace

template <typename L>
RowLoops<L> ForRows() {
  return {&LogNormalizers<L>, &RowGradient<L>};
}
template <typename T>
LatticeLoops<T> ForLattices() {
  return {&SumsOverArcs<T>, &Posteriors<T>};
}

template RowLoops<float> ForRows();
template RowLoops<double> ForRows();
template RowLoops<BFloat16> ForRows();
template RowLoops<Float16> ForRows();
template LatticeLoops<float> ForLattices();
template LatticeLoops<double> ForLattices();

}  // namespace mbrnnt::cpu::MBRNNT_ISA
