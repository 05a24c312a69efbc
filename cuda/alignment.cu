// Arc log-probabilities -> the most probable path: a block for an utterance, which has a barrier
// for every anti-diagonal and one thread that follows the path.
#include "cuda/device.h"
#include "lattice/alignment.h"

namespace mbrnnt::cuda {
namespace {

// In diagonal order: those of one anti-diagonal, which are computed at once, are neighbours. Rows
// wrap, so that there are as many as frames.
struct BestBetas {
  Best* data;  // [rows, columns]
  int64_t columns, rows;

  template <typename T>
  MBRNNT_HD BestBetas(const AlignmentStage<T>& s, int64_t b)
      : data(s.betas + b * s.batch.NodesPerUtterance()),
        columns(s.batch.columns),
        rows(s.batch.max_frames) {}
  MBRNNT_HD Best& operator()(int64_t t, int64_t u) const {
    return data[static_cast<uint32_t>(t + u) % static_cast<uint32_t>(rows) * columns + u];
  }
};

template <typename T>
__global__ void __launch_bounds__(256)
    AlignmentKernel(const __grid_constant__ AlignmentStage<T> s) {
  __shared__ int num_poisoned;
  const int64_t b = blockIdx.x;
  const BestLattice<T> lattice = s.LatticeOf(b);
  const Extent extent = lattice.extent;
  const BestBetas betas(s, b);
  if (threadIdx.x == 0) num_poisoned = 0;
  bool poisoned = false;
  for (int64_t diagonal = extent.frames + extent.labels - 1; diagonal >= 0; --diagonal) {
    for (int64_t u = threadIdx.x; u <= extent.labels; u += blockDim.x) {
      const int64_t t = diagonal - u;
      if (!extent.Contains(t, u)) continue;
      const Best beta = BetaAt(lattice, betas, t, u);
      poisoned |= beta.IsPoisoned();
      betas(t, u) = beta;
    }
    __syncthreads();
  }
  if (poisoned) atomicAdd(&num_poisoned, 1);
  __syncthreads();
  if (threadIdx.x == 0) WriteAlignment(s, b, lattice, betas, num_poisoned > 0);
}

}  // namespace

template <typename T>
Status ComputeAlignment(const AlignmentStage<T>& stage, cudaStream_t stream) {
  const Grid grid{dim3(BlocksFor(stage.batch.size)), 256};
  return Launch("AlignmentKernel", AlignmentKernel<T>, grid, stream, stage);
}

template Status ComputeAlignment(const AlignmentStage<float>&, cudaStream_t);
template Status ComputeAlignment(const AlignmentStage<double>&, cudaStream_t);

}  // namespace mbrnnt::cuda
