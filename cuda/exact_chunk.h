// The sweep with an exponent for each number: for the chunks that do not fit into units (see
// sweep.cu), at sixty times their price by the model: a thread's memory, not registers, and one
// sum after the other.
#pragma once

#include "cuda/ptx.h"
#include "cuda/sweep.h"
#include "cuda/tile_walk.h"

namespace mbrnnt::cuda {

__device__ __forceinline__ Scaled<double> Sum(Scaled<double> a, Scaled<double> b) {
  return Normalized(Add(a, b));
}

// What an arc of this log-probability brings from a node.
__device__ __forceinline__ Scaled<double> Share(Scaled<double> number, float log_prob) {
  const auto weight = Scaled<float>::FromLog(log_prob);
  return Multiply(number, Scaled<double>{weight.mantissa, weight.exponent});
}

// What is on its way when a chunk begins: to a lane's own nodes in its steps, to the right after
// these steps, and to the right in the step before.
template <typename Number>
struct OnTheWay {
  static constexpr int kCount = 2 * kChunk + 1;
  Number numbers[kCount];

  __device__ __forceinline__ Number& Blanks(int k) { return numbers[k]; }
  __device__ __forceinline__ Number& Labels(int k) { return numbers[kChunk + k]; }
  __device__ __forceinline__ Number& Sent() { return numbers[2 * kChunk]; }
};

// Numbers in one unit, 2^unit, the largest about 1. False if they are too far apart for that.
static __device__ __attribute__((noinline)) bool ToOneUnit(const Scaled<double>* from, int count,
                                                           double* to, int32_t& unit) {
  constexpr double kMostUnit = 1 << 28, kRange = 600;
  double most = -INFINITY, least = INFINITY;
#pragma unroll 1
  for (int n = 0; n < count; ++n) {
    if (from[n].mantissa == 0) continue;
    most = fmax(most, from[n].exponent);
    least = fmin(least, from[n].mantissa > 0 ? from[n].exponent : -INFINITY);
  }
  const bool any = most > -INFINITY;
  const bool fits = !any || (fabs(most) < kMostUnit && least > most - kRange);
  unit = any && fits ? static_cast<int32_t>(most) : 0;
#pragma unroll 1
  for (int n = 0; n < count; ++n) {
    to[n] = fits ? from[n].mantissa * PowerOfTwo(from[n].exponent - unit) : 0;
  }
  return fits;
}

// What is not on its way but comes in a chunk: the walk's start, and what long arcs bring from
// numbers that are stored.
static __device__ __attribute__((noinline)) void RestOfChunk(const TileWalk& walk,
                                                             const SweepPlan& plan, int chunk,
                                                             OnTheWay<Scaled<double>>& rest) {
  const int lane = threadIdx.x % kWarp, j = walk.ColumnOf(lane), first = chunk * kChunk;
#pragma unroll 1
  for (int k = 0; k < kChunk; ++k) {
    rest.Blanks(k) = walk.IsStart(first + k, lane) ? Scaled<double>::One() : Scaled<double>::Zero();
    rest.Labels(k) = Scaled<double>::Zero();
  }
#pragma unroll 1
  for (uint32_t arcs = plan.long_blanks | plan.long_labels; arcs != 0; arcs &= arcs - 1) {
    const int a = __ffs(static_cast<int>(arcs)) - 1;
    const Arc arc = walk.lattice.table.arcs[a];
    // All is asked for before any of it is looked at.
    uint64_t bits[kChunk];
    int32_t exponents[kChunk];
    float log_probs[kChunk];
#pragma unroll 2
    for (int k = 0; k < kChunk; ++k) {
      const int from = first + k - arc.duration, i = walk.RowOf(from, lane);
      bits[k] = 0;
      exponents[k] = 0;
      log_probs[k] = -INFINITY;
      if (i < 0 || !walk.HasArc(i, j, arc)) continue;
      const int64_t place = walk.numbers.ChunkAt(walk.tile, from / kChunk);
      bits[k] =
          __ldcg(walk.numbers.numbers + place * kBlock + NodeNumbers::Within(lane, from % kChunk));
      exponents[k] = __ldcg(walk.numbers.exponents + place * kWarp + lane);
      log_probs[k] = walk.ArcLogProb(i, j, arc, a);
    }
#pragma unroll 1
    for (int k = 0; k < kChunk; ++k) {
      Scaled<double>& to = arc.emits ? rest.Labels(k) : rest.Blanks(k);
      to = Sum(to, Share(Unpack(bits[k], exponents[k]), log_probs[k]));
    }
  }
}

// `border`: what the tile's left neighbour has sent, or null. `pending` is the next chunk's after
// it. A chunk with a NaN is NaN as a whole, and all that it sends: so any arc that is there poisons
// its utterance, also where no path to the final node comes by.
static __device__ __attribute__((noinline)) void ExactChunk(const TileWalk& walk,
                                                            const SweepPlan& plan, int chunk,
                                                            const uint64_t* border,
                                                            OnTheWay<Scaled<double>>& pending) {
  const int lane = threadIdx.x % kWarp, j = walk.ColumnOf(lane), first = chunk * kChunk;
  const int64_t place = walk.numbers.ChunkAt(walk.tile, chunk);
  __stcg(walk.numbers.exponents + place * kWarp + lane, kOwn);
  OnTheWay<Scaled<double>> rest;
  RestOfChunk(walk, plan, chunk, rest);
  Scaled<double> sent[kChunk];
  bool poisoned = false;
#pragma unroll 1
  for (int k = 0; k < kChunk; ++k) {
    const int i = walk.RowOf(first + k, lane);
    Scaled<double> number = {__shfl_up_sync(kAllLanes, pending.Sent().mantissa, 1),
                             __shfl_up_sync(kAllLanes, pending.Sent().exponent, 1)};
    if (lane == 0) {
      number = border != nullptr ? Unpack(border[k], static_cast<int32_t>(border[kChunk]))
                                 : Scaled<double>::Zero();
    }
    number = Sum(Sum(number, pending.Blanks(k)), rest.Blanks(k));
    poisoned |= number.IsPoisoned();
    __stcg(walk.numbers.numbers + place * kBlock + NodeNumbers::Within(lane, k), PackOwn(number));

    Scaled<double> to_right = Sum(pending.Labels(k), rest.Labels(k));
    pending.Blanks(k) = pending.Labels(k) = Scaled<double>::Zero();
#pragma unroll 1
    for (uint32_t arcs = plan.ShortArcs(); arcs != 0; arcs &= arcs - 1) {
      const int a = __ffs(static_cast<int>(arcs)) - 1;
      const Arc arc = walk.lattice.table.arcs[a];
      if (!walk.HasArc(i, j, arc)) continue;
      const int then = (k + arc.duration) % kChunk;
      Scaled<double>& to = !arc.emits          ? pending.Blanks(then)
                           : arc.duration == 0 ? to_right
                                               : pending.Labels(then);
      to = Sum(to, Share(number, walk.ArcLogProb(i, j, arc, a)));
    }
    pending.Sent() = sent[k] = to_right;
  }
  if (__any_sync(kAllLanes, poisoned)) {
    const Scaled<double> nan = {NAN, 0};
#pragma unroll 1
    for (int k = 0; k < kChunk; ++k) {
      pending.Blanks(k) = sent[k] = nan;
      __stcg(walk.numbers.numbers + place * kBlock + NodeNumbers::Within(lane, k), PackOwn(nan));
    }
  }
  uint64_t* right = walk.RightBorder(chunk);
  if (lane != kWarp - 1 || right == nullptr) return;
  double in_unit[kChunk];
  int32_t unit;
  const bool fits = ToOneUnit(sent, kChunk, in_unit, unit);
#pragma unroll 1
  for (int k = 0; k < kChunk; ++k) {
    ptx::StoreRelaxed(right + k, fits ? BitsOf(in_unit[k]) : PackOwn(sent[k]));
  }
  ptx::StoreRelaxed2(right + kChunk, static_cast<uint32_t>(fits ? unit : kOwn), 0);
}

}  // namespace mbrnnt::cuda
