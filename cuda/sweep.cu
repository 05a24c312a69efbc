// The fast sweep: alphas and betas of an utterance in a block each.
//
// Both directions are one walk. Its rows are i = 0..T: frames t = i forward, t = T - i
// backward; its columns are j = 0..U: u = j forward, u = U - j backward. It starts with
// One at (0, 0), a node forward and the final node backward, and what a node holds
// travels on: the label arc's share to column j + 1 of the same row, a blank's to row
// i + duration of its own column. An arc that is not there has weight Zero, so nothing
// below asks whether one is.
//
// A lane owns a column and is one row behind the lane to its left, so a warp's lanes
// are on one anti-diagonal: in the diagonal order all that they read and write is
// contiguous. In a step a lane
//   - takes the label's share from its left neighbour by a shuffle, the blank's from
//     its own last step in a register, a longer blank's from a ring in shared memory
//     where it was put `duration` steps ago (early: not on the critical path);
//   - sums them (the law's SumOverArcs), stores the number, and sends it on.
// The critical path of a step is one product, one shuffle and one sum. The weights are
// converted from logarithms before (WeightsKernel) and come into shared memory by
// asynchronous copies several steps ahead.
//
// Warps meet at a barrier every kChunk steps only: a warp is kLag chunks behind the
// warp to its left, whose last lane has by then put the rows that are needed next into
// a small ring between the two. Columns beyond the block's width are walked in further
// rounds ("tiles"), each of which finds its left neighbour's numbers in the workspace.
#include <cuda_pipeline.h>

#include "cuda/sweep.h"

extern __shared__ __align__(16) unsigned char dynamic_shared[];

namespace mbrnnt::cuda {
namespace {

constexpr int kChunk = 8;
// The left warp's last lane is kWarp - 1 rows behind its first.
constexpr int kLag = (kChunk + kWarp - 1 + kChunk - 1) / kChunk;
// Rows between two warps: at most kChunk * kLag - (kWarp - 1) + kChunk are on their way.
constexpr int kHandoverRows = 32;
static_assert(kChunk * kLag - (kWarp - 1) + kChunk <= kHandoverRows, "the ring is too short");
constexpr int kMaxThreads = 512;
constexpr int kMaxFrames = 1 << 30;  // of 32-bit row numbers

// Weights [B, rows, planes, U+1] in the diagonal order; Zero for an arc that is not there.
template <typename T>
__global__ void __launch_bounds__(128) WeightsKernel(const __grid_constant__ LatticeStage<T> s,
                                                     const __grid_constant__ SweepPlan plan) {
  const DiagonalOrder order(s.batch);
  const int64_t columns = s.batch.columns, rows = s.batch.max_frames;
  for (int64_t block = blockIdx.x; block < s.batch.size * rows; block += gridDim.x) {
    const int64_t b = block / rows, row = block % rows;
    const Lattice<T> lattice = s.LatticeOf(b);
    Scaled<T>* weights = s.weights + block * plan.num_planes * columns;
    for (int64_t u = threadIdx.x; u <= lattice.extent.labels; u += blockDim.x) {
      const int64_t t = order.RowOf(row, rows - u % rows);  // (t + u) % rows == row
      if (t >= lattice.extent.frames) continue;
      for (int p = 0; p < plan.num_planes; ++p) {
        const int a = plan.arcs[p];
        weights[p * columns + u] =
            lattice.HasArc(t, u, a) ? lattice.Weight(t, u, a) : Scaled<T>::Zero();
      }
    }
  }
}

template <typename T>
__device__ __forceinline__ Scaled<T> ShuffleUp(Scaled<T> x) {
  return {__shfl_up_sync(0xffffffffu, x.mantissa, 1), __shfl_up_sync(0xffffffffu, x.exponent, 1)};
}

// A row number that goes around.
struct WrappingRow {
  int32_t row, rows;

  __device__ __forceinline__ WrappingRow(int64_t at, uint32_t rows)
      : row(static_cast<int32_t>(at % static_cast<int64_t>(rows))), rows(rows) {
    if (row < 0) row += this->rows;
  }
  template <bool kForward>
  __device__ __forceinline__ void Advance() {
    if constexpr (kForward) {
      row = row + 1 == rows ? 0 : row + 1;
    } else {
      row = row == 0 ? rows - 1 : row - 1;
    }
  }
};

// The block's shared memory, [rows][threads] each.
template <typename T>
struct SharedRows {
  Scaled<T>* weights;   // prefetched_steps * num_planes rows
  Scaled<T>* rings;     // num_ring_rows
  Scaled<T>* handover;  // [warps][kHandoverRows], as many as one row has

