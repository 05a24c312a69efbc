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
constexpr int kPrefetched = 8;  // steps: they take about as long as memory does
constexpr int64_t kMaxFrames = int64_t{1} << 30, kMaxRow = int64_t{1} << 31;  // of 32-bit numbers

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
      const int64_t t = order.RowOf(row, rows - order.RowOf(0, u));  // t + u is in this row
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

// The shared memory of one warp, in rows of one Scaled for each of its lanes: distances
// between rows are known when compiling.
template <typename T>
class WarpRows {
 public:
  __device__ __forceinline__ WarpRows(const SweepPlan& plan, unsigned char* memory, int warp)
      : lane_(reinterpret_cast<Scaled<T>*>(memory) + warp * plan.rows * kWarp +
              threadIdx.x % kWarp),
        from_left_(lane_ - threadIdx.x % kWarp + (plan.rows - 1) * kWarp),
        to_right_(from_left_ + plan.rows * kWarp) {}

  // What the warp to the left has sent for a row of the walk, and this one sends on.
  __device__ __forceinline__ Scaled<T>& FromLeft(int row) const { return At(from_left_, row); }
  __device__ __forceinline__ Scaled<T>& ToRight(int row) const { return At(to_right_, row); }

  // The calling lane's number in a row: first the weights of the steps ahead, a row for
  // each plane, then the rings, then the row of the hand-over.
  __device__ __forceinline__ Scaled<T>* Row(int row) const { return lane_ + row * kWarp; }
  __device__ __forceinline__ Scaled<T>* Weights(int step, int num_planes) const {
    return Row((step & (kPrefetched - 1)) * num_planes);
  }
  static int64_t FirstRingRow(int64_t num_planes) { return kPrefetched * num_planes; }
  __device__ __forceinline__ void Clear(int num_rows) const {
    for (int row = 0; row < num_rows; ++row) *Row(row) = Scaled<T>::Zero();
  }

 private:
  static __device__ __forceinline__ Scaled<T>& At(Scaled<T>* handover, int row) {
    static_assert(kHandoverRows == kWarp, "the ring between two warps is one row");
    return handover[row & (kHandoverRows - 1)];
  }

  Scaled<T>* const lane_;
  Scaled<T>* const from_left_;
  Scaled<T>* const to_right_;
};

// One lane's walk down its column of a tile. kRings: the number of longer blanks, or
// -1 where it is known to the plan alone.
template <typename T, int kRings, bool kForward>
class ColumnWalk {
 public:
  __device__ __forceinline__ ColumnWalk(const LatticeStage<T>& s, const SweepPlan& plan,
                                        unsigned char* memory, const Extent& extent, int tile)
      : s_(s),
        plan_(plan),
        warp_(threadIdx.x / kWarp),
        lane_(threadIdx.x % kWarp),
        shared_(plan, memory, warp_),
        num_frames_(static_cast<int>(extent.frames)),
        j_(tile + static_cast<int>(threadIdx.x)),
        last_j_(static_cast<int>(extent.labels)),
        columns_(static_cast<uint32_t>(s.batch.columns)),
        weights_row_(columns_ * num_planes()),
        order_(s.batch),
        numbers_(s.batch, kForward ? s.alphas : s.betas, blockIdx.x),
        own_numbers_(numbers_.data + ColumnOf(j_)),
        own_weights_(s.weights + blockIdx.x * s.batch.NodesPerUtterance() * num_planes() +
                     ColumnOf(j_)) {
    // A warp is on one anti-diagonal: t + u = i + j forward, T + U - (i + j) backward.
    const int64_t first_diagonal = j_ - lane_;
    const int64_t rows = order_.rows;
    const int64_t diagonal =
        kForward ? first_diagonal : extent.frames + extent.labels - first_diagonal;
    row_ = prefetched_row_ = static_cast<int>((diagonal % rows + rows) % rows);
    for (int r = 0; r < num_rings(); ++r) slots_[r] = plan_.rings[r].first_row;
  }

  // Nothing is on its way.
  __device__ __forceinline__ void Clear() { shared_.Clear(plan_.rows); }
  __device__ __forceinline__ void Start() {
    for (int step = 0; step < kPrefetched - 1; ++step) Prefetch(step);
  }

