// Random utterances in every condition, and what must hold of what a room makes of
// them. Without Python and XLA, so that sanitizers see every access: buffers are
// exact allocations.
//
// A Room has `Buffer<T>`, which is made of a size or of a vector and gives `data()` for
// the kernels and `Fetch()` for the host, the lattice's `Workspace`, and `Run` for every stage.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "lattice/stages.h"
#include "tests/native/expect.h"
#include "tests/native/paths.h"

namespace mbrnnt::test {

inline std::mt19937 random_bits(20221107);

inline int64_t RandomInt(int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(random_bits);
}

// Two arcs that every utterance has a path of, then any.
inline ArcTable RandomArcs() {
  ArcTable table{static_cast<int32_t>(RandomInt(0, 19) ? RandomInt(2, 10) : kMaxArcs),
                 {{0, 1}, {1, 0}}};
  for (int a = 2; a < table.size; ++a) {
    const auto emits = static_cast<int32_t>(RandomInt(0, 1));
    table.arcs[a] = {static_cast<int32_t>(RandomInt(1 - emits, 4)), emits};
  }
  return table;
}

// A number that is mostly small.
inline int64_t RandomSize(int64_t low, int64_t small, int64_t high) {
  return RandomInt(low, RandomInt(0, 3) ? small : high);
}

// One head or two. The first two arcs read all that is read; a label may be a blank's class, and
// arcs may share one. Now and then nothing is read of the second head, which is NaN then.
inline Emission RandomEmission(const ArcTable& table) {
  Emission emission{table.size, static_cast<int32_t>(RandomInt(1, kMaxHeads)), {}, {}};
  const bool second_is_read = RandomInt(0, 9) > 0;
  for (int h = 0; h < emission.num_heads; ++h) {
    const int64_t size = h == 0 ? RandomInt(5, 40) : RandomSize(1, 6, 40);
    emission.sizes[h] = size;
    for (int a = 0; a < table.size; ++a) {
      int32_t& v = emission.classes[h][a];
      v = static_cast<int32_t>(RandomInt(0, h == 0 ? 4 : size - 1));
      if (h == 0 && table.arcs[a].emits) v = kNextLabel;
      if (h == 1 && !second_is_read) v = kNothing;
      if (a >= 2 && RandomInt(0, 7) == 0) v = kNothing;
    }
  }
  return emission;
}

struct Transducer {
  ArcTable table;
  Emission emission;
};

// A TDT of durations from 0 on. Its rows may be long.
inline Transducer RandomTdt() {
  const auto durations = static_cast<int32_t>(RandomSize(2, 5, kMaxArcs / 2));
  Transducer tdt{{}, {0, 2, {RandomSize(2, 40, 400), durations}, {}}};
  const auto blank = static_cast<int32_t>(RandomInt(0, tdt.emission.sizes[0] - 1));
  for (int32_t d = 0; d < durations; ++d) {
    for (const int32_t emits : {1, 0}) {
      if (d == 0 && !emits) continue;
      const int32_t a = tdt.table.size++;
      tdt.table.arcs[a] = {d, emits};
      tdt.emission.classes[0][a] = emits ? kNextLabel : blank;
      tdt.emission.classes[1][a] = d;
    }
  }
  tdt.emission.num_arcs = tdt.table.size;
  return tdt;
}
inline Transducer RandomTransducer() {
  if (RandomInt(0, 2) == 0) return RandomTdt();
  const ArcTable table = RandomArcs();
  return {table, RandomEmission(table)};
}

template <typename Room, typename L>
struct Case {
  using T = Real<L>;
  // Now and then many: anti-diagonals of several SIMD registers, or many that share a row.
  int64_t batch = RandomInt(0, 4), frames = RandomInt(0, 19) ? RandomInt(0, 7) : RandomInt(25, 60);
  int64_t columns = RandomInt(0, 9) ? RandomInt(1, 5) : RandomInt(25, 60);
  Transducer transducer = RandomTransducer();
  ArcTable table = transducer.table;
  Emission emission = transducer.emission;
  int64_t row_size = emission.RowSize();
  bool clamped = RandomInt(0, 1);
  std::vector<int32_t> logit_lengths, label_lengths, labels;
  std::vector<L> logits;
  std::vector<T> sigmas, label_weights, clamps, cotangents;

  // What may go wrong with an utterance in use.
  enum Fault { kNone, kBadLabel, kBadLength, kNan, kImpossible };
  std::vector<Fault> faults;

  int64_t nodes() const { return frames * columns; }
  Batch BatchOf(const int32_t* logit_lengths, const int32_t* label_lengths) const {
    return {batch, frames, columns, logit_lengths, label_lengths};
  }
  bool IsRead(int h) const { return emission.classes[h][0] != kNothing; }
  bool EveryArcReads() const {
    bool every = true;
    for (int a = 0; a < table.size; ++a) {
      bool reads = false;
      for (int h = 0; h < emission.num_heads; ++h) reads |= emission.classes[h][a] != kNothing;
      every &= reads;
    }
    return every;
  }

