// Stand-in for CUDA's <cuda_fp16.h>: sign, 5 bits of exponent (bias 15), 10 bits of mantissa.
// Written with the C library's arithmetic, not with the integer operations of lattice/number.h:
// each can be held against the other.
#pragma once

#include "cuda_runtime.h"

struct __half {
  unsigned short bits;
};

inline __half __ushort_as_half(unsigned short bits) { return {bits}; }
inline unsigned short __half_as_ushort(__half x) { return x.bits; }

inline float __half2float(__half x) {
  const int exponent = (x.bits >> 10) & 31, mantissa = x.bits & 1023;
  float magnitude;
  if (exponent == 31) {
    magnitude = mantissa == 0 ? INFINITY : NAN;
  } else if (exponent == 0) {
    magnitude = ldexpf(static_cast<float>(mantissa), -24);
  } else {
    magnitude = ldexpf(static_cast<float>(1024 + mantissa), exponent - 25);
  }
  return copysignf(magnitude, (x.bits & 0x8000) != 0 ? -1.0f : 1.0f);
}

// Rounds to nearest, ties to even; every NaN becomes 0x7fff, as on the GPU.
inline __half __float2half_rn(float x) {
  if (x != x) return {0x7fff};
  const unsigned sign = signbit(x) ? 0x8000 : 0;
  const float magnitude = fabsf(x);
  if (magnitude >= 65536.0f) return {static_cast<unsigned short>(sign | 0x7c00)};
  // The unit in the last place is 2^(exponent - 10). A carry out of the mantissa goes where it
  // belongs: into the exponent, and from the largest number to infinity.
  const int exponent = magnitude < 0x1p-14f ? -14 : ilogbf(magnitude);
  const long units = lrintf(scalbnf(magnitude, 10 - exponent));
  return {static_cast<unsigned short>(sign | (((exponent + 14) << 10) + units))};
}
inline __half __float2half(float x) { return __float2half_rn(x); }

// The first of a pair is in the lower half of its word.
struct alignas(4) __half2 {
  __half x, y;
};

inline __half2 __floats2half2_rn(float x, float y) {
  return {__float2half_rn(x), __float2half_rn(y)};
}
