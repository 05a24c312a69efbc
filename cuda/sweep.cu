// The fast sweep: a block for each tile of 32 columns, direction and utterance.
//
// One warp walks, a lane in each column, and the others bring the weights, exponentials of the arc
// log-probabilities, a chunk of 8 steps ahead: two slots of shared memory change hands at a
// barrier a chunk. What a tile's last column sends to the right goes through global memory to
// another block, which may be on another multiprocessor: all tiles of a lattice are under way at
// once, each 4 chunks behind the one to its left. Blocks take tiles in order, by a counter, so
// that whoever waits for a tile waits for a block that is running or done.
//
// In a step a lane takes what its left neighbour sent in the step before, adds what its own
// blanks have brought, and has the number of its node. It then sends on: times the blanks'
// weights into a window of the next 8 steps of its own column, times the labels' to the right.
//
// Numbers are doubles in a unit of 2^unit, which each lane has for itself and changes once a
// chunk: so a product with a weight and its sum are one instruction, and 2^-750 to 2^100 is room
// for a dozen steps of 1e-18 each. A chunk that leaves it, or has a weight that is no normal
// float, or was sent numbers that fit into no unit, is done by ExactChunk.
#include "cuda/exact_chunk.h"
#include "cuda/sweep.h"

namespace mbrnnt::cuda {
namespace {

constexpr int kProducers = 128, kThreads = kWarp + kProducers;
constexpr int kNodesPerProducer = kBlock / kProducers;
constexpr unsigned kAllLanes = 0xffffffffu;

// A number of a chunk that is not 0 lies between these powers of 2, in its lane's unit. Then its
// products with weights are normal, and what a left neighbour's unit is too small to bring, by
// 2^-1023, does not matter here.
constexpr int kLeastExponent = -750, kMostExponent = 100;
// But a 0 here is not to be believed where the left neighbour's unit is so much smaller.
constexpr int kHonestZero = -100;

// The arcs that a build of the sweep has in registers: labels of durations 0 to kLongestLabel, and
// blanks of the durations whose bits are set.
template <int kLongestLabel, uint32_t kBlankBits>
struct Planes {
  static constexpr int kLabels = kLongestLabel + 1;
  static constexpr int kCount = kLabels + __builtin_popcount(kBlankBits);
  static_assert(kLongestLabel <= kChunk && kBlankBits < 2u << kChunk, "the windows are a chunk");
  static_assert(kCount <= SweepPlan::kMaxPlanes, "the plan has no room");

  static constexpr MBRNNT_HD Arc At(int plane) {
    if (plane < kLabels) return {plane, 1};
    int duration = 0;
    for (int left = plane - kLabels; left >= 0; --left) {
      do ++duration;
      while ((kBlankBits >> duration & 1u) == 0);
    }
    return {duration, 0};
  }
  static constexpr MBRNNT_HD int Of(Arc arc) {  // -1: not here
    for (int p = 0; p < kCount; ++p) {
      if (At(p).duration == arc.duration && At(p).emits == arc.emits) return p;
    }
    return -1;
  }
};

// Weights of a chunk, as floats that are 0 or normal, four steps of a lane together.
template <typename P>
struct WeightSlot {
  float4 weights[P::kCount][2][kWarp];
  uint4 exact;  // of each warp that brings them: one is no such float

  __device__ __forceinline__ float& At(int plane, int lane, int step) {
    return reinterpret_cast<float*>(&weights[plane][step / 4][lane])[step % 4];
  }
};
static_assert(kProducers / kWarp == 4, "a word for each warp");

// ---- the warps that bring weights ------------------------------------------------------

template <typename P>
class Producer {
 public:
  __device__ __forceinline__ Producer(const TileWalk& walk, const SweepPlan& plan)
      : walk_(walk), plan_(plan), thread_(static_cast<int>(threadIdx.x) - kWarp) {}

