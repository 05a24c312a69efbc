// Every float32 from -infinity to 0, and the others' few kinds: how far is Exp, on a
// register of numbers, from exp in float64? And Log, from 1/2 up? Built once for each
// instruction set.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "cpu/simd.h"

namespace {

using namespace mbrnnt;
using namespace mbrnnt::cpu::MBRNNT_ISA;

void Fail(const char* function, float x, float got, double expected) {
  std::printf("%s(%.9g): got %.9g, expected %.9g\n", function, x, got, expected);
  std::exit(1);
}

void TestLog() {
  for (const float x : {INFINITY, NAN, 1.0f}) {
    const float got = Log(Constant<Vec<float>>(x))[0], expected = std::log(x);
    if (!(got == expected || (std::isnan(x) && std::isnan(got)))) Fail("log", x, got, expected);
  }
  double worst = 0;
  const uint32_t first = BitCast<uint32_t>(0.5f), last = BitCast<uint32_t>(INFINITY);
  for (uint32_t bits = first; bits < last; bits += kLanes<float>) {
    Vec<float> x;
    for (int i = 0; i < kLanes<float>; ++i) x[i] = BitCast<float>(bits + i);
    const Vec<float> got = Log(x);
    for (int i = 0; i < kLanes<float>; ++i) {
      const double expected = std::log(double{x[i]});
      const double error = std::abs(got[i] - expected) / std::max(0.5, std::abs(expected));
      if (!(error <= 1.2e-7)) Fail("log", x[i], got[i], expected);
      worst = std::max(worst, error);
    }
  }
  std::printf("log: worst error %.2g, relative or of 0.5\n", worst);
}

}  // namespace

int main() {
  const float special[] = {-INFINITY, NAN, -1e30f, -88.0f, 0.0f, -0.0f, 1e-40f, -1e-40f};
  for (const float x : special) {
    const float got = Exp(Constant<Vec<float>>(x))[0];
    const float expected = x < -87.7f ? 0.0f : std::exp(x);
    if (!(got == expected || (std::isnan(x) && std::isnan(got)))) Fail("exp", x, got, expected);
  }
  double worst = 0;
  // Negative floats count up in their bits: from -0 to -87.3, then to below it.
  constexpr uint32_t kFirst = 0x80000000u;
  const uint32_t last = BitCast<uint32_t>(-88.0f);
  for (uint32_t bits = kFirst; bits < last; bits += kLanes<float>) {
    Vec<float> x;
    for (int i = 0; i < kLanes<float>; ++i) x[i] = BitCast<float>(bits + i);
    const Vec<float> got = Exp(x);
    for (int i = 0; i < kLanes<float>; ++i) {
      const double expected = std::exp(double{x[i]});
      const double error = std::abs(got[i] - expected);
      if (x[i] < -87.3f) {  // a denormal, or 0 for one
        if (!(error <= 1.2e-38)) Fail("exp", x[i], got[i], expected);
        continue;
      }
      if (!(error <= 1.2e-7 * expected)) Fail("exp", x[i], got[i], expected);
      worst = std::max(worst, error / expected);
    }
  }
  std::printf("exp: worst error %.2g, relative\n", worst);
  TestLog();
  std::printf("all as expected\n");
}
