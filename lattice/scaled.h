// Probabilities of any size: mantissa * 2^exponent.
//
// The likelihood of an utterance underflows float32 after a few dozen frames.
// The usual remedy, its logarithm, loses the digits that the posteriors need: a
// float32 near -2000 has a unit in the last place of 1e-4, which becomes the
// relative error of exp(alpha + beta - ll). Here the mantissa keeps its 24 bits
// however small the number, a product costs one multiplication, and the log-sum
// of two numbers needs neither exp nor log:
//
//   log-domain                      here
//   a + b                           Multiply(a, b)
//   LogAdd(a, b), neutral -inf      Add(a, b), neutral Zero
//
// The exponent is an integer held in a T, so that a weight such as exp(-1e30) (a
// masked class) stays a small number instead of overflowing, and Zero's exponent
// can be -inf. NaN in either operand gives a NaN mantissa.
//
// T is one number or, in loops over many nodes, a SIMD register of them.
//
// Invariant: the mantissa is 0 (exponent -inf), NaN, or within [2^-20, 2^20]
// after Rescaled, which every node of the lattice applies.
#pragma once

#include <cmath>
#include <cstdint>

#include "lattice/exp.h"
#include "lattice/macros.h"
#include "lattice/number.h"

namespace mbrnnt {

template <typename T>
struct alignas(2 * sizeof(T)) Scaled {  // one load, one store
  T mantissa;
  T exponent;

  static MBRNNT_HD Scaled Zero() { return {T(0), -T(INFINITY)}; }
  static MBRNNT_HD Scaled One() { return {T(1), T(0)}; }
  MBRNNT_HD bool IsPoisoned() const { return mantissa != mantissa; }  // T is one number
  // exp(x) of a log-probability. One whose binary logarithm is out of range is as good as -inf.
  static MBRNNT_HD Scaled FromLog(T x);
};

// 2^k for an integer k up to 126, and 0 where that is too small to matter. A NaN
// k gives 0 as well: the mantissa beside it is NaN and carries on. The exponent comes
// out of a rounding addition: a GPU converts a float to an integer at a quarter of its
// speed, and SIMD does not like to do it, either.
template <typename T>
MBRNNT_HD T PowerOfTwo(T k) {
  using Traits = NumberTraits<T>;
  constexpr typename Traits::Element kBias = Traits::kExponentBias;
  const T bounded = k > -kBias ? k : Constant<T>(-kBias);
  const T sum = bounded + (Traits::kRound + kBias);
  return BitCast<T>(BitCast<typename Traits::Bits>(sum) << Traits::kExponentBit);
}

// ln 2 in two parts; the first has few bits, so that its product with an
// exponent is exact (Cody and Waite 1980).
template <typename Element>
struct Ln2;
template <>
struct Ln2<float> {
  static constexpr float kHigh = 0.693359375f, kLow = -2.12194440e-4f;
};
template <>
struct Ln2<double> {
  static constexpr double kHigh = 6.93145751953125e-1, kLow = 1.42860682030941723212e-6;
};

template <typename T>
MBRNNT_HD Scaled<T> Scaled<T>::FromLog(T x) {
  using Element = typename NumberTraits<T>::Element;
  constexpr Element kRound = NumberTraits<T>::kRound;
  const T exponent = (x * Element(1.4426950408889634) + kRound) - kRound;
  T rest = (x - exponent * Ln2<Element>::kHigh) - exponent * Ln2<Element>::kLow;
  // |rest| <= ln(2)/2, but for an x so large that its own spacing is near 1.
  rest = rest > Element(1) ? Constant<T>(1) : rest;
  rest = rest < Element(-1) ? Constant<T>(-1) : rest;
  return {exponent == -Element(INFINITY) ? T{} : Exponential<T>::NearZero(rest), exponent};
}

template <typename T>
MBRNNT_HD T Log(Scaled<T> x) {
  // Of a product, too, whose exponent has left the range; a NaN stays.
  if (x.mantissa == T(0) || x.exponent == -T(INFINITY)) return x.mantissa - T(INFINITY);
  return x.exponent * Ln2<T>::kHigh + (x.exponent * Ln2<T>::kLow + Log(x.mantissa));
}

template <typename T>
MBRNNT_HD Scaled<T> Multiply(Scaled<T> a, Scaled<T> b) {
  return {a.mantissa * b.mantissa, a.exponent + b.exponent};
}

template <typename T>
MBRNNT_HD Scaled<T> Add(Scaled<T> a, Scaled<T> b) {
  const auto a_is_high = a.exponent > b.exponent;
  const T high = a_is_high ? a.mantissa : b.mantissa;
  const T low = a_is_high ? b.mantissa : a.mantissa;
  const T above = a.exponent - b.exponent;
  const T shift = a_is_high ? -above : above;
  return {high + low * PowerOfTwo(shift), a_is_high ? a.exponent : b.exponent};
}

// Brings the mantissa back into range. From one node to the next it changes by
// far less than 2^20, so one exact step is enough.
template <typename T>
MBRNNT_HD Scaled<T> Rescaled(Scaled<T> x) {
  using Element = typename NumberTraits<T>::Element;
  const auto large = x.mantissa > Element(0x1p20), small = x.mantissa < Element(0x1p-20);
  const T factor = small ? Constant<T>(0x1p20) : Constant<T>(1);
  const T shift = small ? Constant<T>(-20) : T{};
  return {x.mantissa * (large ? Constant<T>(0x1p-20) : factor),
          x.exponent + (large ? Constant<T>(20) : shift)};
}

// Brings a mantissa of any size but a denormal one into [1, 2), one number at a time.
template <typename T>
MBRNNT_HD Scaled<T> Normalized(Scaled<T> x) {
  using Traits = NumberTraits<T>;
  using Bits = typename Traits::Bits;
  if (x.mantissa == T(0)) return Scaled<T>::Zero();
  if (!(x.mantissa < T(INFINITY))) return {T(NAN), x.exponent};
  constexpr Bits kOne = Bits{Traits::kExponentBias} << Traits::kExponentBit;
  constexpr Bits kFraction = (Bits{1} << Traits::kExponentBit) - 1;
  const Bits bits = BitCast<Bits>(x.mantissa);
  const int exponent = static_cast<int>(bits >> Traits::kExponentBit) - Traits::kExponentBias;
  return {BitCast<T>((bits & kFraction) | kOne), x.exponent + T(exponent)};
}

}  // namespace mbrnnt
