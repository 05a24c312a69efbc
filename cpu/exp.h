// exp of a number that is at most about 0 (a log-probability, a shifted logit),
// written so that a compiler turns a loop over it into SIMD: no branch, no call,
// no float-to-int conversion of a NaN.
#pragma once

#include <cmath>
#include <cstdint>

#include "lattice/macros.h"
#include "lattice/number.h"

namespace mbrnnt::cpu {

// Within 2 units in the last place; 0 below -87.3 (where float32 turns denormal),
// so exp(-inf) is 0; NaN stays NaN.
MBRNNT_HD float Exp(float x) {
  const float bounded = x < -87.3f ? -87.3f : x;
  // Adding 1.5 * 2^23 leaves round(x / ln 2) in the low bits of the sum.
  constexpr float kRound = 12582912.0f;
  const float sum = bounded * 1.44269504f + kRound;
  const float n = sum - kRound;
  const float r = (bounded - n * 0.693359375f) - n * -2.12194440e-4f;
  // exp(r) on [-ln(2)/2, ln(2)/2]: 1 + r + r^2 * q(r), coefficients after Cephes' expf.
  float q = 1.9875691500e-4f;
  q = q * r + 1.3981999507e-3f;
  q = q * r + 8.3334519073e-3f;
  q = q * r + 4.1665795894e-2f;
  q = q * r + 1.6666665459e-1f;
  q = q * r + 5.0000001201e-1f;
  const float mantissa = q * r * r + r + 1.0f;
  const uint32_t exponent = (BitCast<uint32_t>(sum) - BitCast<uint32_t>(kRound) + 127u) << 23;
  const float result = mantissa * BitCast<float>(exponent);
  return x < -87.3f ? 0.0f : result;
}

MBRNNT_HD double Exp(double x) { return std::exp(x); }

}  // namespace mbrnnt::cpu
