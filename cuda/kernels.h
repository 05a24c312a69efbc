// The GPU's traversals of the lattice stages. They queue kernels on the stream that
// they are given and return: no synchronisation, no allocation.
#pragma once

#include <cuda_runtime.h>

#include "lattice/stages.h"

namespace mbrnnt::cuda {

// What became of a stage's launches: the first error and the kernel that met it.
struct Status {
  cudaError_t error = cudaSuccess;
  const char* kernel = nullptr;

  bool ok() const { return error == cudaSuccess; }
};

template <typename L>
Status ComputeArcLogProbs(const ArcLogProbsStage<L>& stage, cudaStream_t stream);

template <typename T>
Status ComputeLattice(const LatticeStage<T>& stage, cudaStream_t stream);

template <typename L>
Status ComputeLogitGradients(const LogitGradientsStage<L>& stage, cudaStream_t stream);

}  // namespace mbrnnt::cuda
