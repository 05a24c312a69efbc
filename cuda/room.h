// How the GPU carries a stage out for XLA, on the stream that a binding binds.
#pragma once

#include <string>

#include "cuda/kernels.h"
#include "ffi/handlers.h"

namespace mbrnnt::cuda {

struct Cuda {
  using Workspace = cuda::Workspace;

  template <typename L>
  static ffi::Error Run(cudaStream_t stream, const ArcLogProbsStage<L>& stage) {
    return ToError(ComputeArcLogProbs(stage, stream));
  }
  template <typename T>
  static ffi::Error Run(cudaStream_t stream, const LatticeStage<T>& stage) {
    return ToError(ComputeLattice(stage, stream));
  }
  template <typename T>
  static ffi::Error Run(cudaStream_t stream, const AlignmentStage<T>& stage) {
    return ToError(ComputeAlignment(stage, stream));
  }
  template <typename L>
  static ffi::Error Run(cudaStream_t stream, const LogitGradientsStage<L>& stage) {
    return ToError(ComputeLogitGradients(stage, stream));
  }

  static ffi::Error ToError(const Status& status) {
    if (status.ok()) return ffi::Error::Success();
    return ffi::Error::Internal(std::string("jax_mbrnnt: ") + status.kernel + ": " +
                                cudaGetErrorString(status.error));
  }
};

}  // namespace mbrnnt::cuda
