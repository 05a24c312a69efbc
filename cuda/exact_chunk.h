// The sweep with an exponent for each number: for the chunks that do not fit into units (see
// sweep.cu), at sixty times their price by the model: a thread's memory, not registers, and one
// sum after the other.
#pragma once

#include "cuda/ptx.h"
#include "cuda/sweep.h"

namespace mbrnnt::cuda {

// The walk through a tile in one direction, of one utterance.
struct TileWalk {
  Lattice<float, int32_t> lattice;
  Tiling tiling;
  int32_t tile;
  bool forward;
  NodeNumbers numbers;
  Borders borders;

  __device__ __forceinline__ int RowOf(int step, int lane) const {
    return step - lane - tiling.Skew(tile);
  }
  __device__ __forceinline__ int ColumnOf(int lane) const { return tile * kWarp + lane; }

  // An arc that leaves (i, j) in the walk's direction: backward, one of the lattice that enters it.
  __device__ __forceinline__ bool HasArc(int i, int j, Arc arc) const {
    const int t = FrameOf(i), u = LabelOf(j);
    return forward ? lattice.HasArc(t, u, arc)
                   : lattice.HasArc(t - arc.duration, u - arc.emits, arc);
  }
  // Its log-probability: of arc number a of the table, which is `arc`.
  __device__ __forceinline__ float ArcLogProb(int i, int j, Arc arc, int a) const {
    return LogProbs(i, j)[Offset(arc, a)];
  }
  // The same in two parts, the first of which is not memory where (i, j) is no node. (Where there
  // are no frames there is none at all.)
  __device__ __forceinline__ const float* LogProbs(int i, int j) const {
    const int64_t node = FrameOf(i) * lattice.columns + LabelOf(j);
    return lattice.arc_log_probs + (tiling.frames > 0 ? node * lattice.table.size : 0);
  }
  __device__ __forceinline__ int Offset(Arc arc, int a) const {
    const auto columns = static_cast<int>(lattice.columns);
    return forward ? a : a - (arc.duration * columns + arc.emits) * lattice.table.size;
  }

  // The walk starts with One at (0, 0).
  __device__ __forceinline__ bool StartsIn(int chunk) const {
    return tile == 0 && chunk == tiling.Skew(0) / kChunk;
  }
  __device__ __forceinline__ bool IsStart(int step, int lane) const {
    return tile == 0 && lane == 0 && step == tiling.Skew(0);
  }
  // How many of the tile's chunks have a left border.
  __device__ __forceinline__ int BorderedChunks() const {
    return tile == 0 ? 0 : min(tiling.Chunks(tile - 1) - kLag, tiling.Chunks(tile));
  }
  // Where a chunk's right border goes, or null.
  __device__ __forceinline__ uint64_t* RightBorder(int chunk) const {
    return tile + 1 < tiling.tiles && chunk >= kLag ? borders.To(tile + 1, chunk - kLag) : nullptr;
  }