  // Arc log-probabilities of a chunk, which are on their way until Store.
  __device__ __forceinline__ void Load(int chunk) {
#pragma unroll
    for (int n = 0; n < kNodesPerProducer; ++n) {
      const int i = walk_.RowOf(chunk * kChunk + StepOf(), LaneOf(n)), j = walk_.ColumnOf(LaneOf(n));
#pragma unroll
      for (int p = 0; p < P::kCount; ++p) {
        const int a = plan_.arcs[p];
        log_probs_[n][p] = -INFINITY;
        if (a >= 0 && walk_.HasArc(i, j, a)) log_probs_[n][p] = walk_.ArcLogProb(i, j, a);
        // Past the last row a number stays what it is: a 0 would look like an underflow.
        if (p == plan_.keep && i >= walk_.tiling.frames) log_probs_[n][p] = 0;
      }
    }
  }
  __device__ __forceinline__ void Store(WeightSlot<P>& slot) const {
    bool exact = false;
#pragma unroll
    for (int n = 0; n < kNodesPerProducer; ++n) {
#pragma unroll
      for (int p = 0; p < P::kCount; ++p) {
        const float x = log_probs_[n][p];
        exact |= !(fabsf(x + 33.5f) <= 46.5f) && x != -INFINITY;  // not from -80 to 13, or NaN
        slot.At(p, LaneOf(n), StepOf()) = Exponential<float>::Of(x);
      }
    }
    exact = __any_sync(kAllLanes, exact);
    if (thread_ % kWarp == 0) (&slot.exact.x)[thread_ / kWarp] = exact;
  }

 private:
  // Eight threads are on one frame, in columns side by side: they read one piece of memory, and a
  // warp writes to 32 banks.
  __device__ __forceinline__ int StepOf() const { return thread_ % kChunk; }
  __device__ __forceinline__ int LaneOf(int n) const {
    return (n * (kProducers / kChunk) + thread_ / kChunk + thread_ % kChunk) % kWarp;
  }

  const TileWalk& walk_;
  const SweepPlan& plan_;
  const int thread_;
  float log_probs_[kNodesPerProducer][P::kCount];
};

// ---- the warp that walks -----------------------------------------------------------------

__device__ __forceinline__ double UnitFactor(int exponent) {  // 2^exponent, or 0 or infinity
  return __hiloint2double(max(min(exponent + 1023, 2047), 0) << 20, 0);
}

// A weight's double, times 2^-896: the bits of a float that is 0 or normal in a double's place.
__device__ __forceinline__ double SmallWeight(float weight) {
  return DoubleOf(ShiftLeft29(__float_as_uint(weight)));
}
constexpr double kOfSmallWeight = 0x1p896;

// What comes from the tile to the left in a chunk.
struct LeftBorder {
  uint64_t words[Borders::kWords] = {};

  __device__ __forceinline__ void Load(const uint64_t* from) {
#pragma unroll
    for (int w = 0; w < Borders::kWords; w += 2) LoadRelaxed2(from + w, words[w], words[w + 1]);
  }
  __device__ __forceinline__ bool IsWritten() const {
    uint64_t any = 0;
#pragma unroll
    for (int w = 0; w < Borders::kWords; ++w) any |= words[w];
    return static_cast<int64_t>(any) >= 0;  // no word has kUnwritten's sign
  }
  __device__ __forceinline__ int exponent() const { return static_cast<int>(words[kChunk]); }
};

template <typename P>
class Walker {
 public:
  __device__ __forceinline__ Walker(const TileWalk& walk, const SweepPlan& plan)
      : walk_(walk),
        plan_(plan),
        lane_(static_cast<int>(threadIdx.x)),
        place_(walk.numbers.ChunkAt(walk.tile, 0)),
        numbers_(walk.numbers.numbers + place_ * kBlock + NodeNumbers::Within(lane_, 0)),
        exponents_(walk.numbers.exponents + place_ * kWarp + lane_),
        bordered_chunks_(walk.BorderedChunks()),
        left_words_(walk.borders.To(walk.tile, 0)) {
    if (bordered_chunks_ > 0) border_.Load(left_words_);
  }

