// The sweep's warp that walks.
#pragma once

#include "cuda/exact_chunk.h"
#include "cuda/ptx.h"
#include "cuda/slot.h"

namespace mbrnnt::cuda {

// A number of a chunk that is not 0 lies between these powers of 2, in its lane's unit. Then its
// products with weights are normal, and what a left neighbour's unit is too small to bring, by
// 2^-1023, does not matter here.
inline constexpr int kLeastExponent = -750, kMostExponent = 100;
// Where a chunk's numbers begin: on a trained model's weights a lane ahead of the likely path rises
// as fast as one behind it falls.
inline constexpr int kCentre = -330;
// But a 0 here is not to be believed where the left neighbour's unit is so much smaller.
inline constexpr int kHonestZero = -100;

__device__ __forceinline__ double UnitFactor(int exponent) {  // 2^exponent, or 0 or infinity
  return __hiloint2double(max(min(exponent + 1023, 2047), 0) << 20, 0);
}

// A weight's double, times 2^-896: the bits of a float that is 0 or normal in a double's place.
__device__ __forceinline__ double SmallWeight(float weight) {
  return DoubleOf(ptx::ShiftLeft29(__float_as_uint(weight)));
}
inline constexpr double kOfSmallWeight = 0x1p896;

// A lane that has had nothing yet takes the unit of the nearest one to its left that has. Returns
// whether all have had something.
static __device__ __attribute__((noinline)) bool AdoptUnit(bool has_seen, bool bordered,
                                                           int border_unit, int& unit) {
  const int lane = threadIdx.x % kWarp;
  const uint32_t seen = __ballot_sync(kAllLanes, has_seen);
  const uint32_t before = seen & (kAllLanes >> (kWarp - 1 - lane));
  const int of_nearest = __shfl_sync(kAllLanes, unit, before != 0 ? 31 - __clz(before) : 0);
  if (before != 0) {
    unit = of_nearest;
  } else if (bordered) {
    unit = border_unit;
  }
  return seen == kAllLanes;
}

// RestOfChunk in 2^unit; what is too large for that is infinite, which is for ExactChunk. Returns
// by how much the smallest number is below the unit.
static __device__ __attribute__((noinline)) int RestInUnit(const TileWalk& walk,
                                                           const SweepPlan& plan, int chunk,
                                                           int unit, OnTheWay<double>& windows) {
  OnTheWay<Scaled<double>> rest;
  RestOfChunk(walk, plan, chunk, rest);
  int least = 0;
#pragma unroll 1
  for (int n = 0; n < 2 * kChunk; ++n) {
    const Scaled<double> x = rest.numbers[n];
    const auto above = static_cast<int>(fmax(fmin(x.exponent - unit, 2000.0), -2000.0));
    if (x.mantissa != 0) least = min(least, above);
    windows.numbers[n] = x.mantissa == 0 ? 0 : x.mantissa * UnitFactor(above);
  }
  return least;
}

template <typename P>
class Walker {
 public:
  __device__ __forceinline__ Walker(const TileWalk& walk, const SweepPlan& plan,
                                    const BlockMemory<P>& memory, OnTheWay<Scaled<double>>& pending)
      : walk_(walk),
        plan_(plan),
        memory_(&memory),
        pending_(pending),
        lane_(static_cast<int>(threadIdx.x % kWarp)),
        is_column_(walk.ColumnOf(lane_) <= walk.lattice.extent.labels),
        takes_left_(lane_ > 0 && is_column_),
        bordered_chunks_(walk.BorderedChunks()),
        has_right_(walk.tile + 1 < walk.tiling.tiles),
        right_words_(walk.borders.To(walk.tile + 1, -kLag)) {
    const int64_t place = walk.numbers.ChunkAt(walk.tile, 0);
    numbers_ = walk.numbers.numbers + place * kBlock + NodeNumbers::Within(lane_, 0);
    exponents_ = walk.numbers.exponents + place * kWarp + lane_;
    seen_ = !is_column_;
  }

  __device__ __forceinline__ void Chunk(int chunk) {
    const auto& slot = *memory_.template Behind<const Slot<P>>(slot_);
    const bool bordered = chunk < bordered_chunks_;
    if (!FastChunk(chunk, slot, bordered)) DoExactly(chunk, bordered ? slot.border : nullptr);
    slot_ = sizeof(Slot<P>) - slot_;
    right_words_ += Borders::kWords;
    numbers_ += kBlock;
    exponents_ += kWarp;
  }

