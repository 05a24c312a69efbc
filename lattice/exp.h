// exp of a number that is at most about 0 (a log-probability, a shifted logit) and log of
// one that is at least about 1 (a sum of such exps), written so that they can be computed
// for many at once: no branch, no call, no float-to-int conversion of a NaN.
#pragma once

#include <cmath>
#include <cstdint>

#include "lattice/macros.h"
#include "lattice/number.h"

namespace mbrnnt {

template <typename T>
struct Exponential {
  // Within 1.2e-7 of the value (tests/native/exp_test.cc tries every float) down to -87.3,
  // where float32 turns denormal; 0 below -87.7, so exp(-inf) is 0; NaN stays NaN.
  static MBRNNT_HD T Of(T x) {
    using Traits = NumberTraits<T>;
    constexpr float kRound = Traits::kRound + Traits::kExponentBias;
    const T bounded = Traits::AtLeast(Constant<T>(-88.0f), x);
    const T sum = bounded * 1.44269504f + kRound;
    const T n = sum - kRound;
    const T r = (bounded - n * 0.693359375f) - n * -2.12194440e-4f;
    // 2^n, its biased exponent out of the sum's low bits; that of n = -127 is 0, and so is it.
    const auto exponent = BitCast<typename Traits::Bits>(sum) << Traits::kExponentBit;
    return NearZero(r) * BitCast<T>(exponent);
  }
  // exp(r) on [-ln(2)/2, ln(2)/2]: 1 + r * (1 + r * q(r)), q a minimax fit (3e-9).
  static MBRNNT_HD T NearZero(T r) {
    T q = 1.3814539416e-3f * r + 8.3687454462e-3f;
    q = q * r + 4.1668388993e-2f;
    q = q * r + 1.6666521132e-1f;
    q = q * r + 4.9999994040e-1f;
    return (q * r + 1.0f) * r + 1.0f;
  }
};
template <>
struct Exponential<double> {
  static MBRNNT_HD double Of(double x) { return std::exp(x); }
  static MBRNNT_HD double NearZero(double x) { return std::exp(x); }
};

template <typename T>
MBRNNT_HD T Exp(T x) {
  return Exponential<T>::Of(x);
}

template <typename T>
struct Logarithm {
  // Of a register of floats, none of them 0, denormal or negative. Within 1.2e-7 of the value,
  // relative, or of 0.5 where that is more (tests/native/exp_test.cc tries every float).
  static MBRNNT_HD T Of(T x) {
    using Traits = NumberTraits<T>;
    using Bits = typename Traits::Bits;
    constexpr uint32_t kRootOfHalf = 0x3f3504f3u, kOne = 0x3f800000u, kFraction = 0x007fffffu;
    const Bits bits = BitCast<Bits>(x) - kRootOfHalf + kOne;
    // x = (1 + r) * 2^n with 1 + r from sqrt(1/2) to sqrt(2); n out of its biased bits.
    const T n = BitCast<T>((bits >> 23) + 0x4b400000u) - (Traits::kRound + Traits::kExponentBias);
    const T r = BitCast<T>((bits & kFraction) + kRootOfHalf) - 1.0f;
    // log(1 + r) = r - r^2 / 2 + r^3 * q(r), coefficients after Cephes' logf.
    T q = 7.0376836292e-2f * r - 1.1514610310e-1f;
    q = q * r + 1.1676998740e-1f;
    q = q * r - 1.2420140846e-1f;
    q = q * r + 1.4249322787e-1f;
    q = q * r - 1.6668057665e-1f;
    q = q * r + 2.0000714765e-1f;
    q = q * r - 2.4999993993e-1f;
    q = q * r + 3.3333331174e-1f;
    const T square = r * r;
    const T small = (q * r * square + n * -2.12194440e-4f) - 0.5f * square;
    const T result = (r + small) + n * 0.693359375f;
    return x < INFINITY ? result : x;  // +inf and NaN stay
  }
};
template <>
struct Logarithm<float> {
  static MBRNNT_HD float Of(float x) { return std::log(x); }
};
template <>
struct Logarithm<double> {
  static MBRNNT_HD double Of(double x) { return std::log(x); }
};

template <typename T>
MBRNNT_HD T Log(T x) {
  return Logarithm<T>::Of(x);
}

}  // namespace mbrnnt