  // What column `tile - 1` sends to the tile's first column in rows [first, first + kChunk).
  __device__ __forceinline__ void TakeFromTileBefore(int first) {
    const int i = first + lane_;
    if (lane_ < kChunk && i <= num_frames_) {
      const int t = FrameOf(i), u = ColumnOf(j_ - lane_ - 1);
      Scaled<T> label = Scaled<T>::Zero();
      if (t < num_frames_) {
        label = numbers_(t, u);
        if (kForward) label = Multiply(label, WeightsAt(order_.RowOf(t, u))[u - ColumnOf(j_)]);
      }
      shared_.FromLeft(i) = label;
    }
    __syncwarp();
  }

  __device__ __forceinline__ void Step(int step) {
    Prefetch(step + kPrefetched - 1);
    __pipeline_wait_prior(kPrefetched - 1);
    const Scaled<T>* weights = shared_.Weights(step, num_planes());
    const auto send = [&](int plane, Scaled<T> number) {
      return kForward ? Multiply(weights[plane * kWarp], number) : number;
    };
    const auto receive = [&](int plane, Scaled<T> share) {
      return kForward ? share : Multiply(weights[plane * kWarp], share);
    };

    const int i = step - lane_;
    label_ = ShuffleUp(label_);
    if (lane_ == 0) label_ = shared_.FromLeft(step);
    Scaled<T> number = SumOverArcs<T>(num_planes(), [&](int plane) {
      if (plane == 0) return receive(plane, label_);
      if (plane == 1) return receive(plane, blank_);
      return receive(plane, *shared_.Row(slots_[plane - 2]));
    });
    const bool start = i == 0 && j_ == 0;
    // Backward, row 0 is no frame: it holds the final node alone.
    if (kForward ? start : i <= 0) number = start ? Scaled<T>::One() : Scaled<T>::Zero();

    label_ = send(0, number);
    blank_ = send(1, number);
#pragma unroll
    for (int r = 0; r < num_rings(); ++r) {
      *shared_.Row(slots_[r]) = send(2 + r, number);
      if (++slots_[r] == plan_.rings[r].end_row) slots_[r] = plan_.rings[r].first_row;
    }
    if (lane_ == kWarp - 1 && warp_ + 1 < static_cast<int>(blockDim.x / kWarp)) {
      shared_.ToRight(i) = label_;
    }
    if (IsNode(i)) own_numbers_[static_cast<uint64_t>(columns_) * Unsigned(row_)] = number;
    if (kForward && i == num_frames_ && j_ == last_j_) StoreLikelihood(s_, blockIdx.x, number);
    row_ = NextRow(row_);
  }

 private:
  __device__ __forceinline__ int num_rings() const {
    return kRings >= 0 ? kRings : plan_.num_planes - 2;
  }
  __device__ __forceinline__ int num_planes() const { return 2 + num_rings(); }
  __device__ __forceinline__ int FrameOf(int i) const { return kForward ? i : num_frames_ - i; }
  __device__ __forceinline__ int ColumnOf(int j) const { return kForward ? j : last_j_ - j; }
  __device__ __forceinline__ bool IsNode(int i) const {
    return static_cast<unsigned>(FrameOf(i)) < static_cast<unsigned>(num_frames_) && j_ <= last_j_;
  }
  __device__ __forceinline__ int NextRow(int row) const {
    const int rows = static_cast<int>(order_.rows);
    if (kForward) return row + 1 == rows ? 0 : row + 1;
    return row == 0 ? rows - 1 : row - 1;
  }
  // The label arc's weight in the lane's own column; the other planes are columns_ apart.
  __device__ __forceinline__ const Scaled<T>* WeightsAt(int64_t row) const {
    return own_weights_ + static_cast<uint64_t>(weights_row_) * Unsigned(row);
  }
  // One factor of a product of 32-bit numbers, which is one instruction.
  static __device__ __forceinline__ uint32_t Unsigned(int64_t x) {
    return static_cast<uint32_t>(x);
  }
  // The weights of a step to come. Where the lane is on no node then, what is there
  // stays: Zero before its first row, and after its last one nobody looks any more.
  __device__ __forceinline__ void Prefetch(int step) {
    if (IsNode(step - lane_)) {
      Scaled<T>* to = shared_.Weights(step, num_planes());
      const Scaled<T>* from = WeightsAt(prefetched_row_);
#pragma unroll
      for (int plane = 0; plane < num_planes(); ++plane) {
        __pipeline_memcpy_async(to + plane * kWarp, from + static_cast<uint64_t>(columns_) * plane,
                                sizeof(Scaled<T>));
      }
    }
    __pipeline_commit();
    prefetched_row_ = NextRow(prefetched_row_);
  }

