// exp of a number that is at most about 0 (a log-probability, a shifted logit),
// written so that it can be computed for many at once: no branch, no call, no
// float-to-int conversion of a NaN.
#pragma once

#include <cmath>
#include <cstdint>

#include "lattice/macros.h"
#include "lattice/number.h"

namespace mbrnnt {

template <typename T>
struct Exponential {
  // Within 1.2e-7 of the value (tests/native/exp_test.cc tries every float); 0 below
  // -87.3 (where float32 turns denormal), so exp(-inf) is 0; NaN stays NaN.
  static MBRNNT_HD T Of(T x) {
    using Bits = typename NumberTraits<T>::Bits;
    constexpr float kLeast = -87.3f, kRound = NumberTraits<T>::kRound;
    const T bounded = x < kLeast ? Constant<T>(kLeast) : x;
    const T sum = bounded * 1.44269504f + kRound;
    const T n = sum - kRound;
    const T r = (bounded - n * 0.693359375f) - n * -2.12194440e-4f;
    // exp(r) on [-ln(2)/2, ln(2)/2]: 1 + r + r^2 * q(r), coefficients after Cephes' expf.
    T q = 1.9875691500e-4f * r + 1.3981999507e-3f;
    q = q * r + 8.3334519073e-3f;
    q = q * r + 4.1665795894e-2f;
    q = q * r + 1.6666665459e-1f;
    q = q * r + 5.0000001201e-1f;
    const T mantissa = q * r * r + r + 1.0f;
    const Bits exponent = (BitCast<Bits>(sum) - 0x4b400000u + 127u) << 23;  // less kRound's bits
    const T result = mantissa * BitCast<T>(exponent);
    return x < kLeast ? T{} : result;
  }
};
template <>
struct Exponential<double> {
  static MBRNNT_HD double Of(double x) { return std::exp(x); }
};

template <typename T>
MBRNNT_HD T Exp(T x) {
  return Exponential<T>::Of(x);
}

}  // namespace mbrnnt