  __device__ __forceinline__ SharedRows(const SweepPlan& plan, unsigned char* memory)
      : weights(reinterpret_cast<Scaled<T>*>(memory)),
        rings(weights + plan.prefetched_steps * plan.num_planes * blockDim.x),
        handover(rings + plan.num_ring_rows * blockDim.x) {}
  static int64_t Count(const SweepPlan& plan) {
    return plan.prefetched_steps * plan.num_planes + plan.num_ring_rows + 1;
  }
};

// One lane's walk down its column of a tile. kRings: the number of longer blanks, or
// -1 where it is known to the plan alone.
template <typename T, int kRings, bool kForward>
class ColumnWalk {
 public:
  __device__ __forceinline__ ColumnWalk(const LatticeStage<T>& s, const SweepPlan& plan,
                                        const Extent& extent, int64_t b, int tile)
      : s_(s),
        plan_(plan),
        b_(b),
        num_frames_(static_cast<int>(extent.frames)),
        lane_(threadIdx.x % kWarp),
        warp_(threadIdx.x / kWarp),
        j_(tile + threadIdx.x),
        last_j_(extent.labels),
        u_(kForward ? j_ : extent.labels - j_),
        numbers_(s.batch, kForward ? s.alphas : s.betas, b),
        weights_(s.weights + b * s.batch.NodesPerUtterance() * num_planes()),
        // The anti-diagonal of the warp's first step; kForward: t + u = j + i.
        row_(kForward ? j_ - lane_ : extent.frames + extent.labels - (j_ - lane_),
             numbers_.order.rows),
        prefetched_row_(row_) {}

  __device__ __forceinline__ int num_rings() const {
    return kRings >= 0 ? kRings : plan_.num_planes - 2;
  }
  __device__ __forceinline__ int num_planes() const { return 2 + num_rings(); }

  // Before the first step: nothing is on its way.
  __device__ __forceinline__ void Clear(const SharedRows<T>& shared) {
    for (int r = 0; r < plan_.num_ring_rows; ++r) {
      shared.rings[r * blockDim.x + threadIdx.x] = Scaled<T>::Zero();
    }
    shared.handover[threadIdx.x] = Scaled<T>::Zero();
    label_ = blank_ = Scaled<T>::Zero();
    for (int step = 0; step < plan_.prefetched_steps - 1; ++step) Prefetch(shared, step);
  }

  // What column `tile - 1` sends to the tile's first column in rows [first, first + kChunk).
  __device__ __forceinline__ void TakeFromTileBefore(const SharedRows<T>& shared, int first) {
    const int i = first + lane_;
    if (lane_ < kChunk && i <= num_frames_) {
      const int t = kForward ? i : num_frames_ - i;
      const int64_t u = kForward ? u_ - lane_ - 1 : u_ + lane_ + 1;
      Scaled<T> label = Scaled<T>::Zero();
      if (t < num_frames_) {
        label = numbers_(t, u);
        if (kForward) {
          label = Multiply(
              label, weights_[numbers_.order.RowOf(t, u) * num_planes() * s_.batch.columns + u]);
        }
      }
      shared.handover[i & (kHandoverRows - 1)] = label;
    }
    __syncwarp();
  }

  __device__ __forceinline__ void Step(const SharedRows<T>& shared, int step) {
    Prefetch(shared, step + plan_.prefetched_steps - 1);
    WaitForPrefetched();
    const Scaled<T>* weights = WeightsOf(shared, step);
    const auto send = [&](int plane, Scaled<T> number) {
      return kForward ? Multiply(weights[plane * blockDim.x], number) : number;
    };
    const auto receive = [&](int plane, Scaled<T> share) {
      return kForward ? share : Multiply(weights[plane * blockDim.x], share);
    };

    const int i = step - lane_;
    label_ = ShuffleUp(label_);
    if (lane_ == 0) label_ = shared.handover[warp_ * kHandoverRows + (step & (kHandoverRows - 1))];
    Scaled<T> number = SumOverArcs<T>(num_planes(), [&](int plane) {
      if (plane == 0) return receive(plane, label_);
      if (plane == 1) return receive(plane, blank_);
      return receive(plane, *Ring(shared, plane, step - plan_.rings[plane - 2].duration));
    });
    const bool start = i == 0 && j_ == 0;
    // Backward, row 0 is no frame: it holds the final node alone.
    if (kForward ? start : i <= 0) number = start ? Scaled<T>::One() : Scaled<T>::Zero();

    label_ = send(0, number);
    blank_ = send(1, number);
#pragma unroll
    for (int plane = 2; plane < num_planes(); ++plane) {
      *Ring(shared, plane, step) = send(plane, number);
    }
    if (lane_ == kWarp - 1 && warp_ + 1 < static_cast<int>(blockDim.x / kWarp)) {
      shared.handover[(warp_ + 1) * kHandoverRows + (i & (kHandoverRows - 1))] = label_;
    }
    if (IsNode(i)) numbers_.data[int64_t{row_.row} * s_.batch.columns + u_] = number;
    if (kForward && i == num_frames_ && j_ == last_j_) StoreLikelihood(s_, b_, number);
    row_.template Advance<kForward>();
  }

