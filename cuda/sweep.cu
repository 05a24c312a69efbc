// The fast sweep: a block for each tile of 32 columns, direction and utterance.
//
// One warp walks, a lane in each column, and the others bring what it needs a chunk of 8 steps
// ahead, the weights, which are exponentials of the arc log-probabilities, and the numbers that
// come from the left: two slots of shared memory change hands at a barrier a chunk. What a tile's
// last column sends to the right goes through global memory to another block, which may be on
// another multiprocessor: all tiles of a lattice are under way at once, each 4 chunks behind the
// one to its left. Blocks take tiles in order, by a counter, so that whoever waits for a tile waits
// for a block that is running or done.
//
// In a step a lane takes what its left neighbour sent in the step before, adds what its own
// blanks have brought, and has the number of its node. It then sends on: times the blanks'
// weights into a window of the next 8 steps of its own column, times the labels' to the right.
//
// Numbers are doubles in a unit of 2^unit, which each lane has for itself and changes once a
// chunk: so a product with a weight and its sum are one instruction, and 2^-750 to 2^100 is room
// for a dozen steps by e^23 each, up or down. A chunk that leaves it, or has a weight that is no
// normal float, or was sent numbers that fit into no unit, is done by ExactChunk.
#include "cuda/producer.h"
#include "cuda/walker.h"

namespace mbrnnt::cuda {
namespace {

template <typename P>
__global__ void __launch_bounds__(P::kThreads, P::kCount > 5 ? 1 : 3)
    SweepKernel(const __grid_constant__ LatticeStage<float> s,
                const __grid_constant__ SweepPlan plan) {
  __shared__ BlockMemory<P> memory;
  __shared__ uint32_t taken;
  const SweepStore store(s);
  const auto walks = static_cast<uint32_t>(s.batch.size * (s.posteriors ? 2 : 1));
  if (threadIdx.x == 0) {
    // (Who has no neighbour waits for nobody.)
    taken = store.HasBorders() ? atomicAdd(reinterpret_cast<uint32_t*>(store.Shared()), 1u) + 1u
                               : blockIdx.x;
  }
  __syncthreads();
  const uint32_t number = taken, walk_number = number % walks;
  const int64_t b = walk_number < s.batch.size ? walk_number : walk_number - s.batch.size;

  const Lattice<float, int32_t> lattice = s.LatticeOf<int32_t>(b);
  const auto& extent = lattice.extent;
  if (!extent.valid && number < s.batch.size && threadIdx.x == 0) {
    StoreLikelihood(s, b, Scaled<double>{NAN, 0});
  }
  const auto tile = static_cast<int32_t>(number / walks);
  const Tiling tiling = Tiling::Of(extent.frames, int64_t{extent.labels} + 1);
  if (tile >= tiling.tiles) return;
  // Each role has its own: the walker's is in memory, where ExactChunk looks for it.
  const auto walk = [&](bool forward) {
    return TileWalk{
        lattice, tiling, tile, forward, store.Numbers(walk_number), store.LeftBorders(walk_number)};
  };
  const int chunks = tiling.Chunks(tile);
  const bool forward = walk_number < s.batch.size;
  const int walking_lane = static_cast<int>(threadIdx.x) - kWarp;  // in the second warp
  if (0 <= walking_lane && walking_lane < kWarp) {
    Walk<P>(walk(forward), plan, chunks, memory);
  } else if (forward) {
    Produce<P>(walk(true), plan, chunks, memory.slots);
  } else {
    Produce<P>(walk(false), plan, chunks, memory.slots);
  }
  // The final node.
  const int lane = extent.labels % kWarp, step = extent.frames + lane;
  if (forward && tile == tiling.tiles - 1 && walking_lane == lane) {
    const NodeNumbers numbers = store.Numbers(walk_number);
    StoreLikelihood(s, b, numbers.At(numbers.ChunkAt(tile, step / kChunk), lane, step % kChunk));
  }
}

// Builds in order of what they cost: RNN-T, multi-blank, TDT; the last one has everything that is
// no longer than a chunk.
template <typename Body>
void ForEachBuild(const Body& body) {
  body(Planes<0, 0b10>());
  body(Planes<0, 0b100010110>());
  body(Planes<0, 0b111111110>());
  body(Planes<4, 0b11110>());
  body(Planes<8, 0b111111110>());
}

}  // namespace

std::optional<SweepPlan> PlanSweep(const LatticeStage<float>& stage) {
  constexpr int64_t kMost = int64_t{1} << 28, kMostColumns = int64_t{1} << 20;
  if (stage.batch.max_frames > kMost || stage.batch.columns > kMostColumns) return {};
  const Tiling room = Tiling::Of(stage.batch.max_frames, stage.batch.columns);
  if (NodeNumbers::Chunks(room) * kBlock > int64_t{UINT32_MAX}) return {};
  std::optional<SweepPlan> best;
  int build = 0, fewest_long = kMaxArcs + 1;
  ForEachBuild([&](auto planes) {
    using P = decltype(planes);
    SweepPlan plan = {};
    plan.build = build++;
    for (int32_t& a : plan.arcs) a = -1;
    bool fits = true;
    int num_long = 0;
    for (int a = 0; a < stage.table.size; ++a) {
      const Arc arc = stage.table.arcs[a];
      if (arc.duration > stage.batch.max_frames) continue;  // never there
      const uint32_t bit = 1u << a;
      (arc.emits ? plan.labels : plan.blanks) |= bit;
      const int p = P::Of(arc);
      if (p < 0) {
        (arc.emits ? plan.long_labels : plan.long_blanks) |= bit;
        fits &= arc.duration >= kChunk && (!arc.emits || P::kLabels > 1);
        ++num_long;
      } else {
        fits &= plan.arcs[p] < 0;
        plan.arcs[p] = a;
      }
    }
    if (fits && num_long < fewest_long) {
      best = plan;
      fewest_long = num_long;
    }
  });
  return best;
}

Status SweepFast(const LatticeStage<float>& stage, const SweepPlan& plan, cudaStream_t stream) {
  const SweepStore store(stage);
  const Tiling room = Tiling::Of(stage.batch.max_frames, stage.batch.columns);
  const int64_t blocks = room.tiles * stage.batch.size * (stage.posteriors ? 2 : 1);
  if (blocks == 0) return {};
  if (store.HasBorders() && stream != OnlyLoading()) {
    const cudaError_t error =
        cudaMemsetAsync(store.Shared(), 0xff, store.SharedWords() * sizeof(uint64_t), stream);
    if (error != cudaSuccess) return {error, "cudaMemsetAsync"};
  }
  Status status;
  int build = 0;
  ForEachBuild([&](auto planes) {
    if (build++ != plan.build) return;
    const Grid grid{dim3(BlocksFor(blocks)), decltype(planes)::kThreads};
    status = Launch("SweepKernel", SweepKernel<decltype(planes)>, grid, stream, stage, plan);
  });
  return status;
}

}  // namespace mbrnnt::cuda