  const LatticeStage<T>& s_;
  const SweepPlan& plan_;
  const int warp_, lane_;
  const WarpRows<T> shared_;
  const int num_frames_, j_, last_j_;
  const uint32_t columns_, weights_row_;
  const DiagonalOrder order_;
  const DiagonalNumbers<T> numbers_;
  Scaled<T>* const own_numbers_;
  const Scaled<T>* const own_weights_;
  int row_, prefetched_row_;                                         // of the diagonal order
  Scaled<T> label_ = Scaled<T>::Zero(), blank_ = Scaled<T>::Zero();  // sent in the last step
  // The row of each ring that is read and then written in this step.
  int slots_[kRings >= 0 ? kRings + 1 : kMaxArcs];
};

template <typename T, int kRings, bool kForward>
__device__ __forceinline__ void Sweep(const LatticeStage<T>& s, const SweepPlan& plan) {
  const Extent extent = s.batch.ExtentOf(blockIdx.x);
  if (!extent.valid) {
    if (kForward && threadIdx.x == 0) StoreLikelihood(s, blockIdx.x, Scaled<T>{T(NAN), T(0)});
    return;
  }
  const int warp = threadIdx.x / kWarp, num_warps = blockDim.x / kWarp;
  // The last lane is on row T at step T + kWarp - 1.
  const int own_chunks = (static_cast<int>(extent.frames) + kWarp + kChunk - 1) / kChunk;
  for (int tile = 0; tile <= extent.labels; tile += blockDim.x) {
    ColumnWalk<T, kRings, kForward> walk(s, plan, dynamic_shared, extent, tile);
    walk.Clear();
    __syncthreads();
    walk.Start();
    for (int chunk = 0; chunk < own_chunks + kLag * (num_warps - 1); ++chunk) {
      const int own = chunk - kLag * warp;
      if (own >= 0 && own < own_chunks) {
        const int first = own * kChunk;
        if (tile > 0 && warp == 0) walk.TakeFromTileBefore(first);
#pragma unroll 1
        for (int k = 0; k < kChunk; ++k) walk.Step(first + k);
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

}  // namespace

template <typename T>
std::optional<SweepPlan> PlanSweep(const LatticeStage<T>& stage, int64_t shared_bytes) {
  const Batch& batch = stage.batch;
  SweepPlan plan = {};
  int label = -1, blank = -1;
  plan.num_planes = 2;
  for (int a = 0; a < stage.table.size; ++a) {
    const Arc arc = stage.table.arcs[a];
    if (arc.emits) {
      if (label >= 0 || arc.duration > 0) return {};
      label = a;
    } else if (arc.duration == 1 && blank < 0) {
      blank = a;
    } else if (arc.duration <= batch.max_frames) {  // a longer one is never there
      plan.arcs[plan.num_planes++] = a;
    }
  }
  if (label < 0 || blank < 0) return {};
  plan.arcs[0] = label;
  plan.arcs[1] = blank;
  if (batch.max_frames > kMaxFrames || batch.columns * plan.num_planes >= kMaxRow) return {};

  int64_t rows = WarpRows<T>::FirstRingRow(plan.num_planes);
  for (int r = 0; r < plan.num_planes - 2; ++r) {
    const int64_t end = rows + stage.table.arcs[plan.arcs[2 + r]].duration;
    if (end > kMaxFrames) return {};
    plan.rings[r] = {static_cast<int32_t>(rows), static_cast<int32_t>(end)};
    rows = end;
  }
  ++rows;  // the hand-over
  const int64_t warp_bytes = rows * kWarp * int64_t{sizeof(Scaled<T>)};
  const int64_t wanted = (batch.columns + kWarp - 1) / kWarp, fitting = shared_bytes / warp_bytes;
  int64_t warps = kMaxThreads / kWarp;
  if (wanted < warps) warps = wanted;
  if (fitting < warps) warps = fitting;
  if (warps == 0) return {};
  plan.rows = static_cast<int32_t>(rows);
  plan.threads = static_cast<int32_t>(warps * kWarp);
  plan.shared_bytes = warps * warp_bytes;
  return plan;
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
      case 4:
        return launch(SweepKernel<T, 4>);
    }
  }
  return launch(SweepKernel<T, -1>);
}

template std::optional<SweepPlan> PlanSweep(const LatticeStage<float>&, int64_t);
template std::optional<SweepPlan> PlanSweep(const LatticeStage<double>&, int64_t);
template Status SweepFast(const LatticeStage<float>&, const SweepPlan&, cudaStream_t);
template Status SweepFast(const LatticeStage<double>&, const SweepPlan&, cudaStream_t);

}  // namespace mbrnnt::cuda
