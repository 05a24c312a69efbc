// Arc log-probabilities -> losses and posteriors.
#include "cuda/sweep.h"

namespace mbrnnt::cuda {
namespace {

// A block goes over so many frames in the same columns: a node's number shares its sector of memory
// with numbers of the frames beside it.
template <typename T>
constexpr int kFramesAtOnce = 32 / sizeof(T);

// The two sweeps' numbers as the law asks for them.
template <typename T>
struct ByDiagonals {
  DiagonalNumbers<T> alphas, betas;

  MBRNNT_HD ByDiagonals(const LatticeStage<T>& s, const BasicExtent<int32_t>&, int64_t b)
      : alphas(s, b), betas(s, s.batch.size + b) {}
};
struct ByTiles {
  TileNumbers alphas, betas;

  __device__ __forceinline__ ByTiles(const LatticeStage<float>& s,
                                     const BasicExtent<int32_t>& extent, int64_t b)
      : alphas(s, extent, b, true), betas(s, extent, s.batch.size + b, false) {}
};

// How a batch is divided: into `tiles` of columns and `groups` of frames for each utterance. (More
// pieces than 32 bits count fit into no memory.)
struct Pieces {
  uint32_t tiles, groups, number;

  MBRNNT_HD Pieces(const Batch& batch, int frames_at_once)
      : tiles(static_cast<uint32_t>((batch.columns + kWarp - 1) / kWarp)),
        groups(static_cast<uint32_t>((batch.max_frames + frames_at_once - 1) / frames_at_once)),
        number(static_cast<uint32_t>(batch.size) * tiles * groups) {}
};

// A warp for 32 columns of a frame, a lane for a node: what it has read is written by way of shared
// memory, side by side, and may take the place of the arc log-probabilities.
template <typename T, typename Numbers>
__global__ void __launch_bounds__(kFramesAtOnce<T>* kWarp)
    PosteriorsKernel(const __grid_constant__ LatticeStage<T> s) {
  constexpr int kFrames = kFramesAtOnce<T>;
  __shared__ T staged[kFrames][kWarp * kMaxArcs];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, num_arcs = s.table.size;
  const Pieces pieces(s.batch, kFrames);
  T* const own = staged[warp] + lane * num_arcs;
  for (uint32_t piece = blockIdx.x; piece < pieces.number; piece += gridDim.x) {
    const uint32_t group = piece % pieces.groups, rest = piece / pieces.groups;
    const uint32_t b = rest / pieces.tiles, first = rest % pieces.tiles * kWarp;
    const auto t = static_cast<int32_t>(group * kFrames) + warp;
    const auto u = static_cast<int32_t>(first) + lane;
    if (t >= s.batch.max_frames) continue;
    const Lattice<T, int32_t> lattice = s.template LatticeOf<int32_t>(b);
    if (lattice.extent.Contains(t, u)) {
      const Numbers numbers(s, lattice.extent, b);
      const Scaled<T> likelihood = s.likelihoods[b];
      const Scaled<T> share = AlphaShare(numbers.alphas(t, u), likelihood);
      for (int a = 0; a < num_arcs; ++a) {
        own[a] = Posterior(share, ArcBeta(lattice, numbers.betas, t, u, a), likelihood);
      }
    } else {
      for (int a = 0; a < num_arcs; ++a) own[a] = lattice.extent.valid ? T(0) : T(NAN);
    }
    __syncwarp();
    const int64_t columns = s.batch.columns - first < kWarp ? s.batch.columns - first : kWarp;
    T* const posteriors =
        s.posteriors + ((b * s.batch.max_frames + t) * s.batch.columns + first) * num_arcs;
    for (int n = lane; n < columns * num_arcs; n += kWarp) posteriors[n] = staged[warp][n];
    __syncwarp();
  }
}

template <typename T, typename Numbers>
Status ComputePosteriors(const LatticeStage<T>& s, cudaStream_t stream) {
  if (!s.posteriors) return {};
  const Pieces pieces(s.batch, kFramesAtOnce<T>);
  const Grid grid{dim3(BlocksFor(pieces.number)), kFramesAtOnce<T> * kWarp};
  return Launch("PosteriorsKernel", PosteriorsKernel<T, Numbers>, grid, stream, s);
}

}  // namespace

int64_t Workspace::NumbersPerUtterance(int64_t frames, int64_t columns, int64_t,
                                       bool with_posteriors) {
  // Of the fast sweep, in float32; the simple one needs fewer.
  const int64_t words =
      SweepStore::WordsPerUtterance(Tiling::Of(frames, columns), with_posteriors ? 2 : 1);
  return words * int64_t{sizeof(uint64_t) / sizeof(float)} + kNumbersPerLikelihood;
}

template <typename T>
Status ComputeLatticeSimply(const LatticeStage<T>& stage, cudaStream_t stream) {
  const Status status = SweepSimply(stage, stream);
  return status.ok() ? ComputePosteriors<T, ByDiagonals<T>>(stage, stream) : status;
}

template <typename T>
Status ComputeLattice(const LatticeStage<T>& stage, cudaStream_t stream) {
  if constexpr (sizeof(T) == sizeof(float)) {
    if (const std::optional<SweepPlan> plan = PlanSweep(stage)) {
      const Status status = SweepFast(stage, *plan, stream);
      return status.ok() ? ComputePosteriors<T, ByTiles>(stage, stream) : status;
    }
  }
  return ComputeLatticeSimply(stage, stream);
}

template Status ComputeLatticeSimply(const LatticeStage<float>&, cudaStream_t);
template Status ComputeLatticeSimply(const LatticeStage<double>&, cudaStream_t);
template Status ComputeLattice(const LatticeStage<float>&, cudaStream_t);
template Status ComputeLattice(const LatticeStage<double>&, cudaStream_t);

}  // namespace mbrnnt::cuda
