// A processor register full of numbers, in the vector extension that GCC and Clang
// share: the usual operators, on all elements at once. Its width is that of the
// instruction set that the file which includes this is compiled for.
//
// Why no library: what the loops need beyond operators is one exponential and the two
// half precisions, and those exist in lattice/ for the GPU as well. Highway or xsimd
// would bring run-time dispatch, which CMake does here in ten lines, and would be a
// second way of writing arithmetic beside the law's.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#if defined(__SSE__)
#include <immintrin.h>
#endif

#include "lattice/exp.h"
#include "lattice/number.h"

namespace mbrnnt {
namespace cpu::MBRNNT_ISA {

#if defined(MBRNNT_VECTOR_BYTES)  // Any power of two: compilers make do with what there is.
inline constexpr int kVectorBytes = MBRNNT_VECTOR_BYTES;
#elif defined(__AVX512F__)
inline constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
inline constexpr int kVectorBytes = 32;
#else
inline constexpr int kVectorBytes = 16;
#endif

template <typename X, int kSize>
struct VectorOf {
  typedef X type __attribute__((vector_size(kSize * sizeof(X))));
};

template <typename T>
inline constexpr int kLanes = kVectorBytes / sizeof(T);
template <typename T>
using Vec = typename VectorOf<T, kLanes<T>>::type;
template <typename X, typename T>  // as many X as a Vec<T> has numbers
using Like = typename VectorOf<X, kLanes<T>>::type;

template <typename V, typename X>
MBRNNT_HD V LoadBits(const X* from) {
  V v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

// Integers of a number's size; 0, 1, 2 and so on.
template <typename T>
using Index = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
template <typename T>
MBRNNT_HD auto Indices() {
  Like<Index<T>, T> indices;
  for (int i = 0; i < kLanes<T>; ++i) indices[i] = i;
  return indices;
}

// ---- logits ------------------------------------------------------------------

MBRNNT_HD Vec<float> Load(const float* from) { return LoadBits<Vec<float>>(from); }
MBRNNT_HD Vec<double> Load(const double* from) { return LoadBits<Vec<double>>(from); }
MBRNNT_HD Vec<float> Load(const BFloat16* from) {
  using Wide = Like<uint32_t, float>;
  const auto bits = LoadBits<Like<uint16_t, float>>(from);
  return BitCast<Vec<float>>(__builtin_convertvector(bits, Wide) << 16);
}
MBRNNT_HD Vec<float> Load(const Float16* from) {
  float numbers[kLanes<float>];
#pragma omp simd
  for (int i = 0; i < kLanes<float>; ++i) numbers[i] = ToReal(from[i]);
  return Load(numbers);
}

// As FromReal<BFloat16>, in the upper half of each element.
MBRNNT_HD Like<uint32_t, float> RoundedToBFloat16(Vec<float> v) {
  using Bits = Like<uint32_t, float>;
  const Bits bits = BitCast<Bits>(v);
  const Bits rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  return v == v ? rounded : bits | 0x00400000u;  // a quiet NaN
}

MBRNNT_HD void Store(float* to, Vec<float> v) { std::memcpy(to, &v, sizeof(v)); }
MBRNNT_HD void Store(double* to, Vec<double> v) { std::memcpy(to, &v, sizeof(v)); }
MBRNNT_HD void Store(BFloat16* to, Vec<float> v) {
  const auto bits = RoundedToBFloat16(v) >> 16;
  const auto narrow = __builtin_convertvector(bits, Like<uint16_t, float>);
  std::memcpy(to, &narrow, sizeof(narrow));
}
MBRNNT_HD void Store(Float16* to, Vec<float> v) {
  float numbers[kLanes<float>];
  Store(numbers, v);
#pragma omp simd
  for (int i = 0; i < kLanes<float>; ++i) to[i] = FromReal<Float16>(numbers[i]);
}

// The first n numbers of a register, n less than all: half of them or none, then those of the
// other half. (A masked store is no faster, and only AVX-512 has one.)
template <typename T, typename V>
MBRNNT_HD void StoreFirst(T* to, V v, int64_t n) {
  constexpr int kHalf = sizeof(V) / sizeof(T) / 2;
  if constexpr (kHalf == 1) {
    if (n > 0) *to = v[0];
  } else {
    typename VectorOf<T, kHalf>::type halves[2];
    std::memcpy(halves, &v, sizeof(v));
    if (n < kHalf) return StoreFirst(to, halves[0], n);
    std::memcpy(to, halves, sizeof(halves[0]));
    StoreFirst(to + kHalf, halves[1], n - kHalf);
  }
}

template <typename T>
MBRNNT_HD void StoreUpTo(T* to, Vec<T> v, int64_t n) {
  n < kLanes<T> ? StoreFirst(to, v, n) : Store(to, v);
}

// As many again: what stands behind them is not touched, since another thread may be writing it.
// (By masked loads, which are as fast as whole ones: putting a register together in memory is not.)
template <typename T>
MBRNNT_HD Vec<T> LoadFirst(const T* from, int64_t n) {
#if defined(__AVX512F__) && !defined(MBRNNT_VECTOR_BYTES)
  const auto mask = static_cast<uint16_t>((1u << n) - 1);
  if constexpr (sizeof(T) == 4) return _mm512_maskz_loadu_ps(mask, from);
  if constexpr (sizeof(T) == 8) return _mm512_maskz_loadu_pd(mask, from);
#elif defined(__AVX2__) && !defined(MBRNNT_VECTOR_BYTES)
  const auto mask = BitCast<__m256i>(Indices<T>() < static_cast<Index<T>>(n));
  if constexpr (sizeof(T) == 4) return _mm256_maskload_ps(from, mask);
  if constexpr (sizeof(T) == 8) return _mm256_maskload_pd(from, mask);
#else
  Vec<T> v = {};
  for (int i = 0; i < kLanes<T>; ++i) v[i] = i < n ? from[i] : T(0);
  return v;
#endif
}

template <typename T>
MBRNNT_HD Vec<T> LoadUpTo(const T* from, int64_t n) {
  return n < kLanes<T> ? LoadFirst(from, n) : Load(from);
}

// Every second number of a and b is a's: those of their first halves or of their second ones.
template <bool kSecond, typename V>
MBRNNT_HD V Interleave(V a, V b) {
  using T = std::decay_t<decltype(a[0])>;
  constexpr int kSize = sizeof(V) / sizeof(T);
  typename VectorOf<Index<T>, kSize>::type from;
  for (int i = 0; i < kSize; ++i) from[i] = i / 2 + i % 2 * kSize + kSecond * kSize / 2;
#if defined(__clang__)
  V c;
  for (int i = 0; i < kSize; ++i) c[i] = from[i] < kSize ? a[from[i]] : b[from[i] - kSize];
  return c;
#else
  return __builtin_shuffle(a, b, from);
#endif
}
// Of kRows registers, a power of two: rows become columns, one behind the other.
template <int kRows, typename V>
MBRNNT_HD void Transpose(V* v) {
  for (int done = 1; done < kRows; done *= 2) {
    V next[kRows];
    for (int i = 0; i < kRows / 2; ++i) {
      next[2 * i] = Interleave<false>(v[i], v[i + kRows / 2]);
      next[2 * i + 1] = Interleave<true>(v[i], v[i + kRows / 2]);
    }
    for (int i = 0; i < kRows; ++i) v[i] = next[i];
  }
}

// The first num_columns columns of num_rows registers, no more than kRows: what stands in each goes
// to a place of its own, `stride` after the one before.
template <int kRows, typename T, typename V>
MBRNNT_HD void StoreColumns(V* rows, int num_columns, int num_rows, int64_t stride, T* to) {
  Transpose<kRows>(rows);
  using Column = typename VectorOf<T, kRows>::type;
  Column columns[kLanes<T>];
  std::memcpy(columns, rows, sizeof(columns));
  for (int c = 0; c < kLanes<T>; ++c, to += stride) {
    if (c >= num_columns) continue;
    num_rows < kRows ? StoreFirst(to, columns[c], num_rows)
                     : (void)std::memcpy(to, &columns[c], sizeof(Column));
  }
}

// Two registers' worth of consecutive logits, in an order of their own: for what is done
// to each and for sums.
template <typename T>
struct Pair {
  Vec<T> a, b;
};
template <typename L>
MBRNNT_HD Pair<Real<L>> LoadPair(const L* from) {
  return {Load(from), Load(from + kLanes<Real<L>>)};
}
template <typename L>
MBRNNT_HD void StorePair(L* to, Pair<Real<L>> pair) {
  Store(to, pair.a);
  Store(to + kLanes<Real<L>>, pair.b);
}
// The even ones and the odd ones: each is its half of 32 bits, so none has to move.
template <>
MBRNNT_HD Pair<float> LoadPair(const BFloat16* from) {
  const auto bits = LoadBits<Like<uint32_t, float>>(from);
  return {BitCast<Vec<float>>(bits << 16), BitCast<Vec<float>>(bits & 0xffff0000u)};
}
template <>
MBRNNT_HD void StorePair(BFloat16* to, Pair<float> pair) {
#if defined(__AVX512BF16__)
  // One instruction rounds both, to the halves of a register (and denormals to 0).
  Vec<int16_t> interleaved;
  for (int i = 0; i < kLanes<int16_t>; ++i) interleaved[i] = i / 2 + i % 2 * kLanes<float>;
  const auto halves = BitCast<__m512i>(_mm512_cvtne2ps_pbh(pair.b, pair.a));
  const __m512i bits = _mm512_permutexvar_epi16(BitCast<__m512i>(interleaved), halves);
#else
  const auto bits = (RoundedToBFloat16(pair.a) >> 16) | (RoundedToBFloat16(pair.b) & 0xffff0000u);
#endif
  std::memcpy(to, &bits, sizeof(bits));
}

// ---- elements ----------------------------------------------------------------

// b where it is larger, else a: so b's NaN is dropped. The processor has this as one
// instruction, which compilers do not find behind a comparison of registers.
template <typename V>
MBRNNT_HD V Maximum(V a, V b) {
#if defined(__AVX512F__)
  // Without a mask GCC 12 warns of its own header.
  if constexpr (std::is_same_v<V, VectorOf<float, 16>::type>) {
    return _mm512_maskz_max_ps(0xffff, b, a);
  }
#endif
#if defined(__AVX__)
  if constexpr (std::is_same_v<V, VectorOf<float, 8>::type>) return _mm256_max_ps(b, a);
#endif
#if defined(__SSE__)
  if constexpr (std::is_same_v<V, VectorOf<float, 4>::type>) return _mm_max_ps(b, a);
#endif
  return b > a ? b : a;
}
// One number of all elements of a vector: its halves are combined, and theirs.
template <typename V, typename Combine>
MBRNNT_HD auto Fold(V v, const Combine& combine) {
  using T = std::decay_t<decltype(v[0])>;
  constexpr int kHalf = sizeof(V) / sizeof(T) / 2;
  if constexpr (kHalf == 1) {
    return combine(T{v[0]}, T{v[1]});
  } else {
    typename VectorOf<T, kHalf>::type halves[2];
    std::memcpy(halves, &v, sizeof(v));
    return Fold(combine(halves[0], halves[1]), combine);
  }
}
template <typename V>
MBRNNT_HD auto MaximumOf(V v) {
  return Fold(v, [](auto a, auto b) { return Maximum(a, b); });
}
template <typename V>
MBRNNT_HD auto SumOf(V v) {
  return Fold(v, [](auto a, auto b) { return a + b; });
}

}  // namespace cpu::MBRNNT_ISA

// ---- the law on registers ----------------------------------------------------

template <>
struct NumberTraits<cpu::MBRNNT_ISA::Vec<float>> : NumberTraits<float> {
  using Bits = cpu::MBRNNT_ISA::Like<uint32_t, float>;
  using Vec = cpu::MBRNNT_ISA::Vec<float>;
  static MBRNNT_HD Vec All(float x) { return Vec{} + x; }
  static MBRNNT_HD Vec AtLeast(Vec least, Vec x) { return cpu::MBRNNT_ISA::Maximum(x, least); }
};
template <>
struct NumberTraits<cpu::MBRNNT_ISA::Vec<double>> : NumberTraits<double> {
  using Bits = cpu::MBRNNT_ISA::Like<uint64_t, double>;
  static MBRNNT_HD auto All(double x) { return cpu::MBRNNT_ISA::Vec<double>{} + x; }
};
template <>
struct Exponential<cpu::MBRNNT_ISA::Vec<double>> {
  using V = cpu::MBRNNT_ISA::Vec<double>;

  static MBRNNT_HD V Of(V x) {
    for (int i = 0; i < cpu::MBRNNT_ISA::kLanes<double>; ++i) x[i] = Exp(double{x[i]});
    return x;
  }
  static MBRNNT_HD V NearZero(V x) { return Of(x); }
};
template <>
struct Logarithm<cpu::MBRNNT_ISA::Vec<double>> {
  using V = cpu::MBRNNT_ISA::Vec<double>;

  static MBRNNT_HD V Of(V x) {
    for (int i = 0; i < cpu::MBRNNT_ISA::kLanes<double>; ++i) x[i] = Log(double{x[i]});
    return x;
  }
};

}  // namespace mbrnnt
