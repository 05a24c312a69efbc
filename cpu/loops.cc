// Compiled once per instruction set: MBRNNT_ISA names the namespace. Whatever is
// called here must be inlined, lest the linker keep one copy for all of them.
#include "cpu/loops.h"

#include "cpu/lattice_loops.h"
#include "cpu/row_loops.h"

namespace mbrnnt::cpu::MBRNNT_ISA {

template <typename L>
RowLoops<L> ForRows() {
  return {&ArcLogProbs<L>, &LogitGradients<L>};
}
template <typename T>
LatticeLoops<T> ForLattices() {
  return {&Weights<T>, &SumsOverArcs<T>, &Posteriors<T>};
}

template RowLoops<float> ForRows();
template RowLoops<double> ForRows();
template RowLoops<BFloat16> ForRows();
template RowLoops<Float16> ForRows();
template LatticeLoops<float> ForLattices();
template LatticeLoops<double> ForLattices();

}  // namespace mbrnnt::cpu::MBRNNT_ISA