  __device__ __forceinline__ void Chunk(int chunk, const WeightSlot<P>& slot) {
    const bool bordered = chunk < bordered_chunks_;
    if (bordered) {
      while (!__all_sync(kAllLanes, border_.IsWritten())) border_.Load(left_words_);
    }
    const uint4 exact = slot.exact;
    bool fast = (exact.x | exact.y | exact.z | exact.w) == 0;
    if (bordered && border_.exponent() == kOwn) fast = false;
    if (fast && stale_) fast = Rebuild(chunk);
    if (fast) fast = FastChunk(chunk, slot, bordered);
    if (!fast) {
      ExactChunk(walk_, plan_.blanks, plan_.labels, chunk, bordered ? left_words_ : nullptr);
      stale_ = true;
    }
    left_words_ += Borders::kWords;
    if (chunk + 1 < bordered_chunks_) border_.Load(left_words_);
    numbers_ += kBlock;
    exponents_ += kWarp;
  }

 private:
  // The windows out of the numbers that are stored, if they fit into units.
  __device__ __forceinline__ bool Rebuild(int chunk) {
    Windows windows;
    windows.unit = 0;
    const bool fits = PendingWindows(walk_, plan_.blanks & ~plan_.long_blanks,
                                     plan_.labels & ~plan_.long_labels, chunk, windows);
#pragma unroll
    for (int k = 0; k < kChunk; ++k) {
      blanks_[k] = windows.blanks[k];
      labels_[k] = windows.labels[k];
    }
    sent_ = windows.sent;
    unit_ = windows.unit;
    shift_ = 0;
    alive_ = windows.alive;
    left_unit_ = __shfl_up_sync(kAllLanes, unit_, 1);
    stale_ = !__all_sync(kAllLanes, fits);
    return !stale_;
  }

  // False if a number leaves the range: then nothing was stored or sent.
  __device__ __forceinline__ bool FastChunk(int chunk, const WeightSlot<P>& slot, bool bordered) {
    // A lane that has had nothing yet takes the unit of the nearest one to its left that has.
    const uint32_t alive = __ballot_sync(kAllLanes, alive_);
    if (alive != kAllLanes) {
      const uint32_t before = alive & (kAllLanes >> (kWarp - 1 - lane_));
      const int unit = __shfl_sync(kAllLanes, unit_, before != 0 ? 31 - __clz(before) : 0);
      if (before != 0) {
        unit_ = unit;
      } else if (bordered) {
        unit_ = border_.exponent();
      }
      left_unit_ = __shfl_up_sync(kAllLanes, unit_, 1);
    }
    if (lane_ == 0) left_unit_ = bordered ? border_.exponent() : unit_;
    const double factor = UnitFactor(left_unit_ - unit_), none = 0;
    const double left_factor = lane_ == 0 ? none : factor;
    uint32_t zero = left_unit_ - unit_ < kHonestZero ? 0u : ~0u;  // added to a 0

    const double rescale = UnitFactor(-shift_);
#pragma unroll
    for (int k = 0; k < kChunk; ++k) {
      blanks_[k] *= rescale;
      if (P::kLabels > 1) labels_[k] *= rescale;
    }
    sent_ *= rescale;
    if (bordered) {
      const double border_factor = lane_ == 0 ? factor : none;
#pragma unroll
      for (int k = 0; k < kChunk; ++k) {
        blanks_[k] = fma(DoubleOf(border_.words[k]), border_factor, blanks_[k]);
      }
    }
    if (walk_.StartsIn(chunk)) {
#pragma unroll
      for (int k = 0; k < kChunk; ++k) blanks_[k] += walk_.IsStart(chunk * kChunk + k, lane_);
    }
    if ((plan_.long_blanks | plan_.long_labels) != 0) AddLongArcs(chunk, zero);

    double numbers[kChunk], sent[kChunk];
    uint32_t smallest = ~0u, largest = 0;
    int shift = 0, left_unit = 0;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float4 weights[P::kCount];
#pragma unroll
      for (int p = 0; p < P::kCount; ++p) weights[p] = slot.weights[p][half][lane_];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int k = half * 4 + j;
        const double left = __shfl_up_sync(kAllLanes, sent_, 1);
        const double number = numbers[k] = fma(left, left_factor, blanks_[k]);
        const auto high = static_cast<uint32_t>(__double2hiint(number));
        smallest = min(high + zero, smallest);
        largest = max(high, largest);
        SendOn(number, k, weights, j);
        sent[k] = sent_;
        if (k == 4) {  // in the next unit this number is about 1
          shift = high == 0 ? 0 : static_cast<int>(high >> 20) - 1023;
          left_unit = __shfl_up_sync(kAllLanes, unit_ + shift, 1);
        }
      }
    }
    constexpr uint32_t kLeast = (1023u + kLeastExponent) << 20, kMost = (1023u + kMostExponent)
                                                                        << 20;
    if (!__all_sync(kAllLanes, smallest >= kLeast && largest <= kMost)) return false;

#pragma unroll
    for (int k = 0; k < kChunk; k += 2) {
      const ulonglong2 two = {BitsOf(numbers[k]), BitsOf(numbers[k + 1])};
      __stcg(reinterpret_cast<ulonglong2*>(numbers_ + NodeNumbers::Within(0, k)), two);
    }
    __stcg(exponents_, unit_);
    uint64_t* right = walk_.RightBorder(chunk);
    if (right != nullptr && lane_ == kWarp - 1) {
#pragma unroll
      for (int k = 0; k < kChunk; k += 2) {
        StoreRelaxed2(right + k, BitsOf(sent[k]), BitsOf(sent[k + 1]));
      }
      StoreRelaxed2(right + kChunk, static_cast<uint32_t>(unit_), 0);
    }
    alive_ |= largest != 0;
    unit_ += shift;
    shift_ = shift;
    left_unit_ = left_unit;
    return true;
  }

