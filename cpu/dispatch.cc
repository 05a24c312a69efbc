#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "cpu/kernels.h"
#include "cpu/loops.h"

namespace mbrnnt::cpu {
namespace {

enum Isa { kBaseline, kAvx2, kAvx512, kAvx512Bf16 };

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
  if (avx512_bf16 && may_be("avx512_bf16")) return kAvx512Bf16;
  if (avx512 && may_be("avx512")) return kAvx512;
  if (avx2 && may_be("avx2")) return kAvx2;
#endif
  if (!may_be("baseline")) {
    std::fprintf(stderr,
                 "jax_mbrnnt: JAX_MBRNNT_CPU_ISA=%s is not for this processor, "
                 "the baseline is used\n",
                 wanted);
  }
  return kBaseline;
}

Isa ChosenIsa() {
  static const Isa isa = BestIsa();
  return isa;
}

}  // namespace

const char* InstructionSet() {
  constexpr const char* kNames[] = {"baseline", "avx2", "avx512", "avx512_bf16"};
  return kNames[ChosenIsa()];
}

// In the order of Isa.
#ifdef MBRNNT_HAS_X86
#define MBRNNT_FOR_EACH_ISA(f) {baseline::f, avx2::f, avx512::f, avx512_bf16::f}
#else
#define MBRNNT_FOR_EACH_ISA(f) {baseline::f}
#endif

template <typename L>
RowLoops<L> BestRowLoops() {
  constexpr RowLoops<L> (*kLoops[])() = MBRNNT_FOR_EACH_ISA(ForRows<L>);
  return kLoops[ChosenIsa()]();
}

template <typename T>
LatticeLoops<T> BestLatticeLoops() {
  constexpr LatticeLoops<T> (*kLoops[])() = MBRNNT_FOR_EACH_ISA(ForLattices<T>);
  return kLoops[ChosenIsa()]();
}

#undef MBRNNT_FOR_EACH_ISA

template RowLoops<float> BestRowLoops();
template RowLoops<double> BestRowLoops();
template RowLoops<BFloat16> BestRowLoops();
template RowLoops<Float16> BestRowLoops();
template LatticeLoops<float> BestLatticeLoops();
template LatticeLoops<double> BestLatticeLoops();

}  // namespace mbrnnt::cpu
