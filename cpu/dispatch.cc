#include "cpu/rows.h"

namespace mbrnnt::cpu {

template <typename L>
RowLoops<L> BestRowLoops() {
#ifdef MBRNNT_HAS_AVX2
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return avx2::Loops<L>();
#endif
  return baseline::Loops<L>();
}

template RowLoops<float> BestRowLoops();
template RowLoops<double> BestRowLoops();
template RowLoops<BFloat16> BestRowLoops();
template RowLoops<Float16> BestRowLoops();

}  // namespace mbrnnt::cpu
