// The CUDA lattice stage over tests/simt/, and how many of its sweep's chunks ExactChunk did:
// behind a plain C name, for exact_chunks.py.
#include <vector>

#include "cuda/kernels.h"
#include "cuda/sweep.h"

using namespace mbrnnt;

// [B, T, U+1, A] -> [B] losses, [B, T, U+1, A] posteriors, and of both directions together all
// chunks and the exact ones. 0 if nothing went wrong.
extern "C" int exact_chunks(int64_t batch, int64_t frames, int64_t columns,
                            const int32_t* logit_lengths, const int32_t* label_lengths,
                            int32_t num_arcs, const int32_t* arcs, const float* arc_log_probs,
                            float* losses, float* posteriors, int64_t* all, int64_t* exact) {
  LatticeStage<float> stage{
      {batch, frames, columns, logit_lengths, label_lengths}, {}, arc_log_probs, losses, posteriors};
  stage.table.size = num_arcs;
  for (int a = 0; a < num_arcs; ++a) stage.table.arcs[a] = {arcs[2 * a], arcs[2 * a + 1]};
  std::vector<double> workspace(
      batch * cuda::Workspace::NumbersPerUtterance(frames, columns, num_arcs, true) / 2);
  cuda::Workspace::Place(reinterpret_cast<float*>(workspace.data()), stage);

  if (!cuda::PlanSweep(stage) || !cuda::ComputeLattice(stage, nullptr).ok()) return 1;
  *all = *exact = 0;
  for (int64_t walk = 0; walk < 2 * batch; ++walk) {
    const Extent extent = stage.batch.ExtentOf(walk % batch);
    const auto tiling = cuda::Tiling::Of(extent.frames, extent.labels + 1);
    const cuda::NodeNumbers numbers = cuda::SweepStore(stage).Numbers(walk);
    for (int32_t tile = 0; tile < tiling.tiles; ++tile) {
      for (int32_t chunk = 0; chunk < tiling.Chunks(tile); ++chunk) {
        ++*all;
        *exact += numbers.exponents[numbers.ChunkAt(tile, chunk) * cuda::kWarp] == cuda::kOwn;
      }
    }
  }
  return 0;
}
