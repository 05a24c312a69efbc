// Number formats: how logits are stored, and the real type they are computed in.
//
// Half-precision logits are storage only. Their conversions are written with
// integer operations and selects, so that a compiler can vectorise a loop over a
// row, and so that they stay exact where the caller flushes denormals to zero
// (XLA's CPU threads do).
#pragma once

#include <cstdint>

#include "lattice/macros.h"

namespace mbrnnt {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// The type in which logits of type L are computed.
template <typename L>
struct RealOf {
  using type = float;
};
template <>
struct RealOf<double> {
  using type = double;
};
template <typename L>
using Real = typename RealOf<L>::type;

template <typename To, typename From>
MBRNNT_HD To BitCast(From from) {
  static_assert(sizeof(To) == sizeof(From), "BitCast keeps the size");
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

// What the law computes with: one number, or a SIMD register of them (cpu/simd.h).
template <typename T>
struct NumberTraits;
// All(x): x in every element. AtLeast(least, x): the larger one; NaN where x is.
template <>
struct NumberTraits<float> {
  using Element = float;
  using Bits = uint32_t;
  static MBRNNT_HD float All(float x) { return x; }
  static MBRNNT_HD float AtLeast(float least, float x) { return x < least ? least : x; }
  static constexpr int kExponentBit = 23, kExponentBias = 127;
  // 1.5 * 2^23: adding it leaves a number's nearest integer in the low bits of the sum.
  static constexpr float kRound = 12582912.0f;
};
template <>
struct NumberTraits<double> {
  using Element = double;
  using Bits = uint64_t;
  static MBRNNT_HD double All(double x) { return x; }
  static constexpr int kExponentBit = 52, kExponentBias = 1023;
  static constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
};

template <typename T>
MBRNNT_HD T Constant(typename NumberTraits<T>::Element x) {
  return NumberTraits<T>::All(x);
}

MBRNNT_HD float ToReal(float x) { return x; }
MBRNNT_HD double ToReal(double x) { return x; }
MBRNNT_HD float ToReal(BFloat16 x) { return BitCast<float>(uint32_t{x.bits} << 16); }
MBRNNT_HD float ToReal(Float16 x) {
  const uint32_t sign = uint32_t{x.bits & 0x8000u} << 16;
  const uint32_t magnitude = x.bits & 0x7fffu;
  // Exponents 1..30 move from bias 15 to bias 127; 31 (infinity, NaN) moves to
  // 255; 0 (denormal) is magnitude * 2^-24, normal in float32.
  const uint32_t bias = magnitude >= 0x7c00u ? (255u - 31u) << 23 : (127u - 15u) << 23;
  const uint32_t normal = (magnitude << 13) + bias;
  const uint32_t denormal =
      BitCast<uint32_t>(static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f);
  return BitCast<float>((magnitude < 0x0400u ? denormal : normal) | sign);
}

// Rounds to nearest, ties to even; NaN stays NaN.
template <typename L>
MBRNNT_HD L FromReal(Real<L> x) {
  return x;
}
template <>
MBRNNT_HD BFloat16 FromReal<BFloat16>(float x) {
  const uint32_t bits = BitCast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t quiet_nan = (bits >> 16) | 0x0040u;
  return {static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded)};
}
template <>
MBRNNT_HD Float16 FromReal<Float16>(float x) {
  const uint32_t bits = BitCast<uint32_t>(x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  // Normal: the exponent moves from bias 127 to bias 15, 13 mantissa bits go.
  const uint32_t normal =
      (magnitude - ((127u - 15u) << 23) + 0x0fffu + ((magnitude >> 13) & 1u)) >> 13;
  // Denormal (below 2^-14): adding 0.5 makes the adder round at 2^-24.
  const uint32_t denormal =
      BitCast<uint32_t>(BitCast<float>(magnitude) + 0.5f) - BitCast<uint32_t>(0.5f);
  const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  const uint32_t finite = magnitude < (113u << 23) ? denormal : normal;
  return {static_cast<uint16_t>((magnitude >= 0x477ff000u ? special : finite) | sign)};
}

}  // namespace mbrnnt
