#include "cuda/sweep.h"

namespace mbrnnt::cuda {
namespace {

template <typename T>
__global__ void __launch_bounds__(256)
    SimpleSweepKernel(const __grid_constant__ LatticeStage<T> s) {
  const int64_t b = blockIdx.x;
  const bool forward = blockIdx.y == 0;
  const Lattice<T> lattice = s.LatticeOf(b);
  const Extent extent = lattice.extent;
  const DiagonalNumbers<T> numbers(s, forward ? b : s.batch.size + b);
  const int64_t diagonals = extent.frames + extent.labels;
  for (int64_t step = 0; step < diagonals; ++step) {
    const int64_t diagonal = forward ? step : diagonals - 1 - step;
    for (int64_t u = threadIdx.x; u <= extent.labels; u += blockDim.x) {
      const int64_t t = diagonal - u;
      if (!extent.Contains(t, u)) continue;
      numbers(t, u) = forward ? AlphaAt(lattice, numbers, t, u) : BetaAt(lattice, numbers, t, u);
    }
    __syncthreads();
  }
  if (!forward) return;
  __shared__ int num_poisoned;
  if (threadIdx.x == 0) num_poisoned = 0;
  __syncthreads();
  for (int64_t u = threadIdx.x; u <= extent.labels; u += blockDim.x) {
    if (EndsInNan(lattice, numbers, u)) atomicAdd(&num_poisoned, 1);
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    StoreLikelihood(s, b,
                    num_poisoned > 0 || !extent.valid
                        ? Scaled<T>{T(NAN), T(0)}
                        : AlphaAt(lattice, numbers, extent.frames, extent.labels));
  }
}

}  // namespace

template <typename T>
Status SweepSimply(const LatticeStage<T>& stage, cudaStream_t stream) {
  const dim3 blocks(BlocksFor(stage.batch.size), stage.posteriors ? 2 : 1);
  return Launch("SimpleSweepKernel", SimpleSweepKernel<T>, {blocks, 256}, stream, stage);
}

template Status SweepSimply(const LatticeStage<float>&, cudaStream_t);
template Status SweepSimply(const LatticeStage<double>&, cudaStream_t);

}  // namespace mbrnnt::cuda