  Case() {
    std::normal_distribution<float> normal(0, 3);
    logits.resize(batch * nodes() * row_size);
    for (size_t i = 0; i < logits.size(); ++i) {
      const bool is_read = IsRead(static_cast<int64_t>(i) % row_size < emission.sizes[0] ? 0 : 1);
      logits[i] = FromReal<L>(is_read ? T(normal(random_bits)) : T(NAN));
    }
    labels.resize(batch * (columns - 1));
    for (int32_t& v : labels) v = static_cast<int32_t>(RandomInt(0, emission.sizes[0] - 1));
    for (int64_t b = 0; b < batch; ++b) {
      sigmas.push_back(T(0.05) * T(b));
      label_weights.push_back(T(0.5) * T(RandomInt(0, 2) ? RandomInt(2, 3) : 0));
      clamps.push_back(clamped && RandomInt(0, 2) ? T(0.25) : T(0));
      cotangents.push_back(RandomInt(0, 1) ? T(-2) : T(0.5));
      logit_lengths.push_back(static_cast<int32_t>(RandomInt(0, frames)));
      label_lengths.push_back(static_cast<int32_t>(RandomInt(0, columns - 1)));
      faults.push_back(static_cast<Fault>(RandomInt(0, 4)));
      Break(b);
    }
  }

  void Break(int64_t b) {
    const bool has_node = logit_lengths[b] > 0;
    L* block = logits.data() + b * nodes() * row_size;
    const int64_t read_size = IsRead(emission.num_heads - 1) ? row_size : emission.sizes[0];
    if (faults[b] == kBadLength) {
      (RandomInt(0, 1) ? logit_lengths : label_lengths)[b] = RandomInt(0, 1) ? -1 : INT32_MAX;
    } else if (faults[b] == kBadLabel && has_node && label_lengths[b] > 0) {
      const auto beyond = static_cast<int32_t>(emission.sizes[0]);
      labels[b * (columns - 1)] = RandomInt(0, 1) ? -1 : beyond;
    } else if (faults[b] == kNan && has_node) {
      block[RandomInt(0, read_size - 1)] = FromReal<L>(RandomInt(0, 1) ? T(NAN) : T(INFINITY));
    } else if (faults[b] == kImpossible && has_node && EveryArcReads()) {
      std::fill_n(block, row_size, FromReal<L>(-T(INFINITY)));  // no way out of (0, 0)
    } else {
      faults[b] = kNone;
    }
  }

  template <typename X>
  using Buffer = typename Room::template Buffer<X>;

  void Run(bool in_place) const {
    const int64_t all = batch * nodes();
    const Buffer<int32_t> device_logit_lengths(logit_lengths), device_label_lengths(label_lengths),
        device_labels(labels);
    const Buffer<T> device_sigmas(sigmas), device_label_weights(label_weights),
        device_clamps(clamps), device_cotangents(cotangents);
    const Batch device = BatchOf(device_logit_lengths.data(), device_label_lengths.data());
    Buffer<L> device_logits(logits), other_gradients(logits.size());
    Buffer<T> arc_log_probs(all * table.size), losses(batch), scores(batch);
    Buffer<LogNormalizer<T>> normalizers(all * emission.num_heads);
    Buffer<T> other_posteriors(all * table.size);
    Room::Run(ArcLogProbsStage<L>{device, emission, device_logits.data(), device_labels.data(),
                                  device_sigmas.data(), arc_log_probs.data(), normalizers.data()});
    const auto host_arc_log_probs = arc_log_probs.Fetch();
    const Batch host = BatchOf(logit_lengths.data(), label_lengths.data());
    const Paths<Room, T> paths(host, device, table, arc_log_probs.data());

    Buffer<T>& posteriors = in_place ? arc_log_probs : other_posteriors;
    RunLattice({device, table, arc_log_probs.data(), scores.data(), nullptr});
    RunLattice({device, table, arc_log_probs.data(), losses.data(), posteriors.data()});

    Buffer<L>& gradients = in_place ? device_logits : other_gradients;
    Room::Run(LogitGradientsStage<L>{device, emission, clamped, device_logits.data(),
                                     device_labels.data(), normalizers.data(), posteriors.data(),
                                     device_label_weights.data(), device_clamps.data(),
                                     device_cotangents.data(), gradients.data()});
    const auto host_losses = losses.Fetch(), host_scores = scores.Fetch();
    const auto host_posteriors = posteriors.Fetch();
    const auto host_gradients = gradients.Fetch();
    for (int64_t b = 0; b < batch; ++b) {
      CheckLosses(b, host_losses, host_scores, host_posteriors.data());
      paths.Check(b, host_arc_log_probs.data() + b * nodes() * table.size);
      EXPECT(Poisoned(b) || paths.log_probs[b] <= T(1e-4) - host_losses[b]);
      const Extent extent = host.ExtentOf(b);
      for (int64_t i = 0; i < nodes(); ++i) {
        const int64_t t = i / columns, u = i % columns, node = b * nodes() + i;
        CheckNode(b, u, extent, extent.Contains(t, u), logits.data() + node * row_size,
                  host_arc_log_probs.data() + node * table.size,
                  host_posteriors.data() + node * table.size,
                  host_gradients.data() + node * row_size);
      }
    }
  }

