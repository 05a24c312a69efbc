// How the sweep lays out an utterance's lattice, and how it writes numbers down.
//
// Both directions are one walk over nodes (i, j): forward t = i, u = j, backward t = T - i,
// u = U - j. Rows go to i = T, where (T, U), the final node, is the only one. A tile is 32
// columns, one for each lane of a warp; in step q a lane is on row i = q - lane - skew, so that a
// warp is on an anti-diagonal. Steps go by in chunks of 8.
#pragma once

#include "cuda/device.h"
#include "lattice/scaled.h"
#include "lattice/stages.h"

namespace mbrnnt::cuda {

inline constexpr int kChunk = 8;               // steps
inline constexpr int kBlock = kWarp * kChunk;  // nodes of a tile in a chunk
// A tile's first lane needs what the last lane of the tile to its left sent kLag chunks later in
// that tile's count: it is kWarp - 1 rows behind, and a step of skew more.
inline constexpr int kLag = kWarp / kChunk;

// Of one utterance's lattice, or of the largest one that a batch has room for.
struct Tiling {
  int32_t frames, tiles;

  static MBRNNT_HD Tiling Of(int64_t frames, int64_t columns) {
    return {static_cast<int32_t>(frames), static_cast<int32_t>((columns + kWarp - 1) / kWarp)};
  }
  // One step less from tile to tile: so a chunk's left border is one chunk of the neighbour's.
  MBRNNT_HD int32_t Skew(int32_t tile) const { return tiles - 1 - tile; }
  MBRNNT_HD int32_t Chunks(int32_t tile) const {
    return (frames + kWarp - 1 + Skew(tile)) / kChunk + 1;
  }
};

// ---- numbers in eight bytes ------------------------------------------------------
//
// A lane's numbers of a chunk are doubles in a unit of 2^exponent, or, where a chunk's exponent is
// kOwn, floats with an exponent each: the mantissa's bits above the exponent's.

inline constexpr int32_t kOwn = INT32_MIN;

__device__ __forceinline__ uint64_t BitsOf(double x) {
  return static_cast<uint64_t>(__double_as_longlong(x));
}
__device__ __forceinline__ double DoubleOf(uint64_t bits) {
  return __longlong_as_double(static_cast<long long>(bits));
}

__device__ __forceinline__ uint64_t PackOwn(Scaled<double> x) {
  const uint32_t mantissa = x.mantissa == x.mantissa
                                ? __float_as_uint(static_cast<float>(x.mantissa))
                                : 0x7fffffffu;  // without a sign: see kUnwritten
  return uint64_t{mantissa} << 32 | __float_as_uint(static_cast<float>(x.exponent));
}
template <typename T>
__device__ __forceinline__ Scaled<T> UnpackOwn(uint64_t bits) {
  return {T{__uint_as_float(static_cast<uint32_t>(bits >> 32))},
          T{__uint_as_float(static_cast<uint32_t>(bits))}};
}
__device__ __forceinline__ Scaled<double> Unpack(uint64_t bits, int32_t exponent) {
  if (exponent == kOwn) return UnpackOwn<double>(bits);
  return Normalized(Scaled<double>{DoubleOf(bits), static_cast<double>(exponent)});
}

// The same rounded to floats, by integers: a GPU's conversions are slow.
__device__ __forceinline__ Scaled<float> UnpackRounded(uint64_t bits, int32_t exponent) {
  if (exponent == kOwn) return UnpackOwn<float>(bits);
  if (bits == 0) return Scaled<float>::Zero();
  const uint64_t rounded = bits + (uint64_t{1} << 28);
  const auto fraction = static_cast<uint32_t>(rounded >> 29) & 0x7fffffu;
  const auto own = static_cast<int32_t>(rounded >> 52) - 1023;
  return {__uint_as_float(0x3f800000u | fraction), static_cast<float>(own + exponent)};
}

// ---- what the sweep keeps of the nodes -----------------------------------------------

// Of one direction of an utterance: numbers [tiles, chunks, kBlock], and of each lane of a chunk
// the exponent.
struct NodeNumbers {
  uint64_t* numbers;
  int32_t* exponents;
  int32_t chunks;