 private:
  __device__ __forceinline__ int FrameOf(int i) const {
    return forward ? i : lattice.extent.frames - i;
  }
  __device__ __forceinline__ int LabelOf(int j) const {
    return forward ? j : lattice.extent.labels - j;
  }
};

__device__ __forceinline__ Scaled<double> Sum(Scaled<double> a, Scaled<double> b) {
  return Normalized(Add(a, b));
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

// What long arcs (bits by number) bring from numbers that are stored, the chunk's own not among
// them: blanks to the lane's node in `step`, labels to where the next column is a step later.
static __device__ __attribute__((noinline)) Scaled<double> OfLongArcs(const TileWalk& walk,
                                                                      uint32_t arcs, int step) {
  const int lane = threadIdx.x % kWarp, j = walk.ColumnOf(lane);
  Scaled<double> sum = Scaled<double>::Zero();
#pragma unroll 1
  for (; arcs != 0; arcs &= arcs - 1) {
    const int a = __ffs(static_cast<int>(arcs)) - 1;
    const Arc arc = walk.lattice.table.arcs[a];
    const int from = step - arc.duration, i = walk.RowOf(from, lane);
    if (i < 0 || !walk.HasArc(i, j, arc)) continue;
    const Scaled<float> weight = FromLog(walk.ArcLogProb(i, j, arc, a));
    const Scaled<double> number =
        walk.numbers.At(walk.numbers.ChunkAt(walk.tile, from / kChunk), lane, from % kChunk);
    sum = Sum(sum, Multiply(number, Scaled<double>{weight.mantissa, weight.exponent}));
  }
  return sum;
}

// `border`: what the tile's left neighbour has sent, or null. `pending` is the next chunk's after
// it.
static __device__ __attribute__((noinline)) void ExactChunk(const TileWalk& walk,
                                                            const SweepPlan& plan, int chunk,
                                                            const uint64_t* border,
                                                            OnTheWay<Scaled<double>>& pending) {
  const int lane = threadIdx.x % kWarp, j = walk.ColumnOf(lane), first = chunk * kChunk;
  const int64_t place = walk.numbers.ChunkAt(walk.tile, chunk);
  __stcg(walk.numbers.exponents + place * kWarp + lane, kOwn);
  Scaled<double> sent[kChunk];
#pragma unroll 1
  for (int k = 0; k < kChunk; ++k) {
    const int step = first + k, i = walk.RowOf(step, lane);
    Scaled<double> number = {__shfl_up_sync(0xffffffffu, pending.Sent().mantissa, 1),
                             __shfl_up_sync(0xffffffffu, pending.Sent().exponent, 1)};
    if (lane == 0) {
      number = border != nullptr ? Unpack(border[k], static_cast<int32_t>(border[kChunk]))
                                 : Scaled<double>::Zero();
    }
    if (walk.IsStart(step, lane)) number = Sum(number, Scaled<double>::One());
    number = Sum(number, pending.Blanks(k));
    if (plan.long_blanks != 0) number = Sum(number, OfLongArcs(walk, plan.long_blanks, step));
    __stcg(walk.numbers.numbers + place * kBlock + NodeNumbers::Within(lane, k), PackOwn(number));

    Scaled<double> to_right = pending.Labels(k);
    if (plan.long_labels != 0) to_right = Sum(to_right, OfLongArcs(walk, plan.long_labels, step));
    pending.Blanks(k) = pending.Labels(k) = Scaled<double>::Zero();
#pragma unroll 1
    for (uint32_t arcs = plan.ShortArcs(); arcs != 0; arcs &= arcs - 1) {
      const int a = __ffs(static_cast<int>(arcs)) - 1;
      const Arc arc = walk.lattice.table.arcs[a];
      if (!walk.HasArc(i, j, arc)) continue;
      const Scaled<float> weight = FromLog(walk.ArcLogProb(i, j, arc, a));
      const Scaled<double> share = Multiply(number, {weight.mantissa, weight.exponent});
      const int then = (k + arc.duration) % kChunk;
      Scaled<double>& to = !arc.emits          ? pending.Blanks(then)
                           : arc.duration == 0 ? to_right
                                               : pending.Labels(then);
      to = Sum(to, share);
    }
    pending.Sent() = sent[k] = to_right;
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

// What the sweep has not in registers: the walk's start, and what long arcs bring, in 2^unit.
// Returns by how much the smallest number is below it.
static __device__ __attribute__((noinline)) double RestOfWindows(const TileWalk& walk,
                                                                 const SweepPlan& plan, int chunk,
                                                                 int32_t unit,
                                                                 OnTheWay<double>& windows) {
  const int lane = threadIdx.x % kWarp, j = walk.ColumnOf(lane), first = chunk * kChunk;
  double least = 0;
#pragma unroll 1
  for (int k = 0; k < kChunk; ++k) {
    const bool starts = walk.IsStart(first + k, lane);
    if (starts) least = fmin(least, static_cast<double>(-unit));
    windows.Blanks(k) = starts ? PowerOfTwo(static_cast<double>(-unit)) : 0;
    windows.Labels(k) = 0;
  }
#pragma unroll 1
  for (uint32_t arcs = plan.long_blanks | plan.long_labels; arcs != 0; arcs &= arcs - 1) {
    const int a = __ffs(static_cast<int>(arcs)) - 1;
    const Arc arc = walk.lattice.table.arcs[a];
    double* const to = &(arc.emits ? windows.Labels(0) : windows.Blanks(0));
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
      const Scaled<double> number = Unpack(bits[k], exponents[k]);
      const Scaled<float> weight = FromLog(log_probs[k]);
      const double mantissa = number.mantissa * weight.mantissa;
      const double above = number.exponent + weight.exponent - unit;
      if (mantissa != 0) least = fmin(least, above);
      // (What is too large for a double is for ExactChunk, and so is NaN.)
      to[k] += above < 1000 || mantissa == 0 ? mantissa * PowerOfTwo(above) : NAN;
    }
  }
  return least;
}

}  // namespace mbrnnt::cuda