  void RunLattice(LatticeStage<T> stage) const {
    using Workspace = typename Room::Workspace;
    Buffer<T> workspace(batch * Workspace::NumbersPerUtterance(frames, columns, table.size,
                                                               stage.posteriors != nullptr));
    Workspace::Place(workspace.data(), stage);
    Room::Run(stage);
  }

  bool Poisoned(int64_t b) const {
    return faults[b] == kBadLength || faults[b] == kBadLabel || faults[b] == kNan;
  }

  void CheckLosses(int64_t b, const std::vector<T>& losses, const std::vector<T>& scores,
                   const T* posteriors) const {
    EXPECT(std::isnan(losses[b]) == Poisoned(b));
    EXPECT(Poisoned(b) || losses[b] == scores[b]);
    if (faults[b] == kImpossible) EXPECT(losses[b] == T(INFINITY));
    if (!std::isfinite(losses[b])) return;

    T emitted = 0, skipped = 0;  // at u = 0; by all arcs
    for (int64_t i = 0; i < nodes(); ++i) {
      for (int a = 0; a < table.size; ++a) {
        const Arc arc = table.arcs[a];
        const T posterior = posteriors[(b * nodes() + i) * table.size + a];
        if (i % columns == 0) emitted += T(arc.emits) * posterior;
        skipped += T(arc.duration) * posterior;
      }
    }
    EXPECT(std::abs(emitted - T(label_lengths[b] > 0)) <= T(1e-5));
    EXPECT(std::abs(skipped - T(logit_lengths[b])) <= T(1e-4));
  }

  // Both row stages against their definition, in double.
  void CheckNode(int64_t b, int64_t u, Extent extent, bool inside, const L* row,
                 const T* arc_log_probs, const T* posteriors, const L* gradients) const {
    const bool poisoned = Poisoned(b);
    std::vector<double> log_probs(table.size, -double{sigmas[b]});
    for (int h = 0; h < emission.num_heads; ++h) {
      const int64_t size = emission.sizes[h];
      double maximum = -INFINITY, sum = 0;
      for (int64_t v = 0; v < size; ++v) maximum = std::max(maximum, double{ToReal(row[v])});
      for (int64_t v = 0; v < size; ++v) sum += std::exp(ToReal(row[v]) - maximum);
      const double normalizer = maximum == -INFINITY ? 0 : maximum + std::log(sum);

      double occupancy = 0;
      std::vector<double> own(size);
      for (int a = 0; a < table.size && inside && !poisoned; ++a) {
        int64_t v = emission.classes[h][a];
        double posterior = posteriors[a];
        if (v == kNothing) continue;
        if (v == kNextLabel) posterior *= label_weights[b];
        if (v == kNextLabel && u == extent.labels) {
          log_probs[a] = -INFINITY;
          EXPECT(posterior == 0);
          continue;
        }
        if (v == kNextLabel) v = labels[b * (columns - 1) + u];
        log_probs[a] += ToReal(row[v]) - normalizer;
        occupancy += posterior;
        own[v] += posterior;
      }
      double total = 0;
      for (int64_t v = 0; v < size; ++v) {
        const double g = ToReal(gradients[v]);
        EXPECT(std::isnan(g) == (poisoned && (inside ? IsRead(h) : !extent.valid)));
        if (!inside && extent.valid) EXPECT(g == 0);
        total += g;
        if (poisoned || !inside) continue;
        double expected = 0;  // of a head that no arc of a path reads, whatever is in it
        if (occupancy > 0) expected = std::exp(ToReal(row[v]) - normalizer) * occupancy - own[v];
        if (h == 0 && clamps[b] > 0) {
          expected = std::min(std::max(expected, -double{clamps[b]}), double{clamps[b]});
        }
        expected *= cotangents[b];
        const double tolerance = sizeof(L) == 2 ? 0.01 : sizeof(L) == 4 ? 5e-6 : 1e-12;
        EXPECT(std::abs(g - expected) <= tolerance);
      }
      const double roundings = sizeof(L) == 2 ? 0.05 : 1e-4;  // 40 of half precision
      EXPECT(poisoned || (h == 0 && clamps[b] > 0) || std::abs(total) <= roundings);
      row += size;
      gradients += size;
    }
    for (int a = 0; a < table.size && inside && !poisoned; ++a) {
      const double tolerance = sizeof(T) == 4 ? 1e-5 : 1e-12;
      EXPECT(arc_log_probs[a] == log_probs[a] ||
             std::abs(arc_log_probs[a] - log_probs[a]) <= tolerance);
    }
  }
};

template <typename Room, typename L>
void RunCases(int count) {
  for (int i = 0; i < count; ++i) Case<Room, L>().Run(/*in_place=*/i % 2 == 0);
}

}  // namespace mbrnnt::test