 private:
  // False if a number leaves the range, or something did not fit into it: then nothing was sent,
  // and what was stored is for ExactChunk to overwrite.
  __device__ __forceinline__ bool FastChunk(int chunk, const Slot<P>& slot, bool bordered) {
    const auto written_unit = static_cast<int>(slot.border[kChunk]);
    uint32_t unfit = bordered && written_unit == kOwn;
    const int border_unit = unfit ? 0 : written_unit;
    int honest_zero = is_column_ ? kHonestZero : INT32_MIN;
    if (rare_) {
      PrepareRarely(bordered, border_unit, unfit);
      Save();
      AddRest(chunk, honest_zero);
    } else {
      Save();
    }

    const bool first = lane_ == 0;
    const int above = (first && bordered ? border_unit : left_unit_) - unit_;
    const double factor = UnitFactor(above), none = 0;
    const double left_factor = takes_left_ ? factor : none;
    const uint32_t zero = above < honest_zero ? 0u : ~0u;  // added to a 0
    if (bordered) {
      const double border_factor = first ? factor : none;
#pragma unroll
      for (int k = 0; k < kChunk; k += 2) {
        const auto two = *reinterpret_cast<const ulonglong2*>(slot.border + k);
        blanks_[k] = fma(DoubleOf(two.x), border_factor, blanks_[k]);
        blanks_[k + 1] = fma(DoubleOf(two.y), border_factor, blanks_[k + 1]);
      }
    }

    double last_number = 0, sent[kChunk];
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
        const double number = fma(left, left_factor, blanks_[k]);
        const auto high = static_cast<uint32_t>(__double2hiint(number));
        smallest = min(high + zero, smallest);
        largest = max(high, largest);
        SendOn(number, k, weights, j);
        sent[k] = sent_;
        if (k % 2 == 1) {
          const ulonglong2 two = {BitsOf(last_number), BitsOf(number)};
          __stcg(reinterpret_cast<ulonglong2*>(numbers_ + NodeNumbers::Within(0, k - 1)), two);
        }
        last_number = number;
        if (k == 4) {  // in the next unit this number is about 2^kCentre
          shift = high == 0 ? 0 : static_cast<int>(high >> 20) - (1023 + kCentre);
          left_unit = __shfl_up_sync(kAllLanes, unit_ + shift, 1);
        }
      }
    }
    constexpr uint32_t kLeast = uint32_t{1023 + kLeastExponent} << 20;
    constexpr uint32_t kMost = uint32_t{1023 + kMostExponent} << 20;
#pragma unroll
    for (const uint32_t exact : slot.exact) unfit |= exact;
    const bool fits = smallest >= kLeast && largest <= kMost && unfit == 0;
    if (!__all_sync(kAllLanes, fits)) return false;

