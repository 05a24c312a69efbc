// The CPU's traversals of the lattice stages. They know threads only as a
// function that runs a loop body over [0, n) in pieces, in any order.
#pragma once

#include <cstdint>
#include <functional>

#include "lattice/stages.h"

namespace mbrnnt::cpu {

using LoopBody = std::function<void(int64_t begin, int64_t end)>;
using ParallelFor = std::function<void(int64_t n, const LoopBody& body)>;

template <typename L>
void ComputeArcLogProbs(const ArcLogProbsStage<L>& stage, const ParallelFor& parallel_for);

// The lattice's workspace: how many numbers it has, and where in it everything stands.
struct Workspace {
  static int64_t NumbersPerUtterance(int64_t frames, int64_t columns, int64_t num_arcs,
                                     bool with_posteriors);
  template <typename T>
  static void Place(T* numbers, LatticeStage<T>& stage) {
    stage.likelihoods = reinterpret_cast<Scaled<T>*>(numbers);
    stage.workspace = numbers + 2 * stage.batch.size;
  }
};

// `num_threads` only decides what is done side by side.
template <typename T>
void ComputeLattice(const LatticeStage<T>& stage, const ParallelFor& parallel_for,
                    int64_t num_threads);

template <typename T>
void ComputeAlignment(const AlignmentStage<T>& stage, const ParallelFor& parallel_for);

template <typename L>
void ComputeLogitGradients(const LogitGradientsStage<L>& stage, const ParallelFor& parallel_for);

// For which processors the loops in use were compiled: a value of JAX_MBRNNT_CPU_ISA.
const char* InstructionSet();

}  // namespace mbrnnt::cpu