 private:
  __device__ __forceinline__ bool IsNode(int i) const {
    const int t = kForward ? i : num_frames_ - i;
    return t >= 0 && t < num_frames_ && j_ <= last_j_;
  }
  __device__ __forceinline__ Scaled<T>* WeightsOf(const SharedRows<T>& shared, int step) const {
    const int slot = step & (plan_.prefetched_steps - 1);
    return shared.weights + slot * num_planes() * blockDim.x + threadIdx.x;
  }
  __device__ __forceinline__ Scaled<T>* Ring(const SharedRows<T>& shared, int plane,
                                             int step) const {
    const SweepPlan::Ring& ring = plan_.rings[plane - 2];
    return shared.rings + (ring.first_row + (step & ring.mask)) * blockDim.x + threadIdx.x;
  }
  // The weights of a step to come; zeros where the lane is on no node then. A weight of
  // 0 * 2^0 is as good as Zero there: it meets numbers that are Zero or lead nowhere.
  __device__ __forceinline__ void Prefetch(const SharedRows<T>& shared, int step) {
    const bool is_node = IsNode(step - lane_);
    Scaled<T>* to = WeightsOf(shared, step);
    const int64_t columns = s_.batch.columns;
    const Scaled<T>* from =
        weights_ + (is_node ? int64_t{prefetched_row_.row} * num_planes() * columns + u_ : 0);
#pragma unroll
    for (int plane = 0; plane < num_planes(); ++plane) {
      __pipeline_memcpy_async(to + plane * blockDim.x, from, sizeof(Scaled<T>),
                              is_node ? 0 : sizeof(Scaled<T>));
      if (is_node) from += columns;
    }
    __pipeline_commit();
    prefetched_row_.template Advance<kForward>();
  }
  // The number of copies still on their way has to be known when compiling.
  __device__ __forceinline__ void WaitForPrefetched() const {
    if (plan_.prefetched_steps == 8) {
      __pipeline_wait_prior(7);
    } else {
      __pipeline_wait_prior(3);
    }
  }