    __stcg(exponents_, unit_);
    if (has_right_ && chunk >= kLag && lane_ == kWarp - 1) {
#pragma unroll
      for (int k = 0; k < kChunk; k += 2) {
        ptx::StoreRelaxed2(right_words_ + k, BitsOf(sent[k]), BitsOf(sent[k + 1]));
      }
      ptx::StoreRelaxed2(right_words_ + kChunk, static_cast<uint32_t>(unit_), 0);
    }
    seen_ |= largest;
    unit_ += shift;
    left_unit_ = left_unit;
    Rescale(shift);
    return true;
  }

  __device__ __forceinline__ void Rescale(int shift) {
    const double factor = UnitFactor(-shift);
#pragma unroll
    for (int k = 0; k < kChunk; ++k) {
      blanks_[k] *= factor;
      labels_[k] *= factor;
    }
    sent_ *= factor;
  }

  // Part j of the weights is step k's.
  __device__ __forceinline__ void SendOn(double number, int k, const float4 (&weights)[P::kCount],
                                         int j) {
    const double for_small_weights = number * kOfSmallWeight;
    blanks_[k] = 0;
    sent_ = P::kLabels > 1 ? labels_[k] : 0;
    labels_[k] = 0;
#pragma unroll
    for (int p = 0; p < P::kCount; ++p) {
      const float4& four = weights[p];
      const float w = j == 0 ? four.x : j == 1 ? four.y : j == 2 ? four.z : four.w;
      const Arc arc = P::At(p);
      const int then = (k + arc.duration) % kChunk;
      double& to = arc.emits == 0 ? blanks_[then] : arc.duration == 0 ? sent_ : labels_[then];
      // The next lane waits for the label's share: its weight is made large, not the number.
      to = arc.emits != 0 && arc.duration == 0 ? fma(number, SmallWeight(w) * kOfSmallWeight, to)
                                               : fma(for_small_weights, SmallWeight(w), to);
    }
  }

  __device__ __forceinline__ void Save() const {
    auto* const saved = memory_.template Behind<double>(offsetof(BlockMemory<P>, saved)) + lane_;
#pragma unroll
    for (int k = 0; k < kChunk; ++k) {
      saved[k * kWarp] = blanks_[k];
      if (P::kLabels > 1) saved[(kChunk + 1 + k) * kWarp] = labels_[k];
    }
    saved[kChunk * kWarp] = sent_;
  }

  // ---- what comes seldom: chunks without units, a tile's begin, long arcs ----

  __device__ __forceinline__ void DoExactly(int chunk, const uint64_t* border) {
    if (!exact_) {
      const auto* const saved =
          memory_.template Behind<const double>(offsetof(BlockMemory<P>, saved)) + lane_;
      const auto take = [&](int n) { return Unpack(BitsOf(saved[n * kWarp]), unit_); };
#pragma unroll 1
      for (int k = 0; k < kChunk; ++k) {
        pending_.Blanks(k) = take(k);
        pending_.Labels(k) = P::kLabels > 1 ? take(kChunk + 1 + k) : Scaled<double>::Zero();
      }
      pending_.Sent() = take(kChunk);
    }
    ExactChunk(walk_, plan_, chunk, border, pending_);
    exact_ = rare_ = true;
  }

  // Units for numbers that have none yet.
  __device__ __forceinline__ void PrepareRarely(bool bordered, int border_unit, uint32_t& unfit) {
    OnTheWay<double> windows;
    int unit = unit_;  // (Not the member, which is in a register.)
    if (exact_) {
      const bool fits = ToOneUnit(pending_.numbers, pending_.kCount, windows.numbers, unit);
      exact_ = !__all_sync(kAllLanes, fits);
      unfit |= exact_;
      double any = windows.Sent();
#pragma unroll
      for (int k = 0; k < kChunk; ++k) {
        blanks_[k] = windows.Blanks(k);
        labels_[k] = windows.Labels(k);
        any += blanks_[k] + labels_[k];
      }
      sent_ = windows.Sent();
      seen_ = any > 0 || !is_column_;
      fresh_ = false;
    }
    if (fresh_ && seen_ != 0) {  // its first unit was another's
      fresh_ = false;
      uint32_t most = static_cast<uint32_t>(__double2hiint(sent_));
#pragma unroll
      for (int k = 0; k < kChunk; ++k) {
        most = max(most, static_cast<uint32_t>(__double2hiint(blanks_[k])));
        most = max(most, static_cast<uint32_t>(__double2hiint(labels_[k])));
      }
      const int shift = most == 0 ? 0 : static_cast<int>(most >> 20) - (1023 + kCentre);
      unit += shift;
      Rescale(shift);
    }
    const bool all_seen = AdoptUnit(seen_ != 0, bordered, border_unit, unit);
    unit_ = unit;
    left_unit_ = __shfl_up_sync(kAllLanes, unit, 1);
    rare_ = !all_seen || plan_.HasLongArcs();
  }

  __device__ __forceinline__ void AddRest(int chunk, int& honest_zero) {
    if (!plan_.HasLongArcs() && !walk_.StartsIn(chunk)) return;
    OnTheWay<double> rest;
    if (RestInUnit(walk_, plan_, chunk, unit_, rest) < kHonestZero) honest_zero = INT32_MAX;
#pragma unroll
    for (int k = 0; k < kChunk; ++k) {
      blanks_[k] += rest.Blanks(k);
      if (P::kLabels > 1) labels_[k] += rest.Labels(k);
    }
  }

  const TileWalk& walk_;
  const SweepPlan& plan_;
  const ptx::SharedAddress memory_;
  OnTheWay<Scaled<double>>& pending_;  // in a thread's memory, where the walker is not
  unsigned slot_ = 0;                  // the next one's, in bytes
  const int lane_;
  const bool is_column_;   // the lane's: not beyond the last one, where nothing ever comes
  const bool takes_left_;  // from a lane, where the first one has a border
  const int bordered_chunks_;
  const bool has_right_;
  // In memory: this chunk's, and what it sends to the right.
  uint64_t* numbers_;
  int32_t* exponents_;
  uint64_t* right_words_;
  // On its way to the nodes of the next steps; to the right after these steps; after the last one.
  double blanks_[kChunk] = {}, labels_[kChunk] = {}, sent_ = 0;
  int unit_ = 0, left_unit_ = 0;  // the lane's unit and its left neighbour's
  uint32_t seen_;                 // not 0: there was a number, or never will be one
  bool fresh_ = true;             // the lane's unit is still another's
  bool exact_ = false;            // what is on its way is not here, but in pending_
  bool rare_ = true;              // there is something to prepare
};

template <typename P>
__device__ __forceinline__ void Walk(const TileWalk& walk, const SweepPlan& plan, int chunks,
                                     const BlockMemory<P>& memory) {
  OnTheWay<Scaled<double>> pending;
  Walker<P> walker(walk, plan, memory, pending);
#pragma unroll 1
  for (int chunk = 0; chunk < chunks; ++chunk) {
    ptx::SyncBlock();
    walker.Chunk(chunk);
  }
}

}  // namespace mbrnnt::cuda
