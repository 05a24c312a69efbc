// The CUDA lattice stage over tests/simt/, and how many of its sweep's chunks ExactChunk did:
// behind a plain C name, for exact_chunks.py.
#include <algorithm>
#include <vector>

#include "cuda/kernels.h"
#include "cuda/sweep.h"

namespace {

using namespace mbrnnt;

struct Counts {
  int64_t chunks, exact;
  // The longest way from chunk to chunk, each of which takes a fast one's time, or an exact one's.
  double steps, steps_with_exact;
};

// A chunk waits for the one before it and for what comes from the left.
void Count(const LatticeStage<float>& stage, int64_t walk, double exact_takes, Counts& counts) {
  const Extent extent = stage.batch.ExtentOf(walk % stage.batch.size);
  const auto tiling = cuda::Tiling::Of(extent.frames, extent.labels + 1);
  const cuda::NodeNumbers numbers = cuda::SweepStore(stage).Numbers(walk);
  std::vector<double> left, done;
  for (int32_t tile = 0; tile < tiling.tiles; ++tile) {
    double time = 0;
    for (int32_t chunk = 0; chunk < tiling.Chunks(tile); ++chunk) {
      const size_t sent = chunk + cuda::kLag;
      if (sent < left.size()) time = std::max(time, left[sent]);
      const int32_t exponent = numbers.exponents[numbers.ChunkAt(tile, chunk) * cuda::kWarp];
      const bool exact = exponent == cuda::kOwn;
      counts.chunks += 1;
      counts.exact += exact;
      done.push_back(time += exact ? exact_takes : 1);
    }
    left.swap(done);
    done.clear();
    counts.steps_with_exact = std::max(counts.steps_with_exact, time);
    const double waited = (cuda::kLag + 1.0) * tile;  // for tiles to the left
    counts.steps = std::max(counts.steps, waited + tiling.Chunks(tile));
  }
}

}  // namespace

// [B, T, U+1, A] -> [B] losses and [B, T, U+1, A] posteriors. 0 if nothing went wrong.
extern "C" int exact_chunks(int64_t batch, int64_t frames, int64_t columns,
                            const int32_t* logit_lengths, const int32_t* label_lengths,
                            int32_t num_arcs, const int32_t* arcs, const float* arc_log_probs,
                            float* losses, float* posteriors, double exact_takes, Counts* counts) {
  LatticeStage<float> stage{{batch, frames, columns, logit_lengths, label_lengths},
                            {},
                            arc_log_probs,
                            losses,
                            posteriors};
  stage.table.size = num_arcs;
  for (int a = 0; a < num_arcs; ++a) stage.table.arcs[a] = {arcs[2 * a], arcs[2 * a + 1]};
  std::vector<double> workspace(
      batch * cuda::Workspace::NumbersPerUtterance(frames, columns, num_arcs, true) / 2);
  cuda::Workspace::Place(reinterpret_cast<float*>(workspace.data()), stage);

  if (!cuda::PlanSweep(stage) || !cuda::ComputeLattice(stage, nullptr).ok()) return 1;
  *counts = {};
  for (int64_t walk = 0; walk < 2 * batch; ++walk) Count(stage, walk, exact_takes, *counts);
  return 0;
}
