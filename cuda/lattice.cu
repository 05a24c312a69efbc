// Arc log-probabilities -> losses and posteriors.
#include "cuda/sweep.h"

namespace mbrnnt::cuda {
namespace {

// A block for every frame, a thread for every arc of it: reading and writing are
// contiguous, and an arc's posterior may take the place of its log-probability.
template <typename T>
__global__ void __launch_bounds__(256) PosteriorsKernel(const __grid_constant__ LatticeStage<T> s) {
  const int64_t columns = s.batch.columns, rows = s.batch.size * s.batch.max_frames;
  const int num_arcs = s.table.size;
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const int64_t b = row / s.batch.max_frames, t = row % s.batch.max_frames;
    const Lattice<T> lattice = s.LatticeOf(b);
    const DiagonalNumbers<T> alphas(s.batch, s.alphas, b), betas(s.batch, s.betas, b);
    const Scaled<T> likelihood = s.likelihoods[b];
    const T padding = lattice.extent.valid ? T(0) : T(NAN);
    T* posteriors = s.posteriors + row * columns * num_arcs;
    int64_t u = threadIdx.x / num_arcs;
    int a = threadIdx.x % num_arcs;
    while (u < columns) {
      posteriors[u * num_arcs + a] = lattice.extent.Contains(t, u)
                                         ? ArcPosterior(lattice, alphas, betas, likelihood, t, u, a)
                                         : padding;
      u += blockDim.x / num_arcs;
      a += blockDim.x % num_arcs;
      if (a >= num_arcs) {
        a -= num_arcs;
        ++u;
      }
    }
  }
}

// What a block of this device may have of shared memory.
cudaError_t SharedBytes(int64_t& bytes) {
  int device = 0, most = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  }
  bytes = most;
  return error;
}

}  // namespace

template <typename T>
Status ComputeLattice(const LatticeStage<T>& stage, cudaStream_t stream) {
  int64_t shared_bytes = 0;
  const cudaError_t error = SharedBytes(shared_bytes);
  if (error != cudaSuccess) return {error, "SweepKernel"};
  const std::optional<SweepPlan> plan = PlanSweep(stage, shared_bytes);
  const Status status = plan ? SweepFast(stage, *plan, stream) : SweepSimply(stage, stream);
  if (!status.ok() || !stage.posteriors) return status;
  const Grid grid{dim3(BlocksFor(stage.batch.size * stage.batch.max_frames)), 256};
  return Launch("PosteriorsKernel", PosteriorsKernel<T>, grid, stream, stage);
}

template Status ComputeLattice(const LatticeStage<float>&, cudaStream_t);
template Status ComputeLattice(const LatticeStage<double>&, cudaStream_t);

}  // namespace mbrnnt::cuda