  // Part j of the weights is step k's.
  __device__ __forceinline__ void SendOn(double number, int k, const float4 (&weights)[P::kCount],
                                         int j) {
    const double for_small_weights = number * kOfSmallWeight;
    blanks_[k] = 0;
    sent_ = labels_[k];
    labels_[k] = 0;
#pragma unroll
    for (int p = 0; p < P::kCount; ++p) {
      const float w = j == 0 ? weights[p].x : j == 1 ? weights[p].y : j == 2 ? weights[p].z : weights[p].w;
      const Arc arc = P::At(p);
      double& to = arc.emits == 0 ? blanks_[(k + arc.duration) % kChunk]
                   : arc.duration == 0 ? sent_ : labels_[(k + arc.duration) % kChunk];
      // The next lane waits for the label's share: its weight is made large, not the number.
      to = arc.emits != 0 && arc.duration == 0
               ? fma(number, SmallWeight(w) * kOfSmallWeight, to)
               : fma(for_small_weights, SmallWeight(w), to);
    }
  }

  // Arcs longer than a chunk come from numbers that are stored.
  __device__ __forceinline__ void AddLongArcs(int chunk, uint32_t& zero) {
#pragma unroll
    for (int n = 0; n < 2 * kChunk; ++n) {
      const int k = n % kChunk;
      const Scaled<double> x = Pending(walk_, n < kChunk ? plan_.long_blanks : plan_.long_labels,
                                       chunk * kChunk + k, chunk * kChunk);
      const double above = fmax(x.exponent - unit_, -2000.0);
      if (x.mantissa != 0 && above < kHonestZero) zero = 0;
      (n < kChunk ? blanks_ : labels_)[k] += x.mantissa * UnitFactor(static_cast<int>(above));
    }
  }

  const TileWalk& walk_;
  const SweepPlan& plan_;
  const int lane_;
  const int64_t place_;
  uint64_t* numbers_;
  int32_t* exponents_;
  const int bordered_chunks_;
  const uint64_t* left_words_;
  LeftBorder border_;
  // On its way to the nodes of the next steps; to the right after these steps; after the last one.
  double blanks_[kChunk] = {}, labels_[kChunk] = {}, sent_ = 0;
  // The lane's unit, from which these numbers are still `shift` away, and its left neighbour's.
  int unit_ = 0, shift_ = 0, left_unit_ = 0;
  bool alive_ = false;  // there was a number
  bool stale_ = false;  // the numbers on their way are not here, but to be found out
};

