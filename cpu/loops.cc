// Compiled once per instruction set: MBRNNT_ISA names the namespace. Whatever is
// called here must be inlined, lest the linker keep one copy for all of them.
#include "cpu/loops.h"

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

// The row is read twice, the second time from the first-level cache.
template <typename L>
Real<L> RowLogNormalizer(const L* logits, int64_t num_classes) {
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
    for (int i = 0; i < kUnrolled; ++i) {
      maxima[i] = Maximum(maxima[i], Load(logits + v + i * kSize));
    }
  }
  for (; v < end; v += kSize) maxima[0] = Maximum(maxima[0], Load(logits + v));
  maxima[1] = Maximum(maxima[1], last);
  const T shift =
      Shift(MaximumOf(Maximum(Maximum(maxima[0], maxima[1]), Maximum(maxima[2], maxima[3]))));

  V sums[kUnrolled] = {};
  for (v = 0; v < blocks_end; v += kBlock) {
    for (int i = 0; i < kUnrolled; ++i) {
      // While this row is computed the next one comes: a row is a page long, and the
      // processor's own prefetching stops at a page's end.
      __builtin_prefetch(logits + num_classes + v + i * kSize);
      sums[i] += Exp(Load(logits + v + i * kSize) - shift);
    }
  }
  for (; v < end; v += kSize) sums[0] += Exp(Load(logits + v) - shift);
  sums[1] += Exp(last - shift);
  return LogNormalizer(shift, SumOf((sums[0] + sums[1]) + (sums[2] + sums[3])));
}

template <typename L>
void RowGradient(const L* logits, int64_t num_classes, Real<L> log_normalizer, Real<L> occupancy,
                 GradientRule<Real<L>> rule, Real<L> cotangent, L* gradients) {
  using T = Real<L>;
  constexpr int64_t kSize = kLanes<T>, kBlock = kUnrolled * kSize;
  const auto gradient = [&](Vec<T> x) {
    return rule.LogitGradient(Exp(x - log_normalizer), occupancy, Vec<T>{}, cotangent);
  };
  const int64_t end = num_classes - num_classes % kSize;
  const LastVector<L> last(logits, num_classes, FromReal<L>(T(0)));
  int64_t v = 0;
  for (; v + kBlock <= end; v += kBlock) {
    Vec<T> block[kUnrolled];  // loaded before any is stored: the compiler knows no two rows
    for (int i = 0; i < kUnrolled; ++i) block[i] = Load(logits + v + i * kSize);
    for (int i = 0; i < kUnrolled; ++i) {
      __builtin_prefetch(logits + num_classes + v + i * kSize);
      Store(gradients + v + i * kSize, gradient(block[i]));
    }
  }
  for (; v < end; v += kSize) Store(gradients + v, gradient(Load(logits + v)));
  // In place, the last vector was loaded before the one that it overlaps was stored.
  if (end < num_classes) last.Store(gradient(last.numbers), gradients, num_classes);
}

// ---- nodes of the lattice --------------------------------------------------------

// The law on a register of numbers at a time. Rows are padded by kRowPadding, so that
// the last register may be loaded whole.

static_assert(kVectorBytes / sizeof(float) <= kRowPadding, "rows need more padding");

template <typename T>
MBRNNT_HD Scaled<Vec<T>> LoadScaled(ScaledRow<T> row, int64_t i) {
  return {Load(row.mantissas + i), Load(row.exponents + i)};
}
template <typename T>
MBRNNT_HD void StoreScaled(ScaledRow<T> row, int64_t i, Scaled<Vec<T>> x) {
  Store(row.mantissas + i, x.mantissa);
  Store(row.exponents + i, x.exponent);
}

template <typename T>
void FromLogs(int64_t n, const T* log_probs, ScaledRow<T> weights) {
  for (int64_t i = 0; i < n; i += kLanes<T>) StoreScaled(weights, i, FromLog(Load(log_probs + i)));
}

template <typename T>
void AddProducts(int64_t n, ScaledRow<T> a, ScaledRow<T> b, ScaledRow<T> sums) {
  for (int64_t i = 0; i < n; i += kLanes<T>) {
    const Scaled<Vec<T>> old = LoadScaled(sums, i);
    const Scaled<Vec<T>> sum = Add(old, Multiply(LoadScaled(a, i), LoadScaled(b, i)));
    // The sums behind the n are other nodes'.
    const auto left = static_cast<std::decay_t<decltype(Indices<T>()[0])>>(n - i);
    const auto counts = Indices<T>() < left;
    StoreScaled<T>(sums, i,
                   {counts ? sum.mantissa : old.mantissa, counts ? sum.exponent : old.exponent});
  }
}

template <typename T>
void Rescale(int64_t n, ScaledRow<T> numbers) {
  for (int64_t i = 0; i < n; i += kLanes<T>) {
    StoreScaled(numbers, i, Rescaled(LoadScaled(numbers, i)));
  }
}

template <typename T>
void Posteriors(int64_t n, ScaledRow<T> alphas, ScaledRow<T> weights, ScaledRow<T> betas,
                Scaled<T> likelihood, T* posteriors) {
  const Scaled<Vec<T>> likelihoods{Constant<Vec<T>>(likelihood.mantissa),
                                   Constant<Vec<T>>(likelihood.exponent)};
  for (int64_t i = 0; i < n; i += kLanes<T>) {
    const Scaled<Vec<T>> arc_betas = Multiply(LoadScaled(weights, i), LoadScaled(betas, i));
    Store(posteriors + i, Posterior(LoadScaled(alphas, i), arc_betas, likelihoods));
  }
}

}  // namespace

template <typename L>
RowLoops<L> ForRows() {
  return {&RowLogNormalizer<L>, &RowGradient<L>};
}
template <typename T>
LatticeLoops<T> ForLattices() {
  return {&FromLogs<T>, &AddProducts<T>, &Rescale<T>, &Posteriors<T>};
}

template RowLoops<float> ForRows();
template RowLoops<double> ForRows();
template RowLoops<BFloat16> ForRows();
template RowLoops<Float16> ForRows();
template LatticeLoops<float> ForLattices();
template LatticeLoops<double> ForLattices();

}  // namespace mbrnnt::cpu::MBRNNT_ISA
