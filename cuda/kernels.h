// The GPU's traversals of the lattice stages. They queue kernels on the stream that
// they are given and return: no synchronisation, no allocation.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

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

// The lattice's workspace: how many numbers it has, and where in it everything stands. What the
// sweeps keep of the nodes is theirs to say (cuda/sweep.h).
struct Workspace {
  static int64_t NumbersPerUtterance(int64_t frames, int64_t columns, int64_t num_arcs,
                                     bool with_posteriors);
  template <typename T>
  static void Place(T* numbers, LatticeStage<T>& stage) {
    const int64_t of_nodes =
        stage.batch.size * (NumbersPerUtterance(stage.batch.max_frames, stage.batch.columns,
                                                stage.table.size, stage.posteriors != nullptr) -
                            kNumbersPerLikelihood);
    stage.workspace = numbers;  // first: it has the wider rows
    stage.likelihoods = reinterpret_cast<Scaled<T>*>(numbers + of_nodes);
  }
  static constexpr int64_t kNumbersPerLikelihood = 2;
};

template <typename T>
Status ComputeLattice(const LatticeStage<T>& stage, cudaStream_t stream);

template <typename T>
Status ComputeAlignment(const AlignmentStage<T>& stage, cudaStream_t stream);

template <typename L>
Status ComputeLogitGradients(const LogitGradientsStage<L>& stage, cudaStream_t stream);

}  // namespace mbrnnt::cuda
