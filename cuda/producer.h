// The sweep's warps that bring what the walking one needs, a chunk ahead.
#pragma once

#include "cuda/ptx.h"
#include "cuda/slot.h"
#include "cuda/tile_walk.h"

namespace mbrnnt::cuda {

template <typename P>
class Producer {
 public:
  // Of one chunk: what a thread has asked memory for.
  struct Loaded {
    float log_probs[P::kNodesPerProducer][P::kCount];
    uint64_t border;  // a word of it, perhaps too early
  };

  __device__ __forceinline__ Producer(const TileWalk& walk, const SweepPlan& plan)
      : walk_(walk),
        thread_(static_cast<int>(threadIdx.x < kWarp ? threadIdx.x : threadIdx.x - kWarp)),
        bordered_chunks_(walk.BorderedChunks()) {
    // A chunk further, all are so many frames further.
    per_chunk_ = walk.LogProbs(kChunk, 0) - walk.LogProbs(0, 0);
#pragma unroll
    for (int n = 0; n < P::kNodesPerProducer; ++n) {
      log_probs_of_[n] = walk.LogProbs(walk.RowOf(StepOf(), LaneOf(n)), walk.ColumnOf(LaneOf(n)));
    }
#pragma unroll
    for (int p = 0; p < P::kCount; ++p) {
      const int a = plan.arcs[p];
      arcs_[p] = P::At(p);
      if (a < 0) arcs_[p].duration = kBeyond;
      offsets_[p] = ptx::Kept(walk.Offset(P::At(p), a));
    }
    if (thread_ < Borders::kWords) next_border_ = walk.borders.To(walk.tile, 0) + thread_;
  }

  // Of one chunk after the other. All of it is on its way until Store.
  __device__ __forceinline__ void Load(int chunk) {
#pragma unroll
    for (int n = 0; n < P::kNodesPerProducer; ++n) {
      const int i = walk_.RowOf(chunk * kChunk + StepOf(), LaneOf(n)),
                j = walk_.ColumnOf(LaneOf(n));
#pragma unroll
      for (int p = 0; p < P::kCount; ++p) {
        float x = walk_.HasArc(i, j, arcs_[p]) ? log_probs_of_[n][offsets_[p]] : -INFINITY;
        // Past the last node a number stays what it is: a 0 would look like an underflow.
        if (p == P::kLabels && i >= RowsWithBlanks(j)) x = 0;
        loaded_.log_probs[n][p] = x;
      }
      log_probs_of_[n] += per_chunk_;
    }
    loaded_.border = 0;
    if (thread_ < Borders::kWords && chunk < bordered_chunks_) {
      loaded_.border = ptx::LoadRelaxed(next_border_);
    }
    next_border_ += Borders::kWords;
  }
  __device__ __forceinline__ void Store(const Loaded& loaded, Slot<P>& slot) const {
    // What was asked for too early is asked for again, before the weights take their time.
    const bool brings_border = thread_ < Borders::kWords;
    uint64_t border = loaded.border;
    if (brings_border && border == Borders::kUnwritten) border = ptx::LoadRelaxed(StoredBorder());
    bool exact = false;
#pragma unroll
    for (int n = 0; n < P::kNodesPerProducer; ++n) {
#pragma unroll
      for (int p = 0; p < P::kCount; ++p) {
        const float x = loaded.log_probs[n][p];
        exact |= !(fabsf(x + 33.5f) <= 46.5f) & (x != -INFINITY);  // not from -80 to 13, or NaN
        slot.At(p, LaneOf(n), StepOf()) = Exponential<float>::Of(x);
      }
    }
    exact = __any_sync(kAllLanes, exact);
    if (thread_ % kWarp == 0) slot.exact[thread_ / kWarp] = exact;
    if (!brings_border) return;
    // The tile to the left is a block that has begun.
    while (border == Borders::kUnwritten) border = ptx::LoadRelaxed(StoredBorder());
    slot.border[thread_] = border;
  }
  __device__ __forceinline__ const Loaded& loaded() const { return loaded_; }

 private:
  // How many rows have blanks of one frame that lead to nodes, or would if there were any. (Forward
  // the last row has one node, the final one, which only its own arcs may reach.)
  __device__ __forceinline__ int RowsWithBlanks(int j) const {
    return walk_.tiling.frames - (walk_.forward & (j < walk_.lattice.extent.labels));
  }
  // The word that is stored now: the next chunk's has been asked for meanwhile.
  __device__ __forceinline__ const uint64_t* StoredBorder() const {
    return next_border_ - 2 * Borders::kWords;
  }
  // Eight threads are on one frame, in columns side by side: they read one piece of memory, and a
  // warp writes to 32 banks.
  __device__ __forceinline__ int StepOf() const { return thread_ % kChunk; }
  __device__ __forceinline__ int LaneOf(int n) const {
    return (n * (P::kProducers / kChunk) + thread_ / kChunk + thread_ % kChunk) % kWarp;
  }

  static constexpr int kBeyond = 1 << 29;  // an arc so long is nowhere

  const TileWalk walk_;
  const int thread_, bordered_chunks_;
  Arc arcs_[P::kCount];  // of the planes
  int64_t per_chunk_;
  const float* log_probs_of_[P::kNodesPerProducer];
  int offsets_[P::kCount];
  const uint64_t* next_border_ = nullptr;
  Loaded loaded_;
};

template <typename P>
__device__ __forceinline__ void Produce(const TileWalk& walk, const SweepPlan& plan, int chunks,
                                        Slot<P> (&slots)[2]) {
  Producer<P> producer(walk, plan);
  producer.Load(0);
  for (int chunk = 0; chunk < chunks; ++chunk) {
    const auto loaded = producer.loaded();
    producer.Load(chunk + 1);  // before anything waits for what was loaded
    producer.Store(loaded, slots[chunk % 2]);
    ptx::SyncBlock();
  }
}

}  // namespace mbrnnt::cuda