template <typename P>
__global__ void __launch_bounds__(kThreads)
    SweepKernel(const __grid_constant__ LatticeStage<float> s, const __grid_constant__ SweepPlan plan) {
  __shared__ WeightSlot<P> slots[2];
  __shared__ uint32_t taken;
  const SweepStore store(s);
  const int64_t walks = s.batch.size * (s.posteriors ? 2 : 1);
  if (threadIdx.x == 0) taken = atomicAdd(reinterpret_cast<uint32_t*>(store.Shared()), 1u) + 1u;
  __syncthreads();
  const int64_t number = taken, walk_number = number % walks, b = walk_number % s.batch.size;

  const Lattice<float> lattice = s.LatticeOf(b);
  const TileWalk walk{lattice,
                      Tiling::Of(lattice.extent.frames, lattice.extent.labels + 1),
                      static_cast<int32_t>(lattice.extent.labels),
                      static_cast<int32_t>(number / walks),
                      walk_number < s.batch.size,
                      store.Numbers(walk_number),
                      store.LeftBorders(walk_number)};
  if (!lattice.extent.valid && number < s.batch.size && threadIdx.x == 0) {
    StoreLikelihood(s, b, Scaled<double>{NAN, 0});
  }
  if (walk.tile >= walk.tiling.tiles) return;

  const int chunks = walk.tiling.Chunks(walk.tile);
  if (threadIdx.x >= kWarp) {
    Producer<P> producer(walk, plan);
    producer.Load(0);
    for (int chunk = 0; chunk < chunks; ++chunk) {
      const Producer<P> loaded = producer;
      producer.Load(chunk + 1);
      loaded.Store(slots[chunk % 2]);
      SyncBlock();
    }
    return;
  }
  Walker<P> walker(walk, plan);
#pragma unroll 1
  for (int chunk = 0; chunk < chunks; ++chunk) {
    SyncBlock();
    walker.Chunk(chunk, slots[chunk % 2]);
  }
  // The final node.
  const int lane = walk.labels % kWarp, step = walk.tiling.frames + lane;
  if (walk.forward && walk.tile == walk.tiling.tiles - 1 && threadIdx.x == lane) {
    StoreLikelihood(s, b, walk.numbers.At(walk.numbers.ChunkAt(walk.tile, step / kChunk), lane,
                                          step % kChunk));
  }
}

// Builds in order of what they cost: RNN-T, multi-blank, TDT; the last one has everything.
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
  constexpr int64_t kMost = int64_t{1} << 28;
  if (stage.batch.max_frames > kMost || stage.batch.columns > kMost) return {};
  std::optional<SweepPlan> best;
  int build = 0;
  ForEachBuild([&](auto planes) {
    using P = decltype(planes);
    SweepPlan plan = {};
    plan.build = build++;
    for (int32_t& a : plan.arcs) a = -1;
    plan.keep = -1;
    bool fits = !best;
    for (int a = 0; a < stage.table.size; ++a) {
      const Arc arc = stage.table.arcs[a];
      if (arc.duration > stage.batch.max_frames) continue;  // never there
      const uint32_t bit = 1u << a;
      (arc.emits ? plan.labels : plan.blanks) |= bit;
      const int p = P::Of(arc);
      if (p < 0) {
        (arc.emits ? plan.long_labels : plan.long_blanks) |= bit;
        fits &= arc.duration >= kChunk;
      } else {
        fits &= plan.arcs[p] < 0;
        plan.arcs[p] = a;
      }
    }
    for (int p = P::kCount - 1; p >= P::kLabels; --p) {
      if (plan.arcs[p] >= 0) plan.keep = p;
    }
    if (fits) best = plan;
  });
  return best;
}

Status SweepFast(const LatticeStage<float>& stage, const SweepPlan& plan, cudaStream_t stream) {
  const SweepStore store(stage);
  const Tiling room = Tiling::Of(stage.batch.max_frames, stage.batch.columns);
  const int64_t blocks = room.tiles * stage.batch.size * (stage.posteriors ? 2 : 1);
  if (blocks == 0) return {};
  const cudaError_t error =
      cudaMemsetAsync(store.Shared(), 0xff, store.SharedWords() * sizeof(uint64_t), stream);
  if (error != cudaSuccess) return {error, "cudaMemsetAsync"};
  Status status;
  int build = 0;
  ForEachBuild([&](auto planes) {
    if (build++ != plan.build) return;
    const Grid grid{dim3(BlocksFor(blocks)), kThreads};
    status = Launch("SweepKernel", SweepKernel<decltype(planes)>, grid, stream, stage, plan);
  });
  return status;
}

}  // namespace mbrnnt::cuda