  static MBRNNT_HD int64_t Chunks(const Tiling& room) {
    return int64_t{room.tiles} * room.Chunks(0);
  }
  static MBRNNT_HD int64_t Words(const Tiling& room) { return Chunks(room) * (kBlock + kWarp / 2); }
  MBRNNT_HD int64_t ChunkAt(int32_t tile, int32_t chunk) const {
    return int64_t{tile} * chunks + chunk;
  }
  // Two steps of a lane are 16 bytes, which a lane stores at once.
  static MBRNNT_HD int32_t Within(int32_t lane, int32_t step) {
    return step / 2 * (2 * kWarp) + lane * 2 + step % 2;
  }
  __device__ __forceinline__ Scaled<double> At(int64_t chunk, int32_t lane, int32_t step) const {
    return Unpack(__ldcg(numbers + chunk * kBlock + Within(lane, step)),
                  __ldcg(exponents + chunk * kWarp + lane));
  }
};

// Left borders on their way from tile to tile, whoever computes these: [tiles - 1, chunks] of the
// shares of a chunk's steps, then their exponent and a word that is not used. A word tells by
// itself that it was written, so that none has to wait for another.
struct Borders {
  static constexpr int32_t kWords = kChunk + 2;
  static constexpr uint64_t kUnwritten = ~uint64_t{0};  // no number: it would be negative
  uint64_t* words;
  int32_t chunks;

  static MBRNNT_HD int64_t Words(const Tiling& room) {
    return int64_t{room.tiles - 1} * room.Chunks(0) * kWords;
  }
  // What the tile needs in a chunk of its own.
  MBRNNT_HD uint64_t* To(int32_t tile, int32_t chunk) const {
    return words + (int64_t{tile - 1} * chunks + chunk) * kWords;
  }
};

// Where these are in the lattice's workspace. A walk is an utterance in one direction: first all
// utterances forward, then all backward.
class SweepStore {
 public:
  explicit MBRNNT_HD SweepStore(const LatticeStage<float>& s)
      : room_(Tiling::Of(s.batch.max_frames, s.batch.columns)),
        walks_(s.batch.size * (s.posteriors ? 2 : 1)),
        numbers_(reinterpret_cast<uint64_t*>(s.workspace)) {}

  // In words of 8 bytes.
  static int64_t WordsPerUtterance(const Tiling& room, int64_t directions) {
    return 2 + directions * (NodeNumbers::Words(room) + Borders::Words(room));
  }
  MBRNNT_HD NodeNumbers Numbers(int64_t walk) const {
    const int64_t chunks = NodeNumbers::Chunks(room_);
    auto* exponents = reinterpret_cast<int32_t*>(numbers_ + walks_ * chunks * kBlock);
    return {numbers_ + walk * chunks * kBlock, exponents + walk * chunks * kWarp, room_.Chunks(0)};
  }
  MBRNNT_HD Borders LeftBorders(int64_t walk) const {
    return {Shared() + 2 + walk * Borders::Words(room_), room_.Chunks(0)};
  }
  MBRNNT_HD bool HasBorders() const { return room_.tiles > 1; }
  // What blocks have in common: a counter in the first two words, and all borders. Where there are
  // borders, its bytes are 0xff before the sweep begins.
  MBRNNT_HD uint64_t* Shared() const { return numbers_ + walks_ * NodeNumbers::Words(room_); }
  MBRNNT_HD int64_t SharedWords() const { return 2 + walks_ * Borders::Words(room_); }

 private:
  Tiling room_;
  int64_t walks_;
  uint64_t* numbers_;
};

// A walk's numbers by frame and label, as the law asks for them.
class TileNumbers {
 public:
  __device__ __forceinline__ TileNumbers(const LatticeStage<float>& s,
                                         const BasicExtent<int32_t>& extent, int64_t walk,
                                         bool forward)
      : numbers_(SweepStore(s).Numbers(walk)),
        tiling_(Tiling::Of(extent.frames, extent.labels + 1)),
        labels_(extent.labels),
        forward_(forward) {}

  __device__ __forceinline__ Scaled<float> operator()(int32_t t, int32_t u) const {
    const int32_t i = forward_ ? t : tiling_.frames - t, j = forward_ ? u : labels_ - u;
    const uint32_t tile = static_cast<uint32_t>(j) / kWarp, lane = static_cast<uint32_t>(j) % kWarp;
    const uint32_t step = i + lane + tiling_.Skew(static_cast<int32_t>(tile));
    // (PlanSweep sees to it that 32 bits are enough.)
    const uint32_t chunk = tile * numbers_.chunks + step / kChunk;
    return UnpackRounded(
        numbers_.numbers[chunk * kBlock + NodeNumbers::Within(lane, step % kChunk)],
        numbers_.exponents[chunk * kWarp + lane]);
  }

 private:
  NodeNumbers numbers_;
  Tiling tiling_;
  int32_t labels_;
  bool forward_;
};

}  // namespace mbrnnt::cuda
