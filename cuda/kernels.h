// The GPU's traversals of the lattice stages. They queue kernels on the stream that
// they are given and return: no synchronisation, no allocation.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <utility>

#include "lattice/stages.h"

namespace mbrnnt::cuda {

// What became of a stage's launches: the first error and the kernel that met it.
struct Status {
  cudaError_t error = cudaSuccess;
  const char* kernel = nullptr;

  bool ok() const { return error == cudaSuccess; }
};

// Stands for a stream on which nothing is queued: what would be launched there is loaded onto the
// device instead.
inline cudaStream_t OnlyLoading() {
  return reinterpret_cast<cudaStream_t>(~uintptr_t{0});  // the address of none
}

template <typename L>
Status ComputeArcLogProbs(const ArcLogProbsStage<L>& stage, cudaStream_t stream);

// The lattice's workspace: how many numbers it has, and where in it everything stands. Scaled
// ones: of a node its alpha, with posteriors its beta, and its arcs' weights; of an utterance its
// likelihood.
struct Workspace {
  static int64_t NumbersPerUtterance(int64_t frames, int64_t columns, int64_t num_arcs,
                                     bool with_posteriors) {
    return 2 * (frames * columns * (1 + (with_posteriors ? 1 : 0) + num_arcs) + 1);
  }
  template <typename T>
  static void Place(T* numbers, LatticeStage<T>& stage) {
    auto* next = reinterpret_cast<Scaled<T>*>(numbers);
    const auto take = [&](int64_t n) { return std::exchange(next, next + stage.batch.size * n); };
    const int64_t nodes = stage.batch.NodesPerUtterance();
    // The weights first: wide rows, which begin where the buffer does.
    stage.weights = take(nodes * stage.table.size);
    stage.alphas = take(nodes);
    if (stage.posteriors) stage.betas = take(nodes);
    stage.likelihoods = take(1);
  }
};

template <typename T>
Status ComputeLattice(const LatticeStage<T>& stage, cudaStream_t stream);

template <typename L>
Status ComputeLogitGradients(const LogitGradientsStage<L>& stage, cudaStream_t stream);

}  // namespace mbrnnt::cuda
