// Arc log-probabilities -> the most probable path: a block for an utterance, which has a barrier
// for every anti-diagonal and a warp that follows the path.
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

// The law's BestArcAt, by a warp that has a lane for each arc.
static_assert(kMaxArcs <= kWarp);
template <typename T>
__device__ __forceinline__ int BestArcOfWarp(const BestLattice<T>& lattice, const BestBetas& betas,
                                             int64_t t, int64_t u) {
  const int arc = threadIdx.x % kWarp;
  const double own = arc < lattice.table.size ? ArcBeta(lattice, betas, t, u, arc).log_prob
                                              : Best::Zero().log_prob;
  Best most{own};
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    most = Add(most, Best{__shfl_xor_sync(kAllLanes, most.log_prob, distance)});
  }
  return __ffs(__ballot_sync(kAllLanes, own == most.log_prob)) - 1;
}

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
  if (threadIdx.x >= kWarp) return;
  WriteAlignment(
      s, b, lattice, PathLogProb(lattice, betas, num_poisoned > 0),
      [&](int64_t t, int64_t u) { return BestArcOfWarp(lattice, betas, t, u); },
      /*writes=*/threadIdx.x == 0);
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