  const LatticeStage<T>& s_;
  const SweepPlan& plan_;
  const int64_t b_;
  const int num_frames_, lane_, warp_;
  const int64_t j_, last_j_, u_;
  const DiagonalNumbers<T> numbers_;
  const Scaled<T>* const weights_;
  WrappingRow row_, prefetched_row_;
  Scaled<T> label_, blank_;  // sent in the last step
};

template <typename T, int kRings, bool kForward>
__device__ __forceinline__ void Sweep(const LatticeStage<T>& s, const SweepPlan& plan) {
  const SharedRows<T> shared(plan, dynamic_shared);
  const int64_t b = blockIdx.x;
  const Extent extent = s.batch.ExtentOf(b);
  if (!extent.valid) {
    if (kForward && threadIdx.x == 0) StoreLikelihood(s, b, Scaled<T>{T(NAN), T(0)});
    return;
  }
  const int warp = threadIdx.x / kWarp, num_warps = blockDim.x / kWarp;
  // The last lane is on row T at step T + kWarp - 1.
  const int own_chunks = (static_cast<int>(extent.frames) + kWarp + kChunk - 1) / kChunk;
  for (int64_t tile = 0; tile <= extent.labels; tile += blockDim.x) {
    ColumnWalk<T, kRings, kForward> walk(s, plan, extent, b, static_cast<int>(tile));
    walk.Clear(shared);
    __syncthreads();
    for (int chunk = 0; chunk < own_chunks + kLag * (num_warps - 1); ++chunk) {
      const int own = chunk - kLag * warp;
      if (own >= 0 && own < own_chunks) {
        const int first = own * kChunk;
        if (tile > 0 && warp == 0) walk.TakeFromTileBefore(shared, first);
        for (int k = 0; k < kChunk; ++k) walk.Step(shared, first + k);
      }
      __syncthreads();
    }
  }
}

template <typename T, int kRings>
__global__ void __launch_bounds__(kMaxThreads, 1)
    SweepKernel(const __grid_constant__ LatticeStage<T> s, const __grid_constant__ SweepPlan plan) {
  if (blockIdx.y == 0) {
    Sweep<T, kRings, true>(s, plan);
  } else {
    Sweep<T, kRings, false>(s, plan);
  }
}

int32_t PowerOfTwoFrom(int32_t n) {
  int32_t power = 1;
  while (power < n) power *= 2;
  return power;
}

}  // namespace

template <typename T>
std::optional<SweepPlan> PlanSweep(const LatticeStage<T>& stage, int64_t shared_bytes) {
  SweepPlan plan = {};
  int label = -1, blank = -1;
  int64_t ring_rows = 0;
  plan.num_planes = 2;
  for (int a = 0; a < stage.table.size; ++a) {
    const Arc arc = stage.table.arcs[a];
    if (arc.emits) {
      if (label >= 0 || arc.duration > 0) return {};
      label = a;
    } else if (arc.duration == 1 && blank < 0) {
      blank = a;
    } else if (arc.duration <= stage.batch.max_frames) {  // a longer one is never there
      const int32_t rows = PowerOfTwoFrom(arc.duration);
      plan.rings[plan.num_planes - 2] = {arc.duration, rows - 1, static_cast<int32_t>(ring_rows)};
      plan.arcs[plan.num_planes++] = a;
      ring_rows += rows;
      if (ring_rows * int64_t{sizeof(Scaled<T>)} * kWarp > shared_bytes) return {};
    }
  }
  if (label < 0 || blank < 0 || stage.batch.max_frames > kMaxFrames) return {};
  plan.arcs[0] = label;
  plan.arcs[1] = blank;
  plan.num_ring_rows = static_cast<int32_t>(ring_rows);

  // As many columns at a time as there are, then as much prefetched as fits beside them.
  const int64_t warps = (stage.batch.columns + kWarp - 1) / kWarp;
  plan.threads = static_cast<int32_t>(warps < kMaxThreads / kWarp ? warps * kWarp : kMaxThreads);
  for (; plan.threads > 0; plan.threads -= kWarp) {
    for (plan.prefetched_steps = 8; plan.prefetched_steps >= 4; plan.prefetched_steps /= 2) {
      plan.shared_bytes = SharedRows<T>::Count(plan) * plan.threads * int64_t{sizeof(Scaled<T>)};
      if (plan.shared_bytes <= shared_bytes) return plan;
    }
  }
  return {};
}

template <typename T>
Status SweepFast(const LatticeStage<T>& stage, const SweepPlan& plan, cudaStream_t stream) {
  const Grid for_weights{dim3(BlocksFor(stage.batch.size * stage.batch.max_frames)), 128};
  const Status status = Launch("WeightsKernel", WeightsKernel<T>, for_weights, stream, stage, plan);
  if (!status.ok()) return status;
  const Grid grid{dim3(BlocksFor(stage.batch.size), stage.posteriors ? 2 : 1), plan.threads,
                  plan.shared_bytes};
  const auto launch = [&](auto* kernel) {
    return Launch("SweepKernel", kernel, grid, stream, stage, plan);
  };
  if constexpr (sizeof(T) == sizeof(float)) {  // float64 is for checking: one kernel will do
    switch (plan.num_planes - 2) {
      case 0:
        return launch(SweepKernel<T, 0>);
      case 1:
        return launch(SweepKernel<T, 1>);
      case 2:
        return launch(SweepKernel<T, 2>);
      case 3:
        return launch(SweepKernel<T, 3>);
    }
  }
  return launch(SweepKernel<T, -1>);
}

template std::optional<SweepPlan> PlanSweep(const LatticeStage<float>&, int64_t);
template std::optional<SweepPlan> PlanSweep(const LatticeStage<double>&, int64_t);
template Status SweepFast(const LatticeStage<float>&, const SweepPlan&, cudaStream_t);
template Status SweepFast(const LatticeStage<double>&, const SweepPlan&, cudaStream_t);

}  // namespace mbrnnt::cuda
