// Every float32 from -infinity to 0.1, and the others' few kinds: how far is Exp, on a
// register of numbers, from exp in float64? Built once for each instruction set.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "cpu/simd.h"

namespace {

using namespace mbrnnt;
using namespace mbrnnt::cpu::MBRNNT_ISA;

void Fail(float x, float got) {
  std::printf("exp(%.9g): got %.9g, expected %.9g\n", x, got, std::exp(double{x}));
  std::exit(1);
}

}  // namespace

int main() {
  const float special[] = {-INFINITY, NAN, -1e30f, -88.0f, 0.0f, -0.0f, 1e-40f, -1e-40f};
  for (const float x : special) {
    const float got = Exp(Constant<Vec<float>>(x))[0];
    const float expected = x < -87.3f ? 0.0f : std::exp(x);
    if (!(got == expected || (std::isnan(x) && std::isnan(got)))) Fail(x, got);
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
      const double expected = x[i] < -87.3f ? 0.0 : std::exp(double{x[i]});
      const double error = std::abs(got[i] - expected);
      if (!(error <= 1.2e-7 * expected)) Fail(x[i], got[i]);
      if (expected > 0 && error / expected > worst) worst = error / expected;
    }
  }
  std::printf("worst error %.2g, relative\nall as expected\n", worst);
}
