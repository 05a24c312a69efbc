#include <cstdlib>
#include <cstring>

#include "cpu/loops.h"

namespace mbrnnt::cpu {
namespace {

enum class Isa { kBaseline, kAvx2, kAvx512, kAvx512Bf16 };

Isa BestIsa() {
  const char* wanted = std::getenv("JAX_MBRNNT_CPU_ISA");
  const auto may_be = [&](const char* isa) {
    return wanted == nullptr || std::strcmp(wanted, isa) == 0;
  };
#ifdef MBRNNT_HAS_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  const bool avx512_bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
  if (avx512_bf16 && may_be("avx512_bf16")) return Isa::kAvx512Bf16;
  if (avx512 && may_be("avx512")) return Isa::kAvx512;
  if (avx2 && may_be("avx2")) return Isa::kAvx2;
#endif
  (void)may_be;
  return Isa::kBaseline;
}

Isa ChosenIsa() {
  static const Isa isa = BestIsa();
  return isa;
}

}  // namespace

template <typename L>
RowLoops<L> BestRowLoops() {
  switch (ChosenIsa()) {
#ifdef MBRNNT_HAS_X86
    case Isa::kAvx512Bf16:
      return avx512_bf16::ForRows<L>();
    case Isa::kAvx512:
      return avx512::ForRows<L>();
    case Isa::kAvx2:
      return avx2::ForRows<L>();
#endif
    default:
      return baseline::ForRows<L>();
  }
}

template <typename T>
LatticeLoops<T> BestLatticeLoops() {
  switch (ChosenIsa()) {
#ifdef MBRNNT_HAS_X86
    case Isa::kAvx512Bf16:
      return avx512_bf16::ForLattices<T>();
    case Isa::kAvx512:
      return avx512::ForLattices<T>();
    case Isa::kAvx2:
      return avx2::ForLattices<T>();
#endif
    default:
      return baseline::ForLattices<T>();
  }
}

template RowLoops<float> BestRowLoops();
template RowLoops<double> BestRowLoops();
template RowLoops<BFloat16> BestRowLoops();
template RowLoops<Float16> BestRowLoops();
template LatticeLoops<float> BestLatticeLoops();
template LatticeLoops<double> BestLatticeLoops();

}  // namespace mbrnnt::cpu
